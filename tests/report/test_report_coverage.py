"""Intervals cover and readings find the truth on simulated configurations: a share of `python -m benchmarks.coverage`.

What is asked of 1,000 trials (93% to 97%) cannot be asked of so few: each bound below is missed by chance less than
once in a million times where the share is what was asked for, and the numbers are seeded besides.
"""

import pytest
from scipy.stats import binom

from benchmarks.coverage import Share, curve_shares, paired_shares, sensitivity_shares, stability_shares
from benchmarks.simulated_curves import SHAPES

CURVES, OTHERS = 16, 60


def check(share: Share) -> None:
    if share.trials:
        assert share.hits >= binom.ppf(1e-6, share.trials, share.at_least), share.figure().line()


@pytest.mark.parametrize("name", SHAPES)
def test_curves(name: str) -> None:
    for share in curve_shares(name, SHAPES[name], CURVES):
        check(share)


@pytest.mark.parametrize("shares", [sensitivity_shares, stability_shares, paired_shares])
def test_effects_spreads_and_differences(shares: object) -> None:
    for share in shares(OTHERS):  # type: ignore[operator]  # one of three functions
        check(share)


def test_the_check_can_fail() -> None:
    with pytest.raises(AssertionError, match="MISSED"):
        check(Share(name="x", hits=4, trials=16, at_least=0.93))


@pytest.mark.parametrize(
    ("trials", "bounds"), [(1000, (0.93, 0.97)), (4000, (0.93, 0.97)), (250, (0.91, 0.99)), (62, (0.87, 1.0))]
)
def test_bounds_are_for_1000_trials_and_wider_by_chance_for_fewer(trials: int, bounds: tuple[float, float]) -> None:
    figure = Share(name="x", hits=trials, trials=trials, at_least=0.93, at_most=0.97).figure()
    assert (figure.at_least, figure.at_most) == pytest.approx(bounds, abs=0.001)
    assert figure.is_met is (trials < 100)
