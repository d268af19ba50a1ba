"""A table <-> the bytes of one Parquet part: one definition for the writer and the reader.

A part carries page checksums (they catch damage inside a page) and, in its key/value metadata, its kind, schema
version, row count and two digests: of its *values*, and of the file's *bytes*. With default settings a third of
single-byte corruptions of a Parquet file change values silently; with page checksums and the first digest none of those
tried did. But almost a third still went unnoticed, among them in statistics, by which other readers skip rows: hence
the second. The first is computed from the values, not from Arrow's IPC bytes, so that it does not depend on how a
version of Arrow lays out its buffers.

A report of millions of rows would spend a third of its time on the digest of their bytes, so it is by XXH3, which is no
slower than memory: 128 bits of it find damage as surely as a cryptographic hash does. Neither keeps anybody from
forging a part, as no part is signed.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from schemas import layers, records
from schemas.check import check_columns, check_records
from schemas.errors import QBWError

_SCHEMAS = {
    records.KIND: (records.RECORD_SCHEMA, records.SCHEMA_VERSION),
    layers.KIND: (layers.LAYER_SCHEMA, layers.SCHEMA_VERSION),
}

ANCHOR_NAME = "0-schema.parquet"
"""A typed part without rows that sorts first: pandas, duckdb and dask take the schema of the first file they meet."""


def part_paths(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder, sorted by name; like pandas, skip names that begin with `.` or `_`."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith((".", "_")))


_BLANK = "0" * 32
"""What stands for the digest of a file's bytes while that is computed: it cannot be computed over itself."""

_OF_BYTES = "xxh3_128:"
"""What the digest of a file's bytes begins with: the algorithm. Parts from before it was said have none; theirs is
blake2b."""


class PartError(QBWError):
    """A file is not a whole, undamaged part of ours."""


class NewerPartError(PartError):
    """A part was written by a newer QBW: nothing is known to be wrong with it, but this QBW cannot read it."""


def encode_part(table: pa.Table, kind: str, where: str) -> bytes:
    """Return the bytes of a Parquet part that holds `table`, having read them back and compared.

    Args:
        table: exactly the columns of the schema of `kind`.
        kind: `records.KIND` or `layers.KIND`.
        where: the place an error names.

    Raises:
        SchemaError: the table breaks its schema or an invariant.
        PartError: the bytes do not read back as the same table.
    """
    schema, version = _SCHEMAS[kind]
    check_columns(table, schema, where)
    if kind == records.KIND:
        check_records(table, where)
    of_values = digest_of(table)
    metadata = {
        "qbw.kind": kind,
        "qbw.schema_version": "{}.{}".format(*version),
        "qbw.rows": str(table.num_rows),
        "qbw.digest": f"{of_values}-{_OF_BYTES}{_BLANK}",
    }
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True)
    blank: bytes = sink.getvalue().to_pybytes()
    of_bytes = xxhash.xxh3_128_hexdigest(blank)
    data = blank.replace(metadata["qbw.digest"].encode(), f"{of_values}-{_OF_BYTES}{of_bytes}".encode())
    decode_part(data, kind, where)
    return data


def decode_part(data: bytes, kind: str, where: str) -> pa.Table:
    """Return the table that the bytes of a part hold, checked: page checksums, digest, row count, schema, invariants.

    A part of another minor version comes back in the schema of this one: columns that this version does not know are
    left out, those that the part does not have are null. Its digest is checked over all that it has.

    Args:
        data: the bytes of the whole file.
        kind: what the caller expects it to be.
        where: the file's name, for errors.

    Raises:
        PartError: not a part of ours, or damaged.
        NewerPartError: written by a newer major version.
        SchemaError: a column or a value breaks the schema.
    """
    schema, version = _SCHEMAS[kind]
    file, tags, _ = _opened(data, kind, where)
    try:
        table = file.read(use_threads=False).replace_schema_metadata(None)
        whole = str(table.num_rows) == tags["rows"] and digest_of(table) == tags["digest"].partition("-")[0]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PartError(f"{where}: damaged ({_first_line(error)}); move it away and evaluate again") from None
    if not whole:
        raise PartError(f"{where}: damaged (its values do not match its digest); move it away and evaluate again")
    if tags["schema_version"] != "{}.{}".format(*version) and len(set(table.column_names)) == table.num_columns:
        table = _in_this_version(table, schema)
    check_columns(table, schema, where)
    if kind == records.KIND:
        check_records(table, where)
    return table


@dataclass(frozen=True, kw_only=True)
class OpenPart:
    """A part of which not everything has to be read; see `open_part`.

    Attributes:
        num_rows: how many rows it has.
        ranges: columns -> the smallest and largest value of each of them that has no nulls and for which the file says
            them; two Nones for a column of nulls.
        read: columns -> a table of them; raises PartError.
    """

    num_rows: int
    ranges: Callable[[Sequence[str]], dict[str, tuple[object, object]]]
    read: Callable[[Sequence[str]], pa.Table]


def open_part(data: bytes, kind: str, where: str) -> OpenPart:
    """Return a part, so far checked that columns of it can be read and trusted, without taking time for the others.

    The digest of the file's bytes vouches for what is not looked at, and for the ranges that the file says its columns
    have: whoever wrote it had read all of it back. A part without one, or that has other columns than this version, is
    decoded whole first.

    Args:
        data: the bytes of the whole file.
        kind: what the caller expects it to be.
        where: the file's name, for errors.

    Raises:
        PartError, NewerPartError, SchemaError: as `decode_part`; of a part that is not decoded, no SchemaError.
    """
    schema, _ = _SCHEMAS[kind]
    file, tags, sealed = _opened(data, kind, where)
    if not sealed or list(file.schema_arrow) != list(schema) or str(file.metadata.num_rows) != tags["rows"]:
        table = decode_part(data, kind, where)
        return OpenPart(num_rows=len(table), ranges=lambda _: {}, read=table.select)

    def read(columns: Sequence[str]) -> pa.Table:
        try:
            return file.read(columns=list(columns), use_threads=False).replace_schema_metadata(None)
        except (pa.ArrowException, OSError) as error:
            raise PartError(f"{where}: damaged ({_first_line(error)}); move it away and evaluate again") from None

    def ranges(columns: Sequence[str]) -> dict[str, tuple[object, object]]:
        return _ranges(file.metadata, {name: schema.get_field_index(name) for name in columns})

    return OpenPart(num_rows=file.metadata.num_rows, ranges=ranges, read=read)


def _ranges(metadata: pq.FileMetaData, places: Mapping[str, int]) -> dict[str, tuple[object, object]]:
    """Return the ranges that a file of one row group says its columns have; none of a file of several."""
    if metadata.num_row_groups != 1:
        return {}
    group, ranges = metadata.row_group(0), dict[str, tuple[object, object]]()
    for name, place in places.items():  # each column of a schema, a list too, has one place in the file
        said = group.column(place).statistics
        if said is not None and said.has_null_count and said.null_count == group.num_rows:
            ranges[name] = (None, None)
        elif said is not None and said.has_null_count and not said.null_count and said.has_min_max:
            ranges[name] = (said.min, said.max)
    return ranges


def _opened(data: bytes, kind: str, where: str) -> tuple[pq.ParquetFile, dict[str, str], bool]:
    """Return a part as a Parquet file, its tags, and whether a digest vouches for its bytes.

    Raises:
        PartError: not a part of ours, or damaged.
        NewerPartError: written by a newer major version.
    """
    _, version = _SCHEMAS[kind]
    readable = "{}.{}".format(*version)
    try:
        # Neither read ahead nor, below, decoded by threads of Arrow's: they may let go of `data` when Python has ended
        # already, after Ctrl-C, which aborts it.
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, pre_buffer=False)
        metadata = file.metadata.metadata or {}
        tags = {
            key: metadata.get(f"qbw.{key}".encode(), b"").decode()
            for key in ("kind", "schema_version", "rows", "digest")
        }
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PartError(f"{where}: not a readable Parquet file ({_first_line(error)}); move it away") from None
    if tags["kind"] != kind:
        found = f"a part of kind {tags['kind']!r}" if tags["kind"] else "a Parquet file that QBW did not write"
        raise PartError(f"{where}: expected a QBW part of kind {kind!r}, found {found}; move it away")
    of_values, _, of_bytes = tags["digest"].partition("-")
    # Parts from before there was a digest of the bytes have only that of the values.
    if tags["digest"] != of_values and not _bytes_match(data, of_bytes):
        raise PartError(f"{where}: damaged (its bytes do not match their digest); move it away and evaluate again")
    numbers = re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,9})", tags["schema_version"])
    if numbers is None or int(numbers[1]) > version[0]:
        raise NewerPartError(
            f"{where}: schema version {tags['schema_version']!r} is newer than {readable}, which this QBW reads; "
            "upgrade qbw"
        )
    # No row of ours takes less than a byte, so a file that claims more rows than it has bytes lies.
    if file.metadata.num_rows > len(data):
        raise PartError(f"{where}: claims {file.metadata.num_rows} rows in {len(data)} bytes; the file is damaged")
    return file, tags, tags["digest"] != of_values


def lacks_columns(data: bytes, kind: str) -> bool:
    """Return whether the bytes of a part lack columns of this version; False where they cannot be read."""
    try:
        names = pq.read_schema(pa.BufferReader(data)).names
    except (pa.ArrowException, OSError):
        return False
    return not set(_SCHEMAS[kind][0].names) <= set(names)


def _bytes_match(data: bytes, of_bytes: str) -> bool:
    digest = of_bytes.removeprefix(_OF_BYTES)
    place = data.rfind(digest.encode())  # of whatever is no digest, anywhere: it will not match
    hasher = hashlib.blake2b(digest_size=16) if digest == of_bytes else xxhash.xxh3_128()
    view = memoryview(data)  # a copy without the digest would take longer than the hash
    for piece in (view[:place], _BLANK.encode(), view[place + len(_BLANK) :]):
        hasher.update(piece)
    return hasher.hexdigest() == digest


def _in_this_version(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the columns of `table` that `schema` knows, in its order, and nulls for those that `table` lacks."""
    columns = [table[f.name] if f.name in table.column_names else pa.nulls(len(table), f.type) for f in schema]
    return pa.table(columns, schema.names)


def digest_of(table: pa.Table) -> str:
    """Return 32 hex digits that name the values of `table`: column names, types, nulls, lengths and bytes, in order.

    Raises:
        ArrowNotImplementedError: a column is neither text, bytes, numbers, times, truth values nor lists of those.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for name, column in zip(table.column_names, table.columns, strict=True):
        array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        hasher.update(f"{name}:{column.type}:{len(array)};".encode())
        _hash_values(hasher, array)
    return hasher.hexdigest()


def _hash_values(hasher: hashlib.blake2b, array: pa.Array) -> None:
    """Feed the nulls, then the lengths, then the values of `array` to `hasher`, whatever its buffers look like."""
    hasher.update(_bytes_of(array.is_null()))
    array = array.drop_null()
    kind = array.type
    if pa.types.is_list(kind):
        hasher.update(_bytes_of(array.value_lengths()))
        _hash_values(hasher, array.flatten())
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        hasher.update(_bytes_of(pc.binary_length(array).cast(pa.int64())))
        hasher.update(_text_of(array))
    elif pa.types.is_primitive(kind):
        hasher.update(_bytes_of(array))
    else:
        raise pa.ArrowNotImplementedError(f"no digest for values of type {kind}")


def _bytes_of(array: pa.Array) -> bytes:
    """Return the little-endian values of a fixed-width array without nulls, one byte for a boolean."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    width = array.type.bit_width // 8
    values = array.buffers()[1]
    # Arrow lets an array without values go without a buffer.
    return b"" if values is None else values[array.offset * width : (array.offset + len(array)) * width].to_pybytes()


def _text_of(array: pa.Array) -> bytes:
    """Return the bytes of all values of a text or binary array without nulls, one after the other."""
    _, offsets, values = array.buffers()
    if not len(array):  # Arrow lets such an array go without buffers
        return b""
    ends = pa.Array.from_buffers(pa.int32(), len(array) + 1, [None, offsets], offset=array.offset)
    first, last = ends[0].as_py(), ends[len(array)].as_py()
    return b"" if first == last else values[first:last].to_pybytes()


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
