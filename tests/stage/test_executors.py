"""One contract for everything that tasks run on, and what each of them does beside it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import made_up_work
import pytest
from stage_references import one_thread

from qbw_eval.executors import cluster as cluster_module
from qbw_eval.executors.cluster import Cluster, gpus_here
from qbw_eval.executors.inline import Inline
from qbw_eval.executors.processes import Processes
from qbw_eval.executors.seam import Advanced, Event, Executor, Finished, Hear, Start, Told
from schemas.errors import QBWError, UsageError

TWO = [{"OMP_NUM_THREADS": "1", "PLACE": "left"}, {"OMP_NUM_THREADS": "1", "PLACE": "right"}]


def ignore(_worker: str, _event: Event) -> None:
    """Hear nothing."""


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a Dask cluster of two processes, started once for all tests here."""
    with Cluster(made_up_work.start, ignore, environments=TWO) as cluster:
        yield cluster._address


Make = Callable[..., Executor]


@pytest.fixture(params=["inline", "processes", "dask"])
def make(request: pytest.FixtureRequest) -> Make:
    """Return a function that makes an executor, of each kind in turn, of what a worker does and who hears it."""
    address = request.getfixturevalue("scheduler") if request.param == "dask" else None

    def made(start: Start = made_up_work.start, hear: Hear = ignore) -> Executor:
        if request.param == "inline":
            return Inline(start, hear)
        return Processes(start, hear, TWO) if address is None else Cluster(start, hear, scheduler=address)

    return made


def all_of(executor: Executor, *tasks: Any) -> list[Finished]:
    for task in tasks:
        executor.submit(task)
    return list(executor.as_completed())


# --- the contract ---------------------------------------------------------------------------------------------------


def test_every_task_is_answered_once_whatever_their_number(make: Make) -> None:
    with make() as executor:
        finished = all_of(executor, *[("double", number) for number in range(9)])
        assert sorted((one.task[1], one.answer) for one in finished) == [(n, 2 * n) for n in range(9)]
        assert all(one.worker and one.error is None and not one.deaths for one in finished)
        assert list(executor.as_completed()) == [], "what was yielded is not yielded again"
        assert [one.answer for one in all_of(executor, ("double", 21))] == [42], "it can go on"


def test_more_may_be_submitted_while_somebody_looks_at_what_is_completed(make: Make) -> None:
    with make() as executor:
        executor.submit(("double", 1))
        seen = []
        for finished in executor.as_completed():
            seen.append(finished.answer)
            if finished.answer < 100:
                executor.submit(("double", finished.answer))
        assert seen == [2, 4, 8, 16, 32, 64, 128]


def test_capacity_is_how_many_run_at_once(make: Make) -> None:
    with make() as executor:
        count = executor.capacity()
        assert count == (1 if isinstance(executor, Inline) else 2)
        assert len({one.answer for one in all_of(executor, *[("process", None)] * 6)}) <= count


def test_an_error_is_brought_back_as_it_was_and_the_others_are_done(make: Make) -> None:
    with make() as executor:
        errors: list[Exception] = [UsageError("--bits: no"), ValueError("odd"), QBWError("disk full")]
        finished = all_of(executor, *[("raise", error) for error in errors], ("double", 2))
        found = [one.error for one in finished if one.error is not None]
        assert {(type(error), str(error)) for error in found} == {(type(error), str(error)) for error in errors}
        assert len(found) == len(errors)
        assert [one.answer for one in finished if one.error is None] == [4]


def test_what_a_task_says_is_heard_with_its_worker_before_it_is_completed(make: Make) -> None:
    heard: list[tuple[str, Event]] = []
    with make(hear=lambda worker, event: heard.append((worker, event))) as executor:
        (finished,) = all_of(executor, ("say", "hello"))
        assert heard == [(finished.worker, Told("hello", once=True)), (finished.worker, Advanced(0.5))]


def test_a_task_goes_to_the_worker_that_it_is_to_be_near(make: Make) -> None:
    with make() as executor:
        first = all_of(executor, ("process", None), ("process", None))
        for one in first * 2:
            executor.submit(("process", None), near=one.worker)
            (again,) = executor.as_completed()
            assert (again.worker, again.answer) == (one.worker, one.answer)
        executor.submit(("double", 1), near="somebody who never was")
        assert [one.answer for one in executor.as_completed()] == [2]


def test_a_worker_that_cannot_begin_says_why(make: Make) -> None:
    with pytest.raises(QBWError, match=r"^no such device here$"), make(made_up_work.refuse) as executor:
        all_of(executor, ("double", 1))


def test_what_dies_with_its_worker_is_told_and_the_others_are_done(make: Make) -> None:
    with make() as executor:
        if isinstance(executor, Inline):
            pytest.skip("there is no other process that could die")
        finished = all_of(executor, ("die", None), *[("double", number) for number in range(4)])
        assert sorted(one.answer for one in finished if not one.deaths) == [0, 2, 4, 6]
        (dead,) = [one for one in finished if one.deaths]
        assert dead.task == ("die", None)
        assert dead.deaths == 1
        assert all_of(executor, ("double", 5))[0].answer == 10, "there are workers again"


# --- processes ------------------------------------------------------------------------------------------------------


def alive(process: int) -> bool:
    """Return whether a process runs; one that is dead and that nobody has asked for its end does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(path: Path) -> str:
    end = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.01)
    return path.read_text()


def test_the_end_stops_processes_in_the_midst_of_their_tasks(tmp_path: Path) -> None:
    with Processes(made_up_work.start, ignore, TWO) as executor:
        for name in "ab":
            executor.submit(("begin and sleep", str(tmp_path / name)))
        workers = [int(wait_for(tmp_path / name)) for name in "ab"]
        assert all(map(alive, workers))
    assert not any(map(alive, workers))


HOLDER = """
import sys
import made_up_work
from qbw_eval.executors.processes import Processes
executor = Processes(made_up_work.start, lambda *_: None, [{}])
executor.submit(("begin and sleep", sys.argv[1]))
list(executor.as_completed())
"""


def test_workers_end_when_whoever_started_them_is_killed(tmp_path: Path) -> None:
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "a")], env={**one_thread(), **path})
    worker = int(wait_for(tmp_path / "a"))
    holder.kill()
    holder.wait()
    end = time.monotonic() + 30
    while alive(worker) and time.monotonic() < end:
        time.sleep(0.01)
    assert not alive(worker)


def test_workers_that_never_begin_are_an_error_and_not_started_for_ever() -> None:
    words = "^3 workers in a row ended before they could begin; the last by exit code 7$"
    with pytest.raises(QBWError, match=words), Processes(made_up_work.die, ignore, [{}]) as executor:
        all_of(executor, ("double", 1))


def test_a_task_whose_worker_died_can_be_submitted_again(tmp_path: Path) -> None:
    with Processes(made_up_work.start, ignore, [{}]) as executor:
        task = ("die once", str(tmp_path / "died"))
        (dead,) = all_of(executor, task)
        assert (dead.task, dead.deaths, dead.how) == (task, 1, "signal 9, Killed")
        assert [one.answer for one in all_of(executor, task)] == ["alive"]


# --- Dask -----------------------------------------------------------------------------------------------------------


def test_where_nobody_answers_is_said_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_CONNECT_S", 0.5)
    words = r"^--scheduler tcp://127\.0\.0\.1:9: no Dask scheduler answers there \(.*\); start one with: dask s"
    with pytest.raises(QBWError, match=words):
        Cluster(made_up_work.start, ignore, scheduler="tcp://127.0.0.1:9")


def test_gpus_are_those_that_the_driver_shows_and_the_environment_leaves(tmp_path: Path) -> None:
    assert gpus_here({}, tmp_path) == 0
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "0,1"}, tmp_path) == 0
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert gpus_here({}, tmp_path) == 3
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "2,GPU-1"}, tmp_path) == 2
    assert gpus_here({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0
