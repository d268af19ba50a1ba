"""Rows of one series -> answers: does accuracy follow bitwidth, what is best, how few bits are enough.

Every answer carries its uncertainty, and "cannot tell" is one of them.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qbw_report.insight.cautions import cautions
from qbw_report.insight.curve import curve_findings
from qbw_report.insight.finding import Finding, points
from qbw_report.insight.stability import stability_findings
from qbw_report.insight.thresholds import DEFAULTS, Thresholds
from qbw_report.insight.trend import LEAST_CONFIGS, Trend, find_trend, trend_findings, trend_in_words
from qbw_report.masks import Paired, compare_right, right_samples
from qbw_report.selection import COSTS, last_epoch, strata_of, typical_rows

_Z95 = 1.96  # a normal variable lies within 1.96 standard deviations 95% of the time


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measured configuration.

    Attributes:
        config_id: hash of its bits.
        bitwidths: bits of every quantized layer, in forward order.
        avg_bitwidth: unweighted mean over quantized layers, in bits.
        accuracy: share of samples.
        noise: half width of the accuracy's 95% interval, from the number of samples alone.
    """

    config_id: str
    bitwidths: tuple[int, ...]
    avg_bitwidth: float
    accuracy: float
    noise: float


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the last epoch of one series says.

    Attributes:
        series: name of the series.
        epoch: the epoch, 0-based.
        num_samples: samples that each configuration was measured on (the smallest number, where they differ).
        trend: whether accuracy follows bitwidth.
        best: the configuration of highest accuracy; of equals the one with the fewest bits.
        thresholds: what the readings were made with.
        lowest: the configuration with the lowest average bitwidth within the tolerance of `best`; None where there are
            too few configurations, or all of one bitwidth.
        lowest_against_best: their difference on the same samples; None where there is no `lowest`, or no masks.
        findings: every answer with its interval, method and source.
        cautions: what to know before trusting them, a sentence each.
    """

    series: str
    epoch: int
    num_samples: int
    trend: Trend
    best: Measured
    thresholds: Thresholds
    lowest: Measured | None
    lowest_against_best: Paired | None
    findings: tuple[Finding, ...]
    cautions: tuple[str, ...]

    def finding(self, question: str, cost: str = "avg_bitwidth") -> Finding:
        """Return the answer to a question.

        Raises:
            KeyError: nobody asked it.
        """
        for found in self.findings:
            if (found.question, found.cost) == (question, cost):
                return found
        raise KeyError((question, cost))


def answer(rows: pd.DataFrame, thresholds: Thresholds = DEFAULTS) -> Answers:
    """Return what the last epoch of one series says.

    Args:
        rows: one series, with `series` and `bitwidth_bin`; at least one row.
        thresholds: what the readings are made with.
    """
    last = last_epoch(rows)
    drawn, _ = typical_rows(last)
    best, lowest = best_and_lowest(last, thresholds.tolerance)
    against = None if lowest is None else _paired(last, lowest, best)
    noise = 0.0
    if lowest is not None:
        noise = _measured(lowest).noise if against is None else (against.high - against.low) / 2
    curves = [curve_findings(last, cost, thresholds.tolerance) for cost in COSTS]
    return Answers(
        series=str(best["series"]),
        epoch=int(best["epoch"]),
        num_samples=int(last["num_samples"].min()),
        trend=find_trend(drawn, strata_of(drawn, "avg_bitwidth"), thresholds),
        best=_measured(best),
        thresholds=thresholds,
        lowest=None if lowest is None else _measured(lowest),
        lowest_against_best=against,
        findings=(
            *trend_findings(last, thresholds),
            *(finding for curve in curves for finding in (curve.knee, curve.plateau, curve.enough)),
            *stability_findings(last, thresholds.noisy_ratio),
        ),
        cautions=tuple(cautions(last, thresholds.tolerance, noise)),
    )


def best_and_lowest(rows: pd.DataFrame, tolerance: float) -> tuple[pd.Series, pd.Series | None]:
    """Return the rows of the answers' `best` and `lowest` (see `Answers`) of one epoch of one series."""
    accuracy, bits, names = (rows[name].to_numpy() for name in ("accuracy", "avg_bitwidth", "config_id"))
    best = min(np.flatnonzero(accuracy == accuracy.max()), key=lambda at: (bits[at], names[at]))
    if len(rows) < LEAST_CONFIGS or rows["bitwidth_bin"].nunique() == 1:
        return rows.iloc[best], None
    # The tiny slack keeps a configuration that is exactly `tolerance` worse: subtracting floats would lose it.
    enough = np.flatnonzero(accuracy >= accuracy[best] - tolerance - 1e-12)
    lowest = min(enough, key=lambda at: (bits[at], -accuracy[at], names[at]))
    return rows.iloc[best], rows.iloc[lowest]


def sampling_noise(accuracy: float, num_samples: int) -> float:
    """Return the half width of the 95% interval of an accuracy that was measured on `num_samples` samples.

    Wilson's: the usual `1.96 * sqrt(p * (1 - p) / n)` to three digits in the middle, but not 0 for 0% and 100%.

    >>> round(sampling_noise(0.9, 500), 3)
    0.026
    """
    z2 = _Z95**2
    spread = math.sqrt(accuracy * (1 - accuracy) / num_samples + z2 / (4 * num_samples**2))
    return _Z95 * spread / (1 + z2 / num_samples)


def sentences(answers: Answers) -> list[str]:
    """Return the answers in words, a sentence each. Epochs are counted from 1, as in figure titles."""
    best, lowest = answers.best, answers.lowest
    told = [
        f"{answers.series}, epoch {answers.epoch + 1}: {trend_in_words(answers.trend)}.",
        f"Best accuracy: {_in_words(best)}; ± is the 95% sampling noise of {answers.num_samples:,} samples.",
    ]
    if lowest is not None:
        told.append(f"Fewest bits within {points(answers.thresholds.tolerance)} of the best: {_in_words(lowest)}.")
    paired = answers.lowest_against_best
    if paired is not None and paired.only_first + paired.only_second:
        told.append(
            f"That is {_points(-paired.difference)} points below the best, on the same samples "
            f"(95%: {_points(-paired.high)} to {_points(-paired.low)})."
        )
    told += [*_curve_in_words(answers), *_spread_in_words(answers)]
    return [*told, *answers.cautions]


def _curve_in_words(answers: Answers) -> list[str]:
    """Return where accuracy bends and from where on it is good enough; nothing where that cannot be told."""
    knee, enough = answers.finding("knee"), answers.finding("lowest_cost")
    if answers.trend.unknown and not knee.is_known:
        return []  # that there are too few configurations is said already
    if not knee.is_known:
        return [f"Where more bits stop paying cannot be told: {knee.unknown}."]
    told = []
    if math.isnan(knee.value):
        told.append("Accuracy over bitwidth has no knee that is more than noise.")
    else:
        plateau = answers.finding("plateau")
        told.append(
            f"More bits pay less from {knee.value:.2f} bits on average (95%: {knee.low:.2f} to {knee.high:.2f}); "
            f"{plateau.verdict.removeprefix('none; ')}."
        )
    told.append(
        f"A typical configuration is within {points(answers.thresholds.tolerance)} of those at the top from "
        f"{enough.value:.2f} bits on average (95%: {enough.low:.2f} to {enough.high:.2f})."
    )
    return told


def _spread_in_words(answers: Answers) -> list[str]:
    spread, noise = answers.finding("spread"), answers.finding("noise")
    if not spread.is_known:
        return []
    return [
        f"Configurations of equal bitwidth differ by {_points(spread.value)} points (standard deviation, 95%: "
        f"{_points(spread.low)} to {_points(spread.high)}) beyond the {_points(noise.value)} of the samples' choice: "
        f"{spread.verdict}."
    ]


def _paired(rows: pd.DataFrame, lowest: pd.Series, best: pd.Series) -> Paired | None:
    right = right_samples(rows.loc[[lowest.name, best.name]])
    return None if right is None else compare_right(right[0], right[1])


def _points(share: float) -> str:
    return f"{share * 100:.1f}"


def _measured(row: pd.Series) -> Measured:
    accuracy = float(row["accuracy"])
    return Measured(
        config_id=str(row["config_id"]),
        bitwidths=tuple(int(bits) for bits in row["bitwidths"]),
        avg_bitwidth=float(row["avg_bitwidth"]),
        accuracy=accuracy,
        noise=sampling_noise(accuracy, int(row["num_samples"])),
    )


def _in_words(measured: Measured) -> str:
    return (
        f"{measured.accuracy:.4f} ± {measured.noise:.4f} at {measured.avg_bitwidth:.2f} bits on average "
        f"(configuration {measured.config_id[:8]})"
    )
