"""Do data and network fit each other? What an experiment leaves open is filled in from the data."""

from qbw_eval.data.errors import DataError
from qbw_eval.data.split import Split
from qbw_eval.experiment import Experiment
from qbw_eval.nested import places


def with_data_shape(experiment: Experiment, split: Split) -> Experiment:
    """Return the experiment with input channels, size and classes filled in from the data where it does not say."""
    model = experiment.model
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
    """Check that a network can take a split's inputs and has a class for each of its labels.

    Args:
        experiment: complete settings (see `with_data_shape`).
        split: the data.
        network: words for the network, in errors.

    Raises:
        DataError: it cannot, or has not.
    """
    model = experiment.model
    channels, *_ = _images_of(split, network)
    if channels != model.in_channels:
        raise DataError(f"{split.dataset}: inputs have {channels} channels, {network} takes {model.in_channels}")
    if split.classes is not None and split.classes != model.num_classes:
        raise DataError(
            f"{split.dataset}: has folders for {split.classes} classes, {network} has {model.num_classes} classes; "
            "they are numbered by the folders' sorted names, so there must be one for each"
        )
    if model.num_classes is not None and split.num_classes > model.num_classes:
        raise DataError(
            f"{split.dataset}: the largest label is {split.num_classes - 1}, "
            f"{network} has {model.num_classes} classes, counted from 0"
        )
