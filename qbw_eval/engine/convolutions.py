"""What is asked of whatever convolves integers: oneDNN on CPUs (`onednn`), Triton on GPUs (`triton_arithmetic`).

Both give the same bits, as long as no sum of the parts that oneDNN needs (`packing.Split`) reaches 2**24: sums of
integers are exact, become float32 with one rounding, and are multiplied, added to and rounded in the same order,
one rounding each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qbw_eval.engine.packing import Split
from qbw_eval.engine.passes import Passes
from qbw_eval.quantization.layers import ActivationGrid, QuantConv2d, QuantLinear

SplitOf = Callable[[int], Split | str]
"""A layer's integer weights at a bitwidth, in parts that convolve exactly; or why there are none."""


@dataclass(frozen=True, eq=False)
class Affine:
    """What turns sums of integers into values, or into multiples of a reader's unit; equal to itself only.

    Attributes:
        scale: (out,) float32 on the CPU.
        bias: (out,) float32 on the CPU.
    """

    scale: Tensor
    bias: Tensor


class LayerConvolution(Protocol):
    """The convolutions of one layer, at every bitwidth that has integers, with what follows them."""

    def __call__(
        self,
        images: Tensor,
        bits: int,
        affine: Affine,
        *,
        relu: bool,
        other: Tensor | None,
        to: ActivationGrid | None,
    ) -> Tensor:
        """Return max(conv(images) * scale + bias + other, 0), rounded to a grid where one is given.

        Args:
            images: (N, in, H, W) uint8 in channels_last.
            bits: the layer's.
            affine: in units of `to` where there is one and nothing is added.
            relu: whether the maximum is taken.
            other: (N, out, H', W') float32, or None.
            to: the grid of the layer that reads the result.

        Returns:
            (N, out, H', W') in channels_last, uint8 where rounded, else float32.
        """
        ...


class Arithmetic(Protocol):
    """A way to convolve integers.

    Attributes:
        passes: what lies between convolutions.
    """

    passes: Passes

    def why_not(self, devices: Sequence[torch.device]) -> str | None:
        """Return why it cannot be trusted with a network on these devices, as no whole sentence; None where it can."""
        ...

    def split(self, integers: Tensor, largest_activation: int, groups: int) -> Split | str:
        """Return integer weights (out, in / groups, kh, kw) in parts that it convolves exactly; or why it cannot."""
        ...

    def of_layer(self, layer: QuantConv2d | QuantLinear, split_of: SplitOf) -> LayerConvolution:
        """Return what convolves for a layer; `layer` is on the CPU."""
        ...
