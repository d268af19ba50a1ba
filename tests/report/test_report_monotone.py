"""Monotone fits against slow, obviously right ones, and what is read off them."""

import math

import numpy as np
import pytest
from simulated_records import simulate, table_of

from qbw_report.insight.curve import Fitted, curve_findings, fit_curve
from qbw_report.monotone import fit_isotonic, fit_two_lines, isotonic_first_at, meeting_points
from qbw_report.series import add_series


def slow_isotonic(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> dict[float, float]:
    """Return cost -> fit by the max-min formula over all intervals of costs."""
    costs = sorted(set(x[weights > 0]))

    def mean(low: float, high: float) -> float:
        inside = (x >= low) & (x <= high)
        return float((weights * y)[inside].sum() / weights[inside].sum())

    return {c: max(min(mean(a, b) for b in costs if b >= c) for a in costs if a <= c) for c in costs}


@pytest.mark.parametrize("seed", range(20))
def test_isotonic_is_the_max_min_formula(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = np.sort(random.integers(0, 12, 25)).astype(float)
    y, weights = random.normal(size=25) + 0.1 * x, random.integers(0, 3, 25).astype(float)
    found = fit_isotonic(x, y, weights)
    assert dict(zip(found.x, found.y, strict=True)) == pytest.approx(slow_isotonic(x, y, weights))


@pytest.mark.parametrize("seed", range(40))
def test_many_levels_at_once_are_each_read_off_a_whole_fit(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows, fits = int(random.integers(1, 40)), 150
    x = np.sort(random.integers(0, random.integers(1, 60), rows)).astype(float)
    y = random.integers(0, 50, rows) / 50 + 0.02 * x if seed % 2 else random.normal(size=rows) + 0.1 * x
    weights = random.integers(0, 3, (fits, rows)).astype(float)
    weights[weights.sum(axis=1) == 0, 0] = 1
    # Levels between the accuracies, beyond them, and exactly theirs.
    levels = random.choice(y, fits) if seed % 3 == 0 else random.uniform(y.min() - 0.1, y.max() + 0.1, fits)
    expected = [fit_isotonic(x, y, w).first_at(level) for w, level in zip(weights, levels, strict=True)]
    assert isotonic_first_at(x, y, weights, levels) == pytest.approx(expected)


def slow_two_lines(x: np.ndarray, y: np.ndarray, weights: np.ndarray, points: np.ndarray) -> float:
    """Return the smallest sum of squares of two lines with before >= after >= 0 that meet at one of the points."""
    root = np.sqrt(weights)
    best = math.inf
    for k in points:
        left, right = np.minimum(x - k, 0), np.maximum(x - k, 0)
        for columns in ([left, right], [left], [left + right], []):
            design = np.column_stack([np.ones_like(x), *columns])
            solved = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
            before, after = (solved[1], solved[2]) if len(columns) == 2 else (solved[1] if columns else 0.0, 0.0)
            if len(columns) == 2 and not before >= after - 1e-12:
                continue
            if min(before, after) < -1e-12:
                continue
            best = min(best, float((weights * (y - design @ solved) ** 2).sum()))
    return best


@pytest.mark.parametrize("seed", range(20))
def test_two_lines_are_the_best_allowed_ones(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = np.sort(random.uniform(2, 8, 30))
    y = random.choice([-0.1, 0.0, 0.1, 1.0]) * np.minimum(x - 4.5, 0) + random.normal(0, 0.1, 30)
    weights = random.multinomial(30, np.full(30, 1 / 30), size=3).astype(float)
    points = meeting_points(x)
    found = fit_two_lines(x, y, weights, points)
    for fit, weight in enumerate(weights):
        # The parabola moves the knee off the grid; slopes stay those of its grid point, hence a few percent.
        at = found.level[fit] + np.where(x < found.knee[fit], found.before[fit], found.after[fit]) * (
            x - found.knee[fit]
        )
        squares = float((weight * (y - at) ** 2).sum())
        assert squares == pytest.approx(slow_two_lines(x, y, weight, points), rel=0.05)
        assert found.before[fit] >= found.after[fit] >= 0


def test_many_columns_at_once_are_each_alone() -> None:
    random = np.random.default_rng(0)
    x = np.sort(random.uniform(2, 8, 30))
    y = random.normal(size=(4, 30)) + 0.2 * x
    points, once = meeting_points(x), np.ones((1, 30))
    together = fit_two_lines(x, y, once, points)
    alone = [fit_two_lines(x, column, once, points) for column in y]
    assert together.knee == pytest.approx([fit.knee[0] for fit in alone], abs=0.01)
    assert together.bend == pytest.approx([fit.bend[0] for fit in alone])


def test_a_fit_does_not_depend_on_how_many_are_fitted_with_it() -> None:
    random = np.random.default_rng(0)
    x, fits = np.sort(random.uniform(2, 8, 30)), 200  # more than are computed at once
    y, weights, points = random.normal(size=30) + 0.2 * x, random.integers(0, 3, (fits, 30)) + 0.1, meeting_points(x)
    together = fit_two_lines(x, y, weights, points)
    alone = [fit_two_lines(x, y, weights[each : each + 1], points) for each in range(fits)]
    for name in ("knee", "level", "before", "after"):
        assert getattr(together, name) == pytest.approx([getattr(fit, name)[0] for fit in alone], abs=1e-9)


def test_exact_lines_are_found_exactly() -> None:
    x = np.linspace(2, 8, 61)
    y = 0.9 + 0.1 * np.minimum(x - 4.4, 0) + 0.01 * np.maximum(x - 4.4, 0)
    found = fit_two_lines(x, y, np.ones((1, 61)), meeting_points(x))
    assert found.knee[0] == pytest.approx(4.4, abs=0.01)
    assert (found.before[0], found.after[0]) == pytest.approx((0.1, 0.01), rel=0.02)
    assert found.at(x)[0] == pytest.approx(y, abs=0.001)
    assert found.first_at(np.array([0.91]), 2.0)[0] == pytest.approx(5.4, abs=0.05)
    assert found.first_at(np.array([0.8]), 2.0)[0] == pytest.approx(3.4, abs=0.05)
    assert found.first_at(np.array([0.1]), 2.0)[0] == 2.0


def test_the_lowest_cost_at_a_level_lies_on_the_line_between_two_fits() -> None:
    found = fit_isotonic(np.array([2.0, 4.0, 8.0]), np.array([0.5, 0.9, 0.95]), np.ones(3))
    assert found.first_at(0.7) == pytest.approx(3.0)
    assert found.first_at(0.4) == 2.0
    assert found.first_at(0.95) == pytest.approx(8.0)
    assert found.first_at(0.96) == math.inf


def test_a_curve_repeats_and_says_when_there_are_too_few_rows() -> None:
    x = np.linspace(2, 8, 40)
    y = 0.95 - 0.1 * np.maximum(0, 4.5 - x) + np.random.default_rng(0).normal(0, 0.003, 40)
    first, second = (fit_curve(x, y, 0.01, np.random.default_rng(7)) for _ in range(2))
    assert isinstance(first, Fitted)
    assert first == second
    assert first.knee[0] == pytest.approx(4.5, abs=0.2)
    assert first.knee[1] < first.knee[0] < first.knee[2]
    assert first.enough[0] == pytest.approx(4.4, abs=0.2)
    assert fit_curve(x[:11], y[:11], 0.01, np.random.default_rng(7)) == "11 configurations measured, at least 12 needed"
    same = fit_curve(np.ones(40), y, 0.01, np.random.default_rng(7))
    assert same == "the configurations' costs are too much alike"


def test_a_straight_line_has_no_knee() -> None:
    x = np.linspace(2, 8, 60)
    found = fit_curve(x, 0.5 + 0.05 * x + np.random.default_rng(3).normal(0, 0.01, 60), 0.01, np.random.default_rng(0))
    assert isinstance(found, Fitted)
    assert math.isnan(found.knee[0])


def test_a_knee_says_why_it_is_none_of_an_isotonic_fit_and_no_knee_has_no_gain_after_it() -> None:
    rows = add_series(table_of(simulate(epochs=1, configs=40, noise=0.002)).to_pandas())
    bent = curve_findings(rows, "avg_bitwidth", 0.01)
    assert bent.knee.verdict == "knee"
    assert "an isotonic fit bends where noise puts its steps" in bent.knee.method
    assert "points gained after the knee" in bent.plateau.verdict
    random = np.random.default_rng(0)
    flat = curve_findings(rows.assign(accuracy=random.normal(0.9, 0.01, 40)), "avg_bitwidth", 0.01)
    assert (flat.knee.verdict, flat.plateau.verdict) == ("none", "none")
    assert math.isnan(flat.plateau.value)
