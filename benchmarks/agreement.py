"""Does an engine stray from a float64 forward more often than the reference does? Count classes that change.

python -m benchmarks.agreement [--images 2000] [--configurations 20] [--width 64]

In a random network at few bits one activation that rounds the other way changes many later ones, so float32 itself
differs from float64 on many samples. The fair question is whether integers do so on more of them.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbw_eval.configurations import BitwidthConfiguration, sample
from qbw_eval.engine.choose import Engine
from qbw_eval.engine.compiled_passes import fastest_passes
from qbw_eval.engine.convolutions import Arithmetic
from qbw_eval.engine.incremental import IncrementalEngine
from qbw_eval.engine.integer import IntegerEngine
from qbw_eval.engine.passes import Passes
from qbw_eval.engine.tally import predictions_of
from qbw_eval.networks.resnet import ResNet, Shape
from qbw_eval.quantization.bitwidths import common_options, quantized_layers
from qbw_eval.quantization.layers import QuantConv2d, Quantizers

OPTIONS = (2, 4, 8)
_CACHE = 10**9


@dataclass(kw_only=True)
class Changes:
    """Per configuration: samples whose class is not that of the float64 forward.

    Attributes:
        samples: seen so far, the same for every configuration.
        reference, integer: who changed how many.
    """

    samples: int = 0
    reference: list[int] = field(default_factory=list)
    integer: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        of = self.samples * len(self.reference)
        return (
            f"of {of} classes ({len(self.reference)} configurations x {self.samples} samples) other than float64's: "
            f"reference {sum(self.reference)}, integer {sum(self.integer)}"
        )


def class_changes(
    network: nn.Module,
    layer_names: Sequence[str],
    inputs: Tensor,
    configurations: Sequence[BitwidthConfiguration],
    passes: Passes,
    *,
    batch_size: int = 100,
    arithmetic: Arithmetic | None = None,
    tell: Callable[[Changes], object] = lambda _changes: None,
) -> Changes:
    """Run every configuration three times, in float64, by the reference and in integers, and count.

    The incremental engine stands for the reference: the same bits (tests/eval/test_incremental.py), sooner.

    Args:
        network: in evaluation mode.
        layer_names: what a configuration's bits belong to.
        inputs: (N, C, H, W).
        configurations: which.
        passes: how the integer engine computes what lies between convolutions.
        batch_size: samples a forward pass.
        arithmetic: what convolves integers, with passes of its own; oneDNN if left out.
        tell: told the counts so far after every batch.
    """
    truth = IncrementalEngine(copy.deepcopy(network).double(), layer_names, inputs, _CACHE)
    reference = IncrementalEngine(network, layer_names, inputs, _CACHE)
    integer = IntegerEngine(
        *(network, layer_names, inputs[:batch_size], common_options(network), _CACHE, passes), arithmetic=arithmetic
    )
    changes = Changes(reference=[0] * len(configurations), integer=[0] * len(configurations))
    for batch in torch.split(inputs, batch_size):
        expected = classes_of(truth, batch.double(), configurations)
        for engine, counts in ((reference, changes.reference), (integer, changes.integer)):
            for position, classes in classes_of(engine, batch, configurations).items():
                counts[position] += int((classes != expected[position]).sum())
        changes.samples += len(batch)
        tell(changes)
    return changes


def classes_of(engine: Engine, batch: Tensor, configurations: Sequence[BitwidthConfiguration]) -> dict[int, Tensor]:
    """Return position -> (N,) classes, where the batch is."""
    with torch.inference_mode(), closing(engine.logits(batch, configurations)) as results:
        return {position: predictions_of(logits) for position, logits in results}


def random_network(width: int, stem: Literal["cifar", "imagenet"] = "cifar") -> nn.Module:
    """Return a ResNet-18 for 32x32 images with random weights that tells random images apart.

    Batch norms are fitted to such images at 8 bits, and so is the classifier's bias: no class is always the largest.
    """
    torch.manual_seed(0)
    quantizers = Quantizers(options=OPTIONS, activation="pact", switchable=True)
    shape = Shape(blocks=(2, 2, 2, 2), stem=stem)
    network = ResNet(shape, quantizers, width=width, in_channels=3, num_classes=10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over what it sees
        if isinstance(module, QuantConv2d):
            module.alpha.data.fill_(3.0)  # it starts at 8, where normalized activations never get: at 2 bits all are 0
    images = random_images(64, seed=0)
    with torch.no_grad():
        network.train()(images)
        network.eval()
        assert isinstance(network.fc, nn.Linear)
        network.fc.bias.sub_(network(images).mean(dim=0))
    return network


def random_images(count: int, seed: int) -> Tensor:
    """Return (count, 3, 32, 32) images of smooth blobs with noise."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.randn(count, 3, 4, 4, generator=generator)
    noise = torch.randn(count, 3, 32, 32, generator=generator)
    return F.interpolate(blobs, size=32, mode="bilinear") + 0.3 * noise


@click.command()
@click.option("--images", default=2000, show_default=True)
@click.option("--configurations", "count", default=20, show_default=True)
@click.option("--width", default=64, show_default=True, help="Channels of the first stage.")
@click.option("--stem", type=click.Choice(["cifar", "imagenet"]), default="cifar", show_default=True)
def main(images: int, count: int, width: int, stem: Literal["cifar", "imagenet"]) -> None:
    """Count the classes that the reference and the integer engine see differently than float64."""
    network = random_network(width, stem)
    names = list(quantized_layers(network))
    configurations = sample("iid", len(names), OPTIONS, count, seed=0)
    inputs = random_images(images, seed=1)
    changes = class_changes(
        network, names, inputs, configurations, fastest_passes(), tell=lambda so_far: print(so_far, file=sys.stderr)
    )
    print(changes)
    print(f"by configuration: reference {changes.reference}, integer {changes.integer}")


if __name__ == "__main__":
    main()
