"""A file system in memory that forgets at a power cut what nobody synced, and fails where it is told to.

It is harsher than any real one: an unsynced name and the unsynced bytes of a file are lost, kept or torn independently
of each other and of the order in which they came about.
"""

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qbw_eval.files import Files


class ProcessDiedError(BaseException):
    """The process ended here; nothing may catch it."""


@dataclass
class File:
    """What a process reads, and what is on the disk."""

    data: bytes = b""
    synced: bytes = b""
    sync_failed: bool = False  # the kernel then calls the bytes clean: no later sync writes them


@dataclass
class Folder:
    """Names: those that a process sees, and those that are on the disk."""

    entries: dict[str, "File | Folder"] = field(default_factory=dict)
    synced: dict[str, "File | Folder"] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """What happens at an operation.

    Attributes:
        kind: "die", "die after", "EIO", "ENOSPC", "EINTR", "EIO after" or "short" (write half of what was given).
        at: the number of the operation, from 1.
    """

    kind: str
    at: int


KINDS = ("die", "die after", "EIO", "ENOSPC", "EINTR", "EIO after", "short")


class ModelFiles(Files):
    """The operations of the store on a model of a disk.

    Args:
        root: the disk, shared by all that work on it.
        fault: what goes wrong, once.
        forgotten: operations ("sync", "sync_folder") that do nothing: for the control.
    """

    def __init__(self, root: Folder, fault: Fault | None = None, forgotten: tuple[str, ...] = ()) -> None:
        self.root = root
        self.count = 0
        self.happened = ""
        self._fault = fault
        self._forgotten = forgotten
        self._open: dict[int, File] = {}

    def _do(self, operation: str, effect: Callable[[], object]) -> object:
        """Count an operation, and do it or let it fail."""
        self.count += 1
        if self._fault is None or self.count != self._fault.at or self._fault.kind == "short":
            return effect()
        self.happened = operation
        kind = self._fault.kind
        if kind == "die":
            raise ProcessDiedError
        if kind in ("die after", "EIO after"):
            effect()
            if kind == "die after":
                raise ProcessDiedError
        number = getattr(errno, kind.removesuffix(" after"))
        raise OSError(number, os.strerror(number))

    def _find(self, path: Path) -> "File | Folder | None":
        node: File | Folder | None = self.root
        for name in path.parts[1:]:
            node = node.entries.get(name) if isinstance(node, Folder) else None
        return node

    def _folder(self, path: Path) -> Folder:
        node = self._find(path)
        if not isinstance(node, Folder):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return node

    def _file(self, path: Path) -> File:
        node = self._find(path)
        if not isinstance(node, File):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return node

    def is_folder(self, path: Path) -> bool:
        return isinstance(self._find(path), Folder)

    def make_folder(self, path: Path) -> None:
        self._do("make_folder", lambda: self._folder(path.parent).entries.setdefault(path.name, Folder()))

    def names(self, folder: Path) -> list[str]:
        def effect() -> list[str]:
            return sorted(self._folder(folder).entries) if self.is_folder(folder) else []

        return self._do("names", effect)  # type: ignore[return-value]

    def read(self, path: Path) -> bytes:
        return self._do("read", lambda: self._file(path).data)  # type: ignore[return-value]

    def create(self, path: Path) -> int:
        def effect() -> int:
            entries = self._folder(path.parent).entries
            if path.name in entries:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            file = entries[path.name] = File()
            self._open[self.count] = file
            return self.count

        return self._do("create", effect)  # type: ignore[return-value]

    def write(self, descriptor: int, data: memoryview) -> int:
        file, given = self._open[descriptor], data

        def effect() -> int:
            file.data += bytes(given)
            return len(given)

        if self._fault == Fault("short", self.count + 1):
            self.happened = "write"
            given = data[: len(data) // 2]
        return self._do("write", effect)  # type: ignore[return-value]

    def sync(self, descriptor: int) -> None:
        file = self._open[descriptor]

        def effect() -> None:
            if not file.sync_failed and "sync" not in self._forgotten:
                file.synced = file.data

        try:
            self._do("sync", effect)
        except OSError:
            file.sync_failed = True
            raise

    def close(self, descriptor: int) -> None:
        del self._open[descriptor]
        self._do("close", lambda: None)

    def name(self, temporary: Path, final: Path) -> None:
        def effect() -> None:
            entries = self._folder(final.parent).entries
            if final.name in entries:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
            entries[final.name] = self._file(temporary)

        self._do("name", effect)

    def age(self, path: Path) -> float:
        self._file(path)
        return 1e9  # every temporary file that is there when a process starts was left by a dead one

    def remove(self, path: Path) -> None:
        self._do("remove", lambda: self._folder(path.parent).entries.pop(path.name, None))

    def sync_folder(self, folder: Path) -> None:
        def effect() -> None:
            node = self._folder(folder)
            if "sync_folder" not in self._forgotten:
                node.synced = dict(node.entries)

        self._do("sync_folder", effect)


def after_power_cut(folder: Folder, keep_names: float, keep_bytes: float, draw: random.Random) -> Folder:
    """Return the disk as it is found after the power came back.

    Args:
        folder: the disk before.
        keep_names: the probability that an unsynced change of a name survives.
        keep_bytes: the probability that a file's unsynced bytes survive; bytes that do not survive whole are lost or
            torn (cut short, or zeros from some place on).
        draw: decides.
    """
    found: dict[str, File | Folder] = {}
    for name in sorted(folder.entries.keys() | folder.synced.keys()):
        now, then = folder.entries.get(name), folder.synced.get(name)
        node = now if now is then or draw.random() < keep_names else then
        if isinstance(node, Folder):
            found[name] = after_power_cut(node, keep_names, keep_bytes, draw)
        elif isinstance(node, File):
            data = node.data if draw.random() < keep_bytes else _torn(node, draw)
            found[name] = File(data, data)
    return Folder(dict(found), dict(found))


def _torn(file: File, draw: random.Random) -> bytes:
    if file.data == file.synced:
        return file.data
    whole = draw.randrange(len(file.data))
    return draw.choice([file.synced, file.data[:whole], file.data[:whole].ljust(len(file.data), b"\0")])
