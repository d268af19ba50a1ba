"""The integer engine against NumPy in float64: layer by layer, regions of layers, and the demo's trained network.

Values are drawn away from rounding ties, where float32 and float64 may honestly differ; `test_engine_truth` says what
such a tie does. A layer that silently ran in float32 instead would fail: `only_integers` forbids it.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import references
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import (
    Case,
    cases,
    configurations_of,
    layer_names_of,
    naive_logits,
    part_of,
    random_configurations,
    randomize,
)
from torch import Tensor, nn

from benchmarks.agreement import OPTIONS as AGREEMENT_OPTIONS
from benchmarks.agreement import class_changes, random_images, random_network
from benchmarks.devices import Differences, demo_differences
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.configurations import sample
from qbw_eval.data.sources import load_split
from qbw_eval.data.split import Split
from qbw_eval.engine.incremental import IncrementalEngine
from qbw_eval.engine.integer import DeclinedError, IntegerEngine
from qbw_eval.engine.packing import pairs_saturate, why_not_here
from qbw_eval.engine.passes import PLAIN
from qbw_eval.engine.reference import ReferenceEngine
from qbw_eval.engine.tally import Tally, predictions_of
from qbw_eval.networks.build import load_network
from qbw_eval.quantization.bitwidths import common_options, get_bitwidths
from qbw_eval.quantization.layers import QuantConv2d, QuantizedLayer, Quantizers, QuantLinear, SwitchableBatchNorm2d

pytestmark = pytest.mark.skipif(why_not_here() is not None, reason=f"no integer convolutions here: {why_not_here()}")

MUCH = 10**8
SLOW = settings(
    max_examples=25,
    deadline=None,  # the machine may be busy
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],  # building networks takes its time
)
QUANTIZERS = [("dorefa", "dorefa"), ("dorefa_scaled", "dorefa"), ("dorefa", "pact"), ("lsq", "lsq"), ("lsq", "pact")]


@contextmanager
def only_integers() -> Iterator[None]:
    """Let every layer fail that runs in float32."""
    refusal = AssertionError("a quantized layer ran in float32")
    with (
        mock.patch.object(QuantConv2d, "run", side_effect=refusal),
        mock.patch.object(QuantLinear, "run", side_effect=refusal),
    ):
        yield


def logits_of(engine: Any, inputs: Any, configurations: Sequence[Any]) -> list[Tensor]:
    with torch.inference_mode():
        found = dict(engine.logits(inputs, configurations))
    return [found[position] for position in range(len(configurations))]


def engine_of(network: nn.Module, inputs: Any) -> IntegerEngine:
    return IntegerEngine(network, layer_names_of(network), inputs, common_options(network), MUCH, PLAIN)


# --- a layer --------------------------------------------------------------------------------------------------------


def learned(layer: QuantizedLayer, bits: int) -> tuple[float, float]:
    """Return the weights' step and the activations' clipping value or step of `bits`."""
    index = layer.bitwidth_options.index(bits)
    steps = layer.quantize_w.step_size.tolist()[index] if layer.quantizers.weight == "lsq" else 0.0
    match layer.quantizers.activation:
        case "pact":
            return steps, layer.alpha.tolist()[index]
        case "lsq":
            return steps, layer.quantize_a.step_size.tolist()[index]
    return steps, 0.0


def activation_unit(layer: QuantizedLayer, bits: int) -> float:
    n = 2.0**bits - 1
    _, value = learned(layer, bits)
    return {"dorefa": 1 / n, "pact": value / n, "lsq": value}[layer.quantizers.activation]


def weights_before_rounding(layer: QuantizedLayer, bits: int) -> np.ndarray:
    weight = layer.weight.detach().double().numpy()
    match layer.quantizers.weight:
        case "dorefa":
            return references.dorefa_weight_before_rounding(weight, bits)
        case "dorefa_scaled":
            return references.dorefa_scaled_weight_before_rounding(weight, bits)
    return weight / learned(layer, bits)[0]


def near_a_tie(values: np.ndarray, distance: float) -> np.ndarray:
    return np.abs(values - np.floor(values) - 0.5) < distance


def draw_weights_off_ties(layer: QuantizedLayer, generator: torch.Generator) -> None:
    """Draw again what is near a tie at any bitwidth; the largest magnitude, which scales the rest, is 1."""
    weight = layer.weight.data
    weight.copy_(torch.rand(weight.shape, generator=generator) * 1.9 - 0.95)
    weight.view(-1)[0] = 1.0
    for _ in range(100):
        near = np.zeros(weight.shape, dtype=bool)
        for bits in layer.bitwidth_options:
            near |= near_a_tie(weights_before_rounding(layer, bits), 1e-3)
        near.reshape(-1)[0] = False
        if not near.any():
            return
        weight[torch.from_numpy(near)] = torch.rand(int(near.sum()), generator=generator) * 1.9 - 0.95
    raise AssertionError("there are no such weights")


def inputs_off_ties(layer: QuantizedLayer, bits: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return inputs up to 0.4 of a level around every level, and around some that clip on both sides."""
    n = 2**bits - 1
    level = torch.randint(-2, n + 4, tuple(shape), generator=generator, dtype=torch.float64)
    level.view(-1)[: n + 1] = torch.arange(n + 1)[: level.numel()]
    around = torch.rand(level.shape, generator=generator, dtype=torch.float64) * 0.8 - 0.4
    return ((level + around) * activation_unit(layer, bits)).float()


class Layer(nn.Module):
    """A quantized layer, and what may follow it."""

    def __init__(self, layer: QuantConv2d | QuantLinear, norm: nn.Module | None, relu: bool) -> None:
        super().__init__()
        self.layer, self.norm, self.relu = layer, norm, nn.ReLU() if relu else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.relu is None else self.relu(x)


def numpys(network: Layer, x: np.ndarray, bits: int) -> np.ndarray:
    """Return the layer's output by NumPy, in float64, from the table of formulas."""
    layer = network.layer
    step, value = learned(layer, bits)
    x = references.quantized_activation(layer.quantizers.activation, layer.quantizers.weight, x, bits, value)
    w = references.quantized_weight(layer.quantizers.weight, layer.weight.detach().double().numpy(), bits, step)
    w = references.normalized_weight(w) if layer.quantizers.weight_normalization else w
    bias = None if layer.bias is None else layer.bias.detach().double().numpy()
    if isinstance(layer, QuantLinear):
        y = x @ w.T + (0 if bias is None else bias)
    else:
        y = references.conv2d(
            *(x, w, bias),
            stride=layer.stride[0],
            padding=layer.padding[0],  # type: ignore[arg-type]  # a number
            dilation=layer.dilation[0],
            groups=layer.groups,
        )
    if network.norm is not None:
        norms = network.norm.bn_dict[str(bits)] if isinstance(network.norm, SwitchableBatchNorm2d) else network.norm
        state = {f"norm.{name}": value.double().numpy() for name, value in norms.state_dict().items()}
        y = references.batch_norm(y, state, "norm")
    return np.maximum(y, 0) if network.relu is not None else y


def assert_within_a_millionth(found: Tensor, expected: np.ndarray, message: str) -> None:
    """Of the largest magnitude: what lies between convolutions is float32, good to 6e-8 an operation."""
    assert found.dtype == torch.float32
    np.testing.assert_allclose(
        found.double().numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max(), err_msg=message
    )


GEOMETRIES = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3 stride 2": {"kernel_size": 3, "padding": 1, "stride": 2},
    "1x1 stride 2, bias": {"kernel_size": 1, "stride": 2, "bias": True},
    "5x5 dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "7x7, no padding": {"kernel_size": 7},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2, "bias": True},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 8, "stride": 2},
}


def runs_in_integers(layer: QuantizedLayer, bits: int) -> bool:
    """Return whether an exact convolution is known: of grouped ones, not where weights must be split."""
    if bits < 8 or not isinstance(layer, QuantConv2d) or layer.groups == 1:
        return True
    return layer.quantizers.weight == "lsq" and not pairs_saturate()


def convolution(quantizers: Quantizers, geometry: dict[str, Any], channels: tuple[int, int] = (8, 8)) -> QuantConv2d:
    geometry = dict(geometry)
    dilation = geometry.pop("dilation", 1)
    layer = QuantConv2d(*channels, quantizers=quantizers, **geometry)
    layer.dilation = (dilation, dilation)  # ours has no argument for it, and runs it
    return layer


def all_bits(weight: str, activation: str) -> tuple[int, ...]:
    return tuple(range(2 if "lsq" in (weight, activation) else 1, 9))


@pytest.mark.parametrize("geometry", list(GEOMETRIES.values()), ids=list(GEOMETRIES))
@pytest.mark.parametrize(("weight", "activation"), QUANTIZERS)
def test_a_convolution_is_numpys_at_every_bitwidth(weight: str, activation: str, geometry: dict[str, Any]) -> None:
    options = all_bits(weight, activation)
    quantizers = Quantizers(options=options, weight=weight, activation=activation, switchable=True)  # type: ignore[arg-type]  # they are among those
    generator = torch.Generator().manual_seed(len(weight) + geometry["kernel_size"])
    for norm_kind, relu in ((None, False), ("shared", True), ("switchable", False)):
        layer = convolution(quantizers, geometry)
        norms = {None: None, "shared": nn.BatchNorm2d(8), "switchable": SwitchableBatchNorm2d(8, layer)}
        network = Layer(layer, norms[norm_kind], relu).eval()
        randomize(network, 5)
        draw_weights_off_ties(layer, generator)
        engine = engine_of(network, torch.zeros(2, 8, 9, 7))
        for bits in options:
            x = inputs_off_ties(layer, bits, (2, 8, 9, 7), generator)
            if not runs_in_integers(layer, bits):
                (found,) = logits_of(engine, x, configurations_of([bits]))
                (expected,) = naive_logits(network, ["layer"], x, configurations_of([bits]))
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
                continue
            with only_integers():
                (found,) = logits_of(engine, x, configurations_of([bits]))
            expected = numpys(network, x.double().numpy(), bits)
            assert bool((expected != 0).any())
            assert_within_a_millionth(found, expected, f"{bits} bits, norm {norm_kind}")


@pytest.mark.parametrize(("weight", "activation"), QUANTIZERS)
@pytest.mark.parametrize("shape", [(3, 40), (2, 5, 40), (2, 3, 2, 40)], ids=["rows", "sequences", "images"])
def test_a_linear_layer_is_numpys_at_every_bitwidth(weight: str, activation: str, shape: tuple[int, ...]) -> None:
    options = all_bits(weight, activation)
    quantizers = Quantizers(options=options, weight=weight, activation=activation, switchable=True)  # type: ignore[arg-type]  # they are among those
    generator = torch.Generator().manual_seed(3)
    for bias, relu in ((True, False), (False, True)):
        layer = QuantLinear(40, 10, quantizers=quantizers, bias=bias)
        network = Layer(layer, None, relu).eval()
        randomize(network, 6)
        draw_weights_off_ties(layer, generator)
        engine = engine_of(network, torch.zeros(shape))
        for bits in options:
            x = inputs_off_ties(layer, bits, shape, generator)
            with only_integers():
                (found,) = logits_of(engine, x, configurations_of([bits]))
            assert_within_a_millionth(found, numpys(network, x.double().numpy(), bits), f"{bits} bits")


@pytest.mark.parametrize(("weight", "activation"), QUANTIZERS)
def test_normalized_weights_are_numpys_integers_times_one_scale(weight: str, activation: str) -> None:
    options = all_bits(weight, activation)
    quantizers = Quantizers(
        options=options,
        weight=weight,  # type: ignore[arg-type]  # they are among those
        activation=activation,  # type: ignore[arg-type]
        switchable=True,
        weight_normalization=True,
    )
    generator = torch.Generator().manual_seed(11)
    layer = convolution(quantizers, GEOMETRIES["1x1 stride 2, bias"])
    linear = QuantLinear(40, 10, quantizers=quantizers)
    for network, shape in (
        (Layer(layer, nn.BatchNorm2d(8), True).eval(), (2, 8, 9, 7)),
        (Layer(linear, None, False).eval(), (3, 40)),
    ):
        randomize(network, 12)
        draw_weights_off_ties(network.layer, generator)
        engine = engine_of(network, torch.zeros(shape))
        assert engine.in_float32 == {}
        for bits in options:
            x = inputs_off_ties(network.layer, bits, shape, generator)
            with only_integers():
                (found,) = logits_of(engine, x, configurations_of([bits]))
            assert_within_a_millionth(found, numpys(network, x.double().numpy(), bits), f"{bits} bits")


@pytest.mark.parametrize(("weight", "activation"), QUANTIZERS)
@pytest.mark.parametrize("sign", [1, -1, 0], ids=["largest", "smallest", "in turn"])
def test_the_largest_sums_are_exact(weight: str, activation: str, sign: int) -> None:
    """Every weight and every activation at its bound, in a window of 512 x 3 x 3 as a ResNet's last stage has."""
    options = all_bits(weight, activation)
    quantizers = Quantizers(options=options, weight=weight, activation=activation, switchable=True)  # type: ignore[arg-type]  # they are among those
    layer = convolution(quantizers, GEOMETRIES["3x3"], (512, 2))
    network = Layer(layer, None, False).eval()
    randomize(network, 7)
    layer.weight.data[:] = sign if sign else torch.where(torch.arange(512) % 2 == 0, 1.0, -1.0)[:, None, None]
    x = torch.full((1, 512, 3, 3), 1e6)
    engine = engine_of(network, x)
    for bits in options:
        with only_integers():
            (found,) = logits_of(engine, x, configurations_of([bits]))
        expected = numpys(network, x.double().numpy(), bits)
        if sign:
            assert np.abs(expected).max() == np.abs(expected[0, 0, 1, 1]), "where no border is"
        units = (2.0**bits - 1) * activation_unit(layer, bits) * np.abs(weights_of(layer, bits)).max() * 512 * 9
        np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=1e-6 * units, err_msg=f"{bits} bits")


def weights_of(layer: QuantizedLayer, bits: int) -> np.ndarray:
    weight = layer.weight.detach().double().numpy()
    return references.quantized_weight(layer.quantizers.weight, weight, bits, learned(layer, bits)[0])


# --- layers behind layers -------------------------------------------------------------------------------------------


class Pair(nn.Module):
    """A layer, what follows it, and the layer that reads the result: the tensor between them stays uint8."""

    def __init__(self, quantizers: Quantizers, relu: bool, residual: bool) -> None:
        super().__init__()
        self.first = QuantConv2d(8, 8, 3, padding=1, quantizers=quantizers)
        self.norm = nn.BatchNorm2d(8)
        self.second = QuantConv2d(8, 6, 1, quantizers=quantizers, bias=True)
        self.relu, self.residual = relu, residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        if self.residual:
            y = y + x
        return self.second(torch.relu(y) if self.relu else y)  # type: ignore[no-any-return]  # modules are untyped calls


@pytest.mark.parametrize("residual", [False, True], ids=["straight", "residual"])
@pytest.mark.parametrize("relu", [False, True], ids=["no relu", "relu"])
@pytest.mark.parametrize(("weight", "activation"), QUANTIZERS)
def test_two_layers_are_numpys_at_any_two_bitwidths(weight: str, activation: str, relu: bool, residual: bool) -> None:
    options = tuple(bits for bits in all_bits(weight, activation) if bits in (1, 2, 3, 5, 7, 8))
    quantizers = Quantizers(options=options, weight=weight, activation=activation, switchable=True)  # type: ignore[arg-type]  # they are among those
    network = Pair(quantizers, relu, residual).eval()
    randomize(network, 8)
    generator = torch.Generator().manual_seed(9)
    for layer in (network.first, network.second):
        draw_weights_off_ties(layer, generator)
    engine = engine_of(network, torch.zeros(1, 8, 4, 3))
    head, tail = Layer(network.first, network.norm, False), Layer(network.second, None, False)
    for bits in itertools.product(options, repeat=2):
        for _ in range(50):  # until nothing between the layers is near a tie
            x = inputs_off_ties(network.first, bits[0], (1, 8, 4, 3), generator)
            between = numpys(head, x.double().numpy(), bits[0]) + (x.double().numpy() if residual else 0)
            between = np.maximum(between, 0) if relu else between
            near = near_a_tie(between / activation_unit(network.second, bits[1]), 2e-4)
            if not near[(between > 0)].any():
                break
        else:
            pytest.fail("there are no such inputs")
        with only_integers():
            (found,) = logits_of(engine, x, configurations_of(bits))
        assert_within_a_millionth(found, numpys(tail, between, bits[1]), f"{bits}")


# --- what it does where it must not ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dorefa", "pact", "lsq"])
def test_above_8_bits_and_at_32_it_is_the_reference_bit_for_bit(kind: Any) -> None:
    weight = "lsq" if kind == "lsq" else "dorefa"
    quantizers = Quantizers(options=(4, 9, 16), weight=weight, activation=kind, switchable=True)
    network = Pair(quantizers, relu=True, residual=True).eval()
    randomize(network, 1)
    # In channels_last, as the engine keeps images: the order in memory decides the order of float32 sums.
    x = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    wide = configurations_of(*itertools.product((9, 16, 32), repeat=2))
    expected = naive_logits(network, layer_names_of(network), x, wide)
    for ours, reference in zip(logits_of(engine_of(network, x), x, wide), expected, strict=True):
        assert torch.equal(ours, reference)


@pytest.mark.parametrize("change", ["clipping", "reflected", "same", "hook"])
def test_layers_that_no_exact_way_is_known_for_run_as_in_the_reference(change: str) -> None:
    network = Pair(Quantizers(options=(2, 4, 8), activation="pact"), relu=True, residual=False).eval()
    randomize(network, 2)
    layer = network.first
    match change:
        case "clipping":
            layer.alpha.data.fill_(-1.0)
        case "reflected":
            layer.padding_mode = "reflect"
            layer._reversed_padding_repeated_twice = [1, 1, 1, 1]
        case "same":
            layer.padding = "same"  # type: ignore[assignment]  # torch's own spelling
            layer._reversed_padding_repeated_twice = [1, 1, 1, 1]
        case "hook":
            layer.register_forward_hook(lambda _layer, _inputs, output: output * 2)
    x = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    configurations = configurations_of((2, 4), (4, 8), (8, 2))
    expected = naive_logits(network, layer_names_of(network), x, configurations)
    for ours, reference in zip(logits_of(engine_of(network, x), x, configurations), expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)  # the second layer runs in integers


class WithBatchSize(nn.Module):
    """Adds how many samples there are, a number that is known when it runs; two layers read the sum."""

    def __init__(self) -> None:
        super().__init__()
        quantizers = Quantizers(options=(2, 8, 16), activation="pact")
        self.first, self.second, self.third = (QuantConv2d(3, 3, 1, quantizers=quantizers) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x) + 0.01 * x.size(0))
        return self.second(x) + self.third(x)  # type: ignore[no-any-return]  # modules are untyped calls


def test_numbers_are_added_to_what_layers_compute() -> None:
    network = WithBatchSize().eval()
    randomize(network, 4)
    x = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    each = configurations_of((8, 8, 8), (8, 2, 16), (16, 8, 2), (2, 16, 16))
    found = logits_of(engine_of(network, x), x, each)
    for logits, expected in zip(found, naive_logits(network, layer_names_of(network), x, each), strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


class Viewing(nn.Module):
    """Asks for views that tensors in channels_last do not have, and for one of another type."""

    def __init__(self) -> None:
        super().__init__()
        quantizers = Quantizers(options=(2, 8, 32))
        self.first = QuantConv2d(3, 4, 3, quantizers=quantizers)
        self.second = QuantLinear(64, 5, quantizers=quantizers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu().view(x.size(0), -1))
        return y.view(torch.int32).view(dtype=torch.float32)


def test_views_of_images_are_copies_where_they_must_be() -> None:
    network = Viewing().eval()
    randomize(network, 0)
    x = torch.rand((2, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    configurations = configurations_of(*itertools.product((2, 8, 32), repeat=2))
    for found, expected in zip(
        logits_of(engine_of(network, x), x, configurations),
        naive_logits(network, layer_names_of(network), x, configurations),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_lsq_plus_layers_run_in_float32_for_a_reason_and_others_beside_them_in_integers() -> None:
    options, why = (2, 4, 8), "LSQ+'s levels have a zero point that need not be whole"
    network = Pair(Quantizers(options=options, weight="lsqplus"), relu=True, residual=False).eval()
    network.second = QuantConv2d(8, 6, 1, quantizers=Quantizers(options=options))
    randomize(network, 4)
    x = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    engine = engine_of(network, x)
    assert engine.in_float32 == {"first": why}
    configurations = configurations_of(*itertools.product(options, repeat=2))
    with mock.patch.object(network.second, "run", side_effect=AssertionError("it ran in float32")):
        found = logits_of(engine, x, configurations)
    for ours, reference in zip(found, naive_logits(network, ["first", "second"], x, configurations), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
    for weight, activation in (("lsqplus", "lsqplus"), ("lsqplus", "dorefa"), ("dorefa", "lsqplus")):
        quantizers = Quantizers(options=options, weight=weight, activation=activation)  # type: ignore[arg-type]  # they are among those
        with pytest.raises(DeclinedError) as error:
            engine_of(Pair(quantizers, relu=True, residual=False).eval(), x)
        assert str(error.value) == f"none of its quantized layers runs in integers: {why}"


def tiny() -> Pair:
    network = Pair(Quantizers(options=(2, 8)), relu=True, residual=False).eval()
    randomize(network, 0)
    return network


X = torch.zeros(1, 8, 4, 4)


def test_weights_that_are_nan_or_infinite_are_declined_in_a_sentence() -> None:
    for value in (float("nan"), float("inf")):
        network = tiny()
        network.norm.bias.data[0] = value
        with pytest.raises(DeclinedError) as error:
            engine_of(network, X)
        assert str(error.value) == "some of its weights are NaN or infinite, which integers cannot carry on"


def test_weights_of_another_kind_are_declined_in_a_sentence() -> None:
    with pytest.raises(DeclinedError) as error:
        engine_of(tiny().double(), X)
    assert str(error.value) == "its weights are not float32"


def test_another_device_is_declined_in_a_sentence() -> None:
    with pytest.raises(DeclinedError) as error:
        engine_of(tiny().to("meta"), X)
    assert str(error.value) == "it runs on the CPU only"


def test_a_network_without_a_layer_of_ours_is_declined_in_a_sentence() -> None:
    class Foreign(nn.Linear):
        curr_bitwidth = 8

    with pytest.raises(DeclinedError) as error:
        IntegerEngine(nn.Sequential(Foreign(3, 2)).eval(), ["0"], torch.zeros(1, 3), (2, 8), MUCH)
    assert str(error.value) == "none of its quantized layers is one that QBW knows the arithmetic of"


def test_a_machine_that_is_not_trusted_is_declined_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qbw_eval.engine.onednn.why_not_here", lambda: "this is a toaster")
    with pytest.raises(DeclinedError) as error:
        engine_of(tiny(), X)
    assert str(error.value) == "this is a toaster"


def test_bits_and_mode_are_put_back_when_nobody_asks_for_the_rest() -> None:
    network = tiny().train()
    before = get_bitwidths(network)
    results = engine_of(network, X).logits(X, configurations_of((2, 2), (8, 8)))
    next(results)
    assert set(get_bitwidths(network).values()) == {2}
    results.close()
    assert get_bitwidths(network) == before
    assert all(module.training for module in network.modules())


# --- random networks ------------------------------------------------------------------------------------------------


@SLOW
@given(st.data())
def test_neither_order_nor_company_changes_a_bit(data: st.DataObject) -> None:
    case: Case = data.draw(cases(zero_points=False))
    configurations = data.draw(random_configurations(case))
    engine = IntegerEngine(
        case.network, case.layer_names, case.inputs, case.options, data.draw(st.sampled_from([0, MUCH])), PLAIN
    )
    together = logits_of(engine, case.inputs, configurations)
    shuffled = data.draw(st.permutations(range(len(configurations))))
    again = logits_of(engine, case.inputs, [configurations[position] for position in shuffled])
    for place, position in enumerate(shuffled):
        assert torch.equal(again[place], together[position])
    alone = data.draw(st.sampled_from(range(len(configurations))))
    fresh = IntegerEngine(case.network, case.layer_names, part_of(case.inputs, slice(0, 1)), case.options, MUCH, PLAIN)
    assert torch.equal(logits_of(fresh, case.inputs, [configurations[alone]])[0], together[alone])


@SLOW
@given(st.data())
def test_random_networks_at_8_bits_and_more_are_a_float64_forwards_but_for_ties(data: st.DataObject) -> None:
    """At 8 bits a tie moves one activation by 1/255: every element is near, and a wrong region would be far off."""
    case: Case = data.draw(cases(zero_points=False))
    bits = st.sampled_from([bits for bits in (*case.options, 32) if bits >= 8])
    count = len(case.layer_names)
    configurations = configurations_of(
        *data.draw(st.lists(st.lists(bits, min_size=count, max_size=count), min_size=1, max_size=3))
    )
    engine = IntegerEngine(case.network, case.layer_names, case.inputs, case.options, MUCH, PLAIN)
    truth = naive_logits(double_of(case.network), case.layer_names, doubled(case.inputs), configurations)
    for ours, expected in zip(logits_of(engine, case.inputs, configurations), truth, strict=True):
        assert ours.shape == expected.shape
        distance = float((ours.double() - expected).abs().max())
        assert distance <= 0.05 * max(1.0, float(expected.abs().max()))


def double_of(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).double()


def doubled(inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {key: doubled(value) for key, value in inputs.items()}
    return [doubled(value) for value in inputs] if isinstance(inputs, list) else inputs.double()


# --- the demo's trained network, and a random one ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(demo_checkpoint: Path) -> tuple[nn.Module, Split]:
    checkpoint = read_checkpoint(demo_checkpoint)
    return (
        load_network(checkpoint.experiment, checkpoint.state, "demo"),
        load_split(checkpoint.experiment.data, "validation"),
    )


TWENTY = sample("iid", 8, (2, 4, 8), 20, seed=7)


def test_no_more_classes_change_than_in_the_reference(
    trained: tuple[nn.Module, Split], capsys: pytest.CaptureFixture[str]
) -> None:
    """On the demo's network hardly any does, so a random ResNet-18, where many do, has its say as well.

    It is a small share of `python -m benchmarks.agreement`, which is too slow for here.
    """
    demo, split = trained
    on_demo = class_changes(demo, references.RESNET8_LAYERS, split.inputs, TWENTY, PLAIN, batch_size=400)
    network = random_network(width=8)
    names = layer_names_of(network)
    configurations = sample("iid", len(names), AGREEMENT_OPTIONS, 8, seed=3)
    on_random = class_changes(network, names, random_images(100, seed=2), configurations, PLAIN, batch_size=100)
    with capsys.disabled():
        print(f"\nthe demo's network: {on_demo}\na random ResNet-18: {on_random}")
    assert sum(on_demo.reference) + sum(on_random.reference) > 0, "or nothing was compared"
    assert sum(on_demo.integer) + sum(on_random.integer) <= sum(on_demo.reference) + sum(on_random.reference)


def test_the_trained_network_sees_the_same_classes_by_triton(demo_checkpoint: Path) -> None:
    """A handful of what `make bench DEVICE=cuda` asks a GPU, under Triton's interpreter."""
    triton_arithmetic = pytest.importorskip(
        "qbw_eval.engine.triton_arithmetic",
        reason="Triton is not installed: pip install '.[gpu]'",
        exc_type=ImportError,
    )
    cpu = torch.device("cpu")

    def by_triton(network: nn.Module, names: Sequence[str], inputs: Tensor, options: Sequence[int]) -> IntegerEngine:
        arithmetic = triton_arithmetic.TritonArithmetic(cpu, MUCH)
        return IntegerEngine(network, names, inputs, options, MUCH, arithmetic=arithmetic)

    found = demo_differences(demo_checkpoint, cpu, by_triton, images=6, count=2)
    assert found == Differences(samples=6, of_configuration=[0, 0])


def test_accuracies_on_the_trained_network_are_the_references_but_for_a_sample(
    trained: tuple[nn.Module, Split], capsys: pytest.CaptureFixture[str]
) -> None:
    network, split = trained
    names = references.RESNET8_LAYERS
    correct = []
    for engine in (
        ReferenceEngine(network, names),
        IntegerEngine(network, names, split.inputs, common_options(network), MUCH, PLAIN),
    ):
        tallies = [Tally() for _ in TWENTY]
        for tally, logits in zip(tallies, logits_of(engine, split.inputs, TWENTY), strict=True):
            tally.update(logits, split.labels)
        correct.append([tally.finish().correct for tally in tallies])
    differences = [ours - reference for reference, ours in zip(*correct, strict=True)]
    with capsys.disabled():
        print(f"\nsamples of {len(split)} that integers get right more often than the reference: {differences}")
    assert max(map(abs, differences)) <= 1


@pytest.mark.parametrize("kind", ["integer", "incremental"])
def test_predictions_do_not_depend_on_the_batch_size(trained: tuple[nn.Module, Split], kind: str) -> None:
    network, split = trained
    inputs = split.inputs[:150]
    if kind == "integer":
        engine: Any = engine_of(network, inputs[:64])
    else:
        engine = IncrementalEngine(network, references.RESNET8_LAYERS, inputs[:64], MUCH)
    whole = [predictions_of(logits) for logits in logits_of(engine, inputs, TWENTY[:6])]
    for size in (64, 7):
        parts = [logits_of(engine, batch, TWENTY[:6]) for batch in inputs.split(size)]
        for position, expected in enumerate(whole):
            assert torch.equal(torch.cat([predictions_of(part[position]) for part in parts]), expected)
