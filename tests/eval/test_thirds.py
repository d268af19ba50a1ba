"""Layers in float32 by AMX, in thirds of bfloat16: the kernel and the engine against float64; torch is farther from it.

AMX's tiles are emulated by loops, and its instructions one by one; where there is AMX, its tiles are tried as well.
"""

import copy
import ctypes
import itertools
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from convolved import assembly_of_kernel, kernel_by_instructions, kernel_of, same_bits
from random_networks import configurations_of, layer_names_of, naive_logits, randomize
from shares import FULL
from test_amx import (
    EMULATED,
    images,
    instructions,  # noqa: F401 - a fixture
    number_of_threads,
    plain_affine,
    random_case,
    with_some_scratch,
)
from test_halves import Straight
from test_integer import MUCH, Pair, logits_of
from torch import Tensor, nn

from benchmarks.agreement import class_changes
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.configurations import sample
from qbw_eval.data.sources import load_split
from qbw_eval.engine.amx_arithmetic import AmxArithmetic, why_inexact
from qbw_eval.engine.amx_kernel import (
    AmxKernel,
    Levels,
    packed,
    why_no_tiles,
)
from qbw_eval.engine.compiled import COMPILERS
from qbw_eval.engine.convolutions import Affine, Rounding, Window
from qbw_eval.engine.integer import IntegerEngine
from qbw_eval.engine.packing import Thirds, thirds_of, why_not_here
from qbw_eval.engine.passes import PLAIN, levels_on
from qbw_eval.networks.build import load_network
from qbw_eval.quantization.bitwidths import common_options, name_layers
from qbw_eval.quantization.layers import ActivationGrid, QuantConv2d, Quantizers, QuantLinear

pytestmark = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="there is no C++ compiler")

CLOSE = 2.0**-20
"""How far from float64 a sum may be, of the magnitudes of all its terms; one product of thirds left out is farther."""


@pytest.fixture(scope="module", params=EMULATED, ids=lambda emulated: "emulated" if emulated else "real")
def kernel(request: pytest.FixtureRequest) -> AmxKernel:
    return kernel_of(emulated=request.param)


def in_thirds(weights: Tensor) -> Thirds:
    thirds = thirds_of(weights)
    assert thirds is not None
    return thirds


def plainly(kernel: AmxKernel, x: Tensor, weights: Tensor, window: Window, **more: Any) -> Tensor:
    """Convolve, and nothing else."""
    return kernel.convolve(images(x), packed(in_thirds(weights), window), plain_affine(len(weights)), **more)


def convolved(x: Tensor, weights: Tensor, window: Window) -> Tensor:
    """Return the convolution by torch, in the type of its arguments."""
    return torch.nn.functional.conv2d(
        x, weights, stride=window.stride, padding=window.padding, dilation=window.dilation
    )


def float_case(seed: int) -> tuple[Tensor, Tensor, Window]:
    """Return images, weights and a window, hardly ever a multiple of a tile; of many magnitudes, or zero."""
    x, weights, window = random_case(seed)
    draw = np.random.default_rng(seed)

    def floats(shape: torch.Size) -> Tensor:
        values = draw.standard_normal(tuple(shape)) * 2.0 ** draw.integers(-12, 12, tuple(shape))
        return torch.from_numpy((values * (draw.random(tuple(shape)) < 0.8)).astype(np.float32))

    return floats(x.shape), floats(weights.shape), window


# --- weights --------------------------------------------------------------------------------------------------------


def test_thirds_are_bfloat16_and_add_up_to_the_weights() -> None:
    draw = np.random.default_rng(0)
    numbers = draw.standard_normal(20_000) * 2.0 ** draw.integers(-90, 100, 20_000)
    numbers[:4] = 0.0, -0.0, 1 - 2.0**-24, -1 + 2.0**-24
    weights = torch.from_numpy(numbers.astype(np.float32)).view(-1, 1, 1, 1)
    thirds = in_thirds(weights)
    parts = [thirds.high, thirds.middle, thirds.low]
    assert all(part.dtype is torch.bfloat16 for part in parts)
    assert torch.equal(sum(part.double() for part in parts), weights.double())
    assert bool((thirds.middle.abs().double() <= 2.0**-8 * weights.abs()).all())
    assert bool((thirds.low.abs().double() <= 2.0**-16 * weights.abs()).all())


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, torch.finfo(torch.float32).max])
def test_weights_that_bfloat16_does_not_reach_have_no_thirds(number: float) -> None:
    weights = torch.ones(2, 3, 1, 1)
    weights[1, 2] = number
    assert thirds_of(weights) is None


# --- the kernel -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(400 if FULL else 60))
def test_sums_are_close_to_those_in_float64(seed: int, kernel: AmxKernel) -> None:
    x, weights, window = float_case(seed)
    with number_of_threads((1, 2, 5)[seed % 3]):
        found = plainly(with_some_scratch(kernel, seed), x, weights, window)
    exact = convolved(x.double(), weights.double(), window)
    magnitudes = convolved(x.double().abs(), weights.double().abs(), window)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert bool(((found - exact).abs() <= CLOSE * magnitudes).all())


@pytest.mark.parametrize(("channels", "size"), [(64, 3), (128, 3), (512, 3), (16, 1), (64, 1), (256, 1), (3, 7)])
def test_sums_are_nearer_to_float64_than_float32s_are(channels: int, size: int, kernel: AmxKernel) -> None:
    """By the root of the mean square, of what layers are given: images without negative values, and small weights."""
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn((2, channels, 9, 9), generator=generator).clamp(min=0)
    weights = torch.randn((32, channels, size, size), generator=generator) * 0.05
    window = Window((size, size))
    exact = convolved(x.double(), weights.double(), window)
    ours = float((plainly(kernel, x, weights, window) - exact).square().mean().sqrt())
    assert 0 < ours < float((convolved(x, weights, window) - exact).square().mean().sqrt())


def test_one_product_is_rounded_little_more_than_once(kernel: AmxKernel) -> None:
    """What is left out is 2**-24 of it, the most that there is, where the numbers are those that come first."""
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn((4, 1, 32, 32), generator=generator), torch.randn((32, 1, 1, 1), generator=generator)
    x[0, 0, 0, 0] = weights[0] = float.fromhex("0x1.00ff8p0")
    exact = x.double() * weights.double().view(1, 32, 1, 1)
    off = (plainly(kernel, x, weights, Window()) / exact - 1).abs()
    assert float(off[0, 0, 0, 0]) > 0.99 * 2.0**-24
    assert float(off.max()) <= 2.0**-23 + 2.0**-29


def test_images_are_clamped_first_and_what_is_no_number_stays_none(kernel: AmxKernel) -> None:
    """Where padding is not clamped."""
    x = torch.randn((2, 21, 5, 6), generator=torch.Generator().manual_seed(0))
    weights = torch.randn((7, 21, 3, 3), generator=torch.Generator().manual_seed(1))
    window = Window((3, 3), padding=(1, 1))
    for between in ((0.0, 1.0), (0.0, math.inf), (0.25, 0.5)):
        assert same_bits(
            plainly(kernel, x, weights, window, between=between), plainly(kernel, x.clamp(*between), weights, window)
        )
    for bits in (0x7FC00000, 0x7F800001, 0x7FFFFFFF, -1):
        x[0, 3, 2, 2] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        found = plainly(kernel, x, weights, window)
        assert bool(found[0, :, 1:4, 1:4].isnan().all())
        assert int(found.isnan().sum()) == 7 * 9


@pytest.mark.parametrize("number", [math.inf, -math.inf, torch.finfo(torch.float32).max])
def test_what_is_infinite_is_as_large_as_bfloat16s_numbers_are(number: float, kernel: AmxKernel) -> None:
    x = torch.randn((1, 21, 4, 4), generator=torch.Generator().manual_seed(0))
    weights = torch.randn((7, 21, 1, 1), generator=torch.Generator().manual_seed(1))
    weights[::2] = weights[::2].bfloat16().float()  # whose middle and low thirds are zero
    x[0, 3, 2, 2] = number
    found, exact = plainly(kernel, x, weights, Window()), convolved(x.double(), weights.double(), Window())
    assert torch.equal(found[0, :, 2, 2].sign(), exact[0, :, 2, 2].sign().float())
    assert bool((found[0, :, 2, 2].abs() > 1e35).all())
    x[0, 3, 2, 2] = math.copysign(torch.finfo(torch.bfloat16).max, number)
    assert same_bits(found, plainly(kernel, x, weights, Window()))


@pytest.mark.parametrize("outputs", [9, 32])
@pytest.mark.parametrize("largest", [15, 511])
@pytest.mark.parametrize("rounding", list(Rounding))
def test_any_ending_follows_float32_too(rounding: Rounding, largest: int, outputs: int, kernel: AmxKernel) -> None:
    """In the bits that passes give, from the same sums; beside a value, for two readers, too."""
    generator = torch.Generator().manual_seed(largest)
    x = torch.randn((2, 20, 5, 7), generator=generator)
    weights = torch.randn((outputs, 20, 1, 1), generator=generator)
    other = images(torch.randn((2, outputs, 5, 7), generator=generator))
    affine = Affine(torch.rand(outputs, generator=generator), torch.randn(outputs, generator=generator))
    sums, parts = plainly(kernel, x, weights, Window()), packed(in_thirds(weights), Window())
    value = images(sums * affine.scale[:, None, None] + affine.bias[:, None, None])
    unit = 1.3 if rounding is Rounding.CLIPPING else 1.7 / largest

    def rounded(values: Tensor, how: Rounding, of: float) -> Tensor:
        clipping, step = (of, 1.0) if how is Rounding.CLIPPING else (None, 1.0 if how is Rounding.SCALED else of)
        return levels_on(ActivationGrid(largest=largest, clipping=clipping, unit=step), images(values), PLAIN)

    if rounding is not Rounding.NONE:
        found = kernel.convolve(images(x), parts, affine, rounding=rounding, limits=(float(largest), unit))
        assert torch.equal(found, rounded(value, rounding, unit))
        return
    besides = [
        Levels(how, (float(largest), 0.7), torch.empty_like(rounded(value, how, 0.7)))
        for how in (Rounding.STEP, Rounding.CLIPPING)
    ]
    found = kernel.convolve(images(x), parts, affine, other=other, relu=True, levels=besides)
    assert same_bits(found, torch.relu(value + other))
    alone = [replace(each, out=torch.full_like(each.out, 78)) for each in besides]
    kernel.round_only(images(x), parts, affine, other=other, relu=True, levels=alone)
    for each in (*besides, *alone):
        assert torch.equal(each.out, rounded(value + other, each.rounding, 0.7))


@pytest.mark.parametrize("third", ["high", "middle", "low"])
def test_a_kernel_without_a_third_is_found_out(third: str, kernel: AmxKernel) -> None:
    class Faulty(AmxKernel):
        def __init__(self) -> None:
            vars(self).update(vars(kernel))

        def convolve(self, x: Tensor, weights: Any, *args: Any, **kwargs: Any) -> Tensor:
            if weights.parts == 3:
                weights.tiles[:, ["high", "middle", "low"].index(third)] = 0
            return super().convolve(x, weights, *args, **kwargs)

    assert why_inexact(Faulty()) == "AMX's convolution of float32 is not as close as it should be here"


@pytest.mark.skipif(why_no_tiles() is None, reason="this machine has AMX")
def test_with_amx_its_instructions_do_what_loops_do(instructions: ctypes.CDLL) -> None:  # noqa: F811 - the fixture
    real = kernel_by_instructions()
    for seed in range(100 if FULL else 10):
        assert same_bits(plainly(real, *float_case(seed)), plainly(kernel_of(emulated=True), *float_case(seed)))
    assert instructions.stop() > 1_000


def test_with_amx_products_of_thirds_follow_each_other_and_few_tiles_are_loaded_twice() -> None:
    """24 products of two by two tiles in all thirds, for which 12 tiles are loaded once and 2 again."""
    straight = re.split(r"\n\.L\w+:|\n\s+(?:j\w+|call)\s", assembly_of_kernel())
    counts = [tuple(len(re.findall(what, part)) for what in ("tdpbf16ps", "tileloadd", "zmm")) for part in straight]
    assert (24, 14, 0) in counts
    assert {(products, loads) for products, loads, _ in counts if products} == {(24, 14), (12, 11), (12, 10), (6, 7)}


# --- networks -------------------------------------------------------------------------------------------------------

needs_onednn = pytest.mark.skipif(why_not_here() is not None, reason=f"no oneDNN for grouped layers: {why_not_here()}")
OPTIONS = (4, 8, 16, 20, 32)
QUANTIZERS = {
    "dorefa": Quantizers(options=OPTIONS),
    "dorefa_scaled": Quantizers(options=OPTIONS, weight="dorefa_scaled"),
    "pact": Quantizers(options=OPTIONS, activation="pact", switchable=True),
    "lsq": Quantizers(options=OPTIONS, weight="lsq", activation="lsq"),
    "lsqplus": Quantizers(options=OPTIONS, weight="lsqplus", activation="lsqplus"),
}


def engine_of(network: nn.Module, inputs: Tensor) -> IntegerEngine:
    arithmetic = AmxArithmetic(MUCH, PLAIN, kernel_of(emulated=True))
    return IntegerEngine(
        *(network, layer_names_of(network), inputs, common_options(network), MUCH), arithmetic=arithmetic
    )


@pytest.mark.parametrize("quantizers", QUANTIZERS.values(), ids=QUANTIZERS)
def test_bounds_are_what_activations_are_clamped_to(quantizers: Quantizers) -> None:
    layer = QuantConv2d(3, 4, 1, quantizers=quantizers)
    x = torch.randn((2, 3, 5, 5), generator=torch.Generator().manual_seed(0)) * 3
    for bits in OPTIONS:
        layer.set_bitwidth(bits)
        bounds = layer.activation_bounds()
        assert (bounds is None) == (bits != 32)
        assert bounds is None or torch.equal(layer.quantize_activation(x), x.clamp(*bounds))
    none = QuantConv2d(3, 4, 1, quantizers=Quantizers(options=(2,), activation="none"))
    assert none.activation_bounds() == (-math.inf, math.inf)


def networks(quantizers: Quantizers) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Return networks whose layers are in float32 at some bitwidths, and the shapes of their inputs."""
    image = (2, 8, 5, 6)
    return {
        "convolutions": (Pair(quantizers, relu=True, residual=False), image),
        "a sum": (Pair(quantizers, relu=True, residual=True), image),
        "linear": (
            Straight(QuantLinear(40, 12, quantizers=quantizers), QuantLinear(12, 5, quantizers=quantizers)),
            (3, 40),
        ),
        "a linear layer reads rows of images": (
            Straight(QuantConv2d(8, 7, 3, padding=1, quantizers=quantizers), QuantLinear(6, 5, quantizers=quantizers)),
            image,
        ),
    }


@needs_onednn
@pytest.mark.parametrize("quantizers", list(QUANTIZERS.values())[:-1], ids=list(QUANTIZERS)[:-1])
@pytest.mark.parametrize("name", networks(QUANTIZERS["dorefa"]))
def test_networks_are_a_float64_forwards_at_any_two_bitwidths(name: str, quantizers: Quantizers) -> None:
    """But for ties, each of which moves one activation by a level: none where neither layer is rounded to few."""
    network, shape = networks(quantizers)[name]
    network.eval()
    randomize(network, 3)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    configurations = configurations_of(*itertools.product((8, 16, 20, 32), repeat=2))
    found = logits_of(engine_of(network, x), x, configurations)
    truth = naive_logits(copy.deepcopy(network).double(), layer_names_of(network), x.double(), configurations)
    for ours, expected, configuration in zip(found, truth, configurations, strict=True):
        assert ours.shape == expected.shape
        bound = {8: 0.02, 16: 0.002, 20: 1e-4, 32: 3e-6}[min(configuration.bitwidths)]
        assert float((ours.double() - expected).abs().max()) <= bound * float(expected.abs().max()), configuration


@needs_onednn
def test_an_infinite_pixel_is_as_bright_as_pixels_are_to_the_layer_that_rounds_it() -> None:
    network = Pair(QUANTIZERS["lsq"], relu=True, residual=False).eval()
    randomize(network, 3)
    x = torch.randn((2, 8, 5, 6), generator=torch.Generator().manual_seed(4))
    x[0, 2, 2, 3] = math.inf
    (found,) = logits_of(engine_of(network, x), x, configurations_of((32, 8)))
    (truth,) = naive_logits(
        copy.deepcopy(network).double(), layer_names_of(network), x.double(), configurations_of((32, 8))
    )
    assert bool(truth.isfinite().all())
    assert float((found.double() - truth).abs().max()) <= 0.02 * float(truth.abs().max())


@needs_onednn
def test_no_more_classes_of_the_trained_network_change_than_in_the_reference(
    demo_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = read_checkpoint(demo_checkpoint)
    network = load_network(checkpoint.experiment, checkpoint.state, "demo")
    names = layer_names_of(network)
    changes = class_changes(
        *(network, names, load_split(checkpoint.experiment.data, "validation").inputs[:100]),
        sample("iid", len(names), (2, 8, 32), 5, seed=0),
        PLAIN,
        arithmetic=AmxArithmetic(MUCH, PLAIN, kernel_of(emulated=True)),
    )
    with capsys.disabled():
        print(f"\nthe demo's network at {{2,8,32}} by AMX, emulated: {changes}")
    assert sum(changes.integer) <= sum(changes.reference)


@needs_onednn
def test_torch_convolves_no_layer_in_float32_that_the_kernel_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does those in groups, those that pad otherwise, and those with weights that have no thirds."""
    asked: list[str] = []
    run = QuantConv2d.run

    def counted(self: QuantConv2d, x: Tensor, weight: Tensor) -> Tensor:
        asked.append(self.layer_name)
        return run(self, x, weight)

    monkeypatch.setattr(QuantConv2d, "run", counted)
    quantizers = Quantizers(options=OPTIONS)
    grouped = QuantConv2d(8, 8, 3, padding=1, groups=2, quantizers=quantizers)
    reflecting = QuantConv2d(8, 8, 3, padding=1, quantizers=quantizers)
    reflecting.padding_mode, reflecting._reversed_padding_repeated_twice = "reflect", [1, 1, 1, 1]
    large = QuantConv2d(8, 8, 3, padding=1, quantizers=quantizers)
    x = torch.randn((2, 8, 5, 6), generator=torch.Generator().manual_seed(4))
    for first in (None, grouped, reflecting, large):
        network = Pair(quantizers, relu=True, residual=True).eval()
        network.first = first or network.first
        randomize(network, 3)
        with torch.no_grad():
            large.weight[0, 0, 0, 0] = torch.finfo(torch.float32).max
        name_layers(network)
        (truth,) = naive_logits(
            copy.deepcopy(network).double(), layer_names_of(network), x.double(), configurations_of((32, 32))
        )
        asked.clear()
        (found,) = logits_of(engine_of(network, x), x, configurations_of((32, 32)))
        assert asked == ([] if first is None else ["first"])
        assert float((found.double() - truth).abs().max()) <= 3e-6 * float(truth.abs().max())
