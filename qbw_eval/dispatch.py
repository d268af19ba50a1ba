"""What is to be done next, and by whom: checkpoints -> tasks for an executor. Touches no file. Needs no torch.

A checkpoint is read, which tells apart those that are the same network; opened, which tells its chunks; and evaluated
chunk by chunk. Whoever opened one goes on with it, since building a network costs more than a chunk may; when no other
is left to begin, all help with what there is. All that lasts is in the records, so that losing this object costs
nothing: the same list gives the same chunks, and those that are done are not done again.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from qbw_eval.executors.seam import MOST_DEATHS, Executor, Finished
from qbw_eval.shares import WHOLE, Share
from qbw_eval.store import StoreError
from schemas.errors import QBWError


@dataclass(frozen=True, kw_only=True)
class Read:
    """Read a checkpoint; the answer is a fingerprint of its network.

    Attributes:
        number: its place in the list.
        path: as the user wrote it.
    """

    number: int
    path: str


@dataclass(frozen=True, kw_only=True)
class Open:
    """Get a checkpoint ready; the answer is an `Opened`."""

    number: int
    path: str


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A checkpoint whose chunks are known.

    Attributes:
        checkpoint_id, plan_id, repeat: what its rows will be called by.
        experiment, epoch, samples, val_acc: facts for the user.
        engine, why: what will run, and why it is this one.
        chunks: of each chunk, how many configurations it has and how many of them have no row yet.
    """

    checkpoint_id: str
    plan_id: str
    repeat: int
    experiment: str
    epoch: int
    samples: int
    val_acc: float | None
    engine: str
    why: str
    chunks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Evaluate what is missing of a chunk; the answer is a `Published`.

    Attributes:
        checkpoint_id, plan_id, repeat: what its rows are to be called; another worker could see other files.
        chunk: its number, from 0.
        regardless: whether or not somebody seems to be at it.
    """

    number: int
    path: str
    checkpoint_id: str
    plan_id: str
    repeat: int
    chunk: int
    regardless: bool = False


@dataclass(frozen=True, kw_only=True)
class Published:
    """What became of a chunk.

    Attributes:
        accuracies: of the rows that are new; they are in the records.
        left: how many configurations are left to somebody else who is at it.
    """

    accuracies: tuple[float, ...] = ()
    left: int = 0


Task = Read | Open | Chunk


@dataclass(kw_only=True)
class State:
    """What is known of a checkpoint.

    Attributes:
        opened: None until it is.
        waiting: chunks of this share that nobody works on yet.
        at_work: how many are worked on.
        held: chunks that somebody else was at; they are asked for once more when the others are done.
        asked_again: whether they have been.
        accuracies: of its new rows.
        total, done: configurations of this share, and how many of them had rows before.
        given_up: configurations of chunks that killed their workers.
    """

    number: int
    path: str
    fingerprint: str | None = None
    reader: str | None = None
    is_read: bool = False
    same_as: str | None = None
    error: QBWError | None = None
    opened: Opened | None = None
    waiting: deque[Chunk] = field(default_factory=deque)
    at_work: int = 0
    held: list[Chunk] = field(default_factory=list)
    asked_again: bool = False
    accuracies: list[float] = field(default_factory=list)
    total: int = 0
    done: int = 0
    given_up: int = 0

    def configurations_of(self, chunk: int) -> tuple[int, int]:
        """Return the first and the last configuration of a chunk, counted from 0."""
        sizes = [size for size, _ in self.opened.chunks] if self.opened else []
        return sum(sizes[:chunk]), sum(sizes[: chunk + 1]) - 1

    def missing_of(self, chunk: int) -> int:
        """Return how many of a chunk's configurations had no row when the checkpoint was opened."""
        return self.opened.chunks[chunk][1] if self.opened else 0


@dataclass(frozen=True, kw_only=True)
class Happened:
    """Something of interest.

    Attributes:
        what: same (as an earlier one), failed, opened, published, lost (a task killed its workers), finished.
        state: of which checkpoint.
        finished: the task that ended; None where it is not one.
        new: how many rows it published.
    """

    what: str
    state: State
    finished: Finished | None = None
    new: int = 0


class Dispatch:
    """The work that there is: says what is next, and is told what became of it.

    Args:
        paths: the checkpoints.
        share: which chunks of them.
    """

    def __init__(self, paths: Sequence[str], share: Share = WHOLE) -> None:
        self.states = [State(number=number, path=path) for number, path in enumerate(paths)]
        self._share = share
        self._unread = deque(self.states)
        self._settled = 0  # so many checkpoints, from the first, are read and compared with those before them
        self._first_of: dict[str, str] = {}
        self._to_open: deque[State] = deque()
        self._open: dict[int, State] = {}
        self._at: dict[str, State] = {}
        self._again: deque[Task] = deque()
        self._deaths: dict[Task, int] = {}

    @property
    def checkpoints(self) -> int:
        """How many checkpoints may have something in this share."""
        return sum(self._share.holds_some(state.number, len(self.states)) for state in self.states)

    def next(self, worker: str | None = None) -> Task | None:
        """Return what a worker is to do, or anybody where it is None; None where there is nothing to do at the moment.

        A worker's own checkpoint comes first; then one that nobody has begun; then somebody else's.
        """
        if self._again:
            return self._again.popleft()
        at = self._at.get(worker) if worker is not None else None
        if at is not None and at.waiting:
            return self._take(at)
        if self._to_open:
            state = next((state for state in self._to_open if state.reader == worker), self._to_open[0])
            self._to_open.remove(state)
            return Open(number=state.number, path=state.path)
        while self._unread:
            state = self._unread.popleft()
            if any(self._share.holds_some(later.number, len(self.states)) for later in chain((state,), self._unread)):
                return Read(number=state.number, path=state.path)
            self._unread.clear()  # nothing that follows is ours, and nothing of ours could be the same as it
        most = max(self._open.values(), key=lambda state: len(state.waiting), default=None)
        if most is not None and most.waiting:
            return self._take(most)
        return None

    def _take(self, state: State) -> Chunk:
        chunk = state.waiting.popleft()
        state.at_work += 1
        return chunk

    def note(self, finished: Finished) -> list[Happened]:
        """Take note of what became of a task, and return what is of interest.

        Raises:
            BaseException: what the task raised, where that ends everything: rows cannot be written, data have changed,
                a defect.
        """
        task: Task = finished.task
        state = self.states[task.number]
        if finished.deaths:
            return self._mourn(task, state, finished)
        if finished.error is not None:
            error = finished.error
            if isinstance(task, Chunk) or not isinstance(error, QBWError) or isinstance(error, StoreError):
                raise error
            return self._fail(task, state, error)
        self._at[finished.worker] = state
        if isinstance(task, Read):
            state.is_read, state.fingerprint, state.reader = True, finished.answer, finished.worker
            return self._settle()
        if isinstance(task, Open):
            return self._opened(state, finished)
        return self._published(task, state, finished)

    def _mourn(self, task: Task, state: State, finished: Finished) -> list[Happened]:
        deaths = self._deaths[task] = self._deaths.get(task, 0) + finished.deaths
        if deaths < MOST_DEATHS:
            # A dead worker's claim may outlive it on another machine.
            again = replace(task, regardless=True) if isinstance(task, Chunk) else task
            self._deaths[again] = deaths
            self._again.append(again)
            return []
        if not isinstance(task, Chunk):
            return self._fail(task, state, QBWError(f"{task.path}: kills its workers ({deaths} times, {finished.how})"))
        state.at_work -= 1
        state.given_up += state.missing_of(task.chunk)
        return [Happened(what="lost", state=state, finished=replace(finished, deaths=deaths)), *self._finish(state)]

    def _fail(self, task: Task, state: State, error: QBWError) -> list[Happened]:
        happened = []
        if self._share.holds_some(state.number, len(self.states)):  # else it is for somebody else to tell
            state.error = error
            happened.append(Happened(what="failed", state=state))
        if isinstance(task, Read):
            state.is_read = True
            happened += self._settle()
        return happened

    def _settle(self) -> list[Happened]:
        """Compare checkpoints with those before them, as far as all of those are read."""
        happened = []
        while self._settled < len(self.states) and self.states[self._settled].is_read:
            state = self.states[self._settled]
            self._settled += 1
            if state.fingerprint is None:
                continue
            same = self._first_of.setdefault(state.fingerprint, state.path)
            if not self._share.holds_some(state.number, len(self.states)):
                continue
            if same != state.path:
                state.same_as = same
                happened.append(Happened(what="same", state=state))
            else:
                self._to_open.append(state)
        return happened

    def _opened(self, state: State, finished: Finished) -> list[Happened]:
        opened: Opened = finished.answer
        state.opened = opened
        for chunk, (size, missing) in enumerate(opened.chunks):
            if not self._share.holds(state.number, len(self.states), chunk, len(opened.chunks)):
                continue
            state.total += size
            state.done += size - missing
            if missing:
                state.waiting.append(
                    Chunk(
                        number=state.number,
                        path=state.path,
                        checkpoint_id=opened.checkpoint_id,
                        plan_id=opened.plan_id,
                        repeat=opened.repeat,
                        chunk=chunk,
                    )
                )
        self._open[state.number] = state
        return [Happened(what="opened", state=state, finished=finished), *self._finish(state)]

    def _published(self, task: Chunk, state: State, finished: Finished) -> list[Happened]:
        published: Published = finished.answer
        state.at_work -= 1
        state.accuracies += published.accuracies
        if published.left and not state.asked_again:
            state.held.append(task)
        new = len(published.accuracies)
        return [Happened(what="published", state=state, finished=finished, new=new), *self._finish(state)]

    def _finish(self, state: State) -> list[Happened]:
        if state.waiting or state.at_work:
            return []
        if state.held:
            state.asked_again = True  # who was at them may have finished, or died
            state.waiting.extend(state.held)
            state.held.clear()
            return []
        self._open.pop(state.number, None)
        return [Happened(what="finished", state=state)]


def drive(executor: Executor, dispatch: Dispatch) -> Iterator[Happened]:
    """Yield what happens while an executor does all that there is to do.

    Raises:
        BaseException: see `Dispatch.note`.
    """
    running = 0

    def fill(worker: str | None = None) -> None:
        nonlocal running
        while running < executor.capacity():
            task = dispatch.next(worker)
            if task is None:
                return
            executor.submit(task, worker)
            running, worker = running + 1, None  # it has something to do now; whoever else is free has not

    fill()
    for finished in executor.as_completed():
        running -= 1
        happened = dispatch.note(finished)
        fill(finished.worker)  # before anybody looks at what happened
        yield from happened
