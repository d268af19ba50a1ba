"""A whole records folder -> one checked table, and the layer tables that its rows refer to."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from schemas import layers, records
from schemas.errors import QBWError, UsageError
from schemas.parts import NewerPartError, decode_part, digest_of, part_paths


class DatasetError(QBWError):
    """A records folder is not whole."""


def read_dataset(folder: Path) -> pa.Table:
    """Return every row of a records folder, in the order of its parts.

    Raises:
        UsageError: no such folder.
        DatasetError: a part is bad, two rows share a record_id, or there are no rows.
    """
    tables = [table for _, table in read_parts(folder)]
    rows = pa.concat_tables(tables) if tables else records.RECORD_SCHEMA.empty_table()
    if not rows.num_rows:
        raise DatasetError(f"{folder}: holds no rows yet; run: qbw-eval run CKPT --records {folder}")
    if len(set(rows["record_id"].to_pylist())) != rows.num_rows:
        raise DatasetError(f"{folder}: some rows are there twice; find them with: qbw-eval verify {folder}")
    return rows


def read_parts(folder: Path) -> Iterator[tuple[Path, pa.Table]]:
    """Yield each part of a records folder with its rows, checked.

    Raises:
        UsageError: no such folder.
        DatasetError: a part is bad; names it and the way to repair the folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; name a records folder, such as results/records")
    for path in part_paths(folder):
        try:
            yield path, decode_part(path.read_bytes(), records.KIND, path.name)
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
        except NewerPartError as error:
            raise DatasetError(f"{folder}: {error.format_message()}") from None
        except QBWError as error:
            raise DatasetError(
                f"{folder}: {error.format_message()}; repair with: qbw-eval verify {folder} --quarantine"
            ) from None


def read_layer_table(records_folder: Path, model_id: str) -> pa.Table:
    """Return the layer table that rows of a records folder refer to, its name checked against its content.

    Raises:
        DatasetError: it is missing or bad.
    """
    path = layer_table_path(records_folder, model_id)
    try:
        table = decode_part(path.read_bytes(), layers.KIND, path.name)
    except OSError as error:
        raise DatasetError(f"{path}: the layer table cannot be read ({error.strerror})") from None
    except QBWError as error:
        raise DatasetError(f"{path.parent}: {error.format_message()}") from None
    if layers.model_id_of(table.drop_columns("model_id").to_pylist()) != model_id:
        raise DatasetError(f"{path}: holds another layer table than its name says")
    return table


def layer_table_path(records_folder: Path, model_id: str) -> Path:
    """Return where a layer table lies: in `layers`, beside the records."""
    return records_folder.parent / "layers" / f"{model_id}.parquet"


def order_free_digest(rows: pa.Table) -> str:
    """Return 32 hex digits that name the values of a set of rows, however they are ordered or spread over parts."""
    return hashlib.blake2b(digest_of(rows.sort_by("record_id")).encode(), digest_size=16).hexdigest()
