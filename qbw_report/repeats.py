"""Which records are there more than once: ten million ids in a few hundred megabytes."""

import binascii
import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_DIGITS = 32


def keys_of(ids: pa.ChunkedArray) -> np.ndarray:
    """Return 128 bits for each id: the number it writes in 32 hex digits, as all of ours do, else a hash of its text.

    Args:
        ids: text without nulls: (n,).

    Returns:
        uint64: (n, 2). Different ids have different keys, but for a chance of 2**-128 a pair.
    """
    array = ids.combine_chunks()
    data = _bytes_at_once(array)
    if data is None:
        data = b"".join(map(_key_bytes, array.to_pylist()))
    return np.frombuffer(data, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def _bytes_at_once(array: pa.StringArray) -> bytes | None:
    """Return the bytes of all keys where every id is 32 hex digits; None where one is not."""
    if pc.min_max(pc.binary_length(array)).as_py() != {"min": _DIGITS, "max": _DIGITS}:
        return None
    _, offsets, values = array.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[array.offset : array.offset + len(array) + 1]
    return _from_hex(bytes(values[int(ends[0]) : int(ends[-1])]))


def _from_hex(text: bytes) -> bytes | None:
    """Return the bytes that hex digits stand for; None for anything but the digits that we write."""
    try:
        data = binascii.unhexlify(text)
    except binascii.Error:
        return None
    return data if binascii.hexlify(data) == text else None  # capitals are another id


def _key_bytes(text: str) -> bytes:
    found = _from_hex(text.encode()) if len(text) == _DIGITS else None
    return found or hashlib.blake2b(text.encode(), digest_size=16).digest()


def repeated_rows(keys: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return for each part the rows whose key is there more than once, in this part or another.

    Args:
        keys: `keys_of` each part.
    """
    first = np.concatenate([part[:, 0] for part in keys])
    first.sort()
    # Of ten million different keys, two begin with the same 64 bits once in 370,000 times: mostly this is all.
    twice = np.unique(first[1:][first[1:] == first[:-1]])
    places = [np.flatnonzero(np.isin(part[:, 0], twice)) if len(twice) else np.empty(0, int) for part in keys]
    chosen = np.concatenate([part[rows] for part, rows in zip(keys, places, strict=True)])
    _, which, times = np.unique(chosen, axis=0, return_inverse=True, return_counts=True)
    repeated = times[which.reshape(-1)] > 1
    return [
        rows[some]
        for rows, some in zip(places, np.split(repeated, np.cumsum([len(rows) for rows in places])[:-1]), strict=True)
    ]
