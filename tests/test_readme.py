"""The README tells the truth: table, tree, experiment file and pictures are those of the repository."""

import re
from pathlib import Path

import pytest
import yaml

from qbw_eval.experiment import experiment_from_mapping
from schemas.columns import markdown_table
from schemas.records import RECORD_COLUMNS

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()


def test_the_record_table_is_made_from_the_schema():
    assert markdown_table(RECORD_COLUMNS) in README


@pytest.mark.parametrize("package", ["schemas", "qbw_eval", "qbw_report"])
def test_the_tree_lists_every_module_with_a_purpose(package: str):
    tree = README[README.rindex("```text") :]
    listed = set(re.findall(r"^ *([a-z_0-9]+\.py) +\S", tree, flags=re.MULTILINE))
    modules = {path.name for path in (REPOSITORY / package).rglob("*.py")} - {"__init__.py"}
    assert modules - listed == set()


def test_the_tree_lists_no_module_that_is_gone():
    tree = README[README.rindex("```text") :]
    listed = set(re.findall(r"^ *([a-z_0-9]+\.py) ", tree, flags=re.MULTILINE))
    packages = ("schemas", "qbw_eval", "qbw_report", "benchmarks", "tests")
    assert listed - {path.name for package in packages for path in (REPOSITORY / package).rglob("*.py")} == set()


def test_the_experiment_file_shown_is_a_valid_one():
    whole, images, samples = re.findall(r"^```yaml\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    values = yaml.safe_load(whole)
    values["training"]["learning_rate"] = float(values["training"]["learning_rate"])  # PyYAML takes 3e-3 for a string
    experiment = experiment_from_mapping(values, "README.md")
    assert experiment.layer_options == (2, 4, 8)
    assert experiment_from_mapping(values | yaml.safe_load(images), "README.md").data.source == "image_folder"
    assert experiment_from_mapping(values | yaml.safe_load(samples), "README.md").data.source == "sample_index"


def test_every_picture_shown_is_there():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    assert [path for path in pictures if not (REPOSITORY / path).is_file()] == []
