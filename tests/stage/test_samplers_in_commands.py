"""Samplers from end to end: `qbw-eval sample` and `run` agree, rows say what was aimed at, ranges and files hold."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stage_references import Outcome, qbw_eval

from qbw_eval.sampling.given import read_given
from qbw_eval.verify import verify


@pytest.fixture
def checkpoint(tiny_checkpoints: Path) -> Path:
    """A network of 8 quantized layers at 2, 4 or 8 bits."""
    return tiny_checkpoints / "epoch_003.pt"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return tmp_path / "results" / "records"


def ran(checkpoint: Path, records: Path, *words: object) -> pd.DataFrame:
    """Run on a few samples and return all rows there are, in the order of plans and configurations."""
    outcome = qbw_eval("run", checkpoint, "--limit", 8, "--records", records, "--quiet", *words)
    assert outcome.code == 0, outcome.stderr
    assert verify(records).problems == ()
    return pd.read_parquet(records).sort_values(["plan_id", "config_index"])


def done_and_new(checkpoint: Path, records: Path, *words: object) -> tuple[int, int]:
    outcome = qbw_eval("run", checkpoint, "--limit", 8, "--records", records, "--quiet", "--json", *words)
    assert outcome.code == 0, outcome.stderr
    (told,) = json.loads(outcome.stdout)["checkpoints"]
    return told["done_before"], told["evaluated_now"]


def bits(frame: pd.DataFrame) -> list[list[int]]:
    return [list(map(int, row)) for row in frame["bitwidths"]]


# One way to say which configurations: the words, and what the rows' `sampler` and `extras_json` say then.
WAYS: dict[str, tuple[tuple[object, ...], str, dict[str, Any]]] = {
    "default": (("--num-configs", 9), "stratified/1", {"cost": "avg_bitwidth"}),
    "iid": (("--sampler", "iid", "--num-configs", 5), "iid/1", {}),
    "iid in a range": (
        ("--sampler", "iid", "--num-configs", 5, "--range", "avg_bitwidth=3:4"),
        "iid/1",
        {"range": {"cost": "avg_bitwidth", "low": "3", "high": "4"}},
    ),
    "stratified by operations": (
        ("--cost", "bit_ops", "--num-configs", 9),
        "stratified/1",
        {"cost": "bit_ops"},
    ),
    "one-layer": (("--sampler", "one-layer", "--base", 4), "one-layer/1", {"base": 4}),
    "uniform": (("--sampler", "uniform"), "uniform/1", {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_run_evaluates_what_sample_writes_and_rows_say_how_it_was_drawn(
    way: str, checkpoint: Path, records: Path, tmp_path: Path
) -> None:
    words, sampler, told = WAYS[way]
    frame = ran(checkpoint, records, *words)
    extras = [json.loads(text) for text in frame["extras_json"]]
    assert set(frame["sampler"]) == {sampler}
    assert all(extra.get("sampler_settings", {}) == told for extra in extras)
    for kind in ("json", "yaml", "csv"):
        file = tmp_path / f"drawn.{kind}"
        outcome = qbw_eval("sample", checkpoint, *words, "--out", file)
        assert (outcome.code, outcome.stdout) == (
            0,
            f"{file}: {len(frame)} configurations; next: qbw-eval run CKPT --configurations {file}\n",
        )
        layers = pd.read_parquet(next((records.parent / "layers").iterdir()))["layer_name"]
        assert [list(one) for one in read_given(file).in_order(list(layers))] == bits(frame)
    written = json.loads((tmp_path / "drawn.json").read_text())["configurations"]
    for row, (_, evaluated) in zip(written, frame.iterrows(), strict=True):
        for name in set(row) - {"bitwidths"}:
            assert row[name] == (None if pd.isna(evaluated[name]) else evaluated[name])
    # Evaluated from the file they are other rows, of the same bits.
    again = ran(checkpoint, records, "--configurations", tmp_path / "drawn.csv")
    of_file = again[again["sampler"] == "file/1"]
    assert bits(of_file) == bits(frame)
    assert list(of_file["correct"]) == list(frame["correct"])


def test_the_same_configurations_in_another_kind_of_file_are_done_already(
    checkpoint: Path, records: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text("[[2, 2, 2, 2, 8, 8, 8, 8], [4, 4, 4, 4, 8, 8, 8, 8]]")
    (tmp_path / "b.yaml").write_text("- [2, 2, 2, 2, 8, 8, 8, 8]\n- [4, 4, 4, 4, 8, 8, 8, 8]\n")
    (tmp_path / "c.yaml").write_text("- [2, 2, 2, 2, 8, 8, 8, 8]\n- [4, 4, 4, 4, 8, 8, 8, 4]\n")
    assert done_and_new(checkpoint, records, "--configurations", tmp_path / "a.json") == (0, 2)
    assert done_and_new(checkpoint, records, "--configurations", tmp_path / "b.yaml") == (2, 0)
    assert done_and_new(checkpoint, records, "--configurations", tmp_path / "c.yaml") == (0, 2)


def test_neighbours_of_bits_and_of_a_file_are_the_same(checkpoint: Path, records: Path, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('{"bitwidths": [2, 4, 8, 8, 8, 8, 8, 8]}')
    assert done_and_new(checkpoint, records, "--of", "2,4,8,8,8,8,8,8") == (0, 1 + 1 + 2 + 6)
    assert done_and_new(checkpoint, records, "--of", tmp_path / "one.json") == (10, 0)
    frame = pd.read_parquet(records).sort_values("config_index")
    assert bits(frame)[0] == [2, 4, 8, 8, 8, 8, 8, 8]
    for neighbour in bits(frame)[1:]:
        assert sum(one != other for one, other in zip(neighbour, bits(frame)[0], strict=True)) == 1


def test_a_range_holds_for_every_row_and_is_the_same_however_it_is_written(checkpoint: Path, records: Path) -> None:
    words = ("--num-configs", 12, "--range")
    frame = ran(checkpoint, records, *words, "weighted_avg_bitwidth=3.5:4.5")
    assert frame["weighted_avg_bitwidth"].between(3.5, 4.5).all()
    assert set(frame["target_cost"].dropna()) == {"weighted_avg_bitwidth"}
    assert bits(frame)[0] == [4] * 8, "the uniform configuration that lies in it"
    assert done_and_new(checkpoint, records, *words, "weighted_avg_bitwidth=3.50:45e-1") == (12, 0)


def test_the_experiments_sampler_is_taken_unless_another_is_named(
    checkpoint: Path, records: Path, tmp_path: Path
) -> None:
    config = tmp_path / "data.yaml"
    config.write_text(
        "data: {source: digits}\nrandom_bitwidths: {sampler: one-layer, base: 2, range: 'avg_bitwidth=:2.5'}\n"
    )
    assert done_and_new(checkpoint, records, "--config", config) == (0, 1 + 8)  # 8 bits in one layer are 2.75
    assert done_and_new(checkpoint, records, "--config", config, "--sampler", "iid", "--num-configs", 3) == (0, 3)
    assert (pd.read_parquet(records)["avg_bitwidth"] <= 2.5).all()


def test_sample_prints_a_table_without_a_checkpoint() -> None:
    outcome = qbw_eval("sample", "--layers", 3, "--options", "2,8", "--num-configs", 9)
    assert outcome.code == 0
    assert outcome.stderr == "8 configurations of 8 (3 layers at [2, 8]), all there are of the 9 asked for\n"
    lines = outcome.stdout.splitlines()
    assert lines[0].split() == ["#", "target", "average", "bitwidth", "(bits)", "bitwidths", "(bits)"]
    assert [line.split()[-1] for line in lines[2:]][:3] == ["2,2,2", "8,8,8", lines[4].split()[-1]]
    assert len(lines) == 2 + 8


MISTAKES: dict[str, tuple[tuple[object, ...], str]] = {
    "nothing": ((), "sample: expected a checkpoint or --layers, found neither"),
    "both": (("x.pt", "--layers", 3), "sample: expected a checkpoint or --layers, found both"),
    "no options": (
        ("--layers", 3),
        "sample --layers: say with --options which bitwidths there are, such as 2,4,8",
    ),
    "no sizes": (
        ("--layers", 3, "--options", "2,4", "--cost", "bit_ops"),
        "cost bit_ops: only the number of layers is known here, not their sizes; use avg_bitwidth",
    ),
    "another sampler": (
        ("--layers", 3, "--options", "2,4", "--of", "2,2,2", "--sampler", "iid"),
        "--of: goes with --sampler neighbours, not with iid",
    ),
    "nothing given": (
        ("--layers", 3, "--options", "2,4", "--sampler", "file"),
        "--sampler file: say with --configurations which configurations",
    ),
    "two at once": (
        ("--layers", 3, "--options", "2,4", "--of", "2,2,2", "--configurations", "x.json"),
        "--configurations and --of: they are two samplers; leave one out",
    ),
    "out of reach": (
        ("--layers", 3, "--options", "2,4", "--range", "avg_bitwidth=5:"),
        "range avg_bitwidth=5:: there is no configuration; 3 layers at [2, 4] reach 2 to 4",
    ),
    "no range": (
        ("--layers", 3, "--options", "2,4", "--range", "3:5"),
        "Invalid value for '--range': expected a cost and its lowest and highest value, such as avg_bitwidth=3:5, "
        "found '3:5'",
    ),
    "CSV": (
        ("--layers", 3, "--options", "2,4", "--out", "x.csv"),
        "x.csv: CSV has a column for every layer's name; name a checkpoint, or write .json or .yaml",
    ),
    "another ending": (
        ("--layers", 3, "--options", "2,4", "--out", "x.txt"),
        "x.txt: expected a name that ends in .json, .yaml or .csv; found '.txt'",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name: str) -> None:
    words, sentence = MISTAKES[name]
    outcome = qbw_eval("sample", *words)
    last = outcome.stderr.splitlines()[-1]
    assert (outcome.code, outcome.stdout, last) == (2, "", f"qbw-eval: error: {sentence}")


def test_a_file_is_not_replaced_unless_told(tmp_path: Path) -> None:
    words = ("sample", "--layers", 3, "--options", "2,4", "--out", tmp_path / "x.json")
    assert qbw_eval(*words).code == 0
    before = (tmp_path / "x.json").read_text()
    assert len(json.loads(before)["configurations"]) == 8
    assert qbw_eval(*words, "--num-configs", 3).stderr.splitlines()[-1] == (
        f"qbw-eval: error: {tmp_path / 'x.json'}: is there already; name another file or say --overwrite"
    )
    assert (tmp_path / "x.json").read_text() == before
    assert qbw_eval(*words, "--num-configs", 3, "--overwrite").code == 0
    assert len(json.loads((tmp_path / "x.json").read_text())["configurations"]) == 3


def test_layers_that_a_file_names_must_be_the_networks(checkpoint: Path, records: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"layer1.0.conv1": 2, "layer9": 4}')
    outcome: Outcome = qbw_eval("run", checkpoint, "--records", records, "--configurations", tmp_path / "x.json")
    assert outcome.code == 2
    assert f"{tmp_path / 'x.json'}: configuration 1 does not fit the network: unknown layer 'layer9'" in outcome.stderr
    assert "no bits for layer 'layer1.0.conv2'" in outcome.stderr
    assert not records.exists()
    named = qbw_eval("sample", "--layers", 2, "--options", "2,4", "--configurations", tmp_path / "x.json")
    assert named.stderr == (
        f"qbw-eval: error: {tmp_path / 'x.json'}: gives bits by layer name, which --layers does not know; "
        "name a checkpoint\n"
    )
