"""What lies between integer convolutions: element by element, one pass over memory each where a compiler is present.

Plain torch runs every operation of an expression as a pass of its own; torch.compile makes one of them all. Level
counts, scales and bounds are tensors, so that no bitwidth compiles anything anew. Both ways give the same bits:
multiplications and additions are not contracted (Inductor compiles with -ffp-contract=off).
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache

import torch
from torch import Tensor

from qbw_eval.quantization.layers import ActivationGrid

Pass = Callable[..., Tensor]

COMPILERS = ("c++", "g++", "clang++")
"""Looked for in this order."""


def levels_by_clipping(x: Tensor, clipping: Tensor, largest: Tensor) -> Tensor:
    """Return round(clamp(x, 0, clipping) * largest / clipping) as uint8: DoReFa (clipping 1) and PACT."""
    return torch.round(torch.minimum(x.clamp(min=0), clipping) * largest / clipping).to(torch.uint8)


def levels_by_step(x: Tensor, step: Tensor, largest: Tensor) -> Tensor:
    """Return clamp(round(x / step), 0, largest) as uint8: LSQ."""
    return torch.round(torch.minimum((x / step).clamp(min=0), largest)).to(torch.uint8)


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
    """Return round(clamp(x, 0, clipping) * largest / clipping) * clipping / largest, for layers above 8 bits."""
    return torch.round(torch.minimum(x.clamp(min=0), clipping) * largest / clipping) * clipping / largest


def values_by_step(x: Tensor, step: Tensor, largest: Tensor) -> Tensor:
    """Return clamp(round(x / step), 0, largest) * step, for layers above 8 bits."""
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
    values_by_clipping: Pass = values_by_clipping
    values_by_step: Pass = values_by_step
    added: Pass = added
    combined: Pass = combined
    combined_and_added: Pass = combined_and_added
    combined_levels: Pass = combined_levels


PLAIN = Passes(compiled=False)


@cache
def fastest_passes() -> Passes:
    """Return compiled passes where torch.compile finds a C++ compiler and it works, else plain ones."""
    if not any(map(shutil.which, COMPILERS)):
        return PLAIN
    passes = Passes(
        compiled=True,
        **{
            field.name: torch.compile(getattr(PLAIN, field.name), dynamic=True)
            for field in fields(Passes)
            if field.name != "compiled"
        },
    )
    try:
        with torch.no_grad():  # compiling for the mode that engines run in
            passes.added(torch.zeros(4, 16), torch.zeros(4, 16), torch.zeros(()))
    except Exception:  # a compiler that is there and does not work fails in many ways
        return PLAIN
    return passes


def rounded(x: Tensor, grid: ActivationGrid, by_clipping: Pass, by_step: Pass) -> Tensor:
    """Return what one of two passes makes of x, the one that the grid is for; in the shape of x.

    Args:
        x: images in channels_last, or anything else.
        grid: what x is rounded to.
        by_clipping: where the grid has a clipping value.
        by_step: where it has none.
    """
    rows, largest = rows_of(x), _number(grid.largest, x)
    if grid.clipping is not None:
        return shaped(by_clipping(rows, _number(grid.clipping, x), largest), x.shape)
    return shaped(by_step(rows, _number(grid.unit, x), largest), x.shape)


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
