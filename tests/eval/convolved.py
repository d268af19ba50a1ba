"""Kernels that convolve integers have a slow, obviously right twin here: NumPy in int64, place by place."""

import copy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from torch import Tensor

from qbw_eval.engine.amx_kernel import EMULATED_FLAGS, REAL_FLAGS, SOURCE, AmxKernel, program_with
from qbw_eval.engine.compiled import KernelError, compile_to
from qbw_eval.engine.convolutions import Window


@cache
def kernel_of(*, emulated: bool) -> AmxKernel:
    """Return the kernel in C++, which takes seconds to compile; once."""
    return AmxKernel(emulated=emulated)


@cache
def kernel_by_instructions() -> AmxKernel:
    """Return it with AMX's instructions, which somebody has to emulate; skips where the compiler knows none; once."""
    kernel = copy.copy(kernel_of(emulated=True))
    try:
        kernel._program = program_with((*EMULATED_FLAGS, *REAL_FLAGS[:4]))
    except KernelError as error:
        pytest.skip(f"this compiler knows no AMX: {error}")
    return kernel


@cache
def assembly_of_kernel() -> str:
    """Return what the compiler makes of the kernel for a CPU with AMX; skips where it knows none; once."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "amx.s"
        try:
            compile_to(path, SOURCE, (*REAL_FLAGS, "-S"))
        except KernelError as error:
            pytest.skip(f"this compiler knows no AMX: {error}")
        return path.read_text()


def sums_of(x: Tensor, weights: Tensor, window: Window) -> np.ndarray:
    """Return the convolution in int64: at every place the images' part under the window times the weights."""
    pads = ((0, 0), (0, 0), (window.padding[0],) * 2, (window.padding[1],) * 2)
    images, w = np.pad(x.numpy().astype(np.int64), pads), weights.numpy().astype(np.int64)
    reach = [gap * (kernel - 1) + 1 for gap, kernel in zip(window.dilation, window.kernel, strict=True)]
    tops = range(0, images.shape[2] - reach[0] + 1, window.stride[0])
    lefts = range(0, images.shape[3] - reach[1] + 1, window.stride[1])
    sums = np.empty((len(x), len(w), len(tops), len(lefts)), dtype=np.int64)
    for row, top in enumerate(tops):
        for column, left in enumerate(lefts):
            under = images[:, :, top : top + reach[0], left : left + reach[1]]
            under = under[:, :, :: window.dilation[0], :: window.dilation[1]]
            sums[:, :, row, column] = np.einsum("ncyx,ocyx->no", under, w)
    return sums


def rows(x: Tensor) -> Tensor:
    """Return images (N, C, H, W) as (pixels, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Compare float32 bit by bit, and whole numbers of the same type."""
    if expected.dtype == torch.float32:
        return torch.equal(found.contiguous().view(torch.int32), expected.contiguous().view(torch.int32))
    return found.dtype == expected.dtype and torch.equal(found, expected)


def assert_sums(found: Tensor, expected: np.ndarray) -> None:
    """As float32: what the sum is rounded to, once."""
    assert found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(found.numpy(), expected.astype(np.float32))
