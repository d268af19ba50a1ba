"""The same function on many items, by the workers of a Dask cluster (the extra `dask`).

They must see the records under the same path. What they make of a part is what this machine makes of it, and it comes
back in the parts' order, so that a report has the same bytes whoever has counted.
"""

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from qbw_report.workers import Each
from schemas.errors import QBWError

if TYPE_CHECKING:
    from distributed import Client

Item = TypeVar("Item")
Result = TypeVar("Result")

_CONNECT_S = 5.0

_AT_ONCE = 16
"""Items of one task: to hand one over takes about as long as to count a part."""

_AHEAD = 4
"""Tasks a thread has before it: enough that it never waits, few enough that answers do not pile up here."""


@contextlib.contextmanager
def on_cluster(scheduler: str | None) -> Iterator[Each]:
    """Give what `qbw_report.workers.each_in_order` is, on a cluster.

    Args:
        scheduler: its address; None for one of our own, with a process for each core of this machine.

    Raises:
        QBWError: Dask is not installed, nobody answers at the address, or the workers cannot do it.
    """
    try:
        from distributed import Client, LocalCluster
    except ModuleNotFoundError as error:
        raise QBWError(
            f"--executor dask: {error.name} is not installed: pip install 'qbw[dask]'; --executor local does without"
        ) from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what is to be said, we say
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            cluster = LocalCluster(
                n_workers=os.cpu_count() or 1,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                memory_limit=0,
                silence_logs=logging.CRITICAL,
            )
            scheduler = str(stack.enter_context(cluster).scheduler_address)
        try:
            client = stack.enter_context(Client(scheduler, timeout=_CONNECT_S, set_as_default=False))
        except (OSError, ValueError) as error:
            words = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise QBWError(
                f"--scheduler {scheduler}: no Dask scheduler answers there ({words}); start one with: dask scheduler"
            ) from None
        _check_workers(client, scheduler)
        yield partial(_each, client)


def _check_workers(client: "Client", scheduler: str) -> None:
    if not client.nthreads():
        raise QBWError(f"{scheduler}: has no workers; start one with: dask worker {scheduler}")
    ours = version("qbw")
    try:
        theirs = {address: found for address, found in client.run(_version).items() if found != ours}
    except Exception as error:  # whatever a worker's Python says
        raise QBWError(
            f"{scheduler}: its workers cannot run QBW ({type(error).__name__}: {error}); install it there: "
            f"pip install 'qbw[dask]=={ours}'"
        ) from None
    for address, found in theirs.items():
        raise QBWError(f"{address}: this worker has QBW {found}, here it is {ours}; install the same there")


def _version() -> str:
    return version("qbw")


def _each(client: "Client", function: Callable[[Item], Result], items: Sequence[Item], /) -> Generator[Result]:
    """Yield what the workers make of each item, in their order."""
    batches = deque(items[first : first + _AT_ONCE] for first in range(0, len(items), _AT_ONCE))
    waiting: deque[Any] = deque()
    most = max(_AHEAD * sum(client.nthreads().values()), 1)
    try:
        while batches or waiting:
            while batches and len(waiting) < most:
                waiting.append(client.submit(_all_of, function, batches.popleft(), pure=False))
            yield from _result(client, waiting.popleft())
    finally:
        client.cancel(list(waiting))


def _all_of(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


def _result(client: "Client", future: Any) -> list[Any]:
    from distributed import KilledWorker

    try:
        return list(future.result())
    except KilledWorker as error:
        raise QBWError(
            f"a worker was killed {error.allowed_failures + 1} times at the same parts; has it too little memory?"
        ) from None
    except Exception as error:
        if future.status in ("cancelled", "lost") or client.status != "running":
            raise QBWError("the Dask scheduler is gone; start it again, and build again") from None
        raise error
