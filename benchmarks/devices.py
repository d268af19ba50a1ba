"""Does a network see the same classes in integers on a GPU as on the CPU? Count those that differ."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.agreement import classes_of
from benchmarks.figures import Figure
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.configurations import BitwidthConfiguration, sample
from qbw_eval.data.sources import load_split
from qbw_eval.engine.choose import Engine
from qbw_eval.engine.integer import IntegerEngine
from qbw_eval.networks.build import load_network
from qbw_eval.quantization.bitwidths import common_options, quantized_layers

IMAGES, CONFIGURATIONS = 10_000, 64
_BATCH = 1000
_PROBED_IMAGES = 2
_CACHE = 10**9
_NOISE = 0.1


@dataclass(kw_only=True)
class Differences:
    """Classes that the CPU and another device see differently.

    Attributes:
        samples: images seen, by every configuration.
        of_configuration: how many of them differ, per configuration.
    """

    samples: int = 0
    of_configuration: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        count = len(self.of_configuration)
        return f"{sum(self.of_configuration)} of {self.samples * count} classes differ ({count} configurations)"

    def figure(self, label: str, *, at_most: float | None) -> Figure:
        """Return how many of 100,000 differ."""
        return Figure(
            figure=f"classes that differ between CPU and GPU, {label}",
            values=[100_000 * sum(self.of_configuration) / (self.samples * len(self.of_configuration))],
            unit="in 100,000",
            at_most=at_most,
        )


def class_differences(
    here: Engine,
    there: Engine,
    images: Tensor,
    configurations: Sequence[BitwidthConfiguration],
    device: torch.device,
    *,
    batch_size: int = _BATCH,
) -> Differences:
    """Run every configuration on the CPU and on a device, and count.

    Args:
        here: the engine on the CPU.
        there: that of the same network on the device.
        images: (N, C, H, W) on the CPU.
        configurations: which.
        device: the device.
        batch_size: images a forward pass.
    """
    differences = Differences(of_configuration=[0] * len(configurations))
    for batch in torch.split(images, batch_size):
        expected = classes_of(here, batch, configurations)
        for position, classes in classes_of(there, batch.to(device), configurations).items():
            differences.of_configuration[position] += int((classes.cpu() != expected[position]).sum())
        differences.samples += len(batch)
    return differences


IntegersOn = Callable[[nn.Module, Sequence[str], Tensor, Sequence[int]], Engine]
"""(network, layer names, a few samples, options) -> the engine that computes with integers where these are."""


def demo_differences(
    path: Path,
    device: torch.device,
    integers_on: IntegersOn,
    *,
    images: int = IMAGES,
    count: int = CONFIGURATIONS,
) -> Differences:
    """Count for the demo's network in integers and varied digits that it was not trained on.

    Args:
        path: a checkpoint of the demo.
        device: which.
        integers_on: makes the engine there.
        images: how many.
        count: random configurations.

    Raises:
        DeclinedError: the CPU is none for integers.
    """
    checkpoint = read_checkpoint(path)
    network = load_network(checkpoint.experiment, checkpoint.state, "the demo's network")
    digits = varied(load_split(checkpoint.experiment.data, "validation").inputs, images, seed=0)
    names, options = list(quantized_layers(network)), common_options(network)
    here = IntegerEngine(network, names, digits[:_PROBED_IMAGES], options, _CACHE)
    moved, probed = copy.deepcopy(network).to(device), digits[:_PROBED_IMAGES].to(device)
    there = integers_on(moved, names, probed, options)
    configurations = sample("iid", len(names), options, count, seed=0)
    return class_differences(here, there, digits, configurations, device)


def varied(images: Tensor, count: int, seed: int) -> Tensor:
    """Return (count, C, H, W) images drawn from (N, C, H, W), shifted by at most a pixel and with a little noise.

    What a shift uncovers repeats the border.
    """
    generator = torch.Generator().manual_seed(seed)
    *_, height, width = images.shape
    drawn = torch.randint(len(images), (count,), generator=generator)
    shifts = torch.randint(3, (count, 2), generator=generator)
    noise = torch.randn(count, *images.shape[1:], generator=generator)
    rows, columns = (shifts[:, axis, None] + torch.arange(size) for axis, size in enumerate((height, width)))
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")[drawn]
    picked = torch.arange(count)[:, None, None]
    shifted = padded.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return (shifted + _NOISE * noise).contiguous()
