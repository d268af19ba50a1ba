"""Quantized layers against NumPy in float64, their bitwidths, their batch norms and their settings' checks."""

import copy
import re
from itertools import product

import numpy as np
import pytest
import references
import torch
from torch import nn

from qbw_eval.quantization import numerics
from qbw_eval.quantization.bitwidths import name_layers
from qbw_eval.quantization.layers import (
    BitwidthError,
    QuantConv2d,
    QuantizedLayer,
    Quantizers,
    QuantLinear,
    SwitchableBatchNorm2d,
)

WEIGHTS = ("none", "dorefa", "dorefa_scaled", "lsq", "lsqplus")
ACTIVATIONS = ("none", "dorefa", "pact", "lsq", "lsqplus")
GEOMETRIES = [
    {"kernel_size": 3, "stride": 1, "padding": 1, "groups": 1, "bias": False},
    {"kernel_size": 1, "stride": 2, "padding": 0, "groups": 1, "bias": True},
    {"kernel_size": 5, "stride": 3, "padding": 2, "groups": 2, "bias": True},
    {"kernel_size": 2, "stride": 1, "padding": 0, "groups": 4, "bias": False},
]


def options_for(weight: str, activation: str) -> tuple[int, ...]:
    return (2, 3, 4, 5, 6, 7, 8, 16) if "lsq" in (weight, activation) else (1, 2, 3, 4, 5, 6, 7, 8, 16)


def randomize(layer: QuantizedLayer, seed: int) -> None:
    """Give weights, bias, clipping values, steps and zero points random values, different for every option."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in layer.named_parameters():
        values = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
        positive = "alpha" in name or "step_size" in name
        scale = 0.1 if "quantize_w" in name else 1.0
        parameter.data.copy_((values + 0.2) * scale if positive else values * 2 - 1)


def learned_value(layer: QuantizedLayer, which: str, bits: int) -> float:
    """Return the clipping value, step or zero point of `bits`: the entry of its option, or the only entry."""
    values = layer.get_parameter(which)
    options = list(layer.bitwidth_options)
    own = len(values) == len(options) > 1 and bits in options
    return values.tolist()[options.index(bits) if own else 0]


def quantized(layer: QuantizedLayer, x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the layer's quantized input and weights, by NumPy."""
    settings = layer.quantizers
    names = dict(layer.named_parameters())
    step, of_weights, alpha, of_activations, zero_point = (
        learned_value(layer, name, bits) if name in names else 0.0
        for name in ("quantize_w.step_size", "quantize_w.zp", "alpha", "quantize_a.step_size", "quantize_a.zp")
    )
    weights = references.quantized_weight(settings.weight, layer.weight.detach().numpy(), bits, step, of_weights)
    if settings.weight_normalization and bits < 32:
        weights = references.normalized_weight(weights)
    parameter = of_activations if settings.activation != "pact" else alpha
    return (
        references.quantized_activation(settings.activation, settings.weight, x, bits, parameter, zero_point),
        weights,
    )


@pytest.mark.parametrize("switchable", [False, True], ids=["shared", "switchable"])
@pytest.mark.parametrize(("weight", "activation"), list(product(WEIGHTS, ACTIVATIONS)))
def test_a_convolution_is_numpys_on_quantized_inputs_and_weights(
    weight: str, activation: str, switchable: bool
) -> None:
    options = options_for(weight, activation)
    for seed, (geometry, normalized) in enumerate(product(GEOMETRIES, (False, True))):
        quantizers = Quantizers(
            options=options,
            weight=weight,
            activation=activation,
            switchable=switchable,
            weight_normalization=normalized,
        )
        layer = QuantConv2d(4, 8, quantizers=quantizers, **geometry).double()
        randomize(layer, seed)
        x = np.random.default_rng(seed).normal(size=(2, 4, 7, 6))
        bias = layer.bias.detach().numpy() if layer.bias is not None else None
        outputs = []
        for bits in (*options, 32):
            layer.set_bitwidth(bits)
            ours = layer(torch.from_numpy(x)).detach().numpy()
            inputs, weights = quantized(layer, x, bits)
            shape = {name: geometry[name] for name in ("stride", "padding", "groups")}
            expected = references.conv2d(inputs, weights, bias, **shape)
            np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-11, err_msg=f"{bits} bits, {geometry}")
            outputs.append(ours)
        if (weight, activation) != ("none", "none"):
            assert not np.allclose(outputs[0], outputs[-1])


@pytest.mark.parametrize("switchable", [False, True], ids=["shared", "switchable"])
@pytest.mark.parametrize(("weight", "activation"), list(product(WEIGHTS, ACTIVATIONS)))
def test_a_linear_layer_is_numpys_on_quantized_inputs_and_weights(
    weight: str, activation: str, switchable: bool
) -> None:
    options = options_for(weight, activation)
    for seed, bias in enumerate([True, False]):
        quantizers = Quantizers(
            options=options, weight=weight, activation=activation, switchable=switchable, weight_normalization=bias
        )
        layer = QuantLinear(6, 5, quantizers=quantizers, bias=bias).double()
        randomize(layer, seed)
        x = np.random.default_rng(seed).normal(size=(3, 2, 6))
        for bits in (*options, 32):
            layer.set_bitwidth(bits)
            inputs, weights = quantized(layer, x, bits)
            expected = inputs @ weights.T + (layer.bias.detach().numpy() if bias else 0)
            ours = layer(torch.from_numpy(x)).detach().numpy()
            np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-11, err_msg=f"{bits} bits")


def test_32_among_the_options_has_its_own_entry_and_stays_unquantized() -> None:
    layer = QuantLinear(3, 2, quantizers=Quantizers(options=(4, 32), activation="pact", switchable=True), bias=False)
    assert layer.alpha.shape == (2,)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x), x @ layer.weight.T)


@pytest.mark.parametrize(
    ("quantizers", "names"),
    [
        (Quantizers(options=(2, 4)), {"weight": (3, 2)}),
        (Quantizers(options=(2, 4), activation="pact"), {"weight": (3, 2), "alpha": (1,)}),
        (Quantizers(options=(2, 4), activation="pact", switchable=True), {"weight": (3, 2), "alpha": (2,)}),
        (
            Quantizers(options=(2, 4, 8), weight="lsq", activation="lsq", switchable=True),
            {"weight": (3, 2), "quantize_w.step_size": (3,), "quantize_a.step_size": (3,)},
        ),
        (Quantizers(options=(2, 4), weight="lsq"), {"weight": (3, 2), "quantize_w.step_size": (1,)}),
        (
            Quantizers(options=(2, 4), weight="lsqplus", activation="lsqplus"),
            {
                "weight": (3, 2),
                **{f"quantize_{which}.{name}": (1,) for which in "wa" for name in ("step_size", "zp")},
            },
        ),
        (
            Quantizers(options=(2, 4, 8), weight="dorefa", activation="lsqplus", switchable=True),
            {"weight": (3, 2), "quantize_a.step_size": (3,), "quantize_a.zp": (3,)},
        ),
        (Quantizers(options=(2, 4), weight_normalization=True), {"weight": (3, 2)}),
    ],
)
def test_state_dict_keys_are_the_seeds(quantizers: Quantizers, names: dict[str, tuple[int, ...]]) -> None:
    layer = QuantLinear(2, 3, quantizers=quantizers, bias=False)
    assert {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()} == names


def test_learned_values_start_where_their_papers_say() -> None:
    pact = QuantConv2d(2, 3, 3, quantizers=Quantizers(options=(2, 4), activation="pact", switchable=True))
    assert pact.alpha.tolist() == [8.0, 8.0]
    layer = QuantConv2d(2, 3, 3, quantizers=Quantizers(options=(2, 4, 32), weight="lsq", switchable=True))
    mean = layer.weight.detach().abs().mean().item()
    steps = [2 * mean / largest**0.5 for largest in (1, 7, 2**30 - 1)]
    assert layer.quantize_w.step_size.tolist() == pytest.approx(steps, rel=1e-6)


def test_lsq_pluss_learned_values_start_where_the_weights_are() -> None:
    quantizers = Quantizers(options=(1, 2, 32), weight="lsqplus", activation="lsqplus", switchable=True)
    layer = QuantConv2d(2, 3, 3, quantizers=quantizers)
    weight = layer.weight.detach().double().numpy()
    reach = max(abs(weight.mean() - 3 * weight.std()), abs(weight.mean() + 3 * weight.std()))
    assert layer.quantize_w.step_size.tolist() == pytest.approx([reach, reach / 2, 1e-8], rel=1e-5)
    assert layer.quantize_w.zp.tolist() == [0.5, 1.5, 2.0**30]
    for bits in (1, 2):  # the levels lie evenly around zero
        layer.set_bitwidth(bits)
        assert len(layer.quantize_weight().abs().unique()) <= 2 ** (bits - 1)
    assert layer.quantize_a.step_size.tolist() == [1.0, 1.0, 1.0]
    assert layer.quantize_a.zp.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("switchable", [False, True], ids=["shared", "switchable"])
def test_lsq_plus_activations_start_from_what_the_layer_receives(switchable: bool) -> None:
    quantizers = Quantizers(options=(2, 4), activation="lsqplus", switchable=switchable)
    layer = QuantLinear(3, 2, quantizers=quantizers)
    levels = torch.tensor([-0.5, 0.0, 0.5, 1.0])  # which 2 bits can hold exactly, and 4 bits with a fifth of the step
    layer.initialize_activation_steps(levels.repeat(6).reshape(8, 3))
    steps, zero_points = ([0.5, 0.1], [1.0, 5.0]) if switchable else ([0.5], [1.0])
    assert layer.quantize_a.step_size.tolist() == pytest.approx(steps)
    assert layer.quantize_a.zp.tolist() == pytest.approx(zero_points)
    layer.set_bitwidth(2)
    torch.testing.assert_close(layer.quantize_activation(levels), levels)
    layer.initialize_activation_steps(torch.zeros(2, 3))
    assert (layer.quantize_a.step_size == 1e-8).all()
    assert (layer.quantize_activation(torch.zeros(2, 3)) == 0).all()


# --- weight normalization -------------------------------------------------------------------------------------------


def test_normalized_weights_have_a_standard_deviation_of_1_below_32_bits() -> None:
    for weight in WEIGHTS:
        layer = QuantConv2d(4, 8, 3, quantizers=Quantizers(options=(2, 8), weight=weight, weight_normalization=True))
        plain = QuantConv2d(4, 8, 3, quantizers=Quantizers(options=(2, 8), weight=weight))
        plain.load_state_dict(layer.state_dict())
        for bits in (2, 8):
            layer.set_bitwidth(bits)
            plain.set_bitwidth(bits)
            assert torch.equal(layer.quantize_weight(), plain.quantize_weight() / plain.quantize_weight().std())
            assert layer.quantize_weight().std().item() == pytest.approx(1, rel=1e-6)
        layer.set_bitwidth(32)
        plain.set_bitwidth(32)
        assert torch.equal(layer.quantize_weight(), plain.quantize_weight())


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)], ids=["a single weight", "equal weights"])
def test_weights_without_spread_are_not_normalized(shape: tuple[int, int]) -> None:
    layer = QuantLinear(*shape, quantizers=Quantizers(options=(2,), weight_normalization=True))
    layer.weight.data.fill_(0.7)
    assert (layer.quantize_weight() == 1).all()
    assert layer.weight_unit() == 1 / 3


def test_the_standard_deviation_takes_no_gradient() -> None:
    layer = QuantLinear(6, 5, quantizers=Quantizers(options=(4,), weight="lsq", weight_normalization=True))
    std = numerics.lsq(layer.weight, layer.quantize_w.step_size[0], 4, True).std().item()
    layer.quantize_weight().sum().backward()
    found = layer.weight.grad
    layer.weight.grad = None
    (numerics.lsq(layer.weight, layer.quantize_w.step_size[0], 4, True) / std).sum().backward()
    torch.testing.assert_close(found, layer.weight.grad)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("weight", ["dorefa", "dorefa_scaled", "lsq"])
def test_normalized_weights_are_whole_multiples_of_their_unit(weight: str, bits: int) -> None:
    options = (bits,) if bits > 1 or weight != "lsq" else (2,)
    layer = QuantConv2d(16, 8, 3, quantizers=Quantizers(options=options, weight=weight, weight_normalization=True))
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(bits))
    unit = layer.weight_unit()
    assert unit is not None
    multiples = layer.quantize_weight().detach().double() / unit
    assert (multiples - multiples.round()).abs().max() < 1e-4
    assert multiples.round().unique().numel() > 1


@pytest.mark.parametrize("switchable", [False, True])
def test_a_step_or_clipping_value_gets_a_gradient_only_at_its_own_bitwidth(switchable: bool) -> None:
    for weight, activation in (("lsq", "lsq"), ("lsqplus", "lsqplus"), ("dorefa", "pact")):
        quantizers = Quantizers(options=(2, 4, 8), weight=weight, activation=activation, switchable=switchable)
        layer = QuantConv2d(2, 3, 3, quantizers=quantizers)
        randomize(layer, 0)
        layer.set_bitwidth(4)
        layer(torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(0)) * 3).sum().backward()
        learned = [p.grad for name, p in layer.named_parameters() if name.endswith(("alpha", "step_size", "zp"))]
        assert len(learned) == {"pact": 1, "lsq": 2, "lsqplus": 4}[activation]
        for gradient in learned:
            assert (gradient != 0).tolist() == ([False, True, False] if switchable else [True])


# --- bitwidths ------------------------------------------------------------------------------------------------------


def test_a_layer_starts_at_its_largest_option() -> None:
    assert QuantLinear(2, 2, quantizers=Quantizers(options=(2, 4, 8))).curr_bitwidth == 8


def test_an_option_and_32_are_accepted_numpys_integers_too() -> None:
    layer = QuantConv2d(1, 1, 1, quantizers=Quantizers(options=(2, 4)))
    for bits in (2, 4, 32, np.int64(2), np.int8(4)):
        layer.set_bitwidth(bits)
        assert layer.curr_bitwidth == bits
        assert type(layer.curr_bitwidth) is int  # anything else would not be found as a quantized layer's


@pytest.mark.parametrize("bits", [1, 3, 8, 0, -2, 31, 33, True, 4.0, 2.5, None, "4"])
def test_any_other_bitwidth_is_an_error_naming_layer_value_and_options(bits: object) -> None:
    network = nn.Sequential(nn.Sequential(QuantConv2d(1, 1, 1, quantizers=Quantizers(options=(1, 2, 4)))))
    network[0][0].bitwidth_options = (2, 4)
    name_layers(network)
    with pytest.raises(BitwidthError) as error:
        network[0][0].set_bitwidth(bits)
    assert str(error.value) == (
        f"layer '0.0': bitwidth {bits!r} is not among its options [2, 4] (or 32 for full precision)"
    )
    assert error.value.exit_code == 2
    assert network[0][0].curr_bitwidth == 4


def test_true_is_refused_even_where_1_is_an_option() -> None:
    layer = QuantLinear(1, 1, quantizers=Quantizers(options=(1, 2)))
    with pytest.raises(BitwidthError, match=r"^layer 'QuantLinear': bitwidth True is not among its options \[1, 2\]"):
        layer.set_bitwidth(True)


def test_setting_a_bitwidth_changes_nothing_but_the_bitwidth() -> None:
    layer = QuantConv2d(2, 3, 3, quantizers=Quantizers(options=(2, 4), weight="lsq", activation="lsq", switchable=True))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.set_bitwidth(2)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    assert layer.training


# --- switchable batch norm ------------------------------------------------------------------------------------------


class ConvAndNorm(nn.Module):
    def __init__(self, options: tuple[int, ...] = (2, 4, 8)) -> None:
        super().__init__()
        self.conv = QuantConv2d(2, 3, 1, quantizers=Quantizers(options=options))
        self.norm = SwitchableBatchNorm2d(3, self.conv)
        for index, bits in enumerate(options):
            norm = self.norm.bn_dict[str(bits)]
            norm.running_mean.fill_(index + 1.0)
            nn.init.constant_(norm.weight, 10.0 ** (index + 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


X = torch.full((1, 3, 2, 2), 5.0)


@pytest.mark.parametrize(("bits", "used"), [(2, "2"), (4, "4"), (8, "8"), (32, "8")])
def test_the_batch_norm_is_that_of_its_source_layers_bitwidth(bits: int, used: str) -> None:
    network = ConvAndNorm().eval()
    network.conv.set_bitwidth(bits)
    assert torch.equal(network.norm(X), network.norm.bn_dict[used](X))
    outputs = {name: norm(X).unique().item() for name, norm in network.norm.bn_dict.items()}
    assert len(set(outputs.values())) == 3  # they can be told apart


def test_at_32_bits_an_own_batch_norm_is_used_where_32_is_an_option() -> None:
    network = ConvAndNorm((4, 32)).eval()
    network.conv.set_bitwidth(32)
    assert torch.equal(network.norm(X), network.norm.bn_dict["32"](X))


def test_only_the_current_bitwidths_statistics_move() -> None:
    network = ConvAndNorm().train()
    network.conv.set_bitwidth(4)
    network(torch.randn(4, 2, 3, 3))
    assert [int(norm.num_batches_tracked) for norm in network.norm.bn_dict.values()] == [0, 1, 0]


def test_a_deep_copy_follows_the_copied_layer() -> None:
    network = ConvAndNorm().eval()
    twin = copy.deepcopy(network)
    twin.conv.set_bitwidth(2)
    network.conv.set_bitwidth(8)
    assert torch.equal(twin.norm(X), network.norm.bn_dict["2"](X))
    assert torch.equal(network.norm(X), network.norm.bn_dict["8"](X))


def test_switchable_batch_norm_has_any_precision_keys_and_no_layer_among_its_children() -> None:
    names = list(ConvAndNorm((2, 8)).norm.state_dict())
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert names == [f"bn_dict.{bits}.{part}" for bits in (2, 8) for part in parts]


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": ()}, "bitwidth options must ascend without repeats, found []"),
        ({"options": (4, 2)}, "bitwidth options must ascend without repeats, found [4, 2]"),
        ({"options": (2, 2, 4)}, "bitwidth options must ascend without repeats, found [2, 2, 4]"),
        (
            {"options": (0, 4, 33)},
            "bitwidth options must lie between 1 and 32 for weights 'dorefa' and activations 'dorefa', found [0, 33]",
        ),
        (
            {"options": (1, 4), "weight": "lsq"},
            "bitwidth options must lie between 2 and 32 for weights 'lsq' and activations 'dorefa', found [1]",
        ),
        (
            {"options": (1, 4), "activation": "lsq"},
            "bitwidth options must lie between 2 and 32 for weights 'dorefa' and activations 'lsq', found [1]",
        ),
    ],
)
def test_quantizers_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(BitwidthError, match=f"^{re.escape(message)}$"):
        Quantizers(**settings)  # type: ignore[arg-type]  # wrong on purpose


def test_one_bit_and_32_bits_are_the_ends_of_what_dorefa_offers() -> None:
    assert Quantizers(options=(1, 32)).options == (1, 32)
    assert Quantizers(options=(2, 32), weight="lsq").options == (2, 32)
    assert Quantizers(options=(1, 32), weight="lsqplus", activation="lsqplus").options == (1, 32)
