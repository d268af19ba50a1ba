"""A split as batches on the device: moved once, met by every configuration."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qbw_eval.data.sources import Split


class Batch(NamedTuple):
    """Inputs (N, channels, height, width), or nested containers of tensors, and labels (N,), on one device."""

    inputs: Any
    labels: Tensor


def to_device(inputs: Any, device: torch.device) -> Any:
    """Return a tensor, or dicts, lists and tuples of tensors, on `device`."""
    return for_each_tensor(inputs, lambda tensor: tensor.to(device))


def first_sample(inputs: Any) -> Any:
    """Return a batch of the first sample of a batch."""
    return for_each_tensor(inputs, lambda tensor: tensor[:1].clone())  # for a forward that changes its input


def tensors_in(inputs: Any) -> list[Tensor]:
    """Return the tensors in dicts, lists and tuples of tensors, in the order in which they stand there."""
    found: list[Tensor] = []
    for_each_tensor(inputs, found.append)
    return found


def tensors_like(inputs: Any, like: Any) -> list[Tensor] | None:
    """Return the tensors of `inputs` in the order of `like`, whose dicts may have their keys in another order.

    None where the containers are others: other keys, another length, a tensor in place of a container.
    """
    if isinstance(like, Mapping):
        if not isinstance(inputs, Mapping) or inputs.keys() != like.keys():
            return None
        pairs = [(inputs[key], value) for key, value in like.items()]
    elif isinstance(like, list | tuple):
        if not isinstance(inputs, list | tuple) or len(inputs) != len(like):
            return None
        pairs = list(zip(inputs, like, strict=True))
    else:
        return [inputs] if isinstance(inputs, Tensor) else None
    parts = [tensors_like(*pair) for pair in pairs]
    return None if None in parts else [tensor for part in parts if part is not None for tensor in part]


def for_each_tensor(inputs: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return containers like those of `inputs` that hold what `change` makes of each tensor, in order."""
    if isinstance(inputs, Mapping):
        return {key: for_each_tensor(value, change) for key, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        changed = [for_each_tensor(value, change) for value in inputs]
        return changed if isinstance(inputs, list) else tuple(changed)
    return change(inputs)


@dataclass(frozen=True)
class Batches:
    """Batches of a split in order, to be gone through any number of times.

    Attributes:
        pairs: inputs and labels of each batch, wherever they are kept.
        device: where a batch is when it comes out.
    """

    pairs: Sequence[tuple[Tensor, Tensor]]
    device: torch.device

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Batch]:
        for inputs, labels in self.pairs:
            yield Batch(inputs.to(self.device), labels.to(self.device))


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
        inputs, labels = inputs.to(device), labels.to(device)
    return Batches(list(zip(torch.split(inputs, batch_size), torch.split(labels, batch_size), strict=True)), device)
