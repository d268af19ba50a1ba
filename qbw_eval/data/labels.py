"""Labels as people keep them: class numbers, or one-hot rows."""

from typing import Final

from torch import Tensor

from qbw_eval.data.errors import DataError

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


def _what_is_odd(row: Tensor) -> str:
    """Return what keeps a row from being one-hot, in words."""
    others = row[(row != 0) & (row != 1)]
    if len(others):
        return f"the value {others[0].item():g}"
    ones = int((row == 1).sum())
    return f"{ones} ones" if ones else "no 1"
