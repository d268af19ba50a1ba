"""Do data fit into memory? Looked at before they are read."""

import torch

from qbw_eval.data.errors import DataError
from qbw_eval.memory import free_memory


def check_room(needed: int, what: str, remedy: str) -> None:
    """Check that data fit into three quarters of what is free; the rest is for the network.

    Args:
        needed: bytes.
        what: names the data, in errors.
        remedy: what to use instead, in errors.

    Raises:
        DataError: they do not.
    """
    limit = free_memory(torch.device("cpu")) * 3 // 4
    if needed > limit:
        raise DataError(
            f"{what} need {in_words(needed)} of memory, more than {in_words(limit)} (three quarters of what is free); "
            f"use {remedy}"
        )


def in_words(count: int) -> str:
    """Return a number of bytes for people.

    >>> in_words(3 * 2**29)
    '1.5 GiB'
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
