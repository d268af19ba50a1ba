"""A torch file from a stranger -> plain Python and tensors. Never runs code from the file, never trusts its sizes.

In order: the bytes are read once, so that what is hashed is what is loaded; a zip must be stored (not deflated: two
megabytes can claim two gigabytes), its CRCs right (torch does not look at them); then `torch.load(weights_only=True)`,
with NumPy scalars, which training loops leave in checkpoints, rebuilt by us from plain bytes instead of by NumPy; then
every tensor must be an ordinary one that fits in its storage (a stride of 0 makes 16 bytes claim terabytes).
"""

import codecs
import hashlib
import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from schemas.errors import QBWError

_SAFE_TORCH = "2.10"
"""CVE-2025-32434 was fixed in 2.6, CVE-2026-24747 in 2.10."""

_MAX_DEPTH = 64
"""Nesting of containers; configurations nest a handful deep."""


class CheckpointError(QBWError):
    """A file is not a checkpoint that can be read safely."""


@dataclass(frozen=True, kw_only=True)
class LoadedFile:
    """What a torch file holds.

    Attributes:
        content: dicts, lists, numbers, strings and ordinary CPU tensors.
        sha256: of the very bytes that were loaded.
    """

    content: object
    sha256: str


def load_torch_file(path: Path) -> LoadedFile:
    """Read a file written by `torch.save` without running any code from it.

    Raises:
        CheckpointError: no such file, not a torch file, damaged, or it wants more than weights (the name is told).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    _check_zip(data, path)
    content = _unpickle(data, path)
    for where, tensor in _tensors(content, path):
        _check_tensor(tensor, f"{path}: content{where}")
    return LoadedFile(content=content, sha256=hashlib.sha256(data).hexdigest())


def _looks_like(data: bytes) -> str:
    if not data:
        return "an empty file; is it still being written?"
    if data.startswith(b"PK"):
        return "a zip that was cut short; is it still being written or copied?"
    if data.startswith(b"\x80"):
        return "a bare pickle, torch's format before 1.6; load and save it again with a recent torch"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data[:4096])  # which may end within a character
    except UnicodeDecodeError:
        return "something else"
    return "text"


def _check_zip(data: bytes, path: Path) -> None:
    try:
        if not zipfile.is_zipfile(io.BytesIO(data)):
            raise CheckpointError(
                f"{path}: expected a file written by torch.save (a zip archive), found {_looks_like(data)}"
            )
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if any(member.filename.endswith("/constants.pkl") for member in members):
                raise CheckpointError(
                    f"{path}: expected a file written by torch.save, found a TorchScript archive (torch.jit.save); "
                    "save the state dict of the module it was made from"
                )
            deflated = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
            if deflated:
                raise CheckpointError(f"{path}: its record {deflated[0]!r} is compressed, which torch.save never does")
            if len({member.filename for member in members}) != len(members):
                raise CheckpointError(f"{path}: two of its records have the same name")
            # Where a record is marked as a folder, or its two sizes differ, torch reads nothing or too little, finds
            # no fault, and hands out as weights whatever lay in memory before.
            odd = [
                m.filename for m in members if m.is_dir() or m.external_attr & 0x10 or m.compress_size != m.file_size
            ]
            if odd:
                raise CheckpointError(
                    f"{path}: damaged: the record {odd[0]!r} has a wrong size or kind; copy the file again"
                )
            if sum(member.file_size for member in members) > len(data):
                raise CheckpointError(f"{path}: its records claim more bytes than the file has")
            damaged = archive.testzip()
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises nearly anything on crafted bytes; none of it is ours
        raise CheckpointError(f"{path}: a damaged zip archive ({_first_line(error)})") from None
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged: the record {damaged!r} fails its checksum; copy the file again")


def _unpickle(data: bytes, path: Path) -> object:
    """Return what the archive holds; an allow-list of two inert stand-ins for NumPy's scalars is all that is called."""
    if torch.torch_version.TorchVersion(torch.__version__) < _SAFE_TORCH:
        raise CheckpointError(
            f"{path}: not opened: the weights-only loader of torch {torch.__version__} has known ways round; "
            f"install torch {_SAFE_TORCH} or newer"
        )
    stand_ins: list[object] = [(_DType, "numpy.dtype")]
    stand_ins += [(_numpy_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    try:
        # What torch has to remark about a stranger's file is not for the user; what is wrong with it, we say.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]  # torch's own hint leaves out pairs
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = _wanted(data)
        if wanted:
            raise CheckpointError(
                f"{path}: wants to run {', '.join(wanted)} while loading, which QBW never does; "
                "save it again with tensors, numbers and strings only"
            ) from None
        raise CheckpointError(f"{path}: not loadable as weights ({_reason(error)})") from None
    except (
        Exception
    ) as error:  # torch and the pickle machine raise nearly anything on crafted bytes; none of it is ours
        raise CheckpointError(
            f"{path}: not loadable as weights ({type(error).__name__}: {_first_line(error)})"
        ) from None


def _reason(error: pickle.UnpicklingError) -> str:
    """Return why torch refused, without its advice to load the file unsafely: the last line of what it says."""
    said = str(error).partition("\n\nCheck the documentation")[0]
    last = (said.strip().splitlines() or ["no message"])[-1]
    return last.strip().removeprefix("WeightsUnpickler error: ").partition(" Please use ")[0][:200]


def _wanted(data: bytes) -> list[str]:
    """Return the names that the pickle would import beyond weights and NumPy scalars."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
    except Exception:  # the name is a courtesy; a pickle too broken to list is refused all the same
        return []
    return [name for name in names if name != "numpy.dtype" and not name.endswith("multiarray.scalar")]


class _DType:
    """Stands in for `numpy.dtype(name, align, copy)` in a pickle: only remembers its name and byte order."""

    def __init__(self, name: object = None, *_align_and_copy: object) -> None:
        self.name = name
        self.order = "<"

    def __setstate__(self, state: object) -> None:
        self.order = ">" if isinstance(state, tuple) and state[1:2] == (">",) else "<"


_FORMATS = {"f2": "e", "f4": "f", "f8": "d", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q"}
_FORMATS |= {"u1": "B", "u2": "H", "u4": "I", "u8": "Q"}


def _numpy_scalar(dtype: object = None, value: object = None) -> float | int | bool:
    """Stand in for NumPy's scalar reconstruction: numbers only, from exactly as many bytes as their type has."""
    code = _FORMATS.get(str(dtype.name)) if isinstance(dtype, _DType) else None
    if not isinstance(dtype, _DType) or code is None or not isinstance(value, bytes):
        raise pickle.UnpicklingError("a NumPy scalar that is not a number")
    number: float | int | bool = struct.unpack(dtype.order + code, value)[0]
    return number


def _tensors(content: object, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested containers with its place; anything but plain content is refused."""
    stack: list[tuple[str, object, int]] = [("", content, 0)]
    seen: set[int] = set()
    while stack:
        where, value, depth = stack.pop()
        if depth > _MAX_DEPTH:
            raise CheckpointError(f"{path}: nested more than {_MAX_DEPTH} deep at {where[:80]!r}")
        if isinstance(value, Tensor):
            yield where, value
        elif isinstance(value, (dict, list, tuple, set, frozenset)) and id(value) not in seen:
            seen.add(id(value))  # a container met twice is walked once, so that a cycle ends
            items = value.items() if isinstance(value, dict) else enumerate(value)
            stack.extend((f"{where}[{str(key)[:80]!r}]", item, depth + 1) for key, item in items)


def _check_tensor(tensor: Tensor, where: str) -> None:
    kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else str(tensor.layout)
    if type(tensor) not in (Tensor, torch.nn.Parameter) or kind != "torch.strided":
        raise CheckpointError(f"{where}: expected an ordinary tensor, found {type(tensor).__name__} ({kind})")
    if tensor.device.type != "cpu":
        raise CheckpointError(f"{where}: a tensor without data (device {tensor.device})")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{where}: claims {tensor.numel()} elements, more than its storage holds")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
