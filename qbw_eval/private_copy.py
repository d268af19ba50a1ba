"""A file that somebody may be writing -> a copy that nobody else touches, or why there is none.

The copy is what is hashed, checked and loaded. That the file's stamp was the same before and after says little: over
five seconds a slow writer can rest, and network file systems show sizes and times late. So a zip, which is what
`torch.save` writes, must have the checksums that it carries.

Copies lie in `.qbw/watch/` beside the records, under hidden names, each locked by who made it. The kernel gives a lock
back when a process ends, however it ends, so the next watch can tell whose copies nobody needs any more, and removes
them.
"""

import contextlib
import fcntl
import hashlib
import os
import stat
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qbw_eval.checkpoints.find import SUFFIXES
from qbw_eval.store import StoreError
from qbw_eval.watching import STILL_CHANGING, Stamp

_CHUNK = 2**20
_DEAD_AFTER_S = 3600.0
"""Where a file system knows no locks, a copy this old belongs to nobody: it is there while a file is read, once."""


class NotReadyError(Exception):
    """A file cannot be read yet, or not this time; the message says why and goes on with a sentence."""


@dataclass(frozen=True, kw_only=True)
class PrivateCopy:
    """A copy of a finished file.

    Attributes:
        path: where it is, with the suffix of the file.
        sha256: of its bytes.
        checked: whether it carries checksums, and they are right.
    """

    path: Path
    sha256: str
    checked: bool


def stamp_of(path: Path) -> Stamp | None:
    """Return the stamp of a file; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return _stamp(found) if stat.S_ISREG(found.st_mode) else None


def _stamp(found: os.stat_result) -> Stamp:
    return Stamp(inode=found.st_ino, size=found.st_size, mtime_ns=found.st_mtime_ns)


@contextmanager
def private_copy(path: Path, stamp: Stamp, folder: Path) -> Iterator[PrivateCopy]:
    """Copy a file once, hashing what is copied; the copy is there while the block runs.

    Args:
        path: the file.
        stamp: which state of it is wanted.
        folder: where copies go; created where it is missing.

    Raises:
        NotReadyError: the file is another one by now, changed while it was copied, or is not whole.
        StoreError: the copy cannot be written.
    """
    target = folder / f".{uuid.uuid4().hex}{_suffix(path)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise _unwritable(target, error) from None
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # waits for a sweep that is looking at it this very moment
        if not target.exists():
            raise NotReadyError("a watch that started just now took its copy for a dead one's")
        sha256 = _copy(path, stamp, descriptor, target)
        yield PrivateCopy(path=target, sha256=sha256, checked=check_archive(target))
    finally:
        target.unlink(missing_ok=True)
        os.close(descriptor)


def _suffix(path: Path) -> str:
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")


def _copy(path: Path, stamp: Stamp, target: int, name: Path) -> str:
    """Copy a file's bytes to the descriptor `target`; return their sha256."""
    hasher = hashlib.sha256()
    try:
        # A pipe that has taken the file's place would be waited for.
        source = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if _stamp(os.fstat(source)) != stamp:
                raise NotReadyError(STILL_CHANGING)
            while chunk := os.read(source, _CHUNK):
                hasher.update(chunk)
                _write(target, chunk, name)
            # The name's file, not the descriptor's: another one may have been renamed into its place.
            if _stamp(os.fstat(source)) != stamp or stamp_of(path) != stamp:
                raise NotReadyError(STILL_CHANGING)
        finally:
            os.close(source)
    except OSError as error:
        raise NotReadyError(f"it cannot be read ({error.strerror})") from None
    return hasher.hexdigest()


def _write(target: int, chunk: bytes, name: Path) -> None:
    remaining = memoryview(chunk)
    try:
        while remaining:
            remaining = remaining[os.write(target, remaining) :]
    except OSError as error:
        raise _unwritable(name, error) from None


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path.parent}: a copy of a checkpoint cannot be written there ({error.strerror}); "
        "free some space or name another folder with --records, and run the same command again"
    )


def check_archive(path: Path) -> bool:
    """Compare the checksums in a zip; return False where there are none to compare, and the loader must judge alone.

    Raises:
        NotReadyError: the file is empty, or a zip that is not whole.
    """
    with path.open("rb") as file:
        start, size = file.read(2), os.fstat(file.fileno()).st_size
        if not start:
            raise NotReadyError("it is empty")
        if start != b"PK":
            return False
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                # What torch.save never makes is refused by the loader; here it is not to be unpacked.
                plain = all(member.compress_type == zipfile.ZIP_STORED for member in members)
                if not plain or sum(member.file_size for member in members) > size:
                    return False
                damaged = archive.testzip()
        except Exception:  # zipfile raises nearly anything on bytes that are half old and half new
            raise NotReadyError("it is half written, or a damaged zip archive") from None
    if damaged is not None:
        raise NotReadyError(f"its record {damaged!r:.200} fails its checksum: it is half written, or damaged")
    return True


def sweep(folder: Path) -> int:
    """Remove the copies that dead processes left in a folder, and return how many."""
    removed = 0
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):  # somebody else may be sweeping too
                removed += _removed_if_left(path)
    return removed


def _removed_if_left(path: Path) -> bool:
    """Remove a copy whose process has ended; say whether it had. Who makes one waits while we hold its lock."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            if time.time() - os.fstat(descriptor).st_mtime < _DEAD_AFTER_S:
                return False
        path.unlink()
    finally:
        os.close(descriptor)
    return True
