"""The store: a part is complete or absent, whatever the disk, the clock or another process does."""

import ctypes
import errno
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stage_references import CHECKPOINT_ID, PLAN_ID, contents, one_thread, rows_of
from store_helpers import (
    FIRST,
    NO_HARD_LINKS,
    OPERATIONS,
    PREFIX,
    TABLE,
    Faults,
    damage,
    indices_in,
    left_over,
    part_bytes,
    parts_in,
    refusing,
)

from qbw_eval import files as files_module
from qbw_eval.files import Files
from qbw_eval.store import RecordStore, StoreError
from schemas import layers, records
from schemas.check import SchemaError
from schemas.parts import ANCHOR_NAME, decode_part, encode_part
from schemas.records import RECORD_SCHEMA


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def store(tmp_path: Path, faults: Faults) -> RecordStore:
    return RecordStore(tmp_path / "results" / "records", faults)


def append(store: RecordStore, first: int, count: int, **shared: Any) -> int:
    return store.append(CHECKPOINT_ID, PLAN_ID, rows_of(first, count, **shared))


def done(store: RecordStore) -> list[int]:
    return sorted(store.done(CHECKPOINT_ID, PLAN_ID))


def write_part(store: RecordStore, name: str, *arguments: int, **shared: Any) -> Path:
    """Put a part into the folder that the store did not write."""
    store.records.mkdir(parents=True, exist_ok=True)
    path = store.records / name
    path.write_bytes(encode_part(rows_of(*arguments, **shared), records.KIND, name))
    return path


# --- append and done ------------------------------------------------------------------------------------------------


def test_nothing_is_done_and_nothing_is_made_before_the_first_append(store: RecordStore, tmp_path: Path) -> None:
    assert done(store) == []
    assert store.sweep() == 0
    assert list(tmp_path.iterdir()) == []


def test_appended_rows_are_one_part_named_after_its_start_and_are_done(store: RecordStore) -> None:
    assert append(store, 0, 3) == 3
    assert parts_in(store) == [ANCHOR_NAME, FIRST]
    path = store.records / FIRST
    assert decode_part(path.read_bytes(), records.KIND, FIRST).equals(rows_of(0, 3))
    assert done(store) == [0, 1, 2]
    assert left_over(store) == []
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444, "other people's reports must be able to read it"


def test_the_anchor_has_no_rows_and_the_schema(store: RecordStore) -> None:
    append(store, 0, 3)
    anchor = decode_part((store.records / ANCHOR_NAME).read_bytes(), records.KIND, ANCHOR_NAME)
    assert anchor.equals(RECORD_SCHEMA.empty_table())


def test_parts_cover_exactly_the_configurations_that_were_appended(store: RecordStore) -> None:
    for first, count in ((0, 3), (7, 1), (1_234_567, 1), (64, 5)):
        assert append(store, first, count) == count
    assert done(store) == [0, 1, 2, 7, 64, 65, 66, 67, 68, 1_234_567]
    assert sorted(pd.read_parquet(store.records)["config_index"]) == done(store)
    assert parts_in(store) == [ANCHOR_NAME, *(f"{PREFIX}{n}.parquet" for n in ("000000", "000007", "000064", 1234567))]


def test_appending_no_rows_is_no_part(store: RecordStore) -> None:
    assert append(store, 0, 0) == 0
    assert parts_in(store) == [ANCHOR_NAME]


def test_done_tells_checkpoints_and_plans_apart_by_whole_hashes(store: RecordStore) -> None:
    append(store, 0, 3)
    assert store.done("d" + CHECKPOINT_ID[1:], PLAN_ID) == set()
    assert store.done(CHECKPOINT_ID, "f" + PLAN_ID[1:]) == set()
    # Equal beginnings, so the same names of parts, and yet not the same.
    assert store.done(CHECKPOINT_ID[:-1] + "0", PLAN_ID) == set()
    assert store.done(CHECKPOINT_ID, PLAN_ID[:-1] + "0") == set()


def test_done_reads_parts_that_hold_rows_of_several_checkpoints(store: RecordStore) -> None:
    append(store, 9, 1)
    store.add_compact(0, rows_of(0, 3))
    store.add_compact(1, rows_of(3, 2, checkpoint_id="another"))
    assert parts_in(store) == [
        ANCHOR_NAME,
        f"{PREFIX}000009.parquet",
        "compact-000000.parquet",
        "compact-000001.parquet",
    ]
    assert done(store) == [0, 1, 2, 9]
    assert store.done("another", PLAN_ID) == {3, 4}


def test_done_reads_a_part_once(store: RecordStore, faults: Faults) -> None:
    append(store, 0, 3)
    for _ in range(3):
        assert done(store) == [0, 1, 2]
    assert faults.events.count(f"read {FIRST}") == 1
    write_part(store, f"{PREFIX}000005.parquet", 5, 1)
    assert done(store) == [0, 1, 2, 5]


@pytest.mark.parametrize(
    "name", ["notes.txt", f"x{FIRST}", f"{FIRST}.tmp", f"{FIRST}~", FIRST.upper(), "compact-notes.txt", ".gitignore"]
)
def test_done_overlooks_files_with_other_names(store: RecordStore, name: str) -> None:
    store.records.mkdir(parents=True)
    (store.records / name).write_bytes(b"")
    assert done(store) == []


@pytest.mark.parametrize("name", [FIRST, "compact-000000.parquet"])
def test_a_damaged_part_stops_done_with_the_way_to_repair_it(store: RecordStore, name: str) -> None:
    path = write_part(store, name, 0, 3)
    damage(path)
    with pytest.raises(StoreError) as error:
        done(store)
    told = re.fullmatch(
        rf"{re.escape(str(store.records))}: {name}: damaged \(.+\); move it away and evaluate again: "
        rf"qbw-eval verify {re.escape(str(store.records))} --quarantine",
        str(error.value),
    )
    assert told, str(error.value)


def test_a_part_of_a_newer_version_stops_done_without_advice_to_move_it(store: RecordStore) -> None:
    store.records.mkdir(parents=True)
    (store.records / FIRST).write_bytes(part_bytes(rows_of(0, 3), "2.0"))
    with pytest.raises(StoreError) as error:
        done(store)
    assert str(error.value) == (
        f"{store.records}: {FIRST}: schema version '2.0' is newer than 1.1, which this QBW reads; upgrade qbw"
    )


def test_a_part_that_cannot_be_read_stops_done(store: RecordStore, faults: Faults) -> None:
    append(store, 0, 3)
    faults.fail("read", errno.EIO)
    with pytest.raises(StoreError) as error:
        done(store)
    assert str(error.value) == (
        f"{store.records / FIRST}: cannot be read (Input/output error); check the disk and its permissions"
    )


# --- rows that somebody else has committed --------------------------------------------------------------------------


def test_appending_the_same_rows_again_changes_nothing(store: RecordStore, tmp_path: Path) -> None:
    append(store, 0, 3)
    before = contents(tmp_path)
    assert append(store, 0, 3) == 0
    assert contents(tmp_path) == before


def test_the_rows_of_another_evaluator_with_other_provenance_count_as_the_same(
    store: RecordStore, tmp_path: Path
) -> None:
    append(store, 0, 3, device="cpu", duration_s=1.0)
    before = contents(tmp_path)
    assert append(store, 0, 3, device="NVIDIA H200", duration_s=0.01) == 0
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("there", "mine", "new"),
    [
        ([(0, 3)], (0, 5), [3, 4]),
        ([(0, 5)], (0, 3), []),
        ([(0, 2), (2, 2)], (0, 5), [4]),
        ([(0, 2), (2, 2), (4, 9)], (0, 5), []),
        ([(3, 2)], (0, 3), [0, 1, 2]),
        ([(0, 1)], (0, 2), [1]),
    ],
)
def test_of_overlapping_rows_only_those_that_nobody_has_committed_are_new(
    store: RecordStore, there: list[tuple[int, int]], mine: tuple[int, int], new: list[int]
) -> None:
    for first, count in there:
        append(store, first, count, device="theirs")
    before = contents(store.records)
    assert append(store, *mine, device="mine") == len(new)
    assert before.items() <= contents(store.records).items(), "what was there is as it was"
    frame = pd.read_parquet(store.records)
    assert frame["config_index"].is_unique
    assert sorted(frame["config_index"][frame["device"] == "mine"]) == new
    assert set(range(mine[0], sum(mine))) <= set(done(store))


@pytest.mark.parametrize("first_wrong", [0, 1, 2])
def test_other_rows_under_the_same_name_are_an_error_and_the_first_ones_stay(
    store: RecordStore, tmp_path: Path, first_wrong: int
) -> None:
    append(store, 0, 3)
    before = contents(tmp_path)
    rows = rows_of(0, 5)
    ids = rows["record_id"].to_pylist()
    ids[first_wrong] = "another"
    rows = rows.set_column(0, "record_id", [ids])
    with pytest.raises(StoreError) as error:
        store.append(CHECKPOINT_ID, PLAN_ID, rows)
    assert (
        str(error.value) == f"{store.records / FIRST}: holds other rows than its name says; move it away and run again"
    )
    assert contents(tmp_path) == before


def test_a_part_without_rows_under_a_name_of_ours_is_an_error_and_no_endless_loop(store: RecordStore) -> None:
    path = write_part(store, FIRST, 0, 0)
    with pytest.raises(StoreError) as error:
        append(store, 0, 3)
    assert str(error.value) == f"{path}: holds other rows than its name says; move it away and run again"


def test_a_damaged_part_under_the_same_name_is_an_error(store: RecordStore, tmp_path: Path) -> None:
    append(store, 0, 3)
    path = store.records / FIRST
    path.write_bytes(path.read_bytes()[:500])
    before = contents(tmp_path)
    folder = re.escape(str(store.records))
    with pytest.raises(
        StoreError,
        match=rf"^{folder}: {FIRST}: not a readable Parquet file \(.+\); move it away: qbw-eval verify {folder} "
        "--quarantine$",
    ):
        append(store, 0, 3)
    assert contents(tmp_path) == before


def test_rows_that_break_the_schema_are_not_written(store: RecordStore) -> None:
    with pytest.raises(
        SchemaError, match=rf"^{FIRST}: column 'correct', row 0: expected at most num_samples, found 11$"
    ):
        append(store, 0, 3, correct=11)
    assert parts_in(store) == [ANCHOR_NAME]
    assert done(store) == []


def test_a_compact_part_is_never_replaced(store: RecordStore, tmp_path: Path) -> None:
    store.add_compact(7, rows_of(0, 3))
    before = contents(tmp_path)
    with pytest.raises(StoreError) as error:
        store.add_compact(7, rows_of(0, 4))
    path = store.records / "compact-000007.parquet"
    assert str(error.value) == f"{path}: is there already; compact into a new folder"
    assert contents(tmp_path) == before


# --- layer tables ---------------------------------------------------------------------------------------------------


def test_a_layer_table_is_written_once_and_with_it_the_anchor(
    store: RecordStore, tmp_path: Path, faults: Faults
) -> None:
    store.add_layers(TABLE)
    path = tmp_path / "results" / "layers" / f"{TABLE.model_id}.parquet"
    assert decode_part(path.read_bytes(), layers.KIND, path.name).equals(TABLE.to_arrow())
    assert parts_in(store) == [ANCHOR_NAME]
    before = contents(tmp_path)
    faults.events.clear()
    store.add_layers(TABLE)
    assert contents(tmp_path) == before
    assert faults.events == ["names records", "names layers", "sync_folder layers"], "nothing is written that is there"
    assert left_over(store) == []


# --- what pandas sees -----------------------------------------------------------------------------------------------

DTYPES = {
    **dict.fromkeys([f.name for f in RECORD_SCHEMA if f.type == "string"], "str"),
    **dict.fromkeys([f.name for f in RECORD_SCHEMA if f.type == "double"], "float64"),
    **dict.fromkeys(["num_samples", "seed", "config_index", "weight_bytes", "bit_ops", "correct"], "int64"),
    "epoch": "int32",
    "bitwidths": "object",
    "bitwidth_options": "object",
    "correct_mask": "object",
    "evaluated_at": "datetime64[us, UTC]",
}


def test_pandas_reads_the_folder_with_plain_dtypes(store: RecordStore) -> None:
    append(store, 3, 2, epoch=1, seed=1, weight_bytes=1, bit_ops=1)
    for count, frame in ((2, pd.read_parquet(store.records)), (0, pd.read_parquet(store.records / ANCHOR_NAME))):
        assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == DTYPES
        assert list(frame.columns) == RECORD_SCHEMA.names
        assert len(frame) == count
    frame = pd.read_parquet(store.records)
    assert [list(bits) for bits in frame["bitwidths"]] == [[2, 7], [2, 8]]
    assert frame["bitwidths"][0].dtype == "int8"


# --- what is on the disk when ---------------------------------------------------------------------------------------


def publishing(name: str, folder: str = "records") -> list[str]:
    """Return what has to happen, in this order, before a part counts."""
    return [
        *("create temporary", "write temporary", "sync temporary", "close temporary"),
        *(f"name {name}", "remove temporary", f"sync_folder {folder}"),
    ]


def test_bytes_are_on_the_disk_before_their_name_is_and_the_name_before_it_counts(
    store: RecordStore, faults: Faults, tmp_path: Path
) -> None:
    append(store, 0, 3)
    # A folder is entered durably in the one above before anything is put into it; the outer ones too, whoever made it.
    outer = [tmp_path.name, tmp_path.parent.name]
    folders = [
        *("names records", "is_folder records", "is_folder results", f"is_folder {tmp_path.name}"),
        *("make_folder results", f"sync_folder {tmp_path.name}", "make_folder records", "sync_folder results"),
        *("sync_folder results", *(f"sync_folder {name}" for name in outer)),
        *("is_folder temporary", "is_folder .qbw", "is_folder results", "make_folder .qbw", "sync_folder results"),
        *("make_folder tmp", "sync_folder .qbw", "sync_folder .qbw", "sync_folder results", f"sync_folder {outer[0]}"),
    ]
    folders = [event.replace("is_folder temporary", "is_folder tmp") for event in folders]
    assert faults.events == [*folders, *publishing(ANCHOR_NAME), *publishing(FIRST)]
    faults.events.clear()
    append(store, 3, 3)
    assert faults.events == ["names records", *publishing(f"{PREFIX}000003.parquet")]


def test_the_folder_is_synced_even_when_somebody_else_published_the_part(store: RecordStore, faults: Faults) -> None:
    append(store, 0, 3)
    faults.events.clear()
    append(store, 0, 3)
    assert faults.events == ["names records", *publishing(FIRST), f"read {FIRST}"]


def test_folders_that_are_there_are_synced_by_a_new_process_once(
    store: RecordStore, faults: Faults, tmp_path: Path
) -> None:
    """Who made them a moment ago may not have come to that yet."""
    append(RecordStore(store.records), 0, 3)
    append(store, 3, 3)
    outer = [f"sync_folder {tmp_path.name}", f"sync_folder {tmp_path.parent.name}"]
    assert faults.events == [
        *("names records", "is_folder records", "sync_folder results", *outer),
        *("is_folder tmp", "sync_folder .qbw", "sync_folder results", outer[0]),
        *publishing(f"{PREFIX}000003.parquet"),
    ]


def test_a_folder_that_could_not_be_synced_is_synced_by_the_same_append_again(
    store: RecordStore, faults: Faults
) -> None:
    """The part is there after it got its name, but may be gone after a power cut: it must not be acknowledged."""
    append(store, 5, 1)
    faults.events.clear()
    faults.fail("sync_folder", errno.EIO, about="records")
    with pytest.raises(StoreError, match="Input/output error"):
        append(store, 0, 3)
    assert faults.events == ["names records", *publishing(FIRST)]
    faults.heal()
    assert append(store, 0, 3) == 0
    assert faults.events == ["names records", *publishing(FIRST), f"read {FIRST}"]


def test_what_is_done_is_durable_whoever_published_it(store: RecordStore, faults: Faults, tmp_path: Path) -> None:
    """Who published it may have died before it synced the folder, and then a power cut would undo what we count on."""
    append(RecordStore(store.records), 0, 3)
    assert store.done(CHECKPOINT_ID, "another plan") == set()
    assert faults.events == ["names records"], "nothing is counted on"
    faults.events.clear()
    assert done(store) == [0, 1, 2]
    outer = [f"sync_folder {tmp_path.name}", f"sync_folder {tmp_path.parent.name}"]
    assert faults.events == [
        *("names records", f"read {FIRST}", "is_folder records", "sync_folder results", *outer, "sync_folder records"),
    ]


def test_a_disk_that_does_not_promise_to_keep_what_is_done_is_one_sentence(store: RecordStore, faults: Faults) -> None:
    append(store, 0, 3)
    faults.fail("sync_folder", errno.EIO, about="records")
    with pytest.raises(StoreError) as error:
        done(store)
    assert str(error.value) == f"{store.records}: cannot be synced (Input/output error); check the disk"
    faults.fail("sync_folder", errno.EROFS, about="records")
    assert done(store) == [0, 1, 2], "a read-only disk keeps what it has"


def test_a_relative_folder_is_synced_in_the_same_places(
    tmp_path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    append(RecordStore(Path("records"), faults), 0, 3)
    synced = [event for event in faults.events if event.startswith("sync_folder")]
    # Path(".") is where we are; the folders above it are found all the same.
    # Path(".") is where we are; the folder above it is found all the same.
    assert synced[:3] == ["sync_folder ", "sync_folder ", f"sync_folder {tmp_path.parent.name}"]
    assert done(RecordStore(tmp_path / "records")) == [0, 1, 2]


# --- a disk that refuses --------------------------------------------------------------------------------------------

WRITING = [name for name in OPERATIONS if name not in ("move", "age", "read", "names")]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("operation", WRITING)
def test_a_refusal_at_any_point_is_one_sentence_and_leaves_nothing_half_written(
    tmp_path: Path, operation: str, number: int
) -> None:
    """The first append makes folders, the anchor and the part; `skip` walks the refusal through all of that."""
    skip = 0
    while refused(tmp_path / str(skip), operation, number, skip):
        skip += 1
    assert skip >= 2, "an anchor and a part"


def refused(folder: Path, operation: str, number: int, skip: int) -> bool:
    """Refuse a call of an operation (after the first `skip` ones); return whether there are that many."""
    faults = Faults()
    store = RecordStore(folder / "results" / "records", faults)
    folder.mkdir()
    outer = [f"sync_folder {folder.name}" for folder in list(store.records.parents)[:3]]
    faults.fail(operation, number, skip=skip)
    told = None
    try:
        append(store, 0, 3)
    except StoreError as error:
        told = str(error)
    calls = [event for event in faults.events if event.split()[0] == operation]
    if told is not None:
        assert re.fullmatch(
            rf"{re.escape(str(store.records))}/\S+\.parquet: cannot be written \({os.strerror(number)}\); "
            "what was committed before is safe: free some space or name another folder with --records, "
            "and run the same command again",
            told,
        )
    else:
        never_reached = len(calls) <= skip
        assert never_reached or (number == errno.EACCES and calls[skip] in outer), "the refusal has been overlooked"
    assert set(parts_in(store)) <= {ANCHOR_NAME, FIRST}
    assert len(left_over(store)) == (operation == "remove" and told is not None), "what cannot be removed is swept"
    # The same command again, on a disk that is well, makes up for it.
    faults.heal()
    append(store, 0, 3)
    assert parts_in(store) == [ANCHOR_NAME, FIRST]
    assert done(store) == [0, 1, 2]
    return len(calls) > skip


def test_a_folder_that_is_not_ours_need_not_be_synced(store: RecordStore, faults: Faults, tmp_path: Path) -> None:
    """Such as /home on a cluster; but other errors of its disk are told."""
    faults.fail("sync_folder", errno.EACCES, about=tmp_path.parent.name)
    assert append(store, 0, 3) == 3
    other = RecordStore(tmp_path / "other" / "results" / "records", faults)
    faults.heal()
    faults.fail("sync_folder", errno.EIO, about=tmp_path.name, skip=1)
    with pytest.raises(StoreError, match=r"0-schema.parquet: cannot be written \(Input/output error\)"):
        append(other, 0, 3)


@pytest.mark.parametrize("written", [1, 100, 5000])
def test_a_disk_that_is_full_in_the_middle_of_a_part_leaves_no_part(
    store: RecordStore, faults: Faults, written: int
) -> None:
    append(store, 5, 1)
    room = written

    def write(descriptor: int, data: memoryview) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = os.write(descriptor, data[:room])
        room -= count
        return count

    faults.replace("write", write)
    with pytest.raises(StoreError, match="No space left on device"):
        append(store, 0, 3)
    assert room == 0
    assert parts_in(store) == [ANCHOR_NAME, f"{PREFIX}000005.parquet"]
    assert left_over(store) == []


def test_a_sync_that_failed_is_not_tried_again_on_the_same_descriptor(store: RecordStore, faults: Faults) -> None:
    faults.fail("sync", errno.EIO)
    with pytest.raises(StoreError):
        append(store, 0, 3)
    assert faults.events[-4:] == ["write temporary", "sync temporary", "close temporary", "remove temporary"]


@pytest.mark.parametrize("operation", ["write", "sync", "close", "name"])
def test_an_interruption_while_writing_leaves_nothing(store: RecordStore, faults: Faults, operation: str) -> None:
    append(store, 5, 1)

    def interrupted(*arguments: Any) -> None:
        if operation == "close":
            os.close(arguments[0])
        raise KeyboardInterrupt

    faults.replace(operation, interrupted)
    with pytest.raises(KeyboardInterrupt):
        append(store, 0, 3)
    assert parts_in(store) == [ANCHOR_NAME, f"{PREFIX}000005.parquet"]
    assert left_over(store) == []


def test_writes_that_take_one_byte_at_a_time_make_the_same_part(
    store: RecordStore, faults: Faults, tmp_path: Path
) -> None:
    whole = RecordStore(tmp_path / "other" / "records")
    append(whole, 0, 3)
    faults.replace("write", lambda descriptor, data: os.write(descriptor, data[:1]))
    append(store, 0, 3)
    assert (store.records / FIRST).read_bytes() == (whole.records / FIRST).read_bytes()
    assert faults.events.count("write temporary") > (store.records / FIRST).stat().st_size


def test_another_file_system_beside_the_records_is_one_sentence(store: RecordStore, faults: Faults) -> None:
    faults.fail("name", errno.EXDEV)
    with pytest.raises(StoreError) as error:
        append(store, 0, 3)
    assert str(error.value) == (
        f"{store.records / ANCHOR_NAME}: cannot be written (Invalid cross-device link); what was committed before is "
        f"safe: {store.records} and {store.private} must be on one file system; name another folder, "
        "and run the same command again"
    )
    assert parts_in(store) == left_over(store) == []


# --- giving a file its name -----------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A finished file and the name that it is to have."""
    (tmp_path / "temporary").write_text("mine")
    return tmp_path / "temporary", tmp_path / "final"


class WithoutRename:
    """A C library without `renameat2`, or whose `renameat2` fails with an errno."""

    def __init__(self, number: int | None) -> None:
        if number is not None:
            self.renameat2 = lambda *_arguments: ctypes.set_errno(number) or -1


def test_naming_is_a_hard_link(pair: tuple[Path, Path]) -> None:
    temporary, final = pair
    Files().name(temporary, final)
    assert temporary.samefile(final)
    temporary.unlink()
    temporary.write_text("another")
    with pytest.raises(FileExistsError):
        Files().name(temporary, final)
    assert final.read_text() == "mine"


@pytest.mark.parametrize("number", NO_HARD_LINKS)
@pytest.mark.parametrize("rename", ["the real one", None, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_without_hard_links_a_file_is_renamed_unless_the_name_is_taken(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, number: int, rename: Any
) -> None:
    temporary, final = pair
    ctypes.set_errno(0)  # or an error of an earlier test would be taken for this one's
    monkeypatch.setattr(files_module.os, "link", refusing(number))
    if rename != "the real one":
        monkeypatch.setattr(files_module.ctypes, "CDLL", lambda *_arguments, **_keywords: WithoutRename(rename))
    Files().name(temporary, final)
    assert (final.read_text(), temporary.exists()) == ("mine", False)
    temporary.write_text("another")
    with pytest.raises(FileExistsError) as error:
        Files().name(temporary, final)
    assert str(error.value) == f"[Errno 17] File exists: '{final}'"
    assert (final.read_text(), temporary.read_text()) == ("mine", "another")


def test_where_the_kernel_refuses_a_name_that_is_taken_nobody_looks_and_then_renames(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the rename somebody may publish: here everybody looks a moment too early."""
    temporary, final = pair
    monkeypatch.setattr(files_module.os, "link", refusing(errno.EPERM))
    monkeypatch.setattr(Path, "exists", lambda _path: False)
    monkeypatch.setattr(Path, "replace", refusing(errno.EIO))
    Files().name(temporary, final)
    assert final.read_text() == "mine"
    temporary.write_text("another")
    with pytest.raises(FileExistsError) as error:
        Files().name(temporary, final)
    assert str(error.value) == f"[Errno 17] File exists: '{final}'"
    assert (final.read_text(), temporary.read_text()) == ("mine", "another")


def test_relative_names_are_renamed_too(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair[0].parent)
    monkeypatch.setattr(files_module.os, "link", refusing(errno.EPERM))
    Files().name(Path("temporary"), Path("final"))
    assert (pair[1].read_text(), pair[0].exists()) == ("mine", False)


def test_a_rename_that_fails_for_another_reason_is_an_error(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module.os, "link", refusing(errno.EPERM))
    monkeypatch.setattr(files_module.ctypes, "CDLL", lambda *_arguments, **_keywords: WithoutRename(errno.EIO))
    with pytest.raises(OSError, match=rf"^\[Errno 5\] Input/output error: '{re.escape(str(pair[1]))}'$"):
        Files().name(*pair)
    assert (pair[0].exists(), pair[1].exists()) == (True, False)


@pytest.mark.parametrize("number", [errno.EIO, errno.EEXIST, errno.ESTALE])
def test_a_link_that_reports_failure_and_has_worked_is_a_success(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """NFS: the answer was lost, and the retry met its own success."""
    link = os.link

    def works_and_fails(source: Path, target: Path) -> None:
        link(source, target)
        refusing(number)()

    monkeypatch.setattr(files_module.os, "link", works_and_fails)
    Files().name(*pair)
    assert pair[1].read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EIO, errno.EEXIST, errno.EXDEV])
@pytest.mark.parametrize("there", ["nothing", "another file", "another file, and ours elsewhere"])
def test_a_link_that_failed_is_a_failure(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, number: int, there: str
) -> None:
    if there != "nothing":
        pair[1].write_text("somebody else's")
    if there.endswith("elsewhere"):
        os.link(pair[0], pair[0].with_name("third"))
    monkeypatch.setattr(files_module.os, "link", refusing(number))
    with pytest.raises(OSError, match=rf"^\[Errno {number}\] "):
        Files().name(*pair)
    assert [path.read_text() for path in pair[1:] if path.exists()] == ["somebody else's"] * (there != "nothing")


@pytest.mark.parametrize("number", NO_HARD_LINKS)
def test_a_file_system_without_hard_links_is_no_obstacle(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(files_module.os, "link", refusing(number))
    assert append(store, 0, 3) == 3
    before = contents(store.records)
    assert append(store, 0, 3, device="another") == 0
    with pytest.raises(StoreError, match="holds other rows than its name says"):
        append(store, 0, 3, record_id="another")
    assert contents(store.records) == before
    assert parts_in(store) == [ANCHOR_NAME, FIRST]
    assert left_over(store) == []


# --- the file operations themselves ---------------------------------------------------------------------------------


def test_a_created_file_must_be_new_and_is_no_childs(tmp_path: Path) -> None:
    descriptor = Files().create(tmp_path / "a")
    try:
        assert not os.get_inheritable(descriptor)
        with pytest.raises(FileExistsError):
            Files().create(tmp_path / "a")
    finally:
        Files().close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Files().sync(descriptor)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_making_a_folder_that_somebody_else_has_just_made_is_fine(tmp_path: Path) -> None:
    for _ in range(2):
        Files().make_folder(tmp_path / "folder")
    assert Files().is_folder(tmp_path / "folder")
    assert not Files().is_folder(tmp_path / "nowhere")


def test_a_file_where_a_folder_is_to_be_made_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as error:
        Files().make_folder(tmp_path / "file")
    assert (error.value.errno, error.value.strerror) == (errno.ENOTDIR, f"{tmp_path / 'file'} is no folder")


def test_names_are_sorted_and_there_are_none_where_there_is_no_folder(tmp_path: Path) -> None:
    assert Files().names(tmp_path / "nowhere") == []
    for name in ("b", "a", "c"):
        (tmp_path / name).touch()
    assert Files().names(tmp_path) == ["a", "b", "c"]
    with pytest.raises(NotADirectoryError):
        Files().names(tmp_path / "a")


def test_syncing_a_folder_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # pathlib opens one of its own
    Files().sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        Files().sync_folder(tmp_path / "nowhere")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("broken", [False, True])
def test_a_folder_is_synced_by_its_descriptor_which_is_closed_even_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        assert not os.get_inheritable(descriptor)
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        if broken:
            refusing(errno.EIO)()

    monkeypatch.setattr(files_module.os, "fsync", fsync)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    if broken:
        with pytest.raises(OSError, match="Input/output error"):
            Files().sync_folder(tmp_path)
    else:
        Files().sync_folder(tmp_path)
    assert synced == [str(tmp_path)]
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# --- the sweep and the quarantine -----------------------------------------------------------------------------------


def leftover(store: RecordStore, name: str, age_s: float) -> Path:
    path = store.private / "tmp" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("half a part")
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_the_sweep_removes_what_dead_processes_left_and_nothing_younger(store: RecordStore) -> None:
    for name, age in (("a", 3700.0), ("b", 3500.0), ("c", 1e6), ("from the future", -500.0)):
        leftover(store, name, age)
    append(store, 0, 3)
    assert store.sweep() == 2
    assert left_over(store) == ["b", "from the future"]
    assert store.sweep() == 0
    assert parts_in(store) == [ANCHOR_NAME, FIRST]


@pytest.mark.parametrize(("age", "swept"), [(3600.0, 0), (3600.1, 1)])
def test_what_is_an_hour_old_may_be_alive(store: RecordStore, faults: Faults, age: float, swept: int) -> None:
    leftover(store, "a", 0)
    faults.replace("age", lambda _path: age)
    assert store.sweep() == swept


def test_what_cannot_be_swept_stays_and_keeps_nothing_else(store: RecordStore) -> None:
    leftover(store, "c", 4000.0)
    folder = store.private / "tmp" / "b"
    folder.mkdir()
    os.utime(folder, (0, 0))
    leftover(store, "a", 4000.0)
    assert store.sweep() == 2
    assert [path.name for path in (store.private / "tmp").iterdir()] == ["b"]


def test_a_file_in_the_place_of_the_folder_of_temporaries_stops_no_sweep(store: RecordStore) -> None:
    store.private.mkdir(parents=True)
    (store.private / "tmp").write_text("mine")
    assert store.sweep() == 0


def test_a_quarantined_part_is_moved_durably_and_not_done(store: RecordStore, faults: Faults) -> None:
    append(store, 0, 3)
    append(store, 3, 3)
    path = store.records / FIRST
    data = path.read_bytes()
    faults.events.clear()
    moved = store.quarantine(path)
    assert (moved.parent, moved.name[8:]) == (store.private / "quarantine", f"-{FIRST}")
    assert re.fullmatch("[0-9a-f]{8}", moved.name[:8])
    assert moved.read_bytes() == data
    assert [event.replace(moved.name, "MOVED") for event in faults.events[-3:]] == [
        *("move MOVED", "sync_folder quarantine", "sync_folder records")
    ]
    assert done(store) == [3, 4, 5]
    append(store, 0, 3)
    assert store.quarantine(path) != moved, "two bad parts of one name are both kept"
    assert len(list(moved.parent.iterdir())) == 2


@pytest.mark.parametrize("operation", ["make_folder", "move", "sync_folder"])
def test_a_part_that_cannot_be_moved_is_one_sentence(store: RecordStore, faults: Faults, operation: str) -> None:
    append(store, 0, 3)
    faults.fail(operation, errno.EROFS)
    with pytest.raises(StoreError) as error:
        store.quarantine(store.records / FIRST)
    assert str(error.value) == (
        f"{store.records / FIRST}: cannot be moved to {store.private / 'quarantine'} (Read-only file system); "
        "move it by hand"
    )


# --- folders that are no folders ------------------------------------------------------------------------------------


def test_a_file_in_the_place_of_the_records_folder_is_one_sentence(store: RecordStore, tmp_path: Path) -> None:
    store.records.parent.mkdir()
    store.records.write_text("mine")
    for use in (done, lambda store: append(store, 0, 3)):
        with pytest.raises(StoreError) as error:
            use(store)
        assert str(error.value) == (f"{store.records}: not a folder (Not a directory); name another one with --records")
    assert [(name, data) for name, (_, data) in contents(tmp_path).items()] == [("results/records", b"mine")]


@pytest.mark.parametrize("in_the_way", ["results/layers", "results/.qbw", "results/.qbw/tmp"])
def test_a_file_in_the_place_of_another_folder_is_one_sentence(
    store: RecordStore, tmp_path: Path, in_the_way: str
) -> None:
    (tmp_path / in_the_way).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / in_the_way).write_text("mine")
    with pytest.raises(StoreError) as error:
        store.add_layers(TABLE)
    assert re.fullmatch(
        r"\S+: not a folder \(Not a directory\); name another one with --records"
        if in_the_way == "results/layers"
        else r"\S+/0-schema.parquet: cannot be written \((\S+ is no folder|Not a directory)\); what was committed "
        "before is safe: free some space or name another folder with --records, and run the same command again",
        str(error.value),
    )
    assert (tmp_path / in_the_way).read_text() == "mine"


# --- two at once ----------------------------------------------------------------------------------------------------

RACE = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from stage_references import CHECKPOINT_ID, PLAN_ID, rows_of
from qbw_eval.store import RecordStore
folder, me, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = RecordStore(folder / "results" / "records")
(folder / me).touch()
while not (folder / "go").exists():
    time.sleep(0.001)
new = 0
while missing := sorted(set(range(count)) - store.done(CHECKPOINT_ID, PLAN_ID)):
    first = missing[0]
    end = next(i for i in range(first + 1, 99) if i not in missing or i % 8 == 0)  # as `Plan.chunks` does
    new += store.append(CHECKPOINT_ID, PLAN_ID, rows_of(first, end - first, device=me))
print(new)
"""


def racer(tmp_path: Path, name: str, count: int, before: str = "") -> list[str]:
    program = before + RACE.format(tests=str(Path(__file__).parent))
    return [sys.executable, "-c", program, str(tmp_path), name, str(count)]


def test_processes_that_were_asked_for_other_numbers_of_configurations_make_each_row_once(
    store: RecordStore, tmp_path: Path
) -> None:
    racers = [
        subprocess.Popen(racer(tmp_path, name, count), stdout=-1, stderr=-1, text=True, env=one_thread())
        for name, count in (("a", 60), ("b", 37), ("c", 51))
    ]
    while not all((tmp_path / name).exists() for name in "abc") and all(racer.poll() is None for racer in racers):
        time.sleep(0.001)
    (tmp_path / "go").touch()
    said = [(*process.communicate(), process.returncode) for process in racers]
    assert [(stderr, code) for _, stderr, code in said] == [("", 0)] * 3
    frame = pd.read_parquet(store.records)
    assert sorted(frame["config_index"]) == list(range(60))
    assert frame["record_id"].is_unique
    assert [int(stdout) for stdout, _, _ in said] == [int((frame["device"] == name).sum()) for name in "abc"]
    assert sorted(indices_in(store)) == list(range(60))
    assert left_over(store) == []


def test_what_a_killed_process_left_behind_is_no_part_and_no_obstacle(store: RecordStore, tmp_path: Path) -> None:
    die = "import os; os.link = lambda *_: os.kill(os.getpid(), 9)\n"
    (tmp_path / "go").touch()
    assert subprocess.run(racer(tmp_path, "a", 3, die), env=one_thread()).returncode == -9
    assert parts_in(store) == []
    assert len(left_over(store)) == 1
    append(store, 0, 3)
    assert store.sweep() == 0, "it may still be alive"
    assert parts_in(store) == [ANCHOR_NAME, FIRST]
