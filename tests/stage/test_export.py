"""`qbw-eval export`: what other tools read back is what the records hold."""

import builtins
import errno
import json
import os
import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage_references import Outcome, contents, qbw_eval
from store_helpers import OTHER_TABLE, PLAN_ID, TABLE, good_folder, table_of, true_rows

from qbw_eval import export as export_module
from qbw_eval.dataset import DatasetError
from qbw_eval.export import export
from schemas.parts import encode_part
from schemas.records import RECORD_SCHEMA

OTHER = "d" * 64
LAYERS = ["conv1", "conv2", "block.conv2", "head"]
FORMATS = ("parquet", "csv", "jsonl", "duckdb")


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Seven rows of two networks, some with values that formats disagree about."""
    store = good_folder(tmp_path / "results", count=4)
    store.add_layers(OTHER_TABLE)
    odd = [{"loss": float("nan")}, {"loss": float("inf"), "correct_mask": b"", "experiment": ""}, {"loss": None}]
    for index, values in enumerate(odd):
        rows = true_rows(index, 1, OTHER_TABLE, checkpoint_id=OTHER, seed=2**53 + 1, **values)
        store.append(OTHER, PLAN_ID, table_of(rows))
    return store.records


def expected(wide: bool = False) -> list[dict[str, Any]]:
    """Return what the folder holds, in the order of its parts."""
    rows = true_rows(0, 4)
    rows += true_rows(0, 1, OTHER_TABLE, checkpoint_id=OTHER, seed=2**53 + 1, loss=float("nan"))
    odd = {"loss": float("inf"), "correct_mask": b"", "experiment": ""}
    rows += true_rows(1, 1, OTHER_TABLE, checkpoint_id=OTHER, seed=2**53 + 1, **odd)
    rows += true_rows(2, 1, OTHER_TABLE, checkpoint_id=OTHER, seed=2**53 + 1, loss=None)
    if wide:
        for row in rows:
            names = (TABLE if row["model_id"] == TABLE.model_id else OTHER_TABLE).names
            bits = dict(zip(names, row["bitwidths"], strict=True))
            row.update({f"bits.{layer}": bits.get(layer) for layer in LAYERS})
    return rows


def exported(records: Path, file: Path, *words: object) -> Path:
    assert qbw_eval("export", records, file, *words) == Outcome(0, f"{file}: 7 rows\n", "")
    return file


def as_text(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows as text, in which NaN equals NaN and a time is one, whatever its time zone is called."""
    return [repr({k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items()}) for row in rows]


# --- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True])
def test_parquet_has_equal_values_of_equal_types(records: Path, tmp_path: Path, wide: bool) -> None:
    table = pq.read_table(exported(records, tmp_path / "a.parquet", *["--wide"] * wide))
    assert as_text(table.to_pylist()) == as_text(expected(wide))
    more = [pa.field(f"bits.{layer}", pa.int8()) for layer in LAYERS] if wide else []
    assert table.schema.equals(pa.schema([*RECORD_SCHEMA, *more]))
    assert len(pd.read_parquet(tmp_path / "a.parquet")) == 7


@pytest.mark.parametrize("wide", [False, True])
def test_csv_has_equal_values(records: Path, tmp_path: Path, wide: bool) -> None:
    path = exported(records, tmp_path / "a.csv", *["--wide"] * wide)
    integers = {f.name: "Int64" for f in RECORD_SCHEMA if pa.types.is_integer(f.type)}
    integers |= {f"bits.{layer}": "Int64" for layer in LAYERS} if wide else {}
    texts = {f.name: "str" for f in RECORD_SCHEMA if f.type in (pa.string(), pa.binary())}
    frame = pd.read_csv(path, dtype=integers | texts)
    rows = expected(wide)
    assert list(frame.columns) == list(rows[0])
    for number, row in enumerate(rows):
        for name, value in row.items():
            found = frame[name][number]
            if value is None or value == "" or value != value or value == b"":
                assert pd.isna(found), name
            elif name in ("bitwidths", "bitwidth_options"):
                assert json.loads(found) == value
            elif name == "correct_mask":
                assert bytes.fromhex(found) == value
            elif name == "evaluated_at":
                assert pd.Timestamp(found) == pd.Timestamp(value)
            else:
                assert found == value, name
    # What pandas cannot tell apart, the text can: no value, no text, not a number.
    first = path.read_text().splitlines()
    columns = [line.split(",") for line in first]
    loss = columns[0].index('"loss"')
    assert [_field(line, loss) for line in first[5:]] == ["nan", "inf", ""]


def _field(line: str, position: int) -> str:
    """Return a field of a CSV line, whose quoted fields may hold commas and doubled quotes."""
    return re.findall(r'((?:"(?:[^"]|"")*")|[^,]*)(?:,|$)', line)[position]  # type: ignore[no-any-return]


@pytest.mark.parametrize("wide", [False, True])
def test_json_lines_have_equal_values(records: Path, tmp_path: Path, wide: bool) -> None:
    path = exported(records, tmp_path / "a.jsonl", *["--wide"] * wide)
    lines = path.read_text(encoding="utf-8").splitlines()

    def plain(name: str, value: Any) -> Any:
        if name == "loss" and value is not None and not value < 1e300:
            return None  # JSON has no word for it
        return {"correct_mask": bytes.hex, "evaluated_at": lambda time: time.isoformat()}.get(name, lambda v: v)(value)

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    assert [json.loads(line, parse_constant=no_constant) for line in lines] == [
        {name: plain(name, value) for name, value in row.items()} for row in expected(wide)
    ]
    assert "ü" in lines[0], "people read it"
    frame = pd.read_json(path, lines=True)
    assert list(frame["bitwidths"]) == [row["bitwidths"] for row in expected()]
    assert list(duckdb.sql(f"select correct from read_json('{path}')").fetchall()) == [
        (row["correct"],) for row in expected()
    ]


@pytest.mark.parametrize("wide", [False, True])
def test_duckdb_has_equal_values(records: Path, tmp_path: Path, wide: bool) -> None:
    path = exported(records, tmp_path / "a.duckdb", *["--wide"] * wide)
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.sql("show tables").fetchall() == [("records",)]
        # As a number, because DuckDB hands out times in the time zone of the machine.
        found = connection.sql("select * replace (epoch_us(evaluated_at) as evaluated_at) from records")
        rows = [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
    micro = [{**row, "evaluated_at": int(row["evaluated_at"].timestamp() * 1e6 + 0.5)} for row in expected(wide)]
    assert as_text(rows) == as_text(micro)
    assert list(tmp_path.glob("*.wal")) == []


def test_lists_and_bytes_without_a_value_stay_without_one_in_text(tmp_path: Path) -> None:
    store = good_folder(tmp_path / "results", count=0)
    rows = [{**row, "bitwidth_options": options} for row, options in zip(true_rows(0, 2), (None, []), strict=True)]
    rows[0]["correct_mask"] = None
    store.add_compact(0, table_of(rows))
    path = tmp_path / "a.csv"
    assert export(store.records, path) == 2
    texts = {"bitwidth_options": "str", "correct_mask": "str"}
    frame = pd.read_csv(path, dtype=texts, keep_default_na=False)
    assert list(frame["bitwidth_options"]) == ["", "[]"]
    assert list(frame["correct_mask"]) == ["", "0101"]
    assert export(store.records, tmp_path / "a.jsonl") == 2
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(line["bitwidth_options"], line["correct_mask"]) for line in lines] == [(None, None), ([], "0101")]


def test_wide_columns_are_null_where_a_network_has_no_such_layer(records: Path, tmp_path: Path) -> None:
    frame = pd.read_parquet(exported(records, tmp_path / "a.parquet", "--wide"))
    ours = frame["model_id"] == TABLE.model_id
    assert frame.loc[ours, "bits.conv1"].tolist() == [2, 4, 8, 2]
    assert frame.loc[ours, "bits.conv2"].tolist() == [4, 8, 2, 4]
    assert frame.loc[ours, ["bits.block.conv2", "bits.head"]].isna().all(axis=None)
    assert frame.loc[~ours, "bits.conv2"].isna().all()
    assert frame.loc[~ours, "bits.head"].tolist() == [8, 2, 4]
    assert not [name for name in pd.read_parquet(records).columns if name.startswith("bits.")]


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "found"), [("a.xlsx", "'.xlsx'"), ("a", "'none'"), ("a.PARQUET", "'.PARQUET'")])
def test_another_ending_is_refused(records: Path, tmp_path: Path, name: str, found: str) -> None:
    file = tmp_path / name
    assert qbw_eval("export", records, file) == Outcome(
        2,
        "",
        f"qbw-eval: error: {file}: expected a name that ends in .parquet, .csv, .jsonl, .duckdb; found {found}\n",
    )
    assert not file.exists()


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_that_is_there_is_replaced_only_if_told(records: Path, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a.{ending}"
    file.write_text("mine")
    assert qbw_eval("export", records, file) == Outcome(
        2, "", f"qbw-eval: error: {file}: is there already; name another file or say --overwrite\n"
    )
    assert file.read_text() == "mine"
    exported(records, file, "--overwrite")
    fresh = exported(records, tmp_path / f"fresh.{ending}")
    assert (file.read_bytes() == fresh.read_bytes()) or ending == "duckdb"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.{ending}", f"fresh.{ending}", "results"]


def test_a_folder_that_is_not_whole_is_refused(records: Path, tmp_path: Path) -> None:
    (records / "z.parquet").write_bytes(b"")
    file = tmp_path / "a.csv"
    outcome = qbw_eval("export", records, file)
    assert outcome.code == 1
    assert outcome.stderr.endswith(f"; repair with: qbw-eval verify {records} --quarantine\n")
    assert not file.exists()
    assert qbw_eval("export", tmp_path / "nowhere", file) == Outcome(
        2,
        "",
        f"qbw-eval: error: {tmp_path / 'nowhere'}: no such folder; name a records folder, such as results/records\n",
    )


def test_bits_that_do_not_fit_the_layer_table_are_refused_where_they_matter(tmp_path: Path) -> None:
    store = good_folder(tmp_path / "results", count=0)
    rows = true_rows(0, 1, OTHER_TABLE, model_id=TABLE.model_id)
    store.add_compact(0, table_of(rows))
    file = tmp_path / "a.csv"
    assert qbw_eval("export", store.records, file, "--wide") == Outcome(
        1,
        "",
        f"qbw-eval: error: {store.records}: record {rows[0]['record_id']} has bits for 3 layers; its layer table has "
        f"2; repair with: qbw-eval verify {store.records} --quarantine\n",
    )
    assert export(store.records, file) == 1


def test_a_layer_table_that_is_missing_is_refused_where_it_matters(records: Path, tmp_path: Path) -> None:
    path = records.parent / "layers" / f"{OTHER_TABLE.model_id}.parquet"
    path.unlink()
    assert qbw_eval("export", records, tmp_path / "a.csv", "--wide") == Outcome(
        1, "", f"qbw-eval: error: {path}: the layer table cannot be read (No such file or directory)\n"
    )
    exported(records, tmp_path / "a.csv")


# --- whole or not at all --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", FORMATS)
def test_a_folder_that_is_not_there_is_one_sentence(records: Path, tmp_path: Path, ending: str) -> None:
    file = tmp_path / "nowhere" / f"a.{ending}"
    assert qbw_eval("export", records, file) == Outcome(
        1, "", f"qbw-eval: error: {file}: cannot be written (No such file or directory); name another file\n"
    )


def half_a_file(*arguments: Any) -> None:
    """Stand in for a writer that meets a full disk."""
    path = next(argument for argument in arguments if isinstance(argument, Path))
    path.write_text("half a")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("ending", "place", "name"),
    [
        ("csv", export_module.pyarrow.csv, "write_csv"),
        ("parquet", export_module.pq, "write_table"),
        ("jsonl", export_module, "_write_json_lines"),
    ],
)
def test_a_writer_that_fails_leaves_what_was_there(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, place: Any, name: str, there: bool
) -> None:
    file = tmp_path / f"a.{ending}"
    if there:
        file.write_text("mine")
    before = contents(tmp_path)
    monkeypatch.setattr(place, name, half_a_file)
    assert qbw_eval("export", records, file, "--overwrite") == Outcome(
        1, "", f"qbw-eval: error: {file}: cannot be written (No space left on device); name another file\n"
    )
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [*[f"a.{ending}"] * there, "results"]


def test_a_file_that_duckdb_cannot_write_is_one_sentence(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(path: str) -> None:
        Path(path).write_text("half a")
        Path(path + ".wal").write_text("half a log")
        raise duckdb.IOException("IO Error: the disk is full\nLINE 1")

    monkeypatch.setattr(duckdb, "connect", connect)
    file = tmp_path / "a.duckdb"
    with pytest.raises(DatasetError) as error:
        export(records, file)
    assert str(error.value) == f"{file}: cannot be written (IO Error: the disk is full); name another file"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_folder_in_the_place_of_the_file_is_one_sentence(records: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.mkdir()
    assert qbw_eval("export", records, file, "--overwrite") == Outcome(
        1, "", f"qbw-eval: error: {file}: cannot be written (Is a directory); name another file\n"
    )


def without_duckdb(real: Callable[..., Any]) -> Callable[..., Any]:
    def importing(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "duckdb":
            raise ImportError("No module named 'duckdb'")
        return real(name, *arguments, **keywords)

    return importing


def test_without_duckdb_the_sentence_names_the_extra(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.duckdb"
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "duckdb")
        patch.setattr(builtins, "__import__", without_duckdb(builtins.__import__))
        outcome = qbw_eval("export", records, file)
        others = [qbw_eval("export", records, tmp_path / f"a.{ending}").code for ending in FORMATS[:3]]
    assert outcome == Outcome(
        1, "", "qbw-eval: error: .duckdb: needs duckdb; install it with: pip install 'qbw[duckdb]'\n"
    )
    assert others == [0, 0, 0], "nothing else needs it"
    assert not file.exists()


def test_the_helpers_rows_break_no_rule() -> None:
    """Or the comparisons above could be of rows that no folder can hold."""
    assert len(encode_part(table_of(expected()), "records", "x")) > 1000
