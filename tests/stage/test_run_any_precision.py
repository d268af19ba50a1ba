"""`qbw-eval run` and `inspect` on Any-Precision DNN's checkpoints, and files that name nothing but data."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from any_precision_files import any_precision_content, save
from stage_references import Outcome, qbw_eval

from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.experiment import load_evaluation_file
from qbw_eval.networks.build import load_network
from qbw_eval.quantization.bitwidths import set_bitwidths

RULE = "the convolution that it feeds; where it feeds none, the last one of its block (at the end: of all blocks)"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with theirs/model_best.pth.tar, data for it, and a file that names them."""
    random = np.random.default_rng(0)
    inputs, labels = random.standard_normal((12, 3, 8, 8), dtype=np.float32), random.integers(0, 5, 12)
    np.savez(tmp_path / "cifar10_val.npz", inputs=inputs, labels=labels)
    (tmp_path / "data.yaml").write_text(
        "experiment: theirs\n"
        "data: {source: tensors, validation: cifar10_val.npz}\n"
        "random_bitwidths: {num_bitwidths: 5, seed: 2}\n"
    )
    (tmp_path / "theirs").mkdir()
    save(
        any_precision_content(width=2, options=(1, 2, 8, 32), prefix="module."), tmp_path / "theirs/model_best.pth.tar"
    )
    return tmp_path


def run(place: Path, *words: object) -> Outcome:
    """Run `qbw-eval run`, which must succeed."""
    outcome = qbw_eval("run", *words, "--records", place / "records")
    assert outcome.code == 0, outcome.stderr
    return outcome


def rows_in(place: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pd.read_parquet(place / "records").sort_values("config_index").to_dict("records")
    return rows


def test_their_checkpoint_and_a_file_that_names_only_data_give_rows(place: Path) -> None:
    path = place / "theirs/model_best.pth.tar"
    shutil.copy(path, place / "theirs/model_latest.pth.tar")  # as their training does
    words = (place / "theirs", "--config", place / "data.yaml", "--engine", "incremental")
    outcome = run(place, *words)
    assert "model_latest.pth.tar: the same bytes as" in outcome.stderr
    rows = rows_in(place)
    checkpoint = read_checkpoint(path, load_evaluation_file(place / "data.yaml"))
    model = load_network(checkpoint.experiment, checkpoint.state, "here")
    data = np.load(place / "cifar10_val.npz")
    layers = [f"layers.{block}.conv{index}" for block in range(9) for index in (0, 1)]
    assert len(rows) == 5
    assert len({tuple(row["bitwidths"]) for row in rows}) == 5
    for row in rows:
        assert (row["experiment"], row["checkpoint"], row["epoch"]) == ("theirs", "model_best.pth.tar", 2)
        assert (row["split"], row["num_samples"], row["engine"]) == ("validation", 12, "incremental")
        assert list(row["bitwidth_options"]) == [1, 2, 8, 32]
        assert json.loads(row["extras_json"]) == {"batch_norm_follows": RULE}
        set_bitwidths(model, dict(zip(layers, map(int, row["bitwidths"]), strict=True)))
        with torch.no_grad():
            predicted = model(torch.from_numpy(data["inputs"])).argmax(1).numpy()
        assert row["correct_mask"] == np.packbits(predicted == data["labels"], bitorder="little").tobytes()
    assert "Nothing to do: all 5 rows" in run(place, *words).stdout
    assert qbw_eval("verify", place / "records").code == 0


def test_uniform_configurations_are_their_own(place: Path) -> None:
    run(place, place / "theirs", "--config", place / "data.yaml", "--sampler", "uniform")
    assert [set(row["bitwidths"]) for row in rows_in(place)] == [{1}, {2}, {8}, {32}]


def test_without_a_file_one_sentence_says_what_to_name(place: Path) -> None:
    path = place / "theirs/model_best.pth.tar"
    outcome = qbw_eval("run", path, "--records", place / "records")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr == (
        f"qbw-eval: error: {path}: an Any-Precision DNN checkpoint (resnet20q at [1, 2, 8, 32] bits), which does not "
        "say what to evaluate it on; name that with --config file.yaml that holds, for instance, "
        "`data: {source: tensors, validation: validation.npz}`\n"
    )


def test_data_of_another_shape_are_refused(place: Path) -> None:
    np.savez(place / "cifar10_val.npz", inputs=np.zeros((2, 1, 8, 8), np.float32), labels=np.zeros(2, np.int64))
    path = place / "theirs/model_best.pth.tar"
    outcome = qbw_eval("run", path, "--config", place / "data.yaml", "--records", place / "records")
    assert outcome.code == 1
    assert outcome.stderr.endswith(f"inputs have 1 channels, the network of {path} takes 3\n")


def test_inspect_needs_no_data(place: Path) -> None:
    path = place / "theirs/model_best.pth.tar"
    outcome = qbw_eval("inspect", path)
    assert (outcome.code, outcome.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in outcome.stdout.splitlines()]
    assert lines[0] == f"{path}: experiment any-precision, epoch 3, resnet20q"
    assert lines[1] == "Quantized layers in forward order; MACs for one sample:"
    # 3x3 convolutions of 2 and 4 channels on 32x32 and 16x16 pixels, by hand
    assert "layers.0.conv0 2x2x3x3 36 36,864 1,2,8,32 dorefa_scaled/dorefa" in lines
    assert "layers.3.conv0 4x2x3x3 72 18,432 1,2,8,32 dorefa_scaled/dorefa" in lines
    assert "Bitwidth options [1, 2, 8, 32] in 18 layers: 68,719,476,736 configurations" in lines
    with_data = json.loads(qbw_eval("inspect", path, "--config", place / "data.yaml", "--json").stdout)
    assert (with_data["experiment"], with_data["model"], with_data["epoch"]) == ("theirs", "resnet20q", 2)
    assert with_data["bitwidth_options"] == [1, 2, 8, 32]


def test_our_own_checkpoints_can_be_evaluated_on_other_data_too(tiny_checkpoints: Path, place: Path) -> None:
    inputs, labels = np.zeros((4, 1, 8, 8), np.float32), np.arange(4)
    np.savez(place / "cifar10_val.npz", inputs=inputs, labels=labels)
    run(place, tiny_checkpoints / "epoch_003.pt", "--config", place / "data.yaml")
    rows = rows_in(place)
    assert [(row["experiment"], row["num_samples"], row["seed"]) for row in rows] == [("theirs", 4, 2)] * 5
    assert {row["extras_json"] for row in rows} == {"{}"}
