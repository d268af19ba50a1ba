"""The integer engine's tests of layers once more, with the kernel in C++ (its tiles emulated) in place of oneDNN.

Geometries and quantizers take turns; with TORTURE_SCALE=1 every one meets every other.
"""

import itertools
import shutil

import pytest
import test_integer
from convolved import kernel_of
from random_networks import layer_names_of
from shares import FULL
from test_integer import GEOMETRIES, QUANTIZERS
from torch import Tensor, nn

from qbw_eval.engine.amx_arithmetic import AmxArithmetic
from qbw_eval.engine.integer import IntegerEngine
from qbw_eval.engine.packing import why_not_here
from qbw_eval.engine.passes import COMPILERS, PLAIN
from qbw_eval.quantization.bitwidths import common_options

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
