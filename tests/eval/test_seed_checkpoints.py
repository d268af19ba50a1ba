"""The seed's checkpoints: read, they compute exactly what an independent forward of their state dict does."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from any_precision_files import save
from seed_files import SENSORS, seed_config, seed_content, seed_state
from seed_reference import seed_logits
from torch import Tensor, nn

from qbw_eval.checkpoints.native import Checkpoint
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.checkpoints.safe_load import CheckpointError
from qbw_eval.checkpoints.seed_files import theirs
from qbw_eval.experiment import ExperimentError, WithoutNetwork
from qbw_eval.networks.build import load_network
from qbw_eval.quantization.bitwidths import quantized_layers, set_bitwidths
from qbw_eval.settings.data import DataSettings
from schemas.errors import UsageError

TWO_BY_TWO: Mapping[str, Mapping[str, int]] = {
    "shake": {"seismic": 2, "audio": 4},
    "roof": {"seismic": 6, "audio": 2},
}


def inputs_for(sensors: Mapping[str, Mapping[str, int]], samples: int = 3) -> dict[str, dict[str, Tensor]]:
    """Random spectra, of another length for every sensor."""
    generator = torch.Generator().manual_seed(5)
    lengths = iter(range(20, 40, 3))
    return {
        location: {
            modality: torch.randn((samples, channels, 8, next(lengths)), generator=generator)
            for modality, channels in modalities.items()
        }
        for location, modalities in sensors.items()
    }


def network_of(checkpoint: Checkpoint) -> nn.Module:
    return load_network(checkpoint.experiment, checkpoint.state, str(checkpoint.path))


def mixed_bits(network: nn.Module, options: Sequence[int], seed: int) -> dict[str, int]:
    choices = random.Random(seed)
    return {name: choices.choice(options) for name in quantized_layers(network)}


@pytest.mark.parametrize(
    ("weight", "activation", "switchable", "sat"),
    [
        ("dorefa", "dorefa", False, False),
        ("dorefa", "dorefa", True, True),
        ("dorefa", "pact", True, False),
        ("dorefa", "pact", False, True),
        ("lsq", "lsq", False, False),
        ("lsqplus", "lsqplus", True, False),
        ("lsq", "pact", True, True),
        ("dorefa", "lsqplus", False, False),
    ],
)
@pytest.mark.parametrize(("variant", "width"), [("resnet18", 4), ("resnet50", 2)])
def test_a_checkpoint_computes_what_its_state_dict_says(
    tmp_path: Path, weight: str, activation: str, switchable: bool, sat: bool, variant: str, width: int
) -> None:
    options = (8, 2, 32, 4)  # in no order, as files have them
    state = seed_state(
        variant,
        sensors=TWO_BY_TWO,
        width=width,
        options=options,
        weight=weight,
        activation=activation,
        switchable=switchable,
    )
    config = seed_config(
        variant,
        sensors=TWO_BY_TWO,
        options=options,
        weight=weight,
        activation=activation,
        switchable=switchable,
        sat=sat,
    )
    checkpoint = read_checkpoint(save(seed_content(state, config), tmp_path / "last_epoch.pth"))
    assert checkpoint.experiment.layer_options == (2, 4, 8, 32)
    network, inputs = network_of(checkpoint), inputs_for(TWO_BY_TWO)
    for seed in range(3):
        bits = mixed_bits(network, options, seed)
        set_bitwidths(network, bits)
        with torch.no_grad():
            assert torch.equal(network(inputs), seed_logits(state, config, bits, inputs))


@pytest.mark.parametrize("variant", ["resnet34", "resnet101", "resnet152"])
def test_every_variant_is_read(tmp_path: Path, variant: str) -> None:
    state, config = seed_state(variant, width=1), seed_config(variant)
    checkpoint = read_checkpoint(save(seed_content(state, config), tmp_path / "best_model.pth"))
    network, inputs = network_of(checkpoint), inputs_for(SENSORS, samples=1)
    bits = mixed_bits(network, (2, 4, 8), 0)
    set_bitwidths(network, bits)
    with torch.no_grad():
        assert torch.equal(network(inputs), seed_logits(state, config, bits, inputs))


def test_without_quantization_there_is_one_configuration(tmp_path: Path) -> None:
    state = seed_state("resnet18", weight=None, activation=None)
    config = seed_config(enable=False)
    checkpoint = read_checkpoint(save(seed_content(state, config), tmp_path / "best_model.pth"))
    assert checkpoint.experiment.layer_options == (32,)
    network, inputs = network_of(checkpoint), inputs_for(SENSORS)
    set_bitwidths(network, dict.fromkeys(quantized_layers(network), 32))
    with torch.no_grad():
        assert torch.equal(network(inputs), seed_logits(state, config, {}, inputs))


@pytest.mark.parametrize("kind", ["lsq", "lsqplus"])
def test_later_files_keep_a_step_for_every_option_and_count_zero_points_the_other_way(
    tmp_path: Path, kind: str
) -> None:
    options = (8, 4, 2)
    state = seed_state("resnet18", options=options, weight=kind, activation=kind, later=True)
    config = seed_config(options=options, weight=kind, activation=kind)
    checkpoint = read_checkpoint(save(seed_content(state, config), tmp_path / "best_model.pth"))
    network, inputs = network_of(checkpoint), inputs_for(SENSORS)
    # As the earlier files would say it: weights by LSQ, zero points with the other sign.
    earlier = {name: -tensor if name.endswith(".zp") else tensor for name, tensor in state.items()}
    as_earlier = seed_config(options=options, weight="lsq", activation=kind)
    for seed in range(2):
        bits = mixed_bits(network, options, seed)
        set_bitwidths(network, bits)
        with torch.no_grad():
            assert torch.equal(network(inputs), seed_logits(earlier, as_earlier, bits, inputs))


def test_a_common_clipping_value_is_the_only_one_where_there_is_no_other(tmp_path: Path) -> None:
    state = seed_state("resnet18", switchable=False)
    common = {name + ("_common" if name.endswith(".alpha") else ""): tensor for name, tensor in state.items()}
    one = read_checkpoint(save(seed_content(state, seed_config(switchable=False)), tmp_path / "a.pth"))
    other = read_checkpoint(save(seed_content(common, seed_config(switchable=False)), tmp_path / "b.pth"))
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(tensor, other.state[name]) for name, tensor in one.state.items())


def test_what_the_file_says_beside_its_weights(tmp_path: Path) -> None:
    folder = tmp_path / "20251118_220531_ResNet_resnet18" / "models"
    folder.mkdir(parents=True)
    path = save(seed_content(seed_state("resnet18"), seed_config(), epoch=9), folder / "checkpoint_epoch_10.pth")
    checkpoint = read_checkpoint(path)
    assert (checkpoint.epoch, checkpoint.val_acc) == (9, 0.625)
    experiment = checkpoint.experiment
    assert experiment.experiment == "20251118_220531_ResNet_resnet18"
    assert experiment.random_bitwidths.num_bitwidths == 5
    assert experiment.model.model_dump() == {
        "name": "resnet18",
        "in_channels": {"shake": {"seismic": 2, "audio": 2}},
        "fc_dim": 6,
        "num_classes": 5,
        "width": 4,
        "input_sizes": {"shake": {"seismic": (4, 20), "audio": (4, 20)}},
    }
    data = experiment.data
    assert (data.source, data.num_segments, data.fft, data.batch_size) == ("sample_index", 4, True, 16)
    assert (str(data.train), str(data.validation)) == ("/elsewhere/train_index.txt", "/elsewhere/val_index.txt")
    assert (data.locations, data.modalities) == (("shake",), ("seismic", "audio"))
    assert data.normalization is not None
    assert data.normalization.method == "standard"
    training = experiment.training
    assert (training.epochs, training.batch_size, training.learning_rate) == (3, 16, 0.003)


def _moved(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (config | changes).items() if value is not ...}


@pytest.mark.parametrize(
    ("change", "number"),
    [
        ({"random_bitwidths": {"num_bitwidths": 3}}, 3),
        ({"random_bitwidths": {"number_of_configs": 4, "name": "random_bitwidths"}}, 4),
    ],
)
def test_the_number_of_configurations_stands_in_several_places(
    tmp_path: Path, change: dict[str, Any], number: int
) -> None:
    config = _moved(seed_config(), **change)
    checkpoint = read_checkpoint(save(seed_content(seed_state("resnet18"), config), tmp_path / "a.pth"))
    assert checkpoint.experiment.random_bitwidths.num_bitwidths == number


def test_method_settings_directly_under_quantization_are_the_first_files(tmp_path: Path) -> None:
    config = seed_config()
    method = config["quantization"]["any_precision"]
    config["quantization"] = {"enable": True, **method, "bn_type": "float"}
    config["quantization_method"] = None
    checkpoint = read_checkpoint(save(seed_content(seed_state("resnet18"), config), tmp_path / "a.pth"))
    assert checkpoint.experiment.layer_options == (2, 4, 8)
    assert checkpoint.experiment.method is not None
    assert checkpoint.experiment.method.activation_quantization == "pact"


MISTAKES = {
    "model_variant": (
        {"model_variant": "mobilenet_v2"},
        "config: model_variant: expected one of resnet18, resnet34, resnet50, resnet101, resnet152, "
        "found 'mobilenet_v2'",
    ),
    "channels": (
        {"loc_mod_in_freq_channels": {"shake": {"audio": 2}}},
        "config: loc_mod_in_freq_channels: expected the channels of every location and modality, found none for "
        "shake.seismic",
    ),
    "method": (
        {"quantization_method": "dorefa"},
        "config: quantization_method: expected one of 'any_precision', found 'dorefa'",
    ),
    "classes": (
        {"vehicle_classification": {"num_classes": "7"}},
        "config: vehicle_classification.num_classes: expected a whole number, found '7'",
    ),
    "index": (
        {"vehicle_classification": {"num_classes": 7, "val_index_file": "a\0b"}},
        "config: vehicle_classification.val_index_file: expected the path of an index file, which lists a .pt file a "
        r"line, found 'a\x00b'",
    ),
    "task": ({"vehicle_classification": ...}, "config: vehicle_classification: this key is missing"),
    "segments": ({"num_segments": 0}, "config: num_segments: expected at least 1, found 0"),
    "normalization": (
        {"normalization": {"method": "robust"}},
        "config: normalization.method: expected 'standard', 'standardscaler', 'minmax', 'minmaxscaler', 'maxabs', "
        "'maxabsscaler' or 'none', found 'robust'",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_configuration_that_makes_no_sense_is_told_where(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    config = seed_config()
    method = change.get("quantization_method", config["quantization_method"])
    content = seed_content(seed_state("resnet18"), _moved(config, **change) | {"quantization_method": method})
    path = save(content, tmp_path / "a.pth")
    with pytest.raises(ExperimentError) as error:
        read_checkpoint(path)
    assert error.value.format_message() == f"{path}: {sentence}"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (
            "bn_type",
            "switchable",
            "bn_type: expected 'float', found 'switchable'; "
            "other batch norms of the seed's are evaluated as your own model",
        ),
        (
            "Conv",
            "QuanConvImportance",
            "Conv: expected one of QuanConv, QuanConvActivationFirst, QuanConvNoWeightNorm, "
            "found 'QuanConvImportance'; other layers of the seed's are evaluated as your own model",
        ),
        (
            "weight_quantization",
            "twn",
            "weight_quantization: expected 'dorefa', 'dorefa_scaled', 'lsq' or 'lsqplus', found 'twn'",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_said(tmp_path: Path, key: str, value: str, sentence: str) -> None:
    config = seed_config()
    config["quantization"]["any_precision"][key] = value
    path = save(seed_content(seed_state("resnet18"), config), tmp_path / "a.pth")
    with pytest.raises(ExperimentError) as error:
        read_checkpoint(path)
    assert error.value.format_message() == f"{path}: config: quantization.any_precision.{sentence}"


def test_scales_of_other_options_are_refused(tmp_path: Path) -> None:
    state = seed_state("resnet18", options=(2, 4, 8, 16))
    path = save(seed_content(state, seed_config(options=(2, 4, 8))), tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert error.value.format_message().endswith(
        ".alpha']: expected 1 value, or 3 for the options [2, 4, 8], found 4; was it saved with other bitwidth_options?"
    )


def test_a_state_dict_of_another_network_is_refused(tmp_path: Path) -> None:
    path = save(seed_content({"conv.weight": torch.zeros(1)}, seed_config()), tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert error.value.format_message() == (
        f"{path}: expected model_state_dict['mod_loc_backbones.shake.seismic.conv1.weight'] of shape "
        "(1 to 1024, channels, 7, 7), found keys like ['conv.weight']; "
        "was it saved from the network that its config describes?"
    )


def test_a_file_with_data_only_replaces_the_data_and_one_with_a_network_is_refused(tmp_path: Path) -> None:
    path = save(seed_content(seed_state("resnet18"), seed_config()), tmp_path / "a.pth")
    instead = WithoutNetwork(experiment="mine", data=DataSettings(source="digits"))
    checkpoint = read_checkpoint(path, instead)
    assert (checkpoint.experiment.experiment, checkpoint.experiment.data.source) == ("mine", "digits")
    with pytest.raises(UsageError, match="says itself what its network is"):
        read_checkpoint(path, checkpoint.experiment)


def test_writing_a_state_dict_as_theirs_is_the_inverse_of_reading_it(tmp_path: Path) -> None:
    options = (8, 2, 4)
    for activation in ("pact", "lsqplus"):
        state = seed_state("resnet18", options=options, activation=activation)
        config = seed_config(options=options, activation=activation)
        checkpoint = read_checkpoint(save(seed_content(state, config), tmp_path / "a.pth"))
        again = theirs(checkpoint.state, options)
        assert again.keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in again.items())
