"""Records folder -> the rows that answers and pictures look at: all of them, or a bounded part of very many.

Statistics are of all rows and come from `qbw_report.survey`. What needs whole rows, with their bits and masks, looks at
no more than `MOST_ROWS`: of the last epoch of every series, and of others at equal steps. Which configurations of an
epoch are looked at is decided by their `config_id`, a hash, so that they are a random sample, and the same ones in
every epoch and series.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from qbw_report.repeats import keys_of
from qbw_report.survey import (
    EPOCH,
    REQUIRED,
    Survey,
    left_out,
    missing_values,
    read_bytes,
    refusal,
    survey,
)
from qbw_report.workers import Each, each_in_order
from schemas import records
from schemas.errors import QBWError
from schemas.parts import decode_part

MOST_ROWS = 200_000
"""Up to so many rows, all are looked at."""

MOST_OF_THE_LAST = 5_000
"""Of more rows, so many configurations of a last epoch: beyond that, the number of samples is what limits answers."""

MOST_OF_OTHERS = 1_000
"""And so many of another epoch, which only pictures are made from."""

_STEPS = [1, *(step * 10**power for power in range(9) for step in (5, 10))]


def read_records(folder: Path, *, skip_bad: bool = False) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of a records folder that are looked at, and sentences about what a reader should know of them.

    The columns are those of `schemas.records.RECORD_SCHEMA` with the dtypes that `pd.read_parquet` gives. Rows come in
    an order that depends on the rows alone, so that how they are spread over parts cannot change a digit.

    Args:
        folder: the records folder.
        skip_bad: leave bad parts out, with a sentence for each, instead of refusing.

    Raises:
        UsageError: there is no such folder.
        QBWError: a part is bad, the folder holds no rows, or a row lacks a value that the report needs.
    """
    found, rows, notes = look(folder, skip_bad=skip_bad)
    return rows[records.RECORD_SCHEMA.names], [*found.left_out, *found.notes, *notes]


def look(
    folder: Path,
    *,
    skip_bad: bool = False,
    choose: Callable[[pd.DataFrame], tuple[pd.DataFrame, list[str]]] | None = None,
    each: Each = each_in_order,
) -> tuple[Survey, pd.DataFrame, list[str]]:
    """Return all rows counted, those that are looked at (with `series`), and a sentence if these are not all.

    Args:
        folder: the records folder.
        skip_bad: leave bad parts out, with a sentence for each, instead of refusing.
        choose: which epochs are looked at; `choose_epochs` if None.
        each: who reads the parts.

    Raises:
        UsageError, QBWError: as `read_records`.
    """
    without: dict[Path, str] = {}
    while True:
        found = survey(folder, skip_bad=skip_bad, without=without, each=each)
        chosen, notes = (choose or choose_epochs)(found.cells)
        rows = rows_of(found, chosen, each)
        if not isinstance(rows, tuple):
            return found, rows, notes
        # Counting looks at the columns that it needs. What is wrong with others is seen now.
        path, error = rows
        if not skip_bad:
            raise refusal(error, folder)
        without[path] = left_out(error)


def choose_epochs(cells: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the epochs that are looked at, each with the share of its configurations, and a sentence if not all are.

    Args:
        cells: of all rows, with `series`.
    """
    counts = count_epochs(cells)
    total, series = int(counts["rows"].sum()), counts["series"].nunique()
    if total <= MOST_ROWS:
        return counts.assign(share=1.0), []
    last = counts["epoch"] == counts.groupby("series")["epoch"].transform("max")
    most = max(min(MOST_OF_THE_LAST, MOST_ROWS // (2 * series)), 1)
    looked_at = counts["rows"].clip(upper=np.where(last, most, MOST_OF_OTHERS))
    for step in _STEPS:
        shown = last | ((counts["epoch"] + 1) % step == 0)
        if looked_at[shown].sum() <= MOST_ROWS or shown.sum() == last.sum():
            break
    which = "others" if step == 1 else f"every {step} epochs"
    note = (
        f"{total:,} rows: statistics are of all of them; answers look at the last epoch of each series, at up to "
        f"{most:,} configurations, and pictures also at {which}, at up to {MOST_OF_OTHERS:,}"
    )
    return counts.assign(share=looked_at / counts["rows"])[shown], [note]


def count_epochs(cells: pd.DataFrame) -> pd.DataFrame:
    """Return how many rows each epoch of each series has: `series`, `EPOCH` and `rows`."""
    return cells.groupby(["series", *EPOCH], dropna=False)["rows"].sum().reset_index()


def rows_of(found: Survey, chosen: pd.DataFrame, each: Each = each_in_order) -> pd.DataFrame | tuple[Path, QBWError]:
    """Return the rows of some epochs, sorted, with `series`; or the first bad part, and what is wrong with it.

    Args:
        found: the records folder.
        chosen: lines of `choose_epochs`.
        each: who reads the parts.

    Raises:
        QBWError: a row lacks a value that the report needs.
    """
    wanted = found.epochs.merge(chosen[[*EPOCH, "share"]], on=EPOCH, how="left")
    whole = (wanted["share"] == 1).groupby(wanted["part"]).all()
    places = [int(place) for place in wanted.loc[wanted["share"].notna(), "part"].unique()]
    tables = [records.RECORD_SCHEMA.empty_table()]
    asked = [(found.parts[place], found.repeated[place], None if whole[place] else chosen) for place in places]
    for place, table in zip(places, each(_rows_of_part, asked), strict=True):
        if isinstance(table, QBWError):
            return found.parts[place], table
        tables.append(table)
    frame = pa.concat_tables(tables).to_pandas()
    for column in REQUIRED:
        missing = frame[column].isna()
        if missing.any():
            record = str(frame.loc[missing, "record_id"].iloc[0])
            raise missing_values(found.folder, column, int(missing.sum()), len(frame), record)
    return sort_rows(frame.merge(chosen[[*EPOCH, "series"]], on=EPOCH, how="left", validate="many_to_one"))


def _rows_of_part(asked: tuple[Path, np.ndarray, pd.DataFrame | None]) -> pa.Table | QBWError:
    """Return the rows of a part that count and are of the chosen epochs (of any, if None), or what is wrong with it."""
    path, repeated, chosen = asked
    try:
        table = decode_part(read_bytes(path), records.KIND, str(path))
    except QBWError as error:
        return error
    kept = np.full(len(table), True)
    kept[repeated] = False
    if chosen is not None:
        shares = table.select(EPOCH).to_pandas().merge(chosen, on=EPOCH, how="left")["share"].to_numpy()
        hashes = keys_of(table["config_id"].fill_null(""))[:, 0] / 2.0**64
        kept &= hashes < shares  # False where the epoch is not chosen: its share is NaN
    return table if kept.all() else table.filter(pa.array(kept))


def sort_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows in an order that does not depend on the parts they came from."""
    order = ["experiment", "split", "data_id", "epoch", "config_index", "record_id", "evaluated_at"]
    return frame.sort_values(order, kind="stable", ignore_index=True)
