"""What a network takes: a tensor, or dicts, lists and tuples of tensors; samples are in the first dimension of each."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def for_each_tensor(inputs: Any, change: Callable[[Any], Any]) -> Any:
    """Return containers like those of `inputs` that hold what `change` makes of each tensor, in order.

    Of whatever is no container, that is: a tensor, or what stands for one (`data.narrow.Narrow`).
    """
    if isinstance(inputs, Mapping):
        return {key: for_each_tensor(value, change) for key, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        changed = [for_each_tensor(value, change) for value in inputs]
        return changed if isinstance(inputs, list) else tuple(changed)
    return change(inputs)


def to_device(inputs: Any, device: torch.device) -> Any:
    """Return a tensor, or dicts, lists and tuples of tensors, on `device`."""
    return for_each_tensor(inputs, lambda tensor: tensor.to(device))


def first_sample(inputs: Any) -> Any:
    """Return a batch of the first sample of a batch."""
    return for_each_tensor(inputs, lambda tensor: tensor[:1].clone())  # for a forward that changes its input


def samples(inputs: Any, which: slice | Tensor) -> Any:
    """Return a batch of some of the samples of a batch: a slice of them (as views), or those at positions (N,)."""
    return for_each_tensor(inputs, lambda tensor: tensor[which])


def tensors_in(inputs: Any) -> list[Tensor]:
    """Return the tensors in dicts, lists and tuples of tensors, in the order in which they stand there."""
    found: list[Tensor] = []
    for_each_tensor(inputs, found.append)
    return found


def tensors_like(inputs: Any, like: Any) -> list[Tensor] | None:
    """Return the tensors of `inputs` in the order of `like`, whose dicts may have their keys in another order.

    None where the containers are others: other keys, another length, a tensor in place of a container.
    """
    if isinstance(like, Mapping):
        if not isinstance(inputs, Mapping) or inputs.keys() != like.keys():
            return None
        pairs = [(inputs[key], value) for key, value in like.items()]
    elif isinstance(like, list | tuple):
        if not isinstance(inputs, list | tuple) or len(inputs) != len(like):
            return None
        pairs = list(zip(inputs, like, strict=True))
    else:
        return [inputs] if isinstance(inputs, Tensor) else None
    parts = [tensors_like(*pair) for pair in pairs]
    return None if None in parts else [tensor for part in parts if part is not None for tensor in part]


def bytes_of(inputs: Any) -> int:
    """Return how many bytes the tensors take together."""
    return sum(tensor.nbytes for tensor in tensors_in(inputs))


def places(inputs: Any) -> list[tuple[str, Tensor]]:
    """Return each tensor with its place in words, in the order in which they stand there.

    >>> [(place, tuple(tensor.shape)) for place, tensor in places({"shake": {"audio": torch.zeros(2, 3)}})]
    [('shake.audio', (2, 3))]
    """
    if isinstance(inputs, Mapping):
        inner = [(str(key), value) for key, value in inputs.items()]
    elif isinstance(inputs, list | tuple):
        inner = [(str(index), value) for index, value in enumerate(inputs)]
    else:
        return [("", inputs)]
    return [(f"{key}.{place}" if place else key, tensor) for key, value in inner for place, tensor in places(value)]
