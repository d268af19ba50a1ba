"""The curve of accuracy over cost: where it bends, from where on nothing is gained, from where on it is good enough.

All three are about typical configurations (the mean at a cost), not about the best that can be built at it.

How the intervals were chosen (tests/report/test_report_coverage.py has the trials). The bends of an isotonic fit are
where noise puts its steps, and bootstrapping one at a point is known to fail (Kosorok 2008); the meeting point of two
monotone lines is a smooth function of the rows, and its bootstrap covers. Nor is what an isotonic fit gains after the
knee told beside it: its last steps lean to the highest rows, so that on a plateau with 0.8 points of noise it gains 0.9
points on average (64 configurations), the two lines 0.2. For the lowest sufficient cost the isotonic fit gives the
value; at the very corner of a plateau it comes late, so the interval begins where either of the two fits may. There
its other end is never too low, and all of the 5% that it may miss is left to its beginning: the two lines' bound is a
one-sided one.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from qbw_report.insight.finding import Finding, cannot_tell, points
from qbw_report.monotone import fit_isotonic, fit_two_lines, isotonic_first_at, meeting_points
from qbw_report.resampling import MOST_ROWS, RESAMPLES, generator, percentile_interval, resampled_weights
from qbw_report.selection import configurations, cost_missing, typical_rows
from schemas.columns import by_name
from schemas.records import RECORD_COLUMNS

LEAST_FOR_CURVE = 12
"""With fewer configurations the two lines, which have four numbers, follow the noise."""

CERTAIN = 0.01
"""A knee is reported where one line would look so bent less often than this."""

TOP_SHARE = 0.2
"""The upper fifth of the costs measured: what accuracy there is, is what more bits can give."""

_LEAST_AT_TOP = 3

_UNITS = {name: column.unit for name, column in by_name(RECORD_COLUMNS).items()}
_KNEE = (
    "two monotone lines (an isotonic fit bends where noise puts its steps, and a bootstrap of them fails); bootstrap "
    "of configurations; none where one line may look so bent (wild bootstrap)"
)
_PLATEAU = "gain from the knee to the highest cost, by the same two lines and bootstrap"
_ENOUGH = "isotonic fit against the mean of the upper fifth of costs; bootstrap of isotonic fit and two lines"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What accuracy over one cost looks like; see the module.

    Attributes:
        knee: where two lines meet that describe it best; infinity where one does.
        plateau: whether less than the tolerance is gained after it.
        enough: from where on typical accuracy is within the tolerance of that at the top.
    """

    knee: Finding
    plateau: Finding
    enough: Finding


def curve_findings(rows: pd.DataFrame, cost: str, tolerance: float) -> Curve:
    """Return knee, plateau and lowest sufficient cost of the drawn rows of one epoch of one series."""
    return curve_of(*typical_rows(rows), cost, tolerance)


def curve_of(drawn: pd.DataFrame, source: str, cost: str, tolerance: float) -> Curve:
    """Return knee, plateau and lowest sufficient cost of drawn rows that come from `source`."""
    x, y = drawn[cost].to_numpy(dtype=float), drawn["accuracy"].to_numpy(dtype=float)
    found: Fitted | str = cost_missing(drawn, cost)
    more = 0
    if not found:
        found = fit_curve(x, y, tolerance, generator("curve", str(drawn["series"].iloc[0]), cost))
        more = max(LEAST_FOR_CURVE - len(drawn), 0)
    told = {"cost": cost, "configs": len(drawn), "source": source}
    if isinstance(found, str):
        named = (("knee", _KNEE), ("plateau", _PLATEAU), ("lowest_cost", _ENOUGH))
        knee, plateau, enough = (cannot_tell(q, why=found, more=more, method=m, **told) for q, m in named)  # type: ignore[arg-type]  # the types of `told` differ
        return Curve(knee=knee, plateau=plateau, enough=enough)
    unit = _UNITS[cost]
    none = np.isnan(found.knee[0])
    gain, _, most = found.gain
    level = "none" if none or gain >= tolerance else "plateau" if most < tolerance else "plateau likely"
    begins = (np.nan,) * 3 if level == "none" else found.knee
    return Curve(
        knee=_finding("knee", found.knee, unit, "none" if none else "knee", _KNEE, told),
        plateau=_finding("plateau", begins, unit, level if none else _with_gain(level, found), _PLATEAU, told),
        enough=_finding("lowest_cost", found.enough, unit, f"within {points(tolerance)} of the top", _ENOUGH, told),
    )


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Value and 95% interval of what a curve says; NaN where there is none.

    Attributes:
        knee: cost.
        gain: accuracy that the fit gains from the knee to the highest cost.
        enough: cost.
        p_value: how often one line would look so bent.
    """

    knee: tuple[float, float, float]
    gain: tuple[float, float, float]
    enough: tuple[float, float, float]
    p_value: float


def fit_curve(
    x: np.ndarray, y: np.ndarray, tolerance: float, random: np.random.Generator, resamples: int = RESAMPLES
) -> Fitted | str:
    """Return knee, gain after it and lowest sufficient cost, or why they cannot be told.

    Args:
        x: costs: (n,).
        y: accuracies: (n,).
        tolerance: accepted loss of accuracy, as a share.
        random: what the resamples are drawn with.
        resamples: how many.
    """
    if len(x) < LEAST_FOR_CURVE:
        return f"{configurations(len(x))} measured, at least {LEAST_FOR_CURVE} needed"
    if len(x) > MOST_ROWS:
        kept = random.choice(len(x), MOST_ROWS, replace=False)
        x, y = x[kept], y[kept]
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    points = meeting_points(x)
    if not len(points):
        return "the configurations' costs are too much alike"
    top = x >= min(x[-1] - TOP_SHARE * (x[-1] - x[0]), x[-_LEAST_AT_TOP])
    once = np.ones((1, len(x)))
    lines = fit_two_lines(x, y, once, points)
    p_value = _chance_of_bend(x, y, float(lines.bend[0]), points, random, resamples)
    weights = resampled_weights(len(x), random, resamples)
    weights = weights[(weights[:, top].sum(axis=1) > 0) & ((weights > 0).sum(axis=1) > 3)]
    resampled = fit_two_lines(x, y, weights, points)
    gains = resampled.after * np.maximum(x[-1] - resampled.knee, 0)
    gain = float(lines.after[0] * max(x[-1] - lines.knee[0], 0))
    levels = weights[:, top] @ y[top] / weights[:, top].sum(axis=1) - tolerance
    enough = fit_isotonic(x, y, once[0]).first_at(float(y[top].mean()) - tolerance)
    by_steps = isotonic_first_at(x, y, weights, levels)
    fitted_levels = (weights[:, top] * resampled.at(x[top])).sum(axis=1) / weights[:, top].sum(axis=1) - tolerance
    by_lines = resampled.first_at(fitted_levels, x[0])
    low, high = percentile_interval(by_steps, len(x), 3)
    low = min(low, percentile_interval(by_lines, len(x), 4, outside=0.1)[0], enough)
    nothing = (np.nan, np.nan, np.nan)
    bent = p_value < CERTAIN and lines.before[0] > lines.after[0]
    return Fitted(
        knee=(float(lines.knee[0]), *percentile_interval(resampled.knee, len(x), 4)) if bent else nothing,
        gain=(gain, *percentile_interval(gains, len(x), 4)),
        enough=(enough, low, max(min(high, float(x[-1])), enough)),
        p_value=p_value,
    )


def _chance_of_bend(
    x: np.ndarray, y: np.ndarray, bend: float, points: np.ndarray, random: np.random.Generator, resamples: int
) -> float:
    """Return how often rows that lie about one rising line look at least so bent, by a wild bootstrap.

    Every residual keeps its size and gets a random sign, so that a range where accuracy is noisier stays the noisier.
    """
    centered = x - x.mean()
    slope = max(float(centered @ y / (centered @ centered)), 0.0)
    fitted = y.mean() + slope * centered
    leverage = 1 / len(x) + centered**2 / (centered @ centered)
    residuals = (y - fitted) / np.sqrt(1 - leverage)
    signs = random.choice(np.array([-1.0, 1.0]), size=(resamples, len(x)))
    bends = fit_two_lines(x, fitted + residuals * signs, np.ones((1, len(x))), points).bend
    return float((1 + (bends >= bend).sum()) / (1 + resamples))


def _finding(
    question: str, found: tuple[float, ...], unit: str, verdict: str, method: str, told: dict[str, object]
) -> Finding:
    value, low, high = found
    return Finding(
        question=question,
        value=value,
        low=low,
        high=high,
        unit=unit,
        verdict=verdict,
        method=method,
        **told,  # type: ignore[arg-type]  # the types of `told` differ
    )


def _with_gain(verdict: str, found: Fitted) -> str:
    gain, low, high = (100 * value for value in found.gain)
    return f"{verdict}; {gain:.1f} points gained after the knee ({low:.1f} to {high:.1f})"
