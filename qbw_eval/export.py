"""A records folder -> one file for other tools: Parquet, CSV, JSON lines or a DuckDB database."""

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from qbw_eval.dataset import DatasetError, read_dataset, read_layer_table
from schemas.errors import UsageError


def export(folder: Path, file: Path, *, wide: bool = False, overwrite: bool = False) -> int:
    """Write all rows of a records folder into `file`, whole or not at all, and return how many.

    Args:
        folder: the records folder.
        file: its ending says the format: .parquet, .csv, .jsonl or .duckdb (a table called `records`).
        wide: add a column `bits.<layer name>` for every layer; null where a row's network has no such layer.
        overwrite: replace a file that is there.

    Raises:
        UsageError: another ending, the file is there, or there is no such folder.
        DatasetError: the folder is not whole, the file cannot be written, or duckdb is not installed.
    """
    writers: dict[str, Callable[[pa.Table, Path], object]] = {
        ".parquet": pq.write_table,
        ".csv": _write_csv,
        ".jsonl": _write_json_lines,
        ".duckdb": _write_duckdb,
    }
    write = writers.get(file.suffix)
    if write is None:
        raise UsageError(f"{file}: expected a name that ends in {', '.join(writers)}; found {file.suffix or 'none'!r}")
    if file.exists() and not overwrite:
        raise UsageError(f"{file}: is there already; name another file or say --overwrite")
    rows = read_dataset(folder)
    if wide:
        rows = with_layer_columns(rows, folder)
    try:
        # A folder, because DuckDB writes more than one file until it is done.
        with tempfile.TemporaryDirectory(prefix=f".{file.stem}-", dir=file.parent) as folder_beside:
            temporary = Path(folder_beside, file.name)
            write(rows, temporary)
            temporary.replace(file)
    except OSError as error:
        raise DatasetError(f"{file}: cannot be written ({error.strerror or error}); name another file") from None
    return int(rows.num_rows)


def with_layer_columns(rows: pa.Table, folder: Path) -> pa.Table:
    """Return the rows with a column `bits.<layer name>` (int8) for every layer of any of their networks."""
    names = {
        model_id: read_layer_table(folder, model_id)["layer_name"].to_pylist()
        for model_id in dict.fromkeys(rows["model_id"].to_pylist())
    }
    bits: list[dict[str, int]] = []
    for row in rows.select(["record_id", "model_id", "bitwidths"]).to_pylist():
        layers, bitwidths = names[row["model_id"]], row["bitwidths"]
        if len(layers) != len(bitwidths):
            raise DatasetError(
                f"{folder}: record {row['record_id']} has bits for {len(bitwidths)} layers; its layer table has "
                f"{len(layers)}; repair with: qbw-eval verify {folder} --quarantine"
            )
        bits.append(dict(zip(layers, bitwidths, strict=True)))
    for layer in dict.fromkeys(layer for layers_of in names.values() for layer in layers_of):
        rows = rows.append_column(f"bits.{layer}", pa.array([of_row.get(layer) for of_row in bits], pa.int8()))
    return rows


def _flat(rows: pa.Table) -> pa.Table:
    """Return the rows with lists as JSON text and bytes as hexadecimal digits, for formats that have neither."""
    for position, field in enumerate(rows.schema):
        to_text = json.dumps if pa.types.is_list(field.type) else bytes.hex if pa.types.is_binary(field.type) else None
        if to_text is not None:
            texts = [None if value is None else to_text(value) for value in rows[field.name].to_pylist()]
            rows = rows.set_column(position, field.name, pa.array(texts, pa.string()))
    return rows


def _write_csv(rows: pa.Table, path: Path) -> None:
    pyarrow.csv.write_csv(_flat(rows), path)


def _write_json_lines(rows: pa.Table, path: Path) -> None:
    """Write an object a line; null is a value that does not exist or is not a number."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows.to_pylist():
            file.write(json.dumps({name: _plain(value) for name, value in row.items()}, ensure_ascii=False) + "\n")


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float, list)) else value.isoformat()  # type: ignore[attr-defined]  # a time


def _write_duckdb(rows: pa.Table, path: Path) -> None:
    try:
        import duckdb
    except ImportError:
        raise DatasetError(f"{path.suffix}: needs duckdb; install it with: pip install 'qbw[duckdb]'") from None
    try:
        with duckdb.connect(str(path)) as connection:
            connection.register("rows", rows)
            connection.execute("create table records as select * from rows")
    except duckdb.Error as error:
        raise OSError(str(error).splitlines()[0]) from None
