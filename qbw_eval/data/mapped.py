"""A file whose tensors are used where they lie, so that a data set may be larger than memory.

Mapped memory is the file: what somebody writes into it changes under us, and where it is cut short, touching what was
behind its new end kills this process (SIGBUS; no handler in Python can turn that into an error, and none of ours
tries). So a file is mapped only if it was left alone for a while, it must be the same after all checks, and again
before any result is committed. Two things are beyond that: a file cut short between two such looks, and one that
another process writes through a map of its own, which may show in its times only later.
"""

import mmap
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from qbw_eval.data.errors import DataError

SETTLED_S: Final = 60.0
"""How long nobody may have written into a file before it is mapped."""

WORTHWHILE: Final = 2**26
"""Bytes from which on files are mapped; smaller ones are no burden to memory."""

_MAP_NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python before 3.13 has no name for Linux's


@dataclass(frozen=True, kw_only=True)
class _State:
    """What tells whether a file is still the same."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> "_State":
        return cls(device=found.st_dev, inode=found.st_ino, size=found.st_size, mtime_ns=found.st_mtime_ns)


class MappedFile:
    """A file in memory that is the system's to give back: private, so that writing into it does not reach the file.

    Attributes:
        path: the file.
        size: bytes, more than 0.
    """

    def __init__(self, path: Path, memory: mmap.mmap, state: _State) -> None:
        self.path = path
        self.size = state.size
        self.memory = memory
        self._state = state

    @classmethod
    def of(cls, path: Path) -> "MappedFile | None":
        """Return the file, mapped; None where it is small, was written lately, or cannot be mapped."""
        if not hasattr(mmap, "MAP_PRIVATE"):
            return None
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would be waited for
        except OSError:
            return None
        try:
            found = os.fstat(descriptor)
            settled = time.time() - found.st_mtime > SETTLED_S  # not so where the time lies ahead
            if not stat.S_ISREG(found.st_mode) or found.st_size < WORTHWHILE or not settled:
                return None
            # Not reserved: Linux refuses a private map of more than there is of memory, though pages that nobody
            # writes to need none.
            memory = mmap.mmap(
                descriptor,
                found.st_size,
                flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
            return cls(path, memory, _State.of(found))
        except (OSError, ValueError):  # no memory for its page tables, or a file system that maps nothing
            return None
        finally:
            os.close(descriptor)

    def is_unchanged(self) -> bool:
        """Return whether the file of that name is the one that was mapped, and nobody has written into it since."""
        try:
            return _State.of(self.path.stat()) == self._state
        except OSError:
            return False

    def check_unchanged(self) -> None:
        """Check that it is.

        Raises:
            DataError: it is not; what was computed since may be of anything.
        """
        if not self.is_unchanged():
            raise DataError(
                f"{self.path}: changed while it was used, so these results are not kept; run again when it is complete"
            )

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor's values are the file itself, and no copy."""
        first = torch.frombuffer(self.memory, dtype=torch.uint8, count=1).data_ptr()
        return first <= tensor.data_ptr() < first + self.size

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...], first: int) -> Tensor:
        """Return the tensor whose bytes begin at `first`: the file itself where that is float32 and aligned, or a copy.

        The caller has checked that all of them lie within the file.
        """
        count, size = 1, torch.empty((), dtype=dtype).element_size()
        for side in shape:
            count *= side
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        data = torch.frombuffer(self.memory, dtype=torch.uint8, count=count * size, offset=first)
        if dtype != torch.float32 or first % size:
            data = data.clone()
        return data.view(dtype).reshape(shape)
