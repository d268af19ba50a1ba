"""A Dask cluster: one that is there, or one that is started on this machine. Needs no torch, and the extra `dask`.

A worker is given one task at a time, whatever its threads: networks are no place for two. It is asked for by its
address, as it may have the checkpoint at hand. Dask lets such a task wait for ever where that worker is gone and no
other was there at the moment; so we look for ourselves who is gone.
"""

import logging
import os
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from qbw_eval.executors.processes import portable
from qbw_eval.executors.seam import Advanced, Event, Finished, Hear, Start, Told, Work
from schemas.errors import QBWError

if TYPE_CHECKING:
    from distributed import Client, Future, SpecCluster

_CONNECT_S = 5.0
_GRACE_S = 5.0
"""What a cluster of our own gets to end; then its workers are killed."""

_LOOK_AGAIN_S = 1.0
"""Workers come and go; they are counted no more often than this."""

_GIVEN_UP_S = 30.0
"""A worker of our own that dies while it begins may not be started again: then nothing would ever come back."""

_IMPATIENT_S = 15.0
"""How long nothing may come back from a cluster without workers before that is said."""


@dataclass(frozen=True)
class Facts:
    """What a worker says of itself.

    Attributes:
        gpus: how many it sees.
        version: of QBW.
    """

    gpus: int
    version: str


class Cluster:
    """An `Executor` of Dask workers.

    Args:
        start: what each does.
        hear: told what tasks say.
        scheduler: its address; None for a cluster of our own.
        environments: of our own workers, one each; what is to be set in them.
        most: how many workers are used at most; None for all there are.

    Raises:
        QBWError: Dask is not installed, or nobody answers at the address.
    """

    def __init__(
        self,
        start: Start,
        hear: Hear,
        *,
        scheduler: str | None = None,
        environments: Sequence[Mapping[str, str]] = (),
        most: int | None = None,
    ) -> None:
        try:
            import distributed
        except ModuleNotFoundError as error:
            raise QBWError(
                f"--executor dask: {error.name} is not installed: pip install 'qbw[dask]'; the executors local and "
                "shard do without"
            ) from None
        for name in ("distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what is to be said, we say
        self._start, self._hear, self._most = start, hear, most
        self._run = f"qbw-{uuid.uuid4().hex}"
        self._cluster: Any = _own_cluster(environments) if scheduler is None else None
        self._address = str(scheduler if self._cluster is None else self._cluster.scheduler_address)
        try:
            self._client: Client = distributed.Client(self._address, timeout=_CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            words = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise QBWError(
                f"--scheduler {scheduler}: no Dask scheduler answers there ({words}); start one with: dask scheduler"
            ) from None
        self._mail: SimpleQueue[Any] = SimpleQueue()
        self._client.subscribe_topic(self._run, lambda stamped: self._mail.put(_event(*stamped[1])))
        self._waiting: deque[tuple[Any, str | None]] = deque()
        self._at: dict[str, tuple[Any, str]] = {}  # a future's key: its task, and who was to do it
        self._futures: dict[str, Future] = {}
        self._workers: list[str] = []
        self._looked = -_LOOK_AGAIN_S
        self._seen = self._said = time.monotonic()

    def facts(self) -> dict[str, Facts]:
        """Return what each worker says of itself, by its address.

        Raises:
            QBWError: they cannot even be asked, such as where QBW is not installed.
        """
        try:
            return dict(self._client.run(_facts))
        except Exception as error:  # whatever a worker's Python says
            raise QBWError(
                f"{self._address}: its workers cannot run QBW ({type(error).__name__}: {error}); install the same "
                f"versions there: pip install 'qbw[eval,dask]=={version('qbw')}'"
            ) from None

    def capacity(self) -> int:
        """Return how many workers there are; at least 1, as those that are there may be starting again."""
        there = len(self._workers_there())
        return max(1, min(there, self._most or there))

    def _workers_there(self) -> list[str]:
        """Return the addresses of the workers, as they were a moment ago."""
        if time.monotonic() - self._looked > _LOOK_AGAIN_S:
            try:
                self._workers = list(self._client.nthreads())
            except (OSError, TimeoutError):
                self._workers = []  # whatever is the matter will show at the tasks
            self._looked = time.monotonic()
        return self._workers

    def submit(self, task: Any, near: str | None = None) -> None:
        """Send a task to a worker that has none, that called `near` if it can be; or keep it until there is one."""
        self._waiting.append((task, near))
        self._send()

    def _send(self) -> None:
        """Send what waits to workers that have nothing to do."""
        taken = {worker for _, worker in self._at.values()}
        free = [worker for worker in self._workers_there() if worker not in taken]
        while self._waiting and free:
            task, near = self._waiting.popleft()
            worker = near if near in free else free[0]
            free.remove(worker)
            key = f"{self._run}-{uuid.uuid4().hex}"
            future = self._client.submit(
                *(_do, self._run, self._start, task), workers=[worker], allow_other_workers=True, key=key, pure=False
            )
            self._at[key], self._futures[key] = (task, worker), future
            future.add_done_callback(self._mail.put)

    def as_completed(self) -> Iterator[Finished]:
        """Yield tasks as they end.

        Raises:
            QBWError: the scheduler is gone, or a worker says why it cannot begin.
        """
        while self._at or self._waiting:
            self._send()
            try:
                mail = self._mail.get(timeout=_LOOK_AGAIN_S)
            except Empty:
                mail = None
            if isinstance(mail, tuple):
                self._hear(*mail)
            elif mail is not None and mail.key in self._at:
                yield self._finished(mail)
            if self._client.status == "closed":
                raise self._gone()
            yield from self._left_behind()

    def _left_behind(self) -> Iterator[Finished]:
        """Yield the tasks of workers that are gone; say so where there are none at all for a while."""
        there = self._workers_there()
        if there:
            self._seen = self._said = time.monotonic()
        elif self._cluster is not None and time.monotonic() - self._seen > _GIVEN_UP_S:
            raise QBWError(
                "the workers have died, and Dask starts no others; finished rows are kept: run the same command again"
            )
        elif time.monotonic() - self._said > _IMPATIENT_S:
            self._hear(self._address, Told(f"{self._address}: has no workers; waiting for some"))
            self._said = time.monotonic()
        gone = [key for key, (_, worker) in self._at.items() if worker not in there]
        for key in gone:
            if self._futures[key].status == "pending":  # else it is in the mail
                task, worker = self._at.pop(key)
                self._client.cancel([self._futures.pop(key)], force=True)
                yield Finished(task=task, worker=worker, deaths=1, how="it has left the cluster")

    def _finished(self, future: "Future") -> Finished:
        from distributed import KilledWorker

        task, worker = self._at.pop(future.key)
        del self._futures[future.key]
        try:
            who, kind, content = future.result(timeout=_CONNECT_S)
        except KilledWorker as error:
            self._looked = -_LOOK_AGAIN_S
            return Finished(task=task, worker=worker, deaths=error.allowed_failures + 1, how="it has died")
        except (CancelledError, OSError, TimeoutError):
            raise self._gone() from None
        if kind == "refused":
            raise content
        return Finished(task=task, worker=who, **{kind: content})

    def _gone(self) -> QBWError:
        return QBWError(
            f"{self._address}: the scheduler is gone, and with it what it was to have done; finished rows are kept: "
            "start it again, and run the same command again"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take back what waits, and stop our own workers; those of others end what they are at, and keep it."""
        if self._client.status == "running" and self._futures:
            self._client.cancel(list(self._futures.values()), force=True)
        self._at.clear()
        self._waiting.clear()
        self._futures.clear()
        with suppress(TimeoutError):
            self._client.close(timeout=_GRACE_S)
        if self._cluster is not None:
            processes = [nanny.pid for nanny in self._cluster.workers.values()]
            with suppress(TimeoutError):
                self._cluster.close(timeout=_GRACE_S)
            for process in processes:
                with suppress(ProcessLookupError, TypeError):  # it has ended, or has never begun
                    os.kill(process, signal.SIGKILL)  # which costs no row


def _own_cluster(environments: Sequence[Mapping[str, str]]) -> "SpecCluster":
    """Return a cluster of processes of this machine that nobody else can reach."""
    from distributed import Nanny, Scheduler, SpecCluster

    local = {"host": "127.0.0.1", "dashboard": False}
    nanny = {**local, "nthreads": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    return SpecCluster(
        scheduler={"cls": Scheduler, "options": {**local, "port": 0, "allowed_failures": 0}},
        workers={
            place: {"cls": Nanny, "options": {**nanny, "env": dict(environment)}}
            for place, environment in enumerate(environments)
        },
        silence_logs=logging.CRITICAL,
    )


_WORKS: dict[str, Work] = {}
_AT_WORK = threading.Lock()


def _do(run: str, start: Start, task: Any) -> tuple[str, str, Any]:
    """Do a task in a worker; return who did it, and what came of it."""
    from distributed import get_worker

    worker = get_worker()
    with _AT_WORK:
        if run not in _WORKS:
            _WORKS.clear()  # of earlier runs
            try:
                _WORKS[run] = start(partial(_tell, run))
            except QBWError as error:
                return worker.address, "refused", error
        try:
            return worker.address, "answer", _WORKS[run](task)
        except Exception as error:
            return worker.address, "error", portable(error)


def _tell(run: str, event: Event) -> None:
    from distributed import get_worker

    worker = get_worker()
    plain = [event.sentence, event.once] if isinstance(event, Told) else [event.amount]  # what msgpack can write
    worker.log_event(run, [worker.address, *plain])


def _event(who: str, *plain: Any) -> tuple[str, Event]:
    return who, Told(*plain) if isinstance(plain[0], str) else Advanced(*plain)


def _facts() -> Facts:
    return Facts(gpus=gpus_here(os.environ), version=version("qbw"))


def gpus_here(environment: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """Return how many GPUs this process sees, without torch, which takes seconds to say.

    Args:
        environment: its own.
        devices: where the driver shows them.
    """
    there = len(list(devices.glob("nvidia[0-9]*")))
    if not there and (devices / "dxg").exists():  # Windows shows them otherwise
        import torch

        return torch.cuda.device_count()
    named = environment.get("CUDA_VISIBLE_DEVICES")
    return there if named is None else min(there, len([name for name in named.split(",") if name.strip()]))
