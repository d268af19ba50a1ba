"""Where samples come from: scikit-learn's handwritten digits, a tensor file, or a folder of images per class.

A split is preprocessed here, whole and in file order, and fingerprinted after that: two evaluations on differently
preprocessed inputs can never be taken for the same thing.
"""

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qbw_eval.checkpoints.safe_load import load_torch_file
from qbw_eval.checkpoints.safetensors_file import load_safetensors
from qbw_eval.data.errors import DataError
from qbw_eval.data.image_folder import read_image_folder
from qbw_eval.data.labels import MOST_CLASSES, class_numbers
from qbw_eval.data.split import Split, SplitName
from qbw_eval.settings.data import TENSOR_FILES, DataSettings
from schemas.errors import UsageError

_DIGITS_SPLITS = {"train": (0, 1000), "validation": (1000, 1797)}
"""Sample ranges after the shuffle: 797 validation samples put the 95% sampling noise of 0.98 at one point."""

_INPUT_NAMES, _LABEL_NAMES = ("inputs", "x", "images", "data"), ("labels", "y", "targets", "target")


def load_split(settings: DataSettings, name: SplitName, *, limit: int | None = None) -> Split:
    """Return a preprocessed split.

    Args:
        settings: the source, and where it is.
        name: which split.
        limit: how many of the first samples will be used (None: all); where each costs time, no more are read.

    Raises:
        DataError: the source does not have it, or what it has is not inputs and labels.
        UsageError: the split was never named in the experiment file.
    """
    if settings.source == "digits":
        return _digits(name)
    named = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    paths = {split: Path(path) for split, path in named.items() if path is not None}
    if name not in paths:
        what = "folder" if settings.source == "image_folder" else "file"
        raise UsageError(f"data.{name}: the experiment names no {what} for the split {name!r}; add it, or use --split")
    if settings.source == "image_folder":
        inputs, labels, classes = read_image_folder(settings, name, paths, limit)
        return Split(dataset=paths[name].name, name=name, inputs=inputs, labels=labels, classes=classes)
    return _tensor_file(paths[name], name)


def _digits(name: SplitName) -> Split:
    """Return scikit-learn's 8x8 handwritten digits (1,797), standardized with the training split's mean and std."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("data.source: 'digits' needs scikit-learn; install it with: pip install 'qbw[demo]'") from None
    if name not in _DIGITS_SPLITS:
        raise UsageError(f"--split: 'digits' has the splits {sorted(_DIGITS_SPLITS)}, not {name!r}")
    digits = load_digits()
    images, labels = torch.from_numpy(digits.images).float(), torch.from_numpy(digits.target).long()
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(labels))  # PCG64's stream never changes
    images, labels = images[order].unsqueeze(1), labels[order]
    first, last = _DIGITS_SPLITS["train"]
    mean, std = images[first:last].mean(), images[first:last].std()
    first, last = _DIGITS_SPLITS[name]
    return Split(
        dataset="digits", name=name, inputs=((images[first:last] - mean) / std).contiguous(), labels=labels[first:last]
    )


def _tensor_file(path: Path, name: SplitName) -> Split:
    """Return the split in a file of tensors that holds inputs (N, C, H, W) and labels under their usual names.

    Labels are (N,) class numbers or (N, classes) one-hot.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; data.{name} must name a {TENSOR_FILES} file with inputs and labels")
    match path.suffix:
        case ".pt":
            content = load_torch_file(path).content
        case ".npz":
            content = _read_npz(path)
        case ".safetensors":
            content = load_safetensors(path).content
        case other:
            raise DataError(f"{path}: data.{name} must be a {TENSOR_FILES} file, found {other or 'no suffix'!r}")
    if isinstance(content, (tuple, list)) and len(content) == 2:
        content = {"inputs": content[0], "labels": content[1]}
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: expected a dict with 'inputs' and 'labels', found {type(content).__name__}")
    inputs, labels = (_named(content, names, path) for names in (_INPUT_NAMES, _LABEL_NAMES))
    return Split(dataset=path.stem, name=name, inputs=_as_inputs(inputs, path), labels=_as_labels(labels, inputs, path))


def _named(content: Mapping[object, object], names: tuple[str, ...], path: Path) -> Tensor:
    for name in names:
        value = content.get(name)
        if isinstance(value, Tensor):
            return value
    listed = f"{', '.join(names[:-1])} or {names[-1]}"
    raise DataError(f"{path}: holds {sorted(map(str, content))}, but no tensor named {listed}")


def _as_inputs(inputs: Tensor, path: Path) -> Tensor:
    if inputs.ndim != 4 or inputs.numel() == 0:
        raise DataError(f"{path}: inputs have shape {tuple(inputs.shape)}; expected (samples, channels, height, width)")
    if inputs.dtype == torch.uint8:
        return inputs.float() / 255
    if not inputs.is_floating_point():
        raise DataError(
            f"{path}: inputs are {inputs.dtype}; expected floating point, or uint8 (which is divided by 255)"
        )
    inputs = inputs.float().contiguous()
    if not bool(inputs.isfinite().all()):
        raise DataError(
            f"{path}: {int((~inputs.isfinite()).sum())} input values are NaN or infinite; remove those samples"
        )
    return inputs


def _as_labels(labels: Tensor, inputs: Tensor, path: Path) -> Tensor:
    one_hot = labels.ndim == 2 and len(labels) == len(inputs)
    numbers = class_numbers(labels, str(path)) if one_hot else labels
    if numbers.shape != inputs.shape[:1] or numbers.is_floating_point() or numbers.is_complex():
        raise DataError(
            f"{path}: labels are {labels.dtype} of shape {tuple(labels.shape)}; "
            f"expected one whole number, or one one-hot row, for each of the {len(inputs)} inputs"
        )
    labels = numbers.long().contiguous()
    if int(labels.max()) >= MOST_CLASSES:
        raise DataError(
            f"{path}: the largest label is {int(labels.max())}; expected fewer than {MOST_CLASSES:,} classes"
        )
    if int(labels.min()) < 0:
        raise DataError(f"{path}: the smallest label is {int(labels.min())}; classes count from 0")
    return labels


def _read_npz(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a .npz file; never unpickles, and never allocates what only a header claims."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            # Deflated images shrink tenfold at best; a thousandfold is a bomb.
            if unpacked > 100 * path.stat().st_size + 2**20:
                raise DataError(f"{path}: claims {unpacked} bytes in a file of {path.stat().st_size}; refused")
            arrays = {}
            for member in members:
                with archive.open(member) as file:
                    arrays[member.filename.removesuffix(".npy")] = _read_npy(file.read(), f"{path}: {member.filename}")
            return arrays
    except DataError:
        raise
    except Exception as error:  # zipfile and its decompressors raise nearly anything on crafted bytes
        raise DataError(f"{path}: not a readable .npz file ({error})") from None


def _read_npy(data: bytes, where: str) -> Tensor:
    """Return the array in the bytes of a .npy file, which must be exactly as long as its header says."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(stream)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
            raise DataError(f"{where}: its header says {dtype} of shape {shape}, which does not fit its size; refused")
        array = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran_order else "C")
        return torch.from_numpy(array.astype(dtype.newbyteorder("=")))  # astype copies: the buffer is read-only
    except DataError:
        raise
    except Exception as error:  # NumPy has Python parse the header, which fails in many ways on a crafted one
        raise DataError(f"{where}: not a readable array ({error})") from None
