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

import click
import torch
from torch import Tensor, nn

from qbw_eval.configurations import BitwidthConfiguration, sample
from qbw_eval.engine.choose import Engine
from qbw_eval.engine.integer import IntegerEngine
from qbw_eval.engine.passes import Passes, fastest_passes
from qbw_eval.engine.reference import ReferenceEngine
from qbw_eval.engine.tally import predictions_of
from qbw_eval.networks.resnet import ResNet, Shape
from qbw_eval.quantization.bitwidths import quantized_layers
from qbw_eval.quantization.layers import Quantizers

OPTIONS = (2, 4, 8)


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
    tell: Callable[[Changes], object] = lambda _changes: None,
) -> Changes:
    """Run every configuration three times, in float64, by the reference and in integers, and count.

    Args:
        network: in evaluation mode.
        layer_names: what a configuration's bits belong to.
        inputs: (N, C, H, W).
        configurations: which.
        passes: how the integer engine computes what lies between convolutions.
        batch_size: samples a forward pass.
        tell: told the counts so far after every batch.
    """
    truth = ReferenceEngine(copy.deepcopy(network).double(), layer_names)
    reference = ReferenceEngine(network, layer_names)
    integer = IntegerEngine(network, layer_names, inputs[:batch_size], 10**9, passes)
    changes = Changes(reference=[0] * len(configurations), integer=[0] * len(configurations))
    for batch in inputs.split(batch_size):
        expected = _classes(truth, batch.double(), configurations)
        for engine, counts in ((reference, changes.reference), (integer, changes.integer)):
            for position, classes in _classes(engine, batch, configurations).items():
                counts[position] += int((classes != expected[position]).sum())
        changes.samples += len(batch)
        tell(changes)
    return changes


def _classes(engine: Engine, batch: Tensor, configurations: Sequence[BitwidthConfiguration]) -> dict[int, Tensor]:
    with torch.inference_mode(), closing(engine.logits(batch, configurations)) as results:
        return {position: predictions_of(logits) for position, logits in results}


def random_network(width: int) -> nn.Module:
    """Return a ResNet-18 for 32x32 images with random weights, its batch norms fitted to random images at 8 bits."""
    torch.manual_seed(0)
    quantizers = Quantizers(options=OPTIONS, activation="pact", switchable=True)
    shape = Shape(blocks=(2, 2, 2, 2), stem="cifar")
    network = ResNet(shape, quantizers, width=width, in_channels=3, num_classes=10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over what it sees
    with torch.no_grad():
        network.train()(torch.randn(64, 3, 32, 32))
        # PACT starts at 8, where a normalized activation never gets: at 2 bits all would be 0.
        for layer in quantized_layers(network).values():
            layer.alpha.data.fill_(3.0)  # type: ignore[union-attr, operator]  # a parameter
    return network.eval()


@click.command()
@click.option("--images", default=2000, show_default=True)
@click.option("--configurations", "count", default=20, show_default=True)
@click.option("--width", default=64, show_default=True, help="Channels of the first stage.")
def main(images: int, count: int, width: int) -> None:
    """Count the classes that the reference and the integer engine see differently than float64."""
    network = random_network(width)
    names = list(quantized_layers(network))
    configurations = sample("iid", len(names), OPTIONS, count, seed=0)
    inputs = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    changes = class_changes(
        network, names, inputs, configurations, fastest_passes(), tell=lambda so_far: print(so_far, file=sys.stderr)
    )
    print(changes)
    print(f"by configuration: reference {changes.reference}, integer {changes.integer}")


if __name__ == "__main__":
    main()
