"""What lies between integer convolutions, element by element, in plain torch: the definition of every bit.

Plain torch runs every operation of an expression as a pass of its own; `compiled_passes` has one for all of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qbw_eval.quantization.layers import ActivationGrid

Pass = Callable[..., Tensor]


def levels_by_clipping(x: Tensor, clipping: Tensor, largest: Tensor) -> Tensor:
    """Return round(clamp(x, 0, clipping) * largest / clipping) as uint8: DoReFa (clipping 1) and PACT."""
    return torch.round(torch.minimum(x.clamp(min=0), clipping) * largest / clipping).to(torch.uint8)


def levels_by_step(x: Tensor, step: Tensor, largest: Tensor) -> Tensor:
    """Return clamp(round(x / step), 0, largest) as uint8: LSQ."""
    return torch.round(torch.minimum((x / step).clamp(min=0), largest)).to(torch.uint8)


def halves_by_clipping(x: Tensor, clipping: Tensor, largest: Tensor) -> Tensor:
    """Return what `levels_by_clipping` does for up to 65,535 levels: (pixels, 2 * C) uint8, low bytes, then high."""
    return _halves(torch.round(torch.minimum(x.clamp(min=0), clipping) * largest / clipping))


def halves_by_step(x: Tensor, step: Tensor, largest: Tensor) -> Tensor:
    """Return what `levels_by_step` does for up to 65,535 levels: (pixels, 2 * C) uint8, low bytes, then high."""
    return _halves(torch.round(torch.minimum((x / step).clamp(min=0), largest)))


def _halves(levels: Tensor) -> Tensor:
    integers = levels.to(torch.int32)
    return torch.cat([integers & 255, integers >> 8], dim=-1).to(torch.uint8)


def combined(high: Tensor, low: Tensor, factor: Tensor, scale: Tensor, bias: Tensor, least: Tensor) -> Tensor:
    """Return max((high * factor + low) * scale + bias, least): a split convolution put together (`packing.Split`).

    Args:
        high: (pixels, out).
        low: (pixels, out) or (pixels, 1).
        factor: a number.
        scale: (out,).
        bias: (out,).
        least: 0 for ReLU, minus infinity for none.
    """
    return torch.maximum((high * factor + low) * scale + bias, least)


def values_by_clipping(x: Tensor, clipping: Tensor, largest: Tensor) -> Tensor:
    """Return round(clamp(x, 0, clipping) * largest / clipping) * clipping / largest, for layers in float32."""
    return torch.round(torch.minimum(x.clamp(min=0), clipping) * largest / clipping) * clipping / largest


def values_by_step(x: Tensor, step: Tensor, largest: Tensor) -> Tensor:
    """Return clamp(round(x / step), 0, largest) * step, for layers in float32."""
    return torch.round(torch.minimum((x / step).clamp(min=0), largest)) * step


def added(x: Tensor, other: Tensor, least: Tensor) -> Tensor:
    """Return max(x + other, least)."""
    return torch.maximum(x + other, least)


def combined_and_added(
    high: Tensor, low: Tensor, factor: Tensor, scale: Tensor, bias: Tensor, other: Tensor, least: Tensor
) -> Tensor:
    """Return max((high * factor + low) * scale + bias + other, least); `other` is (pixels, out)."""
    return torch.maximum((high * factor + low) * scale + bias + other, least)


def combined_levels(high: Tensor, low: Tensor, factor: Tensor, scale: Tensor, bias: Tensor, largest: Tensor) -> Tensor:
    """Return round(clamp((high * factor + low) * scale + bias, 0, largest)) as uint8."""
    value = (high * factor + low) * scale + bias
    return torch.round(torch.minimum(value.clamp(min=0), largest)).to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Passes:
    """The passes above, as they are or compiled.

    Attributes:
        compiled: whether they are.
    """

    compiled: bool
    levels_by_clipping: Pass = levels_by_clipping
    levels_by_step: Pass = levels_by_step
    halves_by_clipping: Pass = halves_by_clipping
    halves_by_step: Pass = halves_by_step
    values_by_clipping: Pass = values_by_clipping
    values_by_step: Pass = values_by_step
    added: Pass = added
    combined: Pass = combined
    combined_and_added: Pass = combined_and_added
    combined_levels: Pass = combined_levels


PLAIN = Passes(compiled=False)


def rounded(x: Tensor, grid: ActivationGrid, by_clipping: Pass, by_step: Pass) -> Tensor:
    """Return what one of two passes makes of x, the one that the grid is for; in the shape of x.

    Where a pass makes halves, there are twice as many channels.

    Args:
        x: images in channels_last, or anything else.
        grid: what x is rounded to.
        by_clipping: where the grid has a clipping value.
        by_step: where it has none.
    """
    rows, largest = rows_of(x), _number(grid.largest, x)
    if grid.clipping is not None:
        made = by_clipping(rows, _number(grid.clipping, x), largest)
    else:
        made = by_step(rows, _number(grid.unit, x), largest)
    channels = made.shape[1]
    return shaped(made, (len(x), channels, *x.shape[2:]) if x.ndim == 4 else (*x.shape[:-1], channels))


def halves_of(largest: float) -> int:
    """Return how many bytes a level takes, which are at most so large; and how many times the channels there are."""
    return 1 if largest <= 255 else 2


def levels_on(grid: ActivationGrid, x: Tensor, passes: Passes) -> Tensor:
    """Return x rounded to a grid's levels: uint8, with `halves_of` times as many channels."""
    if halves_of(grid.largest) == 1:
        return rounded(x, grid, passes.levels_by_clipping, passes.levels_by_step)
    return rounded(x, grid, passes.halves_by_clipping, passes.halves_by_step)


def _number(value: float, like: Tensor) -> Tensor:
    """Return a number in float32 beside a tensor: filled in there, so that nobody waits for a copy."""
    return torch.full((), float(value), device=like.device)


def rows_of(x: Tensor) -> Tensor:
    """Return (N, C, H, W) or (..., C) as (pixels, C), which copies nothing where images are in channels_last."""
    if x.ndim == 4:
        x = x.permute(0, 2, 3, 1)
    return x.reshape(-1, x.shape[-1])


def shaped(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo `rows_of` for values of `shape`; images are in channels_last."""
    if len(shape) == 4:
        n, c, h, w = shape
        return rows.view(n, h, w, c).permute(0, 3, 1, 2)
    return rows.view(*shape)
