"""`qbw-eval compact`: the same rows in few parts, in a new folder; nobody who reads the old one notices."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from stage_references import Outcome, contents, qbw_eval
from store_helpers import OTHER_TABLE, PLAN_ID, TABLE, damage, good_folder, part_bytes, table_of, true_rows

from qbw_eval import compact as compact_module
from qbw_eval.compact import compact
from qbw_eval.dataset import order_free_digest
from qbw_eval.verify import verify
from schemas import records
from schemas.parts import ANCHOR_NAME, decode_part, encode_part

OTHER = "d" * 64


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Nine rows of two networks in five parts."""
    store = good_folder(tmp_path / "source")
    store.add_layers(OTHER_TABLE)
    for first, count in ((2, 1), (0, 2)):
        rows = true_rows(first, count, OTHER_TABLE, checkpoint_id=OTHER, epoch=1, experiment="made before")
        store.append(OTHER, PLAN_ID, table_of(rows))
    return store.records


def rows_in(folder: Path) -> list[str]:
    """Return every row as text, in an order of its own."""
    parts = [decode_part(path.read_bytes(), records.KIND, path.name) for path in folder.iterdir()]
    return sorted(repr(row) for part in parts for row in part.to_pylist())


def test_the_new_dataset_has_the_same_rows_in_few_parts_and_the_old_one_is_untouched(
    source: Path, tmp_path: Path
) -> None:
    before = contents(tmp_path / "source")
    new = tmp_path / "new" / "records"
    outcome = qbw_eval("compact", source, new)
    assert (outcome.code, outcome.stderr) == (0, "")
    told = json.loads(outcome.stdout)
    assert told == {
        "rows": 9,
        "parts": 1,
        "source_digest": told["target_digest"],
        "target_digest": told["target_digest"],
    }
    assert re.fullmatch("[0-9a-f]{32}", told["source_digest"])
    assert sorted(path.name for path in new.iterdir()) == [ANCHOR_NAME, "compact-000000.parquet"]
    assert rows_in(new) == rows_in(source)
    assert contents(tmp_path / "source") == before
    assert verify(new).problems == ()
    layers = {path.name: path.read_bytes() for path in (new.parent / "layers").iterdir()}
    assert layers == {path.name: path.read_bytes() for path in (source.parent / "layers").iterdir()}
    assert set(layers) == {f"{table.model_id}.parquet" for table in (TABLE, OTHER_TABLE)}


def test_parts_are_no_larger_than_asked_for_and_in_the_order_in_which_people_look(source: Path, tmp_path: Path) -> None:
    new = tmp_path / "new" / "records"
    result = compact(source, new, rows_per_part=4)
    assert (result.rows, result.parts, result.source_digest) == (9, 3, result.target_digest)
    frames = [pd.read_parquet(path) for path in sorted(new.iterdir())]
    assert [len(frame) for frame in frames] == [0, 4, 4, 1]
    rows = pd.concat(frames, ignore_index=True)
    assert list(zip(rows["experiment"], rows["config_index"], strict=True)) == [
        *(("made before", index) for index in range(3)),
        *(("made up", index) for index in range(6)),
    ]
    assert rows_in(new) == rows_in(source)


def test_compacting_again_gives_the_same_digest(source: Path, tmp_path: Path) -> None:
    first = compact(source, tmp_path / "first" / "records", rows_per_part=2)
    second = compact(tmp_path / "first" / "records", tmp_path / "second" / "records")
    assert second.source_digest == second.target_digest == first.source_digest
    assert (first.parts, second.parts) == (5, 1)


def test_the_digest_knows_every_value_and_no_order() -> None:
    table = table_of(true_rows(0, 5))
    digest = order_free_digest(table)
    assert order_free_digest(table.take([3, 1, 0, 4, 2])) == digest
    others = [true_rows(0, 5, **{name: value}) for name, value in (("epoch", 1), ("loss", None), ("device", "x"))]
    assert len({digest, order_free_digest(table.slice(1)), *(order_free_digest(table_of(o)) for o in others)}) == 5


def test_a_target_that_is_there_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    for target in ("file", "folder", "source/records"):
        assert qbw_eval("compact", source, tmp_path / target) == Outcome(
            1, "", f"qbw-eval: error: {tmp_path / target}: is there already; compact into a new folder\n"
        )
    assert contents(tmp_path) == before


def test_a_target_inside_the_source_is_refused(source: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    target = source / "new"
    assert qbw_eval("compact", source, target) == Outcome(
        1,
        "",
        f"qbw-eval: error: {target}: lies in {source}, which is not to be touched; compact into another folder\n",
    )
    assert contents(tmp_path) == before
    assert not target.exists()


def test_an_empty_folder_and_a_sibling_are_good_targets(source: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    for target in (tmp_path / "empty", source.with_name("fewer")):
        target.mkdir()
        assert compact(source, target).rows == 9
        assert verify(target).problems == ()
    assert before.items() <= contents(tmp_path).items()


def test_a_bad_source_is_refused_and_nothing_is_written(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "records"
    bad = sorted(source.iterdir())[1]
    whole = bad.read_bytes()
    damage(bad)
    outcome = qbw_eval("compact", source, target)
    assert outcome.code == 1
    assert re.fullmatch(
        rf"qbw-eval: error: {re.escape(str(source))}: {bad.name}: damaged \(.+\); move it away and evaluate again; "
        rf"repair with: qbw-eval verify {re.escape(str(source))} --quarantine\n",
        outcome.stderr,
    )
    bad.write_bytes(whole)

    twice = source / "compact-000000.parquet"
    twice.write_bytes(encode_part(table_of(true_rows(0, 1)), records.KIND, "x"))
    assert qbw_eval("compact", source, target) == Outcome(
        1, "", f"qbw-eval: error: {source}: some rows are there twice; find them with: qbw-eval verify {source}\n"
    )
    twice.unlink()

    newer = source / "newer.parquet"
    newer.write_bytes(part_bytes(table_of(true_rows(7, 1)), "3.0"))
    assert qbw_eval("compact", source, target) == Outcome(
        1,
        "",
        f"qbw-eval: error: {source}: newer.parquet: schema version '3.0' is newer than 1.1, which this QBW reads; "
        "upgrade qbw\n",
    )
    newer.unlink()

    folder = source / "z.parquet"
    folder.mkdir()
    assert qbw_eval("compact", source, target) == Outcome(
        1, "", f"qbw-eval: error: {folder}: cannot be read (Is a directory); check its permissions\n"
    )
    assert not target.parent.exists()


def test_a_bad_layer_table_is_refused(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "records"
    path = source.parent / "layers" / f"{TABLE.model_id}.parquet"
    whole = path.read_bytes()
    for spoil, sentence in (
        (path.unlink, f"{path}: the layer table cannot be read (No such file or directory)"),
        (
            lambda: path.write_bytes(encode_part(OTHER_TABLE.to_arrow(), "layers", "x")),
            f"{path}: holds another layer table than its name says",
        ),
    ):
        spoil()
        assert qbw_eval("compact", source, target) == Outcome(1, "", f"qbw-eval: error: {sentence}\n")
        path.write_bytes(whole)
        assert not target.parent.exists()


def test_a_source_without_rows_or_without_a_folder_is_refused(tmp_path: Path) -> None:
    empty = good_folder(tmp_path, count=0).records
    assert qbw_eval("compact", empty, tmp_path / "new") == Outcome(
        1, "", f"qbw-eval: error: {empty}: holds no rows yet; run: qbw-eval run CKPT --records {empty}\n"
    )
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    assert qbw_eval("compact", nowhere, tmp_path / "new") == Outcome(
        1, "", f"qbw-eval: error: {nowhere}: holds no rows yet; run: qbw-eval run CKPT --records {nowhere}\n"
    )
    nowhere.rmdir()
    assert qbw_eval("compact", nowhere, tmp_path / "new") == Outcome(
        2, "", f"qbw-eval: error: {nowhere}: no such folder; name a records folder, such as results/records\n"
    )
    assert not (tmp_path / "new").exists()


def test_a_copy_that_differs_would_be_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be a defect of ours; here, one of its readings loses a row."""
    read, new = compact_module.read_dataset, tmp_path / "new" / "records"
    monkeypatch.setattr(compact_module, "read_dataset", lambda folder: read(folder).slice(folder == new))
    outcome = qbw_eval("compact", source, new)
    told = json.loads(outcome.stdout)
    assert told["source_digest"] != told["target_digest"]
    assert (outcome.code, outcome.stderr) == (
        1,
        f"qbw-eval: error: {new}: holds other rows than {source}; do not use it, and report this\n",
    )


def test_runs_resume_on_the_compacted_dataset(tiny_checkpoints: Path, tmp_path: Path) -> None:
    command = ("run", tiny_checkpoints, "--limit", 10, "--json", "--num-configs")
    old, new, fresh = (tmp_path / name / "records" for name in ("old", "new", "fresh"))
    assert qbw_eval(*command, 5, "--records", old).code == 0
    assert qbw_eval("compact", old, new).code == 0
    before = contents(new)
    again = json.loads(qbw_eval(*command, 5, "--records", new).stdout)["checkpoints"]
    assert [(told["done_before"], told["evaluated_now"]) for told in again] == [(5, 0)] * 3
    assert contents(new) == before
    more = json.loads(qbw_eval(*command, 7, "--records", new).stdout)["checkpoints"]
    assert [(told["done_before"], told["evaluated_now"]) for told in more] == [(5, 2)] * 3
    assert before.items() <= contents(new).items()
    assert verify(new).problems == ()
    assert qbw_eval(*command, 7, "--records", fresh).code == 0
    assert set(pd.read_parquet(new)["record_id"]) == set(pd.read_parquet(fresh)["record_id"])
    assert len(pd.read_parquet(new)) == 21
