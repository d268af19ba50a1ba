"""What `qbw-eval run` measures, from stored logits of a small network; and what it does not where it is told so."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from stage_references import Outcome, bits_of, contents, qbw_eval, without_nan

from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.cli import _Measurements
from qbw_eval.data.fit import with_data_shape
from qbw_eval.data.sources import load_split
from qbw_eval.engine.tally import Measures
from qbw_eval.experiment import experiment_from_mapping
from qbw_eval.memory import MemoryBudget
from qbw_eval.networks.build import load_network
from qbw_eval.quantization.bitwidths import quantized_layers, set_bitwidths, trace_order
from qbw_eval.training import epoch_files, train
from qbw_eval.verify import verify

SAMPLES, CLASSES = 90, 13
Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network of 13 classes, trained a little on blobs in a file beside it."""
    folder = tmp_path_factory.mktemp("many classes")
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, 1, 8, 8, generator=generator)
    for name in ("train", "validation"):
        labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
        labels[:CLASSES] = torch.arange(CLASSES)
        inputs = centres[labels] + torch.randn(SAMPLES, 1, 8, 8, generator=generator)
        torch.save({"inputs": inputs, "labels": labels}, folder / f"{name}.pt")
    experiment = experiment_from_mapping(
        {
            "experiment": "blobs",
            "model": {"name": "resnet8", "width": 4},
            "data": {
                "source": "tensors",
                "train": str(folder / "train.pt"),
                "validation": str(folder / "validation.pt"),
                "batch_size": 40,
            },
            "training": {"epochs": 2, "batch_size": 10, "learning_rate": 0.01, "configurations_per_batch": 1},
            "quantization": {"mine": {"bitwidth_options": [2, 4, 8], "activation_quantization": "pact"}},
            "random_bitwidths": {"num_bitwidths": 5, "sampler": "iid"},
        },
        "blobs",
    )
    splits = load_split(experiment.data, "train"), load_split(experiment.data, "validation")
    experiment = with_data_shape(experiment, splits[0])
    files = epoch_files(folder, experiment)
    *_, last = train(experiment, *splits, files, device=torch.device("cpu"), log=lambda _line: None)
    return last.checkpoint


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return tmp_path / "results" / "records"


def run(records: Path, *words: object) -> Outcome:
    outcome = qbw_eval("run", *words, "--records", records)
    assert outcome.code == 0, outcome.stderr
    return outcome


def rows_in(records: Path) -> list[dict[str, Any]]:
    return without_nan(pd.read_parquet(records).sort_values("config_index"))


def stored_logits(path: Path, bits: list[int]) -> Floats:
    """Return the network's logits, a sample at a time, in float64."""
    checkpoint = read_checkpoint(path)
    network = load_network(checkpoint.experiment, checkpoint.state, "here").double().eval()
    inputs = torch.load(path.parent / "validation.pt")["inputs"].double()
    names = trace_order(network, inputs[:1])
    assert sorted(names) == sorted(quantized_layers(network))
    set_bitwidths(network, dict(zip(names, bits, strict=True)))
    with torch.no_grad():
        return np.concatenate([network(one).numpy() for one in inputs.split(1)])


def test_every_measurement_is_what_numpy_makes_of_stored_logits(many_classes: Path, records: Path) -> None:
    run(records, many_classes, "--per-class")
    rows, labels = rows_in(records), torch.load(many_classes.parent / "validation.pt")["labels"].numpy()
    assert len(rows) == 5
    layers = len(rows[0]["bitwidths"])
    exact = 0
    for row in rows:
        logits, reference = stored_logits(many_classes, row["bitwidths"]), stored_logits(many_classes, [8] * layers)
        logarithms, expected = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (logits, reference))
        assert row["loss"] == pytest.approx(-logarithms[np.arange(SAMPLES), labels].mean(), rel=1e-2)
        divergence = (np.exp(expected) * (expected - logarithms)).sum(1).mean()
        assert row["kl_divergence"] == pytest.approx(divergence, rel=5e-2)
        assert row["kl_divergence"] > 0
        hits = logits.argmax(1) == labels
        before = logits > logits[np.arange(SAMPLES), labels][:, None]
        per_class = [int(hits[labels == one].sum()) for one in range(CLASSES)]
        found = (row["correct_per_class"], row["top5_correct"], row["agreement"], bits_of(row["correct_mask"], SAMPLES))
        # In float64 an activation may round the other way, and a sample near a boundary change its class.
        exact += found == (
            per_class,
            int((before.sum(1) < 5).sum()),
            (logits.argmax(1) == reference.argmax(1)).mean(),
            hits.tolist(),
        )
        assert row["samples_per_class"] == [int((labels == one).sum()) for one in range(CLASSES)]
        assert sum(row["correct_per_class"]) == row["correct"] < row["top5_correct"] < SAMPLES
    assert exact >= 3
    assert verify(records).problems == ()


OFF = {
    "agreement": ["agreement"],
    "kl": ["kl_divergence"],
    "mask": ["correct_mask"],
    "top5": ["top5_correct"],
    "kl, agreement": ["agreement", "kl_divergence"],
    "agreement,kl,mask,top5": ["agreement", "correct_mask", "kl_divergence", "top5_correct"],
}


@pytest.mark.parametrize("skip", OFF)
def test_what_is_skipped_is_null_and_every_other_value_is_the_same(
    skip: str, many_classes: Path, records: Path, tmp_path: Path
) -> None:
    all_measured = tmp_path / "all" / "records"
    run(all_measured, many_classes)
    run(records, many_classes, "--skip", skip)
    times = ("duration_s", "evaluated_at")
    expected = [row | dict.fromkeys(OFF[skip]) | dict.fromkeys(times) for row in rows_in(all_measured)]
    assert [row | dict.fromkeys(times) for row in rows_in(records)] == expected
    assert all(row["correct_per_class"] is None for row in expected)
    assert verify(records).problems == ()


def test_rows_that_lack_a_measurement_stay_as_they_are_and_one_sentence_says_so(
    many_classes: Path, records: Path, tmp_path: Path
) -> None:
    run(records, many_classes, "--skip", "kl,top5", "--num-configs", 3)
    before = contents(tmp_path)
    again = run(records, many_classes, "--num-configs", 3, "--per-class")
    assert contents(tmp_path) == before
    assert again.stderr == (
        "rows that are there have no correct_per_class, kl_divergence, top5_correct, which was not measured for them, "
        "and stay as they are; --no-resume evaluates all of it again\n"
    )
    assert run(records, many_classes, "--num-configs", 3, "--skip", "top5,kl").stderr == ""
    assert "have no kl_divergence, which" in run(records, many_classes, "--num-configs", 5, "--skip", "top5").stderr
    rows = rows_in(records)
    assert [row["kl_divergence"] is None for row in rows] == [True] * 3 + [False] * 2


def test_whether_the_reference_is_kept_or_computed_again_changes_no_bit(
    many_classes: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are two chunks; the second finds nothing kept where there is room for nothing."""
    little = tmp_path / "little" / "records"
    run(records, many_classes, "--num-configs", 70)
    monkeypatch.setattr(MemoryBudget, "data", property(lambda _budget: 0))
    run(little, many_classes, "--num-configs", 70)
    times = dict.fromkeys(("duration_s", "evaluated_at"))
    assert [row | times for row in rows_in(little)] == [row | times for row in rows_in(records)]


def test_resuming_gives_the_very_same_rows(many_classes: Path, records: Path, tmp_path: Path) -> None:
    at_once = tmp_path / "at once" / "records"
    run(at_once, many_classes, "--num-configs", 7, "--per-class")
    for count in (2, 3, 7):
        run(records, many_classes, "--num-configs", count, "--per-class")
    times = dict.fromkeys(("duration_s", "evaluated_at"))
    assert [row | times for row in rows_in(records)] == [row | times for row in rows_in(at_once)]


def test_what_cannot_be_skipped_is_a_mistake_of_usage(many_classes: Path, records: Path) -> None:
    outcome = qbw_eval("run", many_classes, "--records", records, "--skip", "kl,accuracy")
    assert outcome.code == 2
    assert "expected some of agreement, kl, mask, top5 with commas between, found 'accuracy'" in outcome.stderr
    assert not records.exists()


def test_the_command_line_knows_every_measurement_that_is_on_by_default() -> None:
    assert list(_Measurements.skippable) == [name for name, on in vars(Measures()).items() if on]
