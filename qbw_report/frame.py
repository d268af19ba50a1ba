"""Records folder -> checked DataFrame."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from schemas import records
from schemas.errors import QBWError, UsageError
from schemas.parts import NewerPartError, decode_part, part_paths

REQUIRED = ("experiment", "epoch", "split", "data_id", "checkpoint_id", "config_id", "avg_bitwidth", "evaluated_at")
"""Columns without which a row belongs nowhere. pandas drops groups whose key is missing, so a gap must be an error."""


def read_records(folder: Path, *, skip_bad: bool = False) -> tuple[pd.DataFrame, list[str]]:
    """Return every row of a records folder, and sentences about what a reader should know of them.

    The columns are those of `schemas.records.RECORD_SCHEMA` with the dtypes that `pd.read_parquet` gives. Rows come in
    an order that depends on the rows alone, so that how they are spread over parts cannot change a digit.

    Args:
        folder: the records folder.
        skip_bad: leave bad parts out, with a sentence for each, instead of refusing.

    Raises:
        UsageError: there is no such folder.
        QBWError: a part is bad, the folder holds no rows, or a row lacks a value that the report needs.
    """
    notes: list[str] = []
    tables = [records.RECORD_SCHEMA.empty_table()]
    for path in checked_part_paths(folder):
        try:
            tables.append(_read_part(path))
        except QBWError as error:
            if not skip_bad:
                raise QBWError(f"{error.format_message()}; {_ways_out(error, folder)}") from None
            notes.append(f"left out: {error.format_message()}")
    table = pa.concat_tables(tables)
    if table.num_rows == 0:
        raise QBWError(f"{folder}: holds no rows yet; run `make eval CKPT=...` first")
    frame = table.to_pandas()
    _check_required(frame, folder)
    rows, repeated = drop_repeated(sort_rows(frame))
    return rows, [*notes, *repeated]


def checked_part_paths(folder: Path) -> list[Path]:
    """Return the parts of a records folder, sorted by name; there is at least one.

    Raises:
        UsageError: there is no such folder.
        QBWError: it holds no Parquet file.
    """
    if not folder.exists():
        raise UsageError(f"{folder}: no such folder; run `make eval CKPT=...` first, or name the records folder")
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder of records, found a file; name the folder that holds it")
    paths = part_paths(folder)
    if not paths:
        raise QBWError(f"{folder}: expected Parquet parts, found none; run `make eval CKPT=...` first")
    return paths


def sort_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows in an order that does not depend on the parts they came from."""
    order = ["experiment", "split", "data_id", "epoch", "config_index", "record_id", "evaluated_at"]
    return frame.sort_values(order, kind="stable", ignore_index=True)


def drop_repeated(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows with each `record_id` once (the first one), and a sentence if any was there more often."""
    repeated = frame["record_id"].duplicated()
    if not repeated.any():
        return frame, []
    count = int(repeated.sum())
    note = f"{count} {'row repeats' if count == 1 else 'rows repeat'} a record that is already there; each counts once"
    return frame[~repeated].reset_index(drop=True), [note]


def _read_part(path: Path) -> pa.Table:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise QBWError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
    return decode_part(data, records.KIND, str(path))


def _ways_out(error: QBWError, folder: Path) -> str:
    """Return what can be done about a bad part, besides what the error itself says."""
    draw = "to draw without this part, say --skip-bad"
    if isinstance(error, NewerPartError):  # there is nothing to repair
        return draw
    return f"to repair the folder, run: qbw-eval verify {folder} --quarantine; {draw}"


def _check_required(frame: pd.DataFrame, folder: Path, required: Sequence[str] = REQUIRED) -> None:
    for column in required:
        missing = frame[column].isna()
        if missing.any():
            record = frame.loc[missing, "record_id"].iloc[0]
            raise QBWError(
                f"{folder}: column {column!r}: expected a value in every row, found none in {int(missing.sum())} of "
                f"{len(frame)} rows (first: record {record}); evaluate those checkpoints again"
            )
