"""Batches on their way to a device, with room for two: one is copied while the one before it is computed with.

Three have to wait, and nobody else:

    the host, before it fills memory again       until the batch before has been copied from there
    the copy, before it overwrites memory        until the batch before has been taken from there
    whoever computes, before a batch is taken    until it has been copied

What is taken is a copy of its own, made on the device, which is fast: nobody waits until a batch has been computed with
to use its memory again, and whoever keeps a batch may do so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qbw_eval.data.streams import Event, Streams

_ROOM = 2


@dataclass
class _Slot:
    """Room for one batch on either side.

    Attributes:
        host, device: memory for each tensor of the largest batch.
        count: samples of the batch that is on its way.
        copied: it has been copied to the device.
        taken: it has been taken from there.
    """

    host: list[Tensor]
    device: list[Tensor]
    count: int
    copied: Event
    taken: Event


class Prefetcher:
    """Batches in the order of their numbers, each first sent and then taken; at most two have been sent and not taken.

    Args:
        streams: of the device.
        largest: the tensors of the largest batch, (N, ...) each, on the CPU.
    """

    def __init__(self, streams: Streams, largest: Sequence[Tensor]) -> None:
        self._streams = streams
        self._slots = [
            _Slot(
                host=[streams.host_buffer(tensor) for tensor in largest],
                device=[streams.device_buffer(tensor) for tensor in largest],
                count=0,
                copied=streams.copying.record_event(),
                taken=streams.computing.record_event(),  # after which the memory of the device is ours
            )
            for _ in range(_ROOM)
        ]

    def send(self, number: int, tensors: Sequence[Tensor]) -> None:
        """Begin to copy batch `number`, which has no more samples than the largest."""
        slot, copying = self._slots[number % _ROOM], self._streams.copying
        slot.copied.synchronize()
        slot.count = len(tensors[0])
        pairs = []
        for host, device, tensor in zip(slot.host, slot.device, tensors, strict=True):
            here, there = host[: slot.count], device[: slot.count]
            here.copy_(tensor)
            pairs.append((there, here))
        copying.wait_event(slot.taken)
        copying.do(lambda: _copy(pairs))
        slot.copied = copying.record_event()

    def take(self, number: int) -> list[Tensor]:
        """Return batch `number` on the device, where work that `computing` is given from now on finds it."""
        slot, computing = self._slots[number % _ROOM], self._streams.computing
        computing.wait_event(slot.copied)
        there = [device[: slot.count] for device in slot.device]
        taken = [torch.empty_like(tensor) for tensor in there]
        computing.do(lambda: _copy(list(zip(taken, there, strict=True))))
        slot.taken = computing.record_event()
        return taken


def _copy(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for target, source in pairs:
        target.copy_(source, non_blocking=True)
