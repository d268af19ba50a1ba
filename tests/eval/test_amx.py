"""The convolution in C++, its tiles emulated by loops: against NumPy's integers and the CPU's passes, in every bit.

No AMX is needed; where there is, its tiles are tried as well. What they would run is compiled and looked at everywhere.
"""

import copy
import ctypes
import errno
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from convolved import (
    assembly_of_kernel,
    assert_sums,
    kernel_by_instructions,
    kernel_of,
    rows,
    same_bits,
    sums_of,
)
from shares import FULL
from torch import Tensor

from qbw_eval.engine import choose
from qbw_eval.engine.amx_arithmetic import AmxArithmetic, kernel_here, why_inexact
from qbw_eval.engine.amx_kernel import SOURCE, AmxKernel, Levels, packed, why_no_tiles
from qbw_eval.engine.choose import _arithmetic_on
from qbw_eval.engine.compiled import COMPILERS, KernelError, compile_to
from qbw_eval.engine.convolutions import Affine, Rounding, Window
from qbw_eval.engine.onednn import OnednnArithmetic
from qbw_eval.engine.packing import Split, split_weights, why_not_here
from qbw_eval.engine.passes import PLAIN

pytestmark = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="there is no C++ compiler")

CPU = torch.device("cpu")
MUCH = 10**8
TIGHT, WIDER = 3000, 30_000
"""Bytes of images at a time: a row or two of one, and several strips; or of some."""


EMULATED = [True] if why_no_tiles() else [True, False]
"""Where there are tiles, they are tried as well."""


@pytest.fixture(scope="module", params=EMULATED, ids=lambda emulated: "emulated" if emulated else "real")
def kernel(request: pytest.FixtureRequest) -> AmxKernel:
    return kernel_of(emulated=request.param)


def with_scratch(kernel: AmxKernel, scratch: int) -> AmxKernel:
    """Return the same program, which copies less at a time."""
    other = copy.copy(kernel)
    other._scratch = scratch
    return other


def with_some_scratch(kernel: AmxKernel, seed: int) -> AmxKernel:
    """Return the same program with as much as it has, or with little."""
    scratch = (None, TIGHT, None, WIDER)[seed // 2 % 4]
    return kernel if scratch is None else with_scratch(kernel, scratch)


def images(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last)


def split_of(weights: Tensor, largest: int = 255) -> Split:
    split = split_weights(weights, largest, pairs_saturate=False)
    assert split is not None
    return split


def plain_affine(outputs: int) -> Affine:
    return Affine(torch.ones(outputs), torch.zeros(outputs))


def plainly(kernel: AmxKernel, x: Tensor, weights: Tensor, window: Window) -> Tensor:
    """Convolve, and nothing else."""
    return kernel.convolve(images(x), packed(split_of(weights), window), plain_affine(len(weights)))


@contextmanager
def number_of_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- sums of integers -----------------------------------------------------------------------------------------------


def random_case(seed: int) -> tuple[Tensor, Tensor, Window]:
    """Return images, weights (int8, or odd and twice as wide) and a window, hardly ever a multiple of a tile."""
    draw = np.random.default_rng(seed)
    kernel, stride, dilation, padding = (
        (int(draw.integers(low, high)), int(draw.integers(low, high))) for low, high in ((1, 4), (1, 4), (1, 3), (0, 4))
    )
    if seed % 8 == 0:
        kernel = (7, 7)
    elif seed % 8 == 1:
        kernel, padding = (1, 1), (0, 0)
    samples = int(draw.choice([1, 2, 3, 5, 16, 17, 35]))
    channels = int(draw.choice([1, 3, 4, 5, 16, 21, 22, 63, 64, 65, 130]))
    outputs = int(draw.choice([1, 2, 15, 16, 17, 32, 33, 50]))
    if max(kernel) > 3:
        channels, samples = min(channels, 5), min(samples, 3)
    reach = [gap * (size - 1) + 1 for gap, size in zip(dilation, kernel, strict=True)]
    height, width = (
        max(1, size - 2 * pad) + int(draw.integers(0, most))
        for size, pad, most in zip(reach, padding, (4, 19 if samples < 5 else 6), strict=True)
    )
    x = draw.integers(0, 256, (samples, channels, height, width), dtype=np.uint8)
    weights = draw.integers(-128, 128, (outputs, channels, *kernel), dtype=np.int32)
    if seed % 2:
        weights = 2 * weights + 1
    return torch.from_numpy(x), torch.from_numpy(weights), Window(kernel, stride, padding, dilation)


@pytest.mark.parametrize("seed", range(400 if FULL else 60))
def test_sums_are_those_of_integers(seed: int, kernel: AmxKernel) -> None:
    """In one piece or in strips; by one thread, or by more than there is work for."""
    x, weights, window = random_case(seed)
    with number_of_threads((1, 2, 5)[seed % 3]):
        found = plainly(with_some_scratch(kernel, seed), x, weights, window)
    assert_sums(found, sums_of(x, weights, window))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    ("shape", "outputs", "threads", "scratch"),
    [
        ((2, 64, 5, 9), 17, 1, TIGHT),  # in lines of 32 pixels, the last of 26
        ((3, 128, 7, 8), 40, 2, 2**20),  # two lines, one of 84 pixels and a rest
        ((35, 192, 1, 1), 33, 1, 2**20),  # a linear layer
        ((1, 64, 1, 3), 70, 4, 2**20),  # a rest alone, its outputs shared out
        ((4, 64, 4, 4), 16, 1, 2**20),  # no rest
    ],
)
def test_a_window_of_one_pixel_is_read_from_the_images_themselves(
    shape: tuple[int, ...], outputs: int, threads: int, scratch: int, wide: bool, kernel: AmxKernel
) -> None:
    draw = np.random.default_rng(outputs)
    x = torch.from_numpy(draw.integers(0, 256, shape, dtype=np.uint8))
    weights = torch.from_numpy(draw.integers(-128, 128, (outputs, shape[1], 1, 1), dtype=np.int32)) * (1 + wide) + wide
    with number_of_threads(threads):
        found = plainly(with_scratch(kernel, scratch), x, weights, Window())
    assert_sums(found, sums_of(x, weights, Window()))


@pytest.mark.parametrize("magnitude", [(255, 255), (-255, 255), (-128, 127), (127, 127)])
def test_the_largest_sums_of_a_large_window_are_exact(magnitude: tuple[int, int], kernel: AmxKernel) -> None:
    """512 channels of 3x3, as a ResNet's last stage has, with every bound at once; a corner and the middle."""
    window = Window((3, 3), padding=(1, 1))
    x = torch.full((1, 512, 2, 2), 255, dtype=torch.uint8)
    x[:, :, 1, 1] = 0
    weights = torch.full((3, 512, 3, 3), magnitude[0], dtype=torch.int32)
    weights[1], weights[2, ::2] = magnitude[1], magnitude[1]
    assert_sums(plainly(kernel, x, weights, window), sums_of(x, weights, window))


def test_up_to_the_last_sum_that_fits_it_is_exact(kernel: AmxKernel) -> None:
    """255 * 255 * 33025 is 2**31 - 33023; one product more does not fit."""
    most = (2**31 - 1) // 255**2
    weights = torch.full((2, most, 1, 1), 255, dtype=torch.int32)
    weights[1] = -255
    x = torch.full((1, most, 1, 2), 255, dtype=torch.uint8)
    x[:, :, :, 1] = 0
    expected = sums_of(x, weights, Window())
    assert abs(expected).max() == 2**31 - 33023
    assert_sums(plainly(kernel, x, weights, Window()), expected)


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (2, 2, 5, 5)])
def test_no_images_give_no_images_and_windows_beside_them_zeros(shape: tuple[int, ...], kernel: AmxKernel) -> None:
    """The second's first windows lie above and beside the image as a whole."""
    weights, window = torch.ones(3, 2, 1, 1, dtype=torch.int32), Window(padding=(2, 2), stride=(2, 2))
    x = torch.ones(shape, dtype=torch.uint8)
    found = plainly(kernel, x, weights, window)
    assert found.shape == (shape[0], 3, 5, 5)
    assert_sums(found, sums_of(x, weights, window))


def test_large_layers_are_cut_up_for_many_threads(kernel: AmxKernel) -> None:
    """More weights than a core's cache holds, fewer groups of images than threads: items share images, not outputs."""
    draw = np.random.default_rng(0)
    x = torch.from_numpy(draw.integers(0, 256, (9, 320, 2, 2), dtype=np.uint8))
    weights = torch.from_numpy(draw.integers(-128, 128, (290, 320, 3, 3), dtype=np.int32))
    window = Window((3, 3), padding=(1, 1))
    with number_of_threads(4):
        found = plainly(kernel, x, weights, window)
    expected = torch.nn.functional.conv2d(x.double(), weights.double(), padding=1)
    assert torch.equal(found.double(), expected)


# --- what follows them ----------------------------------------------------------------------------------------------


def passed(value: Tensor, rounding: Rounding, limits: tuple[float, float]) -> Tensor:
    """Return what `passes` make of (pixels, outputs)."""
    (pixels, outputs), (largest, unit) = value.shape, map(torch.tensor, limits)
    match rounding:
        case Rounding.NONE:
            return value
        case Rounding.SCALED:
            nothing, one = torch.zeros(pixels, 1), torch.tensor(1.0)
            return PLAIN.combined_levels(value, nothing, one, torch.ones(outputs), torch.zeros(outputs), largest)
        case Rounding.CLIPPING:
            return PLAIN.levels_by_clipping(value, unit, largest)
        case Rounding.STEP:
            return PLAIN.levels_by_step(value, unit, largest)


@pytest.mark.parametrize("outputs", [9, 64])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize(("relu", "add"), [(False, False), (True, True), (False, True), (True, False)])
def test_an_epilogue_is_the_cpus_passes_in_every_bit(
    rounding: Rounding, relu: bool, add: bool, wide: bool, outputs: int, kernel: AmxKernel
) -> None:
    """On random scales of either sign, and on ties; sums are below 2**24, where both parts of the CPU's are exact."""
    generator = torch.Generator().manual_seed(int(rounding))
    x = torch.randint(0, 256, (2, 20, 5, 7), generator=generator, dtype=torch.uint8)
    weights = torch.randint(-128, 128, (outputs, 20, 1, 1), generator=generator).int()
    if wide:
        weights = 2 * weights + 1
    sums = torch.from_numpy(sums_of(x, weights, Window()).astype(np.float32))
    scale = torch.rand(outputs, generator=generator) * 2e-4 - 5e-5
    bias = torch.randn(outputs, generator=generator)
    scale[0], bias[0] = 0.5**13, 0.25  # many ties
    scale[1], bias[1] = -0.0, -0.0  # zeros of either sign
    other = images(torch.randn(sums.shape, generator=generator)) if add else None
    limits = (15.0, float(torch.tensor(1.3 if rounding is Rounding.CLIPPING else 0.37)))
    found = kernel.convolve(
        *(images(x), packed(split_of(weights), Window()), Affine(scale, bias)),
        relu=relu,
        other=other,
        rounding=rounding,
        limits=limits,
    )
    least = torch.tensor(0.0 if relu else float("-inf"))
    nothing, one = torch.zeros(len(rows(sums)), 1), torch.tensor(1.0)
    if other is None:
        value = PLAIN.combined(rows(sums), nothing, one, scale, bias, least)
    else:
        value = PLAIN.combined_and_added(rows(sums), nothing, one, scale, bias, rows(other), least)
    expected = passed(value, rounding, limits)
    assert same_bits(rows(found), expected)
    assert len(expected.unique()) > 5


@pytest.mark.parametrize("outputs", [7, 32])
@pytest.mark.parametrize("count", [1, 2])
def test_levels_beside_a_value_are_that_value_rounded(count: int, outputs: int, kernel: AmxKernel) -> None:
    generator = torch.Generator().manual_seed(0)
    x = images(torch.randint(0, 256, (3, 70, 6, 5), generator=generator, dtype=torch.uint8))
    weights = 2 * torch.randint(-128, 128, (outputs, 70, 3, 3), generator=generator).int() + 1
    window = Window((3, 3), (2, 1), (1, 1))
    affine = Affine(torch.full((outputs,), 2.0**-20), torch.linspace(-1, 1, outputs))
    other = images(torch.randn((3, outputs, *window.over(6, 5)), generator=generator))
    besides = [
        Levels(how, limits, torch.full_like(other, 77, dtype=torch.uint8))
        for how, limits in ((Rounding.STEP, (255.0, 0.01)), (Rounding.CLIPPING, (3.0, 0.9)))[:count]
    ]
    weights_packed = packed(split_of(weights), window)
    streaming = copy.copy(kernel)
    streaming._streamed = 0  # past the caches, where outputs fill whole lines
    with number_of_threads(2):
        found = streaming.convolve(x, weights_packed, affine, relu=True, other=other, levels=besides)
    assert same_bits(found, kernel.convolve(x, weights_packed, affine, relu=True, other=other))
    alone = [replace(each, out=torch.full_like(each.out, 78)) for each in besides]
    kernel.round_only(x, weights_packed, affine, relu=True, other=other, levels=alone)
    for each in (*besides, *alone):
        assert same_bits(rows(each.out), passed(rows(found), each.rounding, each.limits))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("rounding", [Rounding.CLIPPING, Rounding.STEP])
def test_rounding_is_division_at_ties_and_beside_them(bits: int, rounding: Rounding, kernel: AmxKernel) -> None:
    """What is rounded is what is added to sums of zero."""
    limits = (2.0**bits - 1, 0.7)
    values = torch.randn(16 * 700, generator=torch.Generator().manual_seed(bits)) * 2
    values[:256] = (torch.arange(256) + 0.5) * 0.7  # as near to ties as float32 comes
    values[256:512] = values[:256] / (2.0**bits - 1)
    other = images(values.view(1, 16, 28, 25))
    x, weights = torch.zeros(1, 1, 28, 25, dtype=torch.uint8), torch.ones(16, 1, 1, 1, dtype=torch.int32)
    found = kernel.convolve(
        *(images(x), packed(split_of(weights), Window()), plain_affine(16)),
        other=other,
        rounding=rounding,
        limits=limits,
    )
    assert same_bits(rows(found), passed(rows(other), rounding, limits))


def test_what_is_no_number_stays_so_and_is_rounded_to_zero(kernel: AmxKernel) -> None:
    odd = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0, 0.0, 1e-45, 3e38, -3e38])
    other = images(odd.repeat(2).view(1, 16, 1, 1))
    x, weights = torch.zeros(1, 1, 1, 1, dtype=torch.uint8), torch.ones(16, 1, 1, 1, dtype=torch.int32)
    besides = [
        Levels(how, (15.0, 0.5), torch.empty(1, 16, 1, 1, dtype=torch.uint8))
        for how in (Rounding.CLIPPING, Rounding.STEP)
    ]
    weights_packed, affine = packed(split_of(weights), Window()), plain_affine(16)
    for relu, least in ((False, float("-inf")), (True, 0.0)):
        found = kernel.convolve(images(x), weights_packed, affine, relu=relu, other=other, levels=besides)
        expected = torch.maximum(torch.zeros(()) + other, torch.tensor(least))
        np.testing.assert_array_equal(found.numpy(), expected.numpy())
        numbers = ~expected.isnan()
        assert torch.equal(found.signbit()[numbers], expected.signbit()[numbers])
        for each in besides:
            assert rows(each.out)[0, :8].tolist() == [0, 15, 0, 0, 0, 0, 15, 0]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="how much memory is in use is read on Linux")
def test_many_images_of_many_channels_are_copied_a_few_at_a_time(kernel: AmxKernel) -> None:
    """Sixteen would fill tiles, and take 180 MB where windows reach this far; a thread keeps what it copied to."""

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    window = Window((3, 3), (1, 1), (36, 36), (36, 36))
    x = images(torch.full((32, 2048, 2, 2), 3, dtype=torch.uint8))
    weights = torch.zeros(1, 2048, 3, 3, dtype=torch.int32)
    weights[:, :, 1, 1] = 1
    packed_weights = packed(split_of(weights), window)
    with number_of_threads(1):
        before = resident_bytes()
        found = kernel.convolve(x, packed_weights, plain_affine(1))
        assert resident_bytes() - before < 60_000_000
    assert bool((found == 3 * 2048).all())


# --- where it is used, and where not --------------------------------------------------------------------------------


def test_it_is_found_exact(kernel: AmxKernel) -> None:
    assert why_inexact(kernel) is None


class Faulty(AmxKernel):
    """A kernel that is given something else than it is called with."""

    @classmethod
    def of(cls, kernel: AmxKernel, fault: Callable[[dict[str, Any]], dict[str, Any]]) -> "Faulty":
        faulty = object.__new__(cls)
        vars(faulty).update(vars(kernel), fault=fault)
        return faulty

    def convolve(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weights, affine = args
        return super().convolve(**self.fault({"x": x, "weights": weights, "affine": affine, **kwargs}))  # type: ignore[attr-defined]  # see `of`


FAULTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "no second part": lambda call: call | {"weights": replace(call["weights"], factor=1)},
    "weights one less": lambda call: call | {"weights": replace(call["weights"], tiles=call["weights"].tiles - 1)},
    "another border": lambda call: call | {"x": torch.roll(call["x"], 1, dims=2)},
    "STEP for CLIPPING": lambda call: (
        call | ({"rounding": Rounding.STEP} if call.get("rounding") is Rounding.CLIPPING else {})
    ),
    "ReLU is left out": lambda call: call | {"relu": False},
    "levels are left out": lambda call: call | {"levels": ()},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_kernel_that_is_wrong_is_found_out(fault: str, kernel: AmxKernel) -> None:
    assert why_inexact(Faulty.of(kernel, FAULTS[fault])) == "AMX's convolution of integers is not exact here"


def test_where_there_is_a_kernel_it_is_taken_and_where_it_is_wrong_onednn(
    kernel: AmxKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "fastest_passes", lambda: PLAIN)
    between = "what lies between them is plain torch, since no C++ compiler is found"
    for here, kind, words in (
        (
            kernel,
            AmxArithmetic,
            f"by AMX, float32 as three bfloat16 numbers each, with what follows in the same pass; {between}",
        ),
        (None, OnednnArithmetic, between),
        ("its compiler fails", OnednnArithmetic, f"{between}; by oneDNN, not AMX: its compiler fails"),
        (
            Faulty.of(kernel, FAULTS["ReLU is left out"]),
            OnednnArithmetic,
            f"{between}; by oneDNN: AMX's convolution of integers is not exact here",
        ),
    ):
        monkeypatch.setattr(choose, "kernel_here", lambda here=here: here)
        arithmetic, found = _arithmetic_on(CPU, MUCH)
        assert (type(arithmetic), found) == (kind, words)


def test_it_runs_on_the_cpu_only(kernel: AmxKernel) -> None:
    arithmetic = AmxArithmetic(MUCH, PLAIN, kernel)
    assert arithmetic.why_not([CPU]) is None
    assert arithmetic.why_not([CPU, torch.device("meta")]) == "it runs on the CPU only"


@pytest.mark.skipif(why_not_here() is not None, reason=f"no oneDNN to hand layers to: {why_not_here()}")
def test_what_it_does_not_know_is_handed_to_onednn(kernel: AmxKernel) -> None:
    arithmetic = AmxArithmetic(MUCH, PLAIN, kernel)
    weights = torch.tensor([-3, 5]).int().view(2, 1, 1, 1)
    for few, groups, factor in ((weights, 1, 1), (weights, 2, 1), (weights * 51, 1, 2), (weights * 40, 1, 16)):
        split = arithmetic.split(few, 255, groups)
        assert isinstance(split, Split)
        assert split.factor == factor
    assert isinstance(arithmetic.split(torch.full((2, 33026, 1, 1), 255, dtype=torch.int32), 255, 1), str)


def test_what_a_machine_without_amx_lacks_is_said(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    flags = "fpu amx_bf16 amx_tile amx_int8 avx512f avx512bw avx512dq avx512vl"
    cpuinfo.write_text(f"processor : 0\nflags\t\t: {flags}\nbugs :\n")
    assert why_no_tiles(cpuinfo) is None
    cpuinfo.write_text(f"processor : 0\nflags\t\t: {flags.replace('amx_int8', '')}\nbugs : amx_int8\n")
    assert why_no_tiles(cpuinfo) == "it has no AMX"
    cpuinfo.write_text("")
    assert why_no_tiles(cpuinfo) == "it has no AMX"
    assert why_no_tiles(tmp_path / "nothing") == "whether it has AMX is known on Linux only"


@pytest.mark.skipif(why_no_tiles() is None, reason="this machine has AMX")
def test_without_amx_there_is_no_kernel() -> None:
    with pytest.raises(KernelError, match=r"^it has no AMX$"):
        AmxKernel()
    assert kernel_here() is None


def test_without_a_compiler_that_works_there_is_no_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match=r"^no C\+\+ compiler is found$"):
        AmxKernel(emulated=True)
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'warning: old' >&2\necho 'amx.cpp: error: too new' >&2\nexit 1\n")
    compiler.chmod(0o700)
    with pytest.raises(KernelError, match=r"^its C\+\+ compiler fails \(amx.cpp: error: too new\)$"):
        AmxKernel(emulated=True)
    compiler.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(KernelError, match=r"^its C\+\+ compiler fails \(exit code 3\)$"):
        AmxKernel(emulated=True)
    compiler.write_text("#!/nothing\n")
    with pytest.raises(KernelError, match=r"^its C\+\+ compiler does not run \(FileNotFoundError\)$"):
        AmxKernel(emulated=True)
    compiler.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(KernelError, match=r"^what is compiled cannot be loaded \(.*amx.so: cannot open shared object"):
        AmxKernel(emulated=True)


def test_without_a_folder_that_can_be_written_there_is_no_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    with pytest.raises(KernelError, match=r"^there is no folder to compile it in \(No such file or directory\)$"):
        AmxKernel(emulated=True)


def test_a_folder_that_cannot_be_removed_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, where a library that is loaded keeps a name; here a compiler that writes none says what came of it."""

    def busy(*_args: Any, **_more: Any) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    compiler, folder = tmp_path / "c++", tmp_path / "folder"
    compiler.write_text("#!/bin/sh\nexit 0\n")
    compiler.chmod(0o700)
    folder.mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", busy)
        with pytest.raises(KernelError, match=r"^what is compiled cannot be loaded"):
            AmxKernel(emulated=True)
    assert len(list(folder.iterdir())) == 1


def test_threads_are_torchs_own(kernel: AmxKernel) -> None:
    """One OpenMP is in memory for all of a call, whose threads are those that torch has started, and no more."""

    def libraries() -> set[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return {line.split()[-1] for line in lines if re.search(r"lib(gomp|omp|iomp)", line)}

    before = libraries()
    with number_of_threads(3):
        torch.ones(2**18).exp()  # starts them
        running = len(list(Path("/proc/self/task").iterdir()))
        x, weights, window = random_case(2)
        for _ in range(3):
            plainly(kernel, x, weights, window)
            torch.ones(2**18).exp()
        assert len(list(Path("/proc/self/task").iterdir())) == running
    assert libraries() == before


# --- what a CPU with AMX would run ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def assembly() -> str:
    return assembly_of_kernel()


def test_with_amx_it_multiplies_tiles_without_anything_else_on_the_way(assembly: str) -> None:
    """Between the first and the last of four multiplications nothing is stored, and tiles are loaded once each."""
    inner = re.search(r"tdpbusd[^\n]*tmm0\n((?:(?!tmm0\n).)*?)tdpbusd[^\n]*tmm3\n", assembly, flags=re.DOTALL)
    assert inner is not None
    assert len(re.findall("tdpbusd", inner[1])) == 2
    assert len(re.findall("tileloadd", inner[1])) == 2
    assert "call" not in inner[1]
    assert not re.search(r"mov\S*\s+%\w+, *-?\w*\(", inner[1])


def test_with_amx_what_follows_is_done_sixteen_at_a_time_and_nothing_is_contracted(assembly: str) -> None:
    for instruction in ("vcvtdq2ps", "vmulps", "vaddps", "vdivps", "vpmovdb"):
        assert re.search(rf"{instruction}\b.*zmm", assembly), instruction
    assert not re.search(r"vfn?m(add|sub)", assembly)
    assert not re.search(r"vrcp|vcvtdq2ps.*[^z](xmm|ymm)", assembly)


@pytest.fixture
def instructions(tmp_path: Path) -> Iterator[ctypes.CDLL]:
    """AMX's instructions emulated one by one, wherever they stand in this process."""
    path, source = tmp_path / "instructions.so", Path(__file__).with_name("amx_instructions.cpp")
    compiler = next(filter(None, map(shutil.which, COMPILERS)))
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    emulator = ctypes.CDLL(str(path))
    emulator.stop.restype = ctypes.c_long
    assert emulator.emulate() == 0
    try:
        yield emulator
    finally:
        emulator.stop()


@pytest.mark.parametrize("machine", ["x86-64", "x86-64-v4"])
def test_emulated_it_is_compiled_for_old_cpus_and_for_those_with_avx512(machine: str, tmp_path: Path) -> None:
    compile_to(tmp_path / "none", SOURCE, (f"-march={machine}", "-fsyntax-only"))


@pytest.mark.skipif(why_no_tiles() is None, reason="this machine has AMX")
def test_with_amx_its_instructions_do_what_loops_do(instructions: ctypes.CDLL) -> None:
    """All that a CPU with AMX would run, but that sixteen numbers are as many registers as this CPU makes of them."""
    kernel = kernel_by_instructions()
    assert why_inexact(kernel) is None
    for seed in range(200 if FULL else 24):
        x, weights, window = random_case(seed)
        with number_of_threads(1 + seed % 2):
            found = plainly(with_some_scratch(kernel, seed), x, weights, window)
        assert torch.equal(found, plainly(kernel_of(emulated=True), x, weights, window))
    assert instructions.stop() > 10_000
