"""Correlations: the fast intervals against slow ones, and what has none."""

import math

import numpy as np
import pytest
from scipy.stats import rankdata, t

from qbw_report.correlation import pearson, pearson_interval, spearman_interval


def slow_jackknife(x: np.ndarray, y: np.ndarray, ranks: bool) -> tuple[float, float]:
    """Return the interval on Fisher's z, leaving out row after row and computing the correlation anew."""

    def z(rows: np.ndarray) -> float:
        a, b = (rankdata(values[rows]) if ranks else values[rows] for values in (x, y))
        return math.atanh(float(np.corrcoef(a, b)[0, 1]))

    n = len(x)
    without = np.array([z(np.delete(np.arange(n), row)) for row in range(n)])
    half = t.ppf(0.975, n - 2) * math.sqrt((n - 1) * without.var())
    center = z(np.arange(n))
    return math.tanh(center - half), math.tanh(center + half)


@pytest.mark.parametrize("seed", range(10))
def test_pearson_interval_is_the_jackknife(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=40)
    y = 0.7 * x + random.normal(size=40)
    found = pearson_interval(x, y)
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    low, high = slow_jackknife(x, y, ranks=False)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.002)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("decimals", [1, 9])  # with ties and without
def test_spearman_interval_is_near_the_jackknife(seed: int, decimals: int) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=80).round(decimals)
    y = (0.7 * x + random.normal(size=80)).round(decimals)
    found = spearman_interval(x, y)
    assert found.value == pytest.approx(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
    assert (found.low, found.high) == pytest.approx(slow_jackknife(x, y, ranks=True), abs=0.04)


@pytest.mark.parametrize("find", [pearson_interval, spearman_interval])
def test_rows_that_are_spread_evenly_are_known_better(find: object) -> None:
    x = np.linspace(2, 8, 60)
    y = x + np.random.default_rng(0).normal(0, 0.5, 60)
    drawn, spread = find(x, y), find(x, y, x)  # type: ignore[operator]  # one of two functions
    assert drawn.value == spread.value
    assert drawn.low < spread.low < spread.value < spread.high < drawn.high


@pytest.mark.parametrize("find", [pearson_interval, spearman_interval])
@pytest.mark.parametrize(
    ("x", "y", "value"),
    [([], [], math.nan), ([1, 2], [1, 2], math.nan), ([1, 1, 1], [1, 2, 3], math.nan), ([1, 2, 3, 4], [2, 4, 6, 8], 1)],
)
def test_too_few_rows_have_no_interval(find: object, x: list[float], y: list[float], value: float) -> None:
    found = find(np.array(x, float), np.array(y, float))  # type: ignore[operator]  # one of two functions
    assert found.value == pytest.approx(value, nan_ok=True)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("find", [pearson_interval, spearman_interval])
def test_a_perfect_correlation_stays_within_one(find: object) -> None:
    found = find(np.arange(9.0), 2 * np.arange(9.0))  # type: ignore[operator]  # one of two functions
    assert found.value == pytest.approx(1)
    assert found.low <= 1
    assert found.high <= 1


def test_pearson_of_a_constant_does_not_exist() -> None:
    assert math.isnan(pearson(np.arange(5.0), np.ones(5)))
