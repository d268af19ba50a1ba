"""Residual networks whose convolutions run at switchable bitwidths (He et al. 2015, arXiv 1512.03385).

CIFAR-style (section 4.2 of the paper): resnet8, 20, 32, 56 - a 3x3 stem and three stages of basic blocks.
torchvision-shaped (table 1): resnet18, 34 (basic blocks), 50, 101, 152 (bottlenecks, stride on the 3x3) - a 7x7 stem,
max-pool, four stages. Shortcuts that change shape are 1x1 convolutions; their keys are `shortcut.0` (convolution) and
`shortcut.1` (batch norm), as in the seed's checkpoints. The first convolution and the classifier stay in full precision
unless asked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbw_eval.quantization.bitwidths import name_layers
from qbw_eval.quantization.layers import QuantConv2d, QuantizedLayer, Quantizers, QuantLinear, SwitchableBatchNorm2d


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What distinguishes one residual network from another.

    Attributes:
        blocks: residual blocks per stage; the first block of every stage but the first halves height and width.
        bottleneck: 1x1, 3x3, 1x1 with four times the channels at the end, instead of two 3x3.
        stem: "cifar" (3x3) or "imagenet" (7x7 stride 2, then max-pool 3x3 stride 2).
    """

    blocks: tuple[int, ...]
    stem: Literal["cifar", "imagenet"]
    bottleneck: bool = False


SHAPES = {
    "resnet8": Shape(blocks=(1, 1, 1), stem="cifar"),
    "resnet20": Shape(blocks=(3, 3, 3), stem="cifar"),
    "resnet32": Shape(blocks=(5, 5, 5), stem="cifar"),
    "resnet56": Shape(blocks=(9, 9, 9), stem="cifar"),
    "resnet18": Shape(blocks=(2, 2, 2, 2), stem="imagenet"),
    "resnet34": Shape(blocks=(3, 4, 6, 3), stem="imagenet"),
    "resnet50": Shape(blocks=(3, 4, 6, 3), stem="imagenet", bottleneck=True),
    "resnet101": Shape(blocks=(3, 4, 23, 3), stem="imagenet", bottleneck=True),
    "resnet152": Shape(blocks=(3, 8, 36, 3), stem="imagenet", bottleneck=True),
}


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """How the blocks of one network make their convolutions and batch norms."""

    quantizers: Quantizers
    switchable_batch_norm: bool

    def conv(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> QuantConv2d:
        return QuantConv2d(
            in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, quantizers=self.quantizers
        )

    def norm(self, channels: int, source: nn.Module) -> nn.Module:
        """Return the batch norm of `source`'s output."""
        if self.switchable_batch_norm and isinstance(source, QuantizedLayer):
            return SwitchableBatchNorm2d(channels, source)
        return nn.BatchNorm2d(channels)

    def shortcut(self, in_channels: int, out_channels: int, stride: int) -> nn.Module:
        if stride == 1 and in_channels == out_channels:
            return nn.Identity()
        conv = self.conv(in_channels, out_channels, 1, stride)
        return nn.Sequential(conv, self.norm(out_channels, conv))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, parts: _Parts) -> None:
        super().__init__()
        self.conv1 = parts.conv(in_channels, channels, 3, stride)
        self.bn1 = parts.norm(channels, self.conv1)
        self.conv2 = parts.conv(channels, channels, 3)
        self.bn2 = parts.norm(channels, self.conv2)
        self.shortcut = parts.shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, channels, H/stride, W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, parts: _Parts) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = parts.conv(in_channels, channels, 1)
        self.bn1 = parts.norm(channels, self.conv1)
        self.conv2 = parts.conv(channels, channels, 3, stride)
        self.bn2 = parts.norm(channels, self.conv2)
        self.conv3 = parts.conv(channels, out_channels, 1)
        self.bn3 = parts.norm(out_channels, self.conv3)
        self.shortcut = parts.shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, 4 * channels, H/stride, W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.shortcut(x))


class ResNetFeatures(nn.Module):
    """A residual network without its classifier; `layer1` ... `layer4` are its stages.

    Its maker calls `initialize` when the whole network is made.

    Args:
        shape: one of `SHAPES`.
        quantizers: how its layers are quantized.
        width: channels of the first stage; each later stage has twice those of the one before.
        in_channels: channels of the input.
        switchable_batch_norm: one batch norm per bitwidth option behind every quantized convolution.
        quantize_first: quantize the stem's convolution too.

    Attributes:
        features: how many it makes of a sample.
    """

    def __init__(
        self,
        shape: Shape,
        quantizers: Quantizers,
        *,
        width: int,
        in_channels: int,
        switchable_batch_norm: bool = False,
        quantize_first: bool = False,
    ) -> None:
        super().__init__()
        parts = _Parts(quantizers=quantizers, switchable_batch_norm=switchable_batch_norm)
        kernel, stride = (3, 1) if shape.stem == "cifar" else (7, 2)
        self.conv1: nn.Module = (
            parts.conv(in_channels, width, kernel, stride)
            if quantize_first
            else nn.Conv2d(in_channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        )
        self.bn1 = parts.norm(width, self.conv1)
        self.maxpool = nn.Identity() if shape.stem == "cifar" else nn.MaxPool2d(3, stride=2, padding=1)
        block: Callable[[int, int, int, _Parts], nn.Module] = Bottleneck if shape.bottleneck else BasicBlock
        expansion = Bottleneck.expansion if shape.bottleneck else BasicBlock.expansion
        self.stages = [f"layer{index + 1}" for index in range(len(shape.blocks))]
        self.features = width
        for index, (name, count) in enumerate(zip(self.stages, shape.blocks, strict=True)):
            channels = width * 2**index
            blocks = []
            for position in range(count):
                blocks.append(block(self.features, channels, 2 if index > 0 and position == 0 else 1, parts))
                self.features = channels * expansion
            self.add_module(name, nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, features)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)


class ResNet(ResNetFeatures):
    """A residual network with its classifier, `fc`.

    Args:
        shape, quantizers, width, in_channels, switchable_batch_norm: as for `ResNetFeatures`.
        num_classes: outputs.
        quantize_first_and_last: quantize the stem's convolution and the classifier too.
    """

    def __init__(
        self,
        shape: Shape,
        quantizers: Quantizers,
        *,
        width: int,
        in_channels: int,
        num_classes: int,
        switchable_batch_norm: bool = False,
        quantize_first_and_last: bool = False,
    ) -> None:
        super().__init__(
            shape,
            quantizers,
            width=width,
            in_channels=in_channels,
            switchable_batch_norm=switchable_batch_norm,
            quantize_first=quantize_first_and_last,
        )
        self.fc: nn.Module = (
            QuantLinear(self.features, num_classes, quantizers=quantizers)
            if quantize_first_and_last
            else nn.Linear(self.features, num_classes)
        )
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to logits (N, num_classes)."""
        return self.fc(super().forward(x))  # type: ignore[no-any-return]  # modules are untyped calls


def initialize(network: nn.Module) -> None:
    """Give a new network's convolutions their first weights, and its quantized layers their names."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # He et al. 2015, arXiv 1502.01852, section 2.2
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, QuantizedLayer) and module.quantizers.weight == "lsqplus":
            module.initialize_weight_steps()  # those that it was made with suit other weights
    name_layers(network)
