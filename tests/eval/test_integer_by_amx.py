"""The integer engine's tests of layers once more, with the kernel in C++ (its tiles emulated) in place of oneDNN.

Geometries and quantizers take turns; with TORTURE_SCALE=1 every one meets every other.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import test_integer
import torch
from convolved import kernel_of
from random_networks import configurations_of, layer_names_of, randomize
from shares import FULL
from test_integer import GEOMETRIES, QUANTIZERS
from torch import Tensor, nn

from qbw_eval.configurations import sample
from qbw_eval.engine.amx_arithmetic import AmxArithmetic, AmxConvolution
from qbw_eval.engine.amx_kernel import MOST_LEVELS, AmxKernel
from qbw_eval.engine.compiled import COMPILERS
from qbw_eval.engine.integer import IntegerEngine
from qbw_eval.engine.integer_region import IntegerRegion
from qbw_eval.engine.packing import why_not_here
from qbw_eval.engine.passes import PLAIN
from qbw_eval.networks.resnet import ResNet, Shape
from qbw_eval.quantization.bitwidths import common_options
from qbw_eval.quantization.layers import ActivationGrid, QuantConv2d, Quantizers

pytestmark = [
    pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="there is no C++ compiler"),
    pytest.mark.skipif(why_not_here() is not None, reason=f"no oneDNN for grouped layers: {why_not_here()}"),
]

BOTH = list(itertools.product(GEOMETRIES, QUANTIZERS)) if FULL else list(zip(GEOMETRIES, itertools.cycle(QUANTIZERS)))
EXTREMES = (
    list(itertools.product((1, -1, 0), QUANTIZERS)) if FULL else list(zip((1, -1, 0), QUANTIZERS[2:], strict=True))
)


@pytest.fixture(autouse=True)
def by_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    def engine_of(network: nn.Module, inputs: Tensor) -> IntegerEngine:
        arithmetic = AmxArithmetic(test_integer.MUCH, PLAIN, kernel_of(emulated=True))
        options = common_options(network)
        return IntegerEngine(
            *(network, layer_names_of(network), inputs, options, test_integer.MUCH), arithmetic=arithmetic
        )

    monkeypatch.setattr(test_integer, "engine_of", engine_of)


@pytest.mark.parametrize(("geometry", "quantizers"), BOTH)
def test_a_convolution_is_numpys_at_every_bitwidth(geometry: str, quantizers: tuple[str, str]) -> None:
    test_integer.test_a_convolution_is_numpys_at_every_bitwidth(*quantizers, GEOMETRIES[geometry])


@pytest.mark.parametrize("quantizers", QUANTIZERS if FULL else QUANTIZERS[3:])
@pytest.mark.parametrize("shape", [(3, 40), (2, 3, 2, 40)], ids=["rows", "images"])
def test_a_linear_layer_is_numpys_at_every_bitwidth(quantizers: tuple[str, str], shape: tuple[int, ...]) -> None:
    test_integer.test_a_linear_layer_is_numpys_at_every_bitwidth(*quantizers, shape)


@pytest.mark.parametrize("quantizers", QUANTIZERS if FULL else QUANTIZERS[1:2])
def test_normalized_weights_are_numpys_integers_times_one_scale(quantizers: tuple[str, str]) -> None:
    test_integer.test_normalized_weights_are_numpys_integers_times_one_scale(*quantizers)


@pytest.mark.parametrize(("sign", "quantizers"), EXTREMES)
def test_the_largest_sums_are_exact(sign: int, quantizers: tuple[str, str]) -> None:
    test_integer.test_the_largest_sums_are_exact(*quantizers, sign)


@pytest.mark.parametrize("residual", [False, True] if FULL else [True])
@pytest.mark.parametrize("quantizers", QUANTIZERS if FULL else QUANTIZERS[2:3])
def test_two_layers_are_numpys_at_any_two_bitwidths(quantizers: tuple[str, str], residual: bool) -> None:
    test_integer.test_two_layers_are_numpys_at_any_two_bitwidths(*quantizers, relu=True, residual=residual)


def test_numbers_are_added_to_what_layers_compute() -> None:
    test_integer.test_numbers_are_added_to_what_layers_compute()


# --- sums that are rounded for their readers in the call that makes them ---------------------------------------------


OPTIONS = (2, 4, 8, 16)


class ThreeReaders(nn.Module):
    """A value that three layers read, and a sum that a plain layer reads beside a quantized one."""

    def __init__(self, quantizers: Quantizers) -> None:
        super().__init__()
        self.first = QuantConv2d(3, 8, 3, padding=1, quantizers=quantizers)
        self.readers = nn.ModuleList(
            QuantConv2d(8, 5, size, padding=size // 2, quantizers=quantizers) for size in (1, 3, 1)
        )
        self.norm = nn.BatchNorm2d(5)
        self.last = QuantConv2d(5, 4, 3, stride=2, quantizers=quantizers)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        first, second, third = (reader(x) for reader in self.readers)
        x = torch.relu(self.norm(third) + first) + second
        return self.last(x).mean((2, 3)) + x.mean()  # type: ignore[no-any-return]  # modules are untyped calls


def residual(quantizers: Quantizers) -> nn.Module:
    """Sums that one quantized layer and an addition read, that two layers read, and that is the last."""
    return ResNet(Shape(blocks=(2, 1), stem="cifar"), quantizers, width=4, in_channels=3, num_classes=5)


@contextmanager
def readers_counted(most: int = MOST_LEVELS) -> Iterator[list[int]]:
    """Yield a list of for how many readers each call rounded its value, of so many at most."""
    counts: list[int] = []

    def with_levels(self: AmxConvolution, *arguments: Any, to: Sequence[ActivationGrid], **more: Any) -> Any:
        counts.append(len(to))
        return original(self, *arguments, to=to, **more)

    original = AmxConvolution.with_levels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AmxConvolution, "with_levels", with_levels)
        patch.setattr(AmxConvolution, "most_levels", most)
        yield counts


@pytest.mark.parametrize(
    ("make", "activation"), [(residual, "pact"), (residual, "lsq"), (ThreeReaders, "dorefa"), (ThreeReaders, "lsq")]
)
def test_a_value_rounded_as_it_is_made_has_the_bits_of_one_rounded_afterwards(
    make: Callable[[Quantizers], nn.Module], activation: Any
) -> None:
    """Whatever readers' bits are, and whichever of them changed; in any order and company."""
    network = make(Quantizers(options=OPTIONS, activation=activation, switchable=True)).eval()
    randomize(network, 3)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    count = len(layer_names_of(network))
    each = [*sample("iid", count, OPTIONS, 8, seed=0), *sample("iid", count, (2, 8), 4, seed=1)]
    changed = each[0].bitwidths
    each += configurations_of(
        *((*changed[:at], 4 if changed[at] != 4 else 8, *changed[at + 1 :]) for at in range(count))
    )
    with readers_counted(0) as counts:
        expected = test_integer.logits_of(test_integer.engine_of(network, x), x, each)
        assert counts == []
    for most in (1, 2):
        with readers_counted(most) as counts:
            engine = test_integer.engine_of(network, x)
            found = test_integer.logits_of(engine, x, each)
            assert set(counts) == set(range(1, most + 1))
            alone = [test_integer.logits_of(engine, x, [configuration])[0] for configuration in each[::5]]
        assert all(map(torch.equal, found, expected))
        assert all(map(torch.equal, alone, expected[::5]))
    for seed in range(3):
        order = torch.randperm(len(each), generator=torch.Generator().manual_seed(seed)).tolist()[: 4 + 5 * seed]
        again = test_integer.logits_of(engine, x, [each[position] for position in order])
        assert all(torch.equal(logits, expected[position]) for logits, position in zip(again, order, strict=True))


def test_at_most_two_readers_ride_and_those_above_16_bits_never() -> None:
    """The first two that are rounded to integers; where only a reader's bits changed, it is rounded by itself."""
    network = ThreeReaders(Quantizers(options=(*OPTIONS, 32), activation="pact")).eval()
    randomize(network, 1)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    engine = test_integer.engine_of(network, x)

    def riding(*bits: tuple[int, ...]) -> tuple[list[int], int]:
        """Return how many ride with each call of those that carry, and how many readers are rounded by themselves."""
        with (
            readers_counted() as counts,
            mock.patch.object(
                IntegerRegion, "as_levels", autospec=True, side_effect=IntegerRegion.as_levels
            ) as rounded,
        ):
            test_integer.logits_of(engine, x, configurations_of(*bits))
        return counts, rounded.call_count

    # The batch is rounded for the first layer, always by itself.
    assert riding((4, 2, 4, 8, 32)) == ([2], 2)
    assert riding((4, 32, 4, 8, 32)) == ([2], 1)
    assert riding((4, 32, 4, 32, 32)) == ([1], 1)
    assert riding((4, 32, 32, 32, 32)) == ([], 1)
    assert riding((32, 2, 4, 8, 32)) == ([2], 1)  # a value computed in float32 has riders, too
    assert riding((4, 2, 4, 8, 8)) == ([2, 1], 2)
    assert riding((16, 2, 16, 8, 16)) == ([2, 1], 2)
    assert riding((4, 2, 4, 8, 32), (4, 2, 8, 4, 32), (4, 2, 8, 8, 32)) == ([2], 2 + 2 + 1)


def test_a_sum_that_only_riders_read_is_dropped_at_once_unless_one_of_them_is_computed_again() -> None:
    """The first sum is added to another one, too; the second is read by a block's first layer and by its shortcut."""
    network = residual(Quantizers(options=OPTIONS)).eval()
    randomize(network, 1)
    program = test_integer.engine_of(network, torch.zeros(1, 3, 6, 6)).program
    names = layer_names_of(network)
    fours = (4,) * len(names)
    again = names.index("layer2.0.shortcut.0")
    (step,) = program.plan(configurations_of(fours))
    assert [(len(turn.along), turn.number in turn.drop) for turn in step.run if turn.along] == [(1, False), (2, True)]
    step, after = program.plan(configurations_of(fours, (*fours[:again], 8, *fours[again + 1 :])))
    assert [(len(turn.along), turn.number in turn.drop) for turn in step.run if turn.along] == [(1, False), (2, False)]
    assert program.operations[after.run[0].number - 1].name.endswith("shortcut_0_rounded")
    summed = [turn.number for turn in step.run if len(turn.along) == 2]
    assert [list(turn.drop) for turn in after.run if turn.number == after.run[0].number] == [summed]


def test_a_value_that_only_riders_read_is_never_written() -> None:
    network = residual(Quantizers(options=OPTIONS)).eval()
    randomize(network, 1)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    each = configurations_of((4,) * len(layer_names_of(network)))
    with readers_counted(0):
        (expected,) = test_integer.logits_of(test_integer.engine_of(network, x), x, each)
    with mock.patch.object(AmxKernel, "round_only", autospec=True, side_effect=AmxKernel.round_only) as asked:
        (found,) = test_integer.logits_of(test_integer.engine_of(network, x), x, each)
    assert torch.equal(found, expected)
    assert [len(call.kwargs["levels"]) for call in asked.call_args_list] == [2]


class Odd(nn.Module):
    """A grouped layer that two read, which is oneDNN's; and a sum with means that two read, which is torch's."""

    def __init__(self, quantizers: Quantizers) -> None:
        super().__init__()
        self.grouped = QuantConv2d(4, 6, 3, groups=2, quantizers=quantizers)
        self.layers = nn.ModuleList(QuantConv2d(6, 6, 1, quantizers=quantizers) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(x))
        means = self.layers[0](x).mean((2, 3), keepdim=True)
        x = torch.relu(self.layers[1](x) + means)
        return self.layers[2](x).mean((2, 3)) + self.layers[3](x).mean((2, 3))  # type: ignore[no-any-return]  # modules are untyped calls


@pytest.mark.parametrize("activation", ["pact", "lsq"])
def test_what_the_kernel_does_not_compute_is_rounded_afterwards(activation: Any) -> None:
    network = Odd(Quantizers(options=OPTIONS, activation=activation, switchable=True)).eval()
    randomize(network, 2)
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    each = sample("iid", 5, OPTIONS, 12, seed=0)
    with readers_counted(0):
        expected = test_integer.logits_of(test_integer.engine_of(network, x), x, each)
    with (
        readers_counted() as counts,
        mock.patch.object(
            IntegerRegion, "compute_with", autospec=True, side_effect=IntegerRegion.compute_with
        ) as asked,
    ):
        found = test_integer.logits_of(test_integer.engine_of(network, x), x, each)
    assert asked.call_count > len(counts) > 0, "the grouped layer only is asked of the arithmetic"
    assert all(map(torch.equal, found, expected))
