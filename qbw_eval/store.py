"""Rows -> Parquet parts: complete or absent, never changed afterwards.

    records/0-schema.parquet                                   the typed anchor without rows
    records/<checkpoint>-<plan>-<first>-<count>.parquet        one part per chunk, named by what it holds
    layers/<model_id>.parquet                                  layer tables, content-addressed
    .qbw/tmp/                                                  unfinished files, where no reader of records/ looks

A part becomes visible only when its bytes are on the disk: encode in memory and read back, write beside, fsync, link to
the final name (which fails if somebody was first), fsync the folder. Names are deterministic, so an append is
idempotent, what is done is a directory listing, and two evaluators that do the same chunk cannot double it.
"""

import errno
import os
import re
import uuid
from pathlib import Path

import pyarrow as pa

from qbw_eval.layer_table import LayerTable
from schemas import layers, records
from schemas.errors import QBWError
from schemas.parts import ANCHOR_NAME, decode_part, encode_part

_PART_NAME = re.compile(r"(?P<checkpoint>[0-9a-f]{12})-(?P<plan>[0-9a-f]{8})-(?P<first>\d+)-(?P<count>\d+)\.parquet")


class StoreError(QBWError):
    """The records folder cannot be written to, or holds something else under a name of ours."""


class RecordStore:
    """The records folder and its siblings.

    Args:
        records: the folder that people read; created, with its siblings, when something is first written.
    """

    def __init__(self, records: Path) -> None:
        self.records = records
        self.layers = records.parent / "layers"
        self._temporary = records.parent / ".qbw" / "tmp"

    def done(self, checkpoint_id: str, plan_id: str) -> set[int]:
        """Return the indices of the configurations that have been committed."""
        indices: set[int] = set()
        for name in self._names():
            part = _PART_NAME.fullmatch(name)
            if part and part["checkpoint"] == checkpoint_id[:12] and part["plan"] == plan_id[:8]:
                indices |= set(range(int(part["first"]), int(part["first"]) + int(part["count"])))
        return indices

    def _names(self) -> list[str]:
        try:
            return [path.name for path in self.records.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(
                f"{self.records}: cannot be listed ({error.strerror}); name a folder with --records"
            ) from None

    def append(self, checkpoint_id: str, plan_id: str, first: int, table: pa.Table) -> Path:
        """Commit one chunk of consecutive configurations; on return its rows outlive a power cut.

        Raises:
            StoreError: the disk refuses, or another part with other rows has this name. Nothing is left half-written.
            SchemaError: the rows break the schema.
        """
        anchor = self.records / ANCHOR_NAME
        if not anchor.exists():
            self._publish(anchor, records.RECORD_SCHEMA.empty_table(), records.KIND)
        path = self.records / f"{checkpoint_id[:12]}-{plan_id[:8]}-{first}-{table.num_rows}.parquet"
        self._publish(path, table, records.KIND)
        return path

    def add_layers(self, table: LayerTable) -> None:
        """Write a layer table unless it is there."""
        path = self.layers / f"{table.model_id}.parquet"
        if not path.exists():
            self._publish(path, table.to_arrow(), layers.KIND)

    def _publish(self, path: Path, table: pa.Table, kind: str) -> None:
        temporary = self._temporary / uuid.uuid4().hex
        data = encode_part(table, kind, path.name)
        try:
            _make_folder(path.parent)
            _make_folder(self._temporary)
            try:
                _write_synced(temporary, data)
                _link(temporary, path)
            except FileExistsError:
                _check_same(path, table, kind)
            finally:
                temporary.unlink(missing_ok=True)
            # Also when somebody else published it: until the folder is synced the name may be lost in a power cut.
            _sync_folder(path.parent)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be written ({error.strerror}); what was committed before is safe: "
                "free some space or name another folder with --records, and run the same command again"
            ) from None


def _make_folder(folder: Path) -> None:
    """Create a folder and those above it, each entered durably in the one above."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, f"{folder} is no folder") from None
        _sync_folder(folder.parent)


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        remaining = memoryview(data)
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(temporary: Path, path: Path) -> None:
    """Give the finished file its name; the name must be new.

    Raises:
        FileExistsError: it is not.
    """
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # No hard links here. Names are deterministic, so at worst equal rows replace equal rows.
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.replace(path)


def _check_same(path: Path, table: pa.Table, kind: str) -> None:
    """Check that the part somebody else published holds the same rows as ours, provenance aside.

    Raises:
        StoreError: it does not, or it is damaged.
    """
    try:
        there = decode_part(path.read_bytes(), kind, str(path))
    except QBWError as error:
        raise StoreError(error.format_message()) from None
    identity = "record_id" if kind == records.KIND else "model_id"
    if there[identity].to_pylist() != table[identity].to_pylist():
        raise StoreError(f"{path}: holds other rows than its name says; move it away and run again")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
