"""Tiles that were tuned before, in one JSON file per kind of device and version of everything that was tuned.

The file only saves time. Several processes share it without waiting for each other: it is replaced as a whole, with
what it held before merged in, and what a race may lose its loser writes again with its next tile. Nothing in it is
believed: what is no file of ours, too large, or of other types counts as nothing and is overwritten, and whoever reads
takes only tiles that are among its own candidates. Where no file can be written, tiles last as long as the process.
"""

import hashlib
import json
import os
import stat
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from qbw_eval.engine.triton_kernels import Tile

Tiles = Mapping[str, Tile]
"""Tiles by the name of what they were tuned for."""

_FORMAT: Final = 1
_MOST_TILES: Final = 4096
_LONGEST_NAME: Final = 400  # characters
_LARGEST_NUMBER: Final = 4096
_MAX_BYTES: Final = 2**21  # more than so many tiles with such names take


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return where a user's caches of QBW lie; None where there is no such place.

    >>> str(cache_folder({"XDG_CACHE_HOME": "/scratch/cache"}))
    '/scratch/cache/qbw'
    >>> str(cache_folder({"QBW_CACHE_DIR": "/fast/qbw", "XDG_CACHE_HOME": "/scratch/cache"}))
    '/fast/qbw'
    """
    if environment.get("QBW_CACHE_DIR"):
        return Path(environment["QBW_CACHE_DIR"])
    shared = Path(environment.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():  # the XDG base directory specification has others ignored
        return shared / "qbw"
    try:
        return Path.home() / ".cache" / "qbw"
    except RuntimeError:  # a user without a home
        return None


class TileFile:
    """The file of one identity.

    Args:
        folder: where it lies, created when it is first written; None to keep nothing.
        identity: everything that the fastest tile depends on besides the work itself, in words.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, str]) -> None:
        self._identity = dict(identity)
        digest = hashlib.blake2b(json.dumps(self._identity, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.path = None if folder is None else folder / f"tiles-{digest}.json"

    def read(self) -> dict[str, Tile]:
        """Return what the file holds; nothing where it is not there or makes no sense."""
        try:
            content = json.loads(_bytes_of(self.path)) if self.path is not None else {}
            if (content["format"], content["identity"]) != (_FORMAT, self._identity):
                return {}
            return {name: Tile(*numbers) for name, numbers in content["tiles"].items() if _is_tile(name, numbers)}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return {}

    def merge(self, tiles: Tiles) -> None:
        """Add tiles to what the file holds: written beside, renamed. Where that cannot be, nothing is kept."""
        if self.path is None:
            return
        others = {name: tile for name, tile in self.read().items() if name not in tiles}  # what is given is newer
        merged = dict([*tiles.items(), *others.items()][:_MOST_TILES])
        content = {"format": _FORMAT, "identity": self._identity, "tiles": merged}
        temporary = self.path.with_name(f".{uuid.uuid4().hex}.tmp")
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(json.dumps(content), encoding="utf-8")
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)


def _bytes_of(path: Path) -> bytes:
    """Return a file's bytes, up to more than one of ours may have; a pipe is not waited for.

    Raises:
        OSError: it cannot be read, or is no file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("no file")
    with os.fdopen(descriptor, "rb") as file:
        return file.read(_MAX_BYTES)


def _is_tile(name: str, numbers: Any) -> bool:
    """Return whether an entry can be one of ours, so that what is passed on stays as small as they are."""
    return (
        len(name) <= _LONGEST_NAME
        and name.isascii()
        and name.isprintable()
        and type(numbers) is list
        and len(numbers) == len(Tile._fields)
        and all(type(number) is int and 0 < number <= _LARGEST_NUMBER for number in numbers[:-1])
        and type(numbers[-1]) is bool
    )
