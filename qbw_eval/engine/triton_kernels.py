"""Convolutions of integers on a GPU, in one Triton kernel with everything that follows them.

    levels = round(clamp(conv(x, w) * scale + bias + other))

A convolution is a matrix product of its windows, which are never written down (*implicit GEMM*): rows are output
pixels, columns output channels, and what is summed over is kernel position by kernel position, channels within.
Images are NHWC in memory (torch's channels_last).

**int8 both sides.** Tensor cores multiply int8 by int8 into int32. Activations 0..255 become x - 128, which is a flip
of their highest bit; where the window hangs over the border x is 0 and becomes -128 like any other zero. Weights w
that do not fit into int8 are odd (`packing.split_weights`) and become m = (w - 1) / 2:

    sum of x * w = factor * (sum of (x - 128) * m) + (factor - 1) * (sum of (x - 128)) + 128 * (sum of w)

with a factor of 2 there and 1 elsewhere; the last term is a constant of the output channel. All of it is int32. A
layer is declined (`triton_arithmetic`) unless both its largest activation and 128, times its largest weight, times its
window, are below 2**31: so neither the result nor a sum that tensor cores compute leaves int32, and what the addition
of the three terms may overflow on its way comes back, in two's complement.

**The same bits as on the CPU.** The sum becomes float32 with one rounding; multiplication, additions, maximum, division
and rounding are those of `passes`, in that order, one rounding each. Compilers must not contract a multiplication and
an addition: kernels are launched with `enable_fp_fusion=False`, which reaches both LLVM and ptxas (`--fmad=false`);
division is `div_rn`, since `/` is an approximation; half to even is what float32 does by itself when 2**23 is added.

*Dividing* by what is the same for all values takes no division, since only the level next to the quotient is wanted.
With y = 1 / unit, rounded, and q = a * y, rounded, which is less than 1.5 units in the last place off,

    q + (a - q * unit) * y          (each sum fused with its product: rounded once)

is before its last rounding within 3 * 2**-24 of such a unit of the quotient. So it is rounded as the quotient is,
unless that comes as near to the middle between two float32; and which level is nearest depends on that only where one
of the two is a tie, k + 1/2. There are 24,000 pairs of significands for which it does, for all k below 256, and none of
them goes wrong: a test counts them out (`test_triton`). That holds as long as nothing underflows or overflows that
matters, for which units within 2**-50 and 2**50 see (`integer_region.MOST_UNIT`): what is rounded to 0 may be off. The
idea is P. W. Markstein's (Computation of elementary functions on the IBM RISC System/6000 processor, IBM Journal of
Research and Development 34, 1990), who refines once more and has the quotient itself. Two fused operations take the
place of twenty and a branch. The interpreter has no fused operation, and divides.

**Bitwidths are data.** All bitwidths of a layer lie in one bank of weights and one table of scales, biases and levels;
which of them a launch takes is read on the device, from two integers. So a launch is the same whatever the bits are.

On tensors of the CPU everything runs under Triton's interpreter: slowly, for tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import JITFunction
from triton.runtime.interpreter import InterpretedFunction

from qbw_eval.engine.convolutions import Rounding as Rounding  # theirs, which callers find here, too
from qbw_eval.engine.convolutions import Window as Window
from qbw_eval.engine.packing import Split

HALF = tl.constexpr(8388608.0)  # 2**23: float32 has no digits behind the point from here on

EXACT = {"enable_fp_fusion": False}
"""How every kernel is launched; see above."""

SMALLEST = 16
"""Rows and columns of the smallest matrices that tensor cores multiply; 32 along what is summed over."""


MOST_LEVELS = 2
"""How often a launch writes levels beside its float32 values, at most."""


@dataclass(frozen=True)
class Levels:
    """Levels that a launch writes beside its float32 values: those values rounded.

    Attributes:
        rounding: how; not NONE, and not SCALED, which is for values in other units.
        limits: (rows, 2) float32, as in `Epilogues`.
        row: (1,) int32 on the device: which row of `limits`.
        out: where they are written: uint8 in the shape of the values, in channels_last.
    """

    rounding: Rounding
    limits: Tensor
    row: Tensor
    out: Tensor


class Tile(NamedTuple):
    """What one program of a launch computes, and how. Powers of 2; `tuning` finds which are fastest."""

    pixels: int = 128
    outputs: int = 64
    channels: int = 64
    warps: int = 4
    stages: int = 4
    early: bool = False  # whether what is added is fetched before anything is multiplied


@dataclass(frozen=True)
class WeightBank:
    """A layer's integer weights w = factor * m + factor - 1 at several bitwidths.

    Attributes:
        weights: (bitwidths, out, kh * kw * in) int8, the m.
        corrections: (bitwidths, out) int32, 128 times the sum of w.
        factors: (bitwidths,) int32, 1 or 2.
        wide: whether any factor is 2.
    """

    weights: Tensor
    corrections: Tensor
    factors: Tensor
    wide: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return self.weights.nbytes + self.corrections.nbytes + self.factors.nbytes


@dataclass(frozen=True)
class Epilogues:
    """What follows a layer's convolution, in as many ways as there are.

    Attributes:
        scales, biases: (ways, out) float32.
        limits: (ways, 2) float32, see `Rounding`; whatever where nothing is rounded.
    """

    scales: Tensor
    biases: Tensor
    limits: Tensor


@dataclass(frozen=True)
class Addend:
    """A convolution whose values another one of as many pixels and outputs adds to its own, in the same launch.

    Attributes:
        x: (N, in, H, W) uint8 in channels_last.
        bank, epilogues, choice, window: as in `convolve`; it is neither rounded nor clipped.
    """

    x: Tensor
    bank: WeightBank
    epilogues: Epilogues
    choice: Tensor
    window: Window


def weight_bank(splits: list[Split], device: torch.device) -> WeightBank:
    """Return weights of equal shape (out, in, kh, kw) as a bank; none of `splits` has a low part of several outputs."""
    high = torch.stack([split.parts[: split.outputs] for split in splits])  # (bitwidths, out, in, kh, kw)
    factors = torch.tensor([split.factor for split in splits], dtype=torch.int32)
    whole = factors.view(-1, 1, 1, 1, 1) * high + (factors.view(-1, 1, 1, 1, 1) - 1)
    corrections = 128 * whole.sum(dim=(2, 3, 4), dtype=torch.int32)
    weights = high.permute(0, 1, 3, 4, 2).flatten(2).contiguous()
    return WeightBank(weights.to(device), corrections.to(device), factors.to(device), bool((factors > 1).any()))


def convolve(
    x: Tensor,
    bank: WeightBank,
    epilogues: Epilogues,
    choice: Tensor,
    window: Window,
    *,
    relu: bool = False,
    other: Tensor | Addend | None = None,
    rounding: Rounding = Rounding.NONE,
    tile: Tile | None = None,
    out: Tensor | None = None,
    levels: Sequence[Levels] = (),
) -> Tensor:
    """Return a convolution and what follows it, (N, out, H', W') in channels_last; uint8 where rounded, else float32.

    Args:
        x: (N, in, H, W) uint8 in channels_last.
        bank: the weights.
        epilogues: what follows.
        choice: (2,) int32 on the device: which bitwidth of `bank`, which way of `epilogues`.
        window: the geometry; `window.kernel` is that of the weights.
        relu: replace negative values by zero, before rounding.
        other: (N, out, H', W') float32 in channels_last, added before that; or the convolution that leads to it.
        rounding: what becomes of the value.
        tile: how the work is cut up; what is thought best if left out.
        out: what is returned, filled; a new tensor if left out.
        levels: what is written besides, at most `MOST_LEVELS`; only where nothing is rounded.
    """
    samples, channels, height, width = x.shape
    outputs = bank.weights.shape[1]
    down, across = window.over(height, width)
    pixels = samples * down * across
    if out is None:
        dtype = torch.float32 if rounding is Rounding.NONE else torch.uint8
        out = torch.empty(samples, down, across, outputs, dtype=dtype, device=x.device).permute(0, 3, 1, 2)
    assert len(levels) <= (MOST_LEVELS if rounding is Rounding.NONE else 0)
    own = Levels(rounding, epilogues.limits, choice[1:], out)
    one, two, *_ = (*levels, own, own)
    first = Addend(x, bank, epilogues, choice, window)
    second = other if isinstance(other, Addend) else first
    added = other if isinstance(other, Tensor) else epilogues.scales
    if pixels:
        fewest = min(channels, second.x.shape[1])
        tile = tile or best_tile(x.device, pixels, outputs, fewest, along=second is other)
        _launch(
            *(_convolution, (-(-pixels // tile.pixels) * -(-outputs // tile.outputs),)),
            *(*_tensors_of(first), *_tensors_of(second), added, out),
            *(one.limits, one.row, one.out, two.limits, two.row, two.out, pixels),
            *(outputs, down, across, *_sizes_of(first), *_sizes_of(second)),
            *(relu, other is added, second is other, rounding is Rounding.NONE),
            *(int(one.rounding), int(two.rounding if len(levels) > 1 else Rounding.NONE), x.is_cuda, tile.early),
            *(tile.pixels, tile.outputs, tile.channels),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out


def _tensors_of(one: Addend) -> tuple[Tensor, ...]:
    bank, epilogues = one.bank, one.epilogues
    return one.x, bank.weights, bank.corrections, bank.factors, epilogues.scales, epilogues.biases, one.choice


def _sizes_of(one: Addend) -> tuple[int, ...]:
    window = one.window
    sizes = (*window.kernel, *window.stride, *window.padding, *window.dilation)
    return (*one.x.shape[2:], one.x.shape[1], *sizes, one.bank.wide)


def best_tile(device: torch.device, pixels: int, outputs: int, channels: int, *, along: bool = False) -> Tile:
    """Return how to cut a convolution up: no larger than it is; for the interpreter, into as few pieces as possible.

    Args:
        device: where it runs.
        pixels: of the result.
        outputs: channels of the result.
        channels: of the images; the fewest, where there are others.
        along: whether another one is computed along, whose values take registers.
    """
    most = (64 if along else 128, 64, 64) if device.type == "cuda" else (1024, 256, 256)
    rows, columns, depth = (triton.next_power_of_2(size) for size in (pixels, outputs, channels))
    return Tile(
        pixels=max(SMALLEST, min(most[0], rows)),
        outputs=max(SMALLEST, min(most[1], columns)),
        channels=max(2 * SMALLEST, min(most[2], depth)),
    )


def rounded(x: Tensor, limits: Tensor, rounding: Rounding, out: Tensor | None = None) -> Tensor:
    """Return x rounded to levels, uint8, without a convolution.

    Args:
        x: float32.
        limits: (2,) float32 on the device, as in `Epilogues`.
        rounding: any but NONE.
        out: what is returned, filled: contiguous; a new tensor if left out.
    """
    x = x.contiguous()
    if out is None:
        out = torch.empty_like(x, dtype=torch.uint8)
    if x.numel():
        block = 1024 if x.is_cuda else 2**16
        _launch(_rounding, (-(-x.numel() // block),), x, limits, out, x.numel(), int(rounding), x.is_cuda, block)
    return out


def _launch(kernel: Any, grid: tuple[int, ...], x: Tensor, *arguments: Any, **settings: int) -> None:
    """Launch a kernel, whose first argument is x, on the device that x is on."""
    here = torch.cuda.device_of(x)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    with here:  # Triton itself takes the current device
        _launcher(kernel, x.device.type)[grid](x, *arguments, **settings, **EXACT)


@cache
def _launcher(kernel: Any, device: str) -> Any:
    """Return a kernel that can be launched: compiled, or interpreted where tensors are on the CPU.

    Neither how many pixels there are nor where in a table a launch looks is worth compiling anew for.
    """
    if device == "cpu":  # where what a kernel calls is interpreted, too
        called = {name: value.fn for name, value in kernel.__globals__.items() if isinstance(value, JITFunction)}
        inside = {name: InterpretedFunction(function) for name, function in called.items()}
        return InterpretedFunction(FunctionType(kernel.__code__, kernel.__globals__ | inside, kernel.__name__))
    names = kernel.__code__.co_varnames[: kernel.__code__.co_argcount]
    anywhere = [name for name in ("choice", "choice_too", "row", "row_too") if name in names]
    any_number = [name for name in ("pixels",) if name in names]
    return triton.jit(kernel, do_not_specialize=any_number, do_not_specialize_on_alignment=anywhere)


@triton.jit  # type: ignore[untyped-decorator]  # Triton leaves it untyped
def _levels_of(
    value: tl.tensor, largest: tl.tensor, unit: tl.tensor, ROUNDING: tl.constexpr, FUSED: tl.constexpr
) -> tl.tensor:
    value = tl.maximum(value, 0.0)  # which NaN becomes
    if ROUNDING == 1:
        value = tl.minimum(value, largest)
    else:
        if ROUNDING == 2:  # noqa: SIM108 - Triton compiles the one that is taken
            value = tl.minimum(value, unit) * largest
        else:
            value = tl.minimum(value, (largest + 1) * unit)  # or infinities would be divided
        if FUSED:
            reciprocal = tl.div_rn(1.0, unit)
            quotient = value * reciprocal
            value = tl.fma(tl.fma(quotient, -unit, value), reciprocal, quotient)
        else:
            value = tl.div_rn(value, unit)
        if ROUNDING == 3:
            value = tl.minimum(value, largest)
    return (value + HALF).to(tl.int32, bitcast=True).to(tl.uint8)  # the last digits of the significand


@triton.jit  # type: ignore[untyped-decorator]  # Triton leaves it untyped
def _values_of(
    x: tl.tensor,
    weights: tl.tensor,
    corrections: tl.tensor,
    factors: tl.tensor,
    scales: tl.tensor,
    biases: tl.tensor,
    choice: tl.tensor,
    pixel: tl.tensor,
    output: tl.tensor,
    pixels: tl.tensor,
    OUT: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    IN: tl.constexpr,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    PADDING_Y: tl.constexpr,
    PADDING_X: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    WIDE: tl.constexpr,
    PIXELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> tl.tensor:
    bank = tl.load(choice)
    way = tl.load(choice + 1)
    here = output < OUT
    top = pixel % (DOWN * ACROSS) // ACROSS * STRIDE_Y - PADDING_Y
    left = pixel % ACROSS * STRIDE_X - PADDING_X
    corner = (((pixel // (DOWN * ACROSS)).to(tl.int64) * HEIGHT + top) * WIDTH + left) * IN
    window: tl.constexpr = KERNEL_Y * KERNEL_X * IN
    of_output = weights + bank.to(tl.int64) * (OUT * window) + output.to(tl.int64) * window
    pieces: tl.constexpr = (IN + CHANNELS - 1) // CHANNELS
    sums = tl.full((PIXELS, OUTPUTS), 0, tl.int32)
    plain = tl.full((PIXELS, 16), 0, tl.int32)  # of activations alone, the same in all 16 columns
    for step in range(0, KERNEL_Y * KERNEL_X * pieces):
        place = step // pieces
        channel = step % pieces * CHANNELS + tl.arange(0, CHANNELS)
        y = place // KERNEL_X * DILATION_Y
        z = place % KERNEL_X * DILATION_X
        inside = pixel < pixels
        if PADDING_Y > 0:
            inside = inside & (top + y >= 0) & (top + y < HEIGHT)
        if PADDING_X > 0:
            inside = inside & (left + z >= 0) & (left + z < WIDTH)
        images = x + (y.to(tl.int64) * WIDTH + z) * IN
        if IN % CHANNELS == 0:
            image = tl.load(images + corner[:, None] + channel[None, :], mask=inside[:, None], other=0)
            ones = tl.full((CHANNELS, 16), 1, tl.int8)
            weights_inside = here[None, :]
        else:
            real = channel < IN
            image = tl.load(images + corner[:, None] + channel[None, :], mask=inside[:, None] & real[None, :], other=0)
            ones = real.to(tl.int8)[:, None] * tl.full((1, 16), 1, tl.int8)
            weights_inside = here[None, :] & real[:, None]
        weight_at = of_output[None, :] + (place * IN + channel)[:, None]
        if IN % CHANNELS == 0 and OUT % OUTPUTS == 0:
            weight = tl.load(weight_at)
        else:
            weight = tl.load(weight_at, mask=weights_inside, other=0)
        shifted = (image ^ 128).to(tl.int8, bitcast=True)
        sums = tl.dot(shifted, weight, sums, out_dtype=tl.int32)
        if WIDE:
            plain = tl.dot(shifted, ones, plain, out_dtype=tl.int32)
    factor = tl.load(factors + bank)
    sums = sums * factor
    if WIDE:
        sums += tl.gather(plain, tl.full((PIXELS, 1), 0, tl.int32), 1) * (factor - 1)
    sums += tl.load(corrections + bank * OUT + output, mask=here, other=0)[None, :]
    scale = tl.load(scales + way * OUT + output, mask=here, other=0.0)
    bias = tl.load(biases + way * OUT + output, mask=here, other=0.0)
    return sums.to(tl.float32) * scale[None, :] + bias[None, :]


def _convolution(
    x: tl.tensor,
    weights: tl.tensor,
    corrections: tl.tensor,
    factors: tl.tensor,
    scales: tl.tensor,
    biases: tl.tensor,
    choice: tl.tensor,
    x_too: tl.tensor,
    weights_too: tl.tensor,
    corrections_too: tl.tensor,
    factors_too: tl.tensor,
    scales_too: tl.tensor,
    biases_too: tl.tensor,
    choice_too: tl.tensor,
    other: tl.tensor,
    out: tl.tensor,
    limits: tl.tensor,
    row: tl.tensor,
    levels: tl.tensor,
    limits_too: tl.tensor,
    row_too: tl.tensor,
    levels_too: tl.tensor,
    pixels: tl.tensor,
    OUT: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    IN: tl.constexpr,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    PADDING_Y: tl.constexpr,
    PADDING_X: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    WIDE: tl.constexpr,
    HEIGHT_TOO: tl.constexpr,
    WIDTH_TOO: tl.constexpr,
    IN_TOO: tl.constexpr,
    KERNEL_Y_TOO: tl.constexpr,
    KERNEL_X_TOO: tl.constexpr,
    STRIDE_Y_TOO: tl.constexpr,
    STRIDE_X_TOO: tl.constexpr,
    PADDING_Y_TOO: tl.constexpr,
    PADDING_X_TOO: tl.constexpr,
    DILATION_Y_TOO: tl.constexpr,
    DILATION_X_TOO: tl.constexpr,
    WIDE_TOO: tl.constexpr,
    RELU: tl.constexpr,
    ADD: tl.constexpr,
    CONVOLVED: tl.constexpr,
    VALUES: tl.constexpr,
    ROUNDING: tl.constexpr,
    ROUNDING_TOO: tl.constexpr,
    FUSED: tl.constexpr,
    EARLY: tl.constexpr,
    PIXELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    # Programs that follow each other read the same images, which come out of the L2 cache then.
    start = tl.program_id(0) // ((OUT + OUTPUTS - 1) // OUTPUTS) * PIXELS
    pixel = start + tl.arange(0, PIXELS)
    output = tl.program_id(0) % ((OUT + OUTPUTS - 1) // OUTPUTS) * OUTPUTS + tl.arange(0, OUTPUTS)
    mask = (pixel < pixels)[:, None] & (output < OUT)[None, :]
    at = tl.arange(0, PIXELS)[:, None] * OUT + output[None, :]  # from the program's first pixel on
    first = start.to(tl.int64) * OUT  # from here on offsets may exceed 2**31
    if ADD and EARLY:
        added = tl.load(other + first + at, mask=mask, other=0.0)
    if CONVOLVED:
        added = _values_of(
            *(x_too, weights_too, corrections_too, factors_too, scales_too, biases_too, choice_too),
            *(pixel, output, pixels, OUT, DOWN, ACROSS, HEIGHT_TOO, WIDTH_TOO, IN_TOO, KERNEL_Y_TOO, KERNEL_X_TOO),
            *(STRIDE_Y_TOO, STRIDE_X_TOO, PADDING_Y_TOO, PADDING_X_TOO, DILATION_Y_TOO, DILATION_X_TOO),
            *(WIDE_TOO, PIXELS, OUTPUTS, CHANNELS),
        )
    value = _values_of(
        *(x, weights, corrections, factors, scales, biases, choice, pixel, output, pixels, OUT, DOWN, ACROSS),
        *(HEIGHT, WIDTH, IN, KERNEL_Y, KERNEL_X, STRIDE_Y, STRIDE_X, PADDING_Y, PADDING_X, DILATION_Y, DILATION_X),
        *(WIDE, PIXELS, OUTPUTS, CHANNELS),
    )
    if ADD and not EARLY:
        added = tl.load(other + first + at, mask=mask, other=0.0)
    if ADD or CONVOLVED:
        value = value + added
    if RELU and VALUES:  # levels are not negative anyway
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if VALUES:
        tl.store(out + first + at, value, mask=mask)
    if ROUNDING > 0:
        limit = limits + 2 * tl.load(row)
        found = _levels_of(value, tl.load(limit), tl.load(limit + 1), ROUNDING, FUSED)
        tl.store(levels + first + at, found, mask=mask)
    if ROUNDING_TOO > 0:
        limit = limits_too + 2 * tl.load(row_too)
        found = _levels_of(value, tl.load(limit), tl.load(limit + 1), ROUNDING_TOO, FUSED)
        tl.store(levels_too + first + at, found, mask=mask)


def _rounding(
    x: tl.tensor,
    limits: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    ROUNDING: tl.constexpr,
    FUSED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < count, other=0.0)
    tl.store(out + at, _levels_of(value, tl.load(limits), tl.load(limits + 1), ROUNDING, FUSED), mask=at < count)
