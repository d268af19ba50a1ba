"""Anybody's checkpoint: weights under one of the usual keys, or nothing but weights.

It is the user who says, with a file given with --config, which network they belong to; what the checkpoint itself says
of that is not looked at.

weights  under `model_state_dict`, `state_dict`, `model` or `net`, whichever comes first; or the whole file
epoch    `epoch` if that is a whole number from 0, taken as it is; else the number in the file's name; else 0
val_acc  `val_acc` if that is a number; `best_acc` and its kin may be another epoch's
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from qbw_eval.checkpoints.native import Checkpoint, accuracy_in, state_in
from qbw_eval.checkpoints.safe_load import CheckpointError, LoadedFile
from qbw_eval.experiment import Experiment

STATE_KEYS: Final = ("model_state_dict", "state_dict", "model", "net")
_WRAPPERS: Final = ("module.", "_orig_mod.")
"""What DataParallel (and its kin) and torch.compile put before every name of the network that they wrap."""

_NUMBER_IN_NAME: Final = re.compile(
    r"(?<![a-z])(?:epoch|checkpoint|ckpt|ep)[_\-=]?([0-9]{1,9})(?![0-9])", re.IGNORECASE
)


def foreign_checkpoint(loaded: LoadedFile, path: Path, experiment: Experiment) -> Checkpoint:
    """Return the checkpoint in a file that was read, for the network that the user names.

    Args:
        loaded: what the file holds.
        path: the file.
        experiment: what the user says of network and data.

    Raises:
        CheckpointError: there are no weights in it.
    """
    content = loaded.content
    state = _state_of(content, path)
    prefix = wrapping(state)
    epoch, remarks = _epoch(content, path)
    return Checkpoint(
        path=path,
        sha256=loaded.sha256,
        epoch=epoch,
        experiment=experiment,
        state={name.removeprefix(prefix): tensor for name, tensor in state.items()},
        val_acc=accuracy_in(content) if isinstance(content, Mapping) else None,
        remarks=remarks,
    )


def wrapping(names: Iterable[str]) -> str:
    """Return what wrappers put before all of the names, in whatever nesting.

    >>> wrapping(["module._orig_mod.fc.weight", "module._orig_mod.fc.bias"]), wrapping(["module.a", "b"])
    ('module._orig_mod.', '')
    """
    names, prefix = list(names), ""
    while names:
        longer = next((w for w in _WRAPPERS if all(name.startswith(prefix + w) for name in names)), None)
        if longer is None:
            break
        prefix += longer
    return prefix


def _state_of(content: object, path: Path) -> Mapping[str, Tensor]:
    if isinstance(content, Mapping):
        for key in STATE_KEYS:
            if isinstance(content.get(key), Mapping) and content[key]:
                return state_in(content, key, path)
        if content and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()):
            return content
        found = f"the keys {sorted(map(str, content))[:8]}"
    else:
        found = f"a {type(content).__name__}"
    listed = ", ".join(repr(key) for key in STATE_KEYS[:-1])
    raise CheckpointError(
        f"{path}: expected a state dict (tensors by name) under {listed} or {STATE_KEYS[-1]!r}, or nothing else in the "
        f"file; found {found}; save it with torch.save({{'state_dict': network.state_dict()}}, path)"
    )


def _epoch(content: Any, path: Path) -> tuple[int, tuple[str, ...]]:
    """Return the epoch, and what is to be said about it."""
    epoch = content.get("epoch") if isinstance(content, Mapping) else None
    if isinstance(epoch, int) and not isinstance(epoch, bool) and 0 <= epoch < 2**31:
        return epoch, ()
    in_name = _NUMBER_IN_NAME.findall(path.name)
    if in_name:
        return int(in_name[-1]), ()
    return 0, (
        f"{path}: neither its content nor its name says which epoch it is of; its rows say 0 (a whole number under "
        "'epoch', or a name such as epoch_12.pt, would tell)",
    )
