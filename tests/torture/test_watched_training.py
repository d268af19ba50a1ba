"""`qbw-eval watch` beside a real training that writes its one checkpoint again and again, slowly, in the worst way."""

import hashlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from shares import ONLY_IN_FULL
from torture_work import doubled, rows_in

EVERY_S, SETTLE_S = 0.1, 0.3
VERSIONS_A_TRAINING, COMPARED_TRAININGS = 25, 2
WAYS = ("in place", "renaming")

# The console script, which notes besides what only checksums have caught: files that had stayed the same for a while.
WATCH = """
from pathlib import Path
from qbw_eval import private_copy
from qbw_eval.cli import main
check_archive = private_copy.check_archive
def noting(path):
    try:
        return check_archive(path)
    except private_copy.NotReadyError as reason:
        with Path(CAUGHT).open("a") as file:
            file.write(f"{reason}\\n")
        raise
private_copy.check_archive = noting
main()
"""


def train_and_write(folder: Path, way: str, versions: int, log: Path, seed: int) -> None:
    """Be a training: a version of `folder/last.pt` every epoch, noted in the log when it is whole.

    A line of the log: the version's sha256, its epoch, and how many seconds, and of the CPU, the epoch took without the
    writing.
    """
    import torch

    from qbw_eval.checkpoints.native import Trained, write_checkpoint
    from qbw_eval.data.fit import with_data_shape
    from qbw_eval.data.sources import load_split
    from qbw_eval.experiment import experiment_from_mapping
    from qbw_eval.training import train

    torch.set_num_threads(1)
    experiment = experiment_from_mapping(
        {
            "experiment": "watched",
            "model": {"name": "resnet8", "width": 4},
            "data": {"source": "digits"},
            "training": {"epochs": versions, "batch_size": 200, "configurations_per_batch": 1, "seed": seed},
            "quantization": {"mine": {"bitwidth_options": [2, 4, 8], "validation_function": "simple_validation"}},
        },
        "watched",
    )
    splits = load_split(experiment.data, "train"), load_split(experiment.data, "validation")
    experiment = with_data_shape(experiment, splits[0])
    draw, whole = random.Random(seed), folder.parent / f"{log.stem}.whole.pt"
    path, ended = folder / "last.pt", (time.perf_counter(), time.process_time())

    def write(trained: Trained) -> Path:
        nonlocal ended
        took = time.perf_counter() - ended[0], time.process_time() - ended[1]
        if way == "renaming":
            write_checkpoint(path, trained, experiment)
            data = path.read_bytes()
        else:
            write_checkpoint(whole, trained, experiment)
            data = whole.read_bytes()
            overwrite_slowly(path, data, draw, rest=trained.epoch % 3 == 1)
        line = f"{hashlib.sha256(data).hexdigest()} {trained.epoch} {took[0]} {took[1]}\n"
        with log.open("a") as file:
            file.write(line)
        time.sleep(draw.random() * 5 * SETTLE_S)
        ended = time.perf_counter(), time.process_time()
        return path

    for _ in train(experiment, *splits, write, device=torch.device("cpu"), log=lambda _line: None):
        pass


def overwrite_slowly(path: Path, data: bytes, draw: random.Random, *, rest: bool) -> None:
    """Write a file in pieces with pauses, as `torch.save` to a slow disk does, or over the old bytes.

    Args:
        path: the file, there or not.
        data: what it is to hold.
        draw: decides.
        rest: stop in the midst for so long that the file looks finished.
    """
    empty_first = draw.random() < 0.5
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if empty_first else 0), 0o644)
    try:
        cuts = sorted(draw.sample(range(1, len(data)), 4))
        for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(data)], strict=True)):
            assert os.write(descriptor, data[begin:end]) == end - begin
            time.sleep(2 * SETTLE_S + 2 * EVERY_S if rest and number == 2 else draw.random() * SETTLE_S / 2)
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Version:
    """What the log says of a version."""

    sha256: str
    epoch: int
    seconds: float
    cpu_seconds: float


def versions_in(log: Path) -> list[Version]:
    lines = [line.split() for line in log.read_text().splitlines()]
    return [Version(sha256, int(epoch), float(wall), float(cpu)) for sha256, epoch, wall, cpu in lines]


def ratio_of(one: list[Version], other: list[Version], field: str) -> float:
    """Return by how much an epoch took longer, in the median."""
    first, second = (statistics.median(getattr(version, field) for version in versions) for versions in (one, other))
    return first / second


def spread_of(ratios: list[float]) -> str:
    if not ratios:
        return "not compared"
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


class Watch:
    """A real `qbw-eval watch`, from when it looks until it is told to stop."""

    def __init__(self, folder: Path, records: Path, caught: Path) -> None:
        self.records = records
        self._said = records.parent / "stderr.txt"
        words = ["watch", str(folder), "--records", str(records), "--engine", "incremental"]
        words += ["--every", f"{EVERY_S}s", "--settle", f"{SETTLE_S}s", "--num-configs", "2", "--limit", "50"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", f"CAUGHT = {str(caught)!r}{WATCH}", *words]
        with self._said.open("w") as said:
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment)
        while "watching" not in self._said.read_text():
            assert self._process.poll() is None, self._said.read_text()
            time.sleep(0.05)

    def wait_for(self, checkpoint_id: str) -> None:
        """Wait until there are rows of a checkpoint."""
        while not (self.records.exists() and list(self.records.glob(f"{checkpoint_id[:12]}-*"))):
            assert self._process.poll() is None, self._said.read_text()
            time.sleep(0.05)

    def stop(self) -> str:
        """Stop it as a scheduler would; return what it said."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait() == 143, self._said.read_text()
        return self._said.read_text()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.mark.parametrize("way", [WAYS[0], pytest.param(WAYS[1], marks=ONLY_IN_FULL)])
def test_watch(tmp_path: Path, processes: ForkServerContext, seed: int, full: bool, trials, report, way: str) -> None:
    wanted = trials(5, 200)
    folder, records, caught = tmp_path / "checkpoints", tmp_path / "results" / "records", tmp_path / "caught.txt"
    for there in (folder, tmp_path / "unwatched", records.parent):
        there.mkdir()

    def trained(where: Path, versions: int, name: str, number: int) -> list[Version]:
        log = tmp_path / f"{name}{number}.log"
        training = processes.Process(target=train_and_write, args=(where, way, versions, log, 1000 * seed + number))
        training.start()
        training.join()
        assert training.exitcode == 0
        return versions_in(log)

    finished: dict[str, int] = {}
    ratios: list[float] = []
    cpu_ratios: list[float] = []
    noise: list[float] = []
    complaints: list[str] = []
    while len(finished) < wanted:
        versions = min(VERSIONS_A_TRAINING, wanted - len(finished))
        number = len(finished)
        watch = Watch(folder, records, caught)
        try:
            with_it = trained(folder, versions, "watched", number)
            watch.wait_for(with_it[-1].sha256)
            complaints += [line for line in watch.stop().splitlines() if "error" in line and "terminated" not in line]
        finally:
            watch.kill()
        finished |= {version.sha256: version.epoch for version in with_it}
        if full and len(ratios) < COMPARED_TRAININGS:  # a comparison of times needs more than a share
            without = trained(tmp_path / "unwatched", versions, "unwatched", number)
            ratios.append(ratio_of(with_it, without, "seconds"))
            cpu_ratios.append(ratio_of(with_it, without, "cpu_seconds"))
            # What a ratio is where nothing differs.
            again = trained(tmp_path / "unwatched", versions, "again", number)
            noise.append(ratio_of(again, without, "seconds"))
    rows = rows_in(records)
    evaluated = dict(zip(rows["checkpoint_id"].to_pylist(), rows["epoch"].to_pylist(), strict=True))
    torn = sum(finished.get(checkpoint_id) != epoch for checkpoint_id, epoch in evaluated.items())
    misnamed = sum(name != "last.pt" for name in rows["checkpoint"].to_pylist())
    left = [path for path in (records.parent / ".qbw").rglob("*") if path.is_file()]
    refused = len(caught.read_text().splitlines()) if caught.exists() else 0
    failures = torn + misnamed + doubled(rows) + len(left) + len(complaints)
    report(
        test=f"watch beside a training, {way}", trials=len(finished), failures=failures, unit="versions",
        evaluated=len(evaluated), torn=torn, only_checksums_caught=refused, complaints=complaints[:3],
        copies_left=len(left), time_an_epoch_against_unwatched=spread_of(ratios),
        cpu_time_an_epoch_against_unwatched=spread_of(cpu_ratios), unwatched_against_unwatched=spread_of(noise),
    )  # fmt: skip
    assert (torn, misnamed, doubled(rows), left, complaints) == (0, 0, 0, [], [])
    assert rows.num_rows == 2 * len(evaluated)
    if full and way == "in place":
        assert refused, "no file was caught half written, so this has shown nothing"
