"""A file of tensors that holds inputs and labels under their usual names -> a split.

A large file of float32 inputs is mapped: its values are used where they lie, and looked at some at a time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from qbw_eval.checkpoints.safe_load import default_max_bytes, is_file, load_torch_file, torch_content
from qbw_eval.checkpoints.safetensors_file import load_safetensors, safetensors_places
from qbw_eval.data.errors import DataError
from qbw_eval.data.inputs import checked_inputs, is_inputs
from qbw_eval.data.labels import checked_labels
from qbw_eval.data.mapped import MappedFile
from qbw_eval.data.npz_file import map_npz, read_npz
from qbw_eval.data.split import Split, SplitName
from qbw_eval.nested import tensors_in
from qbw_eval.settings.data import TENSOR_FILES

_INPUT_NAMES: Final = ("inputs", "x", "images", "data")
_LABEL_NAMES: Final = ("labels", "y", "targets", "target")


def read_tensor_file(path: Path, name: SplitName) -> Split:
    """Return the split in a file of tensors.

    Inputs are (N, C, H, W), or in .pt files dicts, lists and tuples of tensors (N, ...); labels are (N,) class numbers
    or (N, classes) one-hot.

    Raises:
        CheckpointError: the file cannot be read safely.
        DataError: there is no such file, or it holds something else.
    """
    if not is_file(path):
        raise DataError(f"{path}: no such file; data.{name} must name a {TENSOR_FILES} file with inputs and labels")
    file = MappedFile.of(path)
    content = None if file is None else _mapped(file)
    if file is not None and content is not None:
        split = _split(content, path, name, file)
        if file.is_unchanged():
            return split
        # Somebody wrote into it after all, so what was checked may not be what is there: once more, into memory.
    return _split(_read(path), path, name)


def _read(path: Path) -> object:
    """Return what a file holds, in memory of our own."""
    match path.suffix:
        case ".pt":
            return load_torch_file(path).content
        case ".npz":
            return read_npz(path)
        case ".safetensors":
            return load_safetensors(path).content
        case other:
            raise DataError(f"{path}: expected a {TENSOR_FILES} file, found {other or 'no suffix'!r}")


def _mapped(file: MappedFile) -> object | None:
    """Return what a mapped file holds; None where it takes reading."""
    match file.path.suffix:
        case ".safetensors":
            places = safetensors_places(file.memory, file.path)
            return {name: file.tensor(place.dtype, place.shape, place.first) for name, place in places.items()}
        case ".npz":
            return map_npz(file)
        case ".pt":
            return torch_content(memoryview(file.memory), file.path, max(file.size, default_max_bytes()))
        case _:
            return None


def _split(content: object, path: Path, name: SplitName, file: MappedFile | None = None) -> Split:
    """Return the split in the content of a file, which is told to it where tensors lie in its memory."""
    if isinstance(content, (tuple, list)) and len(content) == 2:
        content = {"inputs": content[0], "labels": content[1]}
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: expected a dict with 'inputs' and 'labels', found {type(content).__name__}")
    inputs, labels = (_named(content, names, path) for names in (_INPUT_NAMES, _LABEL_NAMES))
    if not isinstance(labels, Tensor):
        raise DataError(f"{path}: labels are in a {type(labels).__name__}; expected one tensor")
    if isinstance(inputs, Tensor) and (inputs.ndim != 4 or inputs.numel() == 0):
        raise DataError(f"{path}: inputs have shape {tuple(inputs.shape)}; expected (samples, channels, height, width)")
    checked = checked_inputs(inputs, str(path))
    tensors = tensors_in(checked)
    is_there = file is not None and any(map(file.holds, tensors))
    return Split(
        dataset=path.stem,
        name=name,
        inputs=checked,
        labels=checked_labels(labels, len(tensors[0]), str(path)),
        file=file if is_there else None,
    )


def _named(content: Mapping[object, object], names: tuple[str, ...], path: Path) -> Any:
    for name in names:
        value = content.get(name)
        if is_inputs(value):
            return value
    listed = f"{', '.join(names[:-1])} or {names[-1]}"
    raise DataError(f"{path}: holds {sorted(map(str, content))}, but no tensor named {listed}")
