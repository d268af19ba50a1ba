"""The layout of Any-Precision DNN's checkpoints (arXiv 1911.07346), which say what their network is but not their data.

epoch       int, 1-based
model       resnet20q or resnet50q
state_dict  name -> tensor; every name begins with `module.` where training ran on several GPUs
best_prec1  the best accuracy of all epochs so far, in percent
optimizer   whatever the optimizer keeps

The bitwidth options stand in the keys of switchable batch norms, `<name>.bn_dict.<bits>.weight`; the number of channels
and classes in the shapes of the first convolution and the classifier.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from torch import Tensor

from qbw_eval.checkpoints.native import Checkpoint, epoch_in, state_in
from qbw_eval.checkpoints.safe_load import CheckpointError, LoadedFile
from qbw_eval.experiment import Experiment, WithoutNetwork
from qbw_eval.settings.data import DataSettings
from qbw_eval.settings.model import AnyPrecisionModel
from qbw_eval.settings.quantization import MethodSettings, QuantizationSettings
from schemas.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class _Published:
    """What distinguishes the authors' networks, as far as reading needs it.

    Attributes:
        name: as `model` says.
        stem: the first convolution.
        kernel: its height and width.
        input_size: height and width of the images it was made for.
    """

    name: Literal["resnet20q", "resnet50q"]
    stem: str
    kernel: int
    input_size: tuple[int, int]


_PUBLISHED = {
    "resnet20q": _Published(name="resnet20q", stem="conv0.weight", kernel=3, input_size=(32, 32)),
    "resnet50q": _Published(name="resnet50q", stem="conv1.weight", kernel=7, input_size=(224, 224)),
}

_SWITCHED = re.compile(r"[^.].*\.bn_dict\.([^.]*)\.[^.]+")
_MOST_WIDTH, _MOST_CHANNELS, _MOST_CLASSES = 1024, 4096, 100_000  # as in an experiment file
_ANY_DATA = WithoutNetwork(experiment="any-precision", data=DataSettings(source="digits"))


def is_any_precision(content: object) -> TypeGuard[Mapping[Any, Any]]:
    """Say whether what a torch file holds has the layout's keys, right or wrong as their values may be."""
    return (
        isinstance(content, Mapping)
        and isinstance(content.get("state_dict"), Mapping)
        and isinstance(content.get("model"), str)
        and "model_state_dict" not in content
    )


def any_precision_checkpoint(
    loaded: LoadedFile, path: Path, instead: Experiment | WithoutNetwork | None = None, *, needs_data: bool = True
) -> Checkpoint:
    """Return the checkpoint in a file that was read and has this layout (`is_any_precision`), checked.

    Args:
        loaded: what the file holds.
        path: the file.
        instead: what to evaluate it on.
        needs_data: False where nothing is to be evaluated, so that `instead` may be missing.

    Raises:
        CheckpointError: a key is missing or wrong, or it is another of the authors' networks; says which.
        UsageError: nobody says what the data are, or somebody says what the network is.
    """
    content = loaded.content
    assert is_any_precision(content)
    published = _PUBLISHED.get(content["model"])
    if published is None:
        raise CheckpointError(
            f"{path}: its 'model' is {content['model']!r:.80}; of Any-Precision DNN's networks QBW evaluates "
            f"{' and '.join(_PUBLISHED)}"
        )
    state = _without_prefix(state_in(content, "state_dict", path))
    epoch = epoch_in(content, path, first=1)
    options = _options(state, path)
    width, channels = _stem_shape(state, published, path)
    model = AnyPrecisionModel(
        name=published.name,
        width=width,
        in_channels=channels,
        num_classes=_classes(state, path),
        input_size=published.input_size,
    )
    what = f"{published.name} at {list(options)} bits"
    if isinstance(instead, Experiment):
        raise UsageError(
            f"{path}: an Any-Precision DNN checkpoint, which says itself what its network is ({what}); "
            "leave model, quantization, quantization_method and training out of the --config file"
        )
    if instead is None and needs_data:
        raise UsageError(
            f"{path}: an Any-Precision DNN checkpoint ({what}), which does not say what to evaluate it on; "
            "name that with --config file.yaml that holds, for instance, "
            "`data: {source: tensors, validation: validation.npz}`"
        )
    method = MethodSettings(
        weight_quantization="dorefa_scaled", activation_quantization="dorefa", bitwidth_options=options
    )
    around = _ANY_DATA if instead is None else instead
    return Checkpoint(
        path=path,
        sha256=loaded.sha256,
        epoch=epoch,
        experiment=Experiment(
            experiment=around.experiment,
            model=model,
            data=around.data,
            quantization=QuantizationSettings.model_validate({"any_precision": method}),
            random_bitwidths=around.random_bitwidths,
            quantization_method="any_precision",
        ),
        state=state,
        val_acc=None,  # best_prec1 may be another epoch's
    )


def _without_prefix(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the state dict of the network itself, where it was saved as a part of torch's DataParallel."""
    if not all(name.startswith("module.") for name in state):
        return state
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _options(state: Mapping[str, Tensor], path: Path) -> tuple[int, ...]:
    """Return the bitwidths for which there are batch norms, ascending; that none lacks one, the network will tell."""
    found: set[int] = set()
    for name in state:
        switched = _SWITCHED.fullmatch(name)
        if switched is None:
            continue
        text = switched[1]
        if not re.fullmatch("[1-9][0-9]?", text) or int(text) > 32:
            raise CheckpointError(
                f"{path}: state_dict[{name!r:.200}]: expected a bitwidth from 1 to 32 after 'bn_dict', "
                f"found {text!r:.80}; was it saved from another kind of network?"
            )
        found.add(int(text))
    if not found:
        raise CheckpointError(
            f"{path}: expected keys like 'bn.bn_dict.4.weight' in state_dict, which say the bitwidths it was trained "
            f"with, found {sorted(state)[:4]}; was it saved from another kind of network?"
        )
    return tuple(sorted(found))


def _stem_shape(state: Mapping[str, Tensor], published: _Published, path: Path) -> tuple[int, int]:
    """Return the channels that the first convolution makes, and those it takes."""
    key, kernel = published.stem, (published.kernel, published.kernel)
    shape = _shape(state, key, f"{published.name}'s first convolution", path)
    if len(shape) != 4 or shape[2:] != kernel or not (1 <= shape[0] <= _MOST_WIDTH and 1 <= shape[1] <= _MOST_CHANNELS):
        raise CheckpointError(
            f"{path}: state_dict[{key!r}]: expected the shape (1 to {_MOST_WIDTH}, 1 to {_MOST_CHANNELS}, "
            f"{kernel[0]}, {kernel[1]}) of {published.name}'s first convolution, found {shape}; "
            f"is it another network than its 'model' says?"
        )
    return shape[0], shape[1]


def _classes(state: Mapping[str, Tensor], path: Path) -> int:
    shape = _shape(state, "fc.weight", "the classifier", path)
    if len(shape) != 2 or not 2 <= shape[0] <= _MOST_CLASSES:
        raise CheckpointError(
            f"{path}: state_dict['fc.weight']: expected the shape (2 to {_MOST_CLASSES}, features) of the classifier, "
            f"found {shape}; is it another network than its 'model' says?"
        )
    return shape[0]


def _shape(state: Mapping[str, Tensor], key: str, what: str, path: Path) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(
            f"{path}: expected {key!r} in state_dict, {what}, found {sorted(state)[:4]}; "
            "is it another network than its 'model' says?"
        )
    return tuple(state[key].shape)
