"""Reading a records folder: what comes out, and one sentence for everything that is wrong with it."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulated_records import row, simulate, table_of, write_records

from qbw_report.frame import read_records
from schemas.errors import QBWError, UsageError
from schemas.parts import ANCHOR_NAME, part_paths
from schemas.records import RECORD_SCHEMA


def error_of(folder: Path, kind: type[QBWError] = QBWError) -> str:
    with pytest.raises(kind) as raised:
        read_records(folder)
    assert type(raised.value) is kind
    return str(raised.value)


def ways_out(folder: Path) -> str:
    return (
        f"to repair the folder, run: qbw-eval verify {folder} --quarantine; to draw without this part, say --skip-bad"
    )


def test_every_row_of_every_part_is_read(tmp_path: Path) -> None:
    rows = simulate(epochs=2, configs=5)
    frame, notes = read_records(write_records(tmp_path, rows[:4], rows[4:]))
    assert notes == []
    assert sorted(frame["record_id"]) == sorted(record["record_id"] for record in rows)
    assert list(frame.columns) == RECORD_SCHEMA.names


def test_how_rows_are_spread_over_parts_changes_nothing(tmp_path: Path) -> None:
    rows = simulate(epochs=3, configs=7)
    one, _ = read_records(write_records(tmp_path / "one", rows))
    many, _ = read_records(write_records(tmp_path / "many", rows[11:], rows[3:11], rows[:3]))
    pd.testing.assert_frame_equal(one, many)


def test_pandas_alone_reads_the_folder_with_plain_dtypes(tmp_path: Path) -> None:
    rows = simulate(epochs=2, configs=5)
    frame = pd.read_parquet(write_records(tmp_path, rows[:3], rows[3:]))
    assert len(frame) == len(rows)
    dtypes = {name: str(kind) for name, kind in frame.dtypes.items()}
    assert dtypes["experiment"] == "str"
    assert dtypes["epoch"] == "int32"
    assert dtypes["num_samples"] == "int64"
    assert dtypes["accuracy"] == "float64"
    assert dtypes["evaluated_at"] == "datetime64[us, UTC]"
    bits = {record["record_id"]: record["bitwidths"] for record in rows}
    assert {name: list(found) for name, found in zip(frame["record_id"], frame["bitwidths"], strict=True)} == bits


def test_names_that_pandas_skips_are_skipped(tmp_path: Path) -> None:
    write_records(tmp_path, simulate(epochs=1, configs=2))
    for name in ("_common.parquet", ".hidden.parquet", "notes.txt"):
        (tmp_path / name).write_bytes(b"not a part")
    assert part_paths(tmp_path)[0].name == ANCHOR_NAME
    assert len(part_paths(tmp_path)) == 2
    assert len(read_records(tmp_path)[0]) == 2


def test_a_repeated_record_counts_once_and_is_said(tmp_path: Path) -> None:
    rows = simulate(epochs=1, configs=3)
    frame, notes = read_records(write_records(tmp_path, rows, rows[:2]))
    assert len(frame) == 3
    assert notes == ["2 rows repeat a record that is already there; each counts once"]
    frame, notes = read_records(write_records(tmp_path / "other", rows, rows[:1]))
    assert notes == ["1 row repeats a record that is already there; each counts once"]


def test_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    expected = f"{folder}: no such folder; run `make eval CKPT=...` first, or name the records folder"
    assert error_of(folder, UsageError) == expected


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    path.write_bytes(b"")
    expected = f"{path}: expected a folder of records, found a file; name the folder that holds it"
    assert error_of(path, UsageError) == expected


def test_an_empty_folder(tmp_path: Path) -> None:
    assert error_of(tmp_path) == f"{tmp_path}: expected Parquet parts, found none; run `make eval CKPT=...` first"


def test_only_the_anchor(tmp_path: Path) -> None:
    write_records(tmp_path)
    assert error_of(tmp_path) == f"{tmp_path}: holds no rows yet; run `make eval CKPT=...` first"


def test_a_part_that_is_not_ours(tmp_path: Path) -> None:
    write_records(tmp_path, simulate(epochs=1, configs=2))
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"x": [1]}), foreign)
    assert error_of(tmp_path) == (
        f"{foreign}: expected a QBW part of kind 'records', found a Parquet file that QBW did not write; move it away; "
        f"{ways_out(tmp_path)}"
    )


def test_a_part_that_is_damaged(tmp_path: Path) -> None:
    write_records(tmp_path, simulate(epochs=1, configs=2))
    path = part_paths(tmp_path)[-1]
    path.write_bytes(path.read_bytes()[:-20])
    sentence = error_of(tmp_path)
    assert sentence.startswith(f"{path}: not a readable Parquet file (")
    assert sentence.endswith(f"); move it away; {ways_out(tmp_path)}")


def test_a_folder_named_like_a_part(tmp_path: Path) -> None:
    write_records(tmp_path, simulate(epochs=1, configs=2))
    (tmp_path / "z.parquet").mkdir()
    expected = f"{tmp_path / 'z.parquet'}: cannot be read (Is a directory); check the file and its permissions; "
    expected += ways_out(tmp_path)
    assert error_of(tmp_path) == expected


def test_a_row_that_belongs_to_no_epoch(tmp_path: Path) -> None:
    rows = [row([2], 1), row([4], 1, config_index=1) | {"epoch": None}]
    write_records(tmp_path, rows)
    assert error_of(tmp_path) == (
        f"{tmp_path}: column 'epoch': expected a value in every row, found none in 1 of 2 rows "
        f"(first: record {rows[1]['record_id']}); evaluate those checkpoints again"
    )


def test_the_fixture_writes_what_it_was_given() -> None:
    rows = simulate(epochs=1, configs=2)
    assert table_of(rows).to_pylist() == [{name: record[name] for name in RECORD_SCHEMA.names} for record in rows]
