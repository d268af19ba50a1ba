"""The way of batches to a device, with room for two: one is copied while the one before it is computed with.

Three have to wait, each for what happened two batches before:

    the host, before it fills memory        until it has been copied from
    the copy, before it overwrites memory   until what lay there has been taken
    whoever takes a batch                   until it has been copied

Nobody waits for what is computed with a batch: what is taken is a copy of its own, made on the device, which is fast.
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


class Lane:
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
