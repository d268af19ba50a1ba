"""How much accuracy varies among configurations of equal cost, and how much of that the choice of samples makes."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import chi2, ttest_ind

from qbw_report.insight.curve import LEAST_FOR_CURVE
from qbw_report.insight.finding import Finding, cannot_tell
from qbw_report.masks import noise_variance, unpacked
from qbw_report.monotone import fit_two_lines, meeting_points
from qbw_report.selection import configurations, typical_rows

LEAST_FREEDOM = 8
"""Configurations beyond the first of each bin; with fewer, a standard deviation is known to no better than a half."""

_SPREAD = "mean over bins (0.1 bits wide) of the standard deviation (ddof 0) within; bins of one configuration left out"
_BEYOND = "variance within bins less that of the samples, by {}; 95% by chi-squared with Satterthwaite's freedom"
_BY_MASK = "two-way analysis of variance, configurations by samples"
_BY_BINOMIAL = "the binomial law (no masks; too much, as configurations err on the same samples)"
_OF_SPREAD = ("accuracy", "num_samples", "correct_mask", "correct", "data_id")
_RATIO = "standard deviation about two monotone lines, lower half of the bits against upper; Brown and Forsythe's test"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Variances within bins, pooled over bins.

    Attributes:
        total: variance of the accuracies (ddof 1).
        noise: how much of it the choice of samples makes.
        freedom: configurations beyond the first of each bin.
        effective: how many of equal bins would make `total` as uncertain (Satterthwaite).
        by_mask: whether `noise` comes from the masks of right samples.
    """

    total: float
    noise: float
    freedom: int
    effective: float
    by_mask: bool


def stability_findings(rows: pd.DataFrame, noisy_ratio: float) -> list[Finding]:
    """Return spread within bins, noise, what is left without it, and whether it is larger at low bits.

    Args:
        rows: one epoch of one series, with `bitwidth_bin`.
        noisy_ratio: from how many times the spread at high bits on that at low bits is called larger.
    """
    drawn, source = typical_rows(rows)
    return [*spread_findings(drawn, source), low_bits_finding(drawn, source, noisy_ratio)]


def spread_findings(drawn: pd.DataFrame, source: str) -> list[Finding]:
    """Return spread within bins, noise, and what is left without it, of drawn rows that come from `source`."""
    told = {"cost": "avg_bitwidth", "configs": len(drawn), "source": source}
    return [_stability(drawn, told), *_beyond_noise(drawn, told)]


def _stability(drawn: pd.DataFrame, told: dict[str, object]) -> Finding:
    accuracy = drawn["accuracy"].to_numpy()
    several = [accuracy[rows].std() for rows in drawn.groupby("bitwidth_bin").indices.values() if len(rows) > 1]
    if not several:
        why = "no two configurations in one bin of bitwidth"
        return cannot_tell("stability", why=why, more=len(drawn), method=_SPREAD, **told)  # type: ignore[arg-type]  # the types of `told` differ
    verdict = f"{len(several)} bin{'' if len(several) == 1 else 's'} of 2 or more"
    return Finding(question="stability", value=float(np.mean(several)), verdict=verdict, method=_SPREAD, **told)  # type: ignore[arg-type]  # likewise


def _beyond_noise(drawn: pd.DataFrame, told: dict[str, object]) -> list[Finding]:
    spread = pooled_spread(drawn)
    method = _BEYOND.format(_BY_MASK if spread is None or spread.by_mask else _BY_BINOMIAL)
    if spread is None or spread.freedom < LEAST_FREEDOM:
        found = 0 if spread is None else spread.freedom
        why = f"{configurations(found)} beyond the first of each bin of bitwidth, at least {LEAST_FREEDOM} needed"
        # A bin that has one configuration takes one more; about half of new ones fall into such bins.
        more = 2 * (LEAST_FREEDOM - found)
        return [
            cannot_tell(question, why=why, more=more, method=method, **told)  # type: ignore[arg-type]  # likewise
            for question in ("noise", "spread")
        ]
    value, low, high = beyond_noise(spread)
    verdict = "more than noise" if low > 0 else "not distinguishable from noise"
    return [
        Finding(question="noise", value=math.sqrt(spread.noise), verdict="of the samples", method=method, **told),  # type: ignore[arg-type]  # likewise
        Finding(question="spread", value=value, low=low, high=high, verdict=verdict, method=method, **told),  # type: ignore[arg-type]  # likewise
    ]


def pooled_spread(drawn: pd.DataFrame) -> Spread | None:
    """Return the variances within bins of bitwidth; None where no two configurations share one.

    Args:
        drawn: rows of one epoch of one series, with `bitwidth_bin`.
    """
    freedom, squares, fourths, noise, by_mask = 0, 0.0, 0.0, 0.0, True
    columns = {name: drawn[name].to_numpy() for name in _OF_SPREAD}
    for rows in drawn.groupby("bitwidth_bin").indices.values():
        if len(rows) < 2:
            continue
        accuracy, samples, *masks = (columns[name][rows] for name in _OF_SPREAD)
        more = len(rows) - 1
        variance = float(accuracy.var(ddof=1))
        freedom += more
        squares += more * variance
        # A variance of `more` degrees of freedom has a square that is too large by 1 + 2 / more.
        fourths += more * variance**2 * more / (more + 2)
        right = unpacked(masks[0], masks[1], samples, masks[2])
        if right is None or right.shape[1] < 2:
            noise += more * float((accuracy * (1 - accuracy) / samples).mean())
            by_mask = False
        else:
            noise += more * noise_variance(right)
    if not freedom:
        return None
    effective = min(squares**2 / fourths, freedom) if fourths else float(freedom)
    return Spread(
        total=squares / freedom, noise=noise / freedom, freedom=freedom, effective=max(effective, 1.0), by_mask=by_mask
    )


def beyond_noise(spread: Spread) -> tuple[float, float, float]:
    """Return the standard deviation that is left without the noise, with its 95% interval."""
    low, high = (spread.effective / chi2.ppf(share, spread.effective) * spread.total for share in (0.975, 0.025))
    value, low, high = (math.sqrt(max(variance - spread.noise, 0.0)) for variance in (spread.total, low, high))
    return value, low, high


def low_bits_finding(drawn: pd.DataFrame, source: str, noisy_ratio: float) -> Finding:
    """Return how many times more accuracy varies in the lower half of bitwidths than in the upper.

    It is called more variable there from `noisy_ratio` on, where that is more than chance.
    """
    told = {"cost": "avg_bitwidth", "configs": len(drawn), "method": _RATIO, "source": source}
    x, y = drawn["avg_bitwidth"].to_numpy(dtype=float), drawn["accuracy"].to_numpy(dtype=float)
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    points = meeting_points(x) if len(x) >= LEAST_FOR_CURVE else np.empty(0)
    if not len(points):
        why = f"{configurations(len(x))} measured, at least {LEAST_FOR_CURVE} of different bitwidths needed"
        return cannot_tell("low_bits", why=why, more=max(LEAST_FOR_CURVE - len(x), 0), **told)  # type: ignore[arg-type]  # the types of `told` differ
    residuals = y - fit_two_lines(x, y, np.ones((1, len(x))), points).at(x)[0]
    half = len(x) // 2
    low, high = residuals[:half], residuals[half:]
    if not high.std() or not low.std():
        ratio, p_value = (1.0, 1.0) if high.std() == low.std() else (math.inf if low.std() else 0.0, 0.0)
    else:
        ratio = float(low.std() / high.std())
        away = (np.abs(low - np.median(low)), np.abs(high - np.median(high)))
        p_value = float(ttest_ind(*away, equal_var=False).pvalue)
    sure = p_value < 0.05
    verdict = "more variable at low bits" if sure and ratio >= noisy_ratio else "no more variable at low bits"
    return Finding(question="low_bits", value=ratio, verdict=f"{verdict} (p = {p_value:.2g})", **told)  # type: ignore[arg-type]  # likewise
