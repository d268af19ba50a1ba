"""The experiment file: what is accepted, what it becomes, and what is said about every mistake."""

import doctest
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path, PurePosixPath
from types import MappingProxyType, ModuleType
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from qbw_eval import experiment, mistakes, plain_values, yaml_reader
from qbw_eval.experiment import (
    Experiment,
    ExperimentError,
    WithoutNetwork,
    experiment_from_mapping,
    experiment_json_schema,
    load_evaluation_file,
    load_experiment,
)
from qbw_eval.settings.data import DataSettings, NormalizationSettings
from qbw_eval.settings.model import CIFAR_STYLE, FactoryModel, ModelSettings, NetworkName
from qbw_eval.settings.quantization import MethodSettings, QuantizationSettings, RandomBitwidths
from qbw_eval.settings.training import TrainingSettings
from qbw_eval.yaml_reader import read_yaml

UNTIMED = settings(deadline=None)  # a busy machine is no failure

SMALL = """\
model: resnet8
data: {source: digits}
quantization:
  mine: {bitwidth_options: [8, 2, 4]}
"""

FULL = """\
experiment: every key
model:
  name: resnet20
  width: 24
  batch_norm: switchable
  quantize_first_and_last: true
  in_channels: 3
  num_classes: 7
  input_size: [9, 11]
data:
  source: tensors
  train: a/train.npz
  validation: /b/validation.pt
  test: ../test.npz
  batch_size: 100
training:
  epochs: 5
  batch_size: 32
  learning_rate: 1e-3
  weight_decay: 0
  configurations_per_batch: 3
  seed: 1
quantization:
  enable: True
  first:
    bitwidth_options: [32, 4]
    training_method: vanilla_single_precision_training
    validation_function: simple_validation
    weight_quantization: dorefa_scaled
    activation_quantization: pact
    switchable_clipping: true
    bitwidth: 4
  second:
    bitwidth_options: [2, 3]
    weight_quantization: lsq
    activation_quantization: lsq
random_bitwidths:
  num_bitwidths: 4
  sampler: stratified
  seed: 2
  range: bit_ops=:1e6
  cost: bit_ops
quantization_method: first
"""


IMAGES = """\
model: resnet18
data:
  source: image_folder
  train: images/train
  validation: images/val
  size: 224
  resize: 256
  mean: [0.485, 0.456, 0.406]
  std: [0.229, 0.224, 1]
quantization:
  mine: {bitwidth_options: [8, 2, 4], sat_weight_normalization: true}
"""

SAMPLES = """\
model: resnet18
data:
  source: sample_index
  train: index/train.txt
  validation: index/val.txt
  root: samples
  locations: [front, back]
  modalities: [audio]
  label: terrain
  num_segments: 10
  fft: false
  normalization:
    method: minmax
    minmax_range: [-1, 1]
quantization:
  mine: {bitwidth_options: [8, 2, 4]}
"""

FACTORY = """\
model: resnet18
data:
  source: factory
  factory: package.module:make
  arguments: {path: a/b, sizes: [1, 2.5, null], nested: {deep: true}}
quantization:
  mine: {bitwidth_options: [8, 2, 4]}
"""

SAMPLE_KEYS = ["root", "locations", "modalities", "label", "num_segments", "fft", "normalization"]
FACTORY_KEYS = ["factory", "arguments"]
"""Keys of one source only, which are null with all others."""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str, name: str = "exp.yaml", **options: Any) -> Experiment:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return load_experiment(path, **options)


def refusal(text: str, **options: Any) -> list[str]:
    with pytest.raises(ExperimentError) as caught:
        load(text, **options)
    assert caught.value.exit_code == 2
    return str(caught.value).split("\n")


def mapping_refusal(config: object) -> list[str]:
    with pytest.raises(ExperimentError) as caught:
        experiment_from_mapping(config, "epoch_001.pt")  # type: ignore[arg-type]  # strangers do not heed types
    return str(caught.value).split("\n")


# --- what is accepted -----------------------------------------------------------------------------------------------


def test_a_small_file_has_defaults_for_the_rest() -> None:
    assert load(SMALL, "tiny.v2.yaml") == Experiment(
        experiment="tiny.v2",
        model=ModelSettings(
            name="resnet8",
            width=None,
            batch_norm="shared",
            quantize_first_and_last=False,
            in_channels=None,
            num_classes=None,
            input_size=None,
        ),
        data=DataSettings(source="digits", train=None, validation=None, test=None, batch_size=256),
        training=TrainingSettings(
            epochs=30, batch_size=64, learning_rate=1e-3, weight_decay=1e-4, configurations_per_batch=2, seed=0
        ),
        quantization=QuantizationSettings.model_validate(
            {
                "enable": True,
                "mine": MethodSettings(
                    bitwidth_options=(2, 4, 8),
                    training_method="joint_quantization",
                    validation_function="random_bitwidths",
                    weight_quantization="dorefa",
                    activation_quantization="dorefa",
                    switchable_clipping=False,
                    bitwidth=None,
                ),
            }
        ),
        random_bitwidths=RandomBitwidths(num_bitwidths=16, sampler=None, seed=0, range=None, cost=None, base=None),
        quantization_method="mine",
    )


def test_every_key_arrives_where_it_belongs(tmp_path: Path) -> None:
    assert load(FULL).as_mapping() == {
        "experiment": "every key",
        "model": {
            "name": "resnet20",
            "width": 24,
            "batch_norm": "switchable",
            "quantize_first_and_last": True,
            "in_channels": 3,
            "num_classes": 7,
            "input_size": [9, 11],
        },
        "data": {
            "source": "tensors",
            "train": f"{tmp_path}/a/train.npz",
            "validation": "/b/validation.pt",
            "test": f"{tmp_path}/../test.npz",
            "size": None,
            "resize": None,
            "mean": None,
            "std": None,
            **dict.fromkeys(SAMPLE_KEYS + FACTORY_KEYS),
            "batch_size": 100,
        },
        "training": {
            "epochs": 5,
            "batch_size": 32,
            "learning_rate": 0.001,
            "weight_decay": 0.0,
            "configurations_per_batch": 3,
            "seed": 1,
        },
        "quantization": {
            "enable": True,
            "first": {
                "bitwidth_options": [4, 32],
                "training_method": "vanilla_single_precision_training",
                "validation_function": "simple_validation",
                "weight_quantization": "dorefa_scaled",
                "activation_quantization": "pact",
                "sat_weight_normalization": False,
                "switchable_clipping": True,
                "bitwidth": 4,
            },
            "second": {
                "bitwidth_options": [2, 3],
                "training_method": "joint_quantization",
                "validation_function": "random_bitwidths",
                "weight_quantization": "lsq",
                "activation_quantization": "lsq",
                "sat_weight_normalization": False,
                "switchable_clipping": False,
                "bitwidth": None,
            },
        },
        "random_bitwidths": {
            **{"num_bitwidths": 4, "sampler": "stratified", "seed": 2},
            **{"range": "bit_ops=:1e6", "cost": "bit_ops", "base": None},
        },
        "quantization_method": "first",
    }


def test_image_folders_have_keys_of_their_own(tmp_path: Path) -> None:
    experiment = load(IMAGES)
    assert experiment.as_mapping()["data"] == {
        "source": "image_folder",
        "train": f"{tmp_path}/images/train",
        "validation": f"{tmp_path}/images/val",
        "test": None,
        "size": 224,
        "resize": 256,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 1.0],
        **dict.fromkeys(SAMPLE_KEYS + FACTORY_KEYS),
        "batch_size": 256,
    }
    assert experiment_from_mapping(experiment.as_mapping(), "here") == experiment
    assert load(IMAGES.replace("  resize: 256\n", "")) == load(IMAGES.replace("resize: 256", "resize: 224"))


def test_sample_indices_have_keys_of_their_own(tmp_path: Path) -> None:
    experiment = load(SAMPLES)
    assert experiment.as_mapping()["data"] == {
        "source": "sample_index",
        "train": f"{tmp_path}/index/train.txt",
        "validation": f"{tmp_path}/index/val.txt",
        "test": None,
        **dict.fromkeys(["size", "resize", "mean", "std", *FACTORY_KEYS]),
        "root": f"{tmp_path}/samples",
        "locations": ["front", "back"],
        "modalities": ["audio"],
        "label": "terrain",
        "num_segments": 10,
        "fft": False,
        "normalization": {"method": "minmax", "minmax_range": [-1.0, 1.0]},
        "batch_size": 256,
    }
    assert experiment_from_mapping(experiment.as_mapping(), "here") == experiment
    assert load(SAMPLES.replace("  fft: false\n", "")) == load(SAMPLES.replace("fft: false", "fft: true"))


def test_samples_that_are_not_normalized_need_no_training_index() -> None:
    text = SAMPLES.replace("  train: index/train.txt\n", "").replace("minmax\n    minmax_range: [-1, 1]", "none")
    data = load(text).data
    assert (data.train, data.normalization) == (None, NormalizationSettings(method="none", minmax_range=(0.0, 1.0)))


def test_a_factory_has_keys_of_its_own() -> None:
    experiment = load(FACTORY)
    assert experiment.as_mapping()["data"] == {
        "source": "factory",
        **dict.fromkeys(["train", "validation", "test", "size", "resize", "mean", "std", *SAMPLE_KEYS]),
        "factory": "package.module:make",
        "arguments": {"path": "a/b", "sizes": [1, 2.5, None], "nested": {"deep": True}},
        "batch_size": 256,
    }
    # run.py keeps splits by their settings.
    again, other = load(FACTORY), load(FACTORY.replace("2.5", "2.6"))
    assert hash(again.data) == hash(experiment.data)
    assert len({experiment.data, again.data, other.data}) == 2


NO_FACTORY = (
    "data.source: 'factory' runs a function of somebody's own, which no checkpoint may ask for; "
    "if you trust it, name the data in a file of yours, with --config"
)


def test_a_checkpoint_cannot_ask_for_a_factory_but_its_user_can() -> None:
    mapping = load(FACTORY).as_mapping()
    assert mapping_refusal(mapping) == [f"epoch_001.pt: {NO_FACTORY}"]
    data = load(FACTORY.replace("package.module:make", "mine:make")).data
    assert experiment_from_mapping(mapping, "here", data).data == data
    # What the checkpoint says of its data does not matter then, be it right or not.
    for theirs in ({"source": "factory"}, {"source": "tensors"}, None, 3):
        assert experiment_from_mapping({**mapping, "data": theirs}, "here", data).data == data
    digits = DataSettings(source="digits")
    assert experiment_from_mapping(mapping, "here", digits).data == digits


def test_the_seed_documents_example_is_accepted() -> None:
    experiment = load("""\
model: resnet18
data: {source: digits}
quantization:
  enable: True
  your_method:
    bitwidth_options: [8, 16, 32]  # Multiple bitwidths
    validation_function: "random_bitwidths"  # Enable this feature
    training_method: "joint_quantization"  # Or vanilla_single_precision_training

random_bitwidths:
  num_bitwidths: 4  # Number of random configs to test
""")
    assert experiment.method_name == "your_method"
    assert experiment.layer_options == (8, 16, 32)
    assert experiment.random_bitwidths == RandomBitwidths(num_bitwidths=4)


@pytest.mark.parametrize(
    "more",
    [
        "random_bitwidths: {num_bitwidths: 5, seed: 3}",
        "random_bitwidths: {number_of_configs: 5, seed: 3}",
        "  random_bitwidths: {num_bitwidths: 5, seed: 3}",
        "  random_bitwidths: {number_of_configs: 5, seed: 3}",
    ],
)
def test_random_bitwidths_are_found_in_both_places_and_spellings(more: str) -> None:
    experiment = load(SMALL + more)
    assert experiment.random_bitwidths == RandomBitwidths(num_bitwidths=5, seed=3)
    assert experiment.as_mapping()["random_bitwidths"] == {
        **{"num_bitwidths": 5, "sampler": None, "seed": 3},
        **{"range": None, "cost": None, "base": None},
    }
    assert "random_bitwidths" not in experiment.quantization.methods


def test_a_models_name_is_short_for_the_mapping() -> None:
    assert load(SMALL) == load(SMALL.replace("model: resnet8", "model: {name: resnet8}"))


def test_no_is_a_name_and_1e_3_is_a_number() -> None:
    experiment = load("experiment: no\ntraining: {learning_rate: 1e-3, weight_decay: 1}\n" + SMALL)
    assert experiment.experiment == "no"
    assert experiment.training.learning_rate == 0.001
    assert type(experiment.training.weight_decay) is float


@pytest.mark.parametrize("name", get_args(NetworkName))
def test_the_width_left_out_is_the_familys(name: Any) -> None:
    assert ModelSettings(name=name).resolved_width == (16 if name in CIFAR_STYLE else 64)
    assert ModelSettings(name=name, width=8).resolved_width == 8
    assert CIFAR_STYLE == ("resnet8", "resnet20", "resnet32", "resnet56")


def test_lsq_plus_goes_with_1_bit_and_weight_normalization_with_every_quantizer() -> None:
    for quantizer in ("dorefa", "lsqplus"):
        method = {"bitwidth_options": [1, 8], "weight_quantization": quantizer, "sat_weight_normalization": True}
        experiment = experiment_from_mapping({**load(SMALL).as_mapping(), "quantization": {"mine": method}}, "test")
        assert experiment.method is not None
        assert (experiment.method.weight_quantization, experiment.method.bitwidth_options) == (quantizer, (1, 8))
        assert experiment.method.sat_weight_normalization
    assert load(SMALL).method is not None
    assert not load(SMALL).method.sat_weight_normalization


def test_the_option_overrides_the_files_method() -> None:
    assert load(FULL).method_name == "first"
    experiment = load(FULL, quantization_method="second")
    assert (experiment.method_name, experiment.layer_options) == ("second", (2, 3))
    assert experiment.method == experiment.quantization.methods["second"]
    without = FULL.replace("quantization_method: first", "")
    assert load(without, quantization_method="second").method_name == "second"


def test_the_only_method_is_filled_in() -> None:
    assert load(SMALL).quantization_method == "mine"


@pytest.mark.parametrize("methods", ["{enable: false}", "{enable: false, a: {bitwidth_options: [2]}}"])
def test_disabled_quantization_has_no_method(methods: str) -> None:
    experiment = load(f"model: resnet8\ndata: {{source: digits}}\nquantization: {methods}")
    assert (experiment.method_name, experiment.method, experiment.layer_options) == (None, None, (32,))
    assert experiment_from_mapping(experiment.as_mapping(), "here") == experiment


@pytest.mark.parametrize(("line", "expected"), [("[4]", 4), ("[4], bitwidth: 32", 32), ("[2, 4], bitwidth: 2", 2)])
def test_single_precision_has_one_bitwidth(line: str, expected: int) -> None:
    text = SMALL.replace("[8, 2, 4]", f"{line}, training_method: vanilla_single_precision_training")
    experiment = load(text)
    assert experiment.method is not None
    assert experiment.method.bitwidth == expected


@pytest.mark.parametrize("name", ["model_config", "copy", "__class__", "methods", "w4/a4", "8 bits", "größe", "name"])
def test_a_method_can_have_any_printable_name(name: str) -> None:
    experiment = load(SMALL.replace("mine", f'"{name}"'))
    assert experiment.method_name == name
    assert experiment.method == MethodSettings(bitwidth_options=(2, 4, 8))
    assert experiment_from_mapping(experiment.as_mapping(), "here") == experiment


def test_files_are_beside_the_experiment_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    text = SMALL.replace("source: digits", "source: tensors, train: t.npz, test: /elsewhere/t.pt")
    data = load(text, "sub/exp.yaml").data
    assert (data.train, data.validation, data.test) == (tmp_path / "sub/t.npz", None, Path("/elsewhere/t.pt"))


def test_links_are_kept(tmp_path: Path) -> None:
    # git-annex and DVC link to files whose own names have no ending.
    (tmp_path / "t.npz").symlink_to(tmp_path / "0badc0de")
    text = SMALL.replace("source: digits", "source: tensors, validation: t.npz")
    assert load(text).data.validation == tmp_path / "t.npz"


def test_settings_are_frozen_keyword_only_and_checked_on_creation() -> None:
    experiment = load(SMALL)
    with pytest.raises(ValidationError, match="frozen"):
        experiment.training.epochs = 3
    with pytest.raises(TypeError):
        TrainingSettings(3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        TrainingSettings(epochs=0)
    with pytest.raises(ValidationError, match="valid integer"):
        MethodSettings(bitwidth_options=(True,))


# --- what is refused ------------------------------------------------------------------------------------------------

MISTAKES = [
    # (what the file's lines become, the whole message)
    ({"epochs: 5": "epocs: 5"}, "exp.yaml:17:3: training.epocs: unknown key; did you mean 'epochs'?"),
    (
        {"experiment: every key": "colour: red"},
        "exp.yaml:1:1: colour: unknown key (known here: experiment, model, data, training, quantization, "
        "random_bitwidths, quantization_method)",
    ),
    ({"  name: resnet20\n": ""}, "exp.yaml:3:3: model.name: this key is missing"),
    ({"epochs: 5": "epochs: abc"}, "exp.yaml:17:11: training.epochs: expected a whole number, found 'abc'"),
    ({"epochs: 5": "epochs: '5'"}, "exp.yaml:17:11: training.epochs: expected a whole number, found '5'"),
    ({"epochs: 5": "epochs: 5.0"}, "exp.yaml:17:11: training.epochs: expected a whole number, found 5.0"),
    ({"epochs: 5": "epochs: true"}, "exp.yaml:17:11: training.epochs: expected a whole number, found true"),
    ({"epochs: 5": "epochs:"}, "exp.yaml:17:10: training.epochs: expected a whole number, found nothing"),
    ({"epochs: 5": "epochs: [5]"}, "exp.yaml:17:11: training.epochs: expected a whole number, found a list"),
    ({"epochs: 5": "epochs: {a: 5}"}, "exp.yaml:17:11: training.epochs: expected a whole number, found a mapping"),
    ({"epochs: 5": "epochs: 1:30"}, "exp.yaml:17:11: training.epochs: expected a whole number, found '1:30'"),
    ({"epochs: 5": "epochs: 1_000"}, "exp.yaml:17:11: training.epochs: expected a whole number, found '1_000'"),
    ({"epochs: 5": "epochs: 010"}, "exp.yaml:17:11: training.epochs: expected a whole number, found '010'"),
    ({"epochs: 5": "epochs: 0"}, "exp.yaml:17:11: training.epochs: expected at least 1, found 0"),
    (
        {"batch_size: 32": "batch_size: 65537"},
        "exp.yaml:18:15: training.batch_size: expected at most 65536, found 65537",
    ),
    (
        {"batch_size: 100": "batch_size: " + "9" * 5000},
        "exp.yaml:15:15: data.batch_size: a whole number of 5,000 digits is too long",
    ),
    (
        {"seed: 1": "seed: 9223372036854775808"},
        "exp.yaml:22:9: training.seed: expected at most 9223372036854775807, found 9223372036854775808",
    ),
    ({"rate: 1e-3": "rate: fast"}, "exp.yaml:19:18: training.learning_rate: expected a number, found 'fast'"),
    ({"rate: 1e-3": "rate: false"}, "exp.yaml:19:18: training.learning_rate: expected a number, found false"),
    ({"rate: 1e-3": "rate: 0"}, "exp.yaml:19:18: training.learning_rate: expected more than 0, found 0"),
    ({"rate: 1e-3": "rate: .nan"}, "exp.yaml:19:18: training.learning_rate: expected a finite number, found .nan"),
    ({"rate: 1e-3": "rate: -.inf"}, "exp.yaml:19:18: training.learning_rate: expected a finite number, found -.inf"),
    ({"rate: 1e-3": "rate: 1e999"}, "exp.yaml:19:18: training.learning_rate: expected a finite number, found .inf"),
    ({"decay: 0": "decay: -0.5"}, "exp.yaml:20:17: training.weight_decay: expected at least 0, found -0.5"),
    (
        {"weight_quantization: dorefa_scaled": "weight_quantization: dorefascaled"},
        "exp.yaml:29:26: quantization.first.weight_quantization: expected 'dorefa', 'dorefa_scaled', 'lsq' or "
        "'lsqplus', found 'dorefascaled'; did you mean 'dorefa_scaled'?",
    ),
    (
        {"batch_norm: switchable": "batch_norm: 3"},
        "exp.yaml:5:15: model.batch_norm: expected 'shared' or 'switchable', found 3",
    ),
    (
        {"last: true": "last: on"},
        "exp.yaml:6:28: model.quantize_first_and_last: expected true or false, found 'on'; did you mean true?",
    ),
    (
        {"enable: True": "enable: no"},
        "exp.yaml:24:11: quantization.enable: expected true or false, found 'no'; did you mean false?",
    ),
    ({"enable: True": "enable: maybe"}, "exp.yaml:24:11: quantization.enable: expected true or false, found 'maybe'"),
    ({"enable: True": "enabel: True"}, "exp.yaml:24:3: quantization.enabel: unknown key; did you mean 'enable'?"),
    (
        {"enable: True": "third: 8"},
        "exp.yaml:24:3: quantization.third: unknown key "
        "(known here: enable, random_bitwidths; a method is a mapping with bitwidth_options)",
    ),
    (
        {"experiment: every key": "experiment: 3"},
        "exp.yaml:1:13: experiment: expected text, found 3; put it in quotes",
    ),
    ({"experiment: every key": "experiment:"}, "exp.yaml:1:12: experiment: expected text, found nothing"),
    (
        {"experiment: every key": "experiment: a/b"},
        r"exp.yaml:1:13: experiment: expected a name without / and \, and neither . nor .., found 'a/b'",
    ),
    (
        {"experiment: every key": "experiment: .."},
        r"exp.yaml:1:13: experiment: expected a name without / and \, and neither . nor .., found '..'",
    ),
    (
        {"experiment: every key": 'experiment: "a\\nb"'},
        r"exp.yaml:1:13: experiment: expected a name of 1 to 200 bytes, all printable, found 'a\nb'",
    ),
    (
        {"experiment: every key": f"experiment: {'é' * 101}"},
        f"exp.yaml:1:13: experiment: expected a name of 1 to 200 bytes, all printable, found '{'é' * 59}...'",
    ),
    (
        {"experiment: every key": "experiment: ''"},
        "exp.yaml:1:13: experiment: expected a name of 1 to 200 bytes, all printable, found ''",
    ),
    (
        {"first:": '"a\\tb":', "_method: first": "_method: second"},
        r"exp.yaml:26:5: quantization.'a\tb': expected a name of 1 to 200 bytes, all printable, found 'a\tb'",
    ),
    (
        {"[9, 11]": "[9]"},
        "exp.yaml:9:15: model.input_size: expected two whole numbers, height and width, found a list of 1",
    ),
    ({"[9, 11]": "9"}, "exp.yaml:9:15: model.input_size: expected a list, found 9"),
    ({"[9, 11]": "[9, 0]"}, "exp.yaml:9:19: model.input_size[1]: expected at least 1, found 0"),
    ({"classes: 7": "classes: 1"}, "exp.yaml:8:16: model.num_classes: expected at least 2, found 1"),
    (
        {"train: a/train.npz": "train: a/train.csv"},
        "exp.yaml:12:10: data.train: expected the path of a .pt, .npz or .safetensors file, found 'a/train.csv'",
    ),
    (
        {"train: a/train.npz": "train: [a.npz]"},
        "exp.yaml:12:10: data.train: expected the path of a .pt, .npz or .safetensors file, found a list",
    ),
    (
        {"train: a/train.npz": 'train: "a\\0.npz"'},
        r"exp.yaml:12:10: data.train: expected the path of a .pt, .npz or .safetensors file, found 'a\x00.npz'",
    ),
    (
        {"train: a/train.npz": "train: a/train"},
        "exp.yaml:12:10: data.train: expected the path of a .pt, .npz or .safetensors file, found 'a/train'; "
        "for a folder of images say source: image_folder",
    ),
    (
        {"train: a/train.npz": "train: a/train.txt"},
        "exp.yaml:12:10: data.train: expected the path of a .pt, .npz or .safetensors file, found 'a/train.txt'; "
        "for an index of samples say source: sample_index",
    ),
    (
        {"batch_size: 100": "size: 32"},
        "exp.yaml:15:9: data.size: goes with source 'image_folder' only; leave it out",
    ),
    (
        {"batch_size: 100": "mean: [0, 0, 0]"},
        "exp.yaml:15:9: data.mean: goes with source 'image_folder' only; leave it out",
    ),
    (
        {"  train: a/train.npz\n": "", "  validation: /b/validation.pt\n": ""},
        "exp.yaml:11:3: data.validation: this key is missing: the source 'tensors' needs train, validation or both",
    ),
    (
        {"source: tensors": "source: digits", "  train: a/train.npz\n": "", "  validation: /b/validation.pt\n": ""},
        "exp.yaml:12:9: data.test: the source 'digits' takes no file; leave this key out, "
        "or did you mean source: tensors?",
    ),
    (
        {"source: tensors": "source: digit"},
        "exp.yaml:11:11: data.source: expected 'digits', 'tensors', 'image_folder', 'sample_index' or 'factory', "
        "found 'digit'; did you mean 'digits'?",
    ),
    (
        {"[2, 3]": "[2, 4, 4]"},
        "exp.yaml:34:23: quantization.second.bitwidth_options: expected every bitwidth once, found 4 more than once",
    ),
    (
        {"[2, 3]": "[]"},
        "exp.yaml:34:23: quantization.second.bitwidth_options: expected at least one bitwidth, found an empty list",
    ),
    ({"[2, 3]": "4"}, "exp.yaml:34:23: quantization.second.bitwidth_options: expected a list, found 4"),
    ({"[2, 3]": "[2, 33]"}, "exp.yaml:34:27: quantization.second.bitwidth_options[1]: expected at most 32, found 33"),
    (
        {"[2, 3]": "[2, true]"},
        "exp.yaml:34:27: quantization.second.bitwidth_options[1]: expected a whole number, found true",
    ),
    (
        {"[2, 3]": "[1, 2]"},
        "exp.yaml:34:23: quantization.second.bitwidth_options: the option 1 does not go with "
        "weight_quantization 'lsq', which needs at least 2 bits",
    ),
    (
        {"[2, 3]": "[1, 2]", "    weight_quantization: lsq\n": ""},
        "exp.yaml:34:23: quantization.second.bitwidth_options: the option 1 does not go with activation_quantization "
        "'lsq', which needs at least 2 bits",
    ),
    (
        {"    bitwidth_options: [2, 3]\n": ""},
        "exp.yaml:34:5: quantization.second.bitwidth_options: this key is missing",
    ),
    (
        {"    bitwidth: 4\n": ""},
        "exp.yaml:26:5: quantization.first.bitwidth: this key is missing: which of 4, 32 is trained at?",
    ),
    (
        {"    bitwidth: 4\n": "    bitwidth: 8\n"},
        "exp.yaml:32:15: quantization.first.bitwidth: expected one of the bitwidth_options 4, 32 or 32, found 8",
    ),
    (
        {"[2, 3]": "[2, 3]\n    bitwidth: 2"},
        "exp.yaml:35:15: quantization.second.bitwidth: "
        "goes with training_method 'vanilla_single_precision_training' only; leave it out",
    ),
    (
        {"quantization_method: first": "quantization_method: frist"},
        "exp.yaml:43:22: quantization_method: expected a method under quantization, found 'frist' "
        "(methods: 'first', 'second'); did you mean 'first'?",
    ),
    (
        {"quantization_method: first": ""},
        "exp.yaml:1:1: quantization_method: this key is missing: which of the methods 'first', 'second'?",
    ),
    (
        {"enable: True": "random_bitwidths: {}"},
        "exp.yaml:24:3: quantization.random_bitwidths: is given at top level too (random_bitwidths); "
        "keep one of the two",
    ),
    (
        {"  seed: 2": "  number_of_configs: 4"},
        "exp.yaml:40:3: random_bitwidths.number_of_configs: "
        "is another spelling of num_bitwidths, which is given too; keep one of the two",
    ),
    (
        {"num_bitwidths: 4": "number_of_configs: 1000001"},
        "exp.yaml:38:22: random_bitwidths.number_of_configs: expected at most 1000000, found 1000001",
    ),
    (
        {"  num_bitwidths: 4": "  number_of_config: 4"},
        "exp.yaml:38:3: random_bitwidths.number_of_config: unknown key; did you mean 'number_of_configs'?",
    ),
    (
        {"sampler: stratified": "sampler: unifrom"},
        "exp.yaml:39:12: random_bitwidths.sampler: expected 'iid', 'uniform', 'stratified' or 'one-layer', "
        "found 'unifrom'; did you mean 'uniform'?",
    ),
    (
        {"sampler: stratified": "sampler: iid"},
        "exp.yaml:42:9: random_bitwidths.cost: goes with sampler 'stratified' only, not with 'iid'; leave it out",
    ),
    (
        {"  cost: bit_ops": "  cost: weight_bytes"},
        "exp.yaml:42:9: random_bitwidths.cost: expected the cost of the range 'bit_ops=:1e6', found 'weight_bytes'; "
        "leave it out",
    ),
    (
        {"  cost: bit_ops": "  base: 2"},
        "exp.yaml:42:9: random_bitwidths.base: goes with sampler 'one-layer' only; leave it out",
    ),
    (
        {"range: bit_ops=:1e6": "range: 3:5"},
        "exp.yaml:41:10: random_bitwidths.range: expected a cost and its lowest and highest value, such as "
        "avg_bitwidth=3:5, found '3:5'",
    ),
    (
        {"epochs: 5": "epochs: 5\n  epochs: 6"},
        "exp.yaml:18:3: training.epochs: this key is given twice (first in line 17); keep one",
    ),
    ({"epochs: 5": "\tepochs: 5"}, "exp.yaml:17:3: not valid YAML: a tab cannot stand here; indent with spaces"),
    (
        {"epochs: 5": "epochs: !!python/name:os.system 5"},
        "exp.yaml:17:11: training.epochs: the tag !!python/name:os.system is not allowed here: "
        "an experiment file holds plain values only",
    ),
    (
        {"epochs: 5": "8: 5"},
        "exp.yaml:17:3: training: expected a name as the key, found 8; put it in quotes ('8') if it is meant as a name",
    ),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_mistake_has_a_line_a_path_and_a_sentence(changes: dict[str, str], message: str) -> None:
    text = FULL
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after, 1)
    assert refusal(text) == [message]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["exp.yaml:1:1: expected the keys model, data and quantization, found nothing"]),
        ("- a", ["exp.yaml:1:1: expected the keys model, data and quantization, found a list"]),
        ("just text", ["exp.yaml:1:1: expected the keys model, data and quantization, found 'just text'"]),
        (
            "{}",
            [
                "exp.yaml:1:1: model: this key is missing",
                "exp.yaml:1:1: data: this key is missing",
                "exp.yaml:1:1: quantization: this key is missing",
            ],
        ),
        (
            "model: resnet9\ndata: digits\nquantization: {}\n",
            [
                "exp.yaml:1:8: model: expected 'resnet8', 'resnet20', 'resnet32', 'resnet56', 'resnet18', "
                "'resnet34', 'resnet50', 'resnet101' or 'resnet152', found 'resnet9'; did you mean 'resnet8'?",
                "exp.yaml:2:7: data: expected a mapping of keys, found 'digits'",
                "exp.yaml:3:15: quantization: a method is missing: "
                "a name of your own with bitwidth_options below it (or enable: false)",
            ],
        ),
        (
            "model: 8\ndata: []\nquantization: true\ntraining:\nrandom_bitwidths: 4",
            [
                "exp.yaml:1:8: model: expected a mapping of keys, found 8",
                "exp.yaml:2:7: data: expected a mapping of keys, found a list",
                "exp.yaml:3:15: quantization: expected a mapping of keys, found true",
                "exp.yaml:4:10: training: expected a mapping of keys, found nothing",
                "exp.yaml:5:19: random_bitwidths: expected a mapping of keys, found 4",
            ],
        ),
        (
            SMALL + "  random_bitwidths:\n    number_of_configs: 0\n    seeed: 1",
            [
                "exp.yaml:6:24: quantization.random_bitwidths.number_of_configs: expected at least 1, found 0",
                "exp.yaml:7:5: quantization.random_bitwidths.seeed: unknown key; did you mean 'seed'?",
            ],
        ),
        (
            "model: resnet8\ndata: {source: digits}\nquantization: {enable: false}\nquantization_method: mine",
            ["exp.yaml:4:22: quantization_method: expected a method under quantization, found 'mine' (there is none)"],
        ),
    ],
)
def test_files_that_are_wrong_as_a_whole(text: str, expected: list[str]) -> None:
    assert refusal(text) == expected


NEEDS = "this key is missing: the source 'image_folder' needs"
IMAGE_MISTAKES = [
    (
        {"  size: 224\n": "", "  mean: [0.485, 0.456, 0.406]\n": "", "  std: [0.229, 0.224, 1]\n": ""},
        [
            f"exp.yaml:3:3: data.size: {NEEDS} the height and width of the network's inputs in pixels; "
            "torchvision's networks take 224 (and resize: 256)",
            f"exp.yaml:3:3: data.mean: {NEEDS} what the network was trained with; "
            "ImageNet's is [0.485, 0.456, 0.406], none is [0, 0, 0]",
            f"exp.yaml:3:3: data.std: {NEEDS} what the network was trained with; "
            "ImageNet's is [0.229, 0.224, 0.225], none is [1, 1, 1]",
        ],
    ),
    (
        {"resize: 256": "resize: 223"},
        ["exp.yaml:7:11: data.resize: expected at least data.size, which is 224, found 223"],
    ),
    ({"resize: 256": "rezise: 256"}, ["exp.yaml:7:3: data.rezise: unknown key; did you mean 'resize'?"]),
    ({"size: 224": "size: [224, 224]"}, ["exp.yaml:6:9: data.size: expected a whole number, found a list"]),
    ({"size: 224": "size: 0"}, ["exp.yaml:6:9: data.size: expected at least 1, found 0"]),
    ({"size: 224": "size: 20000"}, ["exp.yaml:6:9: data.size: expected at most 16384, found 20000"]),
    (
        {"[0.485, 0.456, 0.406]": "[0.5]"},
        ["exp.yaml:8:9: data.mean: expected three numbers, for red, green and blue, found a list of 1"],
    ),
    ({"[0.485, 0.456, 0.406]": "0.5"}, ["exp.yaml:8:9: data.mean: expected a list, found 0.5"]),
    (
        {"[0.485, 0.456, 0.406]": "[123.675, x, .nan]"},
        [
            "exp.yaml:8:10: data.mean[0]: expected at most 1, found 123.675",
            "exp.yaml:8:19: data.mean[1]: expected a number, found 'x'",
            "exp.yaml:8:22: data.mean[2]: expected a finite number, found .nan",
        ],
    ),
    ({"[0.229, 0.224, 1]": "[0.229, 0, 1]"}, ["exp.yaml:9:16: data.std[1]: expected more than 0, found 0"]),
    ({"train: images/train": "train: 3"}, ["exp.yaml:4:10: data.train: expected the path of a folder, found 3"]),
    ({"train: images/train": "train: ''"}, ["exp.yaml:4:10: data.train: expected the path of a folder, found ''"]),
    (
        {"  train: images/train\n": "", "  validation: images/val\n": ""},
        [
            "exp.yaml:3:3: data.validation: this key is missing: the source 'image_folder' needs train, validation "
            "or both"
        ],
    ),
    (
        {"source: image_folder": "source: imagefolder"},
        [
            "exp.yaml:3:11: data.source: expected 'digits', 'tensors', 'image_folder', 'sample_index' or 'factory', "
            "found 'imagefolder'; did you mean 'image_folder'?"
        ],
    ),
]


@pytest.mark.parametrize(("changes", "expected"), IMAGE_MISTAKES)
def test_mistakes_in_the_settings_of_image_folders(changes: dict[str, str], expected: list[str]) -> None:
    text = IMAGES
    for before, after in changes.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    assert refusal(text) == expected


SAMPLE_MISTAKES = [
    (
        {"  normalization:\n    method: minmax\n    minmax_range: [-1, 1]\n": ""},
        [
            "exp.yaml:3:3: data.normalization: this key is missing: the source 'sample_index' needs the method that "
            "the network was trained with (standard, minmax, maxabs or none)"
        ],
    ),
    (
        {"    method: minmax\n": ""},
        ["exp.yaml:13:5: data.normalization.method: this key is missing"],
    ),
    (
        {"method: minmax": "method: min_max"},
        [
            "exp.yaml:13:13: data.normalization.method: expected 'standard', 'minmax', 'maxabs' or 'none', "
            "found 'min_max'; did you mean 'minmax'?"
        ],
    ),
    (
        {"minmax_range": "minmax_rang"},
        ["exp.yaml:14:5: data.normalization.minmax_rang: unknown key; did you mean 'minmax_range'?"],
    ),
    (
        {"[-1, 1]": "[1, 1]"},
        [
            "exp.yaml:14:19: data.normalization.minmax_range: expected a smaller and a larger number, found [1, 1]",
        ],
    ),
    (
        {"[-1, 1]": "[1, .inf]"},
        ["exp.yaml:14:23: data.normalization.minmax_range[1]: expected a finite number, found .inf"],
    ),
    (
        {"  train: index/train.txt\n": ""},
        [
            "exp.yaml:12:5: data.normalization: the method 'minmax' is fitted on the training samples; "
            "name their index with data.train"
        ],
    ),
    (
        {"  train: index/train.txt\n": "", "  validation: index/val.txt\n": "", "minmax\n": "none\n"},
        [
            "exp.yaml:3:3: data.validation: this key is missing: the source 'sample_index' needs train, validation "
            "or both"
        ],
    ),
    (
        {"train: index/train.txt": "train: 3"},
        [
            "exp.yaml:4:10: data.train: expected the path of an index file, which lists a .pt file a line, found 3",
        ],
    ),
    ({"root: samples": "root: 3"}, ["exp.yaml:6:9: data.root: expected the path of a folder, found 3"]),
    ({"root: samples": "root: ''"}, ["exp.yaml:6:9: data.root: expected the path of a folder, found ''"]),
    (
        {"[front, back]": "[front, front]"},
        ["exp.yaml:7:14: data.locations: expected names, each once, found 'front', 'front'"],
    ),
    ({"[front, back]": "[]"}, ["exp.yaml:7:14: data.locations: expected names, each once, found an empty list"]),
    ({"[front, back]": "front"}, ["exp.yaml:7:14: data.locations: expected a list, found 'front'"]),
    (
        {"[audio]": "[audio, '']"},
        ["exp.yaml:8:23: data.modalities[1]: expected a name of 1 to 200 bytes, all printable, found ''"],
    ),
    ({"terrain": "3"}, ["exp.yaml:9:10: data.label: expected text, found 3; put it in quotes"]),
    ({"num_segments: 10": "num_segments: 0"}, ["exp.yaml:10:17: data.num_segments: expected at least 1, found 0"]),
    ({"fft: false": "fft: no"}, ["exp.yaml:11:8: data.fft: expected true or false, found 'no'; did you mean false?"]),
    ({"root: samples": "size: 3"}, ["exp.yaml:6:9: data.size: goes with source 'image_folder' only; leave it out"]),
]


@pytest.mark.parametrize(("changes", "expected"), SAMPLE_MISTAKES)
def test_mistakes_in_the_settings_of_sample_indices(changes: dict[str, str], expected: list[str]) -> None:
    text = SAMPLES
    for before, after in changes.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    assert refusal(text) == expected


@pytest.mark.parametrize("key", SAMPLE_KEYS)
def test_keys_of_sample_indices_go_with_nothing_else(key: str) -> None:
    values = yaml.safe_load(SAMPLES)["data"]
    config = {"model": "resnet8", "quantization": {"enable": False}}
    data = {"source": "tensors", "train": "a.pt", key: values[key]}
    assert mapping_refusal({**config, "data": data}) == [
        f"epoch_001.pt: data.{key}: goes with source 'sample_index' only; leave it out"
    ]


FACTORY_MISTAKES = [
    (
        {"  factory: package.module:make\n": ""},
        [
            "exp.yaml:3:3: data.factory: this key is missing: the source 'factory' needs a function of your own as "
            "package.module:function"
        ],
    ),
    (
        {"package.module:make": "package.module.make"},
        [
            "exp.yaml:4:12: data.factory: expected a function of your own as package.module:function, "
            "found 'package.module.make'"
        ],
    ),
    (
        {"source: factory": "source: digits"},
        [
            "exp.yaml:4:12: data.factory: goes with source 'factory' only; leave it out",
            "exp.yaml:5:14: data.arguments: goes with source 'factory' only; leave it out",
        ],
    ),
    (
        {"{path: a/b, sizes: [1, 2.5, null], nested: {deep: true}}": "3"},
        ["exp.yaml:5:14: data.arguments: expected a mapping of keys, found 3"],
    ),
    (
        {"2.5": ".nan"},
        ["exp.yaml:5:14: data.arguments: expected text, finite numbers, true, false, lists and mappings, found .nan"],
    ),
    (
        {"  factory: package": "  train: a.pt\n  factory: package"},
        [
            "exp.yaml:4:10: data.train: the source 'factory' takes no file; leave this key out, "
            "or did you mean source: tensors?"
        ],
    ),
]


@pytest.mark.parametrize(("changes", "expected"), FACTORY_MISTAKES)
def test_mistakes_in_the_settings_of_a_factory(changes: dict[str, str], expected: list[str]) -> None:
    text = FACTORY
    for before, after in changes.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    assert refusal(text) == expected


def test_every_mistake_is_reported_at_once_in_the_order_of_the_file() -> None:
    assert refusal("""\
model: {nam: resnet8, width: 0}
data:
  source: digits
  train: a.npz
  batch_size: true
  batch_size: 3
training:
  epocs: 3
  learning_rate: !mine 3
  weight_decay: .inf
quantization:
  enabel: true
  a:
    bitwidth_options: [0, x]
    bitwidth: 40
  b:
    bitwidth_options: [4, 4]
    weight_quantization: lsqq
  c:
    bitwidth_options: [2, 4]
    training_method: vanilla_single_precision_training
random_bitwidths: {seed: -1}
<<: {}
""") == [
        "exp.yaml:1:1: quantization_method: this key is missing: which of the methods 'a', 'b', 'c'?",
        "exp.yaml:1:8: model.name: this key is missing",
        "exp.yaml:1:9: model.nam: unknown key; did you mean 'name'?",
        "exp.yaml:1:30: model.width: expected at least 1, found 0",
        "exp.yaml:4:10: data.train: the source 'digits' takes no file; leave this key out, "
        "or did you mean source: tensors?",
        "exp.yaml:5:15: data.batch_size: expected a whole number, found true",
        "exp.yaml:6:3: data.batch_size: this key is given twice (first in line 5); keep one",
        "exp.yaml:8:3: training.epocs: unknown key; did you mean 'epochs'?",
        "exp.yaml:9:18: training.learning_rate: the tag !mine is not allowed here: "
        "an experiment file holds plain values only",
        "exp.yaml:10:17: training.weight_decay: expected a finite number, found .inf",
        "exp.yaml:12:3: quantization.enabel: unknown key; did you mean 'enable'?",
        "exp.yaml:14:24: quantization.a.bitwidth_options[0]: expected at least 1, found 0",
        "exp.yaml:14:27: quantization.a.bitwidth_options[1]: expected a whole number, found 'x'",
        "exp.yaml:15:15: quantization.a.bitwidth: expected at most 32, found 40",
        "exp.yaml:17:23: quantization.b.bitwidth_options: expected every bitwidth once, found 4 more than once",
        "exp.yaml:18:26: quantization.b.weight_quantization: expected 'dorefa', 'dorefa_scaled', 'lsq' or 'lsqplus', "
        "found 'lsqq'; did you mean 'lsq'?",
        "exp.yaml:20:5: quantization.c.bitwidth: this key is missing: which of 2, 4 is trained at?",
        "exp.yaml:22:26: random_bitwidths.seed: expected at least 0, found -1",
        "exp.yaml:23:1: merge keys (<<) are not supported; write the settings out",
    ]


@pytest.mark.parametrize(
    ("enable", "expected"),
    [
        ("true", ["quantization_method: this key is missing: which of the methods 'a', 'b'?"]),
        ("false", []),
        ("perhaps", []),  # not known to be wanted
    ],
)
def test_a_mistake_in_a_method_does_not_hide_the_choice_of_method(enable: str, expected: list[str]) -> None:
    methods = f"{{enable: {enable}, a: {{bitwidth_options: []}}, b: {{bitwidth_options: []}}}}"
    lines = refusal(f"model: resnet8\ndata: {{source: digits}}\nquantization: {methods}")
    assert [line.removeprefix("exp.yaml:1:1: ") for line in lines if "quantization_method" in line] == expected


def test_enable_is_no_method_even_as_a_mapping() -> None:
    assert refusal(SMALL.replace("mine:", "enable:") + "quantization_method: enable") == [
        "exp.yaml:4:11: quantization.enable: expected true or false, found a mapping",
        "exp.yaml:5:22: quantization_method: expected a method under quantization, found 'enable' (there is none)",
    ]


def test_a_wrong_option_is_blamed_on_the_option() -> None:
    known = "(methods: 'first', 'second'); did you mean 'second'?"
    message = f"exp.yaml:1:1: --quantization-method: expected a method under quantization, found 'secnd' {known}"
    assert refusal(FULL, quantization_method="secnd") == [message]
    assert message in refusal(FULL.replace("[2, 3]", "[]"), quantization_method="secnd")


def test_very_many_mistakes_are_counted() -> None:
    lines = refusal(SMALL.replace("[8, 2, 4]", "[" + "x, " * 250 + "]"))
    assert len(lines) == 101
    assert lines[0] == "exp.yaml:4:29: quantization.mine.bitwidth_options[0]: expected a whole number, found 'x'"
    assert lines[-1] == "... and 150 more mistakes"


def test_very_many_methods_are_not_all_listed() -> None:
    methods = ", ".join(f"m{i}: {{bitwidth_options: [2]}}" for i in range(30))
    [line] = refusal(f"model: resnet8\ndata: {{source: digits}}\nquantization: {{{methods}}}")
    assert line.endswith("which of the methods " + ", ".join(f"'m{i}'" for i in range(20)) + ", ...?")


def test_the_files_name_must_be_a_name_too() -> None:
    with pytest.raises(ExperimentError) as caught:
        load(SMALL, "a\\b.yaml")
    assert str(caught.value) == (
        "a\\b.yaml:1:1: experiment: expected a name without / and \\, and neither . nor .., found 'a\\\\b'"
    )


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.yaml").write_bytes("experiment: größe".encode("latin-1"))
    (tmp_path / "large.yaml").write_bytes(b"#" * 2**21)
    for name, message in {
        "none.yaml": "none.yaml: no such file; expected an experiment file (YAML)",
        "folder": "folder: is a folder; expected an experiment file (YAML)",
        "latin.yaml": "latin.yaml:1:15: not UTF-8 text (byte 0xf6); save the file as UTF-8",
        "large.yaml": "large.yaml:1:1: larger than 1,048,576 bytes, the most that is read",
        "latin.yaml/x": "latin.yaml/x: cannot be read (Not a directory)",
        "a\0b.yaml": r"'a\x00b.yaml': no path can hold a NUL character",
    }.items():
        with pytest.raises(ExperimentError) as caught:
            load_experiment(Path(name))
        assert str(caught.value) == message


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(ExperimentError, match=r"^/dev/zero:1:1: larger than 1,048,576 bytes, the most that is read$"):
        load_experiment(Path("/dev/zero"))


def test_a_folder_that_no_checkpoint_can_name_is_refused(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/\xff"))
    folder.mkdir()
    (folder / "exp.yaml").write_text(SMALL.replace("source: digits", "source: tensors, train: t.npz"))
    with pytest.raises(ExperimentError, match="its folder's name is not UTF-8, so no checkpoint could say where"):
        load_experiment(folder / "exp.yaml")
    (folder / "exp.yaml").write_text(SMALL)
    assert load_experiment(folder / "exp.yaml").data == DataSettings(source="digits")


@pytest.mark.parametrize("module", [experiment, mistakes, plain_values, yaml_reader])
def test_the_examples_in_docstrings_run(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_an_unforeseen_kind_of_mistake_keeps_its_path_and_words() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(dict[str, date]).validate_python({"day": "x" * 100})
    [mistake] = mistakes.mistakes_in(caught.value, lambda _: [])
    assert mistake.path == ("day",)
    assert mistake.what.endswith(f", found '{'x' * 59}...'")


# --- from a checkpoint ----------------------------------------------------------------------------------------------


def test_a_mapping_gives_what_its_file_gives() -> None:
    config: Any = yaml.safe_load(FULL.replace("1e-3", "0.001").replace("a/train", "/a/train").replace("..", "/c"))
    Path("exp.yaml").write_text(yaml.safe_dump(config))
    assert experiment_from_mapping(config, "here") == load_experiment(Path("exp.yaml"))


def test_a_mapping_may_use_tuples_and_any_kind_of_mapping() -> None:
    config = load(SMALL).as_mapping()
    config["quantization"] = MappingProxyType({"mine": {"bitwidth_options": (2, 4, 8)}})
    assert experiment_from_mapping(MappingProxyType(config), "here") == load(SMALL)


class Hostile:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("compared")

    def __repr__(self) -> str:
        raise RuntimeError("shown")

    __hash__ = None  # type: ignore[assignment]


class Number(int):
    def __repr__(self) -> str:
        raise RuntimeError("shown")


HOSTILE = [
    (("training", "epochs"), "3", "training.epochs: expected a whole number, found '3'"),
    (("training", "epocs"), 3, "training.epocs: unknown key; did you mean 'epochs'?"),
    (("training", "epochs"), 10**200, "training.epochs: a whole number of more than 100 digits is too long"),
    (
        ("training", "learning_rate"),
        -(10**5000),
        "training.learning_rate: a whole number of more than 100 digits is too long",
    ),
    (("training", "learning_rate"), math.nan, "training.learning_rate: expected a finite number, found .nan"),
    (
        ("training", "epochs"),
        Hostile(),
        "training.epochs: expected a plain value, found an object of type 'Hostile'",
    ),
    (
        ("training", "epochs"),
        Number(3),
        "training.epochs: expected a plain value, found an object of type 'Number'",
    ),
    (("training", 3), 3, "training: expected a name as the key, found 3"),
    (("training", "\ud800"), 3, r"training: expected a name as the key, found '\ud800'"),
    (("experiment",), "\ud800", r"experiment: expected text, found half of a surrogate pair in '\ud800'"),
    (("experiment",), b"a", "experiment: expected a plain value, found an object of type 'bytes'"),
    (("model",), Hostile(), "model: expected a plain value, found an object of type 'Hostile'"),
    (("model", "input_size"), {8, 9}, "model.input_size: expected a plain value, found an object of type 'set'"),
    (
        ("data", "train"),
        PurePosixPath("t.npz"),
        "data.train: expected a plain value, found an object of type 'PurePosixPath'",
    ),
    (
        ("quantization", "mine", "bitwidth_options"),
        (4, 4),
        "quantization.mine.bitwidth_options: expected every bitwidth once, found 4 more than once",
    ),
    (
        ("quantization", "mine", "bitwidth_options"),
        (2, Hostile()),
        "quantization.mine.bitwidth_options[1]: expected a plain value, found an object of type 'Hostile'",
    ),
    (
        ("quantization_method",),
        "other",
        "quantization_method: expected a method under quantization, found 'other' (methods: 'mine')",
    ),
]


# The ids keep pytest from showing values that cannot be shown.
@pytest.mark.parametrize(("path", "value", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_mistake_in_a_mapping_has_a_path_and_a_sentence(path: tuple[Any, ...], value: object, message: str) -> None:
    config = load(SMALL).as_mapping()
    inner: Any = config
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert mapping_refusal(config) == [f"epoch_001.pt: {message}"]


def test_no_mapping_at_all() -> None:
    for config, what in ((None, "nothing"), ([], "a list"), ("x", "'x'")):
        expected = f"epoch_001.pt: expected the keys model, data and quantization, found {what}"
        assert mapping_refusal(config) == [expected]
    assert mapping_refusal(Hostile()) == ["epoch_001.pt: expected a plain value, found an object of type 'Hostile'"]


def test_a_mapping_that_contains_itself() -> None:
    network: dict[str, object] = {}
    network["name"] = network
    assert mapping_refusal({**load(SMALL).as_mapping(), "model": network}) == [
        f"epoch_001.pt: model{'.name' * 49}: nested more than 50 levels deep",
        "epoch_001.pt: model.name: expected 'resnet8', 'resnet20', 'resnet32', 'resnet56', 'resnet18', 'resnet34', "
        "'resnet50', 'resnet101' or 'resnet152', found a mapping",
    ]


def test_a_mapping_that_multiplies() -> None:
    bomb: list[object] = ["x"]
    for _ in range(30):
        bomb = [bomb] * 10
    first, second = mapping_refusal({**load(SMALL).as_mapping(), "experiment": bomb})
    assert first.startswith("epoch_001.pt: experiment[0][0]")
    assert first.endswith("]: more than 100,000 values, shared ones counted as often as used")
    assert second == "epoch_001.pt: experiment: expected text, found a list"


# --- properties -----------------------------------------------------------------------------------------------------

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda name: name.isprintable() and not re.search(r"[/\\]|^\.\.?$", name)
)
seeds = st.integers(0, 2**63 - 1)
bits = st.integers(1, 32)


def keys(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of the keys, each with any of its values."""
    return st.fixed_dictionaries({}, optional=values)


@st.composite
def methods(draw: st.DrawFn) -> dict[str, Any]:
    method = draw(
        keys(
            weight_quantization=st.sampled_from(["dorefa", "dorefa_scaled", "lsq", "lsqplus"]),
            activation_quantization=st.sampled_from(["dorefa", "pact", "lsq", "lsqplus"]),
            validation_function=st.sampled_from(["random_bitwidths", "simple_validation"]),
            sat_weight_normalization=st.booleans(),
            switchable_clipping=st.booleans(),
        )
    )
    options = draw(st.lists(st.integers(2 if "lsq" in method.values() else 1, 32), min_size=1, unique=True))
    method["bitwidth_options"] = options
    if draw(st.booleans()):
        method["training_method"] = "vanilla_single_precision_training"
        method["bitwidth"] = draw(st.sampled_from([*options, 32]))
    return method


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Every way to write an experiment that is right."""
    network = st.sampled_from(get_args(NetworkName))
    model = keys(
        width=st.none() | st.integers(1, 1024),
        batch_norm=st.sampled_from(["shared", "switchable"]),
        quantize_first_and_last=st.booleans(),
        in_channels=st.none() | st.integers(1, 4096),
        num_classes=st.integers(2, 100_000),
        input_size=st.none() | st.lists(st.integers(1, 16384), min_size=2, max_size=2),
    )
    file = names.map(lambda name: f"folder/{name}.npz")
    files: list[dict[str, st.SearchStrategy[Any]]] = [
        {"source": st.just("digits")},
        {"source": st.just("tensors"), "train": file, "test": st.none() | file},
        {"source": st.just("tensors"), "validation": file, "train": st.none() | file},
    ]
    share = st.floats(0, 1, exclude_min=True)
    files.append(
        {
            "source": st.just("image_folder"),
            "train": names.map(lambda name: f"folder/{name}"),
            "size": st.integers(1, 100),
            "resize": st.none() | st.integers(100, 16384),
            "mean": st.lists(share, min_size=3, max_size=3),
            "std": st.lists(share, min_size=3, max_size=3),
        }
    )
    ends = st.tuples(st.floats(-1e6, 0), st.floats(0, 1e6, exclude_min=True)).map(list)
    files.append(
        {
            "source": st.just("sample_index"),
            "train": names.map(lambda name: f"folder/{name}"),
            "root": st.none() | names,
            "locations": st.none() | st.lists(names, min_size=1, unique=True),
            "modalities": st.none() | st.lists(names, min_size=1, unique=True),
            "label": st.none() | names,
            "num_segments": st.none() | st.integers(1, 1000),
            "fft": st.none() | st.booleans(),
            "normalization": st.builds(
                lambda method, more: {"method": method, **more},
                st.sampled_from(["standard", "minmax", "maxabs", "none"]),
                keys(minmax_range=ends),
            ),
        }
    )
    data = st.one_of([st.fixed_dictionaries(each, optional={"batch_size": st.integers(1, 65536)}) for each in files])
    training = keys(
        epochs=st.integers(1, 1_000_000),
        batch_size=st.integers(1, 65536),
        learning_rate=st.floats(0, exclude_min=True, allow_infinity=False) | st.integers(1, 10),
        weight_decay=st.floats(0, allow_infinity=False) | st.integers(0, 10),
        configurations_per_batch=st.integers(1, 1024),
        seed=seeds,
    )
    count = draw(st.sampled_from(["num_bitwidths", "number_of_configs"]))
    samplers = st.sampled_from(["iid", "uniform", "stratified", "one-layer"])
    ranges = st.sampled_from([None, "avg_bitwidth=3:5", "weight_bytes=:1.5e6"])
    samples = keys(**{count: st.integers(1, 10**6), "sampler": samplers, "seed": seeds, "range": ranges})
    taken = ("enable", "random_bitwidths")
    quantization: dict[str, Any] = draw(
        st.dictionaries(names.filter(lambda name: name not in taken), methods(), max_size=3)
    )
    document: dict[str, Any] = draw(keys(experiment=names, training=training))
    document["model"] = draw(network | st.builds(lambda name, more: {"name": name, **more}, network, model))
    document["data"] = draw(data)
    document["quantization"] = quantization
    if len(quantization) > 1 or (len(quantization) == 1 and draw(st.booleans())):
        document["quantization_method"] = draw(st.sampled_from(list(quantization)))
    enable: bool = draw(st.booleans()) if quantization else False
    if not enable or draw(st.booleans()):  # left out, it is true
        document["quantization"] = {"enable": enable, **quantization}
    if draw(st.booleans()):
        place: dict[str, Any] = draw(st.sampled_from([document, document["quantization"]]))
        place["random_bitwidths"] = draw(samples)
    return document


@UNTIMED
@given(documents())
def test_right_documents_are_accepted_and_come_back_equal(document: dict[str, Any]) -> None:
    experiment = experiment_from_mapping(document, "here")
    mapping = experiment.as_mapping()
    assert json.loads(json.dumps(mapping)) == mapping
    assert experiment_from_mapping(mapping, "here") == experiment
    assert experiment_from_mapping(mapping, "here").as_mapping() == mapping


@UNTIMED
@given(documents())
def test_right_documents_come_back_from_a_file(document: dict[str, Any]) -> None:
    # JSON is YAML; PyYAML's own output is not always ours (it writes the name '1e3' without quotes).
    text = json.dumps(document, ensure_ascii=False)
    loaded, stored = load(text), experiment_from_mapping({"experiment": "exp", **document}, "here")
    assert loaded.model_copy(update={"data": stored.data}) == stored
    for split in ("train", "validation", "test", "root"):
        file = getattr(stored.data, split)
        assert getattr(loaded.data, split) == (file and Path.cwd() / file)


@UNTIMED
@given(documents(), documents())
def test_two_experiments_are_equal_only_if_their_mappings_are(one: dict[str, Any], two: dict[str, Any]) -> None:
    first, second = experiment_from_mapping(one, "here"), experiment_from_mapping(two, "here")
    assert (first == second) == (first.as_mapping() == second.as_mapping())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "source", "enable", "m", "seed", "num_bitwidths"])
            | st.text(max_size=5)
            | st.integers(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def check_sentences(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n"))
    # pydantic's own words.
    assert not re.search("Input should|a valid |validation error|Value error|Field required", text)


def sentences_or_none(make: Callable[[], Experiment]) -> str | None:
    """Return what is wrong with an experiment, None where nothing is; any other exception is a failure."""
    try:
        assert isinstance(make(), Experiment)
    except ExperimentError as error:
        return str(error)
    return None


@UNTIMED
@given(st.dictionaries(st.sampled_from(list(Experiment.model_fields)) | st.text(max_size=5), anything))
def test_any_mapping_gives_an_experiment_or_sentences(config: Mapping[str, object]) -> None:
    check_sentences(sentences_or_none(lambda: experiment_from_mapping(config, "here")) or "")


@UNTIMED
@given(documents(), st.data())
def test_a_right_document_with_anything_somewhere_gives_an_experiment_or_sentences(
    document: dict[str, Any], data: st.DataObject
) -> None:
    place: Any = document
    while True:
        key = data.draw(st.sampled_from(list(place)) if place else st.just("x"))
        if not isinstance(place.get(key), dict) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(anything)
    text = sentences_or_none(lambda: experiment_from_mapping(document, "here"))
    if text is not None:
        assert all(line.startswith("here: ") for line in text.split("\n"))
        check_sentences(text)


@UNTIMED
@given(st.text(max_size=100) | st.text(alphabet=":-[]{}#&*!|>'\"%@ \n\tab1.<~?,", max_size=60))
def test_any_text_gives_sentences(text: str) -> None:
    # Three required keys do not appear by chance.
    lines = refusal(text.encode(errors="replace").decode())
    assert all(line.startswith("exp.yaml:") for line in lines)
    check_sentences("\n".join(lines))


@UNTIMED
@given(
    st.integers(0, len(FULL)), st.text(alphabet=":-[]{}#&*!|>'\"%@ \n\tab1.<~?,\0\x85é", max_size=3), st.integers(0, 3)
)
def test_a_slip_of_the_fingers_gives_an_experiment_or_sentences(place: int, typed: str, deleted: int) -> None:
    text = sentences_or_none(lambda: load(FULL[:place] + typed + FULL[place + deleted :]))
    if text is not None:
        assert all(re.match(r"exp\.yaml:\d+:\d+: ", line) for line in text.split("\n"))
        check_sentences(text)


# --- a file that leaves the network to the checkpoint ---------------------------------------------------------------


def evaluation_file(text: str) -> Experiment | WithoutNetwork:
    Path("exp.yaml").write_text(text, encoding="utf-8")
    return load_evaluation_file(Path("exp.yaml"))


def test_a_file_without_a_network_says_the_rest() -> None:
    settings = evaluation_file("data: {source: tensors, validation: v.npz}\nrandom_bitwidths: {number_of_configs: 3}")
    assert settings == WithoutNetwork(
        experiment="exp",
        data=DataSettings(source="tensors", validation=Path("v.npz").absolute()),
        random_bitwidths=RandomBitwidths(num_bitwidths=3),
    )
    other = load(SMALL).model_copy(update={"experiment": "other"})
    both = settings.with_network_of(other)
    assert (both.experiment, both.data, both.random_bitwidths) == ("exp", settings.data, settings.random_bitwidths)
    assert (both.model, both.quantization) == (other.model, other.quantization)


@pytest.mark.parametrize("text", [SMALL, FULL])
def test_a_file_with_a_network_says_what_it_always_did(text: str) -> None:
    assert evaluation_file(text) == load(text)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("experiment: mine", ["exp.yaml:1:1: data: this key is missing"]),
        (
            "data: {source: digits, trian: 1}\nmodle: resnet8",
            [
                "exp.yaml:1:24: data.trian: unknown key; did you mean 'train'?",
                "exp.yaml:2:1: modle: unknown key; did you mean 'model'?",
            ],
        ),
        (
            "data: {source: digits}\ntraining: {epochs: 1}",
            ["exp.yaml:1:1: model: this key is missing", "exp.yaml:1:1: quantization: this key is missing"],
        ),
        (
            "model: resnet20q\ndata: {source: digits}\nquantization: {m: {bitwidth_options: [2]}}",
            [
                "exp.yaml:1:8: model: expected 'resnet8', 'resnet20', 'resnet32', 'resnet56', 'resnet18', 'resnet34', "
                "'resnet50', 'resnet101' or 'resnet152', found 'resnet20q'; did you mean 'resnet20'?"
            ],
        ),
    ],
)
def test_what_is_wrong_with_such_a_file_is_told_with_its_place(text: str, sentences: list[str]) -> None:
    with pytest.raises(ExperimentError) as caught:
        evaluation_file(text)
    assert str(caught.value).split("\n") == sentences


# --- a network of the user's own ------------------------------------------------------------------------------------

MINE = """\
model:
  factory: mine.nets:make
  arguments: {width: 8, shape: [1, 2], deep: {a: null, b: 1.5}}
  bitwidth_attribute: [wbit, abit]
  set_bitwidth: mine.nets:set_bits
  bitwidth_options: [8, 2]
data: {source: digits}
"""


def test_every_key_of_a_factory_arrives_where_it_belongs(tmp_path: Path) -> None:
    found = load(MINE)
    model = found.model
    assert isinstance(model, FactoryModel)
    assert (model.factory, model.set_bitwidth) == ("mine.nets:make", "mine.nets:set_bits")
    assert model.arguments == {"width": 8, "shape": [1, 2], "deep": {"a": None, "b": 1.5}}
    assert model.bitwidth_attribute == ("wbit", "abit")
    assert model.folder == tmp_path
    assert found.layer_options == found.trained_bitwidths == (2, 8)
    assert set(FactoryModel.model_fields) == {"factory", "arguments", "bitwidth_attribute", "set_bitwidth"}


def test_a_factory_alone_leaves_the_options_to_the_layers() -> None:
    found = load("model: {factory: 'mine:make', bitwidth_attribute: bits}\ndata: {source: digits}")
    assert isinstance(found.model, FactoryModel)
    assert (found.model.arguments, found.model.bitwidth_attribute) == ({}, ("bits",))
    assert (found.layer_options, found.trained_bitwidths, found.method) == ((), (), None)
    assert "quantization" not in found.as_mapping()
    complete = found.with_options((2, 4))
    assert complete.layer_options == complete.trained_bitwidths == (2, 4)
    assert complete.model.folder == found.model.folder  # type: ignore[union-attr]


def test_a_section_quantization_gives_a_factory_its_options() -> None:
    text = "model: {factory: 'mine:make'}\ndata: {source: digits}\nquantization: "
    assert load(text + "{any: {bitwidth_options: [4, 2]}}").layer_options == (2, 4)
    assert load(text + "{enable: false}").layer_options == (32,)


def test_a_mapping_which_a_checkpoint_may_hold_cannot_name_a_factory() -> None:
    no_code = (
        "epoch_001.pt: model.factory: names code to run, which QBW runs only where you name it yourself; "
        "if you trust it, copy the model section into a file and give that with --config"
    )
    for model in ({"factory": "os:getcwd"}, {"factory": None}, {"name": "resnet8", "factory": 1}):
        assert mapping_refusal({"model": model, "data": 5}) == [no_code]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"mine.nets:make": "mine.nets"},
            ["2:12: model.factory: expected a function of your own as package.module:function, found 'mine.nets'"],
        ),
        (
            {"mine.nets:set_bits": "3"},
            ["5:17: model.set_bitwidth: expected text, found 3; put it in quotes"],
        ),
        (
            {"arguments: {width: 8, shape: [1, 2], deep: {a: null, b: 1.5}}": "arguments: [1]"},
            ["3:14: model.arguments: expected a mapping of keys, found a list"],
        ),
        ({"1.5": ".nan"}, ["3:14: model.arguments: expected finite numbers, found .nan or .inf"]),
        (
            {"[wbit, abit]": "[]"},
            ["4:23: model.bitwidth_attribute: expected each name once, and at least one"],
        ),
        (
            {"[wbit, abit]": "[wbit, wbit]"},
            ["4:23: model.bitwidth_attribute: expected each name once, and at least one"],
        ),
        (
            {"[wbit, abit]": "w bit"},
            ["4:23: model.bitwidth_attribute[0]: expected the name of an attribute, found 'w bit'"],
        ),
        (
            {"[wbit, abit]": "[wbit, 3]"},
            ["4:30: model.bitwidth_attribute[1]: expected the name of an attribute, found 3"],
        ),
        (
            {"[8, 2]": "[8, 64]"},
            ["6:25: model.bitwidth_options[1]: expected at most 32, found 64"],
        ),
        ({"[8, 2]": "[2, 2]"}, ["6:21: model.bitwidth_options: expected every bitwidth once, found 2 more than once"]),
        (
            {"data:": "quantization: {enable: false}\ndata:"},
            [
                "6:3: model.bitwidth_options: stands beside a section quantization, which has bitwidth_options of its "
                "own; keep one of the two"
            ],
        ),
        ({"arguments": "argments"}, ["3:3: model.argments: unknown key; did you mean 'arguments'?"]),
        (
            {"bitwidth_options": "bitwidth_option"},
            ["6:3: model.bitwidth_option: unknown key; did you mean 'bitwidth_options'?"],
        ),
        (
            {"set_bitwidth: mine.nets:set_bits": "width: 8"},
            [
                "5:3: model.width: unknown key (known here: factory, arguments, bitwidth_attribute, set_bitwidth, "
                "bitwidth_options)"
            ],
        ),
        ({"data: {source: digits}": "training: {}"}, ["1:1: data: this key is missing"]),
        (
            {"  factory: mine.nets:make\n": "  factroy: mine.nets:make\n", "  bitwidth_attribute: [wbit, abit]\n": ""},
            [
                "1:1: quantization: this key is missing",
                "2:3: model.name: this key is missing",
                "2:3: model.factroy: unknown key; did you mean 'factory'?",
                "3:3: model.arguments: unknown key (known here: name, width, batch_norm, quantize_first_and_last, "
                "in_channels, num_classes, input_size, factory)",
                "4:3: model.set_bitwidth: unknown key (known here: name, width, batch_norm, quantize_first_and_last, "
                "in_channels, num_classes, input_size, factory)",
                "5:3: model.bitwidth_options: unknown key (known here: name, width, batch_norm, "
                "quantize_first_and_last, in_channels, num_classes, input_size, factory)",
            ],
        ),
    ],
)
def test_mistakes_in_the_settings_of_factories(changes: dict[str, str], expected: list[str]) -> None:
    text = MINE
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after, 1)
    assert refusal(text) == [f"exp.yaml:{sentence}" for sentence in expected]


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({}, True),
        ({"  bitwidth_options: [8, 2]\n": ""}, True),
        ({"[wbit, abit]": "bits"}, True),
        ({"  bitwidth_options: [8, 2]\n": "", "data:": "quantization: {enable: false}\ndata:"}, True),
        ({"arguments": "argments"}, False),
        ({"[8, 2]": "[8, 64]"}, False),
        ({"factory": "factroy"}, False),
    ],
)
def test_the_schema_knows_factories(changes: dict[str, str], accepted: bool) -> None:
    text = MINE
    for before, after in changes.items():
        text = text.replace(before, after, 1)
    assert fits(yaml.safe_load(text), experiment_json_schema(), experiment_json_schema()) == accepted


# --- the JSON schema ------------------------------------------------------------------------------------------------


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether `value` fits `schema`: as much of JSON Schema as ours uses; anything else is a KeyError."""
    types: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
        "null": type(None),
    }
    checks: dict[str, Callable[[Any], bool]] = {
        "$schema": lambda _: True,
        "$defs": lambda _: True,
        "title": lambda _: True,
        "description": lambda _: True,
        "default": lambda _: True,
        "$ref": lambda ref: fits(value, root["$defs"][ref.removeprefix("#/$defs/")], root),
        "anyOf": lambda options: any(fits(value, option, root) for option in options),
        "not": lambda inner: not fits(value, inner, root),
        "type": lambda name: isinstance(value, types[name]) and (name == "boolean" or not isinstance(value, bool)),
        "enum": lambda choices: value in choices,
        "minimum": lambda bound: value >= bound,
        "maximum": lambda bound: value <= bound,
        "exclusiveMinimum": lambda bound: value > bound,
        "minLength": lambda length: len(value) >= length,
        "maxLength": lambda length: len(value) <= length,
        "minItems": lambda length: len(value) >= length,
        "maxItems": lambda length: len(value) <= length,
        "uniqueItems": lambda _: len(set(value)) == len(value),
        "items": lambda inner: all(fits(item, inner, root) for item in value),
        "prefixItems": lambda inner: all(fits(item, each, root) for item, each in zip(value, inner, strict=False)),
        "required": lambda names: set(names) <= set(value),
        "properties": lambda inner: all(fits(value[key], inner[key], root) for key in set(inner) & set(value)),
        "additionalProperties": lambda inner: all(
            inner is True or (inner and fits(value[key], inner, root))
            for key in set(value) - set(schema.get("properties", ()))
        ),
    }
    in_order = sorted(schema, key=lambda rule: rule != "type")  # a bound says nothing about a text
    return all(checks[rule](schema[rule]) for rule in in_order)


@UNTIMED
@given(documents())
def test_the_schema_accepts_what_we_accept(document: dict[str, Any]) -> None:
    schema = experiment_json_schema()
    assert fits(document, schema, schema)
    mapping = experiment_from_mapping(document, "here").as_mapping()
    assert fits(mapping, schema, schema)


# Beyond a JSON schema, all of them; listed so that a new kind of mistake has to be thought about.
ACROSS_SETTINGS = (
    r"source 'digits'|source 'tensors'|source 'image_folder'|source: image_folder|data.size, which|"
    r"source 'sample_index'|source 'factory'|source: sample_index|is fitted on|a smaller and a larger|each once|"
    r"does not go with|bitwidth: |quantization_method|a method is missing|goes with sampler|the cost of the range"
)
ONLY_IN_YAML = r"given twice|not valid YAML|given at top level too|the tag|is too long|a name as the key"
NARROWER = (
    r"a name of 1 to 200 bytes|a name without|\.safetensors file|path of a folder|path of an index|a finite number|"
)
NARROWER += r"a function of your own|finite numbers, true|a cost and its lowest"
BEYOND = re.compile(f"{ACROSS_SETTINGS}|{ONLY_IN_YAML}|{NARROWER}")


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        *((FULL, changes) for changes, message in MISTAKES if not BEYOND.search(message)),
        *((IMAGES, changes) for changes, messages in IMAGE_MISTAKES if not BEYOND.search("".join(messages))),
        *((SAMPLES, changes) for changes, messages in SAMPLE_MISTAKES if not BEYOND.search("".join(messages))),
        *((FACTORY, changes) for changes, messages in FACTORY_MISTAKES if not BEYOND.search("".join(messages))),
    ],
)
def test_the_schema_refuses_what_we_refuse(text: str, changes: dict[str, str]) -> None:
    for before, after in changes.items():
        text = text.replace(before, after, 1)
    document, schema = read_yaml(text.encode()), experiment_json_schema()
    assert document.problems == ()
    assert not fits(document.value, schema, schema)


@pytest.mark.parametrize(
    ("keys", "accepted"),
    [
        ([], False),
        (["data"], True),
        (["data", "experiment", "random_bitwidths"], True),
        (["data", "model"], False),
        (["data", "quantization"], False),
        (["data", "training"], False),
        (["data", "quantization_method"], False),
        (["model", "quantization"], False),
        (["data", "model", "quantization"], True),
    ],
)
def test_the_schema_wants_data_and_of_the_network_all_or_nothing(keys: list[str], accepted: bool) -> None:
    document, schema = yaml.safe_load(FULL.replace("1e-3", "0.001")), experiment_json_schema()
    assert fits({key: document[key] for key in keys}, schema, schema) == accepted


def test_the_schema_explains_itself() -> None:
    schema = experiment_json_schema()
    assert schema["description"]
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for part in (schema, *schema["$defs"].values()):
        for name, key in part["properties"].items():
            assert key["description"], name
    assert json.loads(json.dumps(schema)) == schema


def test_the_schema_accepts_a_file_that_uses_every_key() -> None:
    # So that no key is missing from FULL, IMAGES, SAMPLES and FACTORY, which the tables of mistakes start from.
    schema = experiment_json_schema()
    document = yaml.safe_load(FULL.replace("1e-3", "0.001"))
    assert fits(document, schema, schema)
    for text in (IMAGES, SAMPLES, FACTORY):
        other = yaml.safe_load(text)
        assert fits(other, schema, schema)
        document["data"] |= other["data"]
        document["quantization"]["first"] |= other["quantization"]["mine"]
    assert set(document) == set(schema["properties"])
    for section, part in {"model": "Model", "data": "Data", "training": "Training"}.items():
        assert set(document[section]) == set(schema["$defs"][f"{part}Settings"]["properties"])
    assert set(document["quantization"]["first"]) == set(schema["$defs"]["MethodSettings"]["properties"])
