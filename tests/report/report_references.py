"""Slow, obviously right twins of what the report computes, in plain Python over lists of records."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

Record = Mapping[str, Any]


def bin_of(bitwidths: Sequence[int]) -> float:
    """Return the average bitwidth rounded to one decimal, ties to even, in exact arithmetic."""
    return float(round(Fraction(sum(bitwidths), len(bitwidths)), 1))


def per_epoch(records: Iterable[Record]) -> dict[tuple[str, int], dict[str, float]]:
    """Return (experiment, epoch) -> statistics with the names that the report uses."""
    groups = defaultdict(list)
    for record in records:
        groups[record["experiment"], record["epoch"]].append(record)
    return {
        key: summary(group)
        | {"correlation": correlation([r["avg_bitwidth"] for r in group], [r["accuracy"] for r in group])}
        for key, group in groups.items()
    }


def per_bin(records: Iterable[Record]) -> dict[tuple[str, int, float], dict[str, float]]:
    """Return (experiment, epoch, bin) -> statistics with the names that the report uses."""
    groups = defaultdict(list)
    for record in records:
        groups[record["experiment"], record["epoch"], bin_of(record["bitwidths"])].append(record)
    return {key: summary(group) for key, group in groups.items()}


def summary(group: Sequence[Record]) -> dict[str, float]:
    losses = [r["loss"] for r in group if r["loss"] is not None and math.isfinite(r["loss"])]
    told: dict[str, float] = {"configs": len(group), "loss_configs": len(losses)}
    accuracies, bitwidths = [r["accuracy"] for r in group], [r["avg_bitwidth"] for r in group]
    for name, values in (("accuracy", accuracies), ("loss", losses), ("bitwidth", bitwidths)):
        told[f"{name}_mean"] = statistics.fmean(values) if values else math.nan
        told[f"{name}_std"] = statistics.pstdev(values) if values else math.nan
        told[f"{name}_min"] = min(values, default=math.nan)
        told[f"{name}_max"] = max(values, default=math.nan)
    return told


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return math.nan
    return statistics.correlation(x, y)
