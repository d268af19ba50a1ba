"""In this process, one task after the other: what there is where nothing else is asked for. Needs no torch."""

from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from qbw_eval.executors.seam import Finished, Hear, Start

NAME = "this process"


class Inline:
    """An `Executor` without workers; a task runs when somebody asks what is completed.

    Args:
        start: called at once.
        hear: told what tasks say.
    """

    def __init__(self, start: Start, hear: Hear) -> None:
        self._work = start(lambda event: hear(NAME, event))
        self._tasks: deque[Any] = deque()

    def capacity(self) -> int:
        """Return 1."""
        return 1

    def submit(self, task: Any, near: str | None = None) -> None:  # noqa: ARG002 - the seam has it
        """Take a task."""
        self._tasks.append(task)

    def as_completed(self) -> Iterator[Finished]:
        """Yield tasks in the order in which they were submitted."""
        while self._tasks:
            task = self._tasks.popleft()
            try:
                finished = Finished(task=task, worker=NAME, answer=self._work(task))
            except Exception as error:
                finished = Finished(task=task, worker=NAME, error=error)
            yield finished

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks.clear()
