"""Clocks: what is compared is timed in turn, round by round, because machines are noisy."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from qbw_eval.engine.gpu_clock import seconds_on_gpu

Failed = Callable[[str, Exception], object]
"""Told of what failed, and how."""

_SHORT_ROUNDS = 3


def seconds(action: Callable[[], object], device: torch.device | None = None) -> float:
    """Return how long an action takes; a GPU is waited for before and after."""
    _wait_for(device)
    start = time.perf_counter()
    action()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Something to be timed.

    Attributes:
        action: what is done once a round.
        units: how many of whatever is counted one action does; its time is divided by them.
        warm_up: done once before the first round, untimed: compiles, fills caches. None for `action` itself.
    """

    action: Callable[[], object]
    units: int = 1
    warm_up: Callable[[], object] | None = None


def interleaved(
    timed: Mapping[str, Timed],
    rounds: int,
    device: torch.device | None = None,
    *,
    limit_s: float = math.inf,
    failed: Failed | None = None,
) -> dict[str, list[float]]:
    """Return seconds per unit, one a round, of everything; every second round goes backwards through the list.

    Args:
        timed: what is compared.
        rounds: at least 1.
        device: to be waited for.
        limit_s: no round begins that would, taking as long as the longest so far, end later than this; the first does.
        failed: told of what fails, which has no times then and does not keep the others from having theirs; None to
            raise.
    """
    times: dict[str, list[float]] = {name: [] for name in timed}

    def run(name: str, action: Callable[[], object]) -> float:
        try:
            return seconds(action, device)
        except Exception as error:  # memory, compilers and devices fail in many ways
            if failed is None:
                raise
            failed(name, error)
            del times[name]
            return math.nan

    for name, one in timed.items():
        run(name, one.warm_up or one.action)
    start, longest = time.perf_counter(), 0.0
    for number in range(rounds):
        begun = time.perf_counter()
        if number > 0 and begun - start + longest > limit_s:
            break
        for name in list(times) if number % 2 == 0 else list(times)[::-1]:
            took = run(name, timed[name].action)
            if name in times:
                times[name].append(took / timed[name].units)
        longest = max(longest, time.perf_counter() - begun)
    return times


def typical_seconds(action: Callable[[], object], device: torch.device) -> float:
    """Return the median time of something short; on a GPU what passes there, with its L2 cache emptied."""
    if device.type != "cuda":
        action()
        return statistics.median(seconds(action) for _ in range(_SHORT_ROUNDS))
    return seconds_on_gpu(action, device)
