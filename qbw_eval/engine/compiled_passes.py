"""What lies between convolutions, compiled from C++ of our own (`passes.cpp`): one pass over memory each.

Plain torch runs every operation of an expression as a pass of its own, and gives the same bits wherever its own do not
depend on where in a tensor an element lies. They do in two cases: which NaN it is, and the sign of max(-0, 0), which is
that of 0 here. What the loops do not know is left to plain torch: other types than float32, values of a row that do not
lie side by side, other devices, gradients.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from qbw_eval.engine.compiled import KernelError, compiled, torch_threads
from qbw_eval.engine.passes import PLAIN, Passes

_SOURCE = Path(__file__).with_name("passes.cpp")
_FLAGS = ("-march=native",)


class _Kind(NamedTuple):
    """What a pass takes, as `_Call` names it, in the order of its arguments; and what it makes."""

    takes: tuple[str, ...]
    makes: torch.dtype
    times: int = 1
    """As many columns as there are."""


_GRID = ("x", "unit", "bound")
_SPLIT = ("x", "low", "unit", "scale", "bias")

_KINDS = {
    "levels_by_clipping": _Kind(_GRID, torch.uint8),
    "levels_by_step": _Kind(_GRID, torch.uint8),
    "halves_by_clipping": _Kind(_GRID, torch.uint8, times=2),
    "halves_by_step": _Kind(_GRID, torch.uint8, times=2),
    "values_by_clipping": _Kind(_GRID, torch.float32),
    "values_by_step": _Kind(_GRID, torch.float32),
    "added": _Kind(("x", "other", "bound"), torch.float32),
    "combined": _Kind((*_SPLIT, "bound"), torch.float32),
    "combined_and_added": _Kind((*_SPLIT, "other", "bound"), torch.float32),
    "combined_levels": _Kind((*_SPLIT, "bound"), torch.uint8),
}
"""In the order of `Pass` in `passes.cpp`."""

_MATRICES = ("x", "low", "other")
_POINTERS = (*_MATRICES, "scale", "bias", "unit", "bound", "out")
_SIZES = ("rows", "columns", *(f"{name}_stride" for name in _MATRICES), "low_columns", "threads")


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _SIZES),
    )


@cache
def fastest_passes() -> Passes:
    """Return compiled passes where there is a C++ compiler and it works, else plain ones."""
    try:
        run, parallel = compiled(_SOURCE, _FLAGS, _Call).qbw_pass, torch_threads()
    except KernelError:
        return PLAIN
    run.argtypes = (ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)

    def start(number: int, call: _Call) -> bool:
        return bool(run(number, ctypes.byref(call), parallel) == 0)

    return Passes(compiled=True, **{name: _CompiledPass(name, start) for name in _KINDS})


class _CompiledPass:
    """A pass, called as `passes.py` says.

    Args:
        name: which.
        start: runs it by its number; says whether it did, or does not know such a bound.
    """

    def __init__(self, name: str, start: Callable[[int, _Call], bool]) -> None:
        self._plain = getattr(PLAIN, name)
        self._number = list(_KINDS).index(name)
        self._kind = _KINDS[name]
        self._start = start

    def __call__(self, *given: Tensor) -> Tensor:
        made = self._made(dict(zip(self._kind.takes, given, strict=True)))
        return self._plain(*given) if made is None else made

    def _made(self, given: dict[str, Tensor]) -> Tensor | None:
        """Return what the loops make of it; None where they do not know it."""
        x = given["x"]
        if x.ndim != 2 or not all(_known(name, tensor, *x.shape) for name, tensor in given.items()):
            return None
        rows, columns = x.shape
        out = torch.empty(rows, columns * self._kind.times, dtype=self._kind.makes)
        call = _Call(rows=rows, columns=columns, out=out.data_ptr(), threads=torch.get_num_threads())
        for name, tensor in given.items():
            setattr(call, name, tensor.data_ptr())
            if name in _MATRICES:
                setattr(call, f"{name}_stride", tensor.stride(0))
        if "low" in given:
            call.low_columns = given["low"].shape[1]
        return out if self._start(self._number, call) else None


def _known(name: str, tensor: Tensor, rows: int, columns: int) -> bool:
    """Return whether the loops know an argument, which belongs to x of (rows, columns)."""
    if type(tensor) is not Tensor or tensor.dtype is not torch.float32 or not tensor.is_cpu:
        return False
    if tensor.layout is not torch.strided or tensor.is_neg() or (tensor.requires_grad and torch.is_grad_enabled()):
        return False
    if name in ("unit", "bound"):
        return tensor.ndim == 0
    if name in ("scale", "bias"):
        return tensor.shape == (columns,) and tensor.is_contiguous()
    adjacent = tensor.shape == (rows, columns) and (tensor.stride(1) == 1 or columns == 1)
    return adjacent or (name == "low" and tensor.shape == (rows, 1))
