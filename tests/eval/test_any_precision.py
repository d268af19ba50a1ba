"""Any-Precision DNN's checkpoints: what is read of them, and that the network computes what theirs does."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import references
import torch
import torch.nn.functional as F
from any_precision_files import any_precision_content, save
from torch import Tensor, nn

from qbw_eval.checkpoints.native import Checkpoint
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.checkpoints.safe_load import CheckpointError
from qbw_eval.configurations import BitwidthConfiguration, sample
from qbw_eval.engine.graph import trace_network
from qbw_eval.engine.incremental import IncrementalEngine, own_layer
from qbw_eval.engine.integer import IntegerEngine
from qbw_eval.engine.packing import why_not_here
from qbw_eval.engine.reference import ReferenceEngine
from qbw_eval.engine.regions import find_regions
from qbw_eval.experiment import WithoutNetwork, experiment_from_mapping
from qbw_eval.networks.build import load_network
from qbw_eval.networks.facts import choices_of_ours, network_facts
from qbw_eval.networks.preact_resnet import FOLLOWED
from qbw_eval.quantization.bitwidths import quantized_layers, set_bitwidths, trace_layers_on_meta, trace_order
from qbw_eval.quantization.layers import SwitchableBatchNorm2d
from qbw_eval.settings.data import DataSettings
from qbw_eval.settings.quantization import RandomBitwidths
from schemas.errors import UsageError

DATA = WithoutNetwork(
    experiment="mine",
    data=DataSettings(source="tensors", validation=Path("validation.npz")),
    random_bitwidths=RandomBitwidths(num_bitwidths=5, seed=9),
)
OPTIONS = (1, 2, 4, 8, 32)
REFERENCES = {"resnet20q": references.any_precision_resnet20, "resnet50q": references.any_precision_resnet50}
SIDES = {"resnet20q": 8, "resnet50q": 32}


def checkpoint_of(folder: Path, **content: Any) -> Checkpoint:
    return read_checkpoint(save(any_precision_content(**content), folder / "model_best.pth.tar"), DATA)


def loaded_from(path: Path) -> nn.Module:
    checkpoint = read_checkpoint(path, DATA)
    return load_network(checkpoint.experiment, checkpoint.state, str(path))


def network_of(checkpoint: Checkpoint) -> nn.Module:
    return load_network(checkpoint.experiment, checkpoint.state, "here.pth.tar")


# --- what is read ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_says_its_network_and_the_file_its_data(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, width=6, channels=2, classes=7, options=(2, 8), epoch=3)
    experiment = checkpoint.experiment
    assert checkpoint.epoch == 2  # theirs count from 1
    assert checkpoint.val_acc is None
    assert (experiment.experiment, experiment.data, experiment.random_bitwidths) == (
        DATA.experiment,
        DATA.data,
        DATA.random_bitwidths,
    )
    assert experiment.layer_options == experiment.trained_bitwidths == (2, 8)
    assert network_facts(experiment, nn.Identity()) == {
        "name": "resnet20q",
        "width": 6,
        "in_channels": 2,
        "num_classes": 7,
        "batch_norm": "switchable",
        "quantize_first_and_last": False,
        "weight": "dorefa_scaled",
        "activation": "dorefa",
        "switchable": False,
        "trained_options": [2, 8],
        "batch_norm_follows": FOLLOWED,
    }
    assert choices_of_ours(experiment) == {"batch_norm_follows": FOLLOWED}


LAYERS = {
    "resnet20q": [f"layers.{block}.conv{index}" for block in range(9) for index in (0, 1)],
    "resnet50q": [
        f"layer{stage}.{position}.conv{index}"
        for stage, count in enumerate((3, 4, 6, 3), start=1)
        for position in range(count)
        for index in (0, 1, 2)
    ],
}


@pytest.mark.parametrize("model", REFERENCES)
def test_all_convolutions_but_the_first_and_the_shortcuts_are_quantized(model: str, tmp_path: Path) -> None:
    network = network_of(checkpoint_of(tmp_path, model=model, width=1, options=(4,)))
    assert set(quantized_layers(network)) == set(LAYERS[model])
    assert trace_order(network, torch.zeros(1, 3, 32, 32)) == LAYERS[model]


@pytest.mark.parametrize(
    ("model", "width", "classes", "macs"),
    [
        # Sums over 3x3 convolutions of 80, 160 and 320 channels on 32x32, 16x16 and 8x8 pixels, by hand:
        # 6 * 80 * 80 * 9 * 1024 + (80 + 5 * 160) * 160 * 9 * 256 + (160 + 5 * 320) * 320 * 9 * 64
        ("resnet20q", 80, 10, 6 * 80**2 * 9 * 32**2 + 880 * 160 * 9 * 16**2 + 1760 * 320 * 9 * 8**2),
    ],
)
def test_the_published_network_has_its_size(model: str, width: int, classes: int, macs: int, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, model=model, width=width, classes=classes, options=(4,))
    table = trace_layers_on_meta(
        network_of(checkpoint), torch.zeros(1, 3, *(checkpoint.experiment.model.input_size or ()))
    )
    assert sum(layer.macs for layer in table.layers) == macs


@pytest.mark.parametrize("model", REFERENCES)
def test_the_prefix_of_several_gpus_makes_no_difference(model: str, tmp_path: Path) -> None:
    plain = checkpoint_of(tmp_path, model=model)
    prefixed = checkpoint_of(tmp_path, model=model, prefix="module.")
    assert list(plain.state) == list(prefixed.state)
    assert plain.experiment == prefixed.experiment
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(network_of(plain)(x), network_of(prefixed)(x))


def test_without_data_it_can_be_looked_at_but_not_evaluated(tmp_path: Path) -> None:
    path = save(any_precision_content(options=(2, 4)), tmp_path / "model_best.pth.tar")
    assert read_checkpoint(path, needs_data=False).experiment.layer_options == (2, 4)
    with pytest.raises(UsageError) as error:
        read_checkpoint(path)
    assert str(error.value) == (
        f"{path}: an Any-Precision DNN checkpoint (resnet20q at [2, 4] bits), which does not say what to evaluate it "
        "on; name that with --config file.yaml that holds, for instance, "
        "`data: {source: tensors, validation: validation.npz}`"
    )


def test_a_file_that_names_a_network_too_is_told_what_to_leave_out(tmp_path: Path) -> None:
    settings = {"model": "resnet8", "data": {"source": "digits"}, "quantization": {"mine": {"bitwidth_options": [2]}}}
    path = save(any_precision_content(options=(2, 4)), tmp_path / "model_best.pth.tar")
    with pytest.raises(UsageError) as error:
        read_checkpoint(path, experiment_from_mapping(settings, "test"))
    assert str(error.value) == (
        f"{path}: an Any-Precision DNN checkpoint, which says itself what its network is (resnet20q at [2, 4] bits); "
        "leave model, quantization, quantization_method and training out of the --config file"
    )


def _without(state: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name != key}


STATE: dict[str, Tensor] = any_precision_content(options=(2, 4))["state_dict"]
ANOTHER = "is it another network than its 'model' says?"
VERSION = "was it saved from another network, or another version of its code?"
FITS = "its weights do not fit the resnet20q that its 'model' names: "


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model": "svhnq"},
            "its 'model' is 'svhnq'; of Any-Precision DNN's networks QBW evaluates resnet20q and resnet50q",
        ),
        ({"epoch": 0}, "'epoch' must be a whole number from 1, found 0"),
        ({"epoch": True}, "'epoch' must be a whole number from 1, found True"),
        ({"epoch": None}, "'epoch' must be a whole number from 1, found None"),
        ({"state_dict": {**STATE, "fc.bias": 3}}, "state_dict['fc.bias'] is not a tensor under a name"),
        (
            {"state_dict": {**STATE, "bn.bn_dict.64.bias": torch.zeros(1)}},
            "state_dict['bn.bn_dict.64.bias']: expected a bitwidth from 1 to 32 after 'bn_dict', found '64'; "
            "was it saved from another kind of network?",
        ),
        (
            {"state_dict": {**STATE, "bn.bn_dict.04.bias": torch.zeros(1)}},
            "state_dict['bn.bn_dict.04.bias']: expected a bitwidth from 1 to 32 after 'bn_dict', found '04'; "
            "was it saved from another kind of network?",
        ),
        (
            {"state_dict": {"conv0.weight": STATE["conv0.weight"]}},
            "expected keys like 'bn.bn_dict.4.weight' in state_dict, which say the bitwidths it was trained with, "
            "found ['conv0.weight']; was it saved from another kind of network?",
        ),
        (
            {"state_dict": {}},
            "expected keys like 'bn.bn_dict.4.weight' in state_dict, which say the bitwidths it was trained with, "
            "found []; was it saved from another kind of network?",
        ),
        (
            {"state_dict": _without(STATE, "conv0.weight")},
            "expected 'conv0.weight' in state_dict, resnet20q's first convolution, found ['bn.bn_dict.2.bias', "
            "'bn.bn_dict.2.num_batches_tracked', 'bn.bn_dict.2.running_mean', 'bn.bn_dict.2.running_var']; " + ANOTHER,
        ),
        (
            {"state_dict": _without(STATE, "fc.weight")},
            "expected 'fc.weight' in state_dict, the classifier, found ['bn.bn_dict.2.bias', "
            "'bn.bn_dict.2.num_batches_tracked', 'bn.bn_dict.2.running_mean', 'bn.bn_dict.2.running_var']; " + ANOTHER,
        ),
        (
            {"state_dict": {**STATE, "conv0.weight": torch.zeros(4, 3, 5, 5)}},
            "state_dict['conv0.weight']: expected the shape (1 to 1024, 1 to 4096, 3, 3) of resnet20q's first "
            "convolution, found (4, 3, 5, 5); " + ANOTHER,
        ),
        (
            {"state_dict": {**STATE, "conv0.weight": torch.zeros(0, 3, 3, 3)}},
            "state_dict['conv0.weight']: expected the shape (1 to 1024, 1 to 4096, 3, 3) of resnet20q's first "
            "convolution, found (0, 3, 3, 3); " + ANOTHER,
        ),
        (
            {"state_dict": {**STATE, "conv0.weight": torch.zeros(1025, 1, 3, 3)}},
            "state_dict['conv0.weight']: expected the shape (1 to 1024, 1 to 4096, 3, 3) of resnet20q's first "
            "convolution, found (1025, 1, 3, 3); " + ANOTHER,
        ),
        (
            {"state_dict": {**STATE, "fc.weight": torch.zeros(1, 16)}},
            "state_dict['fc.weight']: expected the shape (2 to 100000, features) of the classifier, found (1, 16); "
            + ANOTHER,
        ),
        (
            {"model": "resnet50q"},
            "expected 'conv1.weight' in state_dict, resnet50q's first convolution, found ['bn.bn_dict.2.bias', "
            "'bn.bn_dict.2.num_batches_tracked', 'bn.bn_dict.2.running_mean', 'bn.bn_dict.2.running_var']; " + ANOTHER,
        ),
        (
            {"state_dict": _without(STATE, "layers.5.bn1.bn_dict.4.bias")},
            FITS + "layers.5.bn1.bn_dict.4.bias: missing from the checkpoint; " + VERSION,
        ),
        (
            {"state_dict": {**STATE, "layers.3.skip_conv.weight": torch.zeros(8, 4, 3, 3)}},
            FITS + "layers.3.skip_conv.weight: is (8, 4, 3, 3) in the checkpoint, (8, 4, 1, 1) in the network; "
            "was it saved from another width, number of classes or clipping?",
        ),
        (
            {"state_dict": {**STATE, "layers.9.conv0.weight": torch.zeros(1)}},
            FITS + "layers.9.conv0.weight: not in the network; " + VERSION,
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_key(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = save({**any_precision_content(options=(2, 4)), **changes}, tmp_path / "a.pth.tar")
    with pytest.raises(CheckpointError) as error:
        loaded_from(path)
    assert str(error.value) == f"{path}: {sentence}"


@pytest.mark.parametrize("missing", ["model", "state_dict"])
def test_without_its_keys_it_is_no_such_checkpoint(missing: str, tmp_path: Path) -> None:
    content = any_precision_content()
    del content[missing]
    path = save(content, tmp_path / "a.pth.tar")
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path, DATA)
    assert str(error.value) == (
        f"{path}: expected a dict with 'model_state_dict', as `qbw-eval train` writes, or with 'state_dict' and "
        f"'model', as Any-Precision DNN does; found the keys {sorted(content)}; a network of your own is named as a "
        "factory in a file given with --config (README, Your own network)"
    )


def test_a_checkpoint_that_wants_to_run_something_is_refused(tmp_path: Path) -> None:
    path = save({**any_precision_content(), "optimizer": print}, tmp_path / "a.pth.tar")
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path, DATA)
    assert str(error.value) == (
        f"{path}: wants to run builtins.print while loading, which QBW never does; "
        "save it again with tensors, numbers and strings only"
    )


def test_a_file_of_their_torch_is_refused_with_a_remedy_that_works(tmp_path: Path) -> None:
    """They used torch 1.1, whose files are bare pickles; the remedy is the README's."""
    content = any_precision_content()
    content["state_dict"] = OrderedDict(content["state_dict"])
    content["state_dict"]._metadata = OrderedDict({"": {"version": 1}})
    old, new = tmp_path / "old.pth.tar", tmp_path / "new.pth.tar"
    torch.save(content, old, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(old, DATA)
    assert str(error.value) == (
        f"{old}: expected a file written by torch.save (a zip archive), found a bare pickle, torch's format before "
        "1.6; load and save it again with a recent torch"
    )
    torch.save(torch.load(old, map_location="cpu", weights_only=True), new)
    state = read_checkpoint(new, DATA).state
    assert list(state) == list(content["state_dict"])
    assert all(torch.equal(state[name], tensor) for name, tensor in content["state_dict"].items())


# --- what it computes -----------------------------------------------------------------------------------------------


def _torch_weight(w: Tensor, bits: int) -> Tensor:
    """As published, in its order of operations."""
    t, e = torch.tanh(w), w.abs().mean()
    if bits == 32:
        return t / t.abs().max() * e
    n = float(2**bits - 1)
    return (2 * (torch.round((t / 2 / t.abs().max() + 0.5) * n) / n) - 1) * e


def _torch_activation(x: Tensor, bits: int) -> Tensor:
    n = float(2**bits - 1)
    return torch.relu(x) if bits == 32 else torch.round(torch.clamp(x, 0.0, 1.0) * n) / n


def _torch_norm(x: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    return F.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))


TORCH = references.Arithmetic(
    conv=lambda x, w, stride, padding: F.conv2d(x, w, stride=stride, padding=padding),
    norm=_torch_norm,
    weight=_torch_weight,
    activation=_torch_activation,
    linear=F.linear,
    max_pool=lambda x: F.max_pool2d(x, 3, 2, 1),
    average=lambda x: torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1),
)


def configurations(names: list[str], options: tuple[int, ...]) -> list[dict[str, int]]:
    """Every layer at each option and at 32; then mixed ones."""
    mixed = [dict(zip(names, c.bitwidths, strict=True)) for c in sample("iid", len(names), options, 4, seed=3)]
    return [dict.fromkeys(names, bits) for bits in sorted({*options, 32})] + mixed


@pytest.mark.parametrize(("model", "width"), [("resnet20q", 3), ("resnet20q", 5), ("resnet50q", 2)])
@pytest.mark.parametrize("options", [OPTIONS, (2, 8), (4,)], ids=str)
def test_the_network_computes_what_theirs_does(
    model: str, width: int, options: tuple[int, ...], tmp_path: Path
) -> None:
    """In float32 to the bit, and as NumPy does in float64; mixed configurations by the rule."""
    checkpoint = checkpoint_of(tmp_path, model=model, width=width, options=options, seed=width)
    network = network_of(checkpoint)
    names = list(quantized_layers(network))
    x = torch.randn(2, 3, SIDES[model], SIDES[model] + 3, generator=torch.Generator().manual_seed(1))
    exact = {name: tensor.double().numpy() for name, tensor in checkpoint.state.items()}
    double = load_network(checkpoint.experiment, checkpoint.state, "here").double()
    for bits in configurations(names, options):
        with torch.no_grad():
            set_bitwidths(network, bits)
            assert torch.equal(network(x), REFERENCES[model](checkpoint.state, x, bits, options, TORCH)), bits
            set_bitwidths(double, bits)
            expected = REFERENCES[model](exact, x.double().numpy(), bits, options)
            np.testing.assert_allclose(double(x.double()).numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model", REFERENCES)
def test_the_bits_of_every_layer_and_batch_norm_matter(model: str, tmp_path: Path) -> None:
    """Or agreement with the reference would say little."""
    network = network_of(checkpoint_of(tmp_path, model=model, options=(2, 8)))
    names = list(quantized_layers(network))
    x = torch.randn(2, 3, SIDES[model], SIDES[model], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        set_bitwidths(network, dict.fromkeys(names, 8))
        before = network(x)
        for name in names:
            set_bitwidths(network, dict.fromkeys(names, 8) | {name: 2})
            assert not torch.equal(network(x), before), name


def test_each_batch_norm_follows_the_convolution_that_it_feeds_and_the_last_ones_the_last_convolution(
    tmp_path: Path,
) -> None:
    for model, exceptions in (
        ("resnet20q", {"bn": "layers.8.conv1"}),
        (
            "resnet50q",
            {"bn": "layer4.2.conv2"} | {f"layer{s}.0.downsample.1": f"layer{s}.0.conv2" for s in (1, 2, 3, 4)},
        ),
    ):
        network = network_of(checkpoint_of(tmp_path, model=model, width=1, options=(2,)))
        names = {module: name for name, module in network.named_modules()}
        followed = {
            name: names[module.bitwidth_sources[0]]
            for module, name in names.items()
            if isinstance(module, SwitchableBatchNorm2d)
        }
        blocks = {name: name.replace(".bn", ".conv") for name in followed if name not in exceptions}
        assert followed == blocks | exceptions


# --- engines --------------------------------------------------------------------------------------------------------


def mixed_and_uniform(count: int, options: tuple[int, ...]) -> list[BitwidthConfiguration]:
    uniform = sample("uniform", count, options, len(options), seed=0)
    mixed = [replace(c, index=c.index + len(uniform)) for c in sample("iid", count, options, 6, seed=2)]
    return [*uniform, *mixed]


@pytest.mark.parametrize("model", REFERENCES)
def test_incremental_is_the_network_to_the_bit(model: str, tmp_path: Path) -> None:
    network = network_of(checkpoint_of(tmp_path, model=model, width=3))
    names = trace_order(network, torch.zeros(1, 3, 32, 32))
    x = torch.randn(3, 3, SIDES[model], SIDES[model], generator=torch.Generator().manual_seed(2))
    walked = mixed_and_uniform(len(names), OPTIONS)
    with torch.inference_mode():
        expected = dict(ReferenceEngine(network, names).logits(x, walked))
        found = dict(IncrementalEngine(network, names, x, 2**24).logits(x, walked))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[position], expected[position]) for position in expected)


@pytest.mark.skipif(why_not_here() is not None, reason=f"integers: {why_not_here()}")
@pytest.mark.parametrize("model", REFERENCES)
def test_integers_agree_where_no_rounding_is_near_a_tie(model: str, tmp_path: Path) -> None:
    """At 8 bits and more; at fewer, one activation that rounds the other way changes many later ones."""
    network = network_of(checkpoint_of(tmp_path, model=model, width=4))
    names = trace_order(network, torch.zeros(1, 3, 32, 32))
    x = torch.randn(8, 3, SIDES[model], SIDES[model], generator=torch.Generator().manual_seed(2))
    walked = mixed_and_uniform(len(names), (8, 32))
    with torch.inference_mode():
        expected = dict(ReferenceEngine(network, names).logits(x, walked))
        engine = IntegerEngine(network, names, x, OPTIONS, 2**24)
        found = dict(engine.logits(x, walked))
    assert engine.in_float32 == {}
    for position, logits in expected.items():
        torch.testing.assert_close(found[position], logits, rtol=0.03, atol=0.03 * float(logits.abs().max()))


@pytest.mark.skipif(why_not_here() is not None, reason=f"integers: {why_not_here()}")
@pytest.mark.parametrize("model", REFERENCES)
def test_integers_follow_the_bits_of_the_layer_and_of_the_batch_norm_behind_it(model: str, tmp_path: Path) -> None:
    """Neighbours at few bits, all others at 32, where nothing is rounded: too little to meet a tie."""
    network = network_of(checkpoint_of(tmp_path, model=model, width=4))
    names = trace_order(network, torch.zeros(1, 3, 32, 32))
    x = torch.randn(2, 3, SIDES[model], SIDES[model], generator=torch.Generator().manual_seed(2))
    pairs = [(1, 4), (4, 1), (2, 8), (8, 2), (2, 32), (32, 2)]
    walked = [
        BitwidthConfiguration(
            bitwidths=(32,) * first + pair + (32,) * (len(names) - first - 2), index=first * len(pairs) + number
        )
        for first in (0, 1, 4, 6, 7, len(names) - 2)
        for number, pair in enumerate(pairs)
    ]
    with torch.inference_mode():
        expected = dict(ReferenceEngine(network, names).logits(x, walked))
        found = dict(IntegerEngine(network, names, x, OPTIONS, 2**24).logits(x, walked))
    for position, logits in expected.items():
        tolerance = 1e-4 * float(logits.abs().max())
        torch.testing.assert_close(found[position], logits, rtol=0, atol=tolerance, msg=str(walked[position]))


@pytest.mark.parametrize(
    ("model", "folded"),
    [
        ("resnet20q", {f"layers.{block}.conv0" for block in range(9)}),
        ("resnet50q", {name for name in LAYERS["resnet50q"] if not name.endswith("conv2")}),
    ],
)
def test_a_batch_norm_between_two_convolutions_runs_with_the_first(
    model: str, folded: set[str], tmp_path: Path
) -> None:
    network = network_of(checkpoint_of(tmp_path, model=model, width=1))
    traced = trace_network(network, LAYERS[model], torch.zeros(1, 3, 32, 32))
    regions = find_regions(traced, own_layer)
    assert {region.layer.layer_name for region in regions if region.batch_norm is not None} == folded
    assert {region.layer.layer_name for region in regions if region.other is not None} == set(LAYERS[model]) - folded
