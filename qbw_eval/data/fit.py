"""Do data and network fit each other? What an experiment leaves open is filled in from the data."""

import torch
from torch import nn

from qbw_eval.data.errors import DataError
from qbw_eval.data.split import Split
from qbw_eval.experiment import Experiment
from qbw_eval.layer_table import LayerTable
from qbw_eval.nested import places, to_device
from qbw_eval.networks.factory import run_one
from qbw_eval.quantization.bitwidths import trace_layers_on_meta
from qbw_eval.settings.model import FactoryModel
from qbw_eval.settings.multimodal import MultimodalModel


def with_data_shape(experiment: Experiment, split: Split) -> Experiment:
    """Return the experiment with input channels, size and classes filled in from the data where it does not say."""
    model = experiment.model
    if isinstance(model, FactoryModel | MultimodalModel):
        return experiment  # whose factory, or whose checkpoint, knows
    channels, height, width = _images_of(split, "the network")
    filled = {
        "in_channels": model.in_channels or channels,
        "num_classes": model.num_classes or max(2, split.num_classes),
        "input_size": model.input_size or (height, width),
    }
    return experiment.model_copy(update={"model": model.model_copy(update=filled)})


def _images_of(split: Split, network: str) -> tuple[int, int, int]:
    """Return the images' channels, height and width.

    Raises:
        DataError: the inputs are no images.
    """
    if split.image_shape is None:
        found = "; ".join(
            f"{place or 'one tensor'} {tuple(tensor.shape[1:])}" for place, tensor in places(split.inputs)
        )
        raise DataError(
            f"{split.dataset}: {network} takes images (channels, height, width), a sample has {found[:200]}; "
            "name the data that it was trained on"
        )
    return split.image_shape


def check_data_fit(experiment: Experiment, split: Split, network: str) -> None:
    """Check that a network of ours can take a split's inputs and has a class for each of its labels.

    Somebody's own, whose settings say nothing of shapes, is asked by running it (`layers_on`).

    Args:
        experiment: complete settings (see `with_data_shape`).
        split: the data.
        network: words for the network, in errors.

    Raises:
        DataError: it cannot, or has not.
    """
    model = experiment.model
    if isinstance(model, FactoryModel):
        return
    if isinstance(model, MultimodalModel):
        _check_sensors(model, split, network)
    else:
        channels, *_ = _images_of(split, network)
        if channels != model.in_channels:
            raise DataError(f"{split.dataset}: inputs have {channels} channels, {network} takes {model.in_channels}")
    _check_classes(split, model.num_classes, network)


def _check_classes(split: Split, classes: int | None, network: str) -> None:
    """Check that a network with so many classes (None: not known) has one for each of a split's labels."""
    if split.classes is not None and split.classes != classes:
        raise DataError(
            f"{split.dataset}: has folders for {split.classes} classes, {network} has {classes} classes; "
            "they are numbered by the folders' sorted names, so there must be one for each"
        )
    if classes is not None and split.num_classes > classes:
        raise DataError(
            f"{split.dataset}: the largest label is {split.num_classes - 1}, "
            f"{network} has {classes} classes, counted from 0"
        )


def _check_sensors(model: MultimodalModel, split: Split, network: str) -> None:
    """Check that a sample has every location and modality of a network, with its channels.

    Raises:
        DataError: it has not; lists both sides.
    """
    wanted = {
        f"{location}.{modality}": channels
        for location, of in model.in_channels.items()
        for modality, channels in of.items()
    }
    found = {place: tuple(tensor.shape[1:]) for place, tensor in places(split.inputs)}
    wrong = [
        f"{place} (channels, segments, bins) with {channels} channels"
        for place, channels in wanted.items()
        if len(found.get(place, ())) != 3 or found[place][0] != channels
    ]
    if wrong:
        listed = "; ".join(f"{place or 'one tensor'} {shape}" for place, shape in found.items())
        raise DataError(
            f"{split.dataset}: {network} takes {'; '.join(wrong)[:300]}; a sample has {listed[:300]}; "
            "name the data that it was trained on, with its segments and transforms"
        )


def layers_on(experiment: Experiment, network: nn.Module, split: Split, device: torch.device, words: str) -> LayerTable:
    """Return the network's quantized layers as the first sample of a split meets them.

    Args:
        experiment: what the network was built from.
        network: the network, on the device.
        split: data that it fits, as far as `check_data_fit` can tell.
        device: where the network is.
        words: for the network, in errors.

    Raises:
        DataError: somebody's own network has too few classes.
        UserCodeError: it fails, or returns something else than logits.
        LayerError: a quantized layer takes no part in its forward pass.
    """
    if not isinstance(experiment.model, FactoryModel):
        return trace_layers_on_meta(network, split.first)
    table, classes = run_one(network, experiment.model, to_device(split.first, device), split.dataset)
    _check_classes(split, classes, words)
    return table
