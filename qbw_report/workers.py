"""The same function on many items, in as many processes as there are cores; what comes back is in the items' order.

Whoever has many items takes an `Each`: `each_in_order` here, or the workers of a cluster (`qbw_report.cluster`).
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

from schemas.errors import QBWError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Each(Protocol):
    """Something that calls a function of a module, or a `functools.partial` of one, with many items."""

    def __call__(self, function: Callable[[Item], Result], items: Sequence[Item], /) -> Generator[Result]:
        """Yield what the function makes of each item, in their order."""


_FEWEST = 8
"""With fewer items, starting processes would take longer than they save."""

_AT_ONCE = 8
"""Items a process takes at a time, where there are many: handing each over has its price."""


def each_in_order(function: Callable[[Item], Result], items: Sequence[Item]) -> Generator[Result]:
    """Yield what a pure function makes of each item, in their order.

    Args:
        function: of a module, or a `functools.partial` of one; it and the items go to other processes.
        items: any number.

    Raises:
        QBWError: a process was killed.
    """
    count = min(_cores(), len(items))
    # Forked processes have everything imported, which costs others seconds. Only Linux does that safely.
    if sys.platform != "linux" or count < 2 or len(items) < _FEWEST:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), initializer=_leave_interrupts_to_the_parent)
    try:
        with _interrupts_held_back():  # all items are handed over here; the first of them forks all processes
            results = pool.map(function, items, chunksize=min(_AT_ONCE, -(-len(items) // (4 * count))))
        yield from results
    except BrokenProcessPool:
        raise QBWError("a process of the report was killed; is there too little memory? Run it again") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    with contextlib.suppress(AttributeError):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Run the block; a Ctrl-C that comes meanwhile is one at its end.

    Python ignores what is raised in its own hooks around a fork, so that a KeyboardInterrupt there would be lost.

    To block the signal (`signal.pthread_sigmask`) is not enough: other threads, such as those of pyarrow, still take
    it, and whichever does, Python runs the handler in the main one.
    """
    earlier = signal.getsignal(signal.SIGINT)
    # Handlers run in the main thread only: no other is interrupted. One that is not Python's could not be put back.
    if threading.current_thread() is not threading.main_thread() or earlier is None:
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)
        if came:
            signal.raise_signal(signal.SIGINT)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
