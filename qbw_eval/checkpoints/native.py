"""Our own checkpoint layout: a dict with the seed's keys that describes itself.

epoch                 int, 0-based
model_state_dict      name -> tensor
optimizer_state_dict  whatever the optimizer keeps
val_acc, val_loss     validation results at the end of the epoch
config                the experiment (`Experiment.as_mapping`), so that no YAML is needed to evaluate
quantization_method   the method's name in `config`
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qbw_eval.checkpoints.safe_load import CheckpointError, LoadedFile
from qbw_eval.experiment import Experiment, ExperimentError, WithoutNetwork, experiment_from_mapping
from qbw_eval.settings.model import ModelSettings


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint, read and checked, its network not yet built.

    Attributes:
        path: where it was read.
        sha256: of the bytes that were read.
        epoch: 0-based.
        experiment: what it was trained as, or what the user says instead.
        state: name -> tensor.
        val_acc: what training measured itself; None where it did not say.
        remarks: sentences for the user, about what was not clear.
    """

    path: Path
    sha256: str
    epoch: int
    experiment: Experiment
    state: Mapping[str, Tensor]
    val_acc: float | None
    remarks: tuple[str, ...] = ()

    def same_network(self) -> str:
        """Return a fingerprint of the weights, the epoch and what they mean: equal ones give equal rows."""
        hasher = hashlib.blake2b(digest_size=16)
        said = self.experiment
        meaning = [part.model_dump(mode="json") for part in (said.model, said.quantization, said.data)]
        hasher.update(json.dumps([self.epoch, said.experiment, *meaning], sort_keys=True).encode())
        for name, tensor in sorted(self.state.items()):
            # A stranger's name may hold what is no character: whether it fits the network is asked later.
            hasher.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode(errors="surrogatepass"))
            plain = tensor.detach().resolve_conj().resolve_neg()  # no bytes are shown of what torch put off computing
            hasher.update(plain.contiguous().flatten().view(torch.uint8).numpy().data)
        return hasher.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training has at the end of an epoch.

    Attributes:
        epoch: 0-based.
        model, optimizer: as they are then.
        val_acc, val_loss: means over the validated configurations; loss in nats.
    """

    epoch: int
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    val_acc: float
    val_loss: float


def write_checkpoint(path: Path, trained: Trained, experiment: Experiment) -> None:
    """Write a checkpoint that describes itself, whole or not at all."""
    content = {
        "epoch": trained.epoch,
        "model_state_dict": trained.model.state_dict(),
        "optimizer_state_dict": trained.optimizer.state_dict(),
        "val_acc": trained.val_acc,
        "val_loss": trained.val_loss,
        "config": experiment.as_mapping(),
        "quantization_method": experiment.method_name,
    }
    save_whole(content, path)


def save_whole(content: Mapping[str, object], path: Path) -> None:
    """Save with torch, whole or not at all: encode in memory, write beside, sync, rename."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def native_checkpoint(loaded: LoadedFile, path: Path, instead: Experiment | WithoutNetwork | None = None) -> Checkpoint:
    """Return the checkpoint in a file that was read, checked.

    Args:
        loaded: what the file holds.
        path: the file.
        instead: settings to use in place of those in the checkpoint.

    Raises:
        CheckpointError: a key is missing or of the wrong type; says which.
        ExperimentError: its configuration makes no sense.
    """
    content = loaded.content
    if not isinstance(content, Mapping) or not isinstance(content.get("model_state_dict"), Mapping):
        found = f"the keys {sorted(map(str, content))[:8]}" if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{path}: expected a dict with 'model_state_dict', as `qbw-eval train` writes, or with 'state_dict' and "
            f"'model', as Any-Precision DNN does; found {found}; a network of your own is named as a factory in a file "
            "given with --config (README, Your own network)"
        )
    state = state_in(content, "model_state_dict", path)
    epoch = epoch_in(content, path, first=0)
    config = content.get("config")
    if isinstance(instead, Experiment):
        experiment = _completed(instead, config, path)
    elif isinstance(config, Mapping):
        experiment = experiment_from_mapping(config, f"{path}: config", None if instead is None else instead.data)
        if instead is not None:
            experiment = instead.with_network_of(experiment)
    else:
        raise CheckpointError(
            f"{path}: has no 'config' that describes the network; name one with --config file.yaml"
            + (" that has the keys model and quantization too" if instead is not None else "")
        )
    return Checkpoint(
        path=path,
        sha256=loaded.sha256,
        epoch=epoch,
        experiment=experiment,
        state=state,
        val_acc=accuracy_in(content),
    )


def state_in(content: Mapping[Any, Any], key: str, path: Path) -> Mapping[str, Tensor]:
    """Return the state dict under a key that holds a mapping.

    Raises:
        CheckpointError: it holds something else than tensors under names.
    """
    state: Mapping[str, Tensor] = content[key]
    wrong = [name for name, tensor in state.items() if not (isinstance(name, str) and isinstance(tensor, Tensor))]
    if wrong:
        raise CheckpointError(f"{path}: {key}[{wrong[0]!r}] is not a tensor under a name")
    return state


def accuracy_in(content: Mapping[Any, Any]) -> float | None:
    """Return the validation accuracy that training wrote under `val_acc`; None where it is no number."""
    accuracy = content.get("val_acc")
    if not isinstance(accuracy, (int, float)) or isinstance(accuracy, bool) or not math.isfinite(accuracy):
        return None
    return float(accuracy)


def epoch_in(content: Mapping[Any, Any], path: Path, *, first: int) -> int:
    """Return the 0-based epoch of a checkpoint whose layout counts from `first`.

    Raises:
        CheckpointError: there is none.
    """
    epoch = content.get("epoch")
    if not isinstance(epoch, int) or isinstance(epoch, bool) or not 0 <= epoch - first < 2**31:
        # Only what is plain is shown: a list may hold itself ten times over, and take for ever to write down.
        found = f"{epoch!r:.80}" if isinstance(epoch, str | int | float | None) else type(epoch).__name__
        raise CheckpointError(f"{path}: 'epoch' must be a whole number from {first}, found {found}")
    return epoch - first


def _completed(experiment: Experiment, config: object, path: Path) -> Experiment:
    """Return the experiment with the shape of the network filled in from the checkpoint's own configuration."""
    model = experiment.model
    if not isinstance(config, Mapping) or not isinstance(model, ModelSettings):
        return experiment
    try:
        own = experiment_from_mapping(config, str(path)).model
    except ExperimentError:  # the user said what to use instead of it
        return experiment
    shape = {name: getattr(own, name) for name in ("in_channels", "num_classes", "input_size")}
    missing = {name: value for name, value in shape.items() if getattr(model, name) is None}
    return experiment.model_copy(update={"model": model.model_copy(update=missing)})
