"""What goes wrong with data, and a stranger's values in words."""

from pathlib import Path

from torch import Tensor

from qbw_eval.yaml_reader import shown
from schemas.errors import QBWError

_MANY_DIGITS = 10**18


class DataError(QBWError):
    """A data source cannot give what was asked of it."""


def described(value: object) -> str:
    """Return what a value is, as one short line: never its whole text, which may be endless, or a stranger's code.

    >>> described(3), described("three"), described([1, 2, 3]), described(None)
    ('3', "'three'", 'a list of 3', 'nothing')
    """
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, dict | list | tuple | set | frozenset):
        return f"a {type(value).__name__} of {len(value)}"
    if value is None:
        return "nothing"
    if type(value) is int and abs(value) >= _MANY_DIGITS:
        return "a whole number of many digits"
    if type(value) in (bool, int, float, str):
        return shown(value)
    return f"an object of type {type(value).__name__}"


def printable(path: Path) -> str:
    """Return a path, which may be a stranger's, as one printable line."""
    return str(path) if str(path).isprintable() else repr(str(path))
