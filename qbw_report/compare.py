"""Two experiments, or two checkpoints, on the same configurations and samples: what differs, and what chance may do.

Configurations are what both were asked to run, so they are fixed; samples are what chance chose. Overall, the
difference is therefore averaged over configurations for each sample first, and its error comes from how samples differ:
the masks are clustered by sample. Pooling all masks into one McNemar test would count a hard sample once for every
configuration and be far too sure. For one configuration McNemar's mid-p is right, adjusted for their number (Holm).
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qbw_report.masks import compare_right, holm, mean_difference, right_samples
from qbw_report.selection import configurations, last_epoch
from schemas.errors import QBWError, UsageError, did_you_mean

PAIR_COLUMNS = ["first", "second", "configs", "samples", "difference", "low", "high", "p_value", "verdict"]

_Z95 = 1.959963984540054
_CERTAIN = 0.05


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How the first differs from the second.

    Attributes:
        first: name and epoch.
        second: likewise.
        samples: how many each configuration was measured on.
        difference: mean accuracy of the first less that of the second, over `table`.
        low: lower end of its 95% interval; over the choice of samples.
        high: upper end of it.
        p_value: of no difference; NaN where there are no masks.
        verdict: which is more accurate, or `not distinguishable`.
        method: how the interval was found.
        table: a line for each configuration that both were measured at.
    """

    first: str
    second: str
    samples: int
    difference: float
    low: float
    high: float
    p_value: float
    verdict: str
    method: str
    table: pd.DataFrame


def choose(rows: pd.DataFrame, words: str) -> tuple[str, pd.DataFrame]:
    """Return what somebody calls `words`, a name for it, and its rows: one epoch of one series.

    Args:
        rows: all rows, with `series`.
        words: a series, an experiment, or the file name of a checkpoint; `@` and an epoch, counted from 1, may follow a
            series or an experiment, whose last epoch is meant otherwise.

    Raises:
        UsageError: nothing is called so, or several series are.
    """
    name, at, number = words.rpartition("@")
    chosen, epoch = rows[rows["series"] == words], None
    for column in ("series", "experiment", "checkpoint"):
        if chosen.empty:
            chosen = rows[rows[column] == words]
        if chosen.empty and at and number.isdecimal() and column != "checkpoint":
            chosen, epoch = rows[rows[column] == name], int(number) - 1
    if chosen.empty:
        known = sorted({*rows["series"], *rows["checkpoint"].dropna()})
        listed = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        raise UsageError(
            f"{words!r}: no such series, experiment or checkpoint{did_you_mean(words, known)}; known: {listed}"
        )
    several = sorted(chosen["series"].unique())
    if len(several) > 1:
        raise UsageError(f"{words!r}: means {len(several)} series; name one of: {', '.join(several)}")
    if epoch is None:
        chosen = last_epoch(chosen)
    else:
        epochs = sorted(int(e) + 1 for e in chosen["epoch"].unique())
        chosen = chosen[chosen["epoch"] == epoch]
        if chosen.empty:
            raise UsageError(f"{words!r}: no epoch {epoch + 1}; there are {epochs[0]} to {epochs[-1]}")
    return f"{several[0]}, epoch {int(chosen['epoch'].iloc[0]) + 1}", chosen


def compare(first: tuple[str, pd.DataFrame], second: tuple[str, pd.DataFrame]) -> Comparison:
    """Return how two sets of rows differ, each with its name; see the module.

    Raises:
        QBWError: they were measured on other samples, or have no configuration in common.
    """
    (name_a, rows_a), (name_b, rows_b) = first, second
    if set(rows_a["data_id"]) != set(rows_b["data_id"]):
        raise QBWError(f"{name_a} and {name_b}: measured on other samples; evaluate both on the same data")
    a, b = (_once(rows) for rows in (rows_a, rows_b))
    shared = a.index.intersection(b.index).sort_values()
    if shared.empty:
        raise QBWError(
            f"{name_a} and {name_b}: no configuration in common; evaluate both with the same sampler, seed and options"
        )
    a, b = a.loc[shared], b.loc[shared]
    masks = right_samples(pd.concat([a, b]))
    samples = int(min(a["num_samples"].min(), b["num_samples"].min()))
    table = pd.DataFrame(
        {
            "config_id": shared,
            "avg_bitwidth": a["avg_bitwidth"].to_numpy(),
            "first_accuracy": a["accuracy"].to_numpy(),
            "second_accuracy": b["accuracy"].to_numpy(),
        }
    )
    if masks is None:
        table, overall = _unpaired(table, samples)
        method = "binomial, as if on different samples: rows have no usable masks, so intervals are too wide"
    else:
        table, overall = _paired(table, masks[: len(a)], masks[len(a) :])
        method = "the same samples: McNemar's mid-p (Holm) for each configuration; overall clustered by sample"
    difference, low, high, p_value = overall
    return Comparison(
        first=name_a,
        second=name_b,
        samples=samples,
        difference=difference,
        low=low,
        high=high,
        p_value=p_value,
        verdict=_verdict(low, high),
        method=method,
        table=table.sort_values(["avg_bitwidth", "config_id"], ignore_index=True),
    )


def _once(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each configuration (the first where one was repeated), by its id."""
    return rows.drop_duplicates("config_id").set_index("config_id", drop=False).rename_axis(None)


def _paired(
    table: pd.DataFrame, a: np.ndarray, b: np.ndarray
) -> tuple[pd.DataFrame, tuple[float, float, float, float]]:
    each = [compare_right(one, other) for one, other in zip(a, b, strict=True)]
    adjusted = holm([paired.p_value for paired in each])
    table = table.assign(
        difference=[paired.difference for paired in each],
        low=[paired.low for paired in each],
        high=[paired.high for paired in each],
        only_first=[paired.only_first for paired in each],
        only_second=[paired.only_second for paired in each],
        p_value=adjusted,
        verdict=[
            "not distinguishable" if p >= _CERTAIN else _word(paired.difference)
            for paired, p in zip(each, adjusted, strict=True)
        ],
    )
    per_sample = (a.sum(axis=0).astype(float) - b.sum(axis=0)) / len(a)
    return table, mean_difference(per_sample)


def _unpaired(table: pd.DataFrame, samples: int) -> tuple[pd.DataFrame, tuple[float, float, float, float]]:
    first, second = table["first_accuracy"], table["second_accuracy"]
    half = _Z95 * np.sqrt((first * (1 - first) + second * (1 - second)) / samples)
    difference = first - second
    table = table.assign(
        difference=difference,
        low=difference - half,
        high=difference + half,
        only_first=np.nan,
        only_second=np.nan,
        p_value=np.nan,
        verdict=[_verdict(low, high) for low, high in zip(difference - half, difference + half, strict=True)],
    )
    # All configurations are measured on the same samples, so averaging over them does not make chance smaller.
    mean, wide = float(difference.mean()), float(half.mean())
    return table, (mean, mean - wide, mean + wide, math.nan)


def _verdict(low: float, high: float) -> str:
    return _word(low + high) if low > 0 or high < 0 else "not distinguishable"


def _word(difference: float) -> str:
    return "first is more accurate" if difference > 0 else "second is more accurate"


def comparison_in_words(found: Comparison) -> str:
    """Return the overall answer in a sentence."""
    if found.verdict == "not distinguishable":
        told = f"{found.first} and {found.second} are not distinguishable"
    else:
        better, other = (found.first, found.second) if found.difference > 0 else (found.second, found.first)
        told = f"{better} is more accurate than {other}"
    more = f"{100 * found.difference:+.2f} points (95%: {100 * found.low:+.2f} to {100 * found.high:+.2f})"
    return f"{told}: {more} over {configurations(len(found.table))} on {found.samples:,} samples."


def all_pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the last epochs of all series against each other: a line a pair that shares samples and configurations."""
    chosen = {str(series): last_epoch(group) for series, group in rows.groupby("series")}
    names = sorted(chosen)
    lines = []
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            try:
                found = compare((first, chosen[first]), (second, chosen[second]))
            except QBWError:
                continue  # nothing in common: that they cannot be compared is not worth a line
            lines.append(
                {
                    "first": first,
                    "second": second,
                    "configs": len(found.table),
                    "samples": found.samples,
                    "difference": found.difference,
                    "low": found.low,
                    "high": found.high,
                    "p_value": found.p_value,
                    "verdict": found.verdict,
                }
            )
    return pd.DataFrame(lines, columns=PAIR_COLUMNS)
