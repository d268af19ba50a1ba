"""What people run today, written for comparison: everything again for every configuration.

As in the training loops that QBW's users have: set the bits, go through the DataLoader, let every layer fake-quantize
its weights and its input in every forward, fetch one number a batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.quantization.bitwidths import set_bitwidths


def peoples_loop(
    model: nn.Module,
    loader: DataLoader[tuple[Tensor, ...]],
    layer_names: Sequence[str],
    configurations: Sequence[BitwidthConfiguration],
    device: torch.device,
) -> list[int]:
    """Return how many samples each configuration gets right."""
    model.eval()
    scores = []
    for configuration in configurations:
        set_bitwidths(model, dict(zip(layer_names, configuration.bitwidths, strict=True)))
        correct = 0
        with torch.no_grad():
            for batch, targets in loader:
                inputs, labels = batch.to(device), targets.to(device)
                correct += int((model(inputs).argmax(1) == labels).sum().item())
        scores.append(correct)
    return scores
