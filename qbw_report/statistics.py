"""Rows -> statistics per epoch, and per epoch and bitwidth bin (DataFrame -> DataFrame)."""

import numpy as np
import pandas as pd

from qbw_report.correlation import pearson

METRICS = {"accuracy": "accuracy", "loss": "loss", "bitwidth": "avg_bitwidth"}
"""Prefix of the statistics' names -> column of the rows."""

SERIES_KEYS = ["series", "experiment", "split", "data_id"]
"""What tells series apart: the name, and what it stands for."""

_EPOCH = [*SERIES_KEYS, "epoch"]
_BIN = [*_EPOCH, "bitwidth_bin"]


def per_epoch(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per series and epoch, sorted: `configs`, the statistics of each metric, `correlation`.

    A metric gives `<metric>_mean`, `_std` (of the population: ddof 0), `_min` and `_max`. Losses that are not finite
    are left out of the loss statistics, and `loss_configs` says how many remain. `correlation` is Pearson's, between
    average bitwidth and accuracy; NaN where it does not exist (see `pearson`).

    Args:
        frame: rows with `series`.
    """
    correlation = {
        key: pearson(rows["avg_bitwidth"].to_numpy(), rows["accuracy"].to_numpy())
        for key, rows in frame.groupby(_EPOCH)
    }
    return _summarize(frame, _EPOCH).assign(correlation=list(correlation.values()))


def per_bin(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per series, epoch and bitwidth bin, sorted; columns as in `per_epoch`, without `correlation`.

    Args:
        frame: rows with `series` and `bitwidth_bin`.
    """
    return _summarize(frame, _BIN)


def _summarize(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    finite = frame.assign(loss=frame["loss"].where(np.isfinite(frame["loss"])))
    groups = finite.groupby(keys)
    columns: dict[str, pd.Series] = {"configs": groups.size(), "loss_configs": groups["loss"].count()}
    for metric, column in METRICS.items():
        values = groups[column]
        columns[f"{metric}_mean"] = values.mean()
        columns[f"{metric}_std"] = values.std(ddof=0)
        columns[f"{metric}_min"] = values.min()
        columns[f"{metric}_max"] = values.max()
    return pd.DataFrame(columns).reset_index()
