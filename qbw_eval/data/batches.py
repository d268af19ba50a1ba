"""A split as batches on the device: moved once, met by every configuration."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qbw_eval.data.sources import Split


class Batch(NamedTuple):
    """Inputs (N, channels, height, width) and labels (N,) on one device."""

    inputs: Tensor
    labels: Tensor


def batches_on(split: Split, batch_size: int, device: torch.device) -> Sequence[Batch]:
    """Return the split in order, in batches of `batch_size` (the last may be smaller), on `device`."""
    inputs, labels = split.inputs.to(device), split.labels.to(device)
    return [Batch(*pair) for pair in zip(torch.split(inputs, batch_size), torch.split(labels, batch_size), strict=True)]
