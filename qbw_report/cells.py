"""Rows of a part -> its cells: what all rows have in common that statistics cannot tell apart, and exact sums of them.

Statistics are made in two steps, as in MapReduce: each part is counted by itself (`count_cells`), and the counts are
added (`merge_cells`). They are integers, smallest and largest values, so that one process and twenty get equal bytes,
however the rows are spread over parts.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from qbw_report.exact import COLUMNS, MOST_TERMS, limb_columns, split_floats
from schemas.errors import QBWError
from schemas.records import RECORD_SCHEMA

TEXTS = (
    "experiment", "split", "data_id", "network_id", "checkpoint", "checkpoint_id", "model_id", "engine",
)  # fmt: skip
"""Columns of text that rows of one cell share."""

READ = (*TEXTS, "epoch", "num_samples", "avg_bitwidth", "correct", "loss", "evaluated_at")
"""Columns of a record that its cell is made from. `accuracy` is not one: it is `correct / num_samples`."""

NUMBERS = ("epoch", "num_samples", "avg_bitwidth", "loss_exponent")
"""Numbers that rows of one cell share; a loss is an integer times two to `loss_exponent`, which is null where the loss
is not finite."""

CORRECT = tuple(f"correct_{place}" for place in range(COLUMNS))
LOSS = tuple(f"loss_{place}" for place in range(COLUMNS))
"""Sums of `qbw_report.exact.limb_columns`."""

_TYPES = {name: RECORD_SCHEMA.field(name).type for name in READ}

_SUMS = ("rows", *CORRECT, *LOSS)
_SMALLEST = ("correct_min", "loss_min")
_LARGEST = ("correct_max", "loss_max", "evaluated_at")


def count_cells(rows: pa.Table, texts: Sequence[str] = TEXTS, same: Mapping[str, object] | None = None) -> pa.Table:
    """Return a line for each cell of these rows: what its rows share, and their sums, smallest and largest values.

    Args:
        rows: with `texts` and the numbers of `READ`, finite `avg_bitwidth` and no nulls in `epoch`, `num_samples`,
            `correct` and `evaluated_at`.
        texts: columns of text that rows of one cell share.
        same: columns that `rows` does not have, because all rows have this value.
    """
    same = same or {}
    loss = rows["loss"].to_numpy()
    finite = np.isfinite(loss)
    mantissas, exponents = split_floats(np.where(finite, loss, 0.0))
    shared = [name for name in (*texts, *NUMBERS[:3]) if name not in same]
    order, starts = _cells([*(_codes(rows[name]) for name in shared), exponents - exponents.min(initial=0), finite])
    firsts = order[starts]
    columns: dict[str, pa.Array] = {name: rows[name].take(pa.array(firsts)) for name in shared}
    columns["loss_exponent"] = pa.array(exponents[firsts], mask=~finite[firsts])
    columns["rows"] = pa.array(np.diff(np.append(starts, len(order))))
    correct, known = rows["correct"].to_numpy(), np.where(finite, loss, np.nan)
    summed = zip((*CORRECT, *LOSS), [*limb_columns(correct), *limb_columns(mantissas)], strict=True)
    columns |= {name: _reduced(np.add, values, order, starts) for name, values in summed}
    columns |= {"correct_min": _reduced(np.minimum, correct, order, starts)}
    columns |= {"correct_max": _reduced(np.maximum, correct, order, starts)}
    columns |= {"loss_min": _reduced(np.minimum, known, order, starts)}
    columns |= {"loss_max": _reduced(np.maximum, known, order, starts)}
    if "evaluated_at" not in same:
        times = rows["evaluated_at"].cast(pa.int64()).to_numpy()
        columns["evaluated_at"] = _reduced(np.maximum, times, order, starts).cast(_TYPES["evaluated_at"])
    columns |= {name: pa.repeat(pa.scalar(value, _TYPES[name]), len(starts)) for name, value in same.items()}
    return pa.table({name: columns[name] for name in (*texts, *NUMBERS, *_SUMS, *_SMALLEST, *_LARGEST)})


def merge_cells(counted: Sequence[pa.Table], texts: Sequence[str] = TEXTS) -> pd.DataFrame:
    """Return the cells of all parts, each once; the order of lines says nothing. `evaluated_at` is the latest.

    Args:
        counted: `count_cells` of each part; at least one line in all.
        texts: columns of text that rows of one cell share.

    Raises:
        QBWError: more rows share a cell than can be added exactly.
    """
    table = pa.concat_tables(counted).combine_chunks()
    shared = [*texts, *NUMBERS]
    order, starts = _cells([_codes(table[name]) for name in shared])
    columns = {name: table[name].take(pa.array(order[starts])) for name in shared}
    for names, function in ((_SUMS, np.add), (_SMALLEST, np.minimum), (_LARGEST, np.maximum)):
        columns |= {name: _reduced(function, table[name].to_numpy(), order, starts) for name in names}
    cells: pd.DataFrame = pa.table(columns).to_pandas()
    if cells["rows"].max() > MOST_TERMS:
        largest = cells.iloc[int(cells["rows"].argmax())]
        raise QBWError(
            f"{largest['experiment']}: epoch {largest['epoch'] + 1} has {largest['rows']:,} rows of equal bitwidth, "
            f"more than the {MOST_TERMS:,} that can be added exactly; report on fewer"
        )
    return cells


def _reduced(function: np.ufunc, values: np.ndarray, order: np.ndarray, starts: np.ndarray) -> pa.Array:
    if not values.any():  # most high limbs are 0 everywhere
        return pa.array(np.zeros(len(starts), values.dtype))
    return pa.array(function.reduceat(values[order], starts), from_pandas=True)  # NaN: there is none


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
