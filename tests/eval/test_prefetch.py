"""Batches on their way to a device whose streams work whenever they like: they arrive whole and in order.

`Simulated` is a device whose streams are queues: nothing in them is done before it must be, or at once, or at random.
A prefetcher that does not wait for what it has to wait for would hand out other batches; made to forget, it does.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qbw_eval.data.batches import SentBatches, batches_on
from qbw_eval.data.prefetch import Prefetcher
from qbw_eval.data.split import Split
from qbw_eval.data.streams import Event, Stream, StreamsAtOnce, pinned, streams_of
from qbw_eval.nested import tensors_in

CPU = torch.device("cpu")
GARBAGE = -77
ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

# --- a device whose streams take their time ---------------------------------------------------------------------------


@dataclass(eq=False)
class Later:
    """An event; waiting for it has the device go on until it has happened."""

    device: "Simulated"
    happened: bool = False

    def synchronize(self) -> None:
        if self.device.forgets != "the host":
            self.device.go_on_until(lambda: self.happened)


@dataclass
class Queue:
    """A stream."""

    device: "Simulated"
    name: str
    waiting: list[Callable[[], bool]] = field(default_factory=list)
    """What is to be done, in order; each says whether it could be."""

    def do(self, work: Callable[[], object]) -> None:
        self._append(lambda: (work(), True)[1])

    def record_event(self) -> Event:
        event = Later(self.device)
        self.do(lambda: setattr(event, "happened", True))
        return event

    def wait_event(self, event: Event) -> None:
        assert isinstance(event, Later)
        if self.device.forgets != self.name:
            self._append(lambda: event.happened)

    def _append(self, step: Callable[[], bool]) -> None:
        self.waiting.append(step)
        self.device.maybe_go_on()

    def advance(self) -> bool:
        """Do the next thing; return whether there was one that could be done."""
        if not self.waiting or not self.waiting[0]():
            return False
        self.waiting.pop(0)
        return True


class Simulated:
    """A device.

    Args:
        seed: of what is done when.
        eager: how readily each stream goes on unasked: 0 only when somebody waits for it, 1 at once.
        forgets: whose waiting does nothing: "the host", "copying", "computing" or nobody's.
    """

    def __init__(self, seed: int = 0, eager: tuple[float, float] = (0.5, 0.5), forgets: str = "") -> None:
        self._choices, self._eager, self.forgets = random.Random(seed), eager, forgets
        self._copying, self._computing = Queue(self, "copying"), Queue(self, "computing")
        self.copying: Stream = self._copying
        self.computing: Stream = self._computing
        self.buffers = 0

    def host_buffer(self, like: Tensor) -> Tensor:
        self.buffers += 1
        return torch.full_like(like, GARBAGE)

    def device_buffer(self, like: Tensor) -> Tensor:
        """Memory that work given to `computing` before still writes to, as CUDA's allocator hands it out."""
        self.buffers += 1
        buffer = torch.empty_like(like)
        self.computing.do(lambda: buffer.fill_(GARBAGE))
        return buffer

    def maybe_go_on(self) -> None:
        for queue, eager in zip((self._copying, self._computing), self._eager, strict=True):
            while self._choices.random() < eager and queue.advance():
                pass

    def go_on_until(self, done: Callable[[], bool]) -> None:
        while not done():
            queues = [self._copying, self._computing]
            self._choices.shuffle(queues)
            assert any(queue.advance() for queue in queues), "everybody waits for somebody else"

    def finish(self) -> None:
        self.go_on_until(lambda: not self._copying.waiting and not self._computing.waiting)


def some_batches(count: int, size: int, last: int) -> list[list[Tensor]]:
    """Return batches of two tensors, of which no two have a value in common."""
    sizes = [*[size] * (count - 1), last]
    firsts = [100 * number for number in range(count)]
    return [
        [
            torch.arange(first, first + 6 * samples).view(samples, 2, 3),
            torch.arange(first, first + samples).to(torch.float32),
        ]
        for first, samples in zip(firsts, sizes, strict=True)
    ]


def as_they_arrive(batches: list[list[Tensor]], device: Simulated) -> list[list[Tensor]]:
    """Return what whoever computes sees, whenever the device comes to it."""
    seen: list[list[Tensor]] = []
    prefetcher = Prefetcher(device, batches[0])

    def send(number: int) -> None:
        tensors = [tensor.clone() for tensor in batches[number]]
        prefetcher.send(number, tensors)
        for tensor in tensors:  # which are the caller's again
            tensor.fill_(GARBAGE)

    send(0)
    for number in range(len(batches)):
        taken = prefetcher.take(number)
        if number + 1 < len(batches):
            send(number + 1)
        device.computing.do(lambda taken=taken: seen.append([tensor.clone() for tensor in taken]))
    device.finish()
    return seen


def are_equal(found: list[list[Tensor]], expected: list[list[Tensor]]) -> bool:
    return len(found) == len(expected) and all(
        torch.equal(one, other)
        for batch, theirs in zip(found, expected, strict=True)
        for one, other in zip(batch, theirs, strict=True)
    )


eagerness = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


@given(
    count=st.integers(1, 7),
    size=st.integers(1, 4),
    last=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    eager=st.tuples(eagerness, eagerness),
)
@settings(deadline=None, max_examples=100)
def test_batches_arrive_in_order_whenever_a_device_does_its_work(
    count: int, size: int, last: int, seed: int, eager: tuple[float, float]
) -> None:
    batches = some_batches(count, size, min(size, last))
    device = Simulated(seed, eager)
    assert are_equal(as_they_arrive(batches, device), batches)
    assert device.buffers == 2 * 2 * 2, "room for two batches of two tensors on either side, however many there are"


@pytest.mark.parametrize("forgets", ["the host", "copying", "computing"])
def test_whoever_does_not_wait_spoils_batches(forgets: str) -> None:
    batches = some_batches(7, 3, 2)
    right = [
        are_equal(as_they_arrive(batches, Simulated(seed, eager, forgets)), batches)
        for seed in range(5)
        for eager in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.5, 0.5))
    ]
    assert not all(right)


def test_memory_of_the_device_is_waited_for_before_the_first_copy() -> None:
    """Work that was given before may still write there; one whose copies do not wait loses the very first batch."""
    batches = some_batches(1, 2, 2)
    hasty = (1.0, 0.0)
    assert are_equal(as_they_arrive(batches, Simulated(0, hasty)), batches)
    assert not are_equal(as_they_arrive(batches, Simulated(0, hasty, forgets="copying")), batches)


def test_the_host_is_at_most_three_batches_ahead() -> None:
    """A device that does nothing unasked is made to, or batches would pile up."""
    device, batches = Simulated(0, (0.0, 0.0)), some_batches(9, 1, 1)
    prefetcher, seen = Prefetcher(device, batches[0]), []
    for number, batch in enumerate(batches):
        prefetcher.send(number, batch)
        prefetcher.take(number)
        device.computing.do(lambda number=number: seen.append(number))
        assert number - len(seen) <= 3
    device.finish()
    assert seen == list(range(9))


# --- devices that are there -------------------------------------------------------------------------------------------


def test_the_cpu_does_all_at_once() -> None:
    streams = streams_of(CPU)
    assert isinstance(streams, StreamsAtOnce)
    batches = some_batches(4, 3, 1)
    prefetcher, taken = Prefetcher(streams, batches[0]), []
    for number, batch in enumerate(batches):
        prefetcher.send(number, batch)
        taken.append(prefetcher.take(number))
    assert are_equal(taken, batches), "what was taken stays as it is"


def test_memory_that_cannot_be_pinned_does_as_well() -> None:
    like = torch.zeros((2, 3, 4, 5)).contiguous(memory_format=torch.channels_last)
    memory = pinned(like)
    assert memory.shape == like.shape
    assert memory.stride() == like.stride()
    assert memory.is_pinned() == torch.cuda.is_available()


def a_split(samples: int = 50) -> Split:
    source = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (samples, 3, 16, 16), generator=source) / 255
    return Split(
        dataset="d",
        name="validation",
        inputs={"front": pictures, "back": [torch.randn(samples, 7, generator=source)]},
        labels=torch.randint(0, 10, (samples,), generator=source),
    )


@ON_A_GPU
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")  # a prototype, torch says, each time
@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("resident", [True, False])
def test_on_a_gpu_the_same_bits_arrive_and_nothing_waits_for_it(resident: bool, narrow: bool) -> None:
    split = a_split()
    batches = batches_on(split, 16, torch.device("cuda"), resident=resident, narrow=narrow)
    for _ in range(3):
        try:
            torch.cuda.set_sync_debug_mode("error")
            found = []
            for batch in batches:
                torch.cuda._sleep(10**7)  # the device is behind
                found.append(tensors_in(tuple(batch)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for position, tensors in enumerate(zip(*found, strict=True)):
            whole = tensors_in((split.inputs, split.labels))[position]
            assert torch.equal(torch.cat(tensors).cpu(), whole)


def test_batches_that_are_kept_while_others_come_stay_as_they_are() -> None:
    split = a_split()
    batches = batches_on(split, 16, CPU, resident=False)
    assert isinstance(batches, SentBatches)
    found = list(batches)
    assert torch.equal(torch.cat([batch.labels for batch in found]), split.labels)
    assert torch.equal(torch.cat([batch.inputs["front"] for batch in found]), split.inputs["front"])
    assert torch.equal(torch.cat([batch.inputs["back"][0] for batch in found]), split.inputs["back"][0])


def test_two_passes_at_the_same_time_do_not_disturb_each_other() -> None:
    split = a_split()
    batches = batches_on(replace(split), 16, CPU, resident=False, narrow=True)
    for one, other in zip(batches, batches, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.inputs["front"], other.inputs["front"])
