"""Notes of tensors, and the bytes they lie in -> tensors, no number of which was believed.

torch.save writes the bytes of a storage beside the pickle, and a tensor as a call: which storage, where in it, of what
sizes and strides. A tensor whose elements would not all lie in its storage is refused, and so is one that has more
elements than the storage (a stride of 0 makes 16 bytes claim terabytes), and anything that is no ordinary tensor.
A tensor shares its bytes with the file's in memory, so that loading takes no more than reading.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from qbw_eval.checkpoints.beside_weights import ContentError, is_size, sizes_of, torch_constant
from qbw_eval.checkpoints.pickle_reader import Call, Name, Persistent

STORAGES: Final = {
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.ShortStorage": torch.int16,
    "torch.storage.UntypedStorage": torch.uint8,
}
"""Names of storages -> what they hold; that of the last is bytes, and the tensor says of what."""

_LATER: Final = frozenset(
    {torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2}
    | {torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu}
)
"""Types that no storage is named after. With torch's others (quantized, bits, parts of a byte) nothing is computed."""

_TENSOR = "torch._utils._rebuild_tensor"
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_SUBCLASSES = ("torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2")

TENSORS: Final = (_TENSOR, f"{_TENSOR}_v2", f"{_TENSOR}_v3", *_PARAMETERS, *_SUBCLASSES)
"""What ordinary tensors are a call of."""

ODD_TENSORS: Final = {
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "one of a device of its own",
    "torch._utils._rebuild_device_tensor_from_numpy": "one of a device of its own",
    "torch._utils._rebuild_meta_tensor_no_storage": "one without data (device meta)",
    "torch._utils._rebuild_nested_tensor": "a nested one",
    "torch._utils._rebuild_qtensor": "a quantized one",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse one",
    "torch._utils._rebuild_sparse_tensor": "a sparse one",
    "torch._utils._rebuild_wrapper_subclass": "one of a class of its own",
}
"""What other tensors are a call of, and what to say of them."""

_ALIGNED = 16
"""Bytes; the largest element. torch.save aligns at 64, and older versions too."""


@dataclass(frozen=True)
class _Storage:
    """Bytes, and what they are said to be."""

    key: str
    data: Tensor  # (bytes,), uint8
    dtype: torch.dtype


class Tensors:
    """Makes the tensors of one checkpoint.

    Args:
        records: the bytes of every storage, by its key.
        max_bytes: what all tensors may take together, if each had bytes of its own.
    """

    def __init__(self, records: Mapping[str, memoryview], max_bytes: int) -> None:
        self._records = records
        self._left = max_bytes
        self._max_bytes = max_bytes
        self._data: dict[str, Tensor] = {}
        self._true: set[str] = set()

    def storage(self, persistent: Persistent) -> Tensor:
        """Return a storage that is kept by itself as a tensor of one dimension.

        Raises:
            ContentError: it is not there as it claims to be.
        """
        storage = self._storage(persistent)
        self._spend(storage.data.numel())
        if storage.dtype == torch.bool:
            self._check_truth(storage)
        return storage.data.view(storage.dtype)

    def tensor(self, call: Call) -> Tensor:
        """Return the tensor, or parameter, that a call whose name is one of `TENSORS` stands for.

        Raises:
            ContentError: it is no ordinary tensor that lies in its storage.
        """
        name, arguments = call.name, call.arguments
        if name in _SUBCLASSES:
            # Of another class, or with attributes: the tensor itself is what counts.
            match arguments:
                case (Name(name=inner), Name(), tuple() as inner_arguments, *_) if inner not in _SUBCLASSES:
                    return self.tensor(Call(inner, inner_arguments))
            raise ContentError("a tensor of a class that does not say how it is made")
        if name in _PARAMETERS:
            match arguments:
                case (Call(name=inner) as data, bool() as wants_gradient, *_) if inner.startswith(_TENSOR):
                    tensor = self.tensor(data).detach()
                    return torch.nn.Parameter(tensor, wants_gradient and _has_gradients(tensor.dtype))
            raise ContentError("a parameter that is not made of a tensor")
        if name not in TENSORS:
            raise ContentError(f"expected an ordinary tensor, found {ODD_TENSORS.get(name, name)}")
        return self._plain_tensor(name, arguments)

    def _plain_tensor(self, name: str, arguments: tuple[object, ...]) -> Tensor:
        if len(arguments) < 4 or not isinstance(arguments[0], Persistent):
            raise ContentError("a tensor without a storage, sizes and strides")
        storage = self._storage(arguments[0])
        dtype, metadata = storage.dtype, arguments[6] if len(arguments) > 6 else None
        if name == f"{_TENSOR}_v3":
            found = torch_constant(metadata) if isinstance(metadata, Name) else None
            if not isinstance(found, torch.dtype):
                raise ContentError("a tensor of no type")
            if found not in _LATER and found not in STORAGES.values():
                raise ContentError(f"expected an ordinary tensor, found one of {found}")
            dtype, metadata = found, arguments[7] if len(arguments) > 7 else None
        offset, sizes, strides = arguments[1], sizes_of(arguments[2]), _strides(arguments[3])
        if sizes is None or strides is None or not is_size(offset) or len(sizes) != len(strides):
            raise ContentError("a tensor whose sizes and strides are none")
        count, room = math.prod(sizes), storage.data.numel() // dtype.itemsize
        reach = offset + (sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) + 1 if count else 0)
        if count > room or reach > room:
            claim = f"{count} elements" if count > room else f"an element at {reach - 1}"
            raise ContentError(f"claims {claim}, more than its storage holds")
        self._spend(count * dtype.itemsize)
        tensor = torch.empty(0, dtype=dtype).set_(storage.data.untyped_storage(), offset, sizes, strides)
        if dtype == torch.bool:
            self._check_truth(storage)
        if len(arguments) > 4 and arguments[4] is True and _has_gradients(dtype):
            tensor.requires_grad_()
        return _with_bits(tensor, metadata)

    def _check_truth(self, storage: _Storage) -> None:
        """Check, once a storage, that it holds truth values, as torch takes for granted."""
        if storage.key not in self._true and bool((storage.data > 1).any()):
            raise ContentError("a truth value that is neither 0 nor 1; damaged")
        self._true.add(storage.key)

    def _storage(self, persistent: Persistent) -> _Storage:
        match persistent.reference:
            case ("storage", Name(name=kind), str() as key, str(), int() as count, *rest) if rest in ([], [None]):
                dtype = STORAGES.get(kind)
                if dtype is None:
                    raise ContentError(f"expected an ordinary tensor, found one of {kind}")
                if key not in self._records:
                    raise ContentError(f"lies in a storage {key!r:.40} that is not in the file")
                there = len(self._records[key])
                if count * dtype.itemsize != there:
                    raise ContentError(f"its storage claims {count * dtype.itemsize:,} bytes, and {there:,} are there")
                return _Storage(key, self._bytes(key), dtype)
        raise ContentError("lies in something that is no storage")

    def _bytes(self, key: str) -> Tensor:
        """Return the bytes of a storage, the same every time, so that tensors which shared them still do."""
        if key not in self._data:
            record = self._records[key]
            data = torch.frombuffer(record, dtype=torch.uint8) if len(record) else torch.empty(0, dtype=torch.uint8)
            self._data[key] = data if data.data_ptr() % _ALIGNED == 0 else data.clone()
        return self._data[key]

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ContentError(f"with it, tensors claim more than the {self._max_bytes:,} bytes that a checkpoint may")


def _strides(value: object) -> tuple[int, ...] | None:
    """Return the strides of a tensor, or None where they cannot be any."""
    return tuple(value) if isinstance(value, tuple | list) and all(map(is_size, value)) else None


def _has_gradients(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _with_bits(tensor: Tensor, metadata: object) -> Tensor:
    """Return the tensor as the bits say that torch keeps instead of computing: conjugated, negated."""
    if not isinstance(metadata, Call):
        return tensor
    bits = [key for key, value in metadata.pairs if value is True]
    if "conj" in bits and tensor.is_complex():
        tensor = tensor.conj()
    if "neg" in bits and _has_gradients(tensor.dtype):
        tensor = torch._neg_view(tensor)
    return tensor
