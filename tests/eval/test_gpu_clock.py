"""What is measured on a GPU is what passes there: on a simulated device and host, one slower than the other."""

import contextlib
import itertools
import time
from collections.abc import Callable

import pytest
import torch

from qbw_eval.engine.gpu_clock import seconds_on_gpu


class Simulated:
    """A host that gives work to a device, which does it in turn; both have clocks, in seconds.

    Attributes:
        host: what time it is there.
        idle_from: when the device has done all that it was given.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = self.idle_from = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.host)
        monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
        monkeypatch.setattr(torch.cuda, "synchronize", self.wait)
        monkeypatch.setattr(torch.cuda, "Event", lambda **_: Event(self))
        monkeypatch.setattr(torch, "empty", lambda *_, **__: Spare(self))

    def give(self, launching: float, running: float) -> None:
        self.host += launching
        self.idle_from = max(self.idle_from, self.host) + running

    def wait(self) -> None:
        self.host = max(self.host, self.idle_from)


class Event:
    def __init__(self, simulated: Simulated) -> None:
        self.simulated, self.at = simulated, 0.0

    def record(self) -> None:
        self.at = max(self.simulated.idle_from, self.simulated.host)

    def elapsed_time(self, later: "Event") -> float:
        return 1000 * (later.at - self.at)


class Spare:
    def __init__(self, simulated: Simulated) -> None:
        self.simulated = simulated

    def zero_(self) -> None:
        self.simulated.give(5e-6, 65e-6)


@pytest.mark.parametrize("launching", [1e-6, 150e-6, 2e-3])
def test_however_long_launching_takes_what_the_device_takes_is_measured(
    launching: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated, odd = Simulated(monkeypatch), itertools.cycle([20e-6, 20e-6, 90e-6])
    compiled: list[None] = []

    def launch() -> None:
        simulated.give(launching if compiled else 1.0, next(odd))
        compiled.append(None)

    found = measured(launch)
    assert found == pytest.approx(20e-6, rel=1e-6)
    assert len(compiled) < 30


def measured(launch: Callable[[], object]) -> float:
    return seconds_on_gpu(launch, torch.device("cuda", 0))
