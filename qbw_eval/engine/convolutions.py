"""What is asked of whatever convolves integers: oneDNN or our own kernel on CPUs, Triton on GPUs (`..._arithmetic`).

All give the same bits, as long as no sum of the parts that oneDNN needs (`packing.Split`) reaches 2**24: sums of
integers are exact, become float32 with one rounding, and are multiplied, added to and rounded in the same order,
one rounding each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from qbw_eval.engine.packing import Halves, Split
from qbw_eval.engine.passes import Passes
from qbw_eval.quantization.layers import ActivationGrid, QuantConv2d, QuantLinear

SplitOf = Callable[[int], Split | Halves | str]
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
            images: (N, in, H, W) uint8 in channels_last; of more than 8 bits (N, 2 * in, H, W), the low bytes of all
                channels, then the high ones.
            bits: the layer's.
            affine: in units of `to` where there is one and nothing is added.
            relu: whether the maximum is taken.
            other: (N, out, H', W') float32, or None.
            to: the grid of the layer that reads the result.

        Returns:
            (N, out, H', W') in channels_last, uint8 where rounded, else float32; (N, 2 * out, H', W'), as images above,
            where rounded to levels of more than 8 bits.
        """
        ...


@runtime_checkable
class ConvolutionWithLevels(LayerConvolution, Protocol):
    """One that rounds a value for several readers as it makes it, without reading it from memory again."""

    @property
    def most_levels(self) -> int:
        """For how many readers at most."""
        ...

    def with_levels(
        self,
        images: Tensor,
        bits: int,
        affine: Affine,
        *,
        relu: bool,
        other: Tensor | None,
        to: Sequence[ActivationGrid],
        kept: bool,
    ) -> tuple[Tensor | None, ...]:
        """Return max(conv(images) * scale + bias + other, 0) in float32, then the same rounded to each grid, uint8.

        Args:
            images: (N, in, H, W) uint8 in channels_last.
            bits: the layer's.
            affine: in units of no grid.
            relu: whether the maximum is taken.
            other: (N, out, H', W') float32, or None.
            to: the grids of the layers that read the result, at most `most_levels`.
            kept: whether the float32 values are of use; else they may be None.
        """
        ...


@runtime_checkable
class ConvolutionOfFloats(ConvolutionWithLevels, Protocol):
    """One that also convolves what is not rounded to integers; then images are float32, in channels_last as well.

    Its sums are about as near to the exact ones as float32's, and nearer in windows of many values.
    """

    def takes_floats(self, bits: int) -> bool:
        """Return whether it does so at so many bits. It may set the layer's."""
        ...


class Arithmetic(Protocol):
    """A way to convolve integers.

    Attributes:
        passes: what lies between convolutions.
        most_bits: up to which layers can run in integers: 8, or 16 in halves.
    """

    passes: Passes

    @property
    def most_bits(self) -> int: ...  # noqa: D102 - it stands above

    def why_not(self, devices: Sequence[torch.device]) -> str | None:
        """Return why it cannot be trusted with a network on these devices, as no whole sentence; None where it can."""
        ...

    def split(self, integers: Tensor, largest_activation: int, groups: int) -> Split | Halves | str:
        """Return integer weights (out, in / groups, kh, kw) in parts that it convolves exactly; or why it cannot."""
        ...

    def of_layer(self, layer: QuantConv2d | QuantLinear, split_of: SplitOf) -> LayerConvolution:
        """Return what convolves for a layer; `layer` is on the CPU."""
        ...


# --- what kernels of our own are told -------------------------------------------------------------------------------


class Rounding(IntEnum):
    """What becomes of a value y, with a grid's `limits_of`, largest and unit."""

    NONE = 0  # y, float32
    SCALED = 1  # round(clamp(y, 0, largest)), where y is in units of the levels already
    CLIPPING = 2  # round(clamp(y, 0, unit) * largest / unit)
    STEP = 3  # round(clamp(y / unit, 0, largest))


class Window(NamedTuple):
    """What a convolution slides over its images; each is (vertical, horizontal)."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def over(self, height: int, width: int) -> tuple[int, int]:
        """Return how many places it takes, vertically and horizontally."""
        spans = zip((height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        down, across = ((size + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for size, kernel, step, pad, gap in spans)
        return down, across


def pads_with_zeros(layer: QuantConv2d | QuantLinear) -> bool:
    """Return whether so many zeros are all that a layer adds around its images; `window_of` knows no others."""
    if isinstance(layer, QuantLinear):
        return True
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def window_of(layer: QuantConv2d | QuantLinear) -> Window:
    """Return what a layer slides over its images; a linear one is a 1x1 convolution of 1x1 images."""
    if isinstance(layer, QuantLinear):
        return Window()
    assert not isinstance(layer.padding, str)
    return Window(*(_pair(values) for values in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)))


def _pair(values: Sequence[int]) -> tuple[int, int]:
    vertical, horizontal = values
    return vertical, horizontal


def limits_of(to: ActivationGrid | None) -> tuple[float, float]:
    """Return (largest, unit) of a grid, as `Rounding` needs them."""
    return (0.0, 0.0) if to is None else (float(to.largest), to.unit if to.clipping is None else to.clipping)


def rounding_for(to: ActivationGrid | None, *, added: bool) -> Rounding:
    """Return how a region's value is rounded to a grid; where nothing is added it is in units of the grid already."""
    if to is None:
        return Rounding.NONE
    if not added:
        return Rounding.SCALED
    return Rounding.STEP if to.clipping is None else Rounding.CLIPPING
