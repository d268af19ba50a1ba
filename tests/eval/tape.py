"""A `replay.Lane` on the CPU that treats what is recorded as a GPU does: Python code never runs again.

`record` lets a function run once and notes every operation of torch, and every launch of a Triton kernel, with the very
tensors that it reads and writes. A replay repeats those, in place. So whatever a function decides by looking at
bitwidths, or does to tensors that are made anew each time, shows: it is not repeated. What looks at a value on the host
is refused, as in the capture of a CUDA graph.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from qbw_eval.engine import triton_kernels


class Tape:
    """See the module.

    Attributes:
        recorded: how many recordings were made.
        replays: how many were replayed.
    """

    def __init__(self) -> None:
        self.recorded = self.replays = 0

    def queue(self) -> AbstractContextManager[object]:
        return nullcontext()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        notes: list[Callable[[], None]] = []
        launch = triton_kernels._launch

        def noted(*arguments: Any, **settings: Any) -> None:
            def again() -> None:
                with _disable_current_modes():  # the interpreter calls torch, too
                    launch(*arguments, **settings)

            again()
            notes.append(again)

        with mock.patch.object(triton_kernels, "_launch", noted), _Notes(notes):
            run()

        def replay() -> None:
            self.replays += 1
            for again in notes:
                again()

        return replay

    def follow(self) -> None:
        pass

    def hand_over(self, value: Tensor) -> None:
        pass


class _Notes(TorchDispatchMode):
    def __init__(self, notes: list[Callable[[], None]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._notes = notes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert torch.Tag.data_dependent_output not in func.tags, f"{func} looks at a value"
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._notes.append(repeating(func, args, kwargs, result))
        return result


def repeating(func: Any, args: Any, kwargs: Any, result: Any) -> Callable[[], None]:
    """Return what does again what an operation of torch did, with the same tensors, in place."""
    read = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
    written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]

    def again() -> None:
        found = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
        for place, value in zip(written, found, strict=True):
            # Views of what it read, and what was written in place, are there already.
            if place.untyped_storage().data_ptr() not in read:
                place.copy_(value)

    return again
