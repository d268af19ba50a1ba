"""A GPU that is none: tensors that say they are on cuda:0, lie on the CPU, and refuse what a GPU refuses.

What runs on a GPU only cannot be tried without one, but most mistakes there are of three kinds, and show here too:

- tensors of two devices in one operation, which CUDA refuses;
- waiting for the device: whatever brings a value to the host is noted (`Gpu.waits`);
- capturing what cannot be captured, or counting on Python code to run again: a captured graph repeats, on the same
  memory, the operations that were noted, and nothing else (as `tape` does).

Triton's kernels run under its interpreter. Streams do their work at once, so that nothing is said here about who has to
wait for whom. `installed()` puts all of it in the places of torch's own.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from tape import repeating
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from qbw_eval.engine import triton_kernels

DEVICE = torch.device("cuda", 0)
_CPU = torch.device("cpu")

_to, _tensor = Tensor.to, torch.tensor


class Pretended(Tensor):
    """A tensor on the GPU; `held` holds its values, and a view's shares memory with what it is a view of."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]  # torch leaves it untyped
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=DEVICE, requires_grad=False
        )
        made.held = held
        return made  # type: ignore[no-any-return]

    __torch_function__ = torch._C._disabled_torch_function_impl

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def __getitem__(self, place: Any) -> Tensor:  # torch's own looks for a CUDA driver
        where = [part for part in (place if isinstance(place, tuple) else (place,)) if isinstance(part, Tensor)]
        if where:
            return torch.ops.aten.index.Tensor(self, [place])  # type: ignore[no-any-return]
        return Pretended(self.held[place])

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:  # likewise
        assert Gpu.installed is not None
        return Gpu.installed.run(torch.ops.aten.copy_.default, (self, source, non_blocking), {})  # type: ignore[no-any-return]

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:  # likewise
        if self.held.is_contiguous(memory_format=memory_format):
            return self
        return torch.ops.aten.clone.default(self, memory_format=memory_format)  # type: ignore[no-any-return]

    def record_stream(self, stream: object) -> None:
        assert isinstance(stream, _Stream)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert Gpu.installed is not None
        return Gpu.installed.run(func, args, kwargs or {})


class Gpu(TorchDispatchMode):
    """Runs operations, those that make tensors too.

    Attributes:
        waits: the operations that brought a value to the host, in order.
        captures, replays: how many there were.
        stream: the one that work goes to; None for the default one.
    """

    installed: "Gpu | None" = None

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: list[str] = []
        self.captures = self.replays = 0
        self.stream: _Stream | None = None
        self.notes: list[Callable[[], object]] | None = None
        self._pinned: list[torch.UntypedStorage] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run one operation where its tensors are, or where it was told to make one."""
        kwargs = dict(kwargs)
        pinned, device = kwargs.pop("pin_memory", None), kwargs.get("device")
        if device is not None:
            kwargs["device"] = _CPU
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = any(isinstance(leaf, Pretended) for leaf in leaves)
        copies = func in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
        if here and not copies and any(leaf.ndim and not isinstance(leaf, Pretended) for leaf in leaves):
            raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
        if here and torch.Tag.data_dependent_output in func.tags:
            self.wait(str(func))
        if func is torch.ops.aten.copy_.default and isinstance(args[0], Pretended) is not isinstance(
            args[1], Pretended
        ):
            self.crossed(args[1], non_blocking=len(args) > 2 and bool(args[2]))
        here = here if device is None else torch.device(device).type == "cuda"
        args, kwargs = tree_map(_real, (args, kwargs))
        with _disable_current_modes():
            found = func(*args, **kwargs)
        if pinned:
            self.pin(found)
        if here and self.notes is not None:
            self.notes.append(repeating(func, args, kwargs, found))
        given = {id(leaf.held): leaf for leaf in leaves if isinstance(leaf, Pretended)}  # what is changed in place

        def pretended(value: Any) -> Any:
            if not here or not isinstance(value, Tensor):
                return value
            return given[id(value)] if id(value) in given else Pretended(value)

        return tree_map(pretended, found)

    @contextlib.contextmanager
    def on(self, stream: "_Stream") -> Iterator[None]:
        """Give work to a stream for a while."""
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def pin(self, tensor: Tensor) -> None:
        """Call a tensor's memory pinned, for as long as there is a GPU."""
        self._pinned.append(tensor.untyped_storage())

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in {storage.data_ptr() for storage in self._pinned}

    def wait(self, what: str) -> None:
        assert self.notes is None, f"{what} cannot be captured"
        self.waits.append(what)

    def crossed(self, source: Tensor, *, non_blocking: bool) -> None:
        """Note what was copied between host and device: nobody waits if it comes from pinned memory and may be late."""
        if isinstance(source, Pretended) or not (non_blocking and self.is_pinned(source)):
            self.wait("copy")

    def to(
        self,
        tensor: Tensor,
        *args: Any,
        device: Any = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """`Tensor.to`, which looks for a CUDA driver where a device is named."""
        for argument in args:
            match argument:
                case torch.dtype():
                    dtype = argument
                case bool():
                    non_blocking = argument
                case torch.device() | str() | int():
                    device = argument
                case Tensor():
                    device, dtype = argument.device, argument.dtype
        where = tensor.device if device is None else torch.device(device)
        own = _real(tensor)
        with _disable_current_modes():
            found = _to(own, dtype or own.dtype, **kwargs)
            if where.type != tensor.device.type:
                self.crossed(tensor, non_blocking=non_blocking)
                found = found.detach().clone()
        if found is own:
            return tensor
        return Pretended(found) if where.type == "cuda" else found

    def launch(self, kernel: Any, grid: Any, x: Tensor, *arguments: Any, **settings: Any) -> None:
        """Interpret a kernel; all its tensors have to be on the GPU."""
        tensors = [argument for argument in (x, *arguments) if isinstance(argument, Tensor)]
        assert all(isinstance(tensor, Pretended) for tensor in tensors), "a kernel was given a tensor of the host"
        real = [_real(argument) for argument in (x, *arguments)]

        def again() -> None:
            with _disable_current_modes():
                _launch(kernel, grid, *real, **settings)

        again()
        if self.notes is not None:
            self.notes.append(again)


_launch = triton_kernels._launch


def _real(value: Any) -> Any:
    return value.held if isinstance(value, Pretended) else value


# --- what torch.cuda has --------------------------------------------------------------------------------------------


class _Event:
    def synchronize(self) -> None:
        pass


class _Stream:
    """Does everything at once."""

    def __init__(self, device: object = None) -> None:
        assert device is None or torch.device(str(device)).type == "cuda"

    def wait_stream(self, other: "_Stream") -> None:
        assert isinstance(other, _Stream)

    def record_event(self) -> _Event:
        return _Event()

    def wait_event(self, event: _Event) -> None:
        assert isinstance(event, _Event)


class _Graph:
    def __init__(self) -> None:
        self.notes: list[Callable[[], object]] | None = None

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        gpu = Gpu.installed
        assert gpu is not None
        assert gpu.notes is None, "one capture at a time"
        assert gpu.stream is not None, "the default stream cannot be captured"
        assert pool is not None
        assert capture_error_mode in ("global", "thread_local", "relaxed")
        gpu.notes, gpu.captures = [], gpu.captures + 1

    def capture_end(self) -> None:
        gpu = Gpu.installed
        assert gpu is not None
        self.notes, gpu.notes = gpu.notes, None

    def replay(self) -> None:
        assert self.notes, "a graph without launches"
        assert Gpu.installed is not None
        Gpu.installed.replays += 1
        with _disable_current_modes():
            for again in self.notes:
                again()


@contextlib.contextmanager
def installed() -> Iterator[Gpu]:
    """Put the GPU in the place of torch's own, and of Triton's launches."""
    current = _Stream()

    def pin_memory(tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        gpu.pin(copy)
        return copy

    gpu = Gpu()

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return gpu.to(tensor, *args, **kwargs)

    def tensor(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:  # torch's own looks for a driver
        made = _tensor(data, **kwargs)
        return made if device is None else gpu.to(made, device)

    replaced = {
        "torch.tensor": tensor,
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.Stream": _Stream,
        "torch.cuda.Event": _Event,
        "torch.cuda.stream": lambda stream: gpu.on(stream),
        "torch.cuda.device": lambda _device: contextlib.nullcontext(),
        "torch.cuda.current_stream": lambda _device=None: current,
        "torch.cuda.synchronize": lambda _device=None: gpu.wait("synchronize"),
        "torch.cuda.graph_pool_handle": object,
        "torch.cuda.CUDAGraph": _Graph,
        "torch.cuda.is_current_stream_capturing": lambda: gpu.notes is not None,
        "torch.cuda.mem_get_info": lambda _device=None: (2**33, 2**34),
        "torch.cuda.get_device_name": lambda _device=None: "a pretended GPU",
        "torch.cuda.get_device_capability": lambda _device=None: (9, 0),
        "torch.Tensor.to": to,
        "torch.Tensor.cpu": lambda tensor: to(tensor, _CPU),
        "torch.Tensor.pin_memory": pin_memory,
        "qbw_eval.engine.triton_kernels._launch": gpu.launch,
    }
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(mock.patch(name, value))
        # A module's parameters become new ones on another device: an old one cannot change its class.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        stack.enter_context(mock.patch.object(Gpu, "installed", gpu))
        stack.enter_context(gpu)
        yield gpu
