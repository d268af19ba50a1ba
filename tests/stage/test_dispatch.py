"""What is next and by whom, without any work: an executor in an arbitrary order stands in the tests only."""

import random
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbw_eval.dispatch import Chunk, Dispatch, Happened, Open, Opened, Published, Read, drive
from qbw_eval.executors.seam import MOST_DEATHS, Finished
from qbw_eval.shares import WHOLE, Share
from qbw_eval.store import StoreError
from schemas.errors import QBWError

OPENED = Opened(
    checkpoint_id="",
    plan_id="p" * 32,
    repeat=0,
    experiment="made up",
    epoch=0,
    samples=1,
    val_acc=None,
    engine="none",
    why="a test",
    chunks=(),
)


class Shuffled:
    """An executor of `count` workers, whose tasks end in a random order and some of whose workers die."""

    def __init__(self, draw: random.Random, count: int, chunks: list[int], *, dying: float = 0.0) -> None:
        self._draw, self._count, self._chunks, self._dying = draw, count, chunks, dying
        self._running: list[tuple[Any, str]] = []
        self.evaluated: list[tuple[int, int, str]] = []
        self.opened: list[tuple[int, str]] = []
        self.deadly: set[tuple[int, int]] = set()
        self.fingerprints = [str(number) for number in range(len(chunks))]

    def capacity(self) -> int:
        return self._count

    def submit(self, task: Any, near: str | None = None) -> None:
        free = [name for name in map(str, range(self._count)) if name not in {worker for _, worker in self._running}]
        assert free, "more tasks than workers"
        self._running.append((task, near if near in free else free[0]))

    def as_completed(self) -> Iterator[Finished]:
        while self._running:
            task, worker = self._running.pop(self._draw.randrange(len(self._running)))
            deadly = isinstance(task, Chunk) and (task.number, task.chunk) in self.deadly
            if deadly or self._draw.random() < self._dying:
                yield Finished(task=task, worker=worker, deaths=1, how="a draw")
                continue
            yield Finished(task=task, worker=worker, answer=self._answer(task, worker))

    def _answer(self, task: Any, worker: str) -> Any:
        match task:
            case Read():
                return self.fingerprints[task.number]
            case Open():
                self.opened.append((task.number, worker))
                return replace(OPENED, checkpoint_id=str(task.number), chunks=((4, 4),) * self._chunks[task.number])
        self.evaluated.append((task.number, task.chunk, worker))
        return Published(accuracies=(0.5,) * 4)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def paths(count: int) -> list[str]:
    return [f"{number}.pt" for number in range(count)]


def everything(executor: Shuffled, share: Share = WHOLE) -> list[Happened]:
    return list(drive(executor, Dispatch(paths(len(executor.fingerprints)), share)))


CHUNKS = st.lists(st.integers(0, 6), min_size=1, max_size=8)


@given(seed=st.integers(0, 2**32), workers=st.integers(1, 5), chunks=CHUNKS, of=st.integers(1, 4))
def test_every_chunk_is_done_once_by_all_shares_together(seed: int, workers: int, chunks: list[int], of: int) -> None:
    done = []
    for number in range(1, of + 1):
        executor = Shuffled(random.Random(seed), workers, chunks)
        happened = everything(executor, Share(number, of))
        done += [(checkpoint, chunk) for checkpoint, chunk, _ in executor.evaluated]
        finished = [one.state for one in happened if one.what == "finished"]
        assert {state.number for state in finished} == {number for number, _ in executor.opened}
        assert sum(state.total for state in finished) == 4 * len(executor.evaluated)
        assert sum(one.new for one in happened) == 4 * len(executor.evaluated)
    assert sorted(done) == [(checkpoint, chunk) for checkpoint, count in enumerate(chunks) for chunk in range(count)]


@given(seed=st.integers(0, 2**32), workers=st.integers(1, 5), chunks=CHUNKS)
def test_dying_workers_cost_no_chunk_unless_it_is_the_chunk(seed: int, workers: int, chunks: list[int]) -> None:
    executor = Shuffled(random.Random(seed), workers, chunks)
    executor.deadly = {(0, 1), (len(chunks) - 1, 0)}
    happened = everything(executor)
    every = {(checkpoint, chunk) for checkpoint, count in enumerate(chunks) for chunk in range(count)}
    lost = {(one.state.number, one.finished.task.chunk) for one in happened if one.what == "lost" and one.finished}
    assert lost == executor.deadly & every
    assert {(checkpoint, chunk) for checkpoint, chunk, _ in executor.evaluated} == every - executor.deadly
    assert {one.finished.deaths for one in happened if one.what == "lost" and one.finished} <= {MOST_DEATHS}
    assert len([one for one in happened if one.what == "finished"]) == len(chunks)


@given(seed=st.integers(0, 2**32), workers=st.integers(1, 5), chunks=CHUNKS)
def test_a_chunk_is_done_or_given_up_and_nothing_waits_for_ever(seed: int, workers: int, chunks: list[int]) -> None:
    executor = Shuffled(random.Random(seed), workers, chunks, dying=0.4)
    happened = everything(executor)
    given_up = sum(one.what == "lost" for one in happened)
    failed = {one.state.number for one in happened if one.what == "failed"}
    reached = sum(count for number, count in enumerate(chunks) if number not in failed)
    assert len(executor.evaluated) + given_up == reached


def test_a_worker_keeps_to_its_checkpoint_and_helps_in_the_end() -> None:
    executor = Shuffled(random.Random(3), 2, [6, 6, 6, 6])
    everything(executor)
    assert len(executor.opened) == 4
    opener = dict(executor.opened)
    strangers = [
        (checkpoint, chunk) for checkpoint, chunk, worker in executor.evaluated if opener[checkpoint] != worker
    ]
    assert len({checkpoint for checkpoint, _ in strangers}) <= 1, "only where nothing else was left"


def test_of_equal_networks_the_first_in_the_list_is_evaluated_whoever_is_read_first() -> None:
    for seed in range(20):
        executor = Shuffled(random.Random(seed), 3, [2, 2, 2, 2])
        executor.fingerprints = ["a", "b", "a", "b"]
        happened = everything(executor)
        assert sorted((one.state.path, one.state.same_as) for one in happened if one.what == "same") == [
            ("2.pt", "0.pt"),
            ("3.pt", "1.pt"),
        ]
        assert sorted(number for number, _ in executor.opened) == [0, 1]


def test_a_share_reads_no_further_than_its_own_and_says_nothing_of_the_others() -> None:
    dispatch, read = Dispatch(paths(6), Share(1, 3)), []  # its own are 0 and 3
    while (task := dispatch.next()) is not None:
        assert isinstance(task, Read)
        read.append(task.number)
    assert read == [0, 1, 2, 3]
    error = QBWError("broken")
    assert dispatch.note(Finished(task=Read(number=1, path="1.pt"), worker="a", error=error)) == []
    (failed,) = dispatch.note(Finished(task=Read(number=0, path="0.pt"), worker="a", error=error))
    assert (failed.what, failed.state.error) == ("failed", error)


def opened(dispatch: Dispatch, chunks: int = 2) -> None:
    """Bring the only checkpoint as far as its chunks."""
    task = dispatch.next()
    dispatch.note(Finished(task=task, worker="a", answer="fingerprint"))
    task = dispatch.next("a")
    assert isinstance(task, Open)
    dispatch.note(Finished(task=task, worker="a", answer=replace(OPENED, chunks=((4, 4),) * chunks)))


def test_what_somebody_else_is_at_is_asked_for_once_more_when_the_rest_is_done() -> None:
    dispatch = Dispatch(paths(1))
    opened(dispatch)
    first, second = dispatch.next("a"), dispatch.next("a")
    assert dispatch.next("a") is None
    held = Published(left=4)
    assert [one.what for one in dispatch.note(Finished(task=first, worker="a", answer=held))] == ["published"]
    dispatch.note(Finished(task=second, worker="a", answer=Published(accuracies=(0.5,) * 4)))
    assert dispatch.next("a") == first
    end = dispatch.note(Finished(task=first, worker="a", answer=held))
    assert [one.what for one in end] == ["published", "finished"]
    assert dispatch.next("a") is None


def test_a_chunk_whose_worker_died_is_done_whoever_seems_to_be_at_it() -> None:
    dispatch = Dispatch(paths(1))
    opened(dispatch)
    chunk = dispatch.next("a")
    assert isinstance(chunk, Chunk)
    assert dispatch.note(Finished(task=chunk, worker="a", deaths=1, how="signal 9")) == []
    assert dispatch.next("b") == replace(chunk, regardless=True)


@pytest.mark.parametrize(
    ("task", "error"),
    [
        (Read(number=0, path="0.pt"), ValueError("a defect")),
        (Read(number=0, path="0.pt"), StoreError("the disk is full")),
        (
            Chunk(number=0, path="0.pt", checkpoint_id="", plan_id="", repeat=0, chunk=0),
            QBWError("the data have changed"),
        ),
    ],
)
def test_what_is_wrong_with_everything_ends_everything(task: Any, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        Dispatch(paths(2)).note(Finished(task=task, worker="a", error=error))


def test_a_checkpoint_that_kills_whoever_reads_it_is_one_that_cannot_be_evaluated() -> None:
    dispatch = Dispatch(paths(2))
    task = dispatch.next()
    for _ in range(MOST_DEATHS - 1):
        assert dispatch.note(Finished(task=task, worker="a", deaths=1, how="signal 9")) == []
        assert dispatch.next() == task
    (failed,) = dispatch.note(Finished(task=task, worker="a", deaths=1, how="signal 9"))
    assert str(failed.state.error) == "0.pt: kills its workers (3 times, signal 9)"
    assert dispatch.next() == Read(number=1, path="1.pt")
