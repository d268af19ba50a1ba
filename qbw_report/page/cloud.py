"""What the picture of accuracy against cost is drawn from: every epoch's configurations, and what is told of each.

The page carries these numbers as JSON, so that its slider and switch need no server. A configuration that several
epochs share is written once; of epochs with very many only some are written, evenly over the order of cost, and the
page says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from qbw_report.page.axes import Axis, axis
from qbw_report.page.shown import digits
from qbw_report.selection import COSTS, PICKED, sampler_names
from schemas.columns import by_name
from schemas.records import RECORD_COLUMNS

MOST_POINTS = 40_000
"""Points that a page carries for one series: some 2 MB."""

MOST_EPOCHS = 200
"""Steps of the slider; a telephone's screen has not many more pixels."""

LEAST_FOR_INTERVAL = 4
"""Bins of fewer configurations have intervals that say nothing but this, and would cover the picture."""

_COLUMNS = by_name(RECORD_COLUMNS)

_SIZES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def shown_epochs(epochs: Sequence[int]) -> list[int]:
    """Return the epochs that the slider stops at: all, or so many of them, evenly, the last included."""
    if len(epochs) <= MOST_EPOCHS:
        return list(epochs)
    places = np.linspace(0, len(epochs) - 1, MOST_EPOCHS).round().astype(int)
    return [epochs[place] for place in places]


def spread_evenly(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return at most so many rows, evenly over the order of average bitwidth and accuracy, the ends included."""
    if len(rows) <= most:
        return rows
    ordered = rows.sort_values(["avg_bitwidth", "accuracy", "config_id"], kind="stable")
    return ordered.iloc[np.linspace(0, len(ordered) - 1, most).round().astype(int)]


def cost_axis(values: Sequence[float] | np.ndarray, cost: str) -> Axis:
    """Return the axis of a cost; large ones in thousands, millions and so on."""
    known = np.asarray(values, dtype=float)
    largest = float(np.nanmax(known)) if np.isfinite(known).any() else 0.0
    prefix, size = next(((p, s) for p, s in _SIZES if largest >= s), ("", 1.0))
    column = _COLUMNS[cost]
    words = column.label or cost
    unit = {"bytes": f"{prefix}B", "": prefix}.get(column.unit, f"{prefix}{column.unit}")
    return axis(
        values,
        f"{words} ({unit})" if unit else words,
        lambda tick: digits(tick / size),
        least=max(0.02 * largest, 1e-6) if cost != "avg_bitwidth" else 1.0,
        bounds=(0, np.inf),
    )


def accuracy_axis(values: Sequence[float] | np.ndarray) -> Axis:
    """Return the axis of accuracies: at least a few points of it, so that noise looks small."""
    return axis(values, "Accuracy", _tick_percent, least=0.02, bounds=(0, 1), air=0.05)


def _tick_percent(value: float) -> str:
    return f"{digits(100 * value)}%"


def axis_json(found: Axis) -> dict[str, Any]:
    """Return an axis as plain values."""
    return {
        "low": found.low,
        "high": found.high,
        "label": found.label,
        "ticks": [[where, text] for where, text in found.ticks],
    }


def cloud(
    rows: pd.DataFrame, bins: pd.DataFrame, over_epochs: pd.DataFrame, layer_names: Sequence[str]
) -> dict[str, Any]:
    """Return everything that the picture shows of one series, as plain values.

    Args:
        rows: one series; at least one row.
        bins: its lines of bins.csv.
        over_epochs: its lines of answers_over_epochs.csv.
        layer_names: in forward order.
    """
    everything = sorted(rows["epoch"].astype(int).unique().tolist())
    epochs = shown_epochs(everything)
    groups = {epoch: rows[rows["epoch"] == epoch] for epoch in epochs}
    most = max(MOST_POINTS // len(epochs), 200)
    kept = {epoch: spread_evenly(groups[epoch], most) for epoch in epochs}
    configs = pd.concat(kept.values()).drop_duplicates("config_id").sort_values(["avg_bitwidth", "config_id"])
    index = {config: number for number, config in enumerate(configs["config_id"])}
    enough = over_epochs.set_index("epoch")[["lowest_bitwidth", "lowest_accuracy"]]
    costs = [cost for cost in COSTS if rows[cost].notna().any()]
    return {
        "series": str(rows["series"].iloc[0]),
        "costs": {
            cost: axis_json(cost_axis(configs[cost].to_numpy(dtype=float), cost)) | {"unit": _COLUMNS[cost].unit}
            for cost in costs
        },
        "accuracy": axis_json(accuracy_axis(rows["accuracy"].to_numpy())),
        "layers": list(layer_names),
        "configs": {
            "id": [str(config)[:8] for config in configs["config_id"]],
            "bits": [" ".join(str(int(bits)) for bits in each) for each in configs["bitwidths"]],
            "kind": kinds_of(configs),
            **{cost: [_plain(value) for value in configs[cost]] for cost in costs},
        },
        "epochs": [
            _epoch(groups[epoch], kept[epoch], bins[bins["epoch"] == epoch], index)
            | {"enough": [_plain(value) for value in enough.loc[epoch]]}
            for epoch in epochs
        ],
        "least_for_interval": LEAST_FOR_INTERVAL,
    }


def kinds_of(rows: pd.DataFrame) -> list[int]:
    """Return 1 where all layers have the same bits, else 2 where somebody picked the configuration, else 0."""
    picked = sampler_names(rows).isin(PICKED)
    alike = [len({int(b) for b in bits}) == 1 for bits in rows["bitwidths"]]
    return [1 if same else 2 if by_hand else 0 for same, by_hand in zip(alike, picked, strict=True)]


def _epoch(rows: pd.DataFrame, kept: pd.DataFrame, bins: pd.DataFrame, index: Mapping[str, int]) -> dict[str, Any]:
    columns = ("bitwidth_bin", "accuracy_mean", "accuracy_low", "accuracy_high", "accuracy_std", "accuracy_min",
               "accuracy_max", "configs")  # fmt: skip
    return {
        "epoch": int(rows["epoch"].iloc[0]),
        "configs": len(rows),
        "accuracy": axis_json(accuracy_axis(rows["accuracy"].to_numpy())),
        "points": [
            [index[config], _plain(value)] for config, value in zip(kept["config_id"], kept["accuracy"], strict=True)
        ],
        "bins": [[_plain(value) for value in line] for line in bins[list(columns)].itertuples(index=False)],
    }


def _plain(value: Any) -> float | int | None:
    """Return a number as JSON has it: None for what does not exist."""
    if pd.isna(value) or not np.isfinite(value):
        return None
    return int(value) if isinstance(value, int | np.integer) else float(value)
