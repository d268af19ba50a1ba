"""A lane of a GPU: a CUDA stream, and CUDA graphs captured on it (`replay.Lane`).

What is recorded, and in which order it is replayed, is up to `replay`, which the tests run on the CPU.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial

import torch
from torch import Tensor


class CudaLane:
    """See `replay.Lane`.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._pool = torch.cuda.graph_pool_handle()
        """Where captured launches keep what lives within one of them; they never run at the same time."""

    def queue(self) -> AbstractContextManager[object]:
        """Return a context in which work goes to the stream."""
        return torch.cuda.stream(self._stream)

    def record(self, run: Callable[[], None]) -> Callable[[], object]:
        """Return the replay of what `run` launches."""
        try:
            return self._captured(run)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # during a capture the allocator gives back no spare memory by itself
            return self._captured(run)

    def _captured(self, run: Callable[[], None]) -> Callable[[], object]:
        graph = torch.cuda.CUDAGraph()
        # Not by `torch.cuda.graph`, which waits for the device and gives spare memory back to it each time, and there
        # are dozens. Another thread may copy the next batch meanwhile, which is none of this graph's business.
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                run()
            except BaseException:
                with suppress(RuntimeError):  # which would hide that memory ran out, say
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph.replay

    def follow(self) -> None:
        """Let the stream wait for the current one."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def hand_over(self, value: Tensor) -> None:
        """Let the current stream wait for this one, whose memory `value` lies in."""
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        value.record_stream(current)


def seconds_on(device: torch.device) -> Callable[[Callable[[], None]], float]:
    """Return what tells how long a call takes with all the work that it gives to a device."""
    return partial(_seconds, device)


def _seconds(device: torch.device, call: Callable[[], None]) -> float:
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start
