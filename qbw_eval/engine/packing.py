"""Weights in parts that instructions for 8 or 16 bits multiply; quantized ones exactly, or not at all.

A k-bit layer is a convolution of integers: activations 0..n (n = 2**k - 1), weights whole multiples of one value. It is
exact in int32 as long as no sum overflows, which is checked here and not hoped for:

- the sum over a window: n * max|w| * window < 2**31;
- on CPUs without VNNI or AMX, oneDNN multiplies with `vpmaddubsw`, which adds *pairs* of products in 16 bits and
  saturates: 2 * n * max|w| < 2**15.

Weights that are too wide are split into two convolutions that run as one with more output channels, w = factor * high
+ low. With VNNI, 8-bit DoReFa weights (odd, -255..255) are 2 * m + 1 with m in int8, and the low part, being the same
for all outputs, is one channel of ones (sixteen: oneDNN works in blocks). Without, w = 16 * a + b with small a and b.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

_BLOCK = 16
"""Output channels that oneDNN computes together; fewer take as long."""

_NEAR = 1e-4
"""How far from a whole number a weight over its unit may be: float32 rounding at 8 bits leaves some 3e-5.

Beyond, by as much more as the largest weight is larger than those of 8 bits: 0.026 at 16 bits.
"""


@dataclass(frozen=True)
class Split:
    """Integer weights w = factor * high + low, each part in the range that its convolution is exact for.

    Attributes:
        parts: (outputs + low outputs, in, kh, kw) int8: high, then low.
        outputs: how many of them are high.
        low_outputs: outputs, one each; 1, the same for all; or 0, no low part.
        factor: 1 where there is no low part.
    """

    parts: Tensor
    outputs: int
    low_outputs: int
    factor: int


@dataclass(frozen=True)
class Halves:
    """Integer weights of up to 17 bits, w = factor * (256 * high + low) + factor - 1, with bytes for both.

    Attributes:
        high: (out, in, kh, kw) int8.
        low: (out, in, kh, kw) uint8.
        factor: 1; or 2, where all weights are odd.
    """

    high: Tensor
    low: Tensor
    factor: int


@dataclass(frozen=True)
class Thirds:
    """Float32 weights as sums of three bfloat16 numbers, w = high + middle + low: each is the nearest to what is left.

    Attributes:
        high, middle, low: (out, in, kh, kw) bfloat16.
    """

    high: Tensor
    middle: Tensor
    low: Tensor


def thirds_of(weights: Tensor) -> Thirds | None:
    """Return float32 weights (out, in, kh, kw) in thirds; None where some are not finite, or too large for them."""
    high = weights.bfloat16()
    rest = weights - high.float()
    middle = rest.bfloat16()
    low = (rest - middle.float()).bfloat16()
    return Thirds(high, middle, low) if bool(high.isfinite().all()) else None


def integers_of(weight: Tensor, unit: float) -> Tensor | None:
    """Return quantized weights over their unit as int32; None where they are no whole multiples of it."""
    multiples = weight.double() / unit
    integers = multiples.round()
    near = _NEAR * max(1.0, float(integers.abs().max()) / 255)
    if not bool((multiples - integers).abs().max() < near):  # also where anything is NaN
        return None
    return integers.int()


def split_weights(integers: Tensor, largest_activation: int, *, pairs_saturate: bool, groups: int = 1) -> Split | None:
    """Return integer weights in parts that convolve exactly with activations 0..largest_activation.

    Args:
        integers: (out, in / groups, kh, kw).
        largest_activation: at most 255.
        pairs_saturate: whether the CPU adds pairs of products in 16 bits.
        groups: of the convolution; only undivided ones are split.

    Returns:
        None where no exact way is known.
    """
    window = integers[0].numel()
    magnitude = int(integers.abs().max())
    limit = min(127, (2**15 - 1) // (2 * largest_activation)) if pairs_saturate else 127
    if largest_activation > 255 or largest_activation * magnitude * window >= 2**31:
        return None
    if -limit - (not pairs_saturate) <= int(integers.min()) and int(integers.max()) <= limit:
        return Split(integers.to(torch.int8), len(integers), 0, 1)
    if groups != 1:
        return None
    if not pairs_saturate and bool((integers % 2 == 1).all()) and magnitude <= 255:
        high, low = (integers - 1) // 2, torch.ones_like(integers[:1]).expand(_BLOCK, *integers.shape[1:])
        return Split(torch.cat([high, low]).to(torch.int8), len(integers), 1, 2)
    high = (integers + 8).div(16, rounding_mode="floor")
    low = integers - 16 * high
    if max(int(high.abs().max()), int(low.abs().max())) > limit:
        return None
    return Split(torch.cat([high, low]).to(torch.int8), len(integers), len(integers), 16)


def halve_weights(integers: Tensor, largest_activation: int) -> Halves | None:
    """Return integer weights in halves that convolve exactly with those of activations 0..largest_activation.

    The sum of what both high halves make of the low ones of the other factor is the largest that must fit into int32:
    255 * (255 + 127) a product.

    Args:
        integers: (out, in, kh, kw).
        largest_activation: at most 65,535.

    Returns:
        None where a sum might not fit, or a weight does not.
    """
    factor = 2 if bool((integers % 2 == 1).all()) else 1
    m = (integers - factor + 1) // factor
    if largest_activation >= 2**16 or 255 * (255 + 127) * integers[0].numel() >= 2**31:
        return None
    if int(m.min()) < -(2**15) or int(m.max()) >= 2**15:
        return None
    return Halves((m >> 8).to(torch.int8), (m & 255).to(torch.uint8), factor)


@dataclass(frozen=True)
class PackedConvolution:
    """Integer weights in oneDNN's own layout, ready to run.

    Attributes:
        split: what was packed.
        size: bytes.
    """

    split: Split
    size: int
    _weight: Tensor
    _ones: Tensor
    _zeros: Tensor
    _geometry: tuple[list[int], list[int], list[int], int]
    _every: tuple[int, int]
    """Of how many rows and columns of the images one is read at all; the others are left out before."""

    def __call__(self, x: Tensor, scale: Tensor, bias: Tensor | None, *, relu: bool = False) -> Tensor:
        """Return conv(x) * scale + bias, (N, out, H', W') float32 in channels_last.

        Args:
            x: (N, in, H, W) uint8 in channels_last.
            scale: (out,) float32.
            bias: (out,) float32.
            relu: replace what is negative by zero.
        """
        return self._run(x, scale, bias, torch.float32, "relu" if relu else "none", [])

    def accumulators(self, x: Tensor) -> Tensor:
        """Return what every part convolves to, (N, parts, H', W') float32; whole numbers, rounded above 2**24."""
        return self._run(x, self._ones, None, torch.float32, "none", [])

    def levels(self, x: Tensor, scale: Tensor, bias: Tensor, largest: int) -> Tensor:
        """Return round(clamp(conv(x) * scale + bias, 0, largest)) as uint8, half to even."""
        return self._run(x, scale, bias, torch.uint8, "hardtanh", [0.0, float(largest)])

    def _run(
        self, x: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype, after: str, limits: list[float]
    ) -> Tensor:
        stride, padding, dilation, groups = self._geometry
        if self._every != (1, 1):
            x = x[:, :, :: self._every[0], :: self._every[1]].contiguous(memory_format=torch.channels_last)
        result: Tensor = torch.ops.onednn.qconv2d_pointwise.default(
            *(x, 1.0, 0, self._weight, scale, self._zeros, bias, stride, padding, dilation, groups),
            *(1.0, 0, dtype, after, limits, ""),
        )
        return result


def pack(split: Split, x_shape: Sequence[int], geometry: nn.Conv2d | None = None) -> PackedConvolution:
    """Return weights in the layout that suits inputs of `x_shape` (N, C, H, W) best; other N work as well.

    Args:
        split: the weights.
        x_shape: of the inputs to come.
        geometry: whose stride, zero padding (in numbers), dilation and groups to take; plain 1 and 0 for None.
    """
    stride, padding, dilation, groups = [1, 1], [0, 0], [1, 1], 1
    if geometry is not None:
        stride, padding, dilation = list(geometry.stride), list(geometry.padding), list(geometry.dilation)  # type: ignore[arg-type]  # numbers, says the docstring
        groups = geometry.groups
    every = (1, 1)
    if split.parts.shape[2:] == (1, 1) and padding == [0, 0]:
        # oneDNN would leave out the same pixels itself, into memory of its threads' own. With two threads and 8 or 24
        # channels on AVX2, sums are wrong now and then; uxlfoundation/oneDNN#6035 is about that memory being too small.
        every, stride = (stride[0], stride[1]), [1, 1]
        n, c, height, width = x_shape
        x_shape = n, c, -(-height // every[0]), -(-width // every[1])
    ones, zeros = torch.ones(len(split.parts)), torch.zeros(len(split.parts), dtype=torch.int64)
    weight = torch.ops.onednn.qconv_prepack(split.parts, ones, 1.0, 0, stride, padding, dilation, groups, list(x_shape))
    geometry_now = (stride, padding, dilation, groups)
    return PackedConvolution(split, split.parts.nbytes, weight, ones, zeros, geometry_now, every)


@cache
def why_not_here() -> str | None:
    """Return why int8 convolutions cannot be trusted on this machine; None where they can."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"int8 convolutions are proven exact on x86-64 only, this is {platform.machine()}"
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    if not has_onednn or not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        return "this torch has no oneDNN"
    worst = 64 if pairs_saturate() else 127
    if not _convolves_exactly(255, worst):
        return f"oneDNN's int8 convolution of 255 and {worst} is not exact on this CPU"
    return None


@cache
def pairs_saturate() -> bool:
    """Return whether this CPU (or oneDNN, told to by ONEDNN_MAX_CPU_ISA) adds pairs of products in 16 bits."""
    return not torch.cpu._is_vnni_supported() or not _convolves_exactly(255, 127)


def _convolves_exactly(activation: int, weight: int) -> bool:
    """Try it: the largest sums, and the mixed ones that saturation would spoil in other ways."""
    x = torch.full((2, 64, 6, 6), activation, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    integers = torch.full((32, 64, 3, 3), weight, dtype=torch.int32)
    integers[::2, 32:] *= -1
    for kernel in (3, 1):
        weights = integers[:, :, :kernel, :kernel].contiguous()
        packed = pack(Split(weights.to(torch.int8), 32, 0, 1), x.shape)
        expected = torch.nn.functional.conv2d(x.double(), weights.double())
        if not torch.equal(packed.accumulators(x).double(), expected):
            return False
    return True
