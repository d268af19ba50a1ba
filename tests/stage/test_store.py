"""The store: a part is complete or absent, whatever the disk, the clock or another process does."""

import errno
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stage_references import CHECKPOINT_ID, PLAN_ID, contents, one_thread, rows_of, temporary_files

from qbw_eval import store as store_module
from qbw_eval.layer_table import Layer, LayerTable
from qbw_eval.store import RecordStore, StoreError
from schemas import layers, records
from schemas.check import SchemaError
from schemas.parts import ANCHOR_NAME, decode_part
from schemas.records import RECORD_SCHEMA

TABLE = LayerTable(
    tuple(
        Layer(
            layer_name=name,
            kind="conv2d",
            weights=36,
            macs=144,
            in_channels=2,
            out_channels=2,
            kernel="3x3",
            stride="1x1",
        )
        for name in ("conv1", "conv2")
    )
)
NAME = "c0ffeec0ffee-01234567-0-3.parquet"


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "results" / "records")


def append(store: RecordStore, first: int, count: int, **shared: Any) -> Path:
    return store.append(CHECKPOINT_ID, PLAN_ID, first, rows_of(first, count, **shared))


def parts_in(store: RecordStore) -> list[str]:
    """Return the names in the records folder, each of which must be a whole part."""
    names = sorted(path.name for path in store.records.iterdir()) if store.records.exists() else []
    for name in names:
        decode_part((store.records / name).read_bytes(), records.KIND, name)
    return names


class OS:
    """The module `os`, but for the functions given."""

    def __init__(self, **functions: Callable[..., Any]) -> None:
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def failing(function: Callable[..., Any], number: int, after: int = 0) -> Callable[..., Any]:
    """Return `function`, but for its call after the first `after` ones, which raises this errno."""
    calls = 0

    def maybe(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            raise OSError(number, os.strerror(number))
        return function(*arguments, **keywords)

    return maybe


# --- append and done ------------------------------------------------------------------------------------------------


def test_nothing_is_done_and_nothing_is_made_before_the_first_append(store: RecordStore, tmp_path: Path) -> None:
    assert store.done(CHECKPOINT_ID, PLAN_ID) == set()
    assert list(tmp_path.iterdir()) == []


def test_an_appended_chunk_is_one_part_under_its_name_and_is_done(store: RecordStore) -> None:
    path = append(store, 0, 3)
    assert path == store.records / NAME
    assert parts_in(store) == [ANCHOR_NAME, NAME]
    assert decode_part(path.read_bytes(), records.KIND, NAME).equals(rows_of(0, 3))
    assert store.done(CHECKPOINT_ID, PLAN_ID) == {0, 1, 2}
    assert temporary_files(store.records) == []
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444, "other people's reports must be able to read it"


def test_parts_cover_exactly_the_configurations_that_were_appended(store: RecordStore) -> None:
    for first, count in ((0, 3), (7, 1), (64, 5)):
        append(store, first, count)
    assert store.done(CHECKPOINT_ID, PLAN_ID) == {0, 1, 2, 7, 64, 65, 66, 67, 68}
    assert sorted(pd.read_parquet(store.records)["config_index"]) == [0, 1, 2, 7, 64, 65, 66, 67, 68]


def test_done_tells_checkpoints_and_plans_apart(store: RecordStore) -> None:
    append(store, 0, 3)
    assert store.done("d" + CHECKPOINT_ID[1:], PLAN_ID) == set()
    assert store.done(CHECKPOINT_ID, "f" + PLAN_ID[1:]) == set()


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        f"x{NAME}",
        f"{NAME}.tmp",
        NAME.replace("-0-3", "-a-3"),
        NAME.replace("-0-3", "--3"),
        NAME.upper(),
        ANCHOR_NAME,
        ".gitignore",
    ],
)
def test_done_overlooks_files_with_other_names(store: RecordStore, name: str) -> None:
    store.records.mkdir(parents=True)
    (store.records / name).write_bytes(b"")
    assert store.done(CHECKPOINT_ID, PLAN_ID) == set()


def test_appending_the_same_chunk_again_changes_nothing(store: RecordStore, tmp_path: Path) -> None:
    append(store, 0, 3)
    before = contents(tmp_path)
    append(store, 0, 3)
    assert contents(tmp_path) == before


def test_the_rows_of_another_evaluator_with_other_provenance_count_as_the_same(
    store: RecordStore, tmp_path: Path
) -> None:
    append(store, 0, 3, device="cpu", duration_s=1.0)
    before = contents(tmp_path)
    append(store, 0, 3, device="NVIDIA H200", duration_s=0.01)
    assert contents(tmp_path) == before


def test_other_rows_under_the_same_name_are_an_error_and_the_first_ones_stay(
    store: RecordStore, tmp_path: Path
) -> None:
    path = append(store, 0, 3)
    before = contents(tmp_path)
    with pytest.raises(StoreError) as error:
        append(store, 0, 3, record_id="another")
    assert str(error.value) == f"{path}: holds other rows than its name says; move it away and run again"
    assert contents(tmp_path) == before


def test_a_damaged_part_under_the_same_name_is_an_error(store: RecordStore, tmp_path: Path) -> None:
    path = append(store, 0, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    before = contents(tmp_path)
    with pytest.raises(
        StoreError, match=rf"^{re.escape(str(path))}: not a readable Parquet file \(.+\); move it away$"
    ):
        append(store, 0, 3)
    assert contents(tmp_path) == before


def test_rows_that_break_the_schema_are_not_written(store: RecordStore) -> None:
    with pytest.raises(
        SchemaError, match=rf"^{NAME}: column 'correct', row 0: expected at most num_samples, found 11$"
    ):
        append(store, 0, 3, correct=11)
    assert parts_in(store) in ([], [ANCHOR_NAME])
    assert store.done(CHECKPOINT_ID, PLAN_ID) == set()


def test_a_layer_table_is_written_once(store: RecordStore, tmp_path: Path) -> None:
    store.add_layers(TABLE)
    path = store.records.parent / "layers" / f"{TABLE.model_id}.parquet"
    assert decode_part(path.read_bytes(), layers.KIND, path.name).equals(TABLE.to_arrow())
    before = contents(tmp_path)
    store.add_layers(TABLE)
    assert contents(tmp_path) == before
    assert temporary_files(store.records) == []


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
    append(store, 0, 3)
    anchor_only = pd.read_parquet(store.records / ANCHOR_NAME)
    assert {name: str(dtype) for name, dtype in anchor_only.dtypes.items()} == DTYPES
    assert len(anchor_only) == 0
    filled = dict.fromkeys(["epoch", "seed", "weight_bytes", "bit_ops"], 1)
    append(store, 3, 2, **filled)
    (store.records / NAME).unlink()
    frame = pd.read_parquet(store.records)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == DTYPES
    assert list(frame.columns) == RECORD_SCHEMA.names
    assert [list(bits) for bits in frame["bitwidths"]] == [[2, 7], [2, 8]]
    assert frame["bitwidths"][0].dtype == "int8"


def test_pandas_reads_a_folder_with_only_the_anchor(store: RecordStore) -> None:
    append(store, 0, 3).unlink()
    frame = pd.read_parquet(store.records)
    assert list(frame.columns) == RECORD_SCHEMA.names
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == DTYPES


# --- a disk that refuses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "number"),
    [
        ("open", errno.EROFS),
        ("write", errno.ENOSPC),
        ("write", errno.EDQUOT),
        ("fsync", errno.EIO),
        ("close", errno.ENOSPC),
        ("link", errno.EIO),
        ("link", errno.EACCES),
    ],
)
@pytest.mark.parametrize("after", range(6))
def test_a_refusal_at_any_point_is_one_sentence_and_leaves_nothing_half_written(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch, function: str, number: int, after: int
) -> None:
    """The first append makes folders, the anchor and the part; `after` walks the refusal through all of that."""
    fault = failing(getattr(os, function), number, after)
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "os", OS(**{function: fault}))
        try:
            append(store, 0, 3)
        except StoreError as error:
            sentence = str(error)
        else:
            assert function in ("write", "link"), "the fault was never reached"  # those happen only twice
            assert after >= 2
            sentence = None
    if sentence is not None:
        assert re.fullmatch(
            rf"{re.escape(str(store.records))}/\S+\.parquet: cannot be written \({os.strerror(number)}\); "
            "what was committed before is safe: free some space or name another folder with --records, "
            "and run the same command again",
            sentence,
        )
    assert temporary_files(store.records) == []
    assert set(parts_in(store)) <= {ANCHOR_NAME, NAME}
    # The same command again, on a disk that is well, makes up for it.
    append(store, 0, 3)
    assert parts_in(store) == [ANCHOR_NAME, NAME]
    assert temporary_files(store.records) == []


@pytest.mark.parametrize("written", [1, 100, 5000])
def test_a_disk_that_is_full_in_the_middle_of_a_part_leaves_no_part(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch, written: int
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

    monkeypatch.setattr(store_module, "os", OS(write=write))
    with pytest.raises(StoreError, match="No space left on device"):
        append(store, 0, 3)
    assert parts_in(store) == [ANCHOR_NAME, "c0ffeec0ffee-01234567-5-1.parquet"]
    assert temporary_files(store.records) == []


def test_an_interruption_while_writing_leaves_nothing(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    append(store, 5, 1)

    def write(_descriptor: int, _data: memoryview) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "os", OS(write=write))
    with pytest.raises(KeyboardInterrupt):
        append(store, 0, 3)
    assert parts_in(store) == [ANCHOR_NAME, "c0ffeec0ffee-01234567-5-1.parquet"]
    assert temporary_files(store.records) == []


def test_writes_that_take_one_byte_at_a_time_make_the_same_part(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = append(RecordStore(tmp_path / "other" / "records"), 0, 3).read_bytes()
    calls = 0

    def write(descriptor: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        return os.write(descriptor, data[:1])

    monkeypatch.setattr(store_module, "os", OS(write=write))
    assert append(store, 0, 3).read_bytes() == whole
    assert calls > len(whole)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_a_file_system_without_hard_links_is_no_obstacle(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(_source: Path, _target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store_module, "os", OS(link=link))
    path = append(store, 0, 3)
    before = contents(store.records)
    append(store, 0, 3, device="another")
    assert contents(store.records) == before
    with pytest.raises(StoreError, match="holds other rows than its name says"):
        append(store, 0, 3, record_id="another")
    assert contents(store.records) == before
    assert parts_in(store) == [ANCHOR_NAME, path.name]
    assert temporary_files(store.records) == []


# --- what is on the disk when ---------------------------------------------------------------------------------------


class Recorder:
    """Functions of `os` that note what was done to which kind of thing, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.synced: set[int] = set()  # inodes of files

    def write(self, descriptor: int, data: memoryview) -> int:
        self.synced.discard(os.fstat(descriptor).st_ino)
        self._note("write")
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._note(f"sync folder {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        else:
            self._note("sync file")
            self.synced.add(status.st_ino)
        os.fsync(descriptor)

    def link(self, source: Path, target: Path) -> None:
        whole = source.stat().st_ino in self.synced
        self._note(f"link {'synced' if whole else 'UNSYNCED'} file to {target.name}")
        os.link(source, target)

    def _note(self, event: str) -> None:
        if self.events[-1:] != [event]:
            self.events.append(event)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    replaced = OS(write=recorder.write, fsync=recorder.fsync, link=recorder.link)
    monkeypatch.setattr(store_module, "os", replaced)
    return recorder


def test_bytes_are_on_the_disk_before_their_name_is_and_the_name_before_it_counts(
    store: RecordStore, recorder: Recorder
) -> None:
    append(store, 0, 3)
    folders = recorder.events[: recorder.events.index("write")]
    # results in tmp_path, records and .qbw in results, tmp in .qbw: each new name is synced where it is entered.
    assert folders == [f"sync folder {store.records.parent.parent.name}", "sync folder results", "sync folder .qbw"]
    of_a_part = ["write", "sync file", "link synced file to {}", "sync folder records"]
    assert recorder.events[len(folders) :] == [
        event.format(name) for name in (ANCHOR_NAME, NAME) for event in of_a_part
    ]


def test_the_folder_is_synced_even_when_somebody_else_published_the_part(
    store: RecordStore, recorder: Recorder
) -> None:
    append(store, 0, 3)
    recorder.events.clear()
    append(store, 0, 3)
    assert recorder.events == ["write", "sync file", f"link synced file to {NAME}", "sync folder records"]


def test_a_folder_that_could_not_be_synced_is_synced_by_the_same_append_again(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part is there after link, but may be gone after a power cut: it must not be acknowledged unsynced."""
    append(store, 5, 1)
    refused = failing(os.fsync, errno.EIO, after=1)
    synced: list[bool] = []

    def fsync(descriptor: int) -> None:
        refused(descriptor)
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))

    monkeypatch.setattr(store_module, "os", OS(fsync=fsync))
    with pytest.raises(StoreError, match="Input/output error"):
        append(store, 0, 3)
    assert synced == [False]
    append(store, 0, 3)
    assert synced == [False, False, True]


# --- folders that are no folders ------------------------------------------------------------------------------------


def test_a_file_in_the_place_of_the_records_folder_is_one_sentence(store: RecordStore, tmp_path: Path) -> None:
    store.records.parent.mkdir()
    store.records.write_text("mine")
    with pytest.raises(StoreError) as listing:
        store.done(CHECKPOINT_ID, PLAN_ID)
    assert str(listing.value) == f"{store.records}: cannot be listed (Not a directory); name a folder with --records"
    with pytest.raises(StoreError) as writing:
        append(store, 0, 3)
    assert str(writing.value) == (
        f"{store.records / ANCHOR_NAME}: cannot be written ({store.records} is no folder); "
        "what was committed before is safe: free some space or name another folder with --records, "
        "and run the same command again"
    )
    assert [(name, data) for name, (_, data) in contents(tmp_path).items()] == [("results/records", b"mine")]


@pytest.mark.parametrize("in_the_way", ["results", "results/.qbw", "results/.qbw/tmp"])
def test_a_file_in_the_place_of_another_folder_is_one_sentence(
    store: RecordStore, tmp_path: Path, in_the_way: str
) -> None:
    (tmp_path / in_the_way).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / in_the_way).write_text("mine")
    with pytest.raises(
        StoreError, match=rf"^\S+/0-schema.parquet: cannot be written \({tmp_path / in_the_way} is no folder\); "
    ):
        append(store, 0, 3)
    assert [(name, data) for name, (_, data) in contents(tmp_path).items()] == [(in_the_way, b"mine")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only folder")
def test_a_read_only_folder_is_one_sentence(store: RecordStore) -> None:
    store.records.mkdir(parents=True)
    store.records.parent.chmod(0o555)
    try:
        with pytest.raises(StoreError, match=r"cannot be written \(Permission denied\)"):
            append(store, 0, 3)
    finally:
        store.records.parent.chmod(0o755)
    assert parts_in(store) == []


# --- two at once ----------------------------------------------------------------------------------------------------

RACE = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from stage_references import CHECKPOINT_ID, PLAN_ID, rows_of
from qbw_eval.store import RecordStore
folder, me = Path(sys.argv[1]), sys.argv[2]
store = RecordStore(folder / "results" / "records")
(folder / me).touch()
while not (folder / "go").exists():
    time.sleep(0.001)
for first in range(0, 60, 3):
    store.append(CHECKPOINT_ID, PLAN_ID, first, rows_of(first, 3, device=me))
"""


def test_two_processes_that_append_the_same_chunks_make_one_part_of_each(store: RecordStore, tmp_path: Path) -> None:
    program = [sys.executable, "-c", RACE.format(tests=str(Path(__file__).parent)), str(tmp_path)]
    racers = [
        subprocess.Popen([*program, name], stderr=subprocess.PIPE, text=True, env=one_thread()) for name in ("a", "b")
    ]
    while not all((tmp_path / name).exists() for name in "ab") and all(racer.poll() is None for racer in racers):
        time.sleep(0.001)
    (tmp_path / "go").touch()
    assert [(racer.communicate()[1], racer.returncode) for racer in racers] == [("", 0), ("", 0)]
    assert len(parts_in(store)) == 1 + 20
    frame = pd.read_parquet(store.records)
    assert sorted(frame["config_index"]) == list(range(60))
    assert frame["record_id"].is_unique
    assert temporary_files(store.records) == []


def test_what_a_killed_process_left_behind_is_no_part_and_no_obstacle(store: RecordStore, tmp_path: Path) -> None:
    die = "import os; os.link = lambda *_: os.kill(os.getpid(), 9)\n"
    program = [sys.executable, "-c", die + RACE.format(tests=str(Path(__file__).parent)), str(tmp_path), "a"]
    (tmp_path / "go").touch()
    assert subprocess.run(program, env=one_thread()).returncode == -9
    assert parts_in(store) == []
    assert len(temporary_files(store.records)) == 1
    append(store, 0, 3)
    assert parts_in(store) == [ANCHOR_NAME, NAME]
