"""What the tests of the store's side share: file operations that are recorded or fail, and rows that verify."""

import errno
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from stage_references import CHECKPOINT_ID, PLAN_ID, contents, costs_by_counting, hash_by_hand

from qbw_eval.files import Files
from qbw_eval.layer_table import Layer, LayerTable
from qbw_eval.store import RecordStore
from schemas import records
from schemas.parts import decode_part, digest_of
from schemas.records import RECORD_SCHEMA

PREFIX = "c0ffeec0ffee-01234567-"
"""How the names of parts of `CHECKPOINT_ID` and `PLAN_ID` begin."""

FIRST = f"{PREFIX}000000.parquet"


def layer_table(*names: str) -> LayerTable:
    """Return a table of layers that differ in their sizes."""
    return LayerTable(
        tuple(
            Layer(
                layer_name=name,
                kind="conv2d",
                weights=36 * (index + 1),
                macs=144 + index,
                in_channels=2,
                out_channels=2,
                kernel="3x3",
                stride="1x1",
            )
            for index, name in enumerate(names)
        )
    )


TABLE = layer_table("conv1", "conv2")
OTHER_TABLE = layer_table("conv1", "block.conv2", "head")


def true_rows(first: int, count: int, table: LayerTable = TABLE, **shared: Any) -> list[dict[str, Any]]:
    """Return rows in which everything that can be recomputed is right; `shared` goes in before that is computed."""
    layers = [vars(layer) for layer in table.layers]
    rows = []
    for index in range(first, first + count):
        row: dict[str, Any] = {
            **dict.fromkeys(RECORD_SCHEMA.names),
            "experiment": "made up",
            "checkpoint": "epoch_001.pt",
            "checkpoint_id": CHECKPOINT_ID,
            "epoch": 0,
            "plan_id": PLAN_ID,
            "config_index": index,
            "model_id": table.model_id,
            "num_samples": 10,
            "correct": index % 11,
            "accuracy": (index % 11) / 10,
            "loss": 1 / (index + 1),
            "correct_mask": bytes([index % 256, 1]),
            "bitwidths": [(2, 4, 8)[(index + layer) % 3] for layer in range(len(layers))],
            "bitwidth_options": [2, 4, 8],
            "evaluated_at": datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC),
            "extras_json": '{"note": "ü, \\"quoted\\""}',
            **shared,
        }
        identity = ("checkpoint_id", "plan_id", "bitwidths", "config_index")
        row["record_id"] = hash_by_hand(**{name: row[name] for name in identity})
        rows.append(row | costs_by_counting(row["bitwidths"], layers, max(row["bitwidth_options"])))
    return rows


def table_of(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Return the rows as a table in the schema of records."""
    return pa.table([pa.array([row[f.name] for row in rows], f.type) for f in RECORD_SCHEMA], schema=RECORD_SCHEMA)


def part_bytes(table: pa.Table, version: str = "1.1", kind: str = records.KIND) -> bytes:
    """Return the bytes of a part as a careless or future writer would make it: nothing is checked."""
    tags = {"kind": kind, "schema_version": version, "rows": str(table.num_rows), "digest": digest_of(table)}
    sink = pa.BufferOutputStream()
    tagged = table.replace_schema_metadata({f"qbw.{key}": value for key, value in tags.items()})
    pq.write_table(tagged, sink, write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def good_folder(folder: Path, count: int = 6, chunk: int = 2) -> RecordStore:
    """Write a records folder in which nothing is wrong: `count` rows in parts of `chunk`, the last at most as long."""
    store = RecordStore(folder / "records")
    store.add_layers(TABLE)
    for first in range(0, count, chunk):
        store.append(CHECKPOINT_ID, PLAN_ID, table_of(true_rows(first, min(chunk, count - first))))
    return store


def parts_in(store: RecordStore) -> list[str]:
    """Return the names in the records folder, each of which must be a whole part."""
    names = sorted(path.name for path in store.records.iterdir()) if store.records.exists() else []
    for name in names:
        decode_part((store.records / name).read_bytes(), records.KIND, name)
    return names


def indices_in(store: RecordStore) -> list[int]:
    """Return the `config_index` of every row of every part, in the order of their names."""
    tables = [decode_part((store.records / n).read_bytes(), records.KIND, n) for n in parts_in(store)]
    return [index for table in tables for index in table["config_index"].to_pylist()]


def left_over(store: RecordStore) -> list[str]:
    """Return the names of unfinished files."""
    folder = store.private / "tmp"
    return sorted(contents(folder)) if folder.exists() else []


def damage(path: Path) -> None:
    """Flip all bits where a part has the values of its first columns."""
    data = path.read_bytes()
    path.write_bytes(data[:20] + bytes(byte ^ 0xFF for byte in data[20:400]) + data[400:])


# mutmut puts its mutants beside the methods, under names with a letter that nobody types.
OPERATIONS = tuple(name for name in vars(Files) if not name.startswith("_") and name.isascii())


class Faults(Files):
    """The real file system, but for what is said here.

    Attributes:
        events: what was done, as `operation name` (of a descriptor, the name that it was created under).
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self._replaced: dict[str, Callable[..., Any]] = {}
        self._opened: dict[int, str] = {}

    def replace(self, operation: str, by: Callable[..., Any]) -> "Faults":
        """Do `by(*arguments)` for an operation, which may call the real one: `Files.write(self, ...)`."""
        assert operation in OPERATIONS
        self._replaced[operation] = by
        return self

    def fail(self, operation: str, number: int, *, skip: int = 0, about: str = "") -> "Faults":
        """Let one call of an operation (after the first `skip` ones) whose event holds `about` raise this errno."""
        calls = 0

        def maybe(*arguments: Any) -> Any:
            nonlocal calls
            calls += about in self.events[-1]
            if about in self.events[-1] and calls == skip + 1:
                raise OSError(number, os.strerror(number))
            return getattr(Files, operation)(self, *arguments)

        return self.replace(operation, maybe)

    def heal(self) -> None:
        """Forget all faults and events."""
        self._replaced.clear()
        self.events.clear()

    def _done(self, operation: str, *arguments: Any) -> Any:
        subject = arguments[-1] if operation in ("name", "move") else arguments[0]
        if isinstance(subject, int):
            name = self._opened[subject]
        else:
            name = "temporary" if subject.parent.name == "tmp" else subject.name
        self.events.append(f"{operation} {name}")
        real = getattr(Files, operation)
        result = self._replaced.get(operation, lambda *given: real(self, *given))(*arguments)
        if operation == "create":
            self._opened[result] = name
        return result


def _recorded(operation: str) -> Callable[..., Any]:
    return lambda self, *arguments: self._done(operation, *arguments)


for _operation in OPERATIONS:
    setattr(Faults, _operation, _recorded(_operation))


def refusing(number: int) -> Callable[..., Any]:
    """Return a function that always raises this errno."""

    def refuse(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
