"""Rows of one series -> answers: does accuracy follow bitwidth, what is best, how few bits are enough.

Every answer carries its uncertainty, and "cannot tell" is one of them.
"""

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from qbw_report.statistics import pearson

Reading = Literal["strong positive", "positive", "flat", "negative", "cannot tell"]

STRONG_CORRELATION = 0.7
"""From here on a correlation is called strong: bitwidth then explains about half of accuracy's variance (0.7 ** 2)."""

FLAT_CORRELATION = 0.3
"""Below this, bitwidth explains less than a tenth of accuracy's variance."""

TOLERANCE = 0.01
"""How much accuracy one is willing to lose for fewer bits: one point."""

LEAST_CONFIGS = 5
"""With fewer configurations no trend can be told (the seed document asks for 4 to 5)."""

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
class Trend:
    """Whether accuracy follows bitwidth.

    Attributes:
        configs: how many configurations say so.
        correlation: Pearson's, of average bitwidth and accuracy; NaN where it does not exist.
        reading: what the correlation amounts to.
        unknown: why it cannot be told; empty where it can.
    """

    configs: int
    correlation: float
    reading: Reading
    unknown: str


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the last epoch of one series says.

    Attributes:
        series: name of the series.
        epoch: the epoch, 0-based.
        num_samples: samples that each configuration was measured on (the smallest number, where they differ).
        trend: whether accuracy follows bitwidth.
        best: the configuration of highest accuracy; of equals the one with the fewest bits.
        tolerance: the loss of accuracy against `best` that is accepted, as a share.
        lowest: the configuration with the lowest average bitwidth within `tolerance` of `best`; None where the trend
            cannot be told.
    """

    series: str
    epoch: int
    num_samples: int
    trend: Trend
    best: Measured
    tolerance: float
    lowest: Measured | None


def answer(rows: pd.DataFrame, tolerance: float = TOLERANCE) -> Answers:
    """Return what the last epoch of one series says.

    Args:
        rows: one series, with `series` and `bitwidth_bin`; at least one row.
        tolerance: accepted loss of accuracy, as a share (0.01 is one point).
    """
    last = rows[rows["epoch"] == rows["epoch"].max()]
    trend = find_trend(last)
    best = last.sort_values(["accuracy", "avg_bitwidth", "config_id"], ascending=[False, True, True]).iloc[0]
    # The tiny slack keeps a configuration that is exactly `tolerance` worse, which subtraction in floats would lose.
    enough = last[last["accuracy"] >= best["accuracy"] - tolerance - 1e-12]
    lowest = enough.sort_values(["avg_bitwidth", "accuracy", "config_id"], ascending=[True, False, True]).iloc[0]
    return Answers(
        series=str(best["series"]),
        epoch=int(best["epoch"]),
        num_samples=int(last["num_samples"].min()),
        trend=trend,
        best=_measured(best),
        tolerance=tolerance,
        lowest=None if trend.unknown else _measured(lowest),
    )


def find_trend(rows: pd.DataFrame) -> Trend:
    """Return whether accuracy follows bitwidth in these rows.

    Args:
        rows: configurations of one epoch, with `avg_bitwidth`, `accuracy` and `bitwidth_bin`; at least one row.
    """
    unknown = ""
    if len(rows) < LEAST_CONFIGS:
        count = "1 configuration" if len(rows) == 1 else f"{len(rows)} configurations"
        unknown = f"{count} measured, at least {LEAST_CONFIGS} needed"
    elif rows["bitwidth_bin"].nunique() == 1:
        unknown = f"every configuration averages {rows['bitwidth_bin'].iloc[0]:.1f} bits"
    correlation = pearson(rows["avg_bitwidth"].to_numpy(), rows["accuracy"].to_numpy())
    reading = "cannot tell" if unknown else read_correlation(correlation)
    return Trend(configs=len(rows), correlation=correlation, reading=reading, unknown=unknown)


def read_correlation(correlation: float) -> Reading:
    """Return what a correlation of average bitwidth and accuracy amounts to.

    | correlation    | reading         |
    |----------------|-----------------|
    | 0.7 to 1       | strong positive |
    | 0.3 to 0.7     | positive        |
    | -0.3 to 0.3    | flat            |
    | -1 to -0.3     | negative        |
    | NaN            | flat            |

    NaN is flat because a trend is asked for only where bitwidths differ, so that accuracy was the constant one.
    """
    if correlation >= STRONG_CORRELATION:
        return "strong positive"
    if correlation >= FLAT_CORRELATION:
        return "positive"
    return "negative" if correlation <= -FLAT_CORRELATION else "flat"


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
    if lowest is None:
        return told
    percent = f"{answers.tolerance * 100:g}"
    points = "1 point" if percent == "1" else f"{percent} points"
    told.append(f"Fewest bits within {points} of the best: {_in_words(lowest)}.")
    if lowest.noise > answers.tolerance:
        told.append(
            f"The noise (± {lowest.noise * 100:.1f} points) is larger than the {points} asked about; "
            "evaluate more samples to be sure."
        )
    return told


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
