"""A folder with a bad part: the report refuses and says both ways out; told to go on, it says what it left out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_helpers import RunCli
from simulated_records import row, simulate, table_of, write_records

from qbw_report.frame import read_records
from schemas.errors import QBWError
from schemas.parts import digest_of, part_paths

DAMAGED = "damaged (its values do not match its digest); move it away and evaluate again"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Twelve rows in two parts, and a third with two rows whose values are not those of its digest."""
    rows = simulate(epochs=2, configs=6)
    folder = write_records(tmp_path / "records", rows[:5], rows[5:])
    other = simulate(experiment="lost", epochs=1, configs=2)
    (folder / "z-damaged.parquet").write_bytes(tagged(other, digest="0" * 32))
    return folder


def tagged(rows: Sequence[Mapping[str, Any]], **changed: str) -> bytes:
    """Return a part whose pages are whole and whose tags are what they should be, but for these."""
    table = table_of(rows)
    tags = {"kind": "records", "schema_version": "1.1", "rows": str(len(rows)), "digest": digest_of(table)}
    sink = pa.BufferOutputStream()
    tags = {f"qbw.{key}": value for key, value in (tags | changed).items()}
    pq.write_table(table.replace_schema_metadata(tags), sink, write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def refused(path: Path) -> str:
    return (
        f"{path}: {DAMAGED}; to repair the folder, run: qbw-eval verify {path.parent} --quarantine; "
        "to draw without this part, say --skip-bad"
    )


def test_a_damaged_part_is_named_with_both_ways_out(records: Path, tmp_path: Path, run_cli: RunCli) -> None:
    out = tmp_path / "report"
    for words in (("build", records, "--out", out), ("summary", records), ("summary", records, "--json")):
        outcome = run_cli(*words)
        assert (outcome.code, outcome.stdout) == (1, "")
        assert outcome.stderr.splitlines()[-1] == f"qbw-report: error: {refused(records / 'z-damaged.parquet')}"
    assert not out.exists()


def test_told_to_skip_it_build_draws_the_rest_and_says_so(records: Path, tmp_path: Path, run_cli: RunCli) -> None:
    note = f"left out: {records / 'z-damaged.parquet'}: {DAMAGED}"
    out = tmp_path / "report"
    outcome = run_cli("build", records, "--out", out, "--skip-bad")
    assert outcome.code == 0
    assert [line for line in outcome.stderr.splitlines() if "left out" in line] == [f"qbw-report: note: {note}"]
    document = json.loads((out / "statistics.json").read_text())
    assert document["notes"] == [note]
    assert [series["experiment"] for series in document["series"]] == ["demo"]
    assert [epoch["configs"] for epoch in document["series"][0]["epochs"]] == [6, 6]
    pictures = list(out.rglob("*.svg"))
    assert pictures
    assert all("Incomplete: 1 damaged part of the records is left out" in path.read_text() for path in pictures)


def test_told_to_skip_it_summary_says_so_too(records: Path, run_cli: RunCli) -> None:
    note = f"left out: {records / 'z-damaged.parquet'}: {DAMAGED}"
    outcome = run_cli("summary", records, "--skip-bad")
    assert (outcome.code, outcome.stderr) == (0, f"qbw-report: note: {note}\n")
    assert "lost" not in outcome.stdout
    outcome = run_cli("summary", records, "--skip-bad", "--json")
    assert (outcome.code, outcome.stderr) == (0, f"qbw-report: note: {note}\n")
    assert json.loads(outcome.stdout)["notes"] == [note]


def test_a_good_folder_is_the_same_with_and_without(tmp_path: Path, run_cli: RunCli) -> None:
    folder = write_records(tmp_path / "records", simulate(epochs=2, configs=6))
    outcome = run_cli("summary", folder, "--json")
    assert outcome.code == 0
    assert run_cli("summary", folder, "--json", "--skip-bad") == outcome


def test_every_bad_part_is_left_out_with_its_own_note(records: Path) -> None:
    first = part_paths(records)[1]
    rows = len(read_records(records, skip_bad=True)[0])
    first.write_bytes(b"")
    (records / "folder.parquet").mkdir()
    frame, notes = read_records(records, skip_bad=True)
    assert len(frame) in (rows - 5, rows - 7)
    assert sorted(note.split(": ")[1] for note in notes) == sorted(
        str(path) for path in (first, records / "folder.parquet", records / "z-damaged.parquet")
    )
    assert all(note.startswith("left out: ") for note in notes)


def test_where_nothing_is_left_there_is_no_report(tmp_path: Path) -> None:
    folder = write_records(tmp_path / "records")
    (folder / "z.parquet").write_bytes(b"")
    with pytest.raises(QBWError) as error:
        read_records(folder, skip_bad=True)
    assert str(error.value) == f"{folder}: holds no rows yet; run `make eval CKPT=...` first"


def test_a_part_of_a_newer_version_is_not_to_be_repaired(tmp_path: Path) -> None:
    folder = write_records(tmp_path / "records", [row([2, 4], 500)])
    newer = folder / "z.parquet"
    newer.write_bytes(tagged([row([8, 8], 600)], schema_version="2.0"))
    with pytest.raises(QBWError) as error:
        read_records(folder)
    sentence = f"{newer}: schema version '2.0' is newer than 1.1, which this QBW reads; upgrade qbw"
    assert str(error.value) == f"{sentence}; to draw without this part, say --skip-bad"
    frame, notes = read_records(folder, skip_bad=True)
    assert (len(frame), notes) == (1, [f"left out: {sentence}"])
