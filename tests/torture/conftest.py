"""How often to try, from which seed, and where the outcome is written.

`make test` runs a small share; `make torture` sets TORTURE_SCALE (1: everything that docs/reliability.md promises,
0.1: a tenth of it), TORTURE_SEED and TORTURE_JSON, the file that gets one line per test.
"""

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

SCALE = float(os.environ["TORTURE_SCALE"]) if os.environ.get("TORTURE_SCALE") else None
SEED = int(os.environ.get("TORTURE_SEED", "1"))
JSON = os.environ.get("TORTURE_JSON")


@pytest.fixture(scope="session")
def seed() -> int:
    """What random times, orders and damages follow from."""
    return SEED


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether this is `make torture`."""
    return SCALE is not None


@pytest.fixture(scope="session")
def trials() -> Callable[[int, int], int]:
    """How many trials: the share of `make test`, or so much of the full number as was asked for."""
    return lambda share, everything: share if SCALE is None else max(share, round(everything * SCALE))


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """A way to start processes in milliseconds: they are forked from one that has imported the store, and no more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qbw_eval.store", "qbw_eval.rows", "qbw_eval.plan", "pyarrow.parquet", "pandas"])
    return context


class Report:
    """One line of JSON per test, on stdout and in the file TORTURE_JSON; tests call it before they assert anything."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, *, test: str, trials: int, failures: int, **more: object) -> None:
        line = {"test": test, "trials": trials, "failures": failures, "seed": SEED, **more}
        machine = f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line |= {"seconds": round(time.monotonic() - self._start, 1), "machine": machine, "date": now, "scale": SCALE}
        text = json.dumps(line)
        print(text)
        if JSON:
            Path(JSON).parent.mkdir(parents=True, exist_ok=True)
            with Path(JSON).open("a") as file:
                file.write(text + "\n")


@pytest.fixture
def report() -> Report:
    """Where a test's counts go."""
    return Report()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note in the file also what could not be tried, and why."""
    name = report.nodeid.rpartition("::test_")[2].replace("_", " ").replace("[", " on ").removesuffix("]")
    if report.skipped and JSON and isinstance(report.longrepr, tuple):
        Report()(test=name, trials=0, failures=0, skipped=report.longrepr[2].removeprefix("Skipped: "))
