"""Layers convolved by AMX on the CPU, with what follows them in the same pass; is it to be trusted at all?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from qbw_eval.engine.amx_kernel import MOST_LEVELS, AmxKernel, Levels, PackedWeights, packed, why_no_tiles
from qbw_eval.engine.cache import BoundedCache
from qbw_eval.engine.compiled import KernelError
from qbw_eval.engine.convolutions import (
    Affine,
    LayerConvolution,
    Rounding,
    SplitOf,
    Window,
    limits_of,
    pads_with_zeros,
    rounding_for,
    window_of,
)
from qbw_eval.engine.onednn import OnednnArithmetic
from qbw_eval.engine.packing import Halves, Split, Thirds, halve_weights, split_weights, thirds_of, why_not_here
from qbw_eval.engine.passes import PLAIN, Passes, halves_of, levels_on
from qbw_eval.quantization.bitwidths import set_bitwidth
from qbw_eval.quantization.layers import ActivationGrid, QuantConv2d, QuantLinear


class AmxArithmetic:
    """See `convolutions.Arithmetic`. Grouped layers, and weights in two parts of several outputs, are oneDNN's.

    Layers of 9 to 16 bits are convolved in halves, in four products of them; those in float32 in thirds, in six.

    Args:
        cache_bytes: how much may be spent on packed weights.
        passes: what lies between convolutions, plain or compiled.
        kernel: what convolves.
    """

    most_bits = 16

    def __init__(self, cache_bytes: int, passes: Passes, kernel: AmxKernel) -> None:
        self.passes = passes
        self._kernel = kernel
        self._packed: BoundedCache[PackedWeights | None] = BoundedCache(cache_bytes // 2)
        self._onednn = OnednnArithmetic(cache_bytes // 2, passes)

    def why_not(self, devices: Sequence[torch.device]) -> str | None:
        """Return why the kernel cannot be trusted with a network on these devices; None where it can."""
        if any(device.type != "cpu" for device in devices):
            return "it runs on the CPU only"
        return why_inexact(self._kernel)

    def split(self, integers: Tensor, largest_activation: int, groups: int) -> Split | Halves | str:
        """Return integer weights in parts that the kernel convolves exactly, or oneDNN does; or that there are none."""
        if halves_of(largest_activation) == 2:
            halves = halve_weights(integers, largest_activation) if groups == 1 else None
            return halves or "its sums do not fit into the integers of this CPU, or it is wide and grouped"
        split = split_weights(integers, largest_activation, pairs_saturate=False, groups=groups)
        if split is not None and _is_known(split, groups):
            return split
        return why_not_here() or self._onednn.split(integers, largest_activation, groups)

    def of_layer(self, layer: QuantConv2d | QuantLinear, split_of: SplitOf) -> "AmxConvolution":
        """Return what convolves for a layer."""
        others = self._onednn.of_layer(layer, split_of)
        return AmxConvolution(layer, split_of, self._packed, self._kernel, others, self.passes)


def _is_known(split: Split | Halves, groups: int) -> bool:
    """Return whether all outputs have all inputs, and weights are factor * m + factor - 1 with a factor of 1 or 2."""
    return groups == 1 and split.factor <= 2


@dataclass(frozen=True)
class AmxConvolution:
    """See `convolutions.ConvolutionOfFloats`."""

    layer: QuantConv2d | QuantLinear
    split_of: SplitOf
    packed: BoundedCache[PackedWeights | None]
    kernel: AmxKernel
    others: LayerConvolution
    """What takes splits that the kernel does not know."""
    passes: Passes
    """What rounds where the kernel does not convolve."""

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
        """Return what the protocol says, in one pass."""
        weights = self._packed_for(images, bits)
        if weights is None:
            return self._by_others(images, bits, affine, relu, other, to)
        rounding, limits = rounding_for(to, added=other is not None), limits_of(to)
        return self.kernel.convolve(
            *(images, weights, affine),
            relu=relu,
            other=other,
            rounding=rounding,
            limits=limits,
            between=self._bounds_for(images, bits),
        )

    def _by_others(
        self, images: Tensor, bits: int, affine: Affine, relu: bool, other: Tensor | None, to: ActivationGrid | None
    ) -> Tensor:
        """Return the same where the kernel does not know the weights; levels of two bytes by a pass of their own."""
        if to is None or halves_of(to.largest) == 1:
            return self.others(images, bits, affine, relu=relu, other=other, to=to)
        value = self.others(images, bits, affine, relu=relu, other=other, to=None)
        return levels_on(replace(to, clipping=None, unit=1.0) if other is None else to, value, self.passes)

    @property
    def most_levels(self) -> int:
        """For how many readers a value is rounded in the same pass."""
        return MOST_LEVELS

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
        """Return what the protocol says, in one pass."""
        weights = self._packed_for(images, bits)
        if weights is None:
            value = self.others(images, bits, affine, relu=relu, other=other, to=None)
            return (value, *(levels_on(grid, value, self.passes) for grid in to))
        samples, outputs, *places = weights.shape_for(images)
        shapes = [(samples, outputs * halves_of(grid.largest), *places) for grid in to]
        levels = [
            Levels(
                *(rounding_for(grid, added=True), limits_of(grid)),
                torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last),
            )
            for grid, shape in zip(to, shapes, strict=True)
        ]
        convolve = self.kernel.convolve if kept else self.kernel.round_only
        y = convolve(
            *(images, weights, affine),
            relu=relu,
            other=other,
            levels=levels,
            between=self._bounds_for(images, bits),
        )
        return (y, *(each.out for each in levels))

    def takes_floats(self, bits: int) -> bool:
        """Return what the protocol says: not of groups, and not of weights that bfloat16 knows no numbers for."""
        plain = pads_with_zeros(self.layer) and getattr(self.layer, "groups", 1) == 1
        return plain and self._thirds(bits) is not None

    def _packed_for(self, images: Tensor, bits: int) -> PackedWeights | None:
        """Return the layer's weights for such images; None where the kernel does not know them."""
        if images.dtype is torch.float32:
            return self.packed.get((self.layer, bits, Thirds), lambda: self._made(self._thirds(bits)))
        return self.packed.get((self.layer, bits, Split), lambda: self._made(self._integers(bits)))

    def _bounds_for(self, images: Tensor, bits: int) -> tuple[float, float]:
        """Return what the layer clamps such images to, where that is all it does to them."""
        bounds = None
        if images.dtype is torch.float32:
            set_bitwidth(self.layer, bits)
            bounds = self.layer.activation_bounds()
        return bounds or (-math.inf, math.inf)

    def _thirds(self, bits: int) -> Thirds | None:
        set_bitwidth(self.layer, bits)
        weights = self.layer.quantize_weight().detach()
        return thirds_of(weights if weights.ndim == 4 else weights[:, :, None, None])

    def _integers(self, bits: int) -> Split | Halves | None:
        split = self.split_of(bits)
        assert not isinstance(split, str)
        return split if _is_known(split, getattr(self.layer, "groups", 1)) else None

    def _made(self, weights: Split | Halves | Thirds | None) -> tuple[PackedWeights | None, int]:
        """Return them packed, and how many bytes they take."""
        if weights is None:
            return None, 0
        tiles = packed(weights, window_of(self.layer))
        return tiles, tiles.size


# --- is it to be trusted --------------------------------------------------------------------------------------------


_CLOSE = 2.0**-20
"""Of the sum of all terms' magnitudes: float32's own sums stay below it, middle times middle left out does not."""


@cache
def kernel_here() -> AmxKernel | str | None:
    """Return the kernel, compiled for this machine; None where that has no AMX, or why there is none all the same."""
    if why_no_tiles() is not None:
        return None
    try:
        return AmxKernel()
    except KernelError as error:
        return str(error)


@cache
def why_inexact(kernel: AmxKernel) -> str | None:
    """Return why a kernel cannot be trusted, having tried it; None where it can."""
    exact = (
        _exact(kernel, 255, 127, Rounding.NONE)
        and all(_exact(kernel, 255, 255, how) for how in Rounding)
        and all(_exact(kernel, 65535, magnitude, how) for magnitude in (2**15 - 1, 65535) for how in Rounding)
        and all(_exact_beside(kernel, magnitude) for magnitude in (127, 255))
        and all(_rounds_exactly(kernel, unit) for unit in (1.0, 0.7, 1 / 3, 1.9999999, 2.0**-40))
    )
    if not exact:
        return "AMX's convolution of integers is not exact here"
    close = all(_close(kernel, *shape) for shape in ((80, 3), (70, 1), (5, 3)))
    return None if close else "AMX's convolution of float32 is not as close as it should be here"


def _exact(kernel: AmxKernel, activation: int, magnitude: int, rounding: Rounding) -> bool:
    """Compare the largest sums, mixed ones, borders, and ties with what they must be."""
    x = torch.full((3, 80, 7, 9), activation)
    x[:, :, 2:, 1] = 1
    weights = torch.full((40, 80, 3, 3), magnitude, dtype=torch.int32)
    weights[::2, 24:] *= -1
    weights[1::4] *= -1
    window = Window((3, 3), (2, 1), (1, 1))
    scale, bias = (0.5, 0.25) if magnitude <= 255 else (2.0**-16, 0.75)
    packed_weights, affine = _packed_for(weights, window, activation), _affine_of(40, scale, bias)
    value = _sums(x, weights, window) * scale + bias
    return all(
        torch.equal(
            kernel.convolve(_images(x, activation), packed_weights, affine, rounding=rounding, limits=limits),
            _levels(value, rounding, limits),
        )
        for limits in ((15.0, 7.0), (65535.0, 70000.0))
    )


def _exact_beside(kernel: AmxKernel, magnitude: int) -> bool:
    """Compare what is added, and the levels that two readers get of the sum, with what they must be."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, 40, 5, 5), generator=generator)
    weights = torch.randint(-128, 128, (20, 40, 1, 1), generator=generator, dtype=torch.int32)
    if magnitude > 127:
        weights = 2 * weights + 1
    other = _channels_last(torch.randn((2, 20, 5, 5), generator=generator))
    other[0, 0, 0, :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    besides = [
        Levels(how, limits, _channels_last(torch.empty(2, 20 * halves_of(limits[0]), 5, 5, dtype=torch.uint8)))
        for how, limits in ((Rounding.CLIPPING, (15.0, 0.7)), (Rounding.STEP, (65535.0, 0.01)))
    ]
    scale = 2.0**-16
    found = kernel.convolve(
        *(_images(x, 255), _packed_for(weights, Window(), 255), _affine_of(20, scale, 0.0)),
        relu=True,
        other=other,
        levels=besides,
    )
    value = torch.maximum(_sums(x, weights, Window()) * scale + other, torch.tensor(0.0))
    numbers = value.where(~value.isnan(), 0.0)  # which NaN is rounded to
    return torch.allclose(found, value, rtol=0.0, atol=0.0, equal_nan=True) and all(
        torch.equal(each.out, _levels(numbers, each.rounding, each.limits)) for each in besides
    )


def _close(kernel: AmxKernel, channels: int, size: int) -> bool:
    """Compare float32 in thirds with float64; what one of the products that count left out would be far off."""
    generator = torch.Generator().manual_seed(0)
    x = _channels_last(torch.randn((2, channels, 7, 9), generator=generator))
    weights = torch.randn((20, channels, size, size), generator=generator)
    thirds = thirds_of(weights)
    assert thirds is not None
    found = kernel.convolve(*(x, packed(thirds, Window((size, size))), _affine_of(20, 1.0, 0.0)), between=(-0.5, 1.0))
    clamped, weights = x.clamp(-0.5, 1.0).double(), weights.double()
    exact = torch.nn.functional.conv2d(clamped, weights)
    size_of_terms = torch.nn.functional.conv2d(clamped.abs(), weights.abs())
    return bool(((found - exact).abs() <= _CLOSE * size_of_terms).all())


def _rounds_exactly(kernel: AmxKernel, unit: float) -> bool:
    """Compare values at and beside ties with what division makes of them; sums are zero, so they are added."""
    ties = (torch.cat([torch.arange(256), torch.arange(255, 2**16, 255)]) + 0.5) * torch.tensor(unit)
    ties = torch.cat([ties, ties / 255, ties / 65535])
    up, down = (torch.nextafter(ties, torch.tensor(end)) for end in (float("inf"), float("-inf")))
    other = _channels_last(torch.cat([ties, up, down, -ties]).view(1, 4, -1, 1))
    x = _images(torch.zeros(1, 1, *other.shape[2:]), 255)
    weights = _packed_for(torch.ones(4, 1, 1, 1, dtype=torch.int32), Window(), 255)
    affine = _affine_of(4, 1.0, 0.0)
    return all(
        torch.equal(
            kernel.convolve(x, weights, affine, other=other, rounding=how, limits=(largest, unit)),
            _levels(other, how, (largest, unit)),
        )
        for how in (Rounding.CLIPPING, Rounding.STEP)
        for largest in (255.0, 65535.0)
    )


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _images(values: Tensor, largest: int) -> Tensor:
    """Return whole numbers 0..largest as images of levels."""
    return _channels_last(levels_on(ActivationGrid(largest=largest, clipping=None, unit=1.0), values.float(), PLAIN))


def _packed_for(weights: Tensor, window: Window, activation: int) -> PackedWeights:
    small = halves_of(activation) == 1
    split = split_weights(weights, 255, pairs_saturate=False) if small else halve_weights(weights, activation)
    assert split is not None
    return packed(split, window)


def _affine_of(outputs: int, scale: float, bias: float) -> Affine:
    return Affine(torch.full((outputs,), scale), torch.full((outputs,), bias))


def _sums(x: Tensor, weights: Tensor, window: Window) -> Tensor:
    """Return the convolution in float64, where it is exact, rounded to float32 once."""
    sums = torch.nn.functional.conv2d(
        *(x.double(), weights.double()), stride=window.stride, padding=window.padding, dilation=window.dilation
    )
    return sums.float()


def _levels(value: Tensor, rounding: Rounding, limits: tuple[float, float]) -> Tensor:
    """Return what `passes` make of a value."""
    if rounding is Rounding.NONE:
        return value
    largest, unit = limits
    return levels_on(
        ActivationGrid(
            largest=int(largest),
            clipping=unit if rounding is Rounding.CLIPPING else None,
            unit=1.0 if rounding is Rounding.SCALED else unit,
        ),
        value,
        PLAIN,
    )
