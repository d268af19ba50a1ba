"""The networks' shapes and sizes against published ones, and checkpoints' weights that fit them or do not."""

import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbw_eval.checkpoints.safe_load import CheckpointError
from qbw_eval.experiment import Experiment, experiment_from_mapping
from qbw_eval.networks.build import build_network, load_network, quantizers_of
from qbw_eval.networks.facts import network_facts
from qbw_eval.networks.resnet import SHAPES, ResNet
from qbw_eval.quantization import numerics
from qbw_eval.quantization.bitwidths import get_bitwidths, quantized_layers, set_bitwidths
from qbw_eval.quantization.layers import QuantizedLayer, Quantizers, SwitchableBatchNorm2d
from schemas.errors import UsageError

PLAIN = Quantizers(options=(32,), weight="none", activation="none")


def experiment(*, name: str = "resnet8", method: Mapping[str, object] | None = None, **model: object) -> Experiment:
    model = {"width": 4, "in_channels": 2, "num_classes": 5, **model}
    settings = {
        "model": {"name": name, **model},
        "data": {"source": "digits"},
        "quantization": {"mine": {"bitwidth_options": [2, 4], **(method or {})}},
    }
    return experiment_from_mapping(settings, "test")


def on_meta(name: str, **settings: Any) -> ResNet:
    with torch.device("meta"):
        return ResNet(SHAPES[name], settings.pop("quantizers", PLAIN), **settings)


def number_of_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# --- sizes and shapes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # He et al., table 6: 0.27M, 0.46M and 0.85M with shortcuts without parameters (option A: 269,722, 464,154 and
        # 853,018); the two 1x1 convolutions of option B and their batch norms add 16*32 + 32*64 + 2*32 + 2*64 = 2,752.
        ("resnet20", 269_722 + 2_752),
        ("resnet32", 464_154 + 2_752),
        ("resnet56", 853_018 + 2_752),
    ],
)
def test_cifar_networks_have_their_papers_size(name: str, parameters: int) -> None:
    assert number_of_parameters(on_meta(name, width=16, in_channels=3, num_classes=10)) == parameters


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    # As torchvision's documentation gives them, and the number of entries of its state dicts.
    [
        ("resnet18", 11_689_512, 122),
        ("resnet34", 21_797_672, 218),
        ("resnet50", 25_557_032, 320),
        ("resnet101", 44_549_160, 626),
        ("resnet152", 60_192_808, 932),
    ],
)
def test_larger_networks_have_torchvisions_size(name: str, parameters: int, tensors: int) -> None:
    network = on_meta(name, width=64, in_channels=3, num_classes=1000)
    assert number_of_parameters(network) == parameters
    assert len(network.state_dict()) == tensors


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        (
            "resnet18",
            {
                "conv1.weight": (64, 3, 7, 7),
                "bn1.running_mean": (64,),
                "layer1.0.conv1.weight": (64, 64, 3, 3),
                "layer2.0.conv1.weight": (128, 64, 3, 3),
                "layer2.0.shortcut.0.weight": (128, 64, 1, 1),
                "layer2.0.shortcut.1.bias": (128,),
                "layer4.1.conv2.weight": (512, 512, 3, 3),
                "fc.weight": (1000, 512),
            },
        ),
        (
            "resnet50",
            {
                "layer1.0.conv1.weight": (64, 64, 1, 1),
                "layer1.0.conv2.weight": (64, 64, 3, 3),
                "layer1.0.conv3.weight": (256, 64, 1, 1),
                "layer1.0.shortcut.0.weight": (256, 64, 1, 1),
                "layer3.5.conv1.weight": (256, 1024, 1, 1),
                "layer4.2.conv3.weight": (2048, 512, 1, 1),
                "layer4.2.bn3.running_var": (2048,),
                "fc.weight": (1000, 2048),
            },
        ),
    ],
)
def test_names_and_shapes_are_the_seeds(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    state = on_meta(name, width=64, in_channels=3, num_classes=1000).state_dict()
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


def test_only_blocks_that_change_shape_have_a_shortcut_of_their_own() -> None:
    for name, blocks in (("resnet20", 2), ("resnet18", 3), ("resnet50", 4)):
        state = on_meta(name, width=16, in_channels=3, num_classes=10).state_dict()
        assert sum(key.endswith("shortcut.0.weight") for key in state) == blocks


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (1, 1), (7, 13), (33, 2)])
def test_any_input_size_channels_and_classes_give_one_logit_per_class(name: str, height: int, width: int) -> None:
    network = on_meta(name, quantizers=Quantizers(options=(2,)), width=3, in_channels=5, num_classes=7).eval()
    assert network(torch.zeros(4, 5, height, width, device="meta")).shape == (4, 7)


def hand_written(state: Mapping[str, Tensor], x: Tensor, blocks: tuple[int, ...], kernels: int, cifar: bool) -> Tensor:
    """A residual network's forward from its paper: `kernels` convolutions a block, the stride on the first 3x3."""

    def conv_norm(x: Tensor, conv: str, norm: str, stride: int) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        parts = (state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    x = F.relu(conv_norm(x, "conv1", "bn1", 1 if cifar else 2))
    x = x if cifar else F.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate(blocks, start=1):
        for position in range(count):
            name = f"layer{stage}.{position}"
            stride = 2 if stage > 1 and position == 0 else 1
            y = x
            for index in range(1, kernels + 1):
                strided = index == (1 if kernels == 2 else 2)
                y = conv_norm(y, f"{name}.conv{index}", f"{name}.bn{index}", stride if strided else 1)
                y = F.relu(y) if index < kernels else y
            if f"{name}.shortcut.0.weight" in state:
                x = conv_norm(x, f"{name}.shortcut.0", f"{name}.shortcut.1", stride)
            x = F.relu(x + y)
    return x.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("name", SHAPES)
def test_the_unquantized_forward_is_the_papers(name: str) -> None:
    torch.manual_seed(0)
    shape = SHAPES[name]
    network = ResNet(shape, PLAIN, width=4, in_channels=2, num_classes=3).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    x = torch.randn(2, 2, 19, 22, dtype=torch.float64)
    expected = hand_written(network.state_dict(), x, shape.blocks, 3 if shape.bottleneck else 2, shape.stem == "cifar")
    torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-10)


# --- which layers are quantized -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("resnet8", 8), ("resnet20", 20), ("resnet18", 19), ("resnet50", 52)])
def test_every_convolution_but_the_stems_is_quantized_and_the_stem_and_classifier_on_request(
    name: str, count: int
) -> None:
    settings = {"quantizers": Quantizers(options=(2, 4)), "width": 4, "in_channels": 1, "num_classes": 2}
    by_default = set(quantized_layers(on_meta(name, **settings)))
    assert len(by_default) == count
    assert not by_default & {"conv1", "fc"}
    network = on_meta(name, quantize_first_and_last=True, **settings)
    assert set(quantized_layers(network)) == by_default | {"conv1", "fc"}
    convolutions = {key for key, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert set(quantized_layers(network)) == convolutions


def test_quantized_stem_and_classifier_run_at_their_bits() -> None:
    torch.manual_seed(0)
    settings = {"width": 4, "in_channels": 1, "num_classes": 3, "quantize_first_and_last": True}
    network = ResNet(SHAPES["resnet8"], Quantizers(options=(2, 8)), **settings).eval()
    x = torch.rand(4, 1, 8, 8)
    outputs = []
    for changed in (None, "conv1", "fc"):
        set_bitwidths(network, dict.fromkeys(get_bitwidths(network), 8) | ({changed: 2} if changed else {}))
        outputs.append(network(x))
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_switchable_batch_norm_stands_behind_every_quantized_convolution_only() -> None:
    settings = {"quantizers": Quantizers(options=(2, 4)), "width": 4, "in_channels": 1, "num_classes": 2}
    network = on_meta("resnet50", switchable_batch_norm=True, **settings)
    switchable = {key for key, module in network.named_modules() if isinstance(module, SwitchableBatchNorm2d)}
    assert len(switchable) == 52
    assert isinstance(network.bn1, nn.BatchNorm2d)
    network = on_meta("resnet50", switchable_batch_norm=True, quantize_first_and_last=True, **settings)
    assert isinstance(network.bn1, SwitchableBatchNorm2d)


def test_batch_norms_follow_their_own_layer() -> None:
    """Each layer's bits decide its own batch norm's and no other's."""
    settings = {"width": 2, "in_channels": 1, "num_classes": 2, "switchable_batch_norm": True}
    network = ResNet(SHAPES["resnet8"], Quantizers(options=(2, 4)), **settings).train()
    bits = {name: (2, 4)[index % 2] for index, name in enumerate(get_bitwidths(network))}
    set_bitwidths(network, bits)
    network(torch.rand(3, 1, 8, 8))
    for conv, chosen in bits.items():
        norm = conv.replace("conv", "bn") if "conv" in conv else conv.replace("shortcut.0", "shortcut.1")
        seen = {key: int(module.num_batches_tracked) for key, module in network.get_submodule(norm).bn_dict.items()}
        assert seen == {str(option): int(option == chosen) for option in (2, 4)}


# --- from the experiment --------------------------------------------------------------------------------------------


def test_the_experiments_settings_reach_the_network() -> None:
    method = {"weight_quantization": "lsq", "activation_quantization": "pact", "switchable_clipping": True}
    settings = experiment(name="resnet18", method=method, batch_norm="switchable", quantize_first_and_last=True)
    network = build_network(settings)
    assert quantizers_of(settings) == Quantizers(options=(2, 4), weight="lsq", activation="pact", switchable=True)
    state = network.state_dict()
    assert state["conv1.weight"].shape == (4, 2, 7, 7)
    assert state["fc.weight"].shape == (5, 32)
    assert state["fc.alpha"].shape == state["conv1.quantize_w.step_size"].shape == (2,)
    assert "bn1.bn_dict.4.weight" in state


def test_weight_normalization_reaches_the_network_and_its_identity_and_changes_no_other() -> None:
    def facts(method: Mapping[str, object]) -> dict[str, object]:
        settings = experiment(method=method)
        return network_facts(settings, build_network(settings))

    assert quantizers_of(experiment(method={"sat_weight_normalization": True})).weight_normalization
    plain = facts({})
    assert plain == {
        "name": "resnet8",
        "width": 4,
        "in_channels": 2,
        "num_classes": 5,
        "batch_norm": "shared",
        "quantize_first_and_last": False,
        "weight": "dorefa",
        "activation": "dorefa",
        "switchable": False,
        "trained_options": [2, 4],
    }
    assert facts({"sat_weight_normalization": False}) == plain
    assert facts({"sat_weight_normalization": True}) == {**plain, "weight_normalization": True}
    assert facts({"weight_quantization": "lsqplus"}) == {**plain, "weight": "lsqplus"}


def test_first_steps_of_lsq_plus_suit_the_first_weights() -> None:
    settings = experiment(method={"weight_quantization": "lsqplus", "switchable_clipping": True})
    for layer in quantized_layers(build_network(settings)).values():
        assert isinstance(layer, QuantizedLayer)
        step, zero_point = numerics.lsq_plus_initial_weight(layer.weight.detach(), 2)
        assert layer.quantize_w.step_size[0] == step
        assert layer.quantize_w.zp[0] == zero_point


def test_where_quantization_is_off_every_layer_runs_unquantized() -> None:
    settings = experiment().model_copy()
    off = settings.model_copy(update={"quantization": settings.quantization.model_copy(update={"enable": False})})
    network = build_network(off)
    assert set(get_bitwidths(network).values()) == {32}
    assert quantizers_of(off) == PLAIN


@pytest.mark.parametrize("missing", ["in_channels", "num_classes"])
def test_a_network_of_unknown_size_is_a_usage_error(missing: str) -> None:
    with pytest.raises(UsageError) as error:
        build_network(experiment(**{missing: None}))
    assert str(error.value) == (
        f"model.{missing}: not known; name it in the experiment file (training fills it in by itself)"
    )


# --- weights from a checkpoint --------------------------------------------------------------------------------------


def saved_network(settings: Experiment) -> ResNet:
    torch.manual_seed(1)
    network = build_network(settings).train()
    network(torch.randn(8, 2, 8, 8))  # gives the batch norms something to remember
    return network.eval()


@pytest.mark.parametrize(
    "settings",
    [
        experiment(),
        experiment(batch_norm="switchable", quantize_first_and_last=True),
        experiment(method={"weight_quantization": "lsq", "activation_quantization": "lsq"}),
        experiment(method={"weight_quantization": "lsqplus", "activation_quantization": "lsqplus"}),
        experiment(method={"sat_weight_normalization": True}),
        experiment(name="resnet50", method={"activation_quantization": "pact", "switchable_clipping": True}),
    ],
    ids=["dorefa", "switchable batch norm", "lsq", "lsqplus", "normalized", "pact resnet50"],
)
def test_a_loaded_network_computes_what_the_saved_one_did(settings: Experiment) -> None:
    network = saved_network(settings)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    loaded = load_network(settings, state, "here.pt")
    assert not any(module.training for module in loaded.modules())
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    x = torch.randn(4, 2, 8, 8)
    for bits in (2, 4, 32):
        for one in (network, loaded):
            set_bitwidths(one, dict.fromkeys(get_bitwidths(one), bits))
        assert torch.equal(loaded(x), network(x))
    assert all(torch.equal(state[name], tensor) for name, tensor in loaded.state_dict().items())


def test_half_and_double_precision_weights_are_computed_with_in_single_precision() -> None:
    network = saved_network(experiment())
    for dtype in (torch.float64, torch.bfloat16):
        state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in network.state_dict().items()}
        loaded = load_network(experiment(), state, "here.pt")
        assert loaded(torch.zeros(1, 2, 8, 8)).dtype == torch.float32
        assert torch.equal(loaded.fc.weight, state["fc.weight"].float())


PREFIX = "here.pt: its weights do not fit the network that its configuration describes: "


def message_of(state: Mapping[str, Tensor], settings: Experiment) -> str:
    with pytest.raises(CheckpointError) as error:
        load_network(settings, state, "here.pt")
    assert error.value.exit_code == 1
    return str(error.value)


def test_weights_of_another_shape_are_refused_with_both_shapes_and_the_likely_cause() -> None:
    state = dict(saved_network(experiment()).state_dict())
    state["fc.weight"] = torch.zeros(6, 16)
    assert message_of(state, experiment()) == PREFIX + (
        "fc.weight: is (6, 16) in the checkpoint, (5, 16) in the network; was it saved from another number of classes?"
    )


def test_missing_unexpected_and_wrongly_typed_weights_are_refused_by_name() -> None:
    state = dict(saved_network(experiment()).state_dict())
    del state["layer1.0.conv1.weight"]
    state["layer9.weight"] = torch.zeros(1)
    state["fc.bias"] = torch.zeros(5, dtype=torch.int64)
    state["bn1.running_mean"] = torch.zeros(4, dtype=torch.complex64)
    assert message_of(state, experiment()) == PREFIX + (
        "bn1.running_mean: is torch.complex64 in the checkpoint, torch.float32 in the network; "
        "fc.bias: is torch.int64 in the checkpoint, torch.float32 in the network; "
        "layer1.0.conv1.weight: missing from the checkpoint; layer9.weight: not in the network; "
        "was it saved from another network, or another version of its code?"
    )


def test_of_many_mismatches_five_are_shown_and_the_rest_is_counted() -> None:
    state = saved_network(experiment()).state_dict()
    message = message_of(state, experiment(width=8))
    problems = message.removeprefix(PREFIX).split("; ")
    assert len(problems) == 7
    assert problems[0] == "conv1.weight: is (4, 2, 3, 3) in the checkpoint, (8, 2, 3, 3) in the network"
    differing = sum("num_batches" not in name and name != "fc.bias" for name in state)
    assert problems[5] == f"and {differing - 5} more"
    assert problems[6] == "was it saved from another width, number of classes or clipping?"


@contextmanager
def at_most_this_much_more_memory(size: int) -> Iterator[None]:
    """Let the process allocate `size` bytes beyond what it has; any more fails, touched or not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
def test_a_size_that_only_the_configuration_claims_costs_no_memory() -> None:
    claims = {"name": "resnet50", "width": 1024, "num_classes": 100_000, "in_channels": 4096}
    claimed = number_of_parameters(on_meta(**claims)) * 4
    assert claimed > 20 * 2**30
    with at_most_this_much_more_memory(2**30):
        message = message_of({"fc.bias": torch.zeros(5)}, experiment(**claims))
        with pytest.raises(RuntimeError, match="allocate memory"):  # the limit is one
            build_network(experiment(**claims))
    assert "fc.bias: is (5,) in the checkpoint, (100000,) in the network" in message
    assert "; and 315 more; was it saved from " in message
