"""Forecasts by hand: what a probe is extrapolated to, and how it is put into words."""

import doctest
import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbw_eval.commands import dry_run
from qbw_eval.commands.dry_run import in_bytes, in_time
from qbw_eval.forecast import Probe
from qbw_eval.memory import parse_size

PROBE = Probe(
    samples=10,
    configurations=4,
    seconds=3.0,
    constant_s=1.0,
    starting_s=5.0,
    reference_s=1.5,
    reference_bytes=0,
    batch_size=20,
    measurements=(),
)


def test_batches_cost_a_constant_and_so_much_a_sample() -> None:
    assert PROBE.seconds_of(10) == 3.0
    assert PROBE.seconds_of(20) == 1.0 + 2 * 2.0
    # Two batches of 20 samples and one of 5; 8 configurations are two chunks; the reference is half as long as one.
    assert PROBE.seconds_for(45, 8) == pytest.approx(5.0 + (2 + 0.5) * (2 * 5.0 + 2.0))
    assert replace(PROBE, constant_s=0.0).seconds_for(40, 4) == pytest.approx(5.0 + 1.5 * 40 * 0.3)


@given(configurations=st.integers(1, 500), samples=st.lists(st.integers(1, 500), min_size=2, max_size=2, unique=True))
def test_more_takes_longer(configurations: int, samples: list[int]) -> None:
    fewer, more = sorted(samples)
    assert PROBE.seconds_for(fewer, configurations) < PROBE.seconds_for(more, configurations)
    assert PROBE.seconds_for(fewer, configurations) < PROBE.seconds_for(fewer, configurations + 1)


@pytest.mark.parametrize(
    ("seconds", "constant"),
    [
        (3.0, 1.0),  # 10 samples in 3 s, 5 in 2 s: 0.2 s each, and a second
        (4.0, 0.0),  # twice as many took twice as long
        (9.0, 0.0),  # even longer: a disturbance, since nothing is saved by smaller batches
        (2.0, 2.0),  # no longer
        (1.0, 1.0),  # even shorter
    ],
)
def test_the_constant_is_what_two_batches_of_different_size_say(seconds: float, constant: float) -> None:
    smaller, larger = replace(PROBE, samples=5, seconds=2.0), replace(PROBE, seconds=seconds)
    assert larger.after(smaller).constant_s == pytest.approx(constant)


def test_the_words_in_docstrings_are_true() -> None:
    results = doctest.testmod(dry_run)
    assert (results.failed, results.attempted) == (0, 3)


@given(seconds=st.floats(1, 10**8))
def test_times_in_words_are_at_most_a_sixth_wrong(seconds: float) -> None:
    about, value, unit = in_time(seconds).split()
    size = {"s": 1, "min": 60, "h": 3600, "days": 86400}[unit]
    assert about == "about"
    assert float(value) * size == pytest.approx(seconds, rel=1 / 6)


@given(size=st.integers(0, 10**15))
def test_bytes_in_words_are_read_as_about_as_many(size: int) -> None:
    assert parse_size(in_bytes(size).removesuffix(" B")) == pytest.approx(size, rel=0.06)


def test_longer_is_never_called_shorter() -> None:
    sizes = {"s": 1, "min": 60, "h": 3600, "days": 86400}
    said = [in_time(seconds / 10).split() for seconds in range(10, 100_000)]
    told = [float(value) * sizes[unit] for _, value, unit in said]
    assert all(a <= b + 0.1 * b for a, b in itertools.pairwise(told))
