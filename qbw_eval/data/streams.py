"""Work that is done in order, beside other work: a GPU's streams behind a seam, and a device that does all at once.

A GPU has several queues of work, which CUDA calls streams. Each does its work in order and at its own pace; whoever
gives it some goes on at once. One copies while another computes, and events say which has to wait for which.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """Has all the work been done that a stream had been given at some moment?"""

    def synchronize(self) -> None:
        """Wait until it has."""
        ...


class Stream(Protocol):
    """Does work in order, sooner or later."""

    def do(self, work: Callable[[], object]) -> None:
        """Have some work done after all that was given before, and after all events that were waited for."""
        ...

    def record_event(self) -> Event:
        """Return the event that all work given so far is done."""
        ...

    def wait_event(self, event: Event) -> None:
        """Have all work that is given from now on begin after an event of this or another stream."""
        ...


class Streams(Protocol):
    """The two streams of a device, and memory on either side.

    Attributes:
        copying: copies from the host.
        computing: what everybody else's work on the device is given to.
    """

    copying: Stream
    computing: Stream

    def host_buffer(self, like: Tensor) -> Tensor:
        """Return memory of the host from which copies can be made beside other work."""
        ...

    def device_buffer(self, like: Tensor) -> Tensor:
        """Return memory of the device; free to be used after all work that `computing` was given so far."""
        ...


def streams_of(device: torch.device) -> Streams:
    """Return the streams of a device."""
    return CudaStreams(device) if device.type == "cuda" else StreamsAtOnce(device)


# --- a device that does all at once -----------------------------------------------------------------------------------


class _Past:
    """An event that has happened."""

    def synchronize(self) -> None:
        pass


class _AtOnce:
    """A stream that has done its work when it has been given it."""

    def do(self, work: Callable[[], object]) -> None:
        work()

    def record_event(self) -> Event:
        return _Past()

    def wait_event(self, _event: Event) -> None:
        pass


class StreamsAtOnce:
    """Streams of a device that has none, such as the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.copying: Stream = _AtOnce()
        self.computing: Stream = _AtOnce()
        self._device = device

    def host_buffer(self, like: Tensor) -> Tensor:  # noqa: D102 - see Streams
        return torch.empty_like(like)

    def device_buffer(self, like: Tensor) -> Tensor:  # noqa: D102
        return torch.empty_like(like, device=self._device)


# --- CUDA -------------------------------------------------------------------------------------------------------------


class _CudaStream:
    """A stream of CUDA's."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream

    def do(self, work: Callable[[], object]) -> None:
        with torch.cuda.stream(self.stream):
            work()

    def record_event(self) -> Event:
        event: Event = self.stream.record_event()
        return event

    def wait_event(self, event: Event) -> None:
        assert isinstance(event, torch.cuda.Event)
        self.stream.wait_event(event)


class CudaStreams:
    """The stream that is current on a GPU, and one beside it that copies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.copying: Stream = _CudaStream(self._beside)
        self.computing: Stream = _CudaStream(torch.cuda.current_stream(device))

    def host_buffer(self, like: Tensor) -> Tensor:  # noqa: D102 - see Streams
        return pinned(like)

    def device_buffer(self, like: Tensor) -> Tensor:  # noqa: D102
        buffer = torch.empty_like(like, device=self._device)
        # It belongs to the computing stream; once it is let go, torch must not give it away while a copy is under way.
        buffer.record_stream(self._beside)
        return buffer


def pinned(like: Tensor) -> Tensor:
    """Return memory that the system never moves, so that a GPU can read it by itself; any memory where it is refused.

    From such memory, too, every copy is right: CUDA reads it before the call returns.
    """
    try:
        return torch.empty_like(like, pin_memory=True)
    except RuntimeError:  # no GPU here, or the system's limit is reached
        return torch.empty_like(like)
