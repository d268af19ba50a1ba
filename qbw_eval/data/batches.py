"""A split as batches on the device: moved once, met by every configuration."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qbw_eval.data.split import Split
from qbw_eval.nested import samples, to_device


class Batch(NamedTuple):
    """Inputs (N, ...), or nested containers of them (`nested`), and labels (N,), on one device."""

    inputs: Any
    labels: Tensor


@dataclass(frozen=True)
class Batches:
    """Batches of a split in order, to be gone through any number of times.

    Attributes:
        pairs: inputs and labels of each batch, wherever they are kept.
        device: where a batch is when it comes out.
    """

    pairs: Sequence[tuple[Any, Tensor]]
    device: torch.device

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Batch]:
        for inputs, labels in self.pairs:
            yield Batch(to_device(inputs, self.device), labels.to(self.device))


def batches_on(split: Split, batch_size: int, device: torch.device, *, resident: bool = True) -> Batches:
    """Return the split in batches of `batch_size` (the last may be smaller), on `device`.

    Args:
        split: the data.
        batch_size: samples a batch.
        device: where batches are wanted.
        resident: keep all samples there; otherwise each batch is sent there when its turn has come, in every pass.
    """
    inputs, labels = split.inputs, split.labels
    if resident:
        inputs, labels = to_device(inputs, device), labels.to(device)
    parts = [slice(start, start + batch_size) for start in range(0, len(labels), batch_size)]
    return Batches([(samples(inputs, part), labels[part]) for part in parts], device)
