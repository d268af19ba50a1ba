"""The networks, data and configurations that are measured. Weights are random: speed does not depend on them."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from qbw_eval.configurations import BitwidthConfiguration, sample
from qbw_eval.data.batches import Batch
from qbw_eval.layer_table import LayerTable
from qbw_eval.networks.resnet import SHAPES, ResNet, Shape
from qbw_eval.quantization.bitwidths import quantized_layers, trace_layers_on_meta
from qbw_eval.quantization.layers import QuantConv2d, Quantizers

_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One network on one batch.

    Attributes:
        network: its name, for people.
        shape, width: of the network.
        pixels: height and width of an image.
        images: in the batch.
        dataset_size: samples that an evaluation of such a network would have; decides what `auto` takes.
        options: bitwidths.
        count: random configurations.
    """

    network: str
    shape: Shape
    width: int
    pixels: int
    images: int
    dataset_size: int
    options: tuple[int, ...]
    count: int = 64

    @property
    def label(self) -> str:
        """What figures are called after."""
        return f"{self.network}, {self.images} x 3x{self.pixels}x{self.pixels}, {self.options_label}"

    @property
    def options_label(self) -> str:
        """The bitwidths, as in {2,4,8}."""
        return "{" + ",".join(map(str, self.options)) + "}"

    def model(self) -> ResNet:
        """Return the quantized network, in evaluation mode, with the same weights every time."""
        return self._network(Quantizers(options=self.options, weight="dorefa", activation="dorefa"))

    def plain_model(self) -> nn.Module:
        """Return the network as if it had never heard of quantization, in evaluation mode and channels_last."""
        plain = self._network(Quantizers(options=(32,), weight="none", activation="none"))
        for name, layer in quantized_layers(plain).items():
            assert isinstance(layer, QuantConv2d)
            parent, _, own_name = name.rpartition(".")
            setattr(plain.get_submodule(parent), own_name, _without_quantizers(layer))
        return plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # torch's hints know no memory_format alone

    def _network(self, quantizers: Quantizers) -> ResNet:
        torch.manual_seed(0)
        return ResNet(self.shape, quantizers, width=self.width, in_channels=3, num_classes=_CLASSES).eval()

    @cached_property
    def table(self) -> LayerTable:
        """The network's quantized layers in forward order."""
        return trace_layers_on_meta(self.model(), torch.zeros((1, 3, self.pixels, self.pixels), device="meta"))

    @property
    def work(self) -> int:
        """Multiply-accumulates of one configuration on a data set of realistic size."""
        return self.dataset_size * sum(layer.macs for layer in self.table.layers)

    @cached_property
    def batch(self) -> Batch:
        """Inputs and labels on the CPU."""
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(self.images, 3, self.pixels, self.pixels, generator=generator)
        return Batch(inputs, torch.randint(_CLASSES, (self.images,), generator=generator))

    def batch_on(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(self.batch.inputs.to(device), self.batch.labels.to(device))

    def loader(self) -> "DataLoader[tuple[torch.Tensor, ...]]":
        """Return the same batch as people load it, sample by sample."""
        return DataLoader(TensorDataset(*self.batch), batch_size=self.images)

    def random_configurations(self, count: int | None = None) -> list[BitwidthConfiguration]:
        """Return seeded random configurations, `self.count` unless told."""
        return sample("iid", len(self.table), self.options, self.count if count is None else count, seed=0)

    @property
    def uniform_configurations(self) -> list[BitwidthConfiguration]:
        """Every layer at the same bits, each option once; between them they use all weights."""
        return sample("uniform", len(self.table), self.options, len(self.options), seed=0)

    @property
    def one_at_a_time(self) -> list[BitwidthConfiguration]:
        """Every layer at the largest option, and each layer in turn at each other option."""
        *others, largest = self.options
        base = (largest,) * len(self.table)
        changed = [(*base[:layer], bits, *base[layer + 1 :]) for layer in range(len(base)) for bits in others]
        return [BitwidthConfiguration(bitwidths=bits, index=index) for index, bits in enumerate([base, *changed])]


def _without_quantizers(layer: QuantConv2d) -> nn.Conv2d:
    assert not isinstance(layer.padding, str)
    plain = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]  # pairs, which torch's hints give any length
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        bias=False,
    )
    plain.weight = nn.Parameter(layer.weight.detach().clone())
    return plain


def _variants(options: tuple[int, ...]) -> list[Workload]:
    cifar, imagenet = 10_000, 50_000  # what their validation sets hold
    return [
        Workload(
            network="ResNet-18",
            shape=Shape(blocks=(2, 2, 2, 2), stem="cifar"),
            width=64,
            pixels=32,
            images=64,
            dataset_size=cifar,
            options=options,
        ),
        Workload(
            network="ResNet-20",
            shape=SHAPES["resnet20"],
            width=16,
            pixels=32,
            images=64,
            dataset_size=cifar,
            options=options,
        ),
        Workload(
            network="ResNet-50",
            shape=SHAPES["resnet50"],
            width=64,
            pixels=224,
            images=4,
            dataset_size=imagenet,
            options=options,
        ),
    ]


LOW_BITS, HIGH_BITS = (2, 4, 8), (8, 16, 32)
WORKLOADS = [*_variants(LOW_BITS), *_variants(HIGH_BITS)]
"""The first is the one that most bounds are for, and the only one of `QUICK=1`."""

_RESNET18, _, _RESNET50 = _variants(LOW_BITS)
GPU_WORKLOADS = [replace(_RESNET18, images=1024), replace(_RESNET50, images=256)]
"""Those of a GPU, with batches that keep it busy; the first is the only one of `QUICK=1`."""
