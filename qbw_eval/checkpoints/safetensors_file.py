"""A safetensors file from a stranger -> tensors. Nothing in it is code, and nothing in it is believed.

The layout (huggingface/safetensors, "Format"): eight bytes, a little-endian number of bytes; so many bytes of JSON that
say each tensor's dtype, shape and place; then the tensors' bytes, without a gap, to the end of the file.

Read here, and not with the safetensors package: it is a page; every number in the header is compared with the file
before memory is taken for it; what is wrong is said in our words; and what is hashed is what is loaded: the file is
read once, in order, straight into the tensors (mapped memory would change under us, or kill us, when the file does).
In order: the header must be short and plain JSON; the tensors' places must follow from their dtypes and shapes and fill
the file exactly; only then are they read.
"""

import hashlib
import json
import math
import mmap
import os
import stat
import sys
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Final, Never

import torch
from torch import Tensor

from qbw_eval.checkpoints.safe_load import CheckpointError, LoadedFile
from qbw_eval.memory import free_memory

MAX_HEADER: Final = 2**22
"""Bytes of JSON that are read, a hundred a tensor being usual. The format allows 25 times as many."""

MAX_DIMENSIONS: Final = 16
_MAX_ELEMENTS: Final = 2**48
"""Sizes multiplied, those of 0 left out: what they must stay below for torch's strides to be right."""

_DTYPES: Final = {
    # name: (dtype, bytes an element)
    "BOOL": (torch.bool, 1),
    "U8": (torch.uint8, 1),
    "I8": (torch.int8, 1),
    "U16": (torch.uint16, 2),
    "I16": (torch.int16, 2),
    "U32": (torch.uint32, 4),
    "I32": (torch.int32, 4),
    "U64": (torch.uint64, 8),
    "I64": (torch.int64, 8),
    "F8_E4M3": (torch.float8_e4m3fn, 1),
    "F8_E5M2": (torch.float8_e5m2, 1),
    "F16": (torch.float16, 2),
    "BF16": (torch.bfloat16, 2),
    "F32": (torch.float32, 4),
    "F64": (torch.float64, 8),
    "C64": (torch.complex64, 8),
}


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """What the header says of one tensor; `begin` and `end` count bytes from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def load_safetensors(path: Path) -> LoadedFile:
    """Read a safetensors file.

    Returns:
        A dict of ordinary CPU tensors by name, in the order of the header, and the file's sha256. The header's
        `__metadata__` is checked and left out.

    Raises:
        CheckpointError: no such file, not a safetensors file, cut short or damaged, or larger than what is free.
    """
    if sys.byteorder != "little":
        raise CheckpointError(
            f"{path}: safetensors files are little-endian, this machine is not; save it with torch.save"
        )
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:  # Path.open has no opener
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointError(f"{path}: expected a safetensors file, found a pipe, socket or device")
            return _read(file, found.st_size, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would be waited for


def _read(file: BufferedReader, size: int, path: Path) -> LoadedFile:
    """Return what a file of `size` bytes holds."""
    hasher = hashlib.sha256()
    header = _read_header(file, size, path)
    hasher.update(header)
    entries = _entries(header[8:], path)
    _check_places(entries, size - len(header), path)
    free = free_memory(torch.device("cpu"))
    if size > free:  # its bytes are there, but a sparse file's cost nothing
        raise CheckpointError(f"{path}: holds {size:,} bytes, more than the {free:,} of memory that are free")
    tensors = {}
    for entry in sorted(entries, key=_place):
        tensors[entry.name] = _read_tensor(file, entry, path, hasher)
    return LoadedFile(content={entry.name: tensors[entry.name] for entry in entries}, sha256=hasher.hexdigest())


# --- the header -------------------------------------------------------------------------------------------------------


def _read_header(file: BufferedReader | mmap.mmap, size: int, path: Path) -> bytes:
    """Return the length and the JSON behind it."""
    start = file.read(8)
    if len(start) < 8:
        raise CheckpointError(
            f"{path}: expected a safetensors file, found {len(start)} bytes; is it still being written?"
        )
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{path}: expected a safetensors file, found a header that claims {length:,} bytes (the most is "
            f"{MAX_HEADER:,}); is it another kind of file?"
        )
    if length > size - 8:
        raise CheckpointError(
            f"{path}: its header claims {length:,} bytes, and {max(0, size - 8):,} are there; "
            "cut short, or another kind of file"
        )
    header = file.read(length)
    if len(header) < length:
        raise CheckpointError(f"{path}: was cut short while it was read; is it still being written?")
    return start + header


class _NotPlainError(ValueError):
    """What JSON allows and the format does not."""


def _entries(header: bytes, path: Path) -> list[_Entry]:
    """Return what the header says of every tensor, each thing of the right kind.

    Raises:
        CheckpointError: it is not JSON, or says something else.
    """
    try:
        if not header.startswith(b"{"):  # JSON would allow spaces first, and other things
            raise ValueError
        content = json.loads(header.decode(), object_pairs_hook=_without_doubles, parse_constant=_no_number)
    except _NotPlainError as error:
        raise CheckpointError(f"{path}: its header {error}; damaged, or another kind of file") from None
    except (ValueError, RecursionError):  # not UTF-8, not JSON, a number of thousands of digits, nested too deep
        raise CheckpointError(f"{path}: its header is not JSON; damaged, or another kind of file") from None
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: its __metadata__ is not text by name; damaged, or another kind of file")
    return [_entry(name, facts, path) for name, facts in content.items()]


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise _NotPlainError("gives a name twice")
    return content


def _no_number(word: str) -> Never:
    raise _NotPlainError(f"holds {word}")


def _entry(name: str, facts: object, path: Path) -> _Entry:
    where = f"{path}: {_shown(name)}"
    if not isinstance(facts, dict) or facts.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected dtype, shape and data_offsets in the header, found something else")
    dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(f"{where}: dtype {_shown(dtype)} is none that is read here ({', '.join(_DTYPES)})")
    if (
        not _are_sizes(shape)
        or len(shape) > MAX_DIMENSIONS
        or math.prod(max(1, size) for size in shape) > _MAX_ELEMENTS
    ):
        raise CheckpointError(f"{where}: {_shown(shape)} is no shape of a tensor; damaged")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"{where}: data_offsets are {_shown(offsets)}, expected where it begins and ends; damaged"
        )
    return _Entry(name=name, dtype=dtype, shape=tuple(shape), begin=offsets[0], end=offsets[1])


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)  # true is no 1


def _check_places(entries: list[_Entry], size: int, path: Path) -> None:
    """Check that the tensors, each as long as its dtype and shape say, fill the `size` bytes behind the header."""
    reached = 0
    for entry in sorted(entries, key=_place):
        needed = math.prod(entry.shape) * _DTYPES[entry.dtype][1]
        where = f"{path}: {_shown(entry.name)}"
        if entry.end - entry.begin != needed:
            raise CheckpointError(
                f"{where}: {entry.dtype} of shape {list(entry.shape)} takes {needed:,} bytes, "
                f"data_offsets {_shown([entry.begin, entry.end])} hold another number; damaged"
            )
        if entry.begin != reached:
            what = "overlaps the tensor before it" if entry.begin < reached else "leaves a gap before it"
            raise CheckpointError(f"{where}: {what} (begins at byte {entry.begin}, expected {reached}); damaged")
        reached = entry.end
    if reached != size:
        state = "cut short; copy it again" if reached > size else "damaged"
        raise CheckpointError(f"{path}: its tensors take {reached:,} bytes, {size:,} are there; {state}")


def _place(entry: _Entry) -> tuple[int, int]:
    return entry.begin, entry.end


def _shown(value: object) -> str:
    """Return a stranger's value as one short line."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- the tensors ------------------------------------------------------------------------------------------------------


def _read_tensor(file: BufferedReader, entry: _Entry, path: Path, hasher: "hashlib._Hash") -> Tensor:
    """Return the tensor whose bytes come next."""
    data = torch.empty(entry.end - entry.begin, dtype=torch.uint8)  # aligned for any dtype, unlike the file
    view = data.numpy().data
    if file.readinto(view) < len(view):
        raise CheckpointError(f"{path}: was cut short while it was read; is it still being written?")
    hasher.update(view)
    if entry.dtype == "BOOL" and bool((data > 1).any()):
        raise CheckpointError(f"{path}: {_shown(entry.name)}: a truth value that is neither 0 nor 1; damaged")
    return data.view(_DTYPES[entry.dtype][0]).reshape(entry.shape)


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """Where a tensor lies in a safetensors file.

    Attributes:
        first: the byte that it begins at, from the beginning of the file.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    first: int


def safetensors_places(memory: mmap.mmap, path: Path) -> dict[str, TensorPlace]:
    """Return where the tensors of a mapped file lie, each within it and none over another.

    Raises:
        CheckpointError: not a safetensors file, cut short or damaged.
    """
    memory.seek(0)
    header = _read_header(memory, len(memory), path)
    entries = _entries(header[8:], path)
    _check_places(entries, len(memory) - len(header), path)
    return {
        entry.name: TensorPlace(dtype=_DTYPES[entry.dtype][0], shape=entry.shape, first=len(header) + entry.begin)
        for entry in entries
    }
