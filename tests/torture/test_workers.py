"""Workers killed at random, and a scheduler: whoever starts again has all rows, each once.

The work is `torture_work`'s, behind the executors that `qbw-eval run` uses and told what to do by the same `Dispatch`.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from torture_work import checkpoint_id_of, doubled, rows_in, uninterrupted
from torture_workers import PLAN, begin

from qbw_eval.dispatch import Dispatch, drive
from qbw_eval.executors.cluster import Cluster
from qbw_eval.executors.processes import Processes
from qbw_eval.executors.seam import Event, Executor, Work
from qbw_eval.verify import verify
from schemas.errors import QBWError

CHECKPOINTS = [checkpoint_id_of(number) for number in range(4)]
ENVIRONMENT = [{"OMP_NUM_THREADS": "1"}] * 2


def hear(_worker: str, _event: Event) -> None: ...


def evaluate_all(executor: Executor) -> None:
    with executor:
        for _ in drive(executor, Dispatch(CHECKPOINTS)):
            pass


def acknowledged(folder: Path) -> set[str]:
    return {line for log in folder.glob("*.log") for line in log.read_text().splitlines()}


def descendants(process: int) -> list[int]:
    """Return the processes that a process has started, whichever of its threads, and theirs."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def workers_here(folder: Path) -> list[int]:
    """Return the processes of ours that have begun to be workers on a folder: each has a log."""
    begun = {int(log.stem) for log in folder.glob("*.log")}
    return [process for process in descendants(os.getpid()) if process in begun]


@contextlib.contextmanager
def killing(folder: Path, draw: random.Random, wanted: int, longest_s: float) -> Iterator[list[int]]:
    """Kill a random worker at random moments while the block runs, `wanted` times at most; yields who was killed."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while len(killed) < wanted and not over.wait(longest_s * draw.random()):
            victims = [process for process in workers_here(folder) if process not in killed]
            if victims:
                killed.append(draw.choice(victims))
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        over.set()
        killer.join()


def test_killed_workers(tmp_path: Path, seed: int, trials, report) -> None:
    """Processes, then Dask, each on folder after folder until enough have been killed; the last run is undisturbed."""
    draw, wanted = random.Random(seed), trials(8, 200)
    expected = uninterrupted(PLAN, CHECKPOINTS)
    kills = lost = twice = wrong = refused = rows = number = 0
    while kills < wanted:
        folder, dask = tmp_path / str(number), number % 2 == 1
        folder.mkdir()
        number += 1
        start = partial(begin, folder, 0.02)
        with killing(folder, draw, min(5 if trials(0, 1) else 4, wanted - kills), 0.6) as killed:
            executor = Cluster(start, hear, environments=ENVIRONMENT) if dask else Processes(start, hear, ENVIRONMENT)
            try:
                evaluate_all(executor)
            except QBWError:
                refused += 1  # such as three in a row that were killed before they began
        kills += len(killed)
        there, safe = rows_in(folder / "records"), acknowledged(folder)
        lost += len(safe - set(there["record_id"].to_pylist()))
        twice, rows = twice + doubled(there), rows + len(safe)
        evaluate_all(Processes(partial(begin, folder, 0.0), hear, ENVIRONMENT[:1]))
        wrong += not rows_in(folder / "records").equals(expected) or bool(verify(folder / "records").problems)
    report(
        test="killed workers", trials=kills, failures=lost + twice + wrong, unit="kills", acknowledged_rows=rows,
        lost=lost, doubled=twice, datasets=number, wrong_after_resuming=wrong, runs_that_gave_up=refused,
    )  # fmt: skip
    assert (lost, twice, wrong) == (0, 0, 0)
    assert kills >= wanted
    assert rows


def dask(*words: str) -> "subprocess.Popen[bytes]":
    """Start Dask's own command in a process."""
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "DASK_LOGGING__DISTRIBUTED": "critical"}
    command = [sys.executable, "-m", "distributed.cli." + words[0], *words[1:]]
    return subprocess.Popen(command, env={**os.environ, **path}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port: int = asked.getsockname()[1]
        return port


def cluster_at(address: str, start: Callable[..., Work]) -> Cluster:
    """Connect to a scheduler that may still be starting."""
    end = time.monotonic() + 60
    while True:
        try:
            return Cluster(start, hear, scheduler=address)
        except QBWError:
            assert time.monotonic() < end, "the scheduler does not start"


def test_killed_schedulers(tmp_path: Path, seed: int, trials, report) -> None:
    draw, wanted = random.Random(seed), trials(1, 3)
    address = f"tcp://127.0.0.1:{free_port()}"
    expected, start = uninterrupted(PLAN, CHECKPOINTS), partial(begin, tmp_path, 0.05)
    sentences, kills, lost = [], 0, 0
    while True:
        processes = [dask("dask_scheduler", "--host", address, "--no-dashboard", "--no-show")]
        processes += [dask("dask_worker", address, "--nthreads", "1", "--no-dashboard") for _ in range(2)]
        try:
            cluster = cluster_at(address, start)
            before = len(acknowledged(tmp_path))

            def kill_after_some(more: int, scheduler: "subprocess.Popen[bytes]" = processes[0]) -> None:
                while len(acknowledged(tmp_path)) < more and scheduler.poll() is None:
                    time.sleep(0.01)
                scheduler.kill()

            if kills == wanted:
                evaluate_all(cluster)
                break
            more = before + draw.randrange(1, 80)
            killer = threading.Thread(target=kill_after_some, args=(more,))
            killer.start()
            try:
                evaluate_all(cluster)
            except QBWError as error:
                sentences.append(str(error))
            processes[0].kill()
            killer.join()
            kills += 1
            there = set(rows_in(tmp_path / "records")["record_id"].to_pylist())
            lost += len(acknowledged(tmp_path) - there)
        finally:
            for process in reversed(processes):
                process.kill()
                process.wait()
    there = rows_in(tmp_path / "records")
    twice, wrong = doubled(there), not there.equals(expected) or bool(verify(tmp_path / "records").problems)
    told = f"{address}: the scheduler is gone, and with it what it was to have done; finished rows are kept: "
    untold = wanted - sum(sentence.startswith(told) for sentence in sentences)
    report(
        test="killed schedulers", trials=kills, failures=lost + twice + wrong + untold, unit="kills",
        acknowledged_rows=len(acknowledged(tmp_path)), lost=lost, doubled=twice, not_told=untold,
    )  # fmt: skip
    assert (lost, twice, wrong, untold) == (0, 0, False, 0), sentences
