"""What workers say and how far they are, in one place on stderr."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.progress import Progress, TaskID

from qbw_eval.commands.console import counting_progress, progress_on_stderr, tell
from qbw_eval.dispatch import Chunk, Happened, Opened
from qbw_eval.executors.seam import Event, Told

_UNIT = "configurations"


class Sentences:
    """Says each sentence that is to be said once, once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, told: Told) -> None:
        """Say it, unless it has been said."""
        if told.once:
            if told.sentence in self._told:
                return
            self._told.add(told.sentence)
        tell(told.sentence)


class OneAfterTheOther:
    """Where one task runs at a time: a bar for each checkpoint.

    Args:
        quiet: show no progress.
        say: what has been said already, elsewhere.
    """

    def __init__(self, *, quiet: bool, say: Sentences | None = None) -> None:
        self._quiet, self._say = quiet, say or Sentences()
        self._bars = ExitStack()
        self._advance: Callable[[float], object] = lambda _amount: None

    def hear(self, _worker: str, event: Event) -> None:
        """Show what a worker says."""
        if isinstance(event, Told):
            self._say(event)
        else:
            self._advance(event.amount)

    def see(self, happened: Happened) -> None:
        """Show what happened."""
        state = happened.state
        if happened.what == "opened" and state.opened is not None:
            if state.total > state.done and not self._quiet:
                self._say(engine_of(state.opened))
            what = f"{Path(state.path).name} ({state.opened.engine})"
            self._advance = self._bars.enter_context(
                progress_on_stderr(what, state.total - state.done, _UNIT, quiet=self._quiet)
            )
        elif happened.what == "finished":
            self._bars.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.close()


class SideBySide:
    """Where several workers are at it: a bar for all of them, and a line for each.

    Args:
        quiet: show no progress.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._say = quiet, Sentences()
        self._bars: Progress | None = None
        self._total = 0
        self._all: TaskID | None = None
        self._lines: dict[str, TaskID] = {}
        self._rates: dict[str, _Rate] = {}

    def hear(self, worker: str, event: Event) -> None:
        """Show what a worker says."""
        if isinstance(event, Told):
            self._say(event)
        elif self._bars is not None and self._all is not None:
            self._bars.advance(self._all, event.amount)
            self._bars.advance(self._line(worker), event.amount)

    def see(self, happened: Happened) -> None:
        """Show what happened."""
        state, finished = happened.state, happened.finished
        if happened.what == "opened" and state.opened is not None and state.total > state.done and not self._quiet:
            self._say(engine_of(state.opened))
            self._total += state.total - state.done
            if self._bars is not None and self._all is not None:
                self._bars.update(self._all, total=self._total)
                if not self._bars.console.is_terminal:
                    tell(f"{Path(state.path).name} ({state.opened.engine}): {state.total - state.done} {_UNIT}")
        elif happened.what == "published" and finished is not None and isinstance(finished.task, Chunk):
            self._rates.setdefault(finished.worker, _Rate()).add(happened.new)
            if self._bars is not None:
                what = f"{finished.worker}: {Path(state.path).name}, chunk {finished.task.chunk + 1}"
                self._bars.update(self._line(finished.worker), description=what)

    def _line(self, worker: str) -> TaskID:
        if worker not in self._lines and self._bars is not None:
            self._lines[worker] = self._bars.add_task(worker, total=None)
        return self._lines[worker]

    def __enter__(self) -> Self:
        self._bars = counting_progress(_UNIT, quiet=self._quiet)
        self._bars.start()
        self._all = self._bars.add_task("all workers", total=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
        if not self._quiet:
            for worker, rate in sorted(self._rates.items()):
                tell(f"{worker}: {rate}")


class _Rate:
    """Counts what one worker has done, and the time from the first to the last of it."""

    def __init__(self) -> None:
        self._count, self._begin = 0, time.monotonic()
        self._first: int | None = None
        self._end = self._begin

    def add(self, count: int) -> None:
        self._first = count if self._first is None else self._first
        self._count, self._end = self._count + count, time.monotonic()

    def __str__(self) -> str:
        seconds, since = self._end - self._begin, self._count - (self._first or 0)
        rate = f", {since / seconds:.1f} {_UNIT}/s" if since and seconds else ""
        return f"{self._count} {_UNIT}{rate}"


def engine_of(opened: Opened) -> Told:
    """Return what is said of the engine."""
    return Told(f"engine: {opened.engine} ({opened.why})", once=True)


Display = OneAfterTheOther | SideBySide
