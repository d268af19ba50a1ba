"""`qbw-eval verify`: everything that can be wrong with a records folder is named, and what is moved away comes back."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from stage_references import CHECKPOINT_ID, PLAN_ID, Outcome, contents, qbw_eval
from store_helpers import (
    FIRST,
    OTHER_TABLE,
    PREFIX,
    TABLE,
    damage,
    good_folder,
    part_bytes,
    table_of,
    true_rows,
)

from qbw_eval.verify import verify
from schemas import layers
from schemas.errors import UsageError
from schemas.parts import ANCHOR_NAME, PartError, decode_part, encode_part
from schemas.records import RECORD_SCHEMA

SECOND = f"{PREFIX}000002.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A records folder in which nothing is wrong: six rows in three parts."""
    return good_folder(tmp_path).records


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(encode_part(table_of(rows), "records", path.name))


def changed(name: str, row: int, **changes: Any) -> Callable[[Path], None]:
    """Return what replaces values of a row in the second part, and leaves the part a whole part."""

    def change(folder: Path) -> None:
        rows = true_rows(2, 2)
        rows[row] |= changes
        write(folder / name, rows)

    return change


def identity_changed(**changes: Any) -> Callable[[Path], None]:
    """Return what replaces values that go into the `record_id`, which is then computed from them."""
    return lambda folder: write(folder / SECOND, true_rows(2, 2, **changes))


def layer_file(folder: Path) -> Path:
    return folder.parent / "layers" / f"{TABLE.model_id}.parquet"


def test_a_good_folder_has_no_problems(folder: Path) -> None:
    found = verify(folder)
    assert (found.parts, found.rows, found.problems) == (4, 6, ())
    outcome = qbw_eval("verify", folder)
    assert outcome == Outcome(0, "4 parts with 6 rows are good; 0 problems\n", "")


def test_folders_with_little_in_them_are_good(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert verify(tmp_path / "empty").problems == ()
    assert verify(good_folder(tmp_path / "anchor", count=0).records).problems == ()


def test_a_compact_dataset_and_one_of_two_networks_are_good(folder: Path, tmp_path: Path) -> None:
    assert qbw_eval("compact", folder, tmp_path / "new" / "records").code == 0
    assert verify(tmp_path / "new" / "records").problems == ()
    store = good_folder(tmp_path / "two")
    store.add_layers(OTHER_TABLE)
    store.append("d" * 64, PLAN_ID, table_of(true_rows(0, 3, OTHER_TABLE, checkpoint_id="d" * 64)))
    found = verify(store.records)
    assert (found.parts, found.rows, found.problems) == (5, 9, ())


def test_rows_of_schema_version_1_0_are_good_without_the_costs_that_came_later(folder: Path) -> None:
    lacking = [name for name in RECORD_SCHEMA.names if true_rows(2, 1)[0][name] is None]
    rows = table_of(true_rows(2, 2)).drop_columns(["relative_weight_bytes", *lacking])
    (folder / SECOND).write_bytes(part_bytes(rows, version="1.0"))
    assert verify(folder).problems == ()


# One kind of problem: what brings it about, and the whole sentence on it.
RECORD_3 = true_rows(3, 1)[0]["record_id"]
RECORD_0 = true_rows(0, 1)[0]["record_id"]
OTHER_NAME = f"{'d' * 12}-01234567-000002.parquet"
KINDS: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "foreign": (
        lambda folder: shutil.copy(
            Path(__file__).parents[1] / "data" / "layers-1.0.parquet", folder / "layers.parquet"
        ),
        "layers.parquet: expected a QBW part of kind 'records', found a part of kind 'layers'; move it away",
    ),
    "not ours": (
        lambda folder: pq.write_table(table_of(true_rows(9, 1)), folder / "z.parquet"),
        "z.parquet: expected a QBW part of kind 'records', found a Parquet file that QBW did not write; move it away",
    ),
    "breaks a rule": (
        lambda folder: (folder / SECOND).write_bytes(part_bytes(table_of(true_rows(2, 2, correct=99)))),
        f"{SECOND}: column 'correct', row 0: expected at most num_samples, found 99",
    ),
    "other values": (
        changed(SECOND, 1, record_id="f" * 32),
        f"{SECOND}: row 1: record_id is {'f' * 32}; its columns give {RECORD_3}",
    ),
    "other bits": (
        changed(SECOND, 0, bitwidths=[8, 8]),
        f"{SECOND}: row 0: record_id is {true_rows(2, 1)[0]['record_id']}; its columns give "
        f"{true_rows(2, 1, bitwidths=[8, 8])[0]['record_id']}",
    ),
    "name of another start": (
        lambda folder: (folder / SECOND).rename(folder / f"{PREFIX}000003.parquet"),
        f"{PREFIX}000003.parquet: row 0: belongs into a part called {SECOND}",
    ),
    "name of another checkpoint": (
        lambda folder: (folder / SECOND).rename(folder / OTHER_NAME),
        f"{OTHER_NAME}: row 0: belongs into a part called {SECOND}",
    ),
    "name of nobody": (
        lambda folder: (folder / SECOND).rename(folder / "copy.parquet"),
        f"copy.parquet: row 0: belongs into a part called {SECOND}",
    ),
    "rows that do not follow each other": (
        lambda folder: write(folder / SECOND, [*true_rows(2, 1), *true_rows(4, 1)]),
        f"{SECOND}: row 1: belongs into a part called {PREFIX}000003.parquet",
    ),
    "rows in the anchor": (
        lambda folder: write(folder / ANCHOR_NAME, true_rows(8, 1)),
        f"{ANCHOR_NAME}: row 0: belongs into a part called {PREFIX}000008.parquet",
    ),
    "no rows": (
        lambda folder: shutil.copy(folder / ANCHOR_NAME, folder / f"{PREFIX}000009.parquet"),
        f"{PREFIX}000009.parquet: holds no rows",
    ),
    "a record in two parts": (
        lambda folder: write(folder / "compact-000000.parquet", true_rows(0, 1)),
        f"compact-000000.parquet: row 0: record {RECORD_0} is in {FIRST} too",
    ),
    "a record twice in a part": (
        lambda folder: write(folder / "compact-000000.parquet", true_rows(8, 1) * 2),
        "compact-000000.parquet: holds a record twice",
    ),
    "too many bits": (
        identity_changed(bitwidths=[2, 4, 8], table=OTHER_TABLE, model_id=TABLE.model_id),
        f"{SECOND}: row 0: has bits for 3 layers; its layer table has 2",
    ),
    "bits that are no option": (
        identity_changed(bitwidth_options=[2, 4]),
        f"{SECOND}: row 0: bitwidths [8, 2] are not all among its options [2, 4]",
    ),
    "options that are missing": (
        changed(SECOND, 0, bitwidth_options=[2, 4, 8, None], avg_bitwidth=0.0),
        f"{SECOND}: row 0: avg_bitwidth is 0.0; its bits and layers give 5.0",
    ),
    **{
        f"wrong {cost}": (
            changed(SECOND, 1, **{cost: wrong}),
            f"{SECOND}: row 1: {cost} is {wrong}; its bits and layers give {true_rows(3, 1)[0][cost]}",
        )
        for cost, wrong in {
            "avg_bitwidth": 3.5,
            "weighted_avg_bitwidth": 3.5,
            "weight_bytes": 1,
            "relative_weight_bytes": 0.125,
            "bit_ops": 1,
            "relative_bit_ops": None,
        }.items()
    },
    **{
        f"no {column}": (
            changed(SECOND, 1, **{column: empty}),
            f"{SECOND}: row 1: has no {column}",
        )
        for column, empty in {
            "checkpoint_id": None,
            "plan_id": "",
            "config_index": None,
            "model_id": None,
            "bitwidth_options": [],
        }.items()
    },
    "a network that is a path": (
        changed(SECOND, 0, model_id="../records/" + FIRST.removesuffix(".parquet")),
        f"{SECOND}: row 0: model_id '../records/{FIRST.removesuffix('.parquet')}' is no hash of a layer table",
    ),
    "a hidden part": (
        lambda folder: shutil.copy(folder / SECOND, folder / ".x.parquet"),
        ".x.parquet: not a part; a records folder holds nothing else",
    ),
    "a note": (
        lambda folder: (folder / "notes.txt").write_text("mine"),
        "notes.txt: not a part; a records folder holds nothing else",
    ),
    "a folder": (
        lambda folder: (folder / "older").mkdir(),
        "older: not a part; a records folder holds nothing else",
    ),
    "a part that cannot be read": (
        lambda folder: (folder / "z.parquet").mkdir(),
        "z.parquet: cannot be read (Is a directory)",
    ),
    "no anchor": (
        lambda folder: (folder / ANCHOR_NAME).unlink(),
        f"{ANCHOR_NAME}: missing; the next run writes it",
    ),
    "no layer table": (
        lambda folder: layer_file(folder).unlink(),
        "{layers}/" + f"{TABLE.model_id}.parquet: the layer table cannot be read (No such file or directory)",
    ),
    "another layer table": (
        lambda folder: layer_file(folder).write_bytes(encode_part(OTHER_TABLE.to_arrow(), layers.KIND, "x")),
        "{layers}/" + f"{TABLE.model_id}.parquet: holds another layer table than its name says",
    ),
    "records as a layer table": (
        lambda folder: shutil.copy(folder / SECOND, layer_file(folder)),
        "{layers}: " + f"{TABLE.model_id}.parquet: expected a QBW part of kind 'layers', "
        "found a part of kind 'records'; move it away",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_is_said_in_a_sentence_and_the_rest_is_good(kind: str, folder: Path) -> None:
    spoil, sentence = KINDS[kind]
    assert verify(folder).problems == ()
    spoil(folder)
    outcome = qbw_eval("verify", folder)
    *problems, count = outcome.stdout.splitlines()
    assert problems == [sentence.replace("{layers}", str(folder.parent / "layers"))]
    assert re.fullmatch(r"[345] parts with [4568] rows are good; 1 problems", count)
    assert outcome.code == 1
    assert outcome.stderr == f"qbw-eval: error: {folder}: 1 problems; move bad files away with --quarantine\n"


def test_damage_is_named_whatever_it_does_to_the_file(folder: Path) -> None:
    damage(folder / FIRST)
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-20])
    (folder / f"{PREFIX}000004.parquet").write_bytes(part_bytes(table_of(true_rows(4, 2)))[::-1])
    damage(layer_file(folder))
    found = verify(folder)
    assert (found.parts, found.rows) == (1, 0), "the anchor"
    assert [problem.path.name for problem in found.problems] == [FIRST, SECOND, f"{PREFIX}000004.parquet"]
    assert re.fullmatch(rf"{FIRST}: damaged \(.+\); move it away and evaluate again", found.problems[0].what)
    for problem in found.problems[1:]:
        assert re.fullmatch(rf"{problem.path.name}: not a readable Parquet file \(.+\); move it away", problem.what)


def test_a_damaged_layer_table_is_named_once_however_many_parts_refer_to_it(folder: Path) -> None:
    damage(layer_file(folder))
    (problem,) = verify(folder).problems
    assert problem.path == layer_file(folder)
    assert re.fullmatch(
        rf"{re.escape(str(folder.parent / 'layers'))}: {TABLE.model_id}.parquet: damaged \(.+\); "
        "move it away and evaluate again",
        problem.what,
    )
    assert verify(folder).rows == 6, "the rows themselves are whole"


def test_every_problem_of_a_folder_is_named(folder: Path) -> None:
    for spoil in ("a note", "no anchor", "wrong bit_ops", "a record twice in a part"):
        KINDS[spoil][0](folder)
    outcome = qbw_eval("verify", folder)
    assert outcome.stdout.splitlines()[:-1] == [
        KINDS[kind][1] for kind in ("a note", "no anchor", "wrong bit_ops", "a record twice in a part")
    ]
    assert outcome.stderr == f"qbw-eval: error: {folder}: 4 problems; move bad files away with --quarantine\n"


def test_verifying_changes_nothing(folder: Path, tmp_path: Path) -> None:
    KINDS["wrong bit_ops"][0](folder)
    before = contents(tmp_path)
    assert qbw_eval("verify", folder).code == 1
    assert qbw_eval("verify", folder, "--json").code == 1
    assert contents(tmp_path) == before


def test_a_folder_that_is_not_there_is_a_mistake_in_the_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        outcome = qbw_eval("verify", path)
        assert outcome == Outcome(
            2, "", f"qbw-eval: error: {path}: no such folder; name a records folder, such as results/records\n"
        )
        with pytest.raises(UsageError):
            verify(path)


# --- the quarantine -------------------------------------------------------------------------------------------------


def test_quarantine_moves_every_bad_file_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    for spoil in ("other values", "another layer table", "a note", "no anchor"):
        KINDS[spoil][0](folder)
    before = contents(tmp_path)
    bad = ["notes.txt", layer_file(folder).name, SECOND]
    outcome = qbw_eval("verify", folder, "--quarantine")
    assert outcome.code == 0
    assert outcome.stderr == "The next run evaluates again what was moved away.\n"
    told = outcome.stdout.splitlines()
    quarantine = folder.parent / ".qbw" / "quarantine"
    moved = {path.name[9:]: path for path in quarantine.iterdir()}
    assert sorted(moved) == sorted(bad)
    assert told[4:] == [
        *(f"{name}: moved to {moved[name]}" for name in bad),
        "2 parts with 4 rows are good; 4 problems",
    ]
    after = contents(tmp_path)
    assert {data for _, data in after.values()} == {data for _, data in before.values()}, "nothing is deleted"
    assert [problem.what for problem in verify(folder).problems] == [
        f"{ANCHOR_NAME}: missing; the next run writes it",
        f"{layer_file(folder)}: the layer table cannot be read (No such file or directory)",
    ]


def test_quarantine_of_a_good_folder_does_nothing(folder: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    assert qbw_eval("verify", folder, "--quarantine") == Outcome(0, "4 parts with 6 rows are good; 0 problems\n", "")
    assert contents(tmp_path) == before


def test_a_part_of_a_newer_version_is_left_where_it_is(folder: Path, tmp_path: Path) -> None:
    (folder / SECOND).write_bytes(part_bytes(table_of(true_rows(2, 2)), "2.0"))
    before = contents(tmp_path)
    outcome = qbw_eval("verify", folder, "--quarantine")
    assert outcome == Outcome(
        1,
        f"{SECOND}: schema version '2.0' is newer than 1.1, which this QBW reads; upgrade qbw\n"
        "3 parts with 4 rows are good; 1 problems\n",
        f"qbw-eval: error: {folder}: 1 problems are left, which moving files away does not mend\n",
    )
    assert contents(tmp_path) == before


def test_json_says_the_same(folder: Path) -> None:
    KINDS["wrong bit_ops"][0](folder)
    sentence = KINDS["wrong bit_ops"][1]
    problem = {"path": str(folder / SECOND), "what": sentence, "moved_to": None}
    outcome = qbw_eval("verify", folder, "--json")
    assert outcome.code == 1
    assert json.loads(outcome.stdout) == {"parts": 3, "rows": 4, "problems": [problem]}
    outcome = qbw_eval("verify", folder, "--json", "--quarantine")
    (moved,) = (folder.parent / ".qbw" / "quarantine").iterdir()
    assert json.loads(outcome.stdout) == {"parts": 3, "rows": 4, "problems": [{**problem, "moved_to": str(moved)}]}
    assert outcome.code == 0
    assert json.loads(qbw_eval("verify", folder, "--json").stdout) == {"parts": 3, "rows": 4, "problems": []}


def test_the_next_run_evaluates_again_exactly_what_was_moved_away(tiny_checkpoints: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "records"
    command = ("run", tiny_checkpoints, "--limit", 10, "--num-configs", 70, "--records", folder)
    assert qbw_eval(*command).code == 0
    parts = sorted(path.name for path in folder.iterdir())
    assert len(parts) == 1 + 3 * 2
    expected = _results(folder)
    damage(folder / parts[2])  # configurations 64 to 69 of one checkpoint
    (folder / parts[3]).write_bytes(b"")  # configurations 0 to 63 of another
    (layer_table,) = (folder.parent / "layers").iterdir()
    damage(layer_table)
    lost = {parts[2], parts[3], layer_table.name}

    refused = qbw_eval(*command)
    assert refused.code == 1
    assert refused.stderr.endswith(f": qbw-eval verify {folder} --quarantine\n")
    assert qbw_eval("verify", folder, "--quarantine").code == 0
    before = contents(folder.parent)
    again = qbw_eval(*command)
    assert again.stdout.splitlines()[-1] == f"Done before: 140. Evaluated now: 70. Rows: {folder}. Next: make report"
    after = contents(folder.parent)
    assert {Path(name).name for name in after.keys() - before.keys()} == lost
    assert before.items() <= after.items()
    assert verify(folder).problems == ()
    assert _results(folder) == expected


def test_the_next_run_writes_an_anchor_and_a_layer_table_that_are_missing_even_if_no_row_is(
    tiny_checkpoints: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "results" / "records"
    command = ("run", tiny_checkpoints / "epoch_001.pt", "--limit", 5, "--num-configs", 2, "--records", folder)
    assert qbw_eval(*command).code == 0
    before = {name: data for name, (_, data) in contents(folder.parent).items()}
    (layer_table,) = (folder.parent / "layers").iterdir()
    layer_table.unlink()
    (folder / ANCHOR_NAME).unlink()
    assert len(verify(folder).problems) == 2
    assert "Nothing to do" in qbw_eval(*command).stdout
    assert {name: data for name, (_, data) in contents(folder.parent).items()} == before


def _results(folder: Path) -> list[dict[str, Any]]:
    """Return the rows in an order of their own, without when and how fast they were computed."""
    frame = pd.read_parquet(folder).sort_values("record_id").drop(columns=["duration_s", "evaluated_at"])
    return json.loads(frame.assign(correct_mask=frame["correct_mask"].map(bytes.hex)).to_json(orient="records"))  # type: ignore[no-any-return]


def test_what_the_helpers_call_true_is_what_the_schema_calls_a_part() -> None:
    """Or the sentences above could be about something else."""
    data = part_bytes(table_of(true_rows(0, 3)))
    assert decode_part(data, "records", "x").equals(table_of(true_rows(0, 3)))
    with pytest.raises(PartError):
        decode_part(data, "layers", "x")
    assert CHECKPOINT_ID.startswith(FIRST[:12])
    assert PLAN_ID.startswith(FIRST[13:21])
