"""A split as batches on the device: moved once, met by every configuration."""

from collections.abc import Callable, Mapping, Sequence
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
    return _for_each_tensor(inputs, lambda tensor: tensor.to(device))


def first_sample(inputs: Any) -> Any:
    """Return a batch of the first sample of a batch."""
    return _for_each_tensor(inputs, lambda tensor: tensor[:1])


def _for_each_tensor(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(inputs, Mapping):
        return {key: _for_each_tensor(value, change) for key, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        changed = [_for_each_tensor(value, change) for value in inputs]
        return changed if isinstance(inputs, list) else tuple(changed)
    return change(inputs)


def batches_on(split: Split, batch_size: int, device: torch.device) -> Sequence[Batch]:
    """Return the split in order, in batches of `batch_size` (the last may be smaller), on `device`."""
    inputs, labels = split.inputs.to(device), split.labels.to(device)
    return [Batch(*pair) for pair in zip(torch.split(inputs, batch_size), torch.split(labels, batch_size), strict=True)]
