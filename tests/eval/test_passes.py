"""What lies between integer convolutions: NumPy's float32 in every bit, compiled or not."""

import itertools
import os
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qbw_eval.engine.compiled import COMPILERS
from qbw_eval.engine.compiled_passes import fastest_passes
from qbw_eval.engine.passes import PLAIN, Passes

Floats = np.ndarray
MODERATE = settings(max_examples=50, deadline=None)  # the machine may be busy


# --- the slow twins: NumPy, one rounding to float32 an operation -----------------------------------------------------


def to_levels(x: Floats, largest: float) -> Floats:
    assert x.dtype == np.float32
    return np.rint(np.minimum(np.maximum(x, np.float32(0)), np.float32(largest))).astype(np.uint8)


def levels_by_clipping(x: Floats, clipping: float, largest: float) -> Floats:
    clipped = np.minimum(np.maximum(x, np.float32(0)), np.float32(clipping))
    return np.rint(clipped * np.float32(largest) / np.float32(clipping)).astype(np.uint8)


def affine(high: Floats, low: Floats, factor: float, scale: Floats, bias: Floats) -> Floats:
    result: Floats = (high * np.float32(factor) + low) * scale + bias
    assert result.dtype == np.float32
    return result


def tensor(value: float) -> Tensor:
    return torch.tensor(float(value))


def assert_same_bits(found: Tensor, expected: Floats) -> None:
    assert found.numpy().dtype == expected.dtype
    assert found.shape == expected.shape
    if expected.dtype == np.float32:
        np.testing.assert_array_equal(found.numpy().view(np.int32), expected.view(np.int32))
    else:
        np.testing.assert_array_equal(found.numpy(), expected)


def random_floats(seed: int, *shape: int, size: float = 3.0) -> Floats:
    return (np.random.default_rng(seed).normal(size=shape) * size).astype(np.float32)


def check(passes: Passes, seed: int, pixels: int, outputs: int, bits: int) -> None:
    """Compare every pass with its twin on random values, ties among them."""
    n = 2.0**bits - 1
    clipping, step = float(np.float32(0.7 + seed % 7)), float(np.float32(0.03 + seed % 5 / 16))
    x = random_floats(seed, pixels, outputs)
    halves = np.float32(step) * (np.arange(outputs, dtype=np.float32) + np.float32(0.5))
    x[0] = halves  # for LSQ, as near to ties as float32 comes
    assert_same_bits(
        passes.levels_by_clipping(torch.from_numpy(x), tensor(clipping), tensor(n)), levels_by_clipping(x, clipping, n)
    )
    assert_same_bits(
        passes.levels_by_step(torch.from_numpy(x), tensor(step), tensor(n)), to_levels(x / np.float32(step), n)
    )
    for wide in (n, 2.0**16 - 1):
        f32, c, s = np.float32(wide), np.float32(clipping), np.float32(step)
        clipped = np.rint(np.clip(x, np.float32(0), c) * f32 / c) * c / f32
        assert_same_bits(passes.values_by_clipping(torch.from_numpy(x), tensor(clipping), tensor(wide)), clipped)
        stepped = np.rint(np.clip(x / s, np.float32(0), f32)) * s
        assert_same_bits(passes.values_by_step(torch.from_numpy(x), tensor(step), tensor(wide)), stepped)
    other = random_floats(seed + 1, pixels, outputs)
    high = np.random.default_rng(seed + 2).integers(-(2**20), 2**20, (pixels, outputs)).astype(np.float32)
    scale, bias = random_floats(seed + 3, outputs, size=1e-4), random_floats(seed + 4, outputs)
    for least in (0.0, -np.inf):
        bound = np.float32(least)
        found = passes.added(torch.from_numpy(x), torch.from_numpy(other), tensor(least))
        assert_same_bits(found, np.maximum(x + other, bound))
    for low_outputs, factor in ((1, 2.0), (outputs, 16.0)):
        low = np.random.default_rng(seed + 5).integers(-(2**10), 2**10, (pixels, low_outputs)).astype(np.float32)
        arguments = (
            *(torch.from_numpy(high), torch.from_numpy(low), tensor(factor)),
            *(torch.from_numpy(scale), torch.from_numpy(bias)),
        )
        expected = affine(high, low, factor, scale, bias)
        assert_same_bits(passes.combined_levels(*arguments, tensor(n)), to_levels(expected, n))
        for least in (0.0, -np.inf):
            bound = np.float32(least)
            assert_same_bits(passes.combined(*arguments, tensor(least)), np.maximum(expected, bound))
            found = passes.combined_and_added(*arguments, torch.from_numpy(other), tensor(least))
            assert_same_bits(found, np.maximum(expected + other, bound))


@MODERATE
@given(st.integers(0, 2**16), st.integers(1, 40), st.integers(1, 40), st.integers(1, 8))
def test_plain_passes_are_numpys_float32_in_every_bit(seed: int, pixels: int, outputs: int, bits: int) -> None:
    check(PLAIN, seed, pixels, outputs, bits)


def test_ties_go_to_the_even_level_and_ends_clip() -> None:
    ties = torch.tensor([-1.0, 0.0, 0.5, 1.5, 2.5, 3.5, 253.5, 254.5, 255.5, 1e30])
    expected = [0, 0, 0, 2, 2, 4, 254, 254, 255, 255]
    one, largest = tensor(1), tensor(255)
    zeros, ones = torch.zeros(1), torch.ones(1)
    assert PLAIN.levels_by_step(ties, one, largest).tolist() == expected
    assert PLAIN.levels_by_clipping(ties, largest, largest).tolist() == expected
    rows = PLAIN.combined_levels(ties[:, None], zeros[:, None], one, ones, zeros, largest)
    assert rows[:, 0].tolist() == expected
    halved = PLAIN.levels_by_step(torch.tensor([0.25, 0.75, 1.25]), tensor(0.5), tensor(3))
    assert halved.tolist() == [0, 2, 2]


def test_a_sum_is_rounded_once_an_operation_and_never_fused() -> None:
    """(1 + 2**-12)**2 - 1 - 2**-11 is 2**-24, as fused operations would say; rounding in between gives 0."""
    x = torch.full((1, 1), 1 + 2.0**-12)
    found = PLAIN.combined(x, torch.zeros(1, 1), tensor(1), x[0], torch.tensor([-1 - 2.0**-11]), tensor(-1))
    assert found.item() == 0.0


# --- compiled -------------------------------------------------------------------------------------------------------


NAN = float("nan")
INFINITE = float("inf")
SPECIAL = torch.tensor(
    [NAN, INFINITE, -INFINITE, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 0.5, 1.5, 2.5, 254.5, 255.5]
)
THREADED = 40_000
"""Pixels for two threads and more."""


@pytest.fixture(scope="module")
def compiled() -> Passes:
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("there is no C++ compiler to compile with")
    passes = fastest_passes()
    assert passes.compiled, "a compiler that is there works"
    return passes


def arguments_of(name: str, seed: int, pixels: int, outputs: int) -> tuple[Tensor, ...]:
    """Return what a pass takes at random, special values and ties among it; parts of a split lie beside each other."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        values = 3 * torch.randn(*shape, generator=generator)
        special = SPECIAL[torch.randint(len(SPECIAL), shape, generator=generator)]
        return torch.where(torch.rand(*shape, generator=generator) < 0.2, special, values)

    def one_of(*numbers: float) -> Tensor:
        return torch.tensor(numbers[int(torch.randint(len(numbers), (), generator=generator))])

    least, largest = one_of(0.0, -INFINITE, 0.25), one_of(1.0, 3.0, 15.0, 255.0)
    if name.startswith(("levels", "halves", "values")):
        widest = largest if name.startswith("levels") else one_of(1023.0, 65535.0)
        return some(pixels, outputs), one_of(0.3, 1.0, 7.5, 1e-3, 1e-40, 1e38, 0.0, INFINITE), widest
    if name == "added":
        return some(pixels, outputs), some(pixels, outputs), least
    low_outputs = int(one_of(1, outputs))
    both = some(pixels, outputs + max(16, low_outputs))
    split = both[:, :outputs], both[:, outputs : outputs + low_outputs], one_of(2.0, 16.0), some(outputs), some(outputs)
    if name == "combined_levels":
        return *split, largest
    return (*split, some(pixels, outputs), least) if name == "combined_and_added" else (*split, least)


def assert_as_plain(found: Tensor, expected: Tensor, bound: Tensor) -> None:
    """Compare every bit, but for those that plain torch itself sets by where an element lies."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.is_contiguous()
    if found.dtype == torch.float32:
        assert torch.equal(found.isnan(), expected.isnan())
        if bound == 0:
            expected = expected + 0.0  # max(-0, 0), whose sign it keeps behind its last whole vector
        found, expected = (tensor.nan_to_num(nan=0, posinf=INFINITE, neginf=-INFINITE) for tensor in (found, expected))
        found, expected = found.view(torch.int32), expected.view(torch.int32)
    assert torch.equal(found, expected)


NAMES = [field.name for field in fields(Passes) if field.name != "compiled"]


def test_compiled_passes_are_numpys_float32_in_every_bit(compiled: Passes) -> None:
    for seed, (pixels, outputs, bits) in enumerate([(37, 17, 8), (64, 32, 2), (5, 48, 4), (1, 1, 1), (700, 129, 7)]):
        check(compiled, seed, pixels, outputs, bits)
    x = torch.full((2, 16), 1 + 2.0**-12)
    found = compiled.combined(x, torch.zeros(2, 16), tensor(1), x[0], torch.full((16,), -1 - 2.0**-11), tensor(-1))
    assert bool((found == 0).all()), "compilers contract multiplications and additions unless told not to"


@pytest.mark.parametrize("name", NAMES)
def test_compiled_passes_are_plain_ones_in_every_bit(compiled: Passes, name: str) -> None:
    sizes = [*itertools.product((0, 1, 2, 7, 33), (0, 1, 2, 3, 15, 16, 17, 40, 64, 127)), (THREADED, 3), (1001, 130)]
    for seed, (pixels, outputs) in enumerate(sizes):
        given = arguments_of(name, seed, pixels, outputs)
        assert_as_plain(getattr(compiled, name)(*given), getattr(PLAIN, name)(*given), given[-1])


@pytest.mark.parametrize("name", NAMES)
def test_rows_need_not_follow_each_other(compiled: Passes, name: str) -> None:
    x, *others = arguments_of(name, 3, 34, 24)
    apart = torch.cat([x, torch.full((34, 5), NAN)], dim=1)[:, :24]
    assert not apart.is_contiguous()
    assert torch.equal(
        getattr(compiled, name)(apart, *others).view(torch.uint8), getattr(compiled, name)(x, *others).view(torch.uint8)
    )


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_no_number_of_threads_changes_a_bit(compiled: Passes, name: str, threads: int) -> None:
    before = torch.get_num_threads()
    given = arguments_of(name, 5, THREADED // 16, 48)
    try:
        torch.set_num_threads(threads)
        found = getattr(compiled, name)(*given)
        torch.set_num_threads(before)
        assert_as_plain(found, getattr(PLAIN, name)(*given), given[-1])
    finally:
        torch.set_num_threads(before)


def test_a_negative_zero_is_none_where_the_least_is_zero(compiled: Passes) -> None:
    zeros = torch.full((5, 7), -0.0)
    assert not compiled.added(zeros, zeros, tensor(0)).signbit().any()
    assert compiled.added(zeros, zeros, tensor(-1)).signbit().all()


UNKNOWN = {
    "columns apart": lambda x, y, n: (x.T, y.T, n),
    "one vector": lambda x, y, n: (x[0], y[0], n),
    "three dimensions": lambda x, y, n: (x[None], y[None], n),
    "repeated rows": lambda x, y, n: (x, y[:1], n),
    "repeated columns": lambda x, y, n: (x, y[:, :1], n),
    "one value for all": lambda x, y, n: (x[:, :1].expand(-1, 5), y[:, :5], n),
    "float64": lambda x, y, n: (x.double(), y, n),
    "integers": lambda x, y, n: (x.int(), y.int(), n.int()),
    "a bound for each": lambda x, y, n: (x, y, n * torch.arange(6.0)),
    "a bound that is NaN": lambda x, y, n: (x, y, n * NAN),
    "negative, lazily": lambda x, y, n: (torch._neg_view(x), y, n),
    "another device": lambda x, y, n: (x.to("meta"), y.to("meta"), n.to("meta")),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_the_loops_do_not_know_is_left_to_plain_torch(compiled: Passes, what: str) -> None:
    given = UNKNOWN[what](3 * torch.randn(9, 6), torch.randn(9, 6), tensor(0.5))
    found, expected = compiled.added(*given), PLAIN.added(*given)
    assert (found.dtype, found.shape, found.device) == (expected.dtype, expected.shape, expected.device)
    assert found.is_meta or torch.equal(found.nan_to_num(nan=77), expected.nan_to_num(nan=77))


@pytest.mark.parametrize("largest", [NAN, -1.0, 0.0, 70_000.0])
@pytest.mark.parametrize("name", ["levels_by_step", "halves_by_step", "values_by_step"])
def test_largest_levels_that_no_grid_has_are_plain_torchs(compiled: Passes, name: str, largest: float) -> None:
    given = 3 * torch.randn(9, 6), tensor(1e-5), tensor(largest)
    found, expected = getattr(compiled, name)(*given), getattr(PLAIN, name)(*given)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_gradients_are_plain_torchs(compiled: Passes) -> None:
    x = torch.ones(4, 6, requires_grad=True)
    compiled.added(x, torch.ones(4, 6), tensor(0)).sum().backward()
    assert x.grad is not None
    assert x.grad.eq(1).all()
    with torch.no_grad():
        assert not compiled.added(x, torch.ones(4, 6), tensor(0)).requires_grad


# --- compilers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPILERS)
def test_one_compiler_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = next(filter(None, map(shutil.which, COMPILERS)), None)
    if real is None:
        pytest.skip("there is no C++ compiler to compile with")
    compiler = tmp_path / name
    compiler.write_text(f'#!/bin/sh\nPATH="{os.environ["PATH"]}" exec "{real}" "$@"\n')
    compiler.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fastest_passes.__wrapped__().compiled


@pytest.mark.parametrize("script", [None, "#!/bin/sh\nexit 1\n", "#!/bin/sh\nexit 0\n", "#!/nothing\n"])
def test_without_a_compiler_that_works_passes_are_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "c++").write_text(script)
        (tmp_path / "c++").chmod(0o700)
    assert fastest_passes.__wrapped__() is PLAIN


def test_without_a_folder_to_compile_in_passes_are_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nothing"))
    assert fastest_passes.__wrapped__() is PLAIN
