"""Labels as people keep them: class numbers, or one-hot rows."""

from collections.abc import Mapping
from typing import Final

from torch import Tensor

from qbw_eval.data.errors import DataError, described

MOST_CLASSES: Final = 100_000
"""As many as an experiment file may name."""


def class_numbers(labels: Tensor, where: str) -> Tensor:
    """Return the class numbers of labels; those that are not one-hot are returned as they are.

    Args:
        labels: (N,) class numbers, or (N, classes) of any type with a single 1 in every row and zeros else.
        where: names the place in errors.

    Returns:
        (N,); int64 where the labels were one-hot.

    Raises:
        DataError: labels have two dimensions and are not one-hot; soft labels (0.9 and 0.1) have no class number.

    >>> import torch
    >>> class_numbers(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "here").tolist()
    [1, 0]
    """
    if labels.ndim != 2:
        return labels
    shape = tuple(labels.shape)
    if shape[1] < 2:
        # A single column of ones could be meant either way: every sample of class 0, or of class 1.
        raise DataError(
            f"{where}: labels have shape {shape}; expected class numbers (N,) or one-hot rows (N, classes) "
            "of two classes or more; save a column of class numbers as labels[:, 0]"
        )
    ones = labels == 1
    odd = ~(ones | (labels == 0)).all(dim=1) | (ones.sum(dim=1) != 1)
    if bool(odd.any()):
        row = int(odd.nonzero()[0])
        raise DataError(
            f"{where}: labels of shape {shape} are read as one-hot, but row {row} has {_what_is_odd(labels[row])}; "
            "expected a single 1 in every row and zeros else; save class numbers (N,) instead"
        )
    return ones.byte().argmax(dim=1)


def checked_labels(labels: Tensor, count: int, where: str) -> Tensor:
    """Return the class numbers of the labels of `count` samples.

    Args:
        labels: (N,) class numbers or (N, classes) one-hot.
        count: N.
        where: names the place in errors.

    Returns:
        (N,) int64, from 0.

    Raises:
        DataError: they are something else, there are more or fewer, or one is no class number.
    """
    one_hot = labels.ndim == 2 and len(labels) == count
    numbers = class_numbers(labels, where) if one_hot else labels
    if numbers.shape != (count,) or numbers.is_floating_point() or numbers.is_complex():
        raise DataError(
            f"{where}: labels are {labels.dtype} of shape {tuple(labels.shape)}; "
            f"expected one whole number, or one one-hot row, for each of the {count} inputs"
        )
    numbers = numbers.long().contiguous()
    if int(numbers.max()) >= MOST_CLASSES:
        raise DataError(
            f"{where}: the largest label is {int(numbers.max())}; expected fewer than {MOST_CLASSES:,} classes"
        )
    if int(numbers.min()) < 0:
        raise DataError(f"{where}: the smallest label is {int(numbers.min())}; classes count from 0")
    return numbers


_USUAL_KEY: Final = "vehicle_type"


def label_of_sample(label: object, key: str | None, where: str) -> int:
    """Return the class number of one sample.

    Args:
        label: a whole number, a tensor that holds one, a one-hot tensor (classes,), or a dict of such.
        key: where in the dict; None for "vehicle_type", or the only key.
        where: names the place in errors.

    Raises:
        DataError: there is no such key, or what is there is no label.

    >>> label_of_sample({"vehicle_type": 3, "distance": 0.5}, None, "here")
    3
    """
    if isinstance(label, Mapping):
        wanted = _USUAL_KEY if key is None else key
        if key is None and wanted not in label and len(label) == 1:
            (wanted,) = label
        if wanted not in label:
            keys = ", ".join(described(name) for name in list(label)[:20]) or "none"
            raise DataError(f"{where}: label has no key {wanted!r}; say with data.label which it is (it has: {keys})")
        label = label[wanted]
    if type(label) is int and 0 <= label < MOST_CLASSES:
        return label
    if isinstance(label, Tensor) and label.numel() == 1 and label.ndim <= 1:
        label = label.reshape(1)
    elif isinstance(label, Tensor) and label.ndim == 1:
        label = label.unsqueeze(0)
    else:
        raise DataError(
            f"{where}: label is {described(label)}; expected a whole number from 0 to {MOST_CLASSES - 1:,}, "
            "a tensor that holds one, or a one-hot tensor (classes,)"
        )
    return int(checked_labels(label, 1, where))


def _what_is_odd(row: Tensor) -> str:
    """Return what keeps a row from being one-hot, in words."""
    others = row[(row != 0) & (row != 1)]
    if len(others):
        return f"the value {others[0].item():g}"
    ones = int((row == 1).sum())
    return f"{ones} ones" if ones else "no 1"
