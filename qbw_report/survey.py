"""Records folder -> the cells of all its rows, each record once; ten million rows pass through in little memory.

Each part is counted by itself, as a pure function of its bytes (`count_part`); what comes back is small. Which of its
rows repeat another record is known only when all are counted; parts that hold such rows are counted once more.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from qbw_report.cells import NUMBERS, READ, TEXTS, Cells, cells_frame, count_cells, groups_frame, merge_cells
from qbw_report.repeats import keys_of, repeated_rows
from qbw_report.series import add_series
from qbw_report.workers import Each, each_in_order
from schemas import records
from schemas.check import check_counts
from schemas.errors import QBWError, UsageError
from schemas.parts import NewerPartError, open_part, part_paths

REQUIRED = ("experiment", "epoch", "split", "data_id", "checkpoint_id", "config_id", "avg_bitwidth", "evaluated_at")
"""Columns without which a row belongs nowhere. pandas drops groups whose key is missing, so a gap must be an error."""

_MAYBE_SAME = (*TEXTS, *NUMBERS)
"""What the rows of most parts have in common, so that the ranges that the file says are all there is to know."""

ENDLESS = "endless"

_MOST_SAMPLES = 2**53
"""Larger numbers are no doubles, so that an accuracy could not be their exact ratio."""

_ORDER = ["experiment", "split", "data_id", "epoch", "config_index", "evaluated_at", "correct", "loss"]
"""Of rows that repeat a record, the first in this order counts."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What is kept of one part.

    Attributes:
        cells: of its rows; none where `missing` is not empty.
        rows: how many there are.
        run: checkpoint, plan, and first and last index of its configurations, where it is as the store writes parts:
            consecutive configurations of one plan for one checkpoint. None where it is not, or where nobody knows.
        missing: required column -> how many rows have no value there, and the first one's id; under `ENDLESS`, those
            whose average bitwidth is infinite.
    """

    cells: Cells
    rows: int
    run: tuple[str, str, int, int] | None
    missing: Mapping[str, tuple[int, str]]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A records folder, counted.

    Attributes:
        folder: the records folder.
        cells: `qbw_report.cells.cells_frame` of all rows, each record once, with `series`.
        parts: the parts that are not left out, in the order of their names.
        epochs: which epochs are in which of them: `EPOCH`, and `part`, its place.
        repeated: for each of them, the rows that do not count, because they repeat a record.
        left_out: a sentence for each part that is left out.
        notes: other sentences about what a reader should know.
    """

    folder: Path
    cells: pd.DataFrame
    parts: tuple[Path, ...]
    epochs: pd.DataFrame
    repeated: tuple[np.ndarray, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


EPOCH = ["experiment", "split", "data_id", "network_id", "epoch"]
"""What one epoch of one series is, before it has a name."""


def survey(
    folder: Path, *, skip_bad: bool = False, without: Mapping[Path, str] | None = None, each: Each = each_in_order
) -> Survey:
    """Return what all rows of a records folder amount to.

    Args:
        folder: the records folder.
        skip_bad: leave bad parts out, with a sentence for each, instead of refusing.
        without: parts to leave out, with the sentence that says why.
        each: who counts the parts.

    Raises:
        UsageError: there is no such folder.
        QBWError: a part is bad, the folder holds no rows, or a row lacks a value that the report needs.
    """
    said = dict(without or {})
    good: dict[Path, Counted] = {}
    paths = [path for path in checked_part_paths(folder) if path not in said]
    with contextlib.closing(each(count_part, paths)) as counted:
        for path, found in zip(paths, counted, strict=True):
            if isinstance(found, Counted):
                good[path] = found
            elif skip_bad:
                said[path] = left_out(found)
            else:
                raise refusal(found, folder)
    total = sum(part.rows for part in good.values())
    if not total:
        raise QBWError(f"{folder}: holds no rows yet; run `make eval CKPT=...` first")
    _check_required([part.missing for part in good.values()], total, folder)
    repeated = _repeated(good, each)
    for path, rows in repeated.items():
        again = count_part(path, rows)
        assert isinstance(again, Counted)  # parts never change
        good[path] = again
    count = sum(len(rows) for rows in repeated.values())
    says = f"{count} {'row repeats' if count == 1 else 'rows repeat'} a record that is already there; each counts once"
    counts = [part.cells for part in good.values()]
    cells = merge_cells(counts)
    return Survey(
        folder=folder,
        cells=cells_frame(cells, add_series(groups_frame(cells.names, cells.groups))),
        parts=tuple(good),
        epochs=_epochs_of(counts),
        repeated=tuple(repeated.get(path, np.empty(0, np.int64)) for path in good),
        left_out=tuple(said[path] for path in sorted(said)),
        notes=(says,) if count else (),
    )


def count_part(path: Path, without: np.ndarray | None = None) -> Counted | QBWError:
    """Return what is kept of one part, or what is wrong with it.

    Args:
        path: of the part.
        without: rows that do not count.
    """
    try:
        part = open_part(read_bytes(path), records.KIND, str(path))
        ranges = part.ranges([*_MAYBE_SAME, "plan_id", "config_index", "evaluated_at", "correct"])
        same = {name: ranges[name][0] for name in _MAYBE_SAME if name in ranges and _is_one(*ranges[name])}
        if len(same) == len(_MAYBE_SAME) and "evaluated_at" in ranges and without is None:
            same["evaluated_at"] = ranges["evaluated_at"][1]  # the latest, which is all that is wanted of one epoch
        same = same if all(same.get(name, "") is not None for name in REQUIRED) else {}
        rows = part.read([name for name in READ if name not in same])
        if not _are_counts(ranges):
            _check_counts(rows, same, path)
        lacking = ((name, _missing(rows[name])) for name in REQUIRED if name in rows.column_names)
        missing = {name: found for name, found in lacking if found is not None}
        endless = np.flatnonzero(np.isinf(rows["avg_bitwidth"].to_numpy()))
        missing |= {ENDLESS: (len(endless), int(endless[0]))} if len(endless) else {}
        ids = part.read(["record_id"])["record_id"] if missing else pa.chunked_array([], pa.string())
    except QBWError as error:
        return error
    if without is not None:
        rows = rows.take(np.setdiff1d(np.arange(len(rows)), without))
    return Counted(
        cells=count_cells(rows.slice(0, 0) if missing else rows, same=same),
        rows=part.num_rows,
        run=_run_of(ranges, part.num_rows),
        missing={name: (count, ids[first].as_py()) for name, (count, first) in missing.items()},
    )


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a part.

    Raises:
        QBWError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise QBWError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None


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


def refusal(error: QBWError, folder: Path) -> QBWError:
    """Return an error about a bad part with what can be done, besides what it says itself."""
    draw = "to draw without this part, say --skip-bad"
    if isinstance(error, NewerPartError):  # there is nothing to repair
        return QBWError(f"{error.format_message()}; {draw}")
    repair = f"to repair the folder, run: qbw-eval verify {folder} --quarantine"
    return QBWError(f"{error.format_message()}; {repair}; {draw}")


def left_out(error: QBWError) -> str:
    """Return the sentence for a bad part that is left out."""
    return f"left out: {error.format_message()}"


def _is_one(low: object, high: object) -> bool:
    return low == high


def _run_of(ranges: Mapping[str, tuple[object, object]], rows: int) -> tuple[str, str, int, int] | None:
    checkpoint, plan = ranges.get("checkpoint_id", ("", None)), ranges.get("plan_id", ("", None))
    first, last = ranges.get("config_index", (None, None))
    if not isinstance(first, int) or not isinstance(last, int) or last - first + 1 != rows:
        return None
    if not _is_one(*checkpoint) or not _is_one(*plan):
        return None
    return str(checkpoint[0]), str(plan[0]), first, last


def _are_counts(ranges: Mapping[str, tuple[object, object]]) -> bool:
    """Return whether the ranges alone say that the numbers of samples are right."""
    low, high = ranges.get("correct", (None, None))
    least, most = ranges.get("num_samples", (None, None))
    if not (isinstance(low, int) and isinstance(high, int) and isinstance(least, int) and isinstance(most, int)):
        return False
    return low >= 0 and high <= least and least > 0 and most <= _MOST_SAMPLES


def _check_counts(rows: pa.Table, same: Mapping[str, object], path: Path) -> None:
    """Check what counting relies on.

    Raises:
        QBWError: an invariant of records does not hold, or numbers are too large for exact ratios.
    """
    if "num_samples" in same:
        rows = rows.append_column("num_samples", pa.repeat(pa.scalar(same["num_samples"], pa.int64()), len(rows)))
    check_counts(rows, str(path))
    samples = pc.max(rows["num_samples"]).as_py()
    if samples is not None and samples > _MOST_SAMPLES:
        raise QBWError(f"{path}: column 'num_samples': expected at most {_MOST_SAMPLES}, found {samples}")


def _missing(column: pa.ChunkedArray) -> tuple[int, int] | None:
    """Return how many rows have no value, and the first of them; None where all have one."""
    if not column.null_count and not pa.types.is_floating(column.type):
        return None
    # A null among floats is NaN for NumPy.
    floats = pa.types.is_floating(column.type)
    lacking = pa.array(np.isnan(column.to_numpy())) if floats else pc.is_null(column)
    count = pc.sum(lacking).as_py()
    return (count, pc.index(lacking, True).as_py()) if count else None


def _epochs_of(counts: Sequence[Cells]) -> pd.DataFrame:
    """Return which epochs are in which part: `EPOCH`, and `part`, its place."""
    groups = [group for cells in counts for group in cells.groups]
    part = np.repeat(np.arange(len(counts)), [len(cells.groups) for cells in counts])
    return groups_frame(counts[0].names, groups)[EPOCH].assign(part=part).drop_duplicates(ignore_index=True)


def _check_required(missing: Sequence[Mapping[str, tuple[int, str]]], total: int, folder: Path) -> None:
    for column in REQUIRED:
        found = [part[column] for part in missing if column in part]
        if found:
            raise missing_values(folder, column, sum(count for count, _ in found), total, found[0][1])
    endless = [part[ENDLESS] for part in missing if ENDLESS in part]
    if endless:
        raise QBWError(
            f"{folder}: column 'avg_bitwidth': expected a finite number of bits in every row, found infinity in "
            f"{sum(count for count, _ in endless)} of {total} rows (first: record {endless[0][1]}); evaluate those "
            "checkpoints again"
        )


def missing_values(folder: Path, column: str, count: int, total: int, record: str) -> QBWError:
    """Return the error that rows lack a value."""
    return QBWError(
        f"{folder}: column {column!r}: expected a value in every row, found none in {count} of {total} rows (first: "
        f"record {record}); evaluate those checkpoints again"
    )


def _repeated(good: Mapping[Path, Counted], each: Each) -> dict[Path, np.ndarray]:
    """Return, of each part that has such, the rows that repeat a record: all with its id but the first in `_ORDER`."""
    suspects = _suspects({path: part.run for path, part in good.items() if part.rows})
    if not suspects:
        return {}
    keys = dict(zip(suspects, each(_read_keys, suspects), strict=True))
    frames = []
    for number, (path, rows) in enumerate(zip(suspects, repeated_rows(list(keys.values())), strict=True)):
        if len(rows):
            frame = open_part(read_bytes(path), records.KIND, str(path)).read(_ORDER).take(rows).to_pandas()
            high, low = keys[path][rows].T
            frames.append(frame.assign(high=high, low=low, part=number, row=rows))
    if not frames:
        return {}
    ordered = pd.concat(frames).sort_values([*_ORDER, "part", "row"], kind="stable")
    repeats = ordered[ordered.duplicated(["high", "low"])]
    return {suspects[int(number)]: np.sort(rows.to_numpy()) for number, rows in repeats.groupby("part")["row"]}


def _suspects(runs: Mapping[Path, tuple[str, str, int, int] | None]) -> list[Path]:
    """Return the parts that could hold a record which is there already.

    A record's id is made from its checkpoint, plan, index and bits. So of two runs of consecutive configurations, only
    those of one plan for one checkpoint that overlap can share one; with other parts, every part could.
    """
    if None in runs.values():
        return list(runs)
    found: set[Path] = set()
    furthest: tuple[tuple[str, str], int, Path] | None = None
    for path, run in sorted(runs.items(), key=lambda item: item[1] or ()):
        assert run is not None
        of, first, last = run[:2], run[2], run[3]
        if furthest is not None and furthest[0] == of and first <= furthest[1]:
            found |= {path, furthest[2]}
        if furthest is None or furthest[0] != of or last > furthest[1]:
            furthest = of, last, path
    return sorted(found)


def _read_keys(path: Path) -> np.ndarray:
    return keys_of(open_part(read_bytes(path), records.KIND, str(path)).read(["record_id"])["record_id"])
