"""Rows of a part -> its cells: what all rows have in common that statistics cannot tell apart, and exact sums of them.

Statistics are made in two steps, as in MapReduce: each part is counted by itself (`count_cells`), and the counts are
added (`merge_cells`). They are integers, smallest and largest values, so that one process and twenty get equal bytes,
however the rows are spread over parts. What is counted goes from one process to another, so it is small and flat: what
rows have in common once a group, the sums as one array.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from qbw_report.exact import (
    LIMBS,
    MOST_TERMS,
    SQUARE_LIMBS,
    limbs_of,
    put_together,
    split_floats,
    squares_of,
    units_of,
)
from schemas.errors import QBWError
from schemas.records import RECORD_SCHEMA

TEXTS = (
    "experiment", "split", "data_id", "network_id", "checkpoint", "checkpoint_id", "model_id", "engine",
)  # fmt: skip
"""Columns of text that rows of one group share."""

NUMBERS = ("epoch", "num_samples")
"""Numbers that rows of one group share."""

READ = (*TEXTS, *NUMBERS, "avg_bitwidth", "correct", "loss", "evaluated_at")
"""Columns of a record that its cell is made from. `accuracy` is not one: it is `correct / num_samples`."""

LINE = np.dtype(
    [
        ("group", np.int64),
        ("avg_bitwidth", np.float64),
        ("loss_unit", np.int64),  # losses are whole numbers of two to this
        ("rows", np.int64),
        ("losses", np.int64),  # how many of these rows have a finite loss
        ("correct", np.int64, LIMBS),  # sums of limbs
        ("correct_squares", np.int64, SQUARE_LIMBS),
        ("loss", np.int64, LIMBS),
        ("loss_squares", np.int64, SQUARE_LIMBS),
        ("correct_min", np.int64),
        ("correct_max", np.int64),
        ("loss_min", np.float64),  # NaN: there is none
        ("loss_max", np.float64),
        ("loss_exponent", np.int64),  # the smallest; 0 of a loss that is not finite
        ("evaluated_at", np.int64),  # the latest, in microseconds since 1970
    ]
)
"""A cell: the rows of one group, average bitwidth and unit of losses."""

_SUMS = ("rows", "losses", "correct", "correct_squares", "loss", "loss_squares")
_SMALLEST = ("correct_min", "loss_min", "loss_exponent")
_LARGEST = ("correct_max", "loss_max", "evaluated_at")
_WHOLE = ("correct", "correct_squares", "loss", "loss_squares")


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Rows, counted.

    Attributes:
        names: what rows of a group share: columns of text, and `NUMBERS`.
        groups: the values of these, of each group that has rows.
        lines: the cells, of type `LINE`; `group` is a place in `groups`.
    """

    names: tuple[str, ...]
    groups: tuple[tuple[object, ...], ...]
    lines: np.ndarray


def count_cells(rows: pa.Table, texts: Sequence[str] = TEXTS, same: Mapping[str, object] | None = None) -> Cells:
    """Return the cells of these rows.

    Args:
        rows: with `texts` and the numbers of `READ`, finite `avg_bitwidth` and no nulls in `epoch`, `num_samples`,
            `correct` and `evaluated_at`; none negative in `correct`.
        texts: columns of text that rows of one group share.
        same: columns that `rows` does not have, because all rows have this value; of `evaluated_at`, the latest.
    """
    same = same or {}
    names = (*texts, *NUMBERS)
    groups, group = _groups_of(rows, names, same)
    average, correct, loss = (rows[name].to_numpy() for name in ("avg_bitwidth", "correct", "loss"))
    finite = np.isfinite(loss)
    integers, exponents = split_floats(np.where(finite, loss, 0.0))
    units = units_of(exponents)
    order, starts = _cells([group, _codes(rows["avg_bitwidth"]), units - units.min(initial=0)])
    firsts = order[starts]
    lines = np.zeros(len(starts), LINE)
    lines["group"], lines["avg_bitwidth"], lines["loss_unit"] = group[firsts], average[firsts], units[firsts]
    lines["rows"] = np.diff(starts, append=len(order))
    lines["losses"] = np.add.reduceat(finite[order], starts, dtype=np.int64)
    correct, loss = correct[order], np.where(finite, loss + 0.0, np.nan)[order]  # 0.0, never -0.0
    _put_sums(lines, "correct", limbs_of(correct), starts)
    _put_sums(lines, "loss", limbs_of(integers[order], (exponents - units)[order]), starts)
    lines["correct_min"], lines["loss_min"] = np.minimum.reduceat(correct, starts), np.fmin.reduceat(loss, starts)
    lines["correct_max"], lines["loss_max"] = np.maximum.reduceat(correct, starts), np.fmax.reduceat(loss, starts)
    lines["loss_exponent"] = np.minimum.reduceat(np.where(finite, exponents, 0)[order], starts)
    if "evaluated_at" in same:
        lines["evaluated_at"] = pa.scalar(same["evaluated_at"], _TIME).value
    else:
        lines["evaluated_at"] = np.maximum.reduceat(rows["evaluated_at"].cast(pa.int64()).to_numpy()[order], starts)
    return Cells(names=names, groups=groups, lines=lines)


def _put_sums(lines: np.ndarray, name: str, limbs: Sequence[np.ndarray], starts: np.ndarray) -> None:
    """Write the sums of each cell's numbers, and of their squares, from their limbs in the order of the cells."""
    for column, values in ((name, limbs), (f"{name}_squares", squares_of(limbs))):
        for place, limb in enumerate(values):
            lines[column][:, place] = np.add.reduceat(limb, starts)


def merge_cells(counted: Sequence[Cells]) -> Cells:
    """Return the cells of all parts, each once; the order of lines says nothing.

    Args:
        counted: `count_cells` of each part; at least one, all of the same names.

    Raises:
        QBWError: more rows share a cell than can be added exactly.
    """
    places: dict[tuple[object, ...], int] = {}
    lines = np.concatenate([part.lines for part in counted])
    lines["group"] = np.concatenate(
        [
            np.array([places.setdefault(group, len(places)) for group in part.groups], np.int64)[part.lines["group"]]
            for part in counted
        ]
    )
    _, average = np.unique(lines["avg_bitwidth"], return_inverse=True)
    order, starts = _cells([lines["group"], average, lines["loss_unit"] - lines["loss_unit"].min(initial=0)])
    merged = lines[order[starts]]
    if len(merged) < len(lines):  # mostly no two parts share a cell
        for names, function in ((_SUMS, np.add), (_SMALLEST, np.fmin), (_LARGEST, np.fmax)):
            for name in names:
                merged[name] = function.reduceat(lines[name][order], starts)
    cells = Cells(names=counted[0].names, groups=tuple(places), lines=merged)
    if merged["rows"].max(initial=0) > MOST_TERMS:
        largest = merged[merged["rows"].argmax()]
        of = dict(zip(cells.names, cells.groups[largest["group"]], strict=True))
        raise QBWError(
            f"{of['experiment']}: epoch {int(str(of['epoch'])) + 1} has {largest['rows']:,} rows of equal bitwidth, "
            f"more than the {MOST_TERMS:,} that can be added exactly; report on fewer"
        )
    return cells


def groups_frame(names: Sequence[str], groups: Sequence[tuple[object, ...]]) -> pd.DataFrame:
    """Return a line for each group of `Cells`, in their order: what its rows share."""
    columns = zip(*groups, strict=True) if groups else [()] * len(names)
    types = [RECORD_SCHEMA.field(name).type if name in RECORD_SCHEMA.names else pa.string() for name in names]
    arrays = [pa.array(values, kind) for values, kind in zip(columns, types, strict=True)]
    frame: pd.DataFrame = pa.table(arrays, list(names)).to_pandas()
    return frame


def cells_frame(cells: Cells, groups: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each cell: the columns of its group, and its numbers; sums are Python's integers.

    Args:
        cells: of which every group has rows.
        groups: `groups_frame`, with whatever columns more.
    """
    lines = cells.lines
    columns = {name: groups[name].array.take(lines["group"]) for name in groups.columns}
    for name in LINE.names or ():
        if name in _WHOLE:
            columns[name] = put_together(lines[name])
        elif name != "group":
            columns[name] = np.ascontiguousarray(lines[name])
    columns["evaluated_at"] = pd.to_datetime(columns["evaluated_at"], unit="us", utc=True)
    return pd.DataFrame(columns)


_TIME = RECORD_SCHEMA.field("evaluated_at").type


def _groups_of(
    rows: pa.Table, names: Sequence[str], same: Mapping[str, object]
) -> tuple[tuple[tuple[object, ...], ...], np.ndarray]:
    """Return what tells rows apart that are of different groups, and the place of each row's in it."""
    differ = [name for name in names if name not in same]
    if not differ or not len(rows):
        only = tuple(same.get(name) for name in names)
        return ((only,) if len(rows) else ()), np.zeros(len(rows), np.int64)
    order, starts = _cells([_codes(rows[name]) for name in differ])
    group = np.empty(len(rows), np.int64)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
    firsts = pa.array(order[starts])
    columns = [[same[name]] * len(starts) if name in same else rows[name].take(firsts).to_pylist() for name in names]
    return tuple(zip(*columns, strict=True)), group


def _cells(codes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return an order in which rows of equal codes follow each other, and where in it each cell starts.

    Args:
        codes: whole numbers, none negative; at least one array.
    """
    cell = np.zeros(len(codes[0]), dtype=np.int64)
    for code in codes:
        high = int(code.max(initial=0))
        if high:
            cell = cell * (high + 1) + code
            # Numbered anew where the next factor could leave 64 bits.
            cell = cell if cell.max() < 2**31 else np.unique(cell, return_inverse=True)[1]
    few = cell.max(initial=0) < 2**16
    order = np.argsort(cell.astype(np.uint16) if few else cell, kind="stable")  # of 16 bits by counting, in linear time
    return order, np.flatnonzero(np.diff(cell[order], prepend=-1))


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """Return a number for each different value, 0 for none."""
    encoded = column.dictionary_encode()
    array = encoded.chunk(0) if encoded.num_chunks == 1 else encoded.unify_dictionaries().combine_chunks()
    codes = array.indices.fill_null(-1) if array.null_count else array.indices
    return np.asarray(codes.to_numpy() + 1)
