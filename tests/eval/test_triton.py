"""The Triton kernels under Triton's interpreter: against NumPy's integers, the CPU's passes and the CPU's engine.

No GPU is needed. What a GPU would run is compiled and looked at, too: tensor cores, and nothing contracted.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from convolved import assert_sums, rows, same_bits, sums_of
from random_networks import configurations_of, layer_names_of, randomize
from torch import Tensor, nn

from qbw_eval.configurations import BitwidthConfiguration, sample
from qbw_eval.engine.choose import _arithmetic_on
from qbw_eval.engine.integer import DeclinedError, IntegerEngine
from qbw_eval.engine.packing import Split, why_not_here
from qbw_eval.engine.passes import PLAIN
from qbw_eval.networks.resnet import SHAPES, ResNet
from qbw_eval.quantization.layers import QuantConv2d, Quantizers, QuantLinear, SwitchableBatchNorm2d

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install '.[gpu]'")

from fused import create_fma, fused  # noqa: E402 - they need Triton
from triton.runtime.interpreter import InterpreterBuilder  # noqa: E402

from benchmarks.tiles import PROGRAMS, End, compiled_for  # noqa: E402
from qbw_eval.engine import triton_arithmetic  # noqa: E402
from qbw_eval.engine.triton_arithmetic import TritonArithmetic, why_not_on  # noqa: E402
from qbw_eval.engine.triton_kernels import (  # noqa: E402
    Addend,
    Epilogues,
    Levels,
    Rounding,
    Tile,
    Window,
    _launcher,
    _rounding,
    convolve,
    rounded,
    weight_bank,
)

ONEDNN_HERE = pytest.mark.skipif(why_not_here() is not None, reason=f"no oneDNN to compare with: {why_not_here()}")
CPU = torch.device("cpu")
MUCH = 10**8
SMALL = Tile(pixels=16, outputs=16, channels=32)
"""Several of them in every direction, and none that is full, in the shapes below."""


# --- sums of integers -----------------------------------------------------------------------------------------------


def split_of(weights: Tensor, largest: int = 255) -> Split:
    split = TritonArithmetic(CPU, MUCH).split(weights, largest, 1)
    assert isinstance(split, Split), split
    return split


def plainly(x: Tensor, weights: Tensor, window: Window, tile: Tile | None = None) -> Tensor:
    """Convolve, and nothing else."""
    outputs = len(weights)
    return convolve(
        x.contiguous(memory_format=torch.channels_last),
        weight_bank([split_of(weights)], CPU),
        Epilogues(torch.ones(1, outputs), torch.zeros(1, outputs), torch.zeros(1, 2)),
        torch.zeros(2, dtype=torch.int32),
        window,
        tile=tile,
    )


WINDOWS = {
    "1x1": (Window(), 40, 5),
    "1x1 stride 2": (Window(stride=(2, 2)), 33, 17),
    "3x3": (Window((3, 3), padding=(1, 1)), 5, 20),
    "3x3 stride 2, one channel": (Window((3, 3), (2, 2), (1, 1)), 1, 3),
    "3x3 dilated, more padding than needed": (Window((3, 3), (1, 2), (3, 2), (2, 3)), 3, 4),
    "7x7 stride 2": (Window((7, 7), (2, 2), (3, 3)), 3, 6),
    "2x5, none": (Window((2, 5), (1, 3)), 9, 1),
}
EACH_WINDOW = pytest.mark.parametrize(("window", "channels", "outputs"), list(WINDOWS.values()), ids=list(WINDOWS))


@EACH_WINDOW
def test_sums_are_those_of_integers(window: Window, channels: int, outputs: int) -> None:
    """Direct weights with all activations and wide ones with odd sizes; in many tiles where that is affordable."""
    generator = torch.Generator().manual_seed(channels)
    shape = (outputs, channels, *window.kernel)
    x = torch.randint(0, 256, (2, channels, 9, 7), generator=generator, dtype=torch.uint8)
    x[0, :, :2], x[1, :, :, -1] = 255, 0
    odd = (torch.randint(-128, 128, shape, generator=generator) * 2 + 1).int()
    odd[0], odd[-1, ::2] = 255, -255
    direct = torch.randint(-128, 128, shape, generator=generator).int()
    direct[0], direct[-1] = -128, 127
    several = SMALL if window.kernel != (7, 7) else None  # 49 steps a tile
    for weights, tile in ((odd, several), (direct, None)):
        assert_sums(plainly(x, weights, window, tile), sums_of(x, weights, window))


@pytest.mark.parametrize("magnitude", [(255, 255), (-255, 255), (-128, 127), (127, 127)])
def test_the_largest_sums_of_a_large_window_are_exact(magnitude: tuple[int, int]) -> None:
    """512 channels of 3x3, as a ResNet's last stage has, with every bound at once; a corner and the middle."""
    window = Window((3, 3), padding=(1, 1))
    x = torch.full((1, 512, 2, 2), 255, dtype=torch.uint8)
    x[:, :, 1, 1] = 0
    weights = torch.full((3, 512, 3, 3), magnitude[0], dtype=torch.int32)
    weights[1], weights[2, ::2] = magnitude[1], magnitude[1]
    assert_sums(plainly(x, weights, window), sums_of(x, weights, window))


def test_up_to_the_last_sum_that_fits_it_is_exact_and_beyond_it_is_declined() -> None:
    """255 * 255 * 33025 is 2**31 - 33023; one product more does not fit."""
    most = (2**31 - 1) // 255**2
    weights = torch.full((2, most, 1, 1), 255, dtype=torch.int32)
    weights[1] = -255
    x = torch.full((1, most, 1, 2), 255, dtype=torch.uint8)
    x[:, :, :, 1] = 0
    expected = sums_of(x, weights, Window())
    assert abs(expected).max() == 2**31 - 33023
    assert_sums(plainly(x, weights, Window(), Tile(16, 16, 4096)), expected)
    arithmetic, why = TritonArithmetic(CPU, MUCH), "its sums do not fit into 32 bits"
    assert arithmetic.split(torch.full((2, most + 1, 1, 1), 255, dtype=torch.int32), 255, 1) == why
    ones = torch.ones(1, 2**24, 1, 1, dtype=torch.int32)  # of which 1 * 1 * 2**24 would fit, but not 128 * 1 * 2**24
    assert arithmetic.split(ones, 1, 1) == why
    assert isinstance(arithmetic.split(ones[:, 1:], 1, 1), Split)


def test_what_the_kernel_does_not_know_is_declined_in_words() -> None:
    arithmetic = TritonArithmetic(CPU, MUCH)
    weights = torch.tensor([-3, 5]).int().view(2, 1, 1, 1)
    assert isinstance(arithmetic.split(weights, 255, 1), Split)
    assert arithmetic.split(weights, 255, 2) == "it is grouped"
    assert arithmetic.split(weights * 40, 255, 1) == "its weights fit neither into int8 nor are they odd"


def test_no_images_give_no_images() -> None:
    weights = torch.ones(3, 2, 3, 3, dtype=torch.int32)
    assert plainly(torch.zeros(0, 2, 5, 5, dtype=torch.uint8), weights, Window((3, 3))).shape == (0, 3, 3, 3)


# --- what follows them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize(("relu", "add"), [(False, False), (True, True), (False, True)])
def test_an_epilogue_is_the_cpus_passes_in_every_bit(rounding: Rounding, relu: bool, add: bool) -> None:
    """On random scales of either sign, and on ties; sums are below 2**24, where both parts of the CPU's are exact."""
    generator = torch.Generator().manual_seed(int(rounding))
    x = torch.randint(0, 256, (2, 20, 5, 7), generator=generator, dtype=torch.uint8)
    weights = (torch.randint(-128, 128, (9, 20, 1, 1), generator=generator) * 2 + 1).int()
    sums = torch.from_numpy(sums_of(x, weights, Window()).astype(np.float32))
    scale = torch.rand(9, generator=generator) * 2e-4 - 5e-5
    bias = torch.randn(9, generator=generator)
    scale[0], bias[0] = 0.5**13, 0.25  # many ties
    other = torch.randn(sums.shape, generator=generator) if add else None
    largest, unit = 15.0, float(torch.tensor(1.3 if rounding is Rounding.CLIPPING else 0.37))
    found = convolve(
        x.contiguous(memory_format=torch.channels_last),
        weight_bank([split_of(weights)], CPU),
        Epilogues(scale[None], bias[None], torch.tensor([[largest, unit]])),
        torch.zeros(2, dtype=torch.int32),
        Window(),
        relu=relu,
        other=None if other is None else other.contiguous(memory_format=torch.channels_last),
        rounding=rounding,
    )
    least = torch.tensor(0.0 if relu else float("-inf"))
    nothing, one = torch.zeros(len(rows(sums)), 1), torch.tensor(1.0)
    if other is None:
        value = PLAIN.combined(rows(sums), nothing, one, scale, bias, least)
    else:
        value = PLAIN.combined_and_added(rows(sums), nothing, one, scale, bias, rows(other), least)
    match rounding:
        case Rounding.NONE:
            expected = value
        case Rounding.SCALED:
            expected = PLAIN.combined_levels(value, nothing, one, torch.ones(9), torch.zeros(9), torch.tensor(largest))
        case Rounding.CLIPPING:
            expected = PLAIN.levels_by_clipping(value, torch.tensor(unit), torch.tensor(largest))
        case Rounding.STEP:
            expected = PLAIN.levels_by_step(value, torch.tensor(unit), torch.tensor(largest))
    assert same_bits(rows(found), expected)
    assert len(expected.unique()) > 5


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_rounding_alone_is_the_cpus_passes_in_every_bit(bits: int) -> None:
    largest, unit = torch.tensor(2.0**bits - 1), torch.tensor(0.7)
    x = torch.randn(70_000, generator=torch.Generator().manual_seed(bits)) * 2
    x[:256] = (torch.arange(256) + 0.5) * unit  # as near to ties as float32 comes
    limits = torch.stack([largest, unit])
    for rounding, expected in (
        (Rounding.CLIPPING, PLAIN.levels_by_clipping(x, unit, largest)),
        (Rounding.STEP, PLAIN.levels_by_step(x, unit, largest)),
    ):
        assert same_bits(rounded(x, limits, rounding), expected)


def test_fused_is_what_fractions_give() -> None:
    draw = np.random.default_rng(0)
    x, y, z = (np.ldexp(draw.uniform(-1, 1, 2000), draw.integers(-9, 9, 2000)).astype(np.float32) for _ in range(3))
    z[:1000] = -(x * y)[:1000]  # what is left of a product that was rounded
    for one, other, third, found in zip(x, y, z, fused(x, y, z), strict=True):
        exact = Fraction(float(one)) * Fraction(float(other)) + Fraction(float(third))
        error, step = abs(Fraction(float(found)) - exact), Fraction(float(np.spacing(abs(found))))
        assert error <= step / 2


@pytest.mark.parametrize("rounding", [Rounding.CLIPPING, Rounding.STEP])
def test_what_a_gpu_divides_by_with_fused_operations_is_divided_by_exactly(
    rounding: Rounding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At and beside every tie, where a last place decides, for units of every size; the interpreter has no fma."""
    monkeypatch.setattr(InterpreterBuilder, "create_fma", create_fma)
    draw = torch.Generator().manual_seed(0)
    largest = torch.tensor(255.0)
    for exponent in (-49, -20, -3, 0, 7, 49):
        for significand in (1.0, 2 - 2.0**-23, *(1 + torch.rand(4, generator=draw)).tolist()):
            unit = torch.tensor(significand * 2.0**exponent)
            ties = (torch.arange(256) + 0.5) * unit
            x = torch.cat([ties / largest if rounding is Rounding.CLIPPING else ties, -ties[:5], torch.zeros(1)])
            nearby = torch.cat([x * (1 + steps * 2.0**-23) for steps in range(-4, 5)])
            x = torch.cat(
                [nearby, torch.rand(500, generator=draw) * 260 * unit, torch.tensor([1e-38, 3e38, torch.inf])]
            )
            out = torch.empty_like(x, dtype=torch.uint8)
            limits = torch.stack([largest, unit])
            _launcher(_rounding, "cpu")[(1,)](x, limits, out, len(x), int(rounding), True, 2**12)
            by = PLAIN.levels_by_clipping if rounding is Rounding.CLIPPING else PLAIN.levels_by_step
            assert same_bits(out, by(x, unit, largest))


@pytest.mark.parametrize("hows", [(Rounding.CLIPPING,), (Rounding.STEP,), (Rounding.STEP, Rounding.CLIPPING)], ids=str)
@pytest.mark.parametrize("early", [False, True])
def test_levels_written_beside_are_those_of_rounding_afterwards(hows: tuple[Rounding, ...], early: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, 20, 5, 7), generator=generator, dtype=torch.uint8)
    weights = (torch.randint(-128, 128, (9, 20, 3, 3), generator=generator) * 2 + 1).int()
    other = torch.randn((2, 9, 5, 7), generator=generator).contiguous(memory_format=torch.channels_last)
    scales = torch.rand((1, 9), generator=generator) * 1e-4
    limits = torch.tensor([[3.0, 0.5], [15.0, 1.3], [255.0, 2.0]])
    along = [
        Levels(how, limits.clone(), torch.tensor([row], dtype=torch.int32), torch.empty_like(other, dtype=torch.uint8))
        for row, how in enumerate(hows, start=1)
    ]

    def value(levels: list[Levels]) -> Tensor:
        return convolve(
            x.contiguous(memory_format=torch.channels_last),
            weight_bank([split_of(weights)], CPU),
            Epilogues(scales, -scales, torch.zeros(1, 2)),
            torch.zeros(2, dtype=torch.int32),
            Window((3, 3), padding=(1, 1)),
            relu=True,
            other=other,
            tile=SMALL._replace(early=early),
            levels=levels,
        )

    found, alone = value(along), value([])
    assert same_bits(found, alone)
    for row, each in enumerate(along, start=1):
        afterwards = rounded(rows(alone), limits[row], each.rounding)
        assert same_bits(rows(each.out), afterwards)
        assert len(afterwards.unique()) > 5


@pytest.mark.parametrize("wide", [(True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("rounding", [Rounding.NONE, Rounding.CLIPPING])
def test_a_convolution_added_in_the_same_launch_is_one_added_afterwards(
    wide: tuple[bool, bool], rounding: Rounding
) -> None:
    """Of other images, another window and other bitwidths, in tiles that fit neither."""
    generator = torch.Generator().manual_seed(3)

    def one(channels: int, size: tuple[int, int], window: Window, is_wide: bool) -> Addend:
        x = torch.randint(0, 256, (3, channels, *size), generator=generator, dtype=torch.uint8)
        shape = (18, channels, *window.kernel)
        odd = [(torch.randint(-128, 128, shape, generator=generator) * 2 + 1).int() for _ in range(2)]
        direct = [torch.randint(-128, 128, shape, generator=generator).int() for _ in range(2)]
        bank = weight_bank([split_of(weights) for weights in (odd if is_wide else direct)], CPU)
        scales = torch.rand((3, 18), generator=generator) * 1e-4
        epilogues = Epilogues(scales, torch.randn((3, 18), generator=generator), torch.tensor([[15.0, 1.3]] * 3))
        choice = torch.tensor([1, 2], dtype=torch.int32)
        return Addend(x.contiguous(memory_format=torch.channels_last), bank, epilogues, choice, window)

    own = one(36, (4, 5), Window((3, 3), padding=(1, 1)), wide[0])
    other = one(20, (7, 9), Window((1, 1), (2, 2)), wide[1])
    for tile in (SMALL, None):

        def value(
            of: Addend,
            added: Tensor | Addend | None,
            how: Rounding,
            levels: Sequence[Levels] = (),
            tile: Tile | None = tile,
        ) -> Tensor:
            return convolve(
                *(of.x, of.bank, of.epilogues, of.choice, of.window),
                relu=added is not None,
                other=added,
                rounding=how,
                tile=tile,
                levels=levels,
            )

        def beside() -> list[Levels]:
            out = torch.empty((3, 18, 4, 5), dtype=torch.uint8, memory_format=torch.channels_last)
            row = torch.tensor([1], dtype=torch.int32)
            return [Levels(Rounding.STEP, own.epilogues.limits, row, out)] if rounding is Rounding.NONE else []

        together, apart = beside(), beside()
        found = value(own, other, rounding, together)
        assert same_bits(found, value(own, value(other, None, Rounding.NONE), rounding, apart))
        assert all(same_bits(one.out, two.out) for one, two in zip(together, apart, strict=True))
        assert len(found.unique()) > 5


def significands_next_to_a_middle() -> tuple[np.ndarray, np.ndarray]:
    """Return all dividends and divisors, (n,) whole numbers of 24 bits, that one refinement may divide wrongly.

    Those are the ones whose quotient lies nearer to the middle between k + 1/2 and a float32 beside it than the
    refinement is exact: dividend * 2**t = middle * divisor + d, in whole numbers, with |d| below 6.
    """
    dividends, divisors = [], []
    for k in range(256):
        tie = np.float32(k + 0.5)
        for beside in np.nextafter(tie, np.float32([-np.inf, np.inf])):
            middle = Fraction((float(tie) + float(beside)) / 2).numerator
            assert middle % 2 == 1
            assert middle.bit_length() <= 25
            for d in (*range(-8, 0), *range(1, 9)):
                for t in range(22, 28):
                    remainder = -d * pow(middle, -1, 2**t) % 2**t
                    for divisor in range(remainder, 2**24, 2**t):
                        dividend = Fraction(middle * divisor + d, 2**t)
                        if divisor >= 2**23 and dividend.denominator == 1:
                            dividend /= 2 ** max(0, dividend.numerator.bit_length() - 24)
                            if dividend.denominator == 1:
                                dividends.append(int(dividend))
                                divisors.append(divisor)
    return np.array(dividends), np.array(divisors)


def test_one_refinement_gives_the_quotient_wherever_a_tie_depends_on_it() -> None:
    """All of these were made to be as hard as can be: multiplying by the reciprocal fails in half of them."""
    dividends, divisors = significands_next_to_a_middle()
    a, unit = dividends.astype(np.float32), divisors.astype(np.float32) * np.float32(2**-23)
    assert (a == dividends).all()
    reciprocal = np.float32(1) / unit
    quotient = a * reciprocal
    assert (quotient != a / unit).mean() > 0.4
    assert (fused(fused(quotient, -unit, a), reciprocal, quotient) == a / unit).all()
    assert len(a) > 10_000


def test_levels_too_far_apart_or_too_close_are_float32s() -> None:
    for activation, parameter, value in (("pact", "alpha", 2.0**60), ("lsq", "step_size", 2.0**-60)):
        quantizers = Quantizers(options=(2, 8), activation=activation)  # type: ignore[arg-type]  # one of those
        network = nn.Sequential(QuantConv2d(2, 2, 1, quantizers=quantizers)).eval()
        found = by_triton(network, torch.zeros(1, 2, 2, 2), (2, 8))
        assert found.in_float32 == {}
        (named,) = (each for name, each in network.named_parameters() if parameter in name)
        named.data.fill_(value)
        with pytest.raises(DeclinedError, match="its levels are too close to each other, or too far apart"):
            by_triton(network, torch.zeros(1, 2, 2, 2), (2, 8))


def test_ties_go_to_the_even_level_and_ends_clip() -> None:
    ties = torch.tensor([-1.0, -0.0, 0.5, 1.5, 2.5, 253.5, 254.5, 255.5, 1e30, float("inf"), float("-inf")])
    found = rounded(ties, torch.tensor([255.0, 1.0]), Rounding.STEP)
    assert found.tolist() == [0, 0, 0, 2, 2, 254, 254, 255, 255, 255, 0]


def test_a_multiplication_and_an_addition_are_rounded_one_by_one() -> None:
    """4097 * (1 + 2**-12) is 4098 + 2**-12, and 4098 as float32; if fused, 2**-12 would be left of it."""
    x = torch.full((1, 17, 1, 1), 241, dtype=torch.uint8)
    weights = torch.ones(1, 17, 1, 1, dtype=torch.int32)  # the sum is 4097
    scale = torch.full((1, 1), 1 + 2.0**-12)
    product = torch.tensor(4097.0) * scale
    assert float(product) != 4097 * (1 + 2**-12), "or nothing was rounded"
    found = convolve(
        x.contiguous(memory_format=torch.channels_last),
        weight_bank([split_of(weights)], CPU),
        Epilogues(scale, -product, torch.zeros(1, 2)),
        torch.zeros(2, dtype=torch.int32),
        Window(),
    )
    assert found.item() == 0.0


def test_bitwidths_are_data() -> None:
    """The very same arguments, whose choice is overwritten in place, give every bitwidth of the weights and levels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 4, (1, 6, 4, 5), generator=generator, dtype=torch.uint8)
    x = x.contiguous(memory_format=torch.channels_last)
    weights = [
        (torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (7, 6, 3, 3), generator=generator) * 2 + 1).int()
        for bits in (2, 4, 8)
    ]
    bank = weight_bank([split_of(one) for one in weights], CPU)
    assert bank.factors.tolist() == [1, 1, 2]
    scales, biases = torch.rand(3, 7, generator=generator) * 0.05, torch.randn(3, 7, generator=generator)
    limits = torch.tensor([[3.0, 0.0], [15.0, 0.0], [255.0, 0.0]])
    epilogues, choice, window = Epilogues(scales, biases, limits), torch.zeros(2, dtype=torch.int32), Window((3, 3))
    seen = set()
    for number, one in enumerate(weights):
        for way in range(3):
            choice.copy_(torch.tensor([number, way]))
            found = convolve(x, bank, epilogues, choice, window, rounding=Rounding.SCALED)
            sums = torch.from_numpy(sums_of(x, one, window).astype(np.float32))
            nothing, factor = torch.zeros(len(rows(sums)), 1), torch.tensor(1.0)
            expected = PLAIN.combined_levels(rows(sums), nothing, factor, scales[way], biases[way], limits[way, 0])
            assert torch.equal(rows(found), expected)
            seen.add(tuple(expected.flatten().tolist()))
    assert len(seen) == 9


# --- whole networks -------------------------------------------------------------------------------------------------


@contextmanager
def only_triton() -> Iterator[None]:
    """Let everything fail that computes a quantized layer in another way."""
    refusal = AssertionError("a quantized layer did not run in Triton")
    with (
        mock.patch.object(QuantConv2d, "run", side_effect=refusal),
        mock.patch.object(QuantLinear, "run", side_effect=refusal),
        mock.patch("qbw_eval.engine.onednn.pack", side_effect=refusal),
    ):
        yield


def by_triton(network: nn.Module, inputs: Tensor, options: tuple[int, ...]) -> IntegerEngine:
    arithmetic = TritonArithmetic(CPU, MUCH)
    return IntegerEngine(network, layer_names_of(network), inputs, options, MUCH, arithmetic=arithmetic)


def check(network: nn.Module, x: Tensor, options: tuple[int, ...], configurations: list[BitwidthConfiguration]) -> None:
    """Compare the logits of every configuration, bit for bit, with those of oneDNN."""
    cpu = IntegerEngine(network, layer_names_of(network), x, options, MUCH, PLAIN)
    with torch.inference_mode():
        expected = dict(cpu.logits(x, configurations))
        engine = by_triton(network, x, options)
        assert engine.in_float32 == {}
        with only_triton():
            found = dict(engine.logits(x, configurations))
    assert found.keys() == expected.keys()
    for position, logits in expected.items():
        assert same_bits(found[position], logits), configurations[position].bitwidths
    assert len({tuple(logits.flatten().tolist()) for logits in expected.values()}) == len(configurations)


@ONEDNN_HERE
def test_a_resnet8_has_the_cpus_bits_at_every_bitwidth() -> None:
    options = (2, 4, 8)
    network = ResNet(
        SHAPES["resnet8"],
        Quantizers(options=options, activation="pact", switchable=True),
        width=4,
        in_channels=1,
        num_classes=10,
    ).eval()
    randomize(network, 1)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    uniform, mixed = sample("uniform", 8, options, 3, seed=0), sample("iid", 8, options, 3, seed=0)
    check(network, x, options, [*uniform, *mixed])


class Mixed(nn.Module):
    """A sum that one layer alone reads, switchable batch norm, a 7x7 window, no ReLU somewhere, and a linear layer."""

    def __init__(self, quantizers: Quantizers) -> None:
        super().__init__()
        self.first = QuantConv2d(5, 6, 7, stride=2, padding=3, quantizers=quantizers, bias=True)
        self.second = QuantConv2d(6, 6, 1, quantizers=quantizers)
        self.norm = SwitchableBatchNorm2d(6, self.second)
        self.third = QuantConv2d(6, 9, 1, stride=2, quantizers=quantizers)
        self.linear = QuantLinear(9, 4, quantizers=quantizers)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = self.third(torch.relu(self.norm(self.second(x)) + x))
        return self.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]  # modules are untyped calls


@ONEDNN_HERE
@pytest.mark.parametrize(("weight", "activation"), [("dorefa", "pact"), ("lsq", "lsq"), ("dorefa_scaled", "dorefa")])
def test_a_network_with_a_linear_layer_has_the_cpus_bits_at_every_bitwidth(weight: str, activation: str) -> None:
    options = (2, 4, 8)
    quantizers = Quantizers(options=options, weight=weight, activation=activation, switchable=True)  # type: ignore[arg-type]  # they are among those
    network = Mixed(quantizers).eval()
    randomize(network, 3)
    x = torch.randn(2, 5, 6, 5, generator=torch.Generator().manual_seed(4)) + 0.5
    each = [(2, 2, 2, 2), (2, 4, 8, 4), (2, 8, 4, 8), (4, 4, 8, 2), (8, 2, 4, 8), (8, 8, 8, 8)]
    check(network, x, options, configurations_of(*each))


def test_a_grouped_layer_runs_in_float32_for_a_reason_and_others_beside_it_in_triton() -> None:
    options = (2, 8)
    quantizers = Quantizers(options=options)
    network = nn.Sequential(
        QuantConv2d(4, 4, 3, padding=1, groups=4, quantizers=quantizers), QuantConv2d(4, 5, 1, quantizers=quantizers)
    ).eval()
    randomize(network, 5)
    x = torch.rand(2, 4, 4, 4, generator=torch.Generator().manual_seed(6))
    engine = by_triton(network, x, options)
    assert engine.in_float32 == {"0": "it is grouped"}
    (found,) = dict(engine.logits(x, configurations_of((8, 8)))).values()
    torch.testing.assert_close(found, network(x).detach(), rtol=1e-5, atol=1e-5)


class Sums(nn.Module):
    """Sums that are not the kernel's to take: of another shape, which torch repeats, and of another kind of numbers."""

    def __init__(self) -> None:
        super().__init__()
        quantizers = Quantizers(options=(4, 16))
        self.first, self.second = (QuantConv2d(4, 4, 1, quantizers=quantizers) for _ in range(2))
        self.offset = nn.Parameter(torch.linspace(-0.2, 0.4, 4)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x) + self.offset)
        return (self.second(y) + x.double() / 3).float()


@ONEDNN_HERE
def test_other_sums_and_bits_above_8_are_as_on_the_cpu() -> None:
    network = Sums().eval()
    randomize(network, 7)
    x = torch.rand(2, 4, 3, 3, generator=torch.Generator().manual_seed(8))
    configurations = configurations_of((4, 4), (4, 16), (16, 4), (16, 16))
    cpu = IntegerEngine(network, layer_names_of(network), x, (4, 16), MUCH, PLAIN)
    found = dict(by_triton(network, x, (4, 16)).logits(x, configurations))
    for position, logits in dict(cpu.logits(x, configurations)).items():
        assert same_bits(found[position], logits)


@pytest.mark.parametrize("kind", [torch.float64, torch.int64])
def test_rounding_other_kinds_of_numbers_is_torchs(kind: torch.dtype) -> None:
    x, one, largest = torch.arange(-3, 30).to(kind), torch.tensor(1.0), torch.tensor(15.0)
    passes = TritonArithmetic.passes
    expected = [0] * 4 + [15] * 29
    assert passes.levels_by_clipping(x, one, largest).tolist() == expected
    assert passes.levels_by_step(x, one, largest).tolist() == [*[0] * 4, *range(1, 15), *[15] * 15]


# --- where it is not trusted ----------------------------------------------------------------------------------------


def test_it_trusts_itself_after_having_tried() -> None:
    assert why_not_on(CPU) is None


def test_a_device_that_convolves_wrongly_is_declined_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the term for the shift, as a mistaken compiler might give it."""

    def wrong(splits: list[Split], device: torch.device) -> object:
        bank = weight_bank(splits, device)
        bank.corrections.zero_()
        return bank

    monkeypatch.setattr(triton_arithmetic, "weight_bank", wrong)
    assert why_not_on.__wrapped__(CPU) == "Triton's convolution of integers is not exact on cpu"


def test_a_device_that_rounds_wrongly_is_declined_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a reciprocal alone, as a compiler might take the liberty to."""

    def wrong(x: Tensor, limits: Tensor, rounding: Rounding) -> Tensor:
        (largest, unit), scaled = limits, 1 / limits[1]
        x = x.clamp(0, float(unit)) * largest if rounding is Rounding.CLIPPING else x.clamp(0, float(256 * unit))
        return (x * scaled).clamp(0, float(largest)).round().to(torch.uint8)

    monkeypatch.setattr(triton_arithmetic, "rounded", wrong)
    assert why_not_on.__wrapped__(CPU) == "Triton's convolution of integers is not exact on cpu"


def test_a_device_that_cannot_run_it_is_declined_with_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_settings: object) -> None:
        raise RuntimeError("no kernel image is available\nand so on")

    monkeypatch.setattr(triton_arithmetic, "convolve", fail)
    expected = "Triton's convolution does not run on cpu (no kernel image is available)"
    assert why_not_on.__wrapped__(CPU) == expected


def test_a_network_elsewhere_is_declined_in_a_sentence() -> None:
    network = nn.Sequential(QuantConv2d(2, 2, 1, quantizers=Quantizers(options=(2, 8)))).eval().to("meta")
    with pytest.raises(DeclinedError) as error:
        by_triton(network, torch.zeros(1, 2, 2, 2), (2, 8))
    assert str(error.value) == "it runs on cpu only"


def test_what_is_asked_for_on_a_gpu_is_triton() -> None:
    arithmetic, words = _arithmetic_on(torch.device("cuda:0"), MUCH)
    assert isinstance(arithmetic, TritonArithmetic)
    assert arithmetic.device == torch.device("cuda:0")
    assert words.startswith("by Triton; for sizes that are new here, kernels are compiled")


# --- what a GPU would run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "tensor_core"), [(80, r"mma\.sync\S*\.s32\.s8\.s8\.s32"), (90, r"wgmma\S*\.s32\.s8\.s8")]
)
def test_compiled_for_a_gpu_it_multiplies_int8_and_contracts_nothing(
    capability: int, tensor_core: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In PTX, where only what is divided by is; and, where nothing is divided, in the machine's own language."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    ptx = compiled_for(capability, End(Rounding.CLIPPING, added=True)).ptx
    assert re.search(tensor_core, ptx)
    floats = Counter(re.findall(r"\b((?:fma|mad|mul|add|sub|div|rcp|max|min)\.\S*f32)\b", ptx))
    expected = {"mul.rn.f32", "add.rn.f32", "sub.rn.f32", "div.rn.f32", "fma.rn.f32"}
    assert floats.keys() == expected | {"max.f32", "min.f32"}, "no .ftz"
    assert floats["fma.rn.f32"] == 2 * floats["max.f32"] == 2 * 64, "what divides each value of a thread, no more"
    assert floats["div.rn.f32"] == floats["sub.rn.f32"] == 1, "the reciprocal, and the negative unit"
    odd = compiled_for(capability, End(Rounding.NONE, convolved=True), channels=20, outputs=10).ptx
    assert len(re.findall(tensor_core, odd)) >= 4, "where sizes fill no tile: both convolutions, each with its sums"
    fused = re.findall(r"\bfma\S*f32\b", odd)
    assert fused == ["fma.rn.f32"] * len(fused)
    assert len(fused) == 4 * len(re.findall(r"\bmax\.NaN\.f32\b", odd)), "levels for two readers"
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled_for(capability, End(Rounding.SCALED, added=True)).cubin)
    code = subprocess.run([PROGRAMS / "nvdisasm", cubin], capture_output=True, text=True, check=True).stdout
    assert len(re.findall(r"\bFMUL\b", code)) >= 64, "one for each value of a thread"
    assert not re.search(r"\bFFMA", code)
