"""Logits to counts and means, against NumPy sample by sample; the batch split never matters."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import references
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qbw_eval.engine.tally import (
    Compared,
    Measurement,
    Measures,
    Tally,
    among_top5,
    log_softmax,
    pack_bits,
    predictions_of,
)

unhurried = settings(deadline=None, max_examples=40)  # a busy machine is no defect

ALL = Measures(per_class=True)


def some_logits(count: int, classes: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Random logits and labels; rounded, so that the largest logit is often there twice."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(count, classes, generator=generator) * 3).round() / 2
    return logits.to(dtype), torch.randint(classes, (count,), generator=generator)


def tallied(
    logits: Tensor, labels: Tensor, sizes: list[int], reference: Tensor | None = None, measures: Measures = ALL
) -> Measurement:
    """Return what (N, classes) logits score, in batches of these sizes; `reference` are another's logits."""
    tally = Tally(measures)
    for part in torch.arange(len(labels)).split(sizes):
        compared = None if reference is None else Compared.of(reference[part], kl=measures.kl)
        tally.update(logits[part], labels[part], compared)
    return tally.finish()


def assert_equal(measurement: Measurement, expected: dict[str, Any]) -> None:
    """Counts are equal, means to the rounding of float64; a mean of KL divergences as near zero as one can expect."""
    found, expected = dict(vars(measurement)), dict(expected)
    assert found.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-12, abs=1e-14, nan_ok=True)
    divergence = expected.pop("kl_divergence")
    if divergence is None:
        assert found.pop("kl_divergence") is None
    else:
        assert found.pop("kl_divergence") == pytest.approx(divergence, rel=1e-10, abs=1e-13, nan_ok=True)
    assert found == expected


@st.composite
def splits(draw: st.DrawFn) -> tuple[int, list[int]]:
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    return sum(sizes), sizes


@unhurried
@given(
    split=splits(),
    classes=st.integers(2, 14),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from(["float32", "bfloat16", "float64"]),
)
def test_every_measurement_equals_numpys_however_the_data_are_batched(
    split: tuple[int, list[int]], classes: int, seed: int, dtype: str
) -> None:
    count, sizes = split
    logits, labels = some_logits(count, classes, seed, getattr(torch, dtype))
    reference = some_logits(count, classes, seed + 1)[0]
    measurement = tallied(logits, labels, sizes, reference)
    expected = references.tally(logits.double().numpy(), labels.numpy(), reference.double().numpy(), per_class=True)
    assert_equal(measurement, expected)
    assert measurement.accuracy == measurement.correct / count
    assert_equal(tallied(logits, labels, [count], reference), vars(measurement))


VALUES = st.sampled_from([0.0, -0.0, 1.0, 1.0000001, -2.5, 88.0, -90.0, 700.0, -740.0, math.nan, math.inf, -math.inf])


@settings(deadline=None, max_examples=200)
@given(data=st.data(), count=st.integers(1, 6), classes=st.sampled_from([2, 3, 11, 12]), odd=st.booleans())
def test_ties_infinities_and_nans_count_as_in_numpy(data: st.DataObject, count: int, classes: int, odd: bool) -> None:
    values = VALUES if odd else st.sampled_from([0.0, 1.0, -1.0, 2.0])  # few values: many ties
    rows = st.lists(st.lists(values, min_size=classes, max_size=classes), min_size=count, max_size=count)
    logits, reference = (torch.tensor(data.draw(rows), dtype=torch.float32) for _ in range(2))
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)))
    measurement = tallied(logits, labels, [1] * count, reference)
    expected = references.tally(logits.double().numpy(), labels.numpy(), reference.double().numpy(), per_class=True)
    assert_equal(measurement, expected)
    assert_equal(tallied(logits, labels, [count], reference), vars(measurement))


def test_a_measurement_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 0.0], [0.0, 5.0]])
    # Half and half, then the same as the configuration, then the same again.
    reference = torch.tensor([[3.0, 3.0], [7.0, 7.0], [-5.0, 0.0]])
    measurement = tallied(logits, torch.tensor([0, 1, 1]), [2, 1], reference)
    loss = (math.log(1 + math.exp(-1)) + math.log(2) + math.log(1 + math.exp(-5))) / 3
    p = 1 / (1 + math.exp(-1))
    assert_equal(
        measurement,
        {
            # Of two equal logits the first counts.
            "correct": 2,
            "num_samples": 3,
            "loss": loss,
            "correct_mask": b"\x05",
            "agreement": 1.0,
            "kl_divergence": (math.log(0.5 / p) + math.log(0.5 / (1 - p))) / 2 / 3,
            "top5_correct": None,
            "correct_per_class": (1, 1),
            "samples_per_class": (1, 2),
        },
    )


def test_without_a_reference_nothing_is_compared() -> None:
    measurement = tallied(*some_logits(9, 3, 0), [4, 5])
    assert (measurement.agreement, measurement.kl_divergence) == (None, None)


@pytest.mark.parametrize(
    ("off", "columns"),
    [
        ("agreement", {"agreement"}),
        ("kl", {"kl_divergence"}),
        ("mask", {"correct_mask"}),
        ("top5", {"top5_correct"}),
        ("per_class", {"correct_per_class", "samples_per_class"}),
    ],
)
def test_what_is_switched_off_is_none_and_the_rest_is_the_same(off: str, columns: set[str]) -> None:
    logits, labels = some_logits(50, 12, 3)
    reference = some_logits(50, 12, 4)[0]
    everything = vars(tallied(logits, labels, [30, 20], reference))
    assert None not in everything.values()
    found = vars(tallied(logits, labels, [30, 20], reference, replace(ALL, **{off: False})))
    assert found == everything | dict.fromkeys(columns)


def test_classes_are_compared_where_no_divergence_is_asked_for() -> None:
    measures = Measures(kl=False)
    assert measures.comparisons
    assert not Measures(kl=False, agreement=False).comparisons
    logits, labels = some_logits(40, 3, 1)
    assert tallied(logits, labels, [40], logits.roll(1, 0), measures).agreement == (
        tallied(logits, labels, [40], logits.roll(1, 0)).agreement
    )


def test_a_nan_counts_as_wrong_and_makes_the_means_nan() -> None:
    logits, labels = some_logits(20, 12, 0)
    labels, reference = logits.argmax(dim=1), logits.clone()
    logits[3, 1], logits[17, :] = math.nan, math.nan
    assert predictions_of(logits)[[3, 17]].tolist() == [-1, -1]
    measurement = tallied(logits, labels, [5, 15], reference)
    assert math.isnan(measurement.loss)
    assert measurement.kl_divergence is not None
    assert math.isnan(measurement.kl_divergence)
    assert (measurement.correct, measurement.top5_correct) == (18, 18)
    assert measurement.agreement == 18 / 20


def test_an_infinite_logit_is_a_prediction() -> None:
    logits = torch.tensor([[math.inf, 0.0], [-math.inf, 0.0]])
    assert predictions_of(logits).tolist() == [0, 1]
    assert tallied(logits[1:], torch.tensor([0]), [1]).loss == math.inf


@pytest.mark.parametrize(
    ("reference", "configuration", "expected"),
    [
        ([0.0, -math.inf], [0.0, 0.0], math.log(2)),  # impossible to the reference: adds nothing
        ([0.0, -math.inf], [0.0, -math.inf], 0.0),
        ([0.0, 0.0], [0.0, -math.inf], math.inf),  # impossible to the configuration alone
        ([0.0, 0.0], [math.inf, 0.0], math.nan),  # no softmax
        ([math.inf, 0.0], [0.0, 0.0], math.nan),
        ([math.nan, 0.0], [0.0, 0.0], math.nan),
        ([0.0, 0.0], [0.0, math.nan], math.nan),
        ([-math.inf, -math.inf], [0.0, 0.0], math.nan),
    ],
)
def test_what_infinities_and_nans_do_to_the_divergence(
    reference: list[float], configuration: list[float], expected: float
) -> None:
    measurement = tallied(torch.tensor([configuration]), torch.tensor([0]), [1], torch.tensor([reference]))
    assert measurement.kl_divergence == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_the_reference_itself_has_no_divergence_at_all(scale: float) -> None:
    logits = torch.randn(500, 100, generator=torch.Generator().manual_seed(0)) * scale
    measurement = tallied(logits, torch.zeros(500, dtype=torch.int64), [200, 300], logits)
    assert (measurement.kl_divergence, measurement.agreement) == (0.0, 1.0)


def test_a_divergence_that_rounding_makes_negative_is_zero() -> None:
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [tallied(logits + shift, torch.zeros(50, dtype=torch.int64), [50], logits) for shift in range(1, 40)]
    divergences = [measurement.kl_divergence for measurement in found]
    exact = [
        float((log_softmax(logits).exp() * (log_softmax(logits) - log_softmax(logits + s))).sum()) for s in range(1, 40)
    ]
    assert min(exact) < 0, "or this shows nothing"
    assert all(value is not None and 0 <= value < 1e-14 for value in divergences)


def test_a_small_divergence_is_not_lost_in_rounding() -> None:
    """In float32 each logarithm would be off by 1e-7, a hundred times what is to be seen."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(40, 1000, generator=generator) * 5
    logits = reference + torch.randn(40, 1000, generator=generator) * 5e-5
    labels = torch.zeros(40, dtype=torch.int64)
    expected = references.tally(logits.double().numpy(), labels.numpy(), reference.double().numpy())
    assert 1e-10 < expected["kl_divergence"] < 1e-8
    measurement = tallied(logits, labels, [40], reference)
    assert measurement.kl_divergence == pytest.approx(expected["kl_divergence"], rel=1e-5)


def test_of_equal_logits_the_lower_classes_are_among_the_five() -> None:
    labels = torch.arange(12)
    same = torch.zeros(12, 12)
    assert among_top5(same, labels, predictions_of(same)).tolist() == [True] * 5 + [False] * 7
    falling = -torch.arange(12.0).repeat(12, 1)
    assert among_top5(falling, labels, predictions_of(falling)).tolist() == [True] * 5 + [False] * 7
    rising = falling.flip(1)
    assert among_top5(rising, labels, predictions_of(rising)).tolist() == [False] * 7 + [True] * 5


@pytest.mark.parametrize(("classes", "measured"), [(10, False), (11, True)])
def test_there_is_a_top_5_where_there_are_more_than_10_classes(classes: int, measured: bool) -> None:
    measurement = tallied(*some_logits(30, classes, 2), [30])
    assert (measurement.top5_correct is not None) == measured
    if measured:
        assert measurement.correct <= measurement.top5_correct <= 30  # type: ignore[operator]  # it is not None


def test_a_reference_that_was_nan_agrees_with_nan_and_nothing_else() -> None:
    logits = torch.tensor([[math.nan, 0.0], [1.0, 0.0]])
    measurement = tallied(logits, torch.tensor([0, 0]), [2], logits)
    assert measurement.agreement == 1.0
    assert measurement.correct == 1


def test_means_are_summed_in_float64() -> None:
    """In float32 a sum of a million equal terms is off in the fourth digit."""
    logits = torch.zeros(1_000_000, 3)
    sides = torch.tensor([1.0, 0.0, 0.0]).repeat(1_000_000, 1)
    measurement = tallied(logits, torch.zeros(1_000_000, dtype=torch.int64), [300_000, 700_000], sides)
    assert measurement.loss == pytest.approx(math.log(3), rel=1e-12)
    p = np.exp([1, 0, 0]) / np.exp([1, 0, 0]).sum()
    assert measurement.kl_divergence == pytest.approx((p * np.log(3 * p)).sum(), rel=1e-12)


@unhurried
@given(hits=st.lists(st.booleans(), max_size=70))
def test_masks_are_packed_least_significant_bit_first(hits: list[bool]) -> None:
    packed = pack_bits(torch.tensor(hits, dtype=torch.bool))
    assert packed == np.packbits(np.array(hits, dtype=bool), bitorder="little").tobytes()
    unpacked = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    assert unpacked[: len(hits)].tolist() == [int(hit) for hit in hits]
    assert not unpacked[len(hits) :].any()
