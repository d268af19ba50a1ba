"""TensorBoard's own server, on a free port of this machine."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 90  # seconds until a server that says nothing is called broken; it takes 2 to 4


@contextmanager
def serving(logdir: Path, log: Path, *, fast: bool) -> Iterator[str]:
    """Start TensorBoard on a free loopback port and yield its address.

    `fast` is the data server in Rust, which TensorBoard starts where it can; otherwise it reads the files in Python.
    """
    words = ["--host", "127.0.0.1", "--port", "0", "--reload_interval", "1", f"--load_fast={str(fast).lower()}"]
    words += ["--samples_per_plugin", "images=1000,scalars=100000", "--logdir", str(logdir)]
    with log.open("wb") as sink:
        server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *words], stdout=sink, stderr=sink)
    try:
        yield until(lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text(encoding="utf-8")), log)[0]
    finally:
        server.kill()
        server.wait()


def until(ask: Callable[[], Any], log: Path) -> Any:
    """Return the first answer that is not empty."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := ask()):
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.1)
    return answer
