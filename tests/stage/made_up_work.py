"""Work that says what it did, takes as long as it is told, fails and dies as it is told. Processes import it."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qbw_eval.executors.seam import Advanced, Event, Told, Work
from schemas.errors import QBWError


def start(tell: Callable[[Event], object]) -> Work:
    """Begin a worker whose tasks are pairs of what to do and with what."""

    def work(task: tuple[str, Any]) -> Any:
        what, content = task
        match what:
            case "double":
                return 2 * content
            case "process":
                return os.getpid()
            case "say":
                tell(Told(content, once=True))
                tell(Advanced(0.5))
                return None
            case "raise":
                raise content
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "die once":
                if not Path(content).exists():
                    Path(content).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return "alive"
            case "begin and sleep":
                Path(content).write_text(str(os.getpid()))
                time.sleep(100)
        return None

    return work


def refuse(_tell: Callable[[Event], object]) -> Work:
    """Be a worker that cannot begin."""
    raise QBWError("no such device here")


def die(_tell: Callable[[Event], object]) -> Work:
    """Be a worker that dies before it has begun."""
    os._exit(7)
