"""Several processes of this machine, each with an environment of its own, such as the GPU that it sees. Needs no torch.

A worker is a fresh interpreter that runs `serve` and talks through a pair of sockets. It ends when they are closed,
however the process that started it ended: none is left behind, and no claim is held by one that nobody waits for.
"""

import contextlib
import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from qbw_eval.executors.seam import Event, Finished, Hear, Start, Told
from schemas.errors import QBWError

_FALSE_STARTS = 3
"""So many workers in a row that end before they could begin: it is not the tasks."""

_GRACE_S = 3.0
"""What a stopped worker gets to remove its temporary files; to be killed costs no row either."""


@dataclass
class _Worker:
    """A process, and what it is at."""

    place: int
    process: "subprocess.Popen[bytes]"
    connection: Connection
    task: Any = None
    busy: bool = False
    ready: bool = False

    @property
    def name(self) -> str:
        return f"worker {self.place + 1}"


class Processes:
    """An `Executor` of processes; one is started when there is a task for it, and anew after it died.

    Args:
        start: what each does.
        hear: told what tasks say, and what they print on stderr.
        environments: one a process; what is to be set in it beside this process's own environment.
    """

    def __init__(self, start: Start, hear: Hear, environments: Sequence[Mapping[str, str]]) -> None:
        self._start, self._hear, self._environments = start, hear, environments
        self._workers: dict[int, _Worker] = {}
        self._waiting: deque[tuple[Any, str | None]] = deque()
        self._false_starts = 0

    def capacity(self) -> int:
        """Return how many processes there may be."""
        return len(self._environments)

    def submit(self, task: Any, near: str | None = None) -> None:
        """Send a task to a process that is free, the one called `near` if it is; or keep it until one is."""
        free = [worker for worker in self._workers.values() if not worker.busy]
        free.sort(key=lambda worker: worker.name != near)
        places = [place for place in range(self.capacity()) if place not in self._workers]
        if not free and not places:
            self._waiting.append((task, near))
            return
        # One that is new has nothing at hand, one that is free may.
        self._give(free[0] if free else self._started(places[0]), task)

    def as_completed(self) -> Iterator[Finished]:
        """Yield tasks as they end.

        Raises:
            QBWError: workers end before they begin, or say why they cannot.
        """
        while self._waiting or any(worker.busy for worker in self._workers.values()):
            ready = wait([worker.connection for worker in self._workers.values()])
            for worker in [worker for worker in self._workers.values() if worker.connection in ready]:
                finished = self._received(worker)
                if finished is not None:
                    yield finished
                    while self._waiting and not all(one.busy for one in self._workers.values()):
                        self.submit(*self._waiting.popleft())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop all processes, with what they are at."""
        for worker in self._workers.values():
            worker.process.terminate()
        end = time.monotonic() + _GRACE_S
        for worker in self._workers.values():
            try:
                worker.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.connection.close()
        self._workers.clear()
        self._waiting.clear()

    def _started(self, place: int) -> _Worker:
        ours, its = socket.socketpair()
        with its:
            process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({its.fileno()})"],
                # The interpreter looks for our modules where we do, whatever was done to find them here.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **self._environments[place]},
                stdin=subprocess.DEVNULL,
                stdout=2,  # results are ours to print
                pass_fds=[its.fileno()],
                process_group=0,  # Ctrl-C is ours to handle
            )
        worker = _Worker(place, process, Connection(ours.detach()))
        self._workers[place] = worker
        with contextlib.suppress(OSError):  # it has died, as will be seen when it is listened to
            worker.connection.send(self._start)
        return worker

    def _give(self, worker: _Worker, task: Any) -> None:
        worker.task, worker.busy = task, True
        with contextlib.suppress(OSError):  # likewise
            worker.connection.send(task)

    def _received(self, worker: _Worker) -> Finished | None:
        """Take one message of a worker; what it came to, where that ends its task."""
        try:
            kind, content = worker.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            return self._buried(worker)
        if kind == "event":
            self._hear(worker.name, content)
            return None
        if kind == "ready":
            worker.ready, self._false_starts = True, 0
            return None
        if kind == "refused":
            raise content
        task, worker.task, worker.busy = worker.task, None, False
        return Finished(task=task, worker=worker.name, **{kind: content})

    def _buried(self, worker: _Worker) -> Finished | None:
        """Take leave of a worker that is dead, or nearly: it has closed its end.

        Raises:
            QBWError: none can begin.
        """
        try:
            code = worker.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            code = worker.process.wait()
        worker.connection.close()
        del self._workers[worker.place]
        how = f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"
        if worker.ready:
            if worker.busy:
                return Finished(task=worker.task, worker=worker.name, deaths=1, how=how)
            return None
        self._false_starts += 1
        if self._false_starts == _FALSE_STARTS:
            raise QBWError(f"{self._false_starts} workers in a row ended before they could begin; the last by {how}")
        if worker.busy:
            self.submit(worker.task, worker.name)
        return None


def serve(descriptor: int) -> None:
    """Be a worker: take a `Start` and then tasks from a socket until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # what is open is closed, what is temporary removed
    connection = Connection(descriptor)
    lock, tasks = threading.Lock(), SimpleQueue[Any]()

    def send(kind: str, content: object) -> None:
        with lock:
            connection.send((kind, content))

    def receive() -> None:
        try:
            while True:
                tasks.put(connection.recv())
        except (EOFError, OSError):
            os._exit(1)  # nobody waits for us any more: to go on would only keep others from the work

    def tell(event: Event) -> None:
        send("event", event)

    threading.Thread(target=receive, daemon=True).start()
    sys.stderr = _Lines(lambda line: tell(Told(line)))
    try:
        work = tasks.get()(tell)
    except QBWError as error:
        send("refused", error)
        return
    send("ready", None)
    while True:
        task = tasks.get()
        try:
            answer = work(task)
        except Exception as error:
            send("error", portable(error))
        else:
            send("answer", answer)


class _Lines(io.TextIOBase):
    """A stderr whose lines are told."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell, self._rest = tell, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._tell(line)
        return len(text)


def portable(error: Exception) -> Exception:
    """Return an error that can be pickled and has its traceback for a note, unless it is meant for the user."""
    if not isinstance(error, QBWError):
        error.add_note("in a worker:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
