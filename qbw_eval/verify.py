"""Is a records folder what it should be? Every part is read and everything that can be recomputed is.

Per part: page checksums, digest, schema and invariants (`schemas.parts`); its name against its rows; every row's
`record_id` and costs recomputed, its bits against its layer table; and no `record_id` twice in the folder.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from qbw_eval.cost import costs_of
from qbw_eval.dataset import layer_table_path, read_layer_table
from qbw_eval.layer_table import LayerTable
from qbw_eval.store import COMPACT_PREFIX, part_name
from schemas import records
from schemas.errors import QBWError, UsageError
from schemas.parts import ANCHOR_NAME, NewerPartError, decode_part, part_paths
from schemas.records import record_id_of

_NEEDED = ("checkpoint_id", "plan_id", "config_index", "model_id", "bitwidth_options")
"""Columns without which a row cannot be told from others or checked; the schema lets every column be null."""

_NEW = ("relative_weight_bytes",)
"""Costs that rows of schema version 1.0 do not have."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One file that is not what it should be.

    Attributes:
        path: the file; for a layer table that is missing, where it should be.
        what: the sentence for a person.
        movable: whether moving the file away mends the folder; not where a newer QBW wrote it.
    """

    path: Path
    what: str
    movable: bool = True


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found: good parts and rows are counted, bad files named."""

    parts: int
    rows: int
    problems: tuple[Problem, ...]


def verify(folder: Path) -> Verification:
    """Check every part of a records folder and every layer table that its rows refer to.

    Raises:
        UsageError: no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; name a records folder, such as results/records")
    problems = list(_strangers(folder))
    tables: dict[str, LayerTable | None] = {}
    seen: dict[str, Path] = {}
    parts = rows = 0
    for path in part_paths(folder):
        try:
            part = decode_part(path.read_bytes(), records.KIND, path.name)
        except OSError as error:
            problems.append(Problem(path=path, what=f"{path.name}: cannot be read ({error.strerror})"))
            continue
        except QBWError as error:
            movable = not isinstance(error, NewerPartError)
            problems.append(Problem(path=path, what=error.format_message(), movable=movable))
            continue
        problems += _missing_tables(folder, part, tables)
        what = _first_wrong_row(part, path.name, tables) or _repeated(part, path, seen)
        if what:
            problems.append(Problem(path=path, what=what))
            continue
        seen |= dict.fromkeys(part["record_id"].to_pylist(), path)
        parts, rows = parts + 1, rows + part.num_rows
    return Verification(parts=parts, rows=rows, problems=tuple(problems))


def _strangers(folder: Path) -> Iterator[Problem]:
    """Yield what does not belong into a records folder; dask, polars and duckdb would read hidden parts too."""
    parts = set(part_paths(folder))
    for path in sorted(folder.iterdir()):
        if path not in parts:
            yield Problem(path=path, what=f"{path.name}: not a part; a records folder holds nothing else")
    if parts and folder / ANCHOR_NAME not in parts:
        yield Problem(path=folder / ANCHOR_NAME, what=f"{ANCHOR_NAME}: missing; the next run writes it")


def _missing_tables(folder: Path, part: pa.Table, tables: dict[str, LayerTable | None]) -> Iterator[Problem]:
    """Read the layer tables that a part refers to into `tables`, None for one that is bad, which is yielded once.

    What is no hash names no layer table of ours, but could name a file anywhere: it is left to the rows' own check.
    """
    for model_id in dict.fromkeys(part["model_id"].to_pylist()):
        if model_id not in tables and re.fullmatch("[0-9a-f]{32}", model_id or ""):
            try:
                tables[model_id] = LayerTable.from_arrow(read_layer_table(folder, model_id))
            except QBWError as error:
                tables[model_id] = None
                yield Problem(path=layer_table_path(folder, model_id), what=error.format_message())


def _first_wrong_row(part: pa.Table, name: str, tables: dict[str, LayerTable | None]) -> str | None:
    """Return a sentence on the first row that is not what its own columns, its name and its layer table say."""
    if not part.num_rows and name != ANCHOR_NAME:
        return f"{name}: holds no rows"
    for number, row in enumerate(part.to_pylist()):
        where = f"{name}: row {number}"
        missing = [column for column in _NEEDED if not row[column] and row[column] != 0]
        if missing:
            return f"{where}: has no {missing[0]}"
        record_id = record_id_of(row["checkpoint_id"], row["plan_id"], row["bitwidths"], row["config_index"])
        if row["record_id"] != record_id:
            return f"{where}: record_id is {row['record_id']}; its columns give {record_id}"
        expected = part_name(row["checkpoint_id"], row["plan_id"], row["config_index"] - number)
        if name != expected and not name.startswith(COMPACT_PREFIX):
            return f"{where}: belongs into a part called {expected}"
        if not set(row["bitwidths"]) <= set(row["bitwidth_options"]):
            return f"{where}: bitwidths {row['bitwidths']} are not all among its options {row['bitwidth_options']}"
        if row["model_id"] not in tables:
            return f"{where}: model_id {row['model_id']!r} is no hash of a layer table"
        table = tables[row["model_id"]]
        if table is not None:
            if len(row["bitwidths"]) != len(table):
                return f"{where}: has bits for {len(row['bitwidths'])} layers; its layer table has {len(table)}"
            costs = costs_of(row["bitwidths"], table, max(bits or 0 for bits in row["bitwidth_options"]))
            known = {cost: value for cost, value in vars(costs).items() if row[cost] is not None or cost not in _NEW}
            wrong = [cost for cost, value in known.items() if row[cost] != value]
            if wrong:
                return f"{where}: {wrong[0]} is {row[wrong[0]]}; its bits and layers give {vars(costs)[wrong[0]]}"
    return None


def _repeated(part: pa.Table, path: Path, seen: dict[str, Path]) -> str | None:
    ids = part["record_id"].to_pylist()
    for number, record_id in enumerate(ids):
        if record_id in seen:
            return f"{path.name}: row {number}: record {record_id} is in {seen[record_id].name} too"
    if len(set(ids)) != len(ids):
        return f"{path.name}: holds a record twice"
    return None
