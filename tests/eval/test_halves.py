"""Layers of 9 to 16 bits in integers, in halves of a byte each: the kernel against NumPy's, the engine against float64.

AMX's tiles are emulated by loops, and its instructions one by one; where there is AMX, its tiles are tried as well.
"""

import copy
import ctypes
import itertools
import re
import shutil

import numpy as np
import pytest
import torch
from convolved import assembly_of_kernel, assert_sums, kernel_by_instructions, kernel_of, sums_of
from random_networks import configurations_of, layer_names_of, naive_logits, randomize
from shares import FULL, ONLY_IN_FULL
from test_amx import (
    EMULATED,
    images,
    instructions,  # noqa: F401 - a fixture
    number_of_threads,
    random_case,
    with_some_scratch,
)
from test_integer import MUCH, Pair, logits_of, only_integers
from torch import Tensor, nn

from qbw_eval.engine.amx_arithmetic import AmxArithmetic, why_inexact
from qbw_eval.engine.amx_kernel import (
    AmxKernel,
    Levels,
    packed,
    why_no_tiles,
)
from qbw_eval.engine.compiled import COMPILERS
from qbw_eval.engine.compiled_passes import fastest_passes
from qbw_eval.engine.convolutions import Affine, Rounding, Window
from qbw_eval.engine.integer import DeclinedError, IntegerEngine
from qbw_eval.engine.packing import Halves, halve_weights, integers_of, split_weights, why_not_here
from qbw_eval.engine.passes import PLAIN, levels_on
from qbw_eval.quantization.bitwidths import common_options
from qbw_eval.quantization.layers import ActivationGrid, QuantConv2d, QuantizedLayer, Quantizers, QuantLinear

pytestmark = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="there is no C++ compiler")

MOST = 2**16 - 1


@pytest.fixture(scope="module", params=EMULATED, ids=lambda emulated: "emulated" if emulated else "real")
def kernel(request: pytest.FixtureRequest) -> AmxKernel:
    return kernel_of(emulated=request.param)


def halved(levels: Tensor) -> Tensor:
    """Return levels as the kernel reads them: the low bytes of all channels, then the high ones."""
    values = levels.numpy()
    return images(torch.from_numpy(np.concatenate([values % 256, values // 256], axis=1).astype(np.uint8)))


def whole(halves: Tensor) -> np.ndarray:
    """Undo `halved`."""
    low, high = np.split(halves.numpy().astype(np.int64), 2, axis=1)
    return low + 256 * high


def in_halves(weights: Tensor) -> Halves:
    halves = halve_weights(weights, MOST)
    assert halves is not None
    return halves


def plainly(kernel: AmxKernel, levels: Tensor, weights: Tensor, window: Window) -> Tensor:
    """Convolve, and nothing else."""
    affine = Affine(torch.ones(len(weights)), torch.zeros(len(weights)))
    return kernel.convolve(halved(levels), packed(in_halves(weights), window), affine)


def wide_case(seed: int) -> tuple[Tensor, Tensor, Window]:
    """Return levels of 16 bits, weights of 16 bits (or odd ones of 17) and a window."""
    x, weights, window = random_case(seed)
    draw = np.random.default_rng(seed)
    levels = draw.integers(0, MOST + 1, tuple(x.shape), dtype=np.int32)
    m = draw.integers(-(2**15), 2**15, tuple(weights.shape), dtype=np.int32)
    return torch.from_numpy(levels), torch.from_numpy(2 * m + 1 if seed % 3 else m), window


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [False, True])
def test_halves_are_bytes_that_make_up_the_weights(odd: bool) -> None:
    m = torch.arange(-(2**15), 2**15, dtype=torch.int32).view(-1, 1, 1, 1)
    halves = in_halves(2 * m + 1 if odd else m)
    assert (halves.high.dtype, halves.low.dtype, halves.factor) == (torch.int8, torch.uint8, 1 + odd)
    assert torch.equal(256 * halves.high.int() + halves.low.int(), m)


def test_weights_or_sums_that_do_not_fit_have_no_halves() -> None:
    ones = torch.ones(1, 22045, 1, 1, dtype=torch.int32)
    assert halve_weights(ones, MOST) is not None
    assert halve_weights(torch.ones(1, 22046, 1, 1, dtype=torch.int32), MOST) is None
    assert halve_weights(ones, MOST + 1) is None
    for weight in (MOST + 2, -MOST - 2, 2**15, -(2**15) - 2):
        assert halve_weights(torch.full((1, 1, 1, 1), weight, dtype=torch.int32), MOST) is None


@pytest.mark.parametrize("weight", ["dorefa", "dorefa_scaled", "lsq"])
@pytest.mark.parametrize("bits", [9, 12, 16])
def test_the_integers_of_wide_weights_are_found(weight: str, bits: int) -> None:
    """Whole numbers, odd ones for DoReFa, whose multiples are the weights but for float32's own rounding."""
    layer = QuantConv2d(24, 20, 3, quantizers=Quantizers(options=(bits,), weight=weight))  # type: ignore[arg-type]  # it is among those
    unit = layer.weight_unit()
    assert unit is not None
    integers = integers_of(layer.quantize_weight().detach(), unit)
    assert integers is not None
    assert int(integers.abs().max()) <= 2**bits - 1
    assert weight == "lsq" or bool((integers % 2 == 1).all())
    weights = layer.quantize_weight().detach()
    assert float((integers.double() * unit - weights).abs().max()) < 2e-7 * float(weights.abs().max())
    assert integers_of(layer.weight.detach(), unit) is None


# --- the kernel -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(300 if FULL else 40))
def test_sums_are_those_of_integers(seed: int, kernel: AmxKernel) -> None:
    levels, weights, window = wide_case(seed)
    with number_of_threads((1, 2, 5)[seed % 3]):
        found = plainly(with_some_scratch(kernel, seed), levels, weights, window)
    assert_sums(found, sums_of(levels, weights, window))


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(
    ("shape", "outputs", "threads"),
    [((2, 64, 5, 9), 17, 1), ((3, 128, 7, 8), 40, 2), ((35, 192, 1, 1), 33, 1), ((1, 64, 1, 3), 70, 4)],
)
def test_a_window_of_one_pixel_is_read_from_the_images_themselves(
    shape: tuple[int, ...],
    outputs: int,
    threads: int,
    odd: bool,
    kernel: AmxKernel,
) -> None:
    draw = np.random.default_rng(outputs)
    levels = torch.from_numpy(draw.integers(0, MOST + 1, shape, dtype=np.int32))
    weights = torch.from_numpy(draw.integers(-(2**15), 2**15, (outputs, shape[1], 1, 1), dtype=np.int32)) * (1 + odd)
    with number_of_threads(threads):
        found = plainly(kernel, levels, weights + odd, Window())
    assert_sums(found, sums_of(levels, weights + odd, Window()))


@pytest.mark.parametrize("magnitude", [(MOST, MOST), (-MOST, MOST), (-MOST, -MOST), (-(2**15), 2**15 - 1)])
def test_the_largest_sums_of_a_large_window_are_exact(
    magnitude: tuple[int, int],
    kernel: AmxKernel,
) -> None:
    window = Window((3, 3), padding=(1, 1))
    levels = torch.full((1, 512, 2, 2), MOST, dtype=torch.int32)
    levels[:, :, 1, 1] = 0
    weights = torch.full((3, 512, 3, 3), magnitude[0], dtype=torch.int32)
    weights[1], weights[2, ::2] = magnitude[1], magnitude[1]
    assert_sums(plainly(kernel, levels, weights, window), sums_of(levels, weights, window))


@pytest.mark.parametrize("m", [255, -(2**15), 2**15 - 1, -1])
def test_up_to_the_largest_window_that_fits_it_is_exact(m: int, kernel: AmxKernel) -> None:
    """Every half at its bound: 255 * 255 or 255 * -128 a product, 22,045 of them."""
    weights = torch.full((2, 22045, 1, 1), m, dtype=torch.int32)
    weights[1] = 2**15 - 1
    for one in (weights, 2 * weights + 1):
        levels = torch.full((1, 22045, 1, 2), MOST, dtype=torch.int32)
        levels[:, :, :, 1] = 255
        assert_sums(plainly(kernel, levels, one, Window()), sums_of(levels, one, Window()))


@pytest.mark.parametrize("outputs", [9, 32])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("largest", [15, 255, 511, MOST])
@pytest.mark.parametrize("rounding", list(Rounding))
def test_any_ending_follows_any_sums(
    rounding: Rounding,
    largest: int,
    wide: bool,
    outputs: int,
    kernel: AmxKernel,
) -> None:
    """Of a byte or two, from layers of a byte or two; beside a value, for two readers, too; in NumPy's float32."""
    draw = np.random.default_rng(largest)
    shape = (2, 20, 5, 7)
    if wide:
        x = torch.from_numpy(draw.integers(0, MOST + 1, shape, dtype=np.int32))
        weights = torch.from_numpy(draw.integers(-(2**15), 2**15, (outputs, 20, 1, 1), dtype=np.int32)) * 2 + 1
        inputs, parts = halved(x), packed(in_halves(weights), Window())
    else:
        x = torch.from_numpy(draw.integers(0, 256, shape, dtype=np.int32))
        weights = torch.from_numpy(draw.integers(-128, 128, (outputs, 20, 1, 1), dtype=np.int32))
        split = split_weights(weights, 255, pairs_saturate=False)
        assert split is not None
        inputs, parts = images(x.to(torch.uint8)), packed(split, Window())
    sums = sums_of(x, weights, Window())
    scale = (draw.random(outputs, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / np.abs(sums).max())
    bias = draw.standard_normal(outputs, dtype=np.float32)
    other = draw.standard_normal(sums.shape, dtype=np.float32)
    unit = np.float32(1.3 if rounding is Rounding.CLIPPING else 1.7 / largest)
    value = sums.astype(np.float32) * scale[:, None, None] + bias[:, None, None]
    added = value + other
    limits = (float(largest), float(unit))

    def levels(values: np.ndarray, how: Rounding) -> np.ndarray:
        n = np.float32(largest)
        if how is Rounding.CLIPPING:
            return np.rint(np.clip(values, 0, unit) * n / unit)
        return np.rint(np.clip(values if how is Rounding.SCALED else values / unit, 0, n))

    def found(tensor: Tensor) -> np.ndarray:
        return whole(tensor) if largest > 255 else tensor.numpy()

    affine = Affine(torch.from_numpy(scale), torch.from_numpy(bias))
    arguments = {"rounding": rounding, "limits": limits}
    if rounding is Rounding.NONE:
        besides = [
            Levels(how, limits, images(torch.full((2, outputs * (1 + (largest > 255)), 5, 7), 77, dtype=torch.uint8)))
            for how in (Rounding.STEP, Rounding.CLIPPING)
        ]
        result = kernel.convolve(inputs, parts, affine, other=images(torch.from_numpy(other)), levels=besides)
        np.testing.assert_array_equal(result.numpy(), added)
        for each in besides:
            np.testing.assert_array_equal(found(each.out), levels(added, each.rounding))
        return
    if rounding is Rounding.SCALED:
        affine = Affine(affine.scale * largest, affine.bias * largest)
        value = sums.astype(np.float32) * affine.scale.numpy()[:, None, None] + affine.bias.numpy()[:, None, None]
    plain = kernel.convolve(inputs, parts, affine, **arguments)  # type: ignore[arg-type]  # mypy knows no dicts of arguments
    expected = levels(value, rounding)
    np.testing.assert_array_equal(found(plain), expected)
    assert len(np.unique(expected)) > 5
    if rounding is not Rounding.SCALED:
        result = kernel.convolve(inputs, parts, affine, other=images(torch.from_numpy(other)), **arguments)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found(result), levels(added, rounding))


@ONLY_IN_FULL
@pytest.mark.skipif(why_no_tiles() is None, reason="this machine has AMX")
def test_with_amx_its_instructions_do_what_loops_do(instructions: ctypes.CDLL) -> None:  # noqa: F811 - the fixture
    """On the largest sums and all endings `test_amx` tries them, too."""
    real = kernel_by_instructions()
    for seed in range(100):
        levels, weights, window = wide_case(seed)
        assert_sums(plainly(real, levels, weights, window), sums_of(levels, weights, window))
    assert instructions.stop() > 5_000


def test_a_kernel_without_the_high_halves_is_found_out(kernel: AmxKernel) -> None:
    class Faulty(AmxKernel):
        def __init__(self) -> None:
            vars(self).update(vars(kernel))

        def convolve(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
            weights = args[0]
            if weights.parts == 2:  # type: ignore[attr-defined]  # they are packed ones
                x = x.clone(memory_format=torch.channels_last)
                x[:, x.shape[1] // 2 :] = 0
            return super().convolve(x, *args, **kwargs)  # type: ignore[arg-type]

    assert why_inexact(Faulty()) == "AMX's convolution of integers is not exact here"


def test_with_amx_halves_are_multiplied_without_anything_else_on_the_way() -> None:
    """Four tiles are loaded for four multiplications; sums are put together and rounded in registers, 64 bits each."""
    assembly = assembly_of_kernel()
    inner = re.search(r"tdpbuud[^\n]*tmm0\n((?:(?!tmm0\n).)*?)tdpbusd[^\n]*tmm3\n", assembly, flags=re.DOTALL)
    assert inner is not None
    assert [len(re.findall(what, inner[1])) for what in ("tdpbusd", "tdpbuud", "tileloadd")] == [1, 1, 2]
    assert not re.search(r"mov\S*\s+%\w+, *-?\w*\(", inner[1])
    conversions = re.findall(r"vcvtqq2ps\s+(\S+), (\S+)", assembly)
    assert conversions
    assert all("zmm" in source and "ymm" in to for source, to in conversions)


# --- passes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clipping", [None, 1.3])
@pytest.mark.parametrize("largest", [511, MOST])
def test_a_pass_makes_halves_of_the_levels(largest: int, clipping: float | None) -> None:
    """As NumPy does, at ties and beside them; NaN becomes 0."""
    unit = (clipping or 1.3) / largest
    values = (torch.arange(-50, largest + 51) + 0.5) * torch.tensor(unit)
    values = torch.cat([values, torch.randn(60), torch.tensor([float("inf"), float("-inf")])])
    values = values[: len(values) // 4 * 4].view(1, 4, -1, 1)
    values[0, 0, 0, 0] = float("nan")
    grid = ActivationGrid(largest=largest, clipping=clipping, unit=unit)
    found = levels_on(grid, images(values), PLAIN)
    x, n = np.nan_to_num(values.numpy(), nan=0.0), np.float32(largest)
    if clipping is None:
        expected = np.rint(np.clip(x / np.float32(unit), 0, n))
    else:
        expected = np.rint(np.clip(x, 0, np.float32(clipping)) * n / np.float32(clipping))
    np.testing.assert_array_equal(whole(found), expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_compiled_passes_make_the_same_halves() -> None:
    passes = fastest_passes()
    values = images(torch.randn(3, 40, 5, 7, generator=torch.Generator().manual_seed(0)))
    for clipping in (None, 0.7):
        grid = ActivationGrid(largest=MOST, clipping=clipping, unit=0.7 / MOST)
        assert torch.equal(levels_on(grid, values, passes), levels_on(grid, values, PLAIN))


# --- networks -------------------------------------------------------------------------------------------------------

needs_onednn = pytest.mark.skipif(why_not_here() is not None, reason=f"no oneDNN for grouped layers: {why_not_here()}")
OPTIONS = (4, 8, 9, 13, 16)


def engine_of(network: nn.Module, inputs: Tensor) -> IntegerEngine:
    arithmetic = AmxArithmetic(MUCH, PLAIN, kernel_of(emulated=True))
    names = layer_names_of(network)
    return IntegerEngine(network, names, inputs, common_options(network), MUCH, arithmetic=arithmetic)


class Straight(nn.Module):
    """Layers behind each other, nothing between them."""

    def __init__(self, *layers: QuantizedLayer) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]  # modules are untyped calls


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Return networks whose layers round for each other, and the shapes of their inputs."""
    plain, lsq = Quantizers(options=OPTIONS), Quantizers(options=OPTIONS, weight="lsq", activation="pact")
    image = (2, 8, 5, 6)
    return {
        "convolutions": (Pair(plain, relu=True, residual=False), image),
        "a sum": (Pair(plain, relu=True, residual=True), image),
        "lsq and pact": (Pair(lsq, relu=False, residual=True), image),
        "linear": (Straight(QuantLinear(40, 12, quantizers=plain), QuantLinear(12, 5, quantizers=lsq)), (3, 40)),
        "linear, images": (
            Straight(QuantLinear(6, 12, quantizers=plain), QuantLinear(12, 5, quantizers=plain)),
            (2, 3, 4, 6),
        ),
        "a linear layer reads rows of images": (
            Straight(QuantConv2d(8, 7, 3, padding=1, quantizers=plain), QuantLinear(6, 5, quantizers=plain)),
            image,
        ),
        "images of rows": (
            Straight(QuantLinear(6, 9, quantizers=plain), QuantConv2d(8, 7, 3, quantizers=plain)),
            image,
        ),
    }


@needs_onednn
@pytest.mark.parametrize("name", networks())
def test_networks_are_a_float64_forwards_at_any_two_bitwidths(name: str) -> None:
    """But for ties, each of which moves one activation by a level; a wrong half would be far off."""
    network, shape = networks()[name]
    network.eval()
    randomize(network, 3)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4)).abs()
    configurations = configurations_of(*itertools.product((8, 9, 13, 16), repeat=2))
    engine = engine_of(network, x)
    assert engine.in_float32 == {}
    with only_integers():
        found = logits_of(engine, x, configurations)
    truth = naive_logits(copy.deepcopy(network).double(), layer_names_of(network), x.double(), configurations)
    for ours, expected, configuration in zip(found, truth, configurations, strict=True):
        assert ours.shape == expected.shape
        bound = 0.02 if 8 in configuration.bitwidths or 9 in configuration.bitwidths else 0.002
        assert float((ours.double() - expected).abs().max()) <= bound * float(expected.abs().max())


@needs_onednn
@pytest.mark.parametrize("residual", [False, True])
def test_a_grouped_layer_of_few_bits_rounds_for_a_reader_of_many(residual: bool) -> None:
    """OneDNN convolves it; at more than 8 bits it runs in float32, for a reason."""
    network = Pair(Quantizers(options=OPTIONS), relu=True, residual=residual).eval()
    network.first = QuantConv2d(8, 8, 3, padding=1, groups=2, quantizers=Quantizers(options=OPTIONS))
    randomize(network, 3)
    x = torch.randn((2, 8, 5, 6), generator=torch.Generator().manual_seed(4)).abs()
    engine = engine_of(network, x)
    assert engine.in_float32 == {
        "first": "its sums do not fit into the integers of this CPU, or it is wide and grouped"
    }
    configurations = configurations_of((4, 16), (4, 9), (16, 16), (9, 8), (4, 8))
    truth = naive_logits(copy.deepcopy(network).double(), layer_names_of(network), x.double(), configurations)
    for ours, expected in zip(logits_of(engine, x, configurations), truth, strict=True):
        assert float((ours.double() - expected).abs().max()) <= 0.02 * float(expected.abs().max())


@needs_onednn
def test_options_above_16_bits_are_declined_in_a_sentence() -> None:
    network = Pair(Quantizers(options=(20, 24)), relu=True, residual=False).eval()
    with pytest.raises(DeclinedError) as error:
        engine_of(network, torch.zeros(1, 8, 4, 4))
    assert str(error.value) == "no bitwidth of [20, 24] is 16 or less"


def errors(found: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return the largest and the root mean square error."""
    distances = (found.double() - truth).abs()
    return float(distances.max()), float(distances.square().mean().sqrt())


@needs_onednn
@pytest.mark.parametrize(("weight", "activation"), [("dorefa", "dorefa"), ("dorefa_scaled", "pact"), ("lsq", "lsq")])
@pytest.mark.parametrize("bits", [9, 12, 16])
def test_a_layer_is_no_further_from_float64_than_float32_is(bits: int, weight: str, activation: str) -> None:
    """The truth is a convolution in float64 of the very integers times their units."""
    quantizers = Quantizers(options=(bits,), weight=weight, activation=activation)  # type: ignore[arg-type]  # they are among those
    layer = QuantConv2d(48, 32, 3, padding=1, quantizers=quantizers)
    network = Straight(layer).eval()
    randomize(network, bits)
    x = torch.rand((2, 48, 9, 9), generator=torch.Generator().manual_seed(bits))
    unit, grid = layer.weight_unit(), layer.activation_grid()
    assert unit is not None
    assert grid is not None
    integers = integers_of(layer.quantize_weight().detach(), unit)
    assert integers is not None
    levels = torch.from_numpy(whole(levels_on(grid, images(x), PLAIN))).double()
    truth = nn.functional.conv2d(levels, integers.double(), padding=1) * (unit * grid.unit)
    configurations = configurations_of([bits])
    with only_integers():
        (ours,) = logits_of(engine_of(network, x), x, configurations)
    (reference,) = naive_logits(network, layer_names_of(network), x, configurations)
    for own, float32 in zip(errors(ours, truth), errors(reference, truth), strict=True):
        assert own <= float32


@needs_onednn
def test_a_network_is_no_further_from_float64_than_float32_is() -> None:
    """Weights lie off ties; activations that are rounded the other way count."""
    own = float32 = 0.0
    for seed in range(6):
        quantizers = Quantizers(options=(16,), weight="lsq", activation="lsq")
        network = Pair(quantizers, relu=True, residual=bool(seed % 2)).eval()
        randomize(network, seed)
        generator = torch.Generator().manual_seed(seed)
        for layer in (network.first, network.second):
            layer.quantize_w.step_size.data.fill_(1 / 2**16)
            layer.quantize_a.step_size.data.fill_(3 / 2**16)
            around = torch.rand(layer.weight.shape, generator=generator) * 0.6 - 0.3
            layer.weight.data = (
                torch.randint(-(2**15), 2**15, layer.weight.shape, generator=generator) + around
            ) / 2**16
        x = torch.rand((4, 8, 12, 12), generator=generator)
        configurations = configurations_of((16, 16))
        names = layer_names_of(network)
        (truth,) = naive_logits(copy.deepcopy(network).double(), names, x.double(), configurations)
        with only_integers():
            (ours,) = logits_of(engine_of(network, x), x, configurations)
        (reference,) = naive_logits(network, names, x, configurations)
        own += errors(ours, truth)[1]
        float32 += errors(reference, truth)[1]
    assert 0 < own <= float32
