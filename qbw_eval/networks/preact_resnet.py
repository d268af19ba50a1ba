"""The pre-activation networks of Any-Precision DNN (arXiv 1911.07346), with its checkpoints' keys.

Batch norm and activation stand before the convolution that they feed (He et al. 2016, arXiv 1603.05027). The first
convolution, shortcuts and the classifier are in full precision; every batch norm but resnet20q's `skip_bn` is
switchable. The authors switch a whole network at once; where layers differ, batch norms follow `FOLLOWED`.

    resnet20q (CIFAR-10): conv0, layers.{0..8} of two 3x3 convolutions, bn, mean over height and width, fc
    resnet50q (ImageNet): conv1 and max-pool, layer{1..4}.{i} of 1x1, 3x3, 1x1, bn, activation, mean, fc
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbw_eval.quantization.bitwidths import name_layers
from qbw_eval.quantization.layers import QuantActivation, QuantConv2d, Quantizers, SwitchableBatchNorm2d

FOLLOWED = "the convolution that it feeds; where it feeds none, the last one of its block (at the end: of all blocks)"
"""Whose bits a batch norm follows. With every layer at the same bits there is nothing to choose."""


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """How the blocks of one network make their convolutions."""

    quantizers: Quantizers

    def conv(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> QuantConv2d:
        return QuantConv2d(
            in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, quantizers=self.quantizers
        )


def _plain_conv(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; where the stride is not 1, the shortcut is a convolution of the activated input."""

    def __init__(self, in_channels: int, channels: int, stride: int, parts: _Parts) -> None:
        super().__init__()
        self.conv0 = parts.conv(in_channels, channels, 3, stride)
        self.conv1 = parts.conv(channels, channels, 3)
        self.bn0 = SwitchableBatchNorm2d(in_channels, self.conv0)
        self.bn1 = SwitchableBatchNorm2d(channels, self.conv1)
        self.skips = stride != 1
        if self.skips:
            self.act0 = QuantActivation(self.conv0)
            self.skip_conv = _plain_conv(in_channels, channels, 1, stride)
            self.skip_bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, channels, H/stride, W/stride)."""
        y = self.bn0(x)
        shortcut = self.skip_bn(self.skip_conv(self.act0(y))) if self.skips else x
        y = self.conv1(self.bn1(self.conv0(y)))  # a quantized convolution activates its own input
        return y + shortcut  # type: ignore[no-any-return]  # modules are untyped calls


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions; the shortcut reads the input as it is."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, parts: _Parts) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv0 = parts.conv(in_channels, channels, 1)
        self.conv1 = parts.conv(channels, channels, 3, stride)
        self.conv2 = parts.conv(channels, out_channels, 1)
        self.bn0 = SwitchableBatchNorm2d(in_channels, self.conv0)
        self.bn1 = SwitchableBatchNorm2d(channels, self.conv1)
        self.bn2 = SwitchableBatchNorm2d(channels, self.conv2)
        self.downsample = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else nn.Sequential(
                _plain_conv(in_channels, out_channels, 1, stride), SwitchableBatchNorm2d(out_channels, self.conv2)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, 4 * channels, H/stride, W/stride)."""
        y = self.conv2(self.bn2(self.conv1(self.bn1(self.conv0(self.bn0(x))))))
        return y + self.downsample(x)  # type: ignore[no-any-return]  # modules are untyped calls


class PreActResNet20(nn.Module):
    """resnet20q: three stages of three basic blocks; its authors' has 80 channels in the first."""

    def __init__(self, quantizers: Quantizers, *, width: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        parts = _Parts(quantizers=quantizers)
        self.conv0 = _plain_conv(in_channels, width, 3, 1)
        blocks, features = [], width
        for stage in range(3):
            for position in range(3):
                channels = width * 2**stage
                blocks.append(BasicBlock(features, channels, 2 if stage > 0 and position == 0 else 1, parts))
                features = channels
        self.layers = nn.ModuleList(blocks)
        self.bn = SwitchableBatchNorm2d(features, blocks[-1].conv1)
        self.fc = nn.Linear(features, num_classes)
        name_layers(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.conv0(x)
        for block in self.layers:
            x = block(x)
        x = self.bn(x).mean(dim=2).mean(dim=2)  # one after the other, as the authors round
        return self.fc(x)  # type: ignore[no-any-return]  # modules are untyped calls


class PreActResNet50(nn.Module):
    """resnet50q: four stages of 3, 4, 6 and 3 bottlenecks; its authors' has 64 channels in the first."""

    def __init__(self, quantizers: Quantizers, *, width: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        parts = _Parts(quantizers=quantizers)
        self.conv1 = _plain_conv(in_channels, width, 7, 2)
        features, last = width, None
        for stage, count in enumerate((3, 4, 6, 3)):
            blocks = []
            for position in range(count):
                channels = width * 2**stage
                blocks.append(Bottleneck(features, channels, 2 if stage > 0 and position == 0 else 1, parts))
                features = channels * Bottleneck.expansion
            last = blocks[-1].conv2
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        assert last is not None
        self.bn = SwitchableBatchNorm2d(features, last)
        self.act = QuantActivation(last)
        self.fc = nn.Linear(features, num_classes)
        name_layers(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to logits (N, num_classes)."""
        x = F.max_pool2d(self.conv1(x), 3, stride=2, padding=1)
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        x = F.adaptive_avg_pool2d(self.act(self.bn(x)), 1)
        return self.fc(torch.flatten(x, 1))  # type: ignore[no-any-return]  # modules are untyped calls


NETWORKS: dict[str, type[PreActResNet20] | type[PreActResNet50]] = {
    "resnet20q": PreActResNet20,
    "resnet50q": PreActResNet50,
}
