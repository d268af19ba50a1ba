"""A table <-> the bytes of one Parquet part: one definition for the writer and the reader.

A part carries page checksums (they catch damage inside a page) and, in its key/value metadata, its kind, schema
version, row count and a digest of its *values*. With default settings a third of single-byte corruptions of a Parquet
file change values silently; with both checks, none of those tried did. The digest is computed from the values, not
from Arrow's IPC bytes, so that it does not depend on how a version of Arrow lays out its buffers.
"""

import hashlib
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


class PartError(QBWError):
    """A file is not a whole, undamaged part of ours."""


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
        "qbw.digest": digest_of(table),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    decode_part(data, kind, where)
    return data


def decode_part(data: bytes, kind: str, where: str) -> pa.Table:
    """Return the table that the bytes of a part hold, checked: page checksums, digest, row count, schema, invariants.

    Args:
        data: the bytes of the whole file.
        kind: what the caller expects it to be.
        where: the file's name, for errors.

    Raises:
        PartError: not a part of ours, damaged, or written by a newer major version.
        SchemaError: a column or a value breaks the schema.
    """
    schema, version = _SCHEMAS[kind]
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        names = file.schema_arrow.names
        metadata = file.schema_arrow.metadata or {}
        tags = {
            key: metadata.get(f"qbw.{key}".encode(), b"").decode()
            for key in ("kind", "schema_version", "rows", "digest")
        }
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PartError(f"{where}: not a readable Parquet file ({_first_line(error)}); move it away") from None
    if tags["kind"] != kind:
        found = f"a part of kind {tags['kind']!r}" if tags["kind"] else "a Parquet file that QBW did not write"
        raise PartError(f"{where}: expected a QBW part of kind {kind!r}, found {found}; move it away")
    major = tags["schema_version"].partition(".")[0]
    if not major.isdecimal() or int(major) > version[0]:
        raise PartError(
            f"{where}: schema version {tags['schema_version']!r} is newer than {version[0]}.{version[1]}, "
            "which this QBW reads; upgrade qbw"
        )
    # No row of ours takes less than a byte, so a file that claims more rows than it has bytes lies.
    if file.metadata.num_rows > len(data):
        raise PartError(f"{where}: claims {file.metadata.num_rows} rows in {len(data)} bytes; the file is damaged")
    try:
        # A newer minor version may have columns that we do not know; we read those we do.
        table = file.read(columns=[name for name in names if name in schema.names]).replace_schema_metadata(None)
        check_columns(table, schema, where)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PartError(f"{where}: damaged ({_first_line(error)}); move it away and evaluate again") from None
    unknown_columns = len(names) > len(schema.names)
    if str(table.num_rows) != tags["rows"] or not (unknown_columns or digest_of(table) == tags["digest"]):
        raise PartError(f"{where}: damaged (its values do not match its digest); move it away and evaluate again")
    if kind == records.KIND:
        check_records(table, where)
    return table


def digest_of(table: pa.Table) -> str:
    """Return 32 hex digits that name the values of `table`: column names, types, nulls, lengths and bytes, in order."""
    hasher = hashlib.blake2b(digest_size=16)
    for name in table.column_names:
        column = table[name]
        array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        if isinstance(array, pa.ChunkedArray):  # combine_chunks of an empty column
            array = pa.array([], type=column.type)
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
    else:
        hasher.update(_bytes_of(array))


def _bytes_of(array: pa.Array) -> bytes:
    """Return the little-endian values of a fixed-width array without nulls, one byte for a boolean."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    width = array.type.bit_width // 8
    values = array.buffers()[1]
    return b"" if values is None else values[array.offset * width : (array.offset + len(array)) * width].to_pybytes()


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
