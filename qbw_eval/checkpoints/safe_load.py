"""A torch file from a stranger -> plain values and tensors. Never runs code from the file, never trusts its sizes.

In order: the file is read once, so that what is hashed is what is loaded, and never mapped, as something may still be
writing it; an archive must be intact, its checksums compared (torch does not look at them); the pickle in it is read as
a description of what it would do; a name in it that no checkpoint needs ends the matter; then the description is turned
into values, and into tensors that lie in the bytes that were read, each number compared with what is there.

Torch's own weights-only loader is not used. It calls functions with what the file says (two opcodes make it take a
terabyte), and it has had three ways round it: CVE-2025-32434, CVE-2026-24747, and quantized tensors until 2.12.

Only for a file that its user names with --trust-pickle, and only where that is what it takes, pickle itself reads it.
"""

import codecs
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from qbw_eval.checkpoints.archive import ArchiveError, is_archive, read_archive, record_names
from qbw_eval.checkpoints.beside_weights import ContentError
from qbw_eval.checkpoints.content import WholeModuleError, content_of
from qbw_eval.checkpoints.harmless import is_harmless, is_of_module
from qbw_eval.checkpoints.legacy import is_legacy, read_legacy
from qbw_eval.checkpoints.pickle_reader import Pickled, PickleError, read_pickle
from qbw_eval.checkpoints.tensors import Tensors
from qbw_eval.memory import total_memory
from schemas.errors import QBWError


class CheckpointError(QBWError):
    """A file is not a checkpoint that can be read safely."""


class WantsCodeError(CheckpointError):
    """A file cannot be read without running code from it, or code that it names."""


@dataclass(frozen=True, kw_only=True)
class LoadedFile:
    """What a checkpoint file holds.

    Attributes:
        content: dicts, lists, numbers, text and ordinary CPU tensors; `Foreign` where something is of an unknown class.
        sha256: of the very bytes that were loaded.
    """

    content: object
    sha256: str


_CHUNK: Final = 2**24
_SHOWN_NAMES: Final = 3


def load_torch_file(path: Path, *, trust: bool = False, max_bytes: int | None = None) -> LoadedFile:
    """Read a file written by `torch.save` without running any code from it.

    Args:
        path: the file.
        trust: where it cannot be read without, let pickle run what the file says.
        max_bytes: what the file may hold, and what its tensors may take; half of the machine's memory if not given.

    Raises:
        CheckpointError: no such file, not a torch file, damaged, too large, or it wants more than weights (the name is
            told).
    """
    limit = default_max_bytes() if max_bytes is None else max_bytes
    data = read_file(path, limit)
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        content = torch_content(data, path, limit)
    except WantsCodeError:
        if not trust:
            raise
        content = _run(data, path)
    return LoadedFile(content=content, sha256=sha256)


def torch_content(data: memoryview, path: Path, max_bytes: int) -> object:
    """Return what the bytes of a torch file hold; its tensors lie in them.

    Raises:
        WantsCodeError: it takes code to know.
        CheckpointError: it is damaged, no torch file, or its tensors would take more than `max_bytes`.
    """
    try:
        return _content(data, path, max_bytes)
    except (ArchiveError, PickleError, ContentError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def default_max_bytes() -> int:
    """Return the most that a checkpoint may hold if nobody says: half of the memory that there is."""
    return total_memory() // 2


# --- the file ---------------------------------------------------------------------------------------------------------


def open_without_waiting(path: str, flags: int) -> int:
    """Open a file as `open` does, but no pipe is waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def is_file(path: Path) -> bool:
    """Return whether there is a file that may be looked at; False too for a path that the system takes for none.

    Path.is_file raises where a name is too long, or a folder of somebody else's is in the way.
    """
    return os.path.isfile(path)  # noqa: PTH113 - see above


def read_file(path: Path, max_bytes: int) -> memoryview:
    """Return the bytes of a file, read once into memory of our own.

    Raises:
        CheckpointError: it cannot be read, is too large, or changed meanwhile.
    """
    try:
        with open(path, "rb", buffering=0, opener=open_without_waiting) as file:  # Path.open has no opener
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise CheckpointError(f"{path}: expected a checkpoint, found a pipe, socket or device")
            check_size(before.st_size, path, max_bytes)
            data = torch.empty(before.st_size, dtype=torch.uint8).numpy().data  # as aligned as tensors have to be
            reached = 0
            while count := file.readinto(data[reached : reached + _CHUNK]):
                reached += count
            after = os.fstat(file.fileno())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if reached < len(data) or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise CheckpointError(f"{path}: changed while it was read; is it still being written?")
    return data


def check_size(size: int, path: Path, max_bytes: int) -> None:
    """Check that so many bytes may be read.

    Raises:
        CheckpointError: they may not.
    """
    if size > max_bytes:
        raise CheckpointError(
            f"{path}: holds {size:,} bytes, more than the {max_bytes:,} that a checkpoint may; "
            "allow it more with --max-bytes"
        )


# --- what is in it ----------------------------------------------------------------------------------------------------


def _content(data: memoryview, path: Path, max_bytes: int) -> object:
    """Return what a file holds.

    Raises:
        WantsCodeError: it takes code to know.
        CheckpointError, ArchiveError, PickleError, ContentError: it is damaged, or no torch file.
    """
    try:
        pickled, storages = _opened(data, path)
    except PickleError as error:
        _check_names(error.names, path)
        raise
    _check_names(pickled.names, path)
    try:
        return content_of(pickled, Tensors(storages, max_bytes))
    except WholeModuleError as error:
        raise _whole_network(str(error), path) from None


def _opened(data: memoryview, path: Path) -> tuple[Pickled, Mapping[str, memoryview]]:
    """Return the pickle in a file, and the bytes of its storages by key."""
    if is_legacy(data):
        return read_legacy(data)
    if not is_archive(data):
        raise CheckpointError(f"{path}: expected a file written by torch.save, found {_looks_like(data)}")
    if any(name.endswith("/constants.pkl") for name in record_names(data)):
        raise CheckpointError(
            f"{path}: expected a file written by torch.save, found a TorchScript archive (torch.jit.save); "
            "save the state dict of the module it was made from"
        )
    records = read_archive(data)
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{path}: expected a file written by torch.save, found another kind of zip archive")
    root = pickles[0].removesuffix("data.pkl")
    order = bytes(records.get(f"{root}byteorder", memoryview(b"little")))
    if order != b"little":
        raise CheckpointError(f"{path}: expected bytes in the order 'little', found {order[:20]!r}; save it again")
    within = f"{root}data/"
    storages = {name.removeprefix(within): data for name, data in records.items() if name.startswith(within)}
    pickled = read_pickle(records[pickles[0]])
    return pickled, storages


def _looks_like(data: memoryview) -> str:
    head = bytes(data[:4096])
    if not head:
        return "an empty file; is it still being written?"
    if head[:2] == b"PK":
        return "a zip archive that was cut short; is it still being written or copied?"
    if head[:1] == b"\x80":
        return "a bare pickle; load it and save what it holds with torch.save"
    if head[257:262] == b"ustar":
        return "a tar archive, torch's format of 2017; load and save it again with a recent torch"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # which may end within a character
    except UnicodeDecodeError:
        return "something else"
    return "text"


def _check_names(names: tuple[str, ...], path: Path) -> None:
    unwanted = [name for name in names if not is_harmless(name)]
    if not unwanted:
        return
    if all(name.startswith("torch.") for name in unwanted) and any(map(is_of_module, unwanted)):
        raise _whole_network(next(filter(is_of_module, unwanted)), path)
    more = f" and {len(unwanted) - _SHOWN_NAMES} more" if len(unwanted) > _SHOWN_NAMES else ""
    raise WantsCodeError(
        f"{path}: wants to run {', '.join(f'{name:.80}' for name in unwanted[:_SHOWN_NAMES])}{more} while loading, "
        f"which QBW never does; save it again with tensors, numbers and text only{_WAY_ROUND}"
    )


_WAY_ROUND: Final = (
    ", or name it with --trust-pickle too, which lets whoever wrote it do on this machine all that you can"
)


def _whole_network(name: str, path: Path) -> WantsCodeError:
    return WantsCodeError(
        f"{path}: holds a whole network ({name:.80}), which only its own code can read; "
        f"save its state_dict() instead{_WAY_ROUND}"
    )


# --- with the user's trust --------------------------------------------------------------------------------------------


def _run(data: memoryview, path: Path) -> object:
    """Return what pickle makes of a file that its user trusts; of a whole network, the weights."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch has to remark about old files is not for the user
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    except Exception as error:  # the file's own code may raise anything
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise CheckpointError(f"{path}: not loadable even by pickle ({type(error).__name__}: {first:.200})") from None
    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    for where, tensor in _tensors(content):
        _check_tensor(tensor, f"{path}: content{where:.160}")
    return content


def _tensors(content: object) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested containers with its place; a container met twice is walked once."""
    stack: list[tuple[str, object]] = [("", content)]
    seen: set[int] = set()
    while stack:
        where, value = stack.pop()
        if isinstance(value, Tensor):
            yield where, value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            stack.extend((f"{where}[{str(key)[:80]!r}]", item) for key, item in items)


def _check_tensor(tensor: Tensor, where: str) -> None:
    kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else str(tensor.layout)
    if not isinstance(tensor, Tensor) or kind != "torch.strided" or tensor.device.type != "cpu":
        raise CheckpointError(f"{where}: expected an ordinary tensor, found one that is {kind} on {tensor.device}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{where}: claims {tensor.numel()} elements, more than its storage holds")
