"""How much memory there is, how much of it a run may use, and when it ran out."""

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

_UNITS = {
    "": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGT", start=1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", start=1)},
}


# malloc.h: what glibc's mallopt understands.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEPT = {_M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**26}
_LARGEST_MMAP_THRESHOLDS = (2**30, 2**25)  # older versions of glibc refuse the first


@dataclass(frozen=True)
class MemoryBudget:
    """A number of bytes and what it is spent on; half goes to activations, which no batch can do without.

    Attributes:
        total: bytes.
    """

    total: int

    @property
    def data(self) -> int:
        """Bytes of samples that may stay on a GPU; more are sent there batch by batch."""
        return self.total // 4

    @property
    def caches(self) -> int:
        """Bytes of quantized weights that are kept."""
        return self.total // 4

    @property
    def activations(self) -> int:
        """Bytes of values that live at the same time."""
        return self.total - self.data - self.caches


def parse_size(text: str) -> int:
    """Return the bytes in words such as 800MB, 1.5GiB or 2000000000.

    Raises:
        ValueError: they are not such words; says which are.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    units = {unit.lower(): factor for unit, factor in _UNITS.items()}
    if match is None or match[2].lower() not in units:
        raise ValueError(f"expected a size such as 800MB, 4GiB or a number of bytes, found {text!r}")
    return int(float(match[1]) * units[match[2].lower()])


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device; on the CPU within the limits that this process lives under."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([_available(), *_left_in_cgroup()])


def total_memory() -> int:
    """Return the bytes of memory that there are on this machine, or in this container."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limit_of_cgroup()])


def _limit_of_cgroup(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return what a container may take in all: one number, or none where it is not limited."""
    try:
        return [int((folder / "memory.max").read_text())]
    except (OSError, ValueError):  # no such file, or max
        return []


def _available() -> int:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), flags=re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    except OSError:
        pass  # not Linux
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _left_in_cgroup(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return what a container may still take: one number, or none where it is not limited."""
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return [] if limit == "max" else [max(0, int(limit) - int(used) + _reclaimable(folder))]
    except (OSError, ValueError):
        return []


def _reclaimable(folder: Path) -> int:
    """Return the bytes of page cache that a container is said to use, and that it gives back when they are needed."""
    try:
        found = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), flags=re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device, or this machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # On the CPU torch raises a plain RuntimeError (c10/core/impl/alloc_cpu.cpp).
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory of this process for the next tensor; return whether it listens.

    By default it hands large freed tensors back to the system at once, and the next one page-faults its way in again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = [mallopt(parameter, value) == 1 for parameter, value in _KEPT.items()]
    return all(kept) and any(mallopt(_M_MMAP_THRESHOLD, value) == 1 for value in _LARGEST_MMAP_THRESHOLDS)
