"""A split as batches on the device: moved once, or ahead of their turn in every pass; met by every configuration."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qbw_eval.data.narrow import Form, Narrow, as_it_is
from qbw_eval.data.prefetch import Prefetcher
from qbw_eval.data.split import Split
from qbw_eval.data.streams import streams_of
from qbw_eval.nested import for_each_tensor, samples, tensors_in

Kept = tuple[Any, Narrow]
"""Inputs and labels as they are kept: containers of `Narrow` in place of tensors."""


class Batch(NamedTuple):
    """Inputs (N, ...), or nested containers of them (`nested`), and labels (N,), on one device."""

    inputs: Any
    labels: Tensor


@dataclass(frozen=True)
class Batches:
    """Batches of a split in order, to be gone through any number of times; all of them are on the device.

    Attributes:
        parts: each batch as it is kept there.
    """

    parts: Sequence[Kept]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        for part in self.parts:
            yield Batch(*for_each_tensor(part, Narrow.widened))


@dataclass(frozen=True)
class SentBatches:
    """The same, but sent to the device in every pass, each while the one before it is computed with.

    At most two are on their way, in memory of their own on either side.

    Attributes:
        parts: each batch as it is kept on the CPU; none is larger than the first.
        forms: of the tensors of a batch in order, the labels' last, on the device.
        device: where a batch is when it comes out.
    """

    parts: Sequence[Kept]
    forms: Sequence[Form]
    device: torch.device

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        prefetcher = Prefetcher(streams_of(self.device), _values_of(self.parts[0]))
        prefetcher.send(0, _values_of(self.parts[0]))
        for number, part in enumerate(self.parts):
            tensors = [form.widened(values) for form, values in zip(self.forms, prefetcher.take(number), strict=True)]
            if number + 1 < len(self.parts):
                prefetcher.send(number + 1, _values_of(self.parts[number + 1]))
            yield _batch_of(part, iter(tensors))


def batches_on(
    split: Split, batch_size: int, device: torch.device, *, resident: bool = True, narrow: bool = False
) -> Batches | SentBatches:
    """Return the split in batches of `batch_size` (the last may be smaller), on `device`.

    Whatever is asked for, the same bits come out.

    Args:
        split: the data.
        batch_size: samples a batch.
        device: where batches are wanted.
        resident: keep all samples there; otherwise each batch is sent there ahead of its turn, in every pass.
        narrow: keep them in their narrowest forms; where they are not resident, only if those are in memory (see
            `Split.narrow_copy`): making them anew in every pass would take longer than sending what is as it is.
    """
    kept: Any = split.narrow_copy if narrow else None
    if kept is not None:
        kept = for_each_tensor(kept, lambda one: one.to(device)) if resident else kept
    elif narrow and resident:
        kept = split.narrowed(device)
    else:
        plain = (split.inputs, split.labels)
        kept = for_each_tensor(plain, lambda tensor: as_it_is(tensor.to(device) if resident else tensor))
    parts = [samples(kept, slice(first, first + batch_size)) for first in range(0, len(split), batch_size)]
    return Batches(parts) if resident else SentBatches(parts, [one.form.to(device) for one in _kept_in(kept)], device)


def _kept_in(part: Kept) -> Sequence[Narrow]:
    found: list[Any] = list(tensors_in(part))
    return found


def _values_of(part: Kept) -> list[Tensor]:
    return [one.values for one in _kept_in(part)]


def _batch_of(part: Kept, tensors: Iterator[Tensor]) -> Batch:
    """Return a batch in containers like those of `part`."""
    return Batch(*for_each_tensor(part, lambda _kept: next(tensors)))
