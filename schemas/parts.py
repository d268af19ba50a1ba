"""A table <-> the bytes of one Parquet part: one definition for the writer and the reader.

A part carries page checksums (they catch damage inside a page) and, in its key/value metadata, its kind, schema
version, row count and two digests: of its *values*, and of the file's *bytes*. With default settings a third of
single-byte corruptions of a Parquet file change values silently; with page checksums and the first digest none of those
tried did. But almost a third still went unnoticed, among them in statistics, by which other readers skip rows: hence
the second. The first is computed from the values, not from Arrow's IPC bytes, so that it does not depend on how a
version of Arrow lays out its buffers.
"""

import hashlib
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

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
    metadata = {
        "qbw.kind": kind,
        "qbw.schema_version": "{}.{}".format(*version),
        "qbw.rows": str(table.num_rows),
        "qbw.digest": f"{digest_of(table)}-{_BLANK}",
    }
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True)
    blank: bytes = sink.getvalue().to_pybytes()
    data = blank.replace(metadata["qbw.digest"].encode(), f"{digest_of(table)}-{_hash_bytes(blank)}".encode())
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
    readable = "{}.{}".format(*version)
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
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
    try:
        table = file.read().replace_schema_metadata(None)
        whole = str(table.num_rows) == tags["rows"] and digest_of(table) == of_values
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PartError(f"{where}: damaged ({_first_line(error)}); move it away and evaluate again") from None
    if not whole:
        raise PartError(f"{where}: damaged (its values do not match its digest); move it away and evaluate again")
    if tags["schema_version"] != readable and len(set(table.column_names)) == table.num_columns:
        table = _in_this_version(table, schema)
    check_columns(table, schema, where)
    if kind == records.KIND:
        check_records(table, where)
    return table


def lacks_columns(data: bytes, kind: str) -> bool:
    """Return whether the bytes of a part lack columns of this version; False where they cannot be read."""
    try:
        names = pq.read_schema(pa.BufferReader(data)).names
    except (pa.ArrowException, OSError):
        return False
    return not set(_SCHEMAS[kind][0].names) <= set(names)


def _bytes_match(data: bytes, digest: str) -> bool:
    return len(digest) == len(_BLANK) and _hash_bytes(data.replace(digest.encode(), _BLANK.encode())) == digest


def _hash_bytes(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


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
        values = array.cast(pa.binary()).to_pylist()
        hasher.update(_bytes_of(pa.array([len(value) for value in values], pa.int64())))
        hasher.update(b"".join(values))
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


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
