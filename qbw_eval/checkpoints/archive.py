"""A zip archive in memory, as torch.save writes it -> its records. Nothing is unpacked, and every number is checked.

The layout is PKWARE's APPNOTE.TXT: each record has a header of its own, followed by its bytes, and an entry in the
directory at the end, which the last bytes of the file point at. torch.save compresses nothing, so that a record is a
piece of the file: none is larger than it claims, and none overlaps another (two megabytes of a zip that did would make
terabytes). torch does not look at checksums; here each is compared.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Final

MAX_RECORDS: Final = 200_000
"""A record a tensor; a directory of more would cost more memory than time to refuse it."""

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_HEADER = struct.Struct("<4s5H3L2H")
_MAX_COMMENT = 2**16

_ENCRYPTED, _FOLDER = 0x1, 0x10


class ArchiveError(ValueError):
    """What is wrong with an archive, without its name."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """What the directory says of one record."""

    name: str
    method: int
    checksum: int
    size: int
    begin: int


def is_archive(data: memoryview) -> bool:
    """Return whether this ends as zip archives do."""
    return _find_end(data) is not None


def record_names(data: memoryview) -> list[str]:
    """Return the names in the directory.

    Raises:
        ArchiveError: it is damaged.
    """
    return [entry.name for entry in _directory(data)]


def read_archive(data: memoryview) -> dict[str, memoryview]:
    """Return the bytes of every record by name, all checksums right.

    Raises:
        ArchiveError: it is damaged, or not as torch.save writes archives.
    """
    entries = _directory(data)
    records: dict[str, memoryview] = {}
    reached = 0
    for entry in sorted(entries, key=lambda entry: entry.begin):
        if entry.method:
            raise ArchiveError(f"its record {entry.name!r:.80} is compressed, which torch.save never does")
        begin, end = _place(data, entry)
        if entry.begin < reached:
            raise ArchiveError(f"damaged: the record {entry.name!r:.80} overlaps the one before it")
        reached = end
        if zlib.crc32(data[begin:end]) != entry.checksum:
            raise ArchiveError(f"damaged: the record {entry.name!r:.80} fails its checksum; copy the file again")
        records[entry.name] = data[begin:end]
    return records


def _find_end(data: memoryview) -> int | None:
    """Return where the end record begins, which only a comment follows."""
    near = max(0, len(data) - _END.size - _MAX_COMMENT)
    tail = bytes(data[near:])
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        if len(tail) - at >= _END.size and _END.unpack_from(tail, at)[7] == len(tail) - at - _END.size:
            return near + at
        at = tail.rfind(b"PK\x05\x06", 0, at)
    return None


def _directory(data: memoryview) -> list[_Entry]:
    """Return the entries of the directory, which must be whole, as torch.save makes them, and each of its own name."""
    end = _find_end(data)
    if end is None:
        raise ArchiveError("damaged: it has no directory")
    _, disk, first_disk, on_disk, count, size, begin, _ = _END.unpack_from(data, end)
    limit = end
    if 0xFFFF in (on_disk, count) or 0xFFFFFFFF in (size, begin):
        limit = end - _LOCATOR64.size
        if limit < 0:
            raise ArchiveError("damaged: its directory is not where it should be")
        signature, _, at, _ = _LOCATOR64.unpack_from(data, limit)
        if signature != b"PK\x06\x07" or at + _END64.size > limit:
            raise ArchiveError("damaged: its directory is not where it should be")
        signature, _, _, _, disk, first_disk, on_disk, count, size, begin = _END64.unpack_from(data, at)
        if signature != b"PK\x06\x06":
            raise ArchiveError("damaged: its directory is not where it should be")
        limit = at
    if disk or first_disk or on_disk != count or begin + size > limit:
        raise ArchiveError("damaged: its directory is not where it should be")
    if count > MAX_RECORDS:
        raise ArchiveError(f"it claims {count:,} records, more than any checkpoint has")
    entries: list[_Entry] = []
    at = begin
    for _ in range(count):
        entry, at = _read_entry(data, at, begin + size)
        entries.append(entry)
    if at != begin + size:
        raise ArchiveError("damaged: its directory holds more than its records")
    if len({entry.name for entry in entries}) != len(entries):
        raise ArchiveError("two of its records have the same name")
    return entries


def _read_entry(data: memoryview, at: int, limit: int) -> tuple[_Entry, int]:
    """Return the entry that begins at a place, and where it ends."""
    if at + _ENTRY.size > limit:
        raise ArchiveError("damaged: its directory was cut short")
    (signature, _, _, flags, method, _, _, checksum, stored, size, *more) = _ENTRY.unpack_from(data, at)
    name_length, extra_length, comment_length, _, _, attributes, begin = more
    name_at = at + _ENTRY.size
    extra_at, end = name_at + name_length, name_at + name_length + extra_length + comment_length
    if signature != b"PK\x01\x02" or end > limit:
        raise ArchiveError("damaged: its directory was cut short")
    name = _name(data[name_at:extra_at])
    if flags & _ENCRYPTED:
        raise ArchiveError(f"its record {name!r:.80} is encrypted, which torch.save never does")
    extra = data[extra_at : extra_at + extra_length]
    size, stored, begin = _wide(extra, [size, stored, begin])
    # Where a record is marked as a folder, or its two sizes differ, torch reads nothing or too little, finds no fault,
    # and hands out as weights whatever lay in memory before.
    if (stored != size and not method) or attributes & _FOLDER or name.endswith("/"):
        raise ArchiveError(f"damaged: the record {name!r:.80} has a wrong size or kind; copy the file again")
    return _Entry(name=name, method=method, checksum=checksum, size=size, begin=begin), end


def _name(data: memoryview) -> str:
    return str(data, "utf-8", "backslashreplace")


def _wide(extra: memoryview, narrow: list[int]) -> list[int]:
    """Return numbers of an entry, those that 32 bits are too few for from its zip64 field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        at += 4
        if kind == 1:
            places = [i for i, number in enumerate(narrow) if number == 0xFFFFFFFF]
            if 8 * len(places) > min(length, len(extra) - at):
                raise ArchiveError("damaged: its directory was cut short")
            for place in places:
                narrow[place] = struct.unpack_from("<Q", extra, at)[0]
                at += 8
            return narrow
        at += length
    return narrow


def _place(data: memoryview, entry: _Entry) -> tuple[int, int]:
    """Return where a record's bytes begin and end; its own header must agree with the directory."""
    if entry.begin + _HEADER.size <= len(data):
        signature, _, flags, method, *_, name_length, extra_length = _HEADER.unpack_from(data, entry.begin)
        name_at = entry.begin + _HEADER.size
        begin = name_at + name_length + extra_length
        if (
            (signature, method, flags & _ENCRYPTED) == (b"PK\x03\x04", 0, 0)
            and _name(data[name_at : name_at + name_length]) == entry.name
            and begin + entry.size <= len(data)
        ):
            return begin, begin + entry.size
    raise ArchiveError(f"damaged: the record {entry.name!r:.80} is not where the directory says; copy the file again")
