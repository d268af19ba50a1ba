"""The seam between what there is to do and where it runs: three methods. Needs no torch.

An executor knows nothing of what tasks are. It starts workers; each calls a `Start` once, and what that returns once a
task. A task is done at least once: where its worker dies the executor says so, and whoever submitted it decides. What
keeps rows single is the store, see there; so no executor keeps anything that would be missed if it were lost.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

MOST_DEATHS = 3
"""So many workers may die of one task; more would not tell more."""


@dataclass(frozen=True)
class Told:
    """A worker has something to say to the user.

    Attributes:
        sentence: what.
        once: it is said once for all workers and tasks.
    """

    sentence: str
    once: bool = False


@dataclass(frozen=True)
class Advanced:
    """A worker has come so far with its task.

    Attributes:
        amount: in whatever is counted; negative where something begins anew.
    """

    amount: float


Event = Told | Advanced
Work = Callable[[Any], Any]
"""Does a task and returns its answer; both are small and can be pickled."""

Start = Callable[[Callable[[Event], object]], Work]
"""Begins a worker: called in it once, with a function that takes events. Can be pickled."""

Hear = Callable[[str, Event], object]
"""Takes the name of a worker and what it says, while somebody waits for what is completed."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What became of a task: it has an answer, or an error, or its workers died.

    Attributes:
        task: as it was submitted.
        worker: the name of who did it, to be asked for again.
        answer: what the work returned.
        error: what it raised.
        deaths: how many workers died of it; then there is neither answer nor error.
        how: how the last of them died, in words.
    """

    task: Any
    worker: str
    answer: Any = None
    error: BaseException | None = None
    deaths: int = 0
    how: str = ""


class Executor(Protocol):
    """Runs tasks somewhere, `capacity` of them at the same time; a context whose end stops whatever still runs."""

    def capacity(self) -> int:
        """Return how many tasks can run at the same time now; it may change."""
        ...

    def submit(self, task: Any, near: str | None = None) -> None:
        """Take a task, to be done by the worker called `near` where that is free, else by any."""
        ...

    def as_completed(self) -> Iterator[Finished]:
        """Yield tasks as they end, until none is left; more may be submitted meanwhile.

        Raises:
            QBWError: no worker can begin, or whoever holds the tasks is gone.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
