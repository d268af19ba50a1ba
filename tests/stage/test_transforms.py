"""What is done to raw samples, against arithmetic that is done one number at a time."""

import cmath
import doctest
import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from qbw_eval.data import transforms
from qbw_eval.data.transforms import Moments, merged, moments_of, normalized, segmented, spectrum
from qbw_eval.settings.data import NormalizationSettings


def test_the_examples_in_docstrings_run() -> None:
    results = doctest.testmod(transforms)
    assert (results.failed, results.attempted) == (0, 4), results


def parts_of(values: Sequence[float], seed: int) -> list[Sequence[float]]:
    """Return the values in parts of random lengths, in order."""
    source, parts, position = random.Random(seed), [], 0
    while position < len(values):
        length = source.randint(1, 40)
        parts.append(values[position : position + length])
        position += length
    return parts


@pytest.mark.parametrize("seed", range(20))
def test_moments_of_parts_are_those_of_the_whole(seed: int) -> None:
    source = random.Random(seed)
    centre, width = 10 ** source.uniform(-3, 4), 10 ** source.uniform(0, 3)
    drawn = torch.tensor([source.gauss(centre, width) for _ in range(source.randint(2, 900))])
    values = [float(value) for value in drawn]
    total: Moments | None = None
    for part in parts_of(values, seed):
        one = moments_of(torch.tensor(part))
        total = one if total is None else merged(total, one)
    assert total is not None
    assert total.count == len(values)
    assert (total.minimum, total.maximum) == (min(values), max(values))
    # statistics counts with fractions, so exactly; the float64 mean's own rounding is what is left.
    assert total.mean == pytest.approx(statistics.fmean(values), rel=1e-13)
    assert total.std == pytest.approx(statistics.stdev(values), rel=1e-9)
    assert total.std == pytest.approx(torch.tensor(values, dtype=torch.float64).std().item(), rel=1e-9)


def test_large_offsets_do_not_drown_small_deviations() -> None:
    # The difference of the mean square and the squared mean has no digit left here.
    total = moments_of(torch.tensor([1e7, 1e7 + 1]))
    for _ in range(999):
        total = merged(total, moments_of(torch.tensor([1e7, 1e7 + 1])))
    assert total.mean == 1e7 + 0.5
    assert total.std == pytest.approx(0.5, rel=1e-3)


def test_moments_do_not_depend_on_torchs_threads() -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * 1e3
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(moments_of(values))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], (1.0, 1.0, 3.0)),
        ([3.0, 3.0], (1.0, 1.0, 3.0)),
        ([0.0, 0.0], (1.0, 1.0, 1.0)),
        ([0.0, 9e-9], (1.0, 1.0, 1.0)),
        ([0.0, 2e-8], (math.sqrt(2) * 1e-8, 2e-8, 2e-8)),
        ([-4.0, 2.0], (math.sqrt(18), 6.0, 4.0)),
    ],
)
def test_what_is_no_scale_becomes_1(values: list[float], expected: tuple[float, float, float]) -> None:
    moments = moments_of(torch.tensor(values))
    assert (moments.std, moments.value_range, moments.max_abs) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("method", "ends", "expected"),
    [
        ("none", [0, 1], [-2.0, 0.0, 6.0]),
        ("standard", [0, 1], [-1.5, -1.0, 0.5]),
        ("minmax", [0, 1], [0.0, 0.2, 0.8]),
        ("minmax", [-1, 3], [-1.0, -0.2, 2.2]),
        ("maxabs", [0, 1], [-0.25, 0.0, 0.75]),
    ],
)
def test_normalization_is_its_formula(method: Any, ends: list[float], expected: list[float]) -> None:
    settings = NormalizationSettings(method=method, minmax_range=(float(ends[0]), float(ends[1])))
    moments = Moments(count=9, mean=4.0, squares=128.0, minimum=-2.0, maximum=8.0)  # std 4, range 10, max_abs 8
    found = normalized(torch.tensor([[-2.0, 0.0, 6.0]]), settings, moments)
    assert found.dtype == torch.float32
    assert found.tolist()[0] == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(2, 24), (2, 3, 8), (2, 1, 24)])
def test_segments_follow_each_other(shape: tuple[int, ...]) -> None:
    batch = torch.arange(48.0).reshape(shape)
    found = segmented(batch, 6)
    assert found.shape == (2, 1, 6, 4)
    for sample in range(2):
        for segment in range(6):
            first = sample * 24 + segment * 4
            assert found[sample, 0, segment].tolist() == [first, first + 1, first + 2, first + 3]


def test_what_has_segments_is_left_alone() -> None:
    batch = torch.rand(2, 3, 4, 5)
    assert segmented(batch, 7) is batch
    assert segmented(batch, None) is batch


@pytest.mark.parametrize(
    ("shape", "count", "sentence"),
    [
        ((2, 25), 6, "a sample of shape (25,), whose 25 values cannot be cut into data.num_segments: 6"),
        (
            (2, 24),
            None,
            "a sample of shape (24,), which has no segments; expected (channels, segments, values), "
            "or data.num_segments, which says how many to cut it into",
        ),
        (
            (2, 1, 1, 1, 1),
            1,
            "a sample of shape (1, 1, 1, 1); expected (channels, segments, values) or fewer dimensions",
        ),
    ],
)
def test_what_cannot_be_segmented_says_why(shape: tuple[int, ...], count: int | None, sentence: str) -> None:
    with pytest.raises(ValueError, match="a sample of shape") as error:
        segmented(torch.zeros(shape), count)
    assert str(error.value) == sentence


@pytest.mark.parametrize("length", [1, 2, 5, 16])
def test_a_spectrum_is_its_sum_of_rotations(length: int) -> None:
    batch = torch.randn(2, 3, 2, length, generator=torch.Generator().manual_seed(length))
    found = spectrum(batch)
    assert found.shape == (2, 6, 2, length)
    assert found.dtype == torch.float32
    for sample in range(2):
        for channel in range(3):
            for segment in range(2):
                values = batch[sample, channel, segment].tolist()
                for bin_ in range(length):
                    exact = sum(
                        value * cmath.exp(-2j * cmath.pi * bin_ * position / length)
                        for position, value in enumerate(values)
                    )
                    real, imaginary = found[sample, 2 * channel : 2 * channel + 2, segment, bin_].tolist()
                    assert complex(real, imaginary) == pytest.approx(exact, abs=1e-5)
