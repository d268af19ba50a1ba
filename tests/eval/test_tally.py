"""Logits to counts, against NumPy sample by sample; the batch split never matters."""

import math
from typing import Any

import numpy as np
import pytest
import references
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qbw_eval.engine.tally import Measurement, Tally, pack_bits, predictions_of

unhurried = settings(deadline=None, max_examples=80)  # a busy machine is no defect


def some_logits(count: int, classes: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Random logits and labels; rounded, so that the largest logit is often there twice."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(count, classes, generator=generator) * 3).round() / 2
    return logits.to(dtype), torch.randint(classes, (count,), generator=generator)


def tallied(logits: Tensor, labels: Tensor, sizes: list[int], reference: Tensor | None = None) -> Measurement:
    tally = Tally()
    for part in torch.arange(len(labels)).split(sizes):
        tally.update(logits[part], labels[part], None if reference is None else reference[part])
    return tally.finish()


def assert_equal(measurement: Measurement, expected: dict[str, Any]) -> None:
    found = dict(vars(measurement))
    assert found.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-12, nan_ok=True)
    assert found == expected


@st.composite
def splits(draw: st.DrawFn) -> tuple[int, list[int]]:
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    return sum(sizes), sizes


@unhurried
@given(
    split=splits(),
    classes=st.integers(2, 12),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from(["float32", "bfloat16", "float64"]),
)
def test_counts_losses_masks_and_agreement_equal_numpys_however_the_data_are_batched(
    split: tuple[int, list[int]], classes: int, seed: int, dtype: str
) -> None:
    count, sizes = split
    logits, labels = some_logits(count, classes, seed, getattr(torch, dtype))
    reference = predictions_of(some_logits(count, classes, seed + 1)[0])
    measurement = tallied(logits, labels, sizes, reference)
    assert_equal(measurement, references.tally(logits.double().numpy(), labels.numpy(), reference.numpy()))
    assert measurement.accuracy == measurement.correct / count
    whole = tallied(logits, labels, [count], reference)
    assert (measurement.correct, measurement.correct_mask) == (whole.correct, whole.correct_mask)
    assert measurement.agreement == whole.agreement
    assert measurement.loss == pytest.approx(whole.loss, rel=1e-14)


def test_a_measurement_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 0.0], [0.0, 5.0]])
    measurement = tallied(logits, torch.tensor([0, 1, 1]), [2, 1], torch.tensor([0, 1, 1]))
    loss = (math.log(1 + math.exp(-1)) + math.log(2) + math.log(1 + math.exp(-5))) / 3
    assert_equal(
        measurement,
        # Of two equal logits the first counts.
        {"correct": 2, "num_samples": 3, "loss": loss, "correct_mask": b"\x05", "agreement": 2 / 3},
    )


def test_without_a_reference_there_is_no_agreement() -> None:
    assert tallied(*some_logits(9, 3, 0), [4, 5]).agreement is None


def test_a_nan_counts_as_wrong_and_makes_the_loss_nan() -> None:
    logits, labels = some_logits(20, 4, 0)
    labels = logits.argmax(dim=1)
    logits[3, 1], logits[17, :] = math.nan, math.nan
    assert predictions_of(logits)[[3, 17]].tolist() == [-1, -1]
    measurement = tallied(logits, labels, [5, 15], labels)
    assert math.isnan(measurement.loss)
    assert measurement.correct == 18
    assert measurement.agreement == 18 / 20
    assert_equal(measurement, references.tally(logits.double().numpy(), labels.numpy(), labels.numpy()))


def test_an_infinite_logit_is_a_prediction() -> None:
    logits = torch.tensor([[math.inf, 0.0], [-math.inf, 0.0]])
    assert predictions_of(logits).tolist() == [0, 1]
    assert tallied(logits[1:], torch.tensor([0]), [1]).loss == math.inf


def test_a_reference_that_was_nan_agrees_with_nan_and_nothing_else() -> None:
    logits = torch.tensor([[math.nan, 0.0], [1.0, 0.0]])
    measurement = tallied(logits, torch.tensor([0, 0]), [2], predictions_of(logits))
    assert measurement.agreement == 1.0
    assert measurement.correct == 1


def test_the_loss_is_summed_in_float64() -> None:
    """In float32 a sum of a million equal terms is off in the fourth digit."""
    logits = torch.zeros(1_000_000, 3)
    measurement = tallied(logits, torch.zeros(1_000_000, dtype=torch.int64), [300_000, 700_000])
    assert measurement.loss == pytest.approx(math.log(3), rel=1e-12)


@unhurried
@given(hits=st.lists(st.booleans(), max_size=70))
def test_masks_are_packed_least_significant_bit_first(hits: list[bool]) -> None:
    packed = pack_bits(torch.tensor(hits, dtype=torch.bool))
    assert packed == np.packbits(np.array(hits, dtype=bool), bitorder="little").tobytes()
    unpacked = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    assert unpacked[: len(hits)].tolist() == [int(hit) for hit in hits]
    assert not unpacked[len(hits) :].any()
