"""`qbw-eval watch` in a folder in which a training writes, on a clock that the tests turn; and as a real process."""

import contextlib
import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from any_precision_files import save
from seed_files import seed_config, seed_content, seed_state
from shares import ONLY_IN_FULL
from stage_references import contents, one_thread, qbw_eval, temporary_files

from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.cli import cli
from qbw_eval.commands import evaluating as evaluating_module
from qbw_eval.commands import watch as watch_module
from qbw_eval.commands.run import RunOptions
from qbw_eval.commands.sampler_options import SamplerOptions
from qbw_eval.commands.watch import WatchOptions, watch_command
from qbw_eval.store import RecordStore
from qbw_eval.verify import verify
from schemas.errors import QBWError

ENGINE = "engine: incremental (equal to the reference in every bit, and there is little to compute)"
SUMMARY = "Checkpoints: {}. New rows: {}. Rows: {}. Next: make report\n"


def sampling(num_configs: int) -> SamplerOptions:
    """What the user says who asks for so many configurations."""
    return SamplerOptions(
        sampler=None,
        num_configs=num_configs,
        seed=None,
        range=None,
        cost=None,
        base=None,
        configurations=None,
        of=None,
    )


class Training:
    """What happens in the folder while the watch sleeps: a step each time, on a clock that only sleeping moves."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.time, self.slept = 1000.0, []  # type: float, list[float]
        self._steps = iter(steps)

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        next(self._steps, lambda: None)()


class Place:
    """A folder that is watched, and what the watch said and wrote."""

    def __init__(self, root: Path, tiny: Path) -> None:
        self.tiny, self.folder, self.records = tiny, root / "checkpoints", root / "results" / "records"
        self.folder.mkdir()
        self.stdout = self.stderr = ""
        self.options = WatchOptions(
            folder=self.folder,
            every=5.0,
            settle=5.0,
            once=False,
            until_idle=20.0,
            run=RunOptions(
                checkpoints=(), config=None, records=self.records, sampling=sampling(3), bitwidths=None, device="cpu",
                batch_size=None, limit=20, split="validation", engine="auto", skip=None, per_class=False, memory=None,
                data_root=None, max_bytes=None, trust_pickle=(), tf32=False, resume=True, dry_run=False, as_json=False,
                quiet=True, verbose=False,
            ),
        )  # fmt: skip

    def epoch(self, number: int) -> bytes:
        return (self.tiny / f"epoch_00{number}.pt").read_bytes()

    def write(self, name: str, data: bytes) -> Callable[[], object]:
        return lambda: (self.folder / name).write_bytes(data)

    def watch(self, *steps: Callable[[], object], **changes: Any) -> Training:
        """Watch until nothing new comes, a step of the training every time that the watch sleeps."""
        training = Training(*steps)
        stdout, stderr = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                watch_command(replace(self.options, **changes), training.now, training.sleep)
        finally:
            self.stdout, self.stderr = stdout.getvalue(), stderr.getvalue()
        return training

    def rows(self) -> list[tuple[str, int, int]]:
        """Return (file, epoch, configurations) of every checkpoint that was evaluated, in the order of time."""
        if not self.records.exists():
            return []
        frame = pd.read_parquet(self.records).sort_values("evaluated_at")
        assert verify(self.records).problems == ()
        assert temporary_files(self.records) == []
        return [
            (group["checkpoint"].iloc[0], int(group["epoch"].iloc[0]), len(group))
            for _, group in frame.groupby("checkpoint_id", sort=False)
        ]

    def counted(self, checkpoints: int, rows: int) -> str:
        return SUMMARY.format(checkpoints, rows, self.records)


@pytest.fixture
def place(tmp_path: Path, tiny_checkpoints: Path) -> Place:
    return Place(tmp_path, tiny_checkpoints)


@pytest.fixture
def copies_read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was copied, in order."""
    copied: list[Path] = []
    real = watch_module.private_copy
    monkeypatch.setattr(watch_module, "private_copy", lambda path, *more: copied.append(path) or real(path, *more))
    return copied


# --- a training -------------------------------------------------------------------------------------------------------


def test_every_version_that_stays_for_a_while_is_evaluated_once_and_its_rows_name_the_file(place: Place) -> None:
    nothing = lambda: None  # noqa: E731
    training = place.watch(
        nothing,
        place.write("last.pt", place.epoch(1)),
        nothing,
        place.write("last.pt", place.epoch(2)),
        nothing,
        place.write("last.pt", place.epoch(3)),
    )
    assert place.rows() == [("last.pt", 0, 3), ("last.pt", 1, 3), ("last.pt", 2, 3)]
    shas = [hashlib.sha256(place.epoch(number)).hexdigest() for number in (1, 2, 3)]
    frame = pd.read_parquet(place.records).sort_values("evaluated_at")
    assert list(frame["checkpoint_id"].unique()) == shas
    assert training.slept == [5.0] * (7 + 4), "seven looks until the last is evaluated, and twenty seconds more"
    lines = place.stdout.splitlines()
    assert len(lines) == 4
    accuracies = frame[frame["checkpoint_id"] == shas[2]]["accuracy"]
    assert lines[2].startswith(
        f"{place.folder}/last.pt: epoch 3: 3 configurations evaluated, 0 before; mean accuracy "
        f"{accuracies.mean():.4f} ({accuracies.min():.4f}-{accuracies.max():.4f}); training said "
    )
    assert f"{lines[3]}\n" == place.counted(3, 9)
    assert place.stderr == ""


def test_it_computes_the_very_rows_of_run_under_the_same_names(place: Place, tmp_path: Path) -> None:
    place.write("last.pt", place.epoch(2))()
    place.watch()
    other = tmp_path / "other" / "records"
    words = ("--num-configs", 3, "--limit", 20, "--quiet", "--records", other)
    assert qbw_eval("run", place.folder / "last.pt", *words).code == 0
    mine, theirs = (
        pd.read_parquet(folder).drop(columns=["evaluated_at", "duration_s"]) for folder in (place.records, other)
    )
    pd.testing.assert_frame_equal(mine, theirs)
    assert {path.name for path in place.records.iterdir()} == {path.name for path in other.iterdir()}


def test_a_file_is_not_touched_by_being_watched(place: Place) -> None:
    place.write("last.pt", place.epoch(1))()
    before = contents(place.folder)
    place.watch()
    assert contents(place.folder) == before


def test_what_is_there_already_adds_nothing_and_says_so(place: Place) -> None:
    place.write("last.pt", place.epoch(1))()
    place.watch()
    before = contents(place.records)
    place.watch()
    assert contents(place.records) == before
    assert place.stdout == (
        f"{place.folder}/last.pt: epoch 1: nothing to do, its 3 rows are there\n" + place.counted(1, 0)
    )
    place.watch(run=replace(place.options.run, sampling=sampling(5)))
    assert place.rows() == [("last.pt", 0, 5)]
    assert ": 2 configurations evaluated, 3 before; " in place.stdout


def test_the_same_bytes_and_the_same_weights_are_evaluated_once(place: Place) -> None:
    content = torch.load(io.BytesIO(place.epoch(1)), weights_only=True)
    torch.save({**content, "optimizer_state_dict": {}}, place.folder / "c.pt")
    place.write("a.pt", place.epoch(1))()
    place.write("b.pt", place.epoch(1))()
    place.watch()
    assert place.rows() == [("a.pt", 0, 3)]
    assert place.stderr == (f"{place.folder}/c.pt: the same weights and epoch as {place.folder}/a.pt; evaluated once\n")


def test_hidden_files_other_files_and_its_own_copies_are_nobodys_business(
    place: Place, copies_read: list[Path]
) -> None:
    for name in (".last.pt.tmp", ".last.pt", "last.pt.tmp", "notes.txt"):
        place.write(name, place.epoch(1))()
    inside = place.folder / "results" / "records"
    left = inside.parent / ".qbw" / "watch"
    left.mkdir(parents=True)
    place.watch(run=replace(place.options.run, records=inside))
    assert copies_read == []
    place.write("sub.pt", place.epoch(1))()
    place.watch(run=replace(place.options.run, records=inside))
    assert copies_read == [place.folder / "sub.pt"]


def test_a_file_is_copied_once_while_it_stays_the_same(place: Place, copies_read: list[Path]) -> None:
    place.write("last.pt", place.epoch(1))()
    training = place.watch(until_idle=500.0)
    assert len(training.slept) > 99
    assert copies_read == [place.folder / "last.pt"]


# --- what is not finished ---------------------------------------------------------------------------------------------


def test_a_version_that_was_written_halfway_for_long_is_evaluated_when_it_is_whole(place: Place) -> None:
    """Old and new bytes in one file, with a stamp that stays the same: only the checksums tell."""
    old, new = place.epoch(1), place.epoch(2)
    assert len(old) == len(new)
    place.write("last.pt", new[: len(new) // 2] + old[len(old) // 2 :])()
    wait = [lambda: None] * 2
    place.watch(*wait, place.write("last.pt", new), until_idle=40.0)
    assert place.rows() == [("last.pt", 1, 3)]
    assert place.stderr == "", "what becomes whole within ten minutes is not worth a word"


def test_a_file_that_stays_torn_is_told_and_ends_the_watch_in_an_error(place: Place, copies_read: list[Path]) -> None:
    place.write("a.pt", place.epoch(1)[:3000])()
    place.write("b.pt", place.epoch(2))()
    with pytest.raises(QBWError) as error:
        place.watch(until_idle=1000.0)
    reason = "it is half written, or a damaged zip archive"
    assert place.stderr == (
        f"{place.folder}/a.pt: not ready for 10 minutes: {reason}; waiting on\n"
        f"{place.folder}/a.pt: not ready: {reason}\n"
    )
    assert str(error.value) == (
        "checkpoints that could not be evaluated: 0, that were not ready: 1; the sentences above say why"
    )
    assert place.rows() == [("b.pt", 1, 3)]
    assert copies_read.count(place.folder / "a.pt") == 8, "after 5, 10, 20, 40, 80, 160, 320 and 640 seconds"


def test_what_carries_no_checksums_is_read_twice(place: Place, copies_read: list[Path]) -> None:
    place.write("last.pt", b"no zip")()
    with pytest.raises(QBWError):
        place.watch(lambda: None, place.write("last.pt", b"other"), lambda: None, place.write("last.pt", b"no zip"))
    assert len(copies_read) == 4
    assert place.stderr == (
        f"qbw-eval: error: {place.folder}/last.pt: expected a file written by torch.save, found text\n"
    )


def test_a_checkpoint_that_cannot_be_evaluated_is_told_once_per_content(place: Place) -> None:
    content = torch.load(io.BytesIO(place.epoch(1)), weights_only=True)
    wrong = io.BytesIO()
    torch.save({**content, "epoch": "first"}, wrong)
    config = {**content["config"], "model": {**content["config"]["model"], "width": 8}}
    mismatch = io.BytesIO()
    torch.save({**content, "config": config}, mismatch)
    place.write("a.pt", wrong.getvalue())()
    place.write("b.pt", wrong.getvalue())()
    wait = [lambda: None] * 2
    with pytest.raises(QBWError) as error:
        place.watch(
            *wait, place.write("a.pt", mismatch.getvalue()), *wait, place.write("a.pt", wrong.getvalue()),
            *wait, place.write("a.pt", place.epoch(3)), until_idle=30.0,
        )  # fmt: skip
    first, second = place.stderr.splitlines()
    assert first == f"qbw-eval: error: {place.folder}/a.pt: 'epoch' must be a whole number from 0, found 'first'"
    assert second.startswith(f"qbw-eval: error: {place.folder}/a.pt: ")
    assert "width" in second
    assert place.rows() == [("a.pt", 2, 3)]
    assert str(error.value) == (
        "checkpoints that could not be evaluated: 2, that were not ready: 0; the sentences above say why"
    )


def test_what_a_damaged_copy_is_refused_for_names_the_file_and_not_the_copy(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader checks again; here it is all there is."""
    monkeypatch.setattr("qbw_eval.private_copy.check_archive", lambda _path: True)
    place.write("last.pt", place.epoch(1)[:3000])()
    with pytest.raises(QBWError):
        place.watch()
    assert place.stderr.startswith(f"qbw-eval: error: {place.folder}/last.pt: ")
    assert ".qbw" not in place.stderr


def test_a_copy_is_read_and_the_file_names_the_checkpoint_and_the_seeds_experiment(tmp_path: Path) -> None:
    path, copy = tmp_path / "20251118_ResNet" / "models" / "last_epoch.pth", tmp_path / "watch" / ".copy.pth"
    copy.parent.mkdir()
    save(seed_content(seed_state("resnet18"), seed_config()), copy)
    checkpoint = read_checkpoint(path, bytes_at=copy)
    assert (checkpoint.path, checkpoint.experiment.experiment) == (path, "20251118_ResNet")
    assert checkpoint.sha256 == hashlib.sha256(copy.read_bytes()).hexdigest()


def test_too_little_memory_is_told_at_once_and_tried_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training may need it all at the moment."""
    real, failures = evaluating_module.prepare, iter([True, True, False])

    def sometimes(*arguments: Any) -> Any:
        if next(failures, False):
            raise QBWError("cpu: not enough memory for one sample")
        return real(*arguments)

    monkeypatch.setattr(evaluating_module, "prepare", sometimes)
    place.write("last.pt", place.epoch(1))()
    place.watch(until_idle=60.0)
    assert place.stderr == "qbw-eval: error: cpu: not enough memory for one sample\n"
    assert place.rows() == [("last.pt", 0, 3)]


def test_memory_that_runs_out_in_the_midst_is_tried_again_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = evaluating_module.evaluate, iter([True, False])

    def sometimes(*arguments: Any) -> Iterator[Any]:
        if next(failures, False):
            raise QBWError("cpu: not enough memory for one sample")
        yield from real(*arguments)

    monkeypatch.setattr(evaluating_module, "evaluate", sometimes)
    place.write("last.pt", place.epoch(1))()
    place.watch(until_idle=60.0)
    assert place.stderr == "qbw-eval: error: cpu: not enough memory for one sample\n"
    assert place.rows() == [("last.pt", 0, 3)]


def test_what_another_evaluator_is_at_is_looked_at_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = iter([False, True])
    monkeypatch.setattr(RecordStore, "claimed", lambda *_: contextlib.nullcontext(next(claims)))
    place.write("last.pt", place.epoch(1))()
    place.watch(until_idle=60.0)
    assert place.rows() == [("last.pt", 0, 3)]
    assert place.stdout.count("\n") == 2


def test_records_that_cannot_be_written_end_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("qbw_eval.files.os.fsync", full)
    place.write("last.pt", place.epoch(1))()
    with pytest.raises(QBWError, match="No space left on device"):
        place.watch()


def test_a_folder_that_goes_away_is_waited_for(place: Place) -> None:
    aside = place.folder.with_name("aside")
    place.write("last.pt", place.epoch(1))()
    place.watch(
        lambda: place.folder.rename(aside),
        lambda: None,
        lambda: None,
        lambda: aside.rename(place.folder),
        until_idle=20.0,
    )
    assert place.stderr == f"{place.folder}: cannot be listed any more; waiting for it\n"
    assert place.rows() == [("last.pt", 0, 3)]


# --- how it ends ------------------------------------------------------------------------------------------------------


def test_once_takes_what_is_ready_and_does_not_wait_for_the_rest(place: Place) -> None:
    place.write("a.pt", place.epoch(1))()
    place.write("b.pt", place.epoch(2)[:3000])()
    place.write("c.pt", b"")()
    training = place.watch(place.write("c.pt", b"changed"), once=True, until_idle=None)
    assert training.slept == [5.0]
    assert place.rows() == [("a.pt", 0, 3)]
    assert place.stderr == (
        f"{place.folder}/b.pt: not ready: it is half written, or a damaged zip archive\n"
        f"{place.folder}/c.pt: not ready: it is still changing\n"
    )
    assert place.stdout.endswith(place.counted(1, 3))


def test_once_reads_a_second_time_what_carries_no_checksums(place: Place, copies_read: list[Path]) -> None:
    place.write("a.pt", b"text")()
    with pytest.raises(QBWError):
        place.watch(once=True, until_idle=None)
    assert len(copies_read) == 2
    assert "found text" in place.stderr


def test_once_in_an_empty_folder_is_done_at_once(place: Place) -> None:
    assert place.watch(once=True, until_idle=None).slept == []
    assert place.stdout == place.counted(0, 0)


def test_it_never_looks_more_often_than_it_was_asked_to(place: Place) -> None:
    changing = [place.write("last.pt", bytes(number)) for number in range(200)]
    training = place.watch(*changing[1:], place.write("last.pt", place.epoch(1)), every=7.5, until_idle=40.0)
    assert set(training.slept) == {7.5}
    assert len(training.slept) > 200
    assert place.rows() == [("last.pt", 0, 3)]
    assert place.stderr == f"{place.folder}/last.pt: not ready for 10 minutes: it is still changing; waiting on\n"


def test_as_json_every_line_is_a_checkpoint(place: Place) -> None:
    place.write("last.pt", place.epoch(1))()
    place.watch(run=replace(place.options.run, as_json=True))
    (line,) = place.stdout.splitlines()
    outcome = json.loads(line)
    assert outcome["checkpoint_id"] == hashlib.sha256(place.epoch(1)).hexdigest()
    assert (outcome["checkpoint"], outcome["epoch"], outcome["evaluated_now"]) == (str(place.folder / "last.pt"), 0, 3)


def test_data_are_read_once_and_one_set_is_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real, read = evaluating_module.load_split, []
    monkeypatch.setattr(
        evaluating_module, "load_split", lambda *words, **more: read.append(words) or real(*words, **more)
    )
    for number in (1, 2, 3):
        place.write(f"epoch_{number}.pt", place.epoch(number))()
    place.watch()
    assert len(place.rows()) == 3
    assert len(read) == 1


# --- the command line -------------------------------------------------------------------------------------------------


def test_it_has_the_options_of_run_but_those_that_make_no_sense() -> None:
    run, watch = ({option.name for option in cli.commands[name].params} for name in ("run", "watch"))
    where = {"executor", "workers", "gpus", "shard", "scheduler"}
    assert run - watch == {"checkpoints", "resume", "dry_run", "trust_pickle", *where}
    assert watch - run == {"folder", "every", "settle", "once", "until_idle"}
    described = {option.name: option for option in cli.commands["run"].params}
    assert all(option is described[option.name] for option in cli.commands["watch"].params if option.name in run)


def test_words_reach_the_evaluation(place: Place) -> None:
    place.write("last.pt", place.epoch(1))()
    words = ["--every=0.1s", "--settle=0.1s", "--once", "--sampler=uniform", "--limit=10", "--bitwidths=2,4"]
    words += ["--num-configs=2"]
    outcome = qbw_eval("watch", place.folder, *words, "--records", place.records, "--verbose")
    assert outcome.code == 0, outcome.stderr
    assert place.rows() == [("last.pt", 0, 2)]
    assert [list(set(bits)) for bits in pd.read_parquet(place.records)["bitwidths"]] == [[2], [4]]
    lines = outcome.stderr.splitlines()
    assert lines[:3] == [f"watching {place.folder} once", ENGINE, "last.pt (incremental): 2 configurations"]
    assert [line.partition(":")[0] for line in lines[3:]] == ["Config 1/2", "Config 2/2"]


# --- a process of its own ---------------------------------------------------------------------------------------------

# A background shell starts its children with Ctrl-C ignored; this is the console script without that.
CONSOLE_SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from qbw_eval.cli import main
from qbw_eval.commands import watch
from qbw_eval import evaluate
measure, read = evaluate.measure, watch.read_checkpoint
chunks = 0
def measure_one_chunk(*arguments):
    global chunks
    chunks += 1
    if chunks == 2:
        Path(WAITING).touch()
        time.sleep(100)
    return measure(*arguments)
def read_for_ever(*arguments, **more):
    Path(WAITING).touch()
    time.sleep(100)
if WHERE == "measuring":
    evaluate.measure = measure_one_chunk
if WHERE == "reading":
    watch.read_checkpoint = read_for_ever
main()
"""


def process(place: Place, waiting: Path, where: str) -> "subprocess.Popen[str]":
    """Return a real watch that makes the file `waiting` and sleeps "measuring" (the second chunk) or "reading"."""
    script = f"WAITING, WHERE = {str(waiting)!r}, {where!r}{CONSOLE_SCRIPT}"
    words = ["watch", str(place.folder), "--records", str(place.records), "--every", "0.1s", "--settle", "0.1s"]
    words += ["--num-configs", "100", "--limit", "5", "--quiet"]
    started = subprocess.Popen(
        [sys.executable, "-c", script, *words], stdout=-1, stderr=-1, text=True, env=one_thread()
    )
    while started.poll() is None and not waiting.exists():
        time.sleep(0.005)
    return started


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [pytest.param(signal.SIGTERM, 143, "terminated", marks=ONLY_IN_FULL), (signal.SIGINT, 130, "interrupted")],
)
def test_a_stopped_watch_keeps_its_rows_and_the_same_command_goes_on(
    place: Place, tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    place.write("last.pt", place.epoch(1))()
    stopped = process(place, tmp_path / "waiting", "measuring")
    stopped.send_signal(number)
    stdout, stderr = stopped.communicate()
    assert (stopped.returncode, stdout) == (code, "")
    assert stderr == (
        f"qbw-eval: error: {word}; 64 new rows are kept in {place.records} (0 checkpoints are finished); "
        "the same command goes on\n"
    )
    assert place.rows() == [("last.pt", 0, 64)]
    place.watch(run=replace(place.options.run, sampling=sampling(100), limit=5))
    assert place.rows() == [("last.pt", 0, 100)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_copy_is_gone_after_a_signal_or_with_the_next_start(
    place: Place, tmp_path: Path, number: signal.Signals
) -> None:
    place.write("last.pt", place.epoch(1))()
    stopped = process(place, tmp_path / "waiting", "reading")
    copies = place.records.parent / ".qbw" / "watch"
    (copy,) = copies.iterdir()
    assert copy.read_bytes() == place.epoch(1)
    stopped.send_signal(number)
    stopped.communicate()
    assert list(copies.iterdir()) == ([copy] if number == signal.SIGKILL else [])
    place.watch()
    assert list(copies.iterdir()) == []
    assert place.rows() == [("last.pt", 0, 3)]
