"""What lies between integer convolutions: NumPy's float32 in every bit, compiled or not."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qbw_eval.engine.passes import PLAIN, Passes, fastest_passes

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


HAS_COMPILER = any(map(shutil.which, ("c++", "g++", "clang++")))


@pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler to compile with")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # Inductor, of itself
def test_compiled_passes_give_the_same_bits() -> None:
    """The only test that compiles: half a minute on an idle core."""
    compiled = fastest_passes()
    assert compiled.compiled, "a compiler that is there works"
    for seed, (pixels, outputs, bits) in enumerate([(37, 17, 8), (64, 32, 2), (5, 48, 4)]):
        check(compiled, seed, pixels, outputs, bits)
    x = torch.full((2, 16), 1 + 2.0**-12)
    found = compiled.combined(x, torch.zeros(2, 16), tensor(1), x[0], torch.full((16,), -1 - 2.0**-11), tensor(-1))
    assert bool((found == 0).all()), "compilers contract multiplications and additions unless told not to"
