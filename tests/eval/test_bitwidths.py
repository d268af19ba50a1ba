"""The bits of whole networks: reading, setting, restoring, and the layer table of a forward pass."""

import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import references
import torch
import torch.nn.functional as F
from shares import ONLY_IN_FULL
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qbw_eval import get_average_bitwidth
from qbw_eval.configurations import sample
from qbw_eval.cost import costs_of
from qbw_eval.networks.multimodal_resnet import VARIANTS, MultimodalResNet
from qbw_eval.networks.preact_resnet import NETWORKS as PREACT_NETWORKS
from qbw_eval.networks.resnet import SHAPES, ResNet
from qbw_eval.quantization.bitwidths import (
    LayerError,
    common_options,
    get_bitwidths,
    name_layers,
    offered_bitwidths,
    quantized_layers,
    restored,
    set_bitwidths,
    trace_layers,
    trace_layers_on_meta,
    unquantized_weight_bytes,
)
from qbw_eval.quantization.layers import BitwidthError, QuantConv2d, Quantizers, QuantLinear, SwitchableBatchNorm2d

OPTIONS = Quantizers(options=(2, 4, 8))


class Backwards(nn.Module):
    """Registers its layers in the order c, b, a and calls them in the order a, b, c."""

    def __init__(self) -> None:
        super().__init__()
        self.c = QuantLinear(3, 2, quantizers=OPTIONS)
        self.b = QuantConv2d(4, 3, 3, quantizers=OPTIONS, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.a = QuantConv2d(2, 4, 1, quantizers=OPTIONS)
        name_layers(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.norm(self.a(x))).mean(dim=(2, 3)))


class ForeignConv(nn.Conv2d):
    """What the seed's users have: a convolution with `curr_bitwidth`, and no `set_bitwidth`."""

    def __init__(self, *arguments: int, **settings: int) -> None:
        super().__init__(*arguments, **settings)
        self.curr_bitwidth = 8

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name for the argument
        n = 2.0**self.curr_bitwidth - 1
        return super().forward((input.clamp(0, 1) * n).round() / n)


def resnet(name: str, width: int | None = None, **settings: object) -> ResNet:
    cifar = SHAPES[name].stem == "cifar"
    classes = 10 if cifar else 1000
    return ResNet(
        SHAPES[name], OPTIONS, width=width or (16 if cifar else 64), in_channels=3, num_classes=classes, **settings
    )


# --- reading and setting --------------------------------------------------------------------------------------------


def test_the_average_bitwidth_is_the_unweighted_mean_over_quantized_layers() -> None:
    network = Backwards()
    assert get_average_bitwidth(network) == 8.0
    set_bitwidths(network, {"a": 2, "b": 4, "c": 4})
    assert get_average_bitwidth(network) == 10 / 3
    assert isinstance(get_average_bitwidth(network), float)
    assert get_bitwidths(network) == {"c": 4, "b": 4, "a": 2}


def test_the_average_bitwidth_counts_numpys_integers_too() -> None:
    network = nn.Sequential(ForeignConv(1, 1, 1), ForeignConv(1, 1, 1))
    network[0].curr_bitwidth = np.int64(2)
    assert get_average_bitwidth(network) == 5.0


def test_a_network_without_quantized_layers_has_no_average_bitwidth() -> None:
    with pytest.raises(LayerError) as error:
        get_average_bitwidth(nn.Sequential(nn.Conv2d(1, 1, 1)))
    assert str(error.value) == (
        "the network has no quantized layers (modules with an integer `curr_bitwidth`) to average over"
    )


def test_a_configuration_that_does_not_fit_lists_both_sides_and_sets_nothing() -> None:
    network = resnet("resnet8")
    asked = dict.fromkeys(get_bitwidths(network), 2)
    del asked["layer2.0.shortcut.0"]
    del asked["layer3.0.conv2"]
    asked |= {"layer2.0.shortcut": 2, "nonsense": 4}
    with pytest.raises(LayerError) as error:
        set_bitwidths(network, asked)
    assert str(error.value) == (
        "the configuration does not fit the network: "
        "unknown layer 'layer2.0.shortcut'; did you mean 'layer2.0.shortcut.0'?; unknown layer 'nonsense'; "
        "no bits for layer 'layer2.0.shortcut.0'; no bits for layer 'layer3.0.conv2'"
    )
    assert error.value.exit_code == 2
    assert set(get_bitwidths(network).values()) == {8}


def test_a_bitwidth_that_a_layer_does_not_offer_names_the_layer() -> None:
    network = Backwards()
    with pytest.raises(BitwidthError, match=re.escape("layer 'b': bitwidth 3 is not among its options [2, 4, 8]")):
        set_bitwidths(network, {"a": 2, "b": 3, "c": 4})


def test_reading_changes_nothing() -> None:
    network = Backwards().train()
    set_bitwidths(network, {"a": 2, "b": 4, "c": 8})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    get_average_bitwidth(network)
    common_options(network)
    trace_layers(network, torch.rand(1, 2, 5, 5))
    trace_layers_on_meta(network, torch.zeros(1, 2, 5, 5))
    assert get_bitwidths(network) == {"c": 8, "b": 4, "a": 2}
    assert all(module.training for module in network.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_common_options_are_those_that_every_layer_offers() -> None:
    options_of_each = ((2, 4, 8), (1, 4, 8, 16), (4, 8))
    layers = [QuantLinear(1, 1, quantizers=Quantizers(options=options)) for options in options_of_each]
    assert common_options(nn.Sequential(*layers)) == (4, 8)
    with pytest.raises(LayerError) as error:
        common_options(nn.Sequential(layers[0], ForeignConv(1, 1, 1)))
    assert str(error.value) == ("the quantized layers share no `bitwidth_options`; say which bitwidths to draw from")


# --- restoring ------------------------------------------------------------------------------------------------------


def disturb(network: nn.Module) -> None:
    set_bitwidths(network, dict.fromkeys(get_bitwidths(network), 2))
    network.eval()


@pytest.mark.parametrize("fails", [False, True])
def test_bits_and_every_modules_own_mode_are_put_back_also_after_an_exception(fails: bool) -> None:
    network = resnet("resnet8", width=2).train()
    frozen = [network.bn1, network.layer2[0].bn2]  # as people freeze single batch norms
    for module in frozen:
        module.eval()
    set_bitwidths(network, dict.fromkeys(get_bitwidths(network), 4))
    network.layer1[0].conv1.curr_bitwidth = 3  # not an option: what was there goes back all the same
    bits = get_bitwidths(network)

    def run() -> None:
        with restored(network):
            disturb(network)
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            run()
    else:
        run()
    assert get_bitwidths(network) == bits
    assert [module for module in network.modules() if not module.training] == frozen


# --- tracing --------------------------------------------------------------------------------------------------------


def test_layers_are_listed_in_forward_order_not_in_the_order_of_registration() -> None:
    network = Backwards()
    assert list(quantized_layers(network)) == ["c", "b", "a"]
    assert trace_layers(network, torch.rand(1, 2, 5, 5)).names == ("a", "b", "c")


def test_a_layer_table_by_hand() -> None:
    a, b, c = trace_layers(Backwards(), torch.rand(1, 2, 5, 7)).layers
    assert vars(a) == {
        "layer_name": "a", "kind": "conv2d", "weights": 8, "macs": 8 * 35,
        "in_channels": 2, "out_channels": 4, "kernel": "1x1", "stride": "1x1",
    }  # fmt: skip
    assert vars(b) == {
        "layer_name": "b", "kind": "conv2d", "weights": 108, "macs": 108 * 3 * 4,
        "in_channels": 4, "out_channels": 3, "kernel": "3x3", "stride": "2x2",
    }  # fmt: skip
    assert vars(c) == {
        "layer_name": "c", "kind": "linear", "weights": 6, "macs": 6,
        "in_channels": 3, "out_channels": 2, "kernel": None, "stride": None,
    }  # fmt: skip


def test_a_layer_that_is_used_twice_is_listed_once_with_the_work_of_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = QuantConv2d(2, 2, 3, quantizers=OPTIONS, padding=1)
            self.alias = self.conv

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.max_pool2d(self.alias(x), 2))

    (layer,) = trace_layers(Twice(), torch.rand(1, 2, 8, 8)).layers
    assert layer.layer_name == "conv"
    assert layer.weights == 36
    assert layer.macs == 36 * 64 + 36 * 16


def test_grouped_convolutions_count_only_the_weights_that_an_output_meets() -> None:
    network = nn.Sequential(QuantConv2d(6, 4, 3, quantizers=OPTIONS, groups=2, stride=2, padding=1))
    (layer,) = trace_layers(network, torch.rand(1, 6, 9, 7)).layers
    assert (layer.in_channels, layer.out_channels) == (6, 4)
    assert layer.macs == references.convolution_macs((6, 9, 7), (4, 3, 3, 3), stride=2, padding=1, groups=2)


def test_a_quantized_layer_outside_the_forward_pass_is_an_error() -> None:
    network = Backwards()
    network.spare = QuantLinear(1, 1, quantizers=OPTIONS)
    with pytest.raises(LayerError, match=r"^quantized layers \['spare'\] take no part in the forward pass$"):
        trace_layers(network, torch.rand(1, 2, 5, 5))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_network_without_quantized_layers_cannot_be_traced() -> None:
    with pytest.raises(LayerError, match=r"^no quantized layer takes part in the forward pass$"):
        trace_layers(nn.Sequential(nn.Linear(2, 2)), torch.rand(1, 2))


def test_a_failing_forward_leaves_the_network_as_it_was() -> None:
    network = Backwards().train()
    with pytest.raises(RuntimeError, match="channels"):
        trace_layers(network, torch.rand(1, 5, 5, 5))
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())


def brute_force_macs(network: nn.Module, x: Tensor) -> dict[str, int]:
    """Count window by window, from the shapes that each quantized layer really receives."""
    counts: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def note(layer: nn.Module, arguments: tuple[Tensor], _output: Tensor) -> None:
            if isinstance(layer, nn.Conv2d):
                shape, (stride, _), (padding, _) = arguments[0].shape[1:], layer.stride, layer.padding
                counts[name] = references.convolution_macs(shape, layer.weight.shape, stride, padding, layer.groups)
            else:
                counts[name] = layer.weight.numel()

        return note

    for name, layer in quantized_layers(network).items():
        layer.register_forward_hook(count(name))
    network.eval()(x)
    return counts


SENSORS = {"shake": {"seismic": 2, "audio": 4}, "roof": {"seismic": 6, "audio": 2}}
ONE_SENSOR = {"shake": {"audio": 4}}


def sensors_of(name: str) -> dict[str, dict[str, int]]:
    """Return what a multi-modal network listens to; the deepest have one backbone: four take long."""
    return ONE_SENSOR if name.endswith(("resnet101", "resnet152")) else SENSORS


NETWORKS_WE_SHIP: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    **{
        f"{name}{', quantize_first_and_last' if all_layers else ''}": (
            partial(resnet, name, quantize_first_and_last=all_layers),
            (13, 32) if SHAPES[name].stem == "cifar" else (64, 50),
        )
        for name in SHAPES
        for all_layers in (False, True)
    },
    **{
        name: (partial(network, OPTIONS, width=64, in_channels=3, num_classes=10), (64, 50))
        for name, network in PREACT_NETWORKS.items()
    },
    **{
        f"multi-modal {name}": (
            partial(MultimodalResNet, name, OPTIONS, in_channels=sensors_of(name), fc_dim=32, num_classes=7),
            (10, 40),
        )
        for name in VARIANTS
    },
}


def _share() -> list[Any]:
    """Of networks that differ in depth alone, the deeper ones take seven to ten seconds each."""
    deep = ("101", "152", "multi-modal resnet34", "multi-modal resnet50")
    return [pytest.param(name, marks=[ONLY_IN_FULL] * any(word in name for word in deep)) for name in NETWORKS_WE_SHIP]


@pytest.mark.parametrize("name", _share())
def test_costs_equal_a_brute_force_count_and_macs_are_half_of_torchs_flops(name: str) -> None:
    build, size = NETWORKS_WE_SHIP[name]
    with torch.device("meta"):
        network = build()
        x: Any = torch.zeros(1, 3, *size)
        if name.startswith("multi-modal"):
            x = {
                at: {of: torch.zeros(1, count, *size) for of, count in each.items()}
                for at, each in sensors_of(name).items()
            }
        table = trace_layers(network, x)
        with FlopCounterMode(display=False) as counter:
            network.eval()(x)
        counted = brute_force_macs(network, x)
    macs = {layer.layer_name: layer.macs for layer in table.layers}
    assert macs == counted
    prefix = f"{type(network).__name__}."
    flops = {name.removeprefix(prefix): sum(by.values()) for name, by in counter.get_flop_counts().items()}
    assert {name: 2 * count for name, count in macs.items()} == {name: flops[name] for name in macs}
    total = sum(counter.get_flop_counts()["Global"].values())
    assert (2 * sum(macs.values()) == total) is name.endswith("first_and_last")
    # Costs, from the modules themselves.
    sizes = {name: layer.weight.numel() for name, layer in quantized_layers(network).items()}
    for one in sample("iid", len(table), (2, 4, 8), 3, 0):
        bits = dict(zip(table.names, one.bitwidths, strict=True))
        weight_bytes = math.ceil(Fraction(sum(bits[name] * sizes[name] for name in sizes), 8))
        operations = sum(bits[name] ** 2 * counted[name] for name in sizes)
        assert vars(costs_of(one.bitwidths, table, 8)) == {
            "avg_bitwidth": float(Fraction(sum(bits.values()), len(sizes))),
            "weighted_avg_bitwidth": float(
                Fraction(sum(bits[name] * sizes[name] for name in sizes), sum(sizes.values()))
            ),
            "weight_bytes": weight_bytes,
            "relative_weight_bytes": weight_bytes / sum(sizes.values()),  # a byte a weight
            "bit_ops": operations,
            "relative_bit_ops": float(Fraction(operations, 64 * sum(counted.values()))),
        }


@pytest.mark.parametrize("all_layers", [False, True], ids=["default", "quantize_first_and_last"])
@pytest.mark.parametrize("switchable", [False, True], ids=["shared", "switchable"])
@pytest.mark.parametrize("name", ["resnet8", "resnet50"])
def test_a_trace_on_the_meta_device_equals_a_real_one(name: str, switchable: bool, all_layers: bool) -> None:
    network = resnet(name, width=4, switchable_batch_norm=switchable, quantize_first_and_last=all_layers)
    on_meta = trace_layers_on_meta(network, torch.zeros(1, 3, 33, 20))
    assert on_meta == trace_layers(network, torch.rand(1, 3, 33, 20))
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}
    assert len(on_meta.model_id) == 32
    assert on_meta.model_id != trace_layers_on_meta(network, torch.zeros(1, 3, 32, 20)).model_id


def test_no_quantizer_looks_at_values_that_the_meta_device_has_not() -> None:
    for weight in ("dorefa", "dorefa_scaled", "lsq", "lsqplus"):
        quantizers = Quantizers(options=(2, 4), weight=weight, activation="lsqplus", weight_normalization=True)  # type: ignore[arg-type]  # they are among those
        network = ResNet(SHAPES["resnet8"], quantizers, width=4, in_channels=3, num_classes=2)
        sample = torch.rand(1, 3, 9, 9)
        assert trace_layers_on_meta(network, sample) == trace_layers(network, sample)


def test_what_is_kept_beside_the_quantized_weights_by_hand() -> None:
    # The batch norm of 4 channels (weight, bias, mean and variance, not its count of batches) and the linear's bias.
    assert unquantized_weight_bytes(Backwards()) == 4 * (4 * 4 + 2)


@pytest.mark.parametrize("switchable", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_quantized_weights_and_what_is_kept_beside_them_are_the_whole_state(name: str, switchable: bool) -> None:
    quantizers = Quantizers(options=(2, 4), weight="lsq", activation="pact", switchable=switchable)
    with torch.device("meta"):
        network = ResNet(
            SHAPES[name], quantizers, width=4, in_channels=3, num_classes=10, switchable_batch_norm=switchable
        )
    floats = sum(tensor.numel() for tensor in network.state_dict().values() if tensor.is_floating_point())
    quantized = sum(layer.weight.numel() for layer in quantized_layers(network).values())
    assert unquantized_weight_bytes(network) == 4 * (floats - quantized)


def test_a_foreign_layer_with_nothing_but_curr_bitwidth_is_found_set_restored_and_traced() -> None:
    network = nn.Sequential(ForeignConv(1, 2, 3), nn.ReLU(), ForeignConv(2, 2, 3, padding=1))
    x = torch.rand(1, 1, 6, 6)
    fine = network(x)
    with restored(network):
        set_bitwidths(network, {"0": 1, "2": 4})
        assert get_average_bitwidth(network) == 2.5
        assert not torch.equal(network(x), fine)
    assert torch.equal(network(x), fine)
    table = trace_layers(network, x)
    assert [(layer.layer_name, layer.kind, layer.macs) for layer in table.layers] == [
        ("0", "conv2d", 18 * 16),
        ("2", "conv2d", 36 * 16),
    ]


def test_layers_learn_their_paths_for_their_errors() -> None:
    network = resnet("resnet8", width=2, switchable_batch_norm=True)
    assert {name: layer.layer_name for name, layer in quantized_layers(network).items()} == {
        name: name for name in quantized_layers(network)
    }
    assert isinstance(network.layer1[0].bn1, SwitchableBatchNorm2d)


# --- layers of somebody's own ---------------------------------------------------------------------------------------


class Holds(nn.Module):
    """A layer whose weight is that of a convolution inside; its clipping values are none."""

    curr_bitwidth = 8

    def __init__(self, convolutions: int = 1) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Conv2d(2, 3, 3, bias=False) for _ in range(convolutions))
        self.alpha = nn.Parameter(torch.ones(3, 1, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return self.inner[0](x) if len(self.inner) else x


class InTwo(Holds):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


def test_the_weights_of_a_layer_may_be_those_of_a_module_inside_it() -> None:
    (layer,) = trace_layers(nn.Sequential(Holds()), torch.zeros(1, 2, 5, 5)).layers
    assert (layer.kind, layer.weights, layer.macs) == ("Holds", 54, 27 * 18)
    assert (layer.in_channels, layer.out_channels, layer.kernel, layer.stride) == (2, 3, None, None)


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (
            Holds(0),
            "quantized layer '0' (Holds) has no weights (out, in, ...), expected one; only modules that hold a weight "
            "of their own may have the attribute with the bits",
        ),
        (
            Holds(2),
            "quantized layer '0' (Holds) has 2 weights (out, in, ...), expected one; only modules that hold a weight "
            "of their own may have the attribute with the bits",
        ),
        (InTwo(), "layer '0' returns a tuple, expected one tensor"),
    ],
)
def test_a_layer_that_costs_cannot_be_counted_for_is_told(layer: nn.Module, sentence: str) -> None:
    with pytest.raises(LayerError) as error:
        trace_layers(nn.Sequential(layer), torch.zeros(1, 2, 5, 5))
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"bitwidth_options": [8, 2]}, (2, 8)),
        ({"bitwidth_opts": torch.tensor([4, 2])}, (2, 4)),
        ({"bitwidth_options": "248", "bitwidth_opts": (3,)}, (3,)),
        ({"bitwidth_options": [2, 64]}, ()),
        ({"bitwidth_options": [2.5]}, ()),
        ({"bitwidth_options": 8}, ()),
        ({}, ()),
    ],
)
def test_the_options_that_a_layer_says_it_offers(attributes: dict[str, Any], expected: tuple[int, ...]) -> None:
    layer = nn.Identity()
    for name, value in attributes.items():
        setattr(layer, name, value)
    assert offered_bitwidths(layer) == expected
