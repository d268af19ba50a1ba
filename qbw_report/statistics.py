"""Cells -> statistics per epoch, and per epoch and bitwidth bin (DataFrame -> DataFrame).

Every number is the exact one, rounded once: the cells' sums are integers, and stay so until the last step.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from qbw_report.bins import add_bins
from qbw_report.cells import READ, cells_frame, count_cells, groups_frame, merge_cells
from qbw_report.correlation import LEAST_FOR_CORRELATION
from qbw_report.exact import correlation_of, root_ratio, spread_of
from schemas.records import RECORD_SCHEMA

METRICS = {"accuracy": "accuracy", "loss": "loss", "bitwidth": "avg_bitwidth"}
"""Prefix of the statistics' names -> column of the rows."""

SERIES_KEYS = ["series", "experiment", "split", "data_id"]
"""What tells series apart: the name, and what it stands for."""

_MOST_DRAWN = 1e300

_EPOCH = [*SERIES_KEYS, "epoch"]
_BIN = [*_EPOCH, "bitwidth_bin"]

_POINT = 52
"""An average bitwidth of 1 or more is a whole number of 2**-52 bits."""


def per_epoch(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `epoch_statistics` of rows with `series`."""
    return epoch_statistics(join_bins(_counted(frame)))


def per_bin(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `bin_statistics` of rows with `series`."""
    return bin_statistics(join_bins(_counted(frame)))


def _counted(rows: pd.DataFrame) -> pd.DataFrame:
    read = pa.schema([pa.field("series", pa.string()), *(RECORD_SCHEMA.field(name) for name in READ)])
    texts = [field.name for field in read if pa.types.is_string(field.type)]
    table = pa.Table.from_pandas(rows[read.names], schema=read, preserve_index=False)
    cells = merge_cells([count_cells(table, texts)])
    return cells_frame(cells, groups_frame(cells.names, cells.groups))


def drawable(lines: pd.DataFrame, metric: str) -> tuple[np.ndarray, ...]:
    """Return mean, standard deviation, smallest and largest of a metric in each line, as pictures show them.

    A loss beyond 1e300 is shown there: near the largest float64, 1.8e308, the arithmetic of axes overflows.
    """
    parts = (lines[f"{metric}_{part}"].to_numpy() for part in ("mean", "std", "min", "max"))
    return tuple(values.clip(-_MOST_DRAWN, _MOST_DRAWN) for values in parts)


def join_bins(cells: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series, epoch and bitwidth bin, sorted, with exact sums: whole numbers without limit.

    Args:
        cells: `qbw_report.cells.cells_frame`, with `series`.
    """
    return _joined(_totals(add_bins(cells)), _BIN)


def epoch_statistics(binned: pd.DataFrame) -> pd.DataFrame:
    """Return one row per series and epoch, sorted: `configs`, the statistics of each metric, `correlation`.

    A metric gives `<metric>_mean`, `_std` (of the population: ddof 0), `_min` and `_max`. Losses that are not finite
    are left out of the loss statistics, and `loss_configs` says how many remain. `correlation` is Pearson's, between
    average bitwidth and accuracy; NaN where it does not exist: for under 3 rows, or where either is constant.

    Args:
        binned: `join_bins` of all rows.
    """
    lines = _joined(binned, _EPOCH)
    return _described(lines, _EPOCH).assign(correlation=_correlations(lines))


def bin_statistics(binned: pd.DataFrame) -> pd.DataFrame:
    """Return one row per series, epoch and bitwidth bin, sorted; columns as above, without `correlation`.

    Args:
        binned: lines of `join_bins`.
    """
    return _described(binned, _BIN)


_SAME_UNIT = {"correct": 1, "correct_squares": 2, "together": 1}
"""Sums of numbers of samples -> which power of `num_samples` they are to be divided by."""

_ADDED = ("correct", "correct_squares", "together", "loss", "loss_squares", "bits", "bits_squares")


def _totals(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells with their sums, and those that bitwidths take part in.

    Accuracies are numbers of samples, in units of 1 / `num_samples`; losses are whole numbers of two to `loss_unit`;
    average bitwidths are whole numbers of two to -52 bits.
    """
    rows, average = cells["rows"].to_numpy(), cells["avg_bitwidth"].to_numpy()
    bits = np.array([int(value) for value in np.rint(np.ldexp(average, _POINT))], dtype=object)
    kept = [*_BIN, "rows", "losses", "correct", "correct_squares", "loss", "loss_squares", "loss_unit", "loss_exponent"]
    return cells[[*kept, "loss_min", "loss_max"]].assign(
        num_samples=cells["num_samples"].astype(object),
        together=bits * cells["correct"].to_numpy(),
        bits=bits * rows,
        bits_squares=bits * bits * rows,
        accuracy_min=cells["correct_min"] / cells["num_samples"],
        accuracy_max=cells["correct_max"] / cells["num_samples"],
        bitwidth_min=average,
        bitwidth_max=average,
    )


def _joined(lines: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return lines of equal keys as one, sorted, their sums in a unit that all of them are whole numbers of."""
    series, _ = pd.factorize(lines["series"], sort=True)  # which says the other names of a series as well
    numbers = [series, *(lines[name].to_numpy() for name in keys if name not in SERIES_KEYS)]
    order = np.lexsort(numbers[::-1])
    new = np.append(True, np.any([np.diff(values[order]) != 0 for values in numbers], axis=0))
    starts, group = np.flatnonzero(new), np.cumsum(new) - 1
    joined = {name: lines[name].array.take(order[starts]) for name in keys}
    columns = {name: lines[name].to_numpy()[order] for name in lines.columns if name not in keys}
    joined["num_samples"] = _common_multiples(columns["num_samples"], starts)
    factor = joined["num_samples"][group] // columns["num_samples"]
    if (factor != 1).any():  # nearly always all have the same
        columns |= {name: columns[name] * factor**power for name, power in _SAME_UNIT.items()}
    for name in ("loss_unit", "loss_exponent"):
        joined[name] = np.minimum.reduceat(columns[name], starts)
    shift = (columns["loss_unit"] - joined["loss_unit"][group]).astype(object)
    if shift.any():  # likewise
        columns |= {"loss": columns["loss"] << shift, "loss_squares": columns["loss_squares"] << 2 * shift}
    for name in ("rows", "losses", *_ADDED):
        joined[name] = np.add.reduceat(columns[name], starts)
    for metric in METRICS:
        joined[f"{metric}_min"] = np.fmin.reduceat(columns[f"{metric}_min"], starts)
        joined[f"{metric}_max"] = np.fmax.reduceat(columns[f"{metric}_max"], starts)
    return pd.DataFrame(joined)


def _common_multiples(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the least common multiple of each group's whole numbers."""
    if (values == values[0]).all():
        return np.asarray(values[starts])
    ends = np.append(starts[1:], len(values))
    multiples = [math.lcm(*set(values[start:end])) for start, end in zip(starts, ends, strict=True)]
    return np.array(multiples, dtype=object)


def _described(lines: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    table = {name: lines[name] for name in keys} | {"configs": lines["rows"], "loss_configs": lines["losses"]}
    # A loss is in units of two to the exponent, which may be a large number; 1 / unit is then a whole number.
    exponents = lines["loss_exponent"].to_numpy()
    spare = (exponents - lines["loss_unit"].to_numpy()).astype(object)
    scale = 1 << np.maximum(exponents, 0).astype(object)
    units = {
        "accuracy": ("rows", "correct", "correct_squares", lines["num_samples"]),
        "loss": ("losses", "loss", "loss_squares", 1 << np.maximum(-exponents, 0).astype(object)),
        "bitwidth": ("rows", "bits", "bits_squares", np.full(len(lines), 1 << _POINT, dtype=object)),
    }
    for metric, (count, total, squares, unit) in units.items():
        sums, of_squares = lines[total].to_numpy(), lines[squares].to_numpy()
        if metric == "loss":
            sums, of_squares = (sums >> spare) * scale, (of_squares >> 2 * spare) * scale * scale
        means, spreads = [], []
        for n, s, q, u in zip(lines[count].tolist(), sums, of_squares, unit, strict=True):
            divisor = n * u
            means.append(s / divisor if n else math.nan)
            spreads.append(root_ratio(spread_of(n, s, q), divisor) if n else math.nan)
        table |= {f"{metric}_mean": pd.Series(means, lines.index), f"{metric}_std": pd.Series(spreads, lines.index)}
        table |= {name: lines[name] for name in (f"{metric}_min", f"{metric}_max")}
    return pd.DataFrame(table)


def _correlations(lines: pd.DataFrame) -> list[float]:
    return [
        correlation_of(n * xy - x * y, spread_of(n, x, xx), spread_of(n, y, yy))
        if n >= LEAST_FOR_CORRELATION
        else math.nan
        for n, xy, x, xx, y, yy in zip(
            lines["rows"].tolist(),
            *(lines[name] for name in ("together", "bits", "bits_squares", "correct", "correct_squares")),
            strict=True,
        )
    ]
