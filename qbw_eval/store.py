"""Rows -> Parquet parts: complete or absent, never changed afterwards.

    records/0-schema.parquet                      the typed anchor without rows; the only part that is ever replaced
    records/<checkpoint>-<plan>-<first>.parquet   rows of one plan for one checkpoint, from configuration <first> on
    records/compact-<number>.parquet              rows of many, in a dataset that `compact` wrote
    layers/<model_id>.parquet                     layer tables, content-addressed
    .qbw/tmp/                                     unfinished files, where no reader of records/ looks
    .qbw/claims/                                  who is working on what, see `claims`
    .qbw/quarantine/                              bad parts that `verify --quarantine` moved away

A part becomes visible only when its bytes are on the disk: encode in memory and read back, write beside, fsync, link to
the final name (which fails if somebody was first), fsync the folder; only then are its rows acknowledged.

Names are deterministic, so evaluators need no coordination: what is done is what the parts hold, and of two that do the
same work one wins. A part's name says where it starts and not how long it is, so that two runs that were asked for
different numbers of configurations cannot publish overlapping parts either: each starts where the parts before it end.
"""

import contextlib
import errno
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from qbw_eval.claims import claim
from qbw_eval.files import Files
from qbw_eval.layer_table import LayerTable
from schemas import layers, records
from schemas.errors import QBWError
from schemas.parts import ANCHOR_NAME, NewerPartError, decode_part, encode_part, lacks_columns

_DEAD_AFTER_S = 3600.0
"""A temporary file lives for milliseconds; one this old was left by a dead process, whatever the clocks disagree by."""

_OPTIONAL = ("agreement", "correct_mask", "kl_divergence", "top5_correct", "correct_per_class")
"""Columns that are null where somebody did not want them measured, or where QBW could not yet."""

COMPACT_PREFIX = "compact-"
"""How the names of parts begin that hold rows of several checkpoints or plans."""

_SYNCED_LEVELS = 3
"""Folders above a part whose names are synced too: `records`, `results`, and where those were created."""


class StoreError(QBWError):
    """The records folder cannot be written to, or holds something else under a name of ours."""


class RecordStore:
    """The records folder and its siblings.

    Args:
        path: the folder that people read; created, with its siblings, when something is first written.
        files: the file operations; tests pass ones that fail.
    """

    def __init__(self, path: Path, files: Files | None = None) -> None:
        self.records = path
        self.layers = path.parent / "layers"
        self.private = path.parent / ".qbw"
        self._temporary = self.private / "tmp"
        self._files = files or Files()
        self._durable: set[Path] = set()
        self._seen: dict[str, pa.Table] = {}
        self._anchor_seen = False

    def done(self, checkpoint_id: str, plan_id: str) -> set[int]:
        """Return the indices of the configurations that have been committed, having checked the parts they are in.

        Raises:
            StoreError: a part is damaged, and evaluating the rest would not make the records readable; or the disk
                does not promise to keep the parts.
        """
        indices = {index for rows in self._rows(checkpoint_id, plan_id) for index in rows["config_index"].to_pylist()}
        if indices:
            self._keep_names(self.records)
        return indices

    def lacking(self, checkpoint_id: str, plan_id: str) -> set[str]:
        """Return the names of measurements that are null in some committed row of a plan.

        Raises:
            StoreError: a part is damaged.
        """
        parts = list(self._rows(checkpoint_id, plan_id))
        return {name for name in _OPTIONAL if any(pc.any(rows[name]).as_py() for rows in parts)}

    def _rows(self, checkpoint_id: str, plan_id: str) -> Iterator[pa.Table]:
        """Yield, part by part, what is remembered of the rows of a plan."""
        prefix = _prefix(checkpoint_id, plan_id)
        for name in self._names(self.records):
            if name.startswith((prefix, COMPACT_PREFIX)) and name.endswith(".parquet"):
                part = self._remembered(name)
                # The name holds the beginnings of the hashes only; the rows hold all of them.
                mine = pc.and_(pc.equal(part["checkpoint_id"], checkpoint_id), pc.equal(part["plan_id"], plan_id))
                yield part.filter(mine)

    def _names(self, folder: Path) -> list[str]:
        try:
            return self._files.names(folder)
        except OSError as error:
            raise StoreError(f"{folder}: not a folder ({error.strerror}); name another one with --records") from None

    def _read(self, path: Path) -> pa.Table:
        try:
            return decode_part(self._files.read(path), records.KIND, path.name)
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror}); check the disk and its permissions") from None
        except NewerPartError as error:
            raise StoreError(f"{path.parent}: {error.format_message()}") from None
        except QBWError as error:
            raise StoreError(
                f"{path.parent}: {error.format_message()}: qbw-eval verify {path.parent} --quarantine"
            ) from None

    def _remembered(self, name: str) -> pa.Table:
        """Return which rows a part holds, and where they have nulls; parts never change, so each is read once."""
        if name not in self._seen:
            part = self._read(self.records / name)
            remembered = part.select(["checkpoint_id", "plan_id", "config_index"])
            for column in _OPTIONAL:
                remembered = remembered.append_column(column, pc.is_null(part[column]))
            self._seen[name] = remembered
        return self._seen[name]

    def claimed(self, checkpoint_id: str, plan_id: str, first: int, chunk_size: int) -> AbstractContextManager[bool]:
        """Try to hold the claim on the chunk that configuration `first` is in; see `claims.claim`."""
        number = first // chunk_size * chunk_size
        return claim(self.private / "claims" / f"{_prefix(checkpoint_id, plan_id)}{number:06d}.lock")

    def append(self, checkpoint_id: str, plan_id: str, rows: pa.Table) -> int:
        """Commit rows of consecutive configurations and return how many are new; on return they outlive a power cut.

        Rows that somebody else has committed meanwhile are left as they are.

        Raises:
            StoreError: the disk refuses, or another part with other rows has this name. Nothing is left half-written.
            SchemaError: the rows break the schema.
        """
        self._add_anchor()
        while rows.num_rows:
            first = rows["config_index"][0].as_py()
            path = self.records / part_name(checkpoint_id, plan_id, first)
            if self._publish(path, rows, records.KIND):
                return int(rows.num_rows)
            there = self._read(path)
            shared = min(there.num_rows, rows.num_rows)
            if not shared or not there["record_id"].slice(0, shared).equals(rows["record_id"].slice(0, shared)):
                raise StoreError(f"{path}: holds other rows than its name says; move it away and run again")
            rows = rows.slice(shared)
        return 0

    def _add_anchor(self) -> None:
        """Write the anchor where it is missing, and anew where an earlier version wrote it.

        pandas leaves out, without a word, the columns that the anchor does not have. It holds no rows, so of all parts
        it alone may be replaced while others read.
        """
        path, empty = self.records / ANCHOR_NAME, records.RECORD_SCHEMA.empty_table()
        if ANCHOR_NAME not in self._names(self.records):
            self._publish(path, empty, records.KIND)
        elif not self._anchor_seen:
            with contextlib.suppress(OSError):  # who cannot read it cannot tell; `verify` can
                if lacks_columns(self._files.read(path), records.KIND):
                    self._publish(path, empty, records.KIND, replace=True)
        self._anchor_seen = True

    def add_layers(self, table: LayerTable) -> None:
        """Write a layer table unless it is there, and the anchor: what readers need whether or not rows follow."""
        self._add_anchor()
        name = f"{table.model_id}.parquet"
        if name not in self._names(self.layers):
            self._publish(self.layers / name, table.to_arrow(), layers.KIND)
        else:
            self._keep_names(self.layers)

    def sweep(self) -> int:
        """Remove temporary files that dead processes left, and return how many; what cannot be removed stays."""
        removed = 0
        with contextlib.suppress(OSError):
            for name in self._files.names(self._temporary):
                path = self._temporary / name
                with contextlib.suppress(OSError):  # somebody else may be sweeping too
                    if self._files.age(path) > _DEAD_AFTER_S:
                        self._files.remove(path)
                        removed += 1
        return removed

    def add_compact(self, number: int, rows: pa.Table) -> None:
        """Commit a part that holds rows of several checkpoints or plans.

        Raises:
            StoreError: the disk refuses, or there is a part of this number.
        """
        path = self.records / f"{COMPACT_PREFIX}{number:06d}.parquet"
        self._add_anchor()
        if not self._publish(path, rows, records.KIND):
            raise StoreError(f"{path}: is there already; compact into a new folder")

    def quarantine(self, path: Path) -> Path:
        """Move a bad part or layer table to where it can be looked at, out of every reader's way; return its new path.

        Raises:
            StoreError: it cannot be moved.
        """
        folder = self.private / "quarantine"
        moved = folder / f"{uuid.uuid4().hex[:8]}-{path.name}"
        try:
            self._make_folder(folder)
            self._files.move(path, moved)
            self._files.sync_folder(folder)
            self._files.sync_folder(path.parent)
        except OSError as error:
            raise StoreError(f"{path}: cannot be moved to {folder} ({error.strerror}); move it by hand") from None
        return moved

    def _publish(self, path: Path, table: pa.Table, kind: str, *, replace: bool = False) -> bool:
        """Write a part durably under its final name and return True; False, durably too, where the name is taken.

        With `replace`, what has the name gives way in one step.
        """
        data = encode_part(table, kind, path.name)
        temporary = self._temporary / uuid.uuid4().hex
        try:
            self._make_folder(path.parent)
            self._make_folder(self._temporary)
            try:
                self._write_synced(temporary, data)
                (self._files.move if replace else self._files.name)(temporary, path)
                new = True
            except FileExistsError:
                new = False
            finally:
                self._files.remove(temporary)
            # Also when somebody else published it: until the folder is synced the name may be lost in a power cut.
            self._files.sync_folder(path.parent)
        except OSError as error:
            remedy = "free some space or name another folder with --records"
            if error.errno == errno.EXDEV:
                remedy = f"{path.parent} and {self.private} must be on one file system; name another folder"
            raise StoreError(
                f"{path}: cannot be written ({error.strerror}); what was committed before is safe: "
                f"{remedy}, and run the same command again"
            ) from None
        return new

    def _keep_names(self, folder: Path) -> None:
        """Make durable the names that are in a folder: who published them may have died before it came to that."""
        try:
            self._make_folder(folder)
            self._files.sync_folder(folder)
        except OSError as error:
            if error.errno != errno.EROFS:  # a dry run may look at a read-only disk, which has nothing to write
                raise StoreError(f"{folder}: cannot be synced ({error.strerror}); check the disk") from None

    def _write_synced(self, path: Path, data: bytes) -> None:
        descriptor = self._files.create(path)
        try:
            remaining = memoryview(data)
            while remaining:
                remaining = remaining[self._files.write(descriptor, remaining) :]
            # After a failed sync the kernel may call the data clean: the descriptor is never synced again.
            self._files.sync(descriptor)
        finally:
            self._files.close(descriptor)

    def _make_folder(self, folder: Path) -> None:
        """Create a folder and those above it, each entered durably in the one above.

        A folder that is there may have been made a moment ago by somebody who has not synced its name yet, so the names
        of the innermost folders are synced in any case, once.
        """
        if folder in self._durable:
            return
        self._create_folder(folder)
        self._files.sync_folder(folder.parent)
        for outer in folder.absolute().parents[1:_SYNCED_LEVELS]:
            with contextlib.suppress(PermissionError):  # such as /home on a cluster; we did not create that one
                self._files.sync_folder(outer)
        self._durable.add(folder)

    def _create_folder(self, folder: Path) -> None:
        if not self._files.is_folder(folder):
            self._create_folder(folder.parent)
            self._files.make_folder(folder)
            self._files.sync_folder(folder.parent)


def part_name(checkpoint_id: str, plan_id: str, first: int) -> str:
    """Return the name of the part whose rows start at configuration `first`."""
    return f"{_prefix(checkpoint_id, plan_id)}{first:06d}.parquet"


def _prefix(checkpoint_id: str, plan_id: str) -> str:
    return f"{checkpoint_id[:12]}-{plan_id[:8]}-"
