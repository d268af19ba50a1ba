"""Batches from a function of the user's own -> inputs and labels, gone through once and kept in memory."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from qbw_eval.data.errors import DataError, described
from qbw_eval.data.inputs import checked_inputs
from qbw_eval.data.labels import checked_labels
from qbw_eval.data.room import check_room
from qbw_eval.nested import bytes_of, for_each_tensor, places, tensors_in, tensors_like
from qbw_eval.settings.data import DataSettings
from qbw_eval.user_code import UserCodeError, load_function, running_user_code

_SEED: Final = 0
"""What the function draws from torch's generator (a DataLoader's order too) is drawn the same every time."""

_EXPECTED: Final = "expected an iterable of batches (inputs, labels)"


def read_factory(settings: DataSettings, name: str, limit: int | None = None) -> tuple[Any, Tensor]:
    """Return the inputs and labels of a split: what function(split=name, **arguments) gives, in its order.

    Torch's generator is left as it was.

    Args:
        settings: factory, arguments and folder are used.
        name: which split.
        limit: how many of the first samples are asked for; all where it is None or larger.

    Returns:
        float32 tensors (N, ...), alone or in the dicts, lists and tuples of the first batch; and (N,) int64.

    Raises:
        UserCodeError: there is no such function, it fails, or gives no batches.
        DataError: what it gives is no inputs and labels, or needs more memory than there is.
    """
    assert settings.factory is not None, "the settings have been checked"
    where = f"data.factory: {settings.factory}"
    inputs: list[Any] = []
    labels: list[Tensor] = []
    samples = size = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        for number, batch in enumerate(_batches(settings, name)):
            place = f"{where}: batch {number}"
            if not isinstance(batch, tuple | list) or len(batch) < 2:
                raise UserCodeError(f"{place} is {described(batch)}; {_EXPECTED}")
            one, its_labels = _one_batch(batch[0], batch[1], inputs[0] if inputs else None, place)
            inputs.append(one)
            labels.append(its_labels)
            samples, size = samples + len(its_labels), size + bytes_of(one)
            check_room(size, f"{where}: {samples:,} samples", "fewer (--limit)")  # as much again, to join them
            if limit is not None and samples >= limit:
                break
    if not inputs:
        raise UserCodeError(f"{where}: gave no batches for the split {name!r}; {_EXPECTED}")
    return _joined(inputs, limit), torch.cat(labels)[:limit]


def _batches(settings: DataSettings, name: str) -> Iterator[Any]:
    """Yield what the user's function gives; only what is theirs runs where errors are taken for theirs."""
    assert settings.factory is not None
    function = load_function(settings.factory, "data.factory", settings.folder)
    arguments = copy.deepcopy(settings.arguments or {})
    with _theirs(settings):
        result = function(split=name, **arguments)
    try:
        iterator = iter(result)
    except TypeError:
        raise UserCodeError(f"data.factory: {settings.factory}: returned {described(result)}; {_EXPECTED}") from None
    while True:
        with _theirs(settings):
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch


@contextmanager
def _theirs(settings: DataSettings) -> Iterator[None]:
    assert settings.factory is not None
    with running_user_code(settings.factory, "data.factory", settings.folder):
        yield


def _one_batch(inputs: object, labels: object, first: Any, where: str) -> tuple[Any, Tensor]:
    """Return a batch's inputs, in memory of our own and in the containers of the first batch, and labels.

    Raises:
        DataError: they are something else, or shaped otherwise than those of the first batch.
    """
    checked = checked_inputs(for_each_tensor(inputs, _as_tensor), where)
    one = for_each_tensor(checked, torch.clone)  # loaders may fill the same tensors again, those of labels too
    tensors = tensors_in(one)
    labels = _as_tensor(labels)
    if not isinstance(labels, Tensor):
        raise DataError(f"{where}: labels are {described(labels)}; expected a tensor")
    numbers = checked_labels(labels, len(tensors[0]), where).clone()
    if first is None:
        return one, numbers
    alike = tensors_like(one, first)
    if alike is None:
        raise DataError(f"{where}: inputs have {_places(one)}; expected {_places(first)}, as in the first batch")
    for (place, like), tensor in zip(places(first), alike, strict=True):
        if tensor.shape[1:] != like.shape[1:]:
            raise DataError(
                f"{where}: {f'inputs {place}'.rstrip()} have samples of shape {tuple(tensor.shape[1:])}; "
                f"expected {tuple(like.shape[1:])}, as in the first batch"
            )
    return _filled(first, alike), numbers


def _as_tensor(value: Any) -> Any:
    """Return a tensor without its history, on the CPU; a NumPy array as one; anything else as it is."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _joined(batches: list[Any], limit: int | None) -> Any:
    """Return the batches, which have the same containers, as one."""
    parts = [tensors_in(batch) for batch in batches]
    return _filled(batches[0], [torch.cat(tensors)[:limit] for tensors in zip(*parts, strict=True)])


def _filled(like: Any, tensors: list[Tensor]) -> Any:
    """Return containers like those of `like` that hold other tensors, in order."""
    others = iter(tensors)
    return for_each_tensor(like, lambda _tensor: next(others))


def _places(inputs: Any) -> str:
    return ", ".join(place or "one tensor" for place, _ in places(inputs))[:200]
