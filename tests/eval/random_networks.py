"""Random small networks for the engines' tests, and the slow twin of every engine: a loop over configurations.

Hypothesis draws a description; weights, batch norms, clipping values and steps come from a seed. Every quantized layer
is ours unless a test says otherwise.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.networks.multimodal_resnet import MultimodalResNet
from qbw_eval.networks.resnet import ResNet, Shape
from qbw_eval.quantization.layers import QuantConv2d, QuantizedLayer, Quantizers, QuantLinear, SwitchableBatchNorm2d


def configurations_of(*bits: Sequence[int]) -> list[BitwidthConfiguration]:
    return [BitwidthConfiguration(bitwidths=tuple(one), index=index) for index, one in enumerate(bits)]


def naive_logits(
    network: nn.Module, layer_names: Sequence[str], inputs: Any, configurations: Sequence[BitwidthConfiguration]
) -> list[Tensor]:
    """Return the logits of every configuration: a copy of the network, its bits set by hand, its whole forward."""
    network = copy.deepcopy(network).eval()
    found = []
    with torch.no_grad():
        for configuration in configurations:
            for name, bits in zip(layer_names, configuration.bitwidths, strict=True):
                network.get_submodule(name).curr_bitwidth = bits  # type: ignore[assignment]  # a plain integer
            found.append(network(copy.deepcopy(inputs)))
    return found


def layer_names_of(network: nn.Module) -> list[str]:
    """Return the quantized layers in the order of registration, which is that of use in the networks below."""
    return [name for name, module in network.named_modules() if hasattr(module, "curr_bitwidth")]


def randomize(network: nn.Module, seed: int) -> None:
    """Give everything that is learned a random value that keeps activations alive; batch norms have negative scales."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * (high - low) + low)

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            uniform(module.running_mean, -0.3, 0.3)
            uniform(module.running_var, 0.2, 2)
            uniform(module.weight, -0.6, 1.5)
            uniform(module.bias, -0.3, 0.6)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            uniform(module.weight, -1, 1)
            if module.bias is not None:
                uniform(module.bias, -0.5, 0.5)
        if isinstance(module, QuantizedLayer):
            for name, parameter in module.named_parameters():
                if "alpha" in name:
                    uniform(parameter, 0.6, 3)
                if "step_size" in name:
                    uniform(parameter, 0.01, 0.2)
                if name.endswith(".zp"):
                    uniform(parameter, -0.5, 2)


# --- networks that look like those people have ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Make:
    """How the parts of one network are made."""

    quantizers: Quantizers
    switchable_batch_norm: bool
    kernel: int
    groups: int

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> QuantConv2d:
        return QuantConv2d(
            *(inputs, outputs, kernel),
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=not self.switchable_batch_norm,
            quantizers=self.quantizers,
        )

    def norm(self, channels: int, source: QuantizedLayer) -> nn.Module:
        return SwitchableBatchNorm2d(channels, source) if self.switchable_batch_norm else nn.BatchNorm2d(channels)


class Residual(nn.Module):
    """torchvision's habits: one in-place ReLU for all, `out += identity`."""

    def __init__(self, make: Make, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = make.conv(inputs, outputs, make.kernel, stride, make.groups)
        self.bn1 = make.norm(outputs, self.conv1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = make.conv(outputs, outputs, 3)
        self.bn2 = make.norm(outputs, self.conv2)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = make.conv(inputs, outputs, 1, stride)
            self.shortcut = nn.Sequential(conv, make.norm(outputs, conv))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)  # type: ignore[no-any-return]  # modules are untyped calls


class PreActivation(nn.Module):
    """Batch norm and ReLU before each convolution; the first result is read twice; nothing follows the sum."""

    def __init__(self, make: Make, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = make.conv(inputs, outputs, make.kernel, stride, make.groups)
        self.bn2 = make.norm(outputs, self.conv1)
        self.conv2 = make.conv(outputs, outputs, 3)
        self.skip = make.conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        out = self.conv2(torch.relu(self.bn2(self.conv1(activated))))
        return self.skip(activated).add(out)  # type: ignore[no-any-return]  # modules are untyped calls


class Chain(nn.Module):
    """Layer behind layer, with nothing in between, with a ReLU, with a sum whose other part has fewer dimensions."""

    def __init__(self, make: Make, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = make.conv(inputs, outputs, 1, stride)
        self.conv2 = make.conv(outputs, outputs, make.kernel, 1, make.groups)
        self.conv3 = make.conv(outputs, outputs, 3)
        self.offset = nn.Parameter(torch.linspace(-0.2, 0.4, outputs)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.conv1(x)).relu()
        return (self.conv3(out) + self.offset).clamp_(min=-1)  # type: ignore[no-any-return]  # modules are untyped calls


BLOCKS = {"residual": Residual, "pre-activation": PreActivation, "chain": Chain}


class OneBranch(nn.Module):
    """A full precision stem, random blocks, a quantized hidden layer and a full precision classifier."""

    def __init__(self, make: Make, kinds: Sequence[str], widths: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(
            *(
                BLOCKS[kind](make, inputs, outputs, stride)
                for kind, inputs, outputs, stride in zip(kinds, [widths[0], *widths], widths, strides, strict=False)
            )
        )
        self.hidden = QuantLinear(widths[len(kinds) - 1], 6, quantizers=make.quantizers)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        return self.fc(F.relu(self.hidden(x.mean(dim=(2, 3)))))  # type: ignore[no-any-return]  # modules are untyped calls


class TwoBranches(nn.Module):
    """A branch per sensor; the input is {"left": {"image": tensor}, "right": [tensor, tensor]}."""

    def __init__(self, left: OneBranch, right: OneBranch, quantizers: Quantizers) -> None:
        super().__init__()
        self.left, self.right = left, right
        self.fuse = QuantLinear(5, 5, quantizers=quantizers)

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        left = self.left(inputs["left"]["image"])
        right = self.right(inputs["right"][0]) * inputs["right"][1]
        return self.fuse(torch.stack([left, right]).mean(dim=0))  # type: ignore[no-any-return]  # modules are untyped calls


# --- strategies -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and a batch for it."""

    network: nn.Module
    inputs: Any
    layer_names: list[str]
    options: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Case({self.network}, options={self.options})"

    def __len__(self) -> int:
        return len(first_tensor(self.inputs))


def first_tensor(inputs: Any) -> Tensor:
    while not isinstance(inputs, Tensor):
        inputs = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0]
    return inputs


def part_of(inputs: Any, samples: slice) -> Any:
    """Return some samples of a batch."""
    if isinstance(inputs, dict):
        return {key: part_of(value, samples) for key, value in inputs.items()}
    if isinstance(inputs, list):
        return [part_of(value, samples) for value in inputs]
    return inputs[samples]


@st.composite
def quantizers(draw: st.DrawFn, zero_points: bool) -> Quantizers:
    """Draw quantizers; LSQ+ only where zero points are welcome."""
    lsq_plus = ["lsqplus"] * zero_points
    weight = draw(st.sampled_from(["dorefa", "dorefa_scaled", "lsq", *lsq_plus]))
    activation = draw(st.sampled_from(["dorefa", "pact", "lsq", *lsq_plus]))
    low = 2 if "lsq" in (weight, activation) else 1
    options = tuple(sorted(draw(st.sets(st.sampled_from([low, 2, 3, 4, 6, 8, 16]), min_size=2, max_size=4))))
    return Quantizers(
        options=options,
        weight=weight,
        activation=activation,
        switchable=draw(st.booleans()),
        weight_normalization=draw(st.booleans()),
    )


@st.composite
def one_branches(draw: st.DrawFn, settings: Quantizers) -> OneBranch:
    make = Make(
        quantizers=settings,
        switchable_batch_norm=draw(st.booleans()),
        kernel=draw(st.sampled_from([1, 3, 5])),
        groups=draw(st.sampled_from([1, 2, 4])),
    )
    kinds = draw(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=3))
    several = {"min_size": len(kinds), "max_size": len(kinds)}
    widths = draw(st.lists(st.sampled_from([4, 8]), **several))
    strides = draw(st.lists(st.sampled_from([1, 1, 2]), **several))
    return OneBranch(make, kinds, widths, strides)


@st.composite
def residual_networks(draw: st.DrawFn, settings: Quantizers) -> ResNet:
    """Draw one of ours: basic blocks and bottlenecks, both stems."""
    stages = draw(st.integers(1, 2))
    shape = Shape(
        blocks=tuple(draw(st.lists(st.integers(1, 2), min_size=stages, max_size=stages))),
        stem=draw(st.sampled_from(["cifar", "imagenet"])),
        bottleneck=draw(st.booleans()),
    )
    return ResNet(
        shape,
        settings,
        width=4,
        in_channels=3,
        num_classes=5,
        switchable_batch_norm=draw(st.booleans()),
        quantize_first_and_last=draw(st.booleans()),
    )


SENSOR_CHANNELS = st.dictionaries(
    st.sampled_from(["left", "right"]),
    st.dictionaries(st.sampled_from(["audio", "seismic"]), st.integers(1, 3), min_size=1),
    min_size=1,
)
"""Location -> modality -> channels."""


@st.composite
def cases(draw: st.DrawFn, zero_points: bool = True) -> Case:
    settings = draw(quantizers(zero_points))
    kind = draw(st.sampled_from(["one branch", "two branches", "resnet", "sensors"]))
    network: nn.Module
    sensors = draw(SENSOR_CHANNELS) if kind == "sensors" else {}
    if kind == "two branches":
        network = TwoBranches(draw(one_branches(settings)), draw(one_branches(settings)), settings)
    elif kind == "one branch":
        network = draw(one_branches(settings))
    elif kind == "sensors":
        network = MultimodalResNet("resnet18", settings, in_channels=sensors, fc_dim=3, num_classes=5, width=2)
    else:
        network = draw(residual_networks(settings))
    seed = draw(st.integers(0, 2**16))
    randomize(network, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    size = draw(st.integers(1, 5))

    def images(channels: int = 3) -> Tensor:
        height, width = draw(st.tuples(st.integers(5, 9), st.integers(5, 9)))
        return torch.randn(size, channels, height, width, generator=generator)

    inputs: Any
    if kind == "two branches":
        inputs = {"left": {"image": images()}, "right": [images(), torch.rand(size, 5, generator=generator)]}
    elif kind == "sensors":
        inputs = {
            location: {modality: images(channels) for modality, channels in modalities.items()}
            for location, modalities in sensors.items()
        }
    else:
        inputs = images()
    names = layer_names_of(network)
    return Case(network=network.eval(), inputs=inputs, layer_names=names, options=settings.options)


@st.composite
def random_configurations(draw: st.DrawFn, case: Case, max_size: int = 6) -> list[BitwidthConfiguration]:
    """Draw configurations of a case's options and 32 bits; most share bits with another, some are another once more."""
    bits = st.sampled_from([*case.options, 32])
    count = len(case.layer_names)
    whole = st.lists(bits, min_size=count, max_size=count)
    found = [draw(whole)]
    for _ in range(draw(st.integers(0, max_size - 1))):
        shared = draw(st.integers(0, count))  # so many layers have the bits of an earlier configuration
        found.append([*draw(st.sampled_from(found))[:shared], *draw(whole)[shared:]])
    return configurations_of(*draw(st.permutations(found)))
