"""What goes wrong in real use and must cost nothing: bad data, bad neighbours, numbers that are none, odd models."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from stage_references import qbw_eval
from torch import Tensor, nn

from qbw_eval import get_average_bitwidth, validate_random_bitwidths
from qbw_report.build import analyze

SMALL = {
    "experiment": "small",
    "model": {"name": "resnet8", "width": 2},
    "data": {"source": "tensors", "train": "train.npz", "validation": "val.npz"},
    "training": {"epochs": 1, "batch_size": 8},
    "quantization": {"q": {"bitwidth_options": [2, 8]}},
    "random_bitwidths": {"num_bitwidths": 2},
}


def write_data(path: Path, labels: list[int], channels: int = 1) -> None:
    inputs = np.random.default_rng(0).normal(size=(len(labels), channels, 6, 6)).astype("float32")
    np.savez(path, inputs=inputs, labels=np.array(labels))


def write_small(folder: Path, **changes: Any) -> Path:
    """Write an experiment with its data: 16 training and 8 validation samples of 3 classes."""
    write_data(folder / "train.npz", [0, 1, 2, 0] * 4)
    write_data(folder / "val.npz", [0, 1, 2, 0] * 2)
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump({**SMALL, **changes}))
    return config


@pytest.mark.parametrize(
    ("labels", "channels", "model", "sentence"),
    [
        ([0, 3], 1, {}, "val: the largest label is 3, the network has 3 classes, counted from 0"),
        ([0, 1], 2, {}, "val: inputs have 2 channels, the network takes 1"),
        ([0, 10**10], 1, {}, "{}/val.npz: the largest label is 10000000000; expected fewer than 100,000 classes"),
        ([0, 1], 1, {"num_classes": 2}, "train: the largest label is 2, the network has 2 classes, counted from 0"),
        ([0, 1], 1, {"in_channels": 3}, "train: inputs have 1 channels, the network takes 3"),
    ],
)
def test_training_on_data_that_do_not_fit_is_one_sentence_and_deletes_nothing(
    tmp_path: Path, labels: list[int], channels: int, model: dict[str, int], sentence: str
) -> None:
    config = write_small(tmp_path)
    out = tmp_path / "runs"
    assert qbw_eval("train", config, "--out", out, "--quiet").code == 0
    checkpoint = out / "small" / "checkpoints" / "epoch_001.pt"
    before = checkpoint.read_bytes()
    config = write_small(tmp_path, model={**SMALL["model"], **model})  # type: ignore[dict-item]  # a mapping
    write_data(tmp_path / "val.npz", labels, channels)
    outcome = qbw_eval("train", config, "--out", out, "--overwrite", "--quiet")
    assert (outcome.code, outcome.stderr) == (1, f"qbw-eval: error: {sentence.format(tmp_path)}\n")
    assert checkpoint.read_bytes() == before


def test_a_single_training_sample_is_refused(tmp_path: Path) -> None:
    config = write_small(tmp_path)
    write_data(tmp_path / "train.npz", [2])
    outcome = qbw_eval("train", config, "--out", tmp_path / "runs", "--quiet")
    assert outcome.stderr == (
        "qbw-eval: error: train: 1 training sample; batch norm needs at least 2 samples to normalize\n"
    )


def test_inputs_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    config = write_small(tmp_path)
    inputs = np.zeros((2, 1, 6, 6), "float32")
    inputs[1, 0, 2, 3] = np.nan
    np.savez(tmp_path / "val.npz", inputs=inputs, labels=np.array([0, 1]))
    outcome = qbw_eval("train", config, "--out", tmp_path / "runs", "--quiet")
    assert outcome.stderr == (
        f"qbw-eval: error: {tmp_path}/val.npz: 1 input values are NaN or infinite; remove those samples\n"
    )


def test_one_bad_checkpoint_of_several_does_not_stop_the_others(tiny_checkpoints: Path, tmp_path: Path) -> None:
    folder, records = tmp_path / "checkpoints", tmp_path / "records"
    shutil.copytree(tiny_checkpoints, folder)
    (folder / "epoch_000.pt").write_text("no checkpoint")
    outcome = qbw_eval("run", folder, "--records", records, "--limit", "8", "--num-configs", "2", "--quiet")
    assert outcome.code == 1
    assert outcome.stderr.splitlines()[0].startswith(f"qbw-eval: error: {folder}/epoch_000.pt: ")
    assert outcome.stderr.splitlines()[-1] == (
        "qbw-eval: error: 1 of 4 checkpoints could not be evaluated; the sentences above say why"
    )
    assert sorted(pd.read_parquet(records).checkpoint.unique()) == ["epoch_001.pt", "epoch_002.pt", "epoch_003.pt"]


def test_networks_that_compute_differently_share_no_series(tiny_checkpoints: Path, tmp_path: Path) -> None:
    checkpoint, records = tiny_checkpoints / "epoch_003.pt", tmp_path / "records"
    words = ("--records", records, "--limit", "40", "--num-configs", "3", "--quiet")
    assert qbw_eval("run", checkpoint, *words).code == 0
    config = tmp_path / "tiny.yaml"
    quantization = {
        "mine": {
            "bitwidth_options": [2, 4, 8],
            "activation_quantization": "pact",
            "weight_quantization": "dorefa_scaled",
        }
    }
    # No shape is named: the checkpoint knows it.
    settings = {"experiment": "tiny", "model": {"name": "resnet8", "width": 4}, "data": {"source": "digits"}}
    config.write_text(yaml.safe_dump({**settings, "quantization": quantization, "random_bitwidths": {"seed": 5}}))
    assert qbw_eval("run", checkpoint, "--config", config, *words).code == 0
    rows = pd.read_parquet(records)
    assert (len(rows), rows.config_id.nunique(), rows.network_id.nunique(), rows.record_id.nunique()) == (6, 3, 2, 6)
    analysis = analyze(records)
    assert len(analysis.answers) == 2
    assert set(analysis.epochs.configs) == {3}


def test_a_seed_that_decides_nothing_is_no_part_of_identity(tiny_checkpoints: Path, tmp_path: Path) -> None:
    words = (tiny_checkpoints / "epoch_003.pt", "--records", tmp_path / "records", "--limit", "8", "--quiet")
    assert qbw_eval("run", *words, "--sampler", "uniform", "--num-configs", "3").code == 0
    again = qbw_eval("run", *words, "--sampler", "uniform", "--num-configs", "3", "--seed", "9")
    assert "Nothing to do: all 3 rows" in again.stdout
    assert "Evaluated now: 3" in qbw_eval("run", *words, "--num-configs", "3", "--seed", "9").stdout


class Wrapped(nn.Module):
    """Somebody's quantized layer: the bits are on the wrapper, the weights inside."""

    def __init__(self, nan_at: int) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4)
        self.curr_bitwidth = 8
        self._nan_at = nan_at

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y * math.nan if self.curr_bitwidth == self._nan_at else y


class Nested(nn.Module):
    """Somebody's network, which takes a dict of dicts."""

    def __init__(self, nan_at: int) -> None:
        super().__init__()
        self.layer = Wrapped(nan_at)

    def forward(self, inputs: dict[str, dict[str, Tensor]]) -> Tensor:
        y: Tensor = self.layer(inputs["roof"]["sound"])
        return y


@pytest.mark.parametrize("nan_at", [0, 2])
def test_validation_takes_nested_inputs_wrapped_layers_and_losses_that_are_no_numbers(nan_at: int) -> None:
    torch.manual_seed(0)
    model = Nested(nan_at)
    batches = [({"roof": {"sound": torch.randn(5, 3)}}, torch.randint(4, (5,)), "extra") for _ in range(2)]
    lines: list[str] = []
    result = validate_random_bitwidths(
        model, batches, num_configs=2, bitwidth_options=[2, 8], sampler="uniform", log=lines.append
    )
    assert result is not None
    expected = [
        sum(int((model(x).argmax(1) == y).sum()) for x, y, _ in batches) if bits != nan_at else 0 for bits in (2, 8)
    ]
    assert [measurement.correct for measurement in result.measurements] == expected
    assert [math.isnan(loss) for loss in result.losses] == [nan_at == 2, False]
    assert ("  Loss - Mean: nan, Min: nan, Max: nan, Std: nan" in lines) == (nan_at == 2)
    assert get_average_bitwidth(model) == 8
