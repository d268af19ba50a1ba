"""Does accuracy follow bitwidth, or another cost."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from qbw_report.correlation import Correlation, pearson_interval, spearman_interval
from qbw_report.insight.finding import Finding, cannot_tell
from qbw_report.insight.thresholds import DEFAULTS, Thresholds
from qbw_report.selection import COSTS, configurations, cost_missing, strata_of, typical_rows

Reading = Literal["strong positive", "positive", "flat", "negative", "cannot tell"]

LEAST_CONFIGS = 5
"""With fewer configurations no trend can be told (the seed document asks for 4 to 5)."""

_PEARSON = "Pearson's r; 95% by the jackknife on Fisher's z"
_SPEARMAN = "Spearman's rho; 95% by its influence function on Fisher's z"


@dataclass(frozen=True, kw_only=True)
class Trend:
    """Whether accuracy follows bitwidth.

    Attributes:
        configs: how many configurations say so.
        correlation: Pearson's, of average bitwidth and accuracy; NaN where it does not exist.
        low: lower end of its 95% interval; NaN where there is none.
        high: upper end of it.
        reading: what the correlation amounts to.
        unknown: why it cannot be told; empty where it can.
        more: about how many more configurations it would take; 0 where it can be told.
    """

    configs: int
    correlation: float
    low: float
    high: float
    reading: Reading
    unknown: str
    more: int


def find_trend(rows: pd.DataFrame, strata: np.ndarray | None = None, thresholds: Thresholds = DEFAULTS) -> Trend:
    """Return whether accuracy follows bitwidth in these rows.

    Args:
        rows: configurations of one epoch, with `avg_bitwidth`, `accuracy` and `bitwidth_bin`; at least one row.
        strata: what the sampler spread evenly; see `qbw_report.correlation`.
        thresholds: what is called strong, and what flat.
    """
    correlation = pearson_interval(rows["avg_bitwidth"].to_numpy(), rows["accuracy"].to_numpy(), strata)
    unknown, more = "", 0
    if len(rows) < LEAST_CONFIGS:
        unknown = f"{configurations(len(rows))} measured, at least {LEAST_CONFIGS} needed"
        more = LEAST_CONFIGS - len(rows)
    elif rows["bitwidth_bin"].nunique() == 1:
        unknown = f"every configuration averages {rows['bitwidth_bin'].iloc[0]:.1f} bits"
    else:
        unknown, more = _unsure(correlation, len(rows), thresholds)
    return Trend(
        configs=len(rows),
        correlation=correlation.value,
        low=correlation.low,
        high=correlation.high,
        reading="cannot tell" if unknown else read_correlation(correlation.value, thresholds),
        unknown=unknown,
        more=more,
    )


def read_correlation(correlation: float, thresholds: Thresholds) -> Reading:
    """Return what a correlation of average bitwidth and accuracy amounts to.

    With the thresholds strong 0.7 and flat 0.3:

    | correlation    | reading         |
    |----------------|-----------------|
    | 0.7 to 1       | strong positive |
    | 0.3 to 0.7     | positive        |
    | -0.3 to 0.3    | flat            |
    | -1 to -0.3     | negative        |
    | NaN            | flat            |

    NaN is flat because a trend is asked for only where bitwidths differ, so that accuracy was the constant one.
    """
    if correlation >= thresholds.strong:
        return "strong positive"
    if correlation >= thresholds.flat:
        return "positive"
    return "negative" if correlation <= -thresholds.flat else "flat"


def _unsure(correlation: Correlation, configs: int, thresholds: Thresholds) -> tuple[str, int]:
    """Return why the sign of a correlation is not known, and how many more configurations it takes; "" where it is."""
    more = _configs_missing(correlation, configs, thresholds)
    if not more:
        return "", 0
    interval = f"95% interval {correlation.low:.2f} to {correlation.high:.2f}"
    return f"r = {correlation.value:.2f}, {interval}; evaluate about {more} more", more


def _configs_missing(correlation: Correlation, configs: int, thresholds: Thresholds) -> int:
    """Return about how many more configurations it takes until the sign is known; 0 where it is, or the trend is flat.

    A flat one is known once its interval excludes strong correlations.
    """
    if math.isnan(correlation.low):
        return 0
    if abs(correlation.value) < thresholds.flat:
        known = correlation.low > -thresholds.strong and correlation.high < thresholds.strong
        aim = thresholds.strong - abs(correlation.value)
    else:
        known = correlation.low > 0 or correlation.high < 0
        aim = abs(correlation.value)
    # An interval shrinks with the square root of the number of rows.
    half = max(correlation.high - correlation.value, correlation.value - correlation.low)
    return 0 if known else max(math.ceil(configs * (half / aim) ** 2) - configs, 1)


def trend_findings(rows: pd.DataFrame, thresholds: Thresholds) -> list[Finding]:
    """Return both correlations of accuracy with each cost, of the drawn rows of one epoch, read by the thresholds."""
    drawn, source = typical_rows(rows)
    return [finding for cost in COSTS for finding in correlation_findings(drawn, source, cost, thresholds)]


def correlation_findings(
    drawn: pd.DataFrame, source: str, cost: str, thresholds: Thresholds = DEFAULTS
) -> list[Finding]:
    """Return Pearson's and Spearman's correlation of accuracy with a cost, of drawn rows that come from `source`."""
    accuracy = drawn["accuracy"].to_numpy(dtype=float)
    x, strata = drawn[cost].to_numpy(dtype=float), strata_of(drawn, cost)
    findings = []
    for question, find, method in (
        ("pearson", pearson_interval, _PEARSON),
        ("spearman", spearman_interval, _SPEARMAN),
    ):
        why, more = cost_missing(drawn, cost), 0
        if not why and len(drawn) < LEAST_CONFIGS:
            why = f"{configurations(len(drawn))} measured, at least {LEAST_CONFIGS} needed"
            more = LEAST_CONFIGS - len(drawn)
        if why:
            findings.append(
                cannot_tell(question, cost, why, more=more, configs=len(drawn), method=method, source=source)
            )
            continue
        found = find(x, accuracy, strata)
        if np.ptp(x) == 0:
            why, more = "every configuration costs the same", 0
        else:
            why, more = _unsure(found, len(drawn), thresholds)
        findings.append(
            Finding(
                question=question,
                cost=cost,
                value=found.value,
                low=found.low,
                high=found.high,
                verdict="cannot tell" if why else read_correlation(found.value, thresholds),
                unknown=why,
                more=more,
                configs=len(drawn),
                method=method + ("" if strata is None else ", rows spread evenly"),
                source=source,
            )
        )
    return findings


def trend_in_words(trend: Trend) -> str:
    """Return in a few words whether accuracy follows bitwidth."""
    if trend.unknown:
        return f"cannot tell whether accuracy follows bitwidth ({trend.unknown})"
    words = {
        "strong positive": "accuracy rises with bitwidth (strong positive correlation",
        "positive": "accuracy tends to rise with bitwidth (positive correlation",
        "flat": "accuracy hardly depends on bitwidth (flat",
        "negative": "accuracy falls with bitwidth (negative correlation",
    }[trend.reading]
    r = "every accuracy is equal" if math.isnan(trend.correlation) else f"r = {trend.correlation:.2f}"
    return f"{words}, {r}, {trend.configs} configurations)"
