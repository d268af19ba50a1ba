"""A .npz file from a stranger -> tensors. Never unpickles, and never allocates what only a header claims."""

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from qbw_eval.data.errors import DataError
from qbw_eval.data.mapped import MappedFile

_PIECE: Final = 2**24
_MAX_HEADER: Final = 2**17  # bytes; NumPy itself reads no longer ones than 10,000
_ENCRYPTED: Final = 0x1
_LOCAL_HEADER: Final = 30  # bytes, and then the name and whatever else


def read_npz(path: Path) -> dict[str, Tensor]:
    """Return the arrays in a file by name.

    Raises:
        DataError: it is damaged, no such file, or claims more than it holds.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            # Deflated images shrink tenfold at best; a thousandfold is a bomb.
            if unpacked > 100 * path.stat().st_size + 2**20:
                raise DataError(f"{path}: claims {unpacked} bytes in a file of {path.stat().st_size}; refused")
            arrays = {}
            for member in members:
                with archive.open(member) as file:
                    arrays[member.filename.removesuffix(".npy")] = _read_npy(file.read(), f"{path}: {member.filename}")
            return arrays
    except DataError:
        raise
    except Exception as error:  # zipfile and its decompressors raise nearly anything on crafted bytes
        raise DataError(f"{path}: not a readable .npz file ({error})") from None


def _read_npy(data: bytes, where: str) -> Tensor:
    """Return the array in the bytes of a .npy file, which must be exactly as long as its header says."""
    dtype, shape, fortran_order, first = _header(data, len(data), where)
    try:
        array = np.frombuffer(data, dtype, offset=first).reshape(shape, order="F" if fortran_order else "C")
        return torch.from_numpy(array.astype(dtype.newbyteorder("=")))  # astype copies: the buffer is read-only
    except Exception as error:  # of what is left, such as texts, torch has no tensors
        raise DataError(f"{where}: not a readable array ({error})") from None


def _header(data: bytes, size: int, where: str) -> tuple["np.dtype[Any]", tuple[int, ...], bool, int]:
    """Return what the beginning of a .npy file of `size` bytes says: dtype, shape, order, and where the values begin.

    Raises:
        DataError: it is none, or the size is another.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(stream)
    except Exception as error:  # NumPy has Python parse the header, which fails in many ways on a crafted one
        raise DataError(f"{where}: not a readable array ({error})") from None
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != size - stream.tell():
        raise DataError(f"{where}: its header says {dtype} of shape {shape}, which does not fit its size; refused")
    return dtype, shape, fortran_order, stream.tell()


# --- where it lies ----------------------------------------------------------------------------------------------------


def map_npz(file: MappedFile) -> dict[str, Tensor] | None:
    """Return the arrays in a mapped file; None where it takes reading: it is compressed, or anything is odd about it.

    Raises:
        DataError: a member is damaged, or is no array.
    """
    try:
        with zipfile.ZipFile(file.path) as archive:
            members = archive.infolist()
            for member in members:
                archive.open(member).close()  # which compares what stands before its bytes with the directory
    except Exception:  # see read_npz, which says what is wrong
        return None
    arrays: dict[str, Tensor] = {}
    for member in members:
        first = _first_byte(file, member)
        if first is None:
            return None
        where = f"{file.path}: {member.filename}"
        if _checksum(file, first, member.file_size) != member.CRC:
            raise DataError(f"{where}: damaged: it fails its checksum; copy the file again")
        head = bytes(memoryview(file.memory)[first : first + min(member.file_size, _MAX_HEADER)])
        dtype, shape, fortran_order, header = _header(head, member.file_size, where)
        is_float32 = dtype == np.dtype("<f4") and np.little_endian and not fortran_order
        if is_float32 and all(type(side) is int and side > 0 for side in shape):
            array = file.tensor(torch.float32, shape, first + header)
        else:
            array = _read_npy(bytes(memoryview(file.memory)[first : first + member.file_size]), where)
        arrays[member.filename.removesuffix(".npy")] = array
    return arrays


def _first_byte(file: MappedFile, member: zipfile.ZipInfo) -> int | None:
    """Return where a member's bytes begin; None where they are not stored as they are."""
    stored = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & _ENCRYPTED
    start = member.header_offset
    header = bytes(memoryview(file.memory)[start : start + _LOCAL_HEADER]) if 0 <= start < file.size else b""
    if not stored or member.compress_size != member.file_size or len(header) < _LOCAL_HEADER:
        return None
    first = start + _LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return first if first + member.file_size <= file.size else None


def _checksum(file: MappedFile, first: int, size: int) -> int:
    value, data = 0, memoryview(file.memory)
    for start in range(first, first + size, _PIECE):
        value = zlib.crc32(data[start : min(start + _PIECE, first + size)], value)
    return value
