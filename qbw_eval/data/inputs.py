"""Inputs as people keep them: tensors in dicts, lists and tuples -> the same containers of float32, checked."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from qbw_eval.data.errors import DataError, described
from qbw_eval.nested import for_each_tensor, places

_PIECE: Final = 2**24
"""Bytes looked at at a time: a mask of a large tensor, or the part of a mapped file that it lies in, is large too."""


def checked_inputs(inputs: object, where: str) -> Any:
    """Return inputs as float32 in containers like those they are in; tensors that are float32 already, as they are.

    Args:
        inputs: tensors (N, ...), alone or in dicts, lists and tuples, N the same in all; floats, or uint8, which is
            divided by 255.
        where: names the place in errors.

    Raises:
        DataError: they are something else, there are no samples, or values are NaN or infinite.
    """
    found = places(inputs)
    if not found:
        raise DataError(f"{where}: inputs hold no tensors")
    for place, tensor in found:
        words = f"{where}: inputs {place}".rstrip()
        if not isinstance(tensor, Tensor):
            raise DataError(f"{words} are {described(tensor)}; expected a tensor")
        if tensor.ndim < 2 or tensor.numel() == 0:
            raise DataError(f"{words} have shape {tuple(tensor.shape)}; expected (samples, ...)")
        if len(tensor) != len(found[0][1]):
            raise DataError(
                f"{words} hold {len(tensor)} samples, {found[0][0]} holds {len(found[0][1])}; expected as many"
            )
        if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
            raise DataError(f"{words} are {tensor.dtype}; expected floating point, or uint8 (which is divided by 255)")
    checked = for_each_tensor(inputs, _as_float32)
    for place, tensor in places(checked):
        odd = [piece for piece in pieces(tensor) if not bool(piece.isfinite().all())]
        if odd:
            count, values = sum(int((~piece.isfinite()).sum()) for piece in odd), f"{place} values".lstrip()
            raise DataError(f"{where}: {count} input {values} are NaN or infinite; remove those samples")
    return checked


def _as_float32(tensor: Tensor) -> Tensor:
    # A tensor that wants a gradient was saved as one, and so was one whose sign torch put off changing.
    values = tensor.detach().resolve_neg().float().contiguous()
    return values / 255 if tensor.dtype == torch.uint8 else values


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the values of a contiguous tensor in order, some at a time, as views."""
    flat = tensor.view(-1)
    size = max(1, _PIECE // tensor.element_size())
    for first in range(0, len(flat), size):
        yield flat[first : first + size]


def is_inputs(value: object) -> bool:
    """Return whether a value is a tensor, or a dict, list or tuple that may hold some."""
    return isinstance(value, Tensor) or (isinstance(value, Mapping | list | tuple) and bool(value))
