"""How long a GPU takes for what it is given, however long it takes the host to launch it."""

import math
import statistics
import time
from collections.abc import Callable

import torch

_EMPTIED = 2**28
"""Bytes that are written to empty an L2 cache: several times what one holds."""

_ROUNDS = 15
_MOST = 100
"""How often the cache is emptied at most before one launch."""


def seconds_on_gpu(launch: Callable[[], object], device: torch.device) -> float:
    """Return the median time that a CUDA device takes for what `launch` gives to it, its L2 cache emptied each time.

    Python takes longer to launch a kernel than a small one runs, and a device that waits for its next launch runs
    clocks all the same. So before each start the device gets more to do than launching takes the host: it empties its
    cache again and again.

    Args:
        launch: gives the device something to do, and waits for nothing.
        device: a CUDA device.
    """
    with torch.cuda.device(device):
        spare = torch.empty(_EMPTIED, dtype=torch.uint8, device=device)
        spare.zero_()
        launch()  # compiles what was not
        emptying = _until_done(spare.zero_)
        torch.cuda.synchronize()
        start = time.perf_counter()
        launch()
        launching = time.perf_counter() - start
        times = min(_MOST, 1 + math.ceil(2 * launching / emptying))
        rounds = [_new_events() for _ in range(_ROUNDS)]
        for begin, end in rounds:
            for _ in range(times):
                spare.zero_()
            begin.record()
            launch()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(float(begin.elapsed_time(end)) for begin, end in rounds) / 1000


def _until_done(launch: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    launch()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _new_events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves them untyped
