"""Accuracy as a function of a cost that never falls: the isotonic fit, and the two lines that describe it best."""

from dataclasses import dataclass, fields

import numpy as np
from scipy.optimize import isotonic_regression

STEPS = 192
"""Where the two lines may meet: so many equal steps of the cost's range, and in between by a parabola."""

EACH_SIDE = 3
"""How many rows a line must rest on, at least."""

_BLOCK = 64
"""So many fits of two lines at once: what lies between the sums then stays in the cache, which halves the time."""


@dataclass(frozen=True, kw_only=True)
class TwoLines:
    """The best pair of lines that meet, never fall, and of which the second is the flatter one; arrays (fits,).

    Attributes:
        knee: where they meet, in the unit of the cost.
        level: the height there.
        before: the slope up to there.
        after: the slope from there on.
        bend: how much of the variance is explained by the lines being two, against what they leave unexplained (an F
            statistic but for a constant).
    """

    knee: np.ndarray
    level: np.ndarray
    before: np.ndarray
    after: np.ndarray
    bend: np.ndarray

    def at(self, x: np.ndarray) -> np.ndarray:
        """Return the height of each fit at costs `x` (n,): (fits, n)."""
        from_knee = x - self.knee[:, None]
        slopes = np.where(from_knee < 0, self.before[:, None], self.after[:, None])
        return np.asarray(self.level[:, None] + slopes * from_knee)

    def first_at(self, level: np.ndarray, lowest: float) -> np.ndarray:
        """Return the lowest cost from `lowest` on at which each fit reaches its level; infinity if it never does."""
        missing = level - self.level
        slope = np.where(missing > 0, self.after, self.before)
        with np.errstate(divide="ignore", invalid="ignore"):
            way = np.where(missing == 0, 0.0, missing / slope)
        way = np.where((slope == 0) & (missing < 0), -np.inf, way)
        return np.asarray(np.maximum(self.knee + way, lowest))


@dataclass(frozen=True, kw_only=True)
class Isotonic:
    """A fit that never falls.

    Attributes:
        x: the costs, ascending, each once: (n,).
        y: the fitted accuracy at each: (n,).
    """

    x: np.ndarray
    y: np.ndarray

    def first_at(self, level: float) -> float:
        """Return the lowest cost at which the fit, joined by straight lines, reaches `level`; infinity if none does."""
        at = int(np.searchsorted(self.y, level - 1e-12))
        if at == len(self.y):
            return np.inf
        if at == 0:
            return float(self.x[0])
        share = (level - self.y[at - 1]) / (self.y[at] - self.y[at - 1])
        return float(self.x[at - 1] + min(max(share, 0.0), 1.0) * (self.x[at] - self.x[at - 1]))


def fit_isotonic(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> Isotonic:
    """Return the non-decreasing function that is closest to `y` (least squares, pool adjacent violators).

    Args:
        x: costs, ascending: (n,).
        y: accuracies: (n,).
        weights: how often each row counts: (n,); rows of weight 0 do not.
    """
    counted = weights > 0
    x, y, weights = x[counted], y[counted], weights[counted]
    starts = np.flatnonzero(np.concatenate([[True], np.diff(x) > 0]))
    if len(starts) < len(x):  # equal costs get one value
        total = np.add.reduceat(weights, starts)
        x, y, weights = x[starts], np.add.reduceat(weights * y, starts) / total, total
    return Isotonic(x=x, y=isotonic_regression(y, weights=weights).x)


def isotonic_first_at(x: np.ndarray, y: np.ndarray, weights: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return `fit_isotonic(x, y, w).first_at(level)` for each of many weightings and levels at once: (fits,).

    No whole fit is needed for it. It reaches a level at the cost from which on `weight * (y - level)` sums to the most
    (an isotonic fit cut at a level is the best of all two-step fits there: van Eeden; Robertson, Wright and Dykstra
    1988, "Order Restricted Statistical Inference", 1.4). There it is the smallest mean of rows from that cost on, and
    before it the largest mean of rows up to it.

    Args:
        x: costs, ascending: (n,).
        y: accuracies: (n,).
        weights: how often each row counts: (fits, n); at least one row of each fit does.
        levels: (fits,).
    """
    starts = np.flatnonzero(np.concatenate([[True], np.diff(x) > 0]))  # equal costs get one value
    blocks = [slice(first, first + _BLOCK) for first in range(0, len(levels), _BLOCK)]
    return np.concatenate([_first_at_block(x[starts], starts, y, weights[each], levels[each]) for each in blocks])


def _first_at_block(
    costs: np.ndarray, starts: np.ndarray, y: np.ndarray, weights: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    weight = np.add.reduceat(weights, starts, axis=1)  # (fits, costs), as everything that has two axes
    height = np.add.reduceat(weights * y, starts, axis=1)
    place, end = np.arange(len(costs)), len(costs)
    excess = height - weight * (levels[:, None] - 1e-12)
    above = excess[:, ::-1].cumsum(axis=1)[:, ::-1]
    tail = place >= above.argmax(axis=1)[:, None]
    after = np.where(tail & (weight > 0), place, end).min(axis=1)
    before = np.where(~tail & (weight > 0), place, -1).max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # no mean of no rows
        means = np.where(tail, height, 0).cumsum(axis=1) / np.where(tail, weight, 0).cumsum(axis=1)
        high = np.fmin.reduce(means, axis=1)
        height, weight = np.where(tail, 0, height)[:, ::-1], np.where(tail, 0, weight)[:, ::-1]
        low = np.fmax.reduce(height.cumsum(axis=1) / weight.cumsum(axis=1), axis=1)
        share = np.clip((levels - low) / (high - low), 0.0, 1.0)
    right = costs[np.minimum(after, end - 1)]
    found = np.where(before < 0, right, costs[before] + share * (right - costs[before]))
    return np.where((above.max(axis=1) >= 0) & (after < end), found, np.inf)


def meeting_points(x: np.ndarray) -> np.ndarray:
    """Return where two lines through rows at `x` (ascending) may meet; empty where either would rest on too few."""
    if len(x) <= 2 * EACH_SIDE:
        return np.empty(0)
    points = x[0] + (x[-1] - x[0]) * np.arange(1, STEPS) / STEPS
    return np.asarray(points[(points > x[EACH_SIDE - 1]) & (points < x[-EACH_SIDE])])


def fit_two_lines(x: np.ndarray, y: np.ndarray, weights: np.ndarray, points: np.ndarray) -> TwoLines:
    """Return the best two lines for each of many weightings, or for each of many columns of accuracies, at once.

    For a meeting point k the lines are `level + before * min(x - k, 0) + after * max(x - k, 0)`, so that the two
    columns never are non-zero together and least squares is a 2x2 system. Where its solution breaks
    `before >= after >= 0`, the best one that does not is a flat second line, or one line for both.

    Args:
        x: costs: (n,).
        y: accuracies: (n,) or (fits, n).
        weights: how often each row counts: (fits, n), or (1, n).
        points: where the lines may meet: (points,), at least one.
    """
    left, right = np.minimum(x[:, None] - points, 0), np.maximum(x[:, None] - points, 0)  # (n, points)
    columns = (left, right, left**2, right**2)
    y = np.atleast_2d(y)
    blocks = [
        _fit_block(_block_of(y, first), _block_of(weights, first), points, columns)
        for first in range(0, max(len(y), len(weights)), _BLOCK)
    ]
    numbers = (field.name for field in fields(TwoLines))
    return TwoLines(**{name: np.concatenate([getattr(block, name) for block in blocks]) for name in numbers})


def _block_of(values: np.ndarray, first: int) -> np.ndarray:
    """Return the lines from `first` on that are fitted together; a single line belongs to all fits."""
    return values[first : first + _BLOCK] if len(values) > 1 else values


def _fit_block(y: np.ndarray, weights: np.ndarray, points: np.ndarray, columns: tuple[np.ndarray, ...]) -> TwoLines:
    """Return `fit_two_lines` of so few fits that the numbers of all their meeting points stay in the cache."""
    left, right, left2, right2 = columns
    count = weights.sum(axis=1)[:, None]
    weighted = weights * y
    mean = weighted.sum(axis=1)[:, None] / count
    total = (weighted * y).sum(axis=1)[:, None] - count * mean**2
    sum_l, sum_r = weights @ left, weights @ right  # (fits, points) or (1, points), as is everything below
    ll, rr = weights @ left2 - sum_l**2 / count, weights @ right2 - sum_r**2 / count
    lr = -sum_l * sum_r / count
    ly, ry = weighted @ left - sum_l * mean, weighted @ right - sum_r * mean
    with np.errstate(divide="ignore", invalid="ignore"):
        determinant = ll * rr - lr**2
        before, after = (ly * rr - ry * lr) / determinant, (ry * ll - ly * lr) / determinant
        # fmax: where all rows lie on one side there is nothing to divide by, and no slope.
        alone = np.fmax(ly / ll, 0.0)  # a flat second line
        single = np.fmax((ly + ry) / (ll + rr + 2 * lr), 0.0)  # one line for both
    one = ~((determinant > 0) & (after <= before))
    flat = ~one & (after < 0)
    before = np.where(one, single, np.where(flat, alone, before))
    after = np.where(one, single, np.where(flat, 0.0, after))
    explained = before * ly + after * ry
    by_one = (single * (ly + ry)).max(axis=1)
    best = explained.argmax(axis=1)
    fits = np.arange(len(best))
    slope_l, slope_r, most = before[fits, best], after[fits, best], explained[fits, best]
    mean_l, mean_r = (np.broadcast_to(part, explained.shape)[fits, best] / count[:, 0] for part in (sum_l, sum_r))
    level = mean[:, 0] - slope_l * mean_l - slope_r * mean_r
    with np.errstate(divide="ignore", invalid="ignore"):
        bend = np.nan_to_num((most - by_one) / np.maximum(total[:, 0] - most, 0.0), posinf=np.inf)
    shift = _vertex(explained, best) * (points[1] - points[0] if len(points) > 1 else 0.0)
    knee = points[best] + shift
    # The level belongs to the grid's point; along the line that is now longer it is a little higher or lower.
    level = level + shift * np.where(shift > 0, slope_r, slope_l)
    return TwoLines(knee=knee, level=level, before=slope_l, after=slope_r, bend=bend)


def _vertex(values: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Return where between its neighbours the parabola through the largest value peaks, from -0.5 to 0.5 steps."""
    fits, last = np.arange(len(best)), values.shape[1] - 1
    before, here, after = (
        values[fits, np.maximum(best - 1, 0)],
        values[fits, best],
        values[fits, np.minimum(best + 1, last)],
    )
    curvature = before - 2 * here + after
    inside = (best > 0) & (best < last) & (curvature < 0)
    return np.where(inside, np.clip(0.5 * (before - after) / np.where(inside, curvature, 1.0), -0.5, 0.5), 0.0)
