"""The seed's network against a forward written from its state dict's facts, and every engine on its nested inputs."""

import copy
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from random_networks import configurations_of, naive_logits, randomize
from seed_reference import BLOCKS, CONVOLUTIONS, seed_logits
from shares import ONLY_IN_FULL
from torch import Tensor, nn

from qbw_eval.engine import choose
from qbw_eval.engine.choose import choose_engine
from qbw_eval.engine.incremental import IncrementalEngine
from qbw_eval.engine.integer import IntegerEngine
from qbw_eval.engine.packing import why_not_here
from qbw_eval.engine.passes import PLAIN as PLAIN_PASSES
from qbw_eval.engine.reference import ReferenceEngine
from qbw_eval.engine.tally import predictions_of
from qbw_eval.nested import for_each_tensor
from qbw_eval.networks.multimodal_resnet import VARIANTS, MultimodalResNet
from qbw_eval.quantization.bitwidths import (
    quantized_layers,
    set_bitwidths,
    trace_layers,
    trace_layers_on_meta,
    trace_order,
)
from qbw_eval.quantization.layers import QuantConv2d, Quantizers
from schemas.errors import UsageError

SENSORS = {"shake": {"audio": 2, "seismic": 4}, "field": {"audio": 6, "seismic": 2}}
SIZES = {
    ("shake", "audio"): (9, 40),
    ("shake", "seismic"): (16, 16),
    ("field", "audio"): (33, 12),
    ("field", "seismic"): (7, 9),
}
PLAIN = Quantizers(options=(32,), weight="none", activation="none")


def inputs_of(samples: int, seed: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        location: {
            modality: torch.randn(samples, channels, *SIZES[location, modality], generator=generator)
            for modality, channels in modalities.items()
        }
        for location, modalities in SENSORS.items()
    }


def network_of(variant: Any, quantizers: Quantizers, width: int, seed: int = 0) -> MultimodalResNet:
    torch.manual_seed(seed)
    network = MultimodalResNet(variant, quantizers, in_channels=SENSORS, fc_dim=24, num_classes=5, width=width)
    randomize(network, seed)
    return network.eval()


def on_meta(variant: Any) -> MultimodalResNet:
    with torch.device("meta"):
        return MultimodalResNet(variant, PLAIN, in_channels=SENSORS, fc_dim=512, num_classes=7)


# --- names and shapes -----------------------------------------------------------------------------------------------


def seed_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """Return the state dict's keys and shapes, written out from the facts about the layout."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    deep = CONVOLUTIONS[variant] == 3
    for location, modalities in SENSORS.items():
        for modality, in_channels in modalities.items():
            backbone = f"mod_loc_backbones.{location}.{modality}"
            shapes[f"{backbone}.conv1.weight"] = (64, in_channels, 7, 7)
            norm(f"{backbone}.bn1", 64)
            features = 64
            for stage, blocks in enumerate(BLOCKS[variant], start=1):
                channels = 64 * 2 ** (stage - 1)
                outputs = 4 * channels if deep else channels
                for position in range(blocks):
                    block = f"{backbone}.layer{stage}.{position}"
                    ends, kernels = (channels, channels, outputs)[-3 if deep else -2 :], (1, 3, 1) if deep else (3, 3)
                    ends = (channels, channels, outputs) if deep else (channels, channels)
                    begins = (features, *ends[:-1])
                    for number, (begin, end, kernel) in enumerate(zip(begins, ends, kernels, strict=True), start=1):
                        shapes[f"{block}.conv{number}.weight"] = (end, begin, kernel, kernel)
                        norm(f"{block}.bn{number}", end)
                    if features != outputs or (stage > 1 and position == 0):
                        shapes[f"{block}.shortcut.0.weight"] = (outputs, features, 1, 1)
                        norm(f"{block}.shortcut.1", outputs)
                    features = outputs
    shapes["sample_embd_layer.0.weight"], shapes["sample_embd_layer.0.bias"] = (512, features), (512,)
    shapes["class_layer.weight"], shapes["class_layer.bias"] = (7, 512), (7,)
    return shapes


@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_and_shapes_are_the_seeds(variant: str) -> None:
    state = on_meta(variant).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == seed_shapes(variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_sizes_give_one_logit_per_class(variant: str) -> None:
    inputs = for_each_tensor(inputs_of(3, 0), lambda tensor: tensor.to("meta"))
    assert on_meta(variant).eval()(inputs).shape == (3, 7)


@pytest.mark.parametrize(
    ("quantizers", "learned"),
    [
        (Quantizers(options=(2, 4, 8), activation="pact", switchable=True), {"alpha": 3}),
        (Quantizers(options=(2, 4), activation="pact"), {"alpha": 1}),
        (
            Quantizers(options=(2, 4), weight="lsq", activation="lsq"),
            {"quantize_w.step_size": 1, "quantize_a.step_size": 1},
        ),
        (
            Quantizers(options=(2, 4), weight="lsqplus", activation="lsqplus"),
            {f"quantize_{which}.{name}": 1 for which in "wa" for name in ("step_size", "zp")},
        ),
    ],
)
def test_what_quantizers_learn_stands_beside_every_quantized_convolution(
    quantizers: Quantizers, learned: Mapping[str, int]
) -> None:
    network = network_of("resnet18", quantizers, width=2)
    plain = set(on_meta("resnet18").state_dict())
    found = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if name not in plain}
    expected = {f"{layer}.{name}": (count,) for layer in quantized_layers(network) for name, count in learned.items()}
    assert found == expected


def test_every_convolution_but_the_stems_is_quantized_and_no_linear_layer() -> None:
    network = network_of("resnet50", Quantizers(options=(2, 4)), width=2)
    convolutions = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    stems = {f"mod_loc_backbones.{location}.{modality}.conv1" for location in SENSORS for modality in SENSORS[location]}
    assert set(quantized_layers(network)) == convolutions - stems
    assert stems < convolutions
    assert len(quantized_layers(network)) == 4 * 52
    assert all(layer.layer_name == name for name, layer in quantized_layers(network).items())


def test_the_layer_table_goes_location_by_location_and_modality_by_modality() -> None:
    network = network_of("resnet18", Quantizers(options=(2, 4)), width=4)
    names = trace_order(network, inputs_of(1, 0))
    assert names == list(trace_layers(network, inputs_of(1, 0)).names)
    assert trace_layers_on_meta(network, inputs_of(1, 0)) == trace_layers(network, inputs_of(1, 0))
    sensors = [name.split(".")[1:3] for name in names]
    expected = [[location, modality] for location in SENSORS for modality in SENSORS[location] for _ in range(19)]
    assert sensors == expected
    prefix = "mod_loc_backbones.shake.audio."
    assert [name.removeprefix(prefix) for name in names[:9]] == [
        *("layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2"),
        *("layer2.0.conv1", "layer2.0.conv2", "layer2.0.shortcut.0", "layer2.1.conv1", "layer2.1.conv2"),
    ]
    macs = {layer.layer_name: layer.macs for layer in trace_layers(network, inputs_of(1, 0)).layers}
    assert macs[f"{prefix}layer1.0.conv1"] == 3 * 10 * 4 * 4 * 9  # (9, 40) through the stem and the max-pool
    assert macs["mod_loc_backbones.field.audio.layer1.0.conv1"] == 9 * 3 * 4 * 4 * 9  # (33, 12)


@pytest.mark.parametrize(
    ("in_channels", "message"),
    [
        ({}, "expected at least one location with a modality, found none"),
        ({"shake": {}}, "location 'shake': expected at least one modality, found none"),
        ({"s.1": {"audio": 1}}, "location 's.1'"),
        ({"shake": {"au.dio": 1}}, "modality 'au.dio'"),
        ({"shake": {"": 1}}, "modality ''"),
        ({"keys": {"audio": 1}}, "location 'keys'"),
        ({"shake": {"type": 1}}, "modality 'type'"),
        ({"shake": {"_modules": 1}}, "modality '_modules'"),
        ({"shake": {"training": 1}}, "modality 'training'"),
        ({"shake": {"a\nb": 1}}, "modality 'a\\nb'"),
        ({3: {"audio": 1}}, "location 3"),
    ],
)
def test_sensors_that_cannot_be_named_are_refused(in_channels: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        MultimodalResNet("resnet18", PLAIN, in_channels=in_channels, fc_dim=4, num_classes=2, width=2)
    if not message.endswith("none"):
        message += (
            ": expected a printable name without dots that is no attribute of torch's ModuleDict; "
            "it becomes a part of the network's state-dict keys, so rename it"
        )
    assert str(error.value) == message


def test_other_names_are_welcome_and_can_be_traced() -> None:
    sensors = {"2nd floor": {"größe-1": 1, "class": 2}}
    torch.manual_seed(0)
    network = MultimodalResNet(
        "resnet18", Quantizers(options=(2, 4)), in_channels=sensors, fc_dim=4, num_classes=2, width=2
    ).eval()
    inputs = {"2nd floor": {"größe-1": torch.rand(2, 1, 8, 8), "class": torch.rand(2, 2, 5, 5)}}
    engine = IncrementalEngine(network, list(quantized_layers(network)), inputs, 10**8)
    configurations = configurations_of(*random_bits(network, (2, 4), 3, seed=0))
    assert_equal_logits(engine, network, inputs, configurations)


# --- the arithmetic -------------------------------------------------------------------------------------------------

QUANTIZERS: dict[str, dict[str, Any]] = {
    "dorefa": {},
    "dorefa, normalized": {"weight_normalization": True},
    "pact": {"activation": "pact"},
    "pact, switchable": {"activation": "pact", "switchable": True},
    "lsq": {"weight": "lsq", "activation": "lsq"},
    "lsq, switchable, normalized": {
        **{"weight": "lsq", "activation": "lsq"},
        **{"switchable": True, "weight_normalization": True},
    },
    "lsqplus": {"weight": "lsqplus", "activation": "lsqplus"},
    "lsqplus, switchable, normalized": {
        **{"weight": "lsqplus", "activation": "lsqplus"},
        **{"switchable": True, "weight_normalization": True},
    },
    "lsqplus and pact": {"weight": "lsqplus", "activation": "pact"},
}
any_quantizers = pytest.mark.parametrize("settings", list(QUANTIZERS.values()), ids=list(QUANTIZERS))


def config_of(variant: str, quantizers: Quantizers) -> dict[str, Any]:
    """Return what the seed's checkpoint would say about such a network."""
    return {
        "model_variant": variant,
        "location_names": list(SENSORS),
        "modality_names": ["audio", "seismic"],
        "quantization_method": "any_precision",
        "quantization": {
            "enable": quantizers.weight != "none",
            "any_precision": {
                "bitwidth_options": list(quantizers.options),
                "weight_quantization": quantizers.weight,
                "activation_quantization": quantizers.activation,
                "switchable_clipping": quantizers.switchable,
                "sat_weight_normalization": quantizers.weight_normalization,
            },
        },
    }


def random_bits(network: nn.Module, options: Sequence[int], count: int, seed: int) -> list[list[int]]:
    choices = random.Random(seed)
    return [[choices.choice(options) for _ in quantized_layers(network)] for _ in range(count)]


def assert_exactly_the_seeds(variant: str, quantizers: Quantizers, width: int, configurations: int) -> None:
    network = network_of(variant, quantizers, width, seed=width)
    inputs, config = inputs_of(3, seed=1), config_of(variant, quantizers)
    names = list(quantized_layers(network))
    everything = (*quantizers.options, 32)
    mixed = random_bits(network, everything, configurations, seed=width)
    found = []
    with torch.no_grad():
        for bits in [*mixed, *([k] * len(names) for k in everything)]:
            bitwidths = dict(zip(names, bits, strict=True))
            set_bitwidths(network, bitwidths)
            found.append(network(inputs))
            assert torch.equal(found[-1], seed_logits(network.state_dict(), config, bitwidths, inputs))
    assert all(bool(logits.isfinite().all()) for logits in found)
    assert len({tuple(logits.flatten().tolist()) for logits in found}) == len(found), "the bits make no difference"


@any_quantizers
@pytest.mark.parametrize("width", [8, 16])
def test_resnet18_gives_exactly_the_seeds_logits(settings: dict[str, Any], width: int) -> None:
    assert_exactly_the_seeds("resnet18", Quantizers(options=(2, 4, 8), **settings), width, configurations=3)


@any_quantizers
def test_resnet50_gives_exactly_the_seeds_logits(settings: dict[str, Any]) -> None:
    assert_exactly_the_seeds("resnet50", Quantizers(options=(2, 8, 16), **settings), 8, configurations=2)


@pytest.mark.parametrize("variant", ["resnet34", "resnet101", "resnet152"])
def test_the_other_variants_give_exactly_the_seeds_logits(variant: str) -> None:
    quantizers = Quantizers(options=(4, 8), activation="pact", switchable=True)
    assert_exactly_the_seeds(variant, quantizers, 2, configurations=1)


def test_without_quantization_it_is_a_plain_network() -> None:
    network = network_of("resnet18", PLAIN, width=8)
    inputs = inputs_of(3, seed=2)
    expected = seed_logits(network.state_dict(), config_of("resnet18", PLAIN), {}, inputs)
    assert torch.equal(network(inputs), expected)


def test_every_sensor_counts_and_the_order_of_the_inputs_keys_does_not() -> None:
    network = network_of("resnet18", Quantizers(options=(8,)), width=8)
    inputs = inputs_of(2, seed=3)
    with torch.no_grad():
        whole = network(inputs)
        turned = {location: dict(reversed(inputs[location].items())) for location in reversed(inputs)}
        assert torch.equal(network(turned), whole)
        for location, modalities in SENSORS.items():
            for modality in modalities:
                changed = copy.deepcopy(inputs)
                changed[location][modality] += 1
                assert not torch.equal(network(changed), whole)


# --- engines --------------------------------------------------------------------------------------------------------


def assert_equal_logits(engine: Any, network: nn.Module, inputs: Any, configurations: Sequence[Any]) -> None:
    names = list(quantized_layers(network))
    with torch.inference_mode():
        found = dict(engine.logits(inputs, configurations))
        reference = dict(ReferenceEngine(network, names).logits(inputs, configurations))
    naive = naive_logits(network, names, inputs, configurations)
    for position, expected in enumerate(naive):
        assert torch.equal(found[position], expected)
        assert torch.equal(reference[position], expected)


@any_quantizers
@pytest.mark.parametrize("options", [(2, 4, 8), (8, 16, 32)], ids=["low", "high"])
def test_incremental_is_the_reference_bit_for_bit(settings: dict[str, Any], options: tuple[int, ...]) -> None:
    network = network_of("resnet18", Quantizers(options=options, **settings), width=8, seed=5)
    inputs = inputs_of(4, seed=6)
    bits = random_bits(network, options, 4, seed=7)
    bits += [[*bits[0][:60], *bits[1][60:]]]  # the last sensor differs only
    engine = IncrementalEngine(network, list(quantized_layers(network)), inputs, 10**8)
    assert_equal_logits(engine, network, inputs, configurations_of(*bits))
    turned = {location: dict(reversed(inputs[location].items())) for location in reversed(inputs)}
    assert_equal_logits(engine, network, turned, configurations_of(*bits[:2]))


def test_only_the_sensor_whose_layers_changed_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("resnet18", Quantizers(options=(2, 4)), width=4)
    names = list(quantized_layers(network))
    inputs = inputs_of(2, seed=0)
    engine = IncrementalEngine(network, names, inputs, 10**8)
    run, called = QuantConv2d.run, []

    def noted(layer: QuantConv2d, x: Tensor, weight: Tensor) -> Tensor:
        called.append(layer.layer_name)
        return run(layer, x, weight)

    monkeypatch.setattr(QuantConv2d, "run", noted)
    last = [name.startswith("mod_loc_backbones.field.seismic") for name in names]
    configurations = configurations_of([2] * len(names), [4 if is_last else 2 for is_last in last])
    with torch.inference_mode():
        list(engine.logits(inputs, configurations))
    assert called == [*names, *(name for name, is_last in zip(names, last, strict=True) if is_last)]


needs_integers = pytest.mark.skipif(
    why_not_here() is not None, reason=f"no integer convolutions here: {why_not_here()}"
)


def vivid_inputs(samples: int, seed: int) -> dict[str, dict[str, Tensor]]:
    """Return inputs that differ in strength and offset too: features of mere noise are averaged to the same for all."""
    generator = torch.Generator().manual_seed(seed + 1000)

    def vivid(noise: Tensor) -> Tensor:
        strength = 2 * torch.rand(samples, 1, 1, 1, generator=generator)
        return noise * strength + torch.randn(samples, noise.shape[1], 1, 1, generator=generator)

    return {
        location: {modality: vivid(noise) for modality, noise in modalities.items()}
        for location, modalities in inputs_of(samples, seed).items()
    }


def fitted(options: tuple[int, ...], settings: Mapping[str, Any]) -> MultimodalResNet:
    """Return a network that tells such inputs apart: batch norms and the classifier are fitted to some, at 8 bits."""
    torch.manual_seed(0)
    quantizers = Quantizers(options=options, **settings)
    network = MultimodalResNet("resnet18", quantizers, in_channels=SENSORS, fc_dim=24, num_classes=5, width=8)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over what it sees
        if isinstance(module, QuantConv2d) and quantizers.activation == "pact":
            module.alpha.data.fill_(3.0)
        if isinstance(module, QuantConv2d) and quantizers.activation == "lsq":
            module.quantize_a.step_size.data.fill_(3 / (2 ** options[0] - 1))
    inputs = vivid_inputs(64, seed=0)
    set_bitwidths(network, dict.fromkeys(quantized_layers(network), 8))
    with torch.no_grad():
        network.train()(inputs)
        logits = network.eval()(inputs)
        network.class_layer.bias.sub_(logits.mean(dim=0)).div_(logits.std(dim=0))
        network.class_layer.weight.div_(logits.std(dim=0)[:, None])
    return network


@needs_integers
@pytest.mark.parametrize(
    "options", [pytest.param((2, 4, 8), id="low"), pytest.param((8, 16, 32), id="high", marks=ONLY_IN_FULL)]
)
def test_integers_stray_from_float64_no_more_often_than_the_reference(
    options: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    strayed = {}
    for name in ("dorefa", "dorefa, normalized", "pact, switchable", "lsq"):
        network = fitted(options, QUANTIZERS[name])
        names = list(quantized_layers(network))
        inputs = vivid_inputs(100, seed=1)
        configurations = configurations_of(*random_bits(network, options, 5, seed=2))
        integer = IntegerEngine(network, names, inputs, options, 10**8)
        assert integer.in_float32 == {}
        engines: list[tuple[Any, Any]] = [
            (ReferenceEngine(copy.deepcopy(network).double(), names), for_each_tensor(inputs, Tensor.double)),
            (ReferenceEngine(network, names), inputs),
            (integer, inputs),
        ]
        found = []
        with torch.inference_mode():
            for engine, batch in engines:
                logits = dict(engine.logits(batch, configurations))
                found.append(torch.stack([logits[position] for position in range(len(configurations))]))
        truth, reference, ours = found
        expected = predictions_of(truth.flatten(0, 1)).view(len(configurations), -1)
        assert all(len(row.unique()) > 1 for row in expected), "there is nothing to tell apart"
        counts = [int((predictions_of(one.flatten(0, 1)) != expected.flatten()).sum()) for one in (reference, ours)]
        strayed[name] = counts
        if options[0] == 8:  # where one that rounds the other way moves little
            assert float((ours - truth).abs().max()) <= 0.02 * float(truth.abs().max())
    with capsys.disabled():
        print(f"\nof 500 classes at {options} other than float64's, [reference, integer]: {strayed}")
    assert sum(ours for _, ours in strayed.values()) <= sum(reference for reference, _ in strayed.values())


@needs_integers
def test_the_fastest_engine_is_found_on_nested_inputs_and_lsq_plus_keeps_to_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choose, "fastest_passes", lambda: PLAIN_PASSES)  # compiling takes a second, for the same bits
    inputs = inputs_of(2, seed=0)
    for settings, name in ((QUANTIZERS["dorefa"], "integer"), (QUANTIZERS["lsqplus"], "incremental")):
        network = network_of("resnet18", Quantizers(options=(2, 4, 8), **settings), width=4)
        names = list(quantized_layers(network))
        choice = choose_engine("integer", network, names, inputs, (2, 4, 8), cache_bytes=10**8)
        assert choice.engine.name == name
    assert choice.reason == (
        "equal to the reference in every bit; no integers: none of its quantized layers runs in integers: "
        "LSQ+'s levels have a zero point that need not be whole"
    )
