"""Clocks: what is compared is timed in turn, round by round, because machines are noisy."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


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
    timed: Mapping[str, Timed], rounds: int, device: torch.device | None = None, *, limit_s: float = math.inf
) -> dict[str, list[float]]:
    """Return seconds per unit, one a round, of everything; every second round goes backwards through the list.

    Args:
        timed: what is compared.
        rounds: at least 1.
        device: to be waited for.
        limit_s: no round begins that would, taking as long as the longest so far, end later than this; the first does.
    """
    for one in timed.values():
        (one.warm_up or one.action)()
    times: dict[str, list[float]] = {name: [] for name in timed}
    start, longest = time.perf_counter(), 0.0
    for number in range(rounds):
        begun = time.perf_counter()
        if number > 0 and begun - start + longest > limit_s:
            break
        for name in timed if number % 2 == 0 else list(timed)[::-1]:
            times[name].append(seconds(timed[name].action, device) / timed[name].units)
        longest = max(longest, time.perf_counter() - begun)
    return times
