"""Where samples come from: digits, a tensor file, a folder of images, an index of samples, or a user's own function.

A split is preprocessed here, whole and in file order, and fingerprinted after that: two evaluations on differently
preprocessed inputs can never be taken for the same thing.
"""

from pathlib import Path

import numpy as np
import torch

from qbw_eval.data.errors import DataError
from qbw_eval.data.factory import read_factory
from qbw_eval.data.image_folder import read_image_folder
from qbw_eval.data.sample_index import read_sample_index
from qbw_eval.data.split import Split, SplitName
from qbw_eval.data.tensor_file import read_tensor_file
from qbw_eval.settings.data import DataSettings
from schemas.errors import UsageError

_DIGITS_SPLITS = {"train": (0, 1000), "validation": (1000, 1797)}
"""Sample ranges after the shuffle: 797 validation samples put the 95% sampling noise of 0.98 at one point."""


def load_split(
    settings: DataSettings, name: SplitName, *, limit: int | None = None, beside: Path | None = None
) -> Split:
    """Return a preprocessed split.

    Args:
        settings: the source, and where it is.
        name: which split.
        limit: how many of the first samples will be used (None: all); where each costs time, no more are read.
        beside: the folder in which what was fitted on the training samples is kept for later; None to keep nothing.

    Raises:
        CheckpointError: a file cannot be read safely.
        DataError: the source does not have it, or what it has is not inputs and labels.
        UsageError: the split was never named in the experiment file, or the user's own function fails.
    """
    if settings.source == "digits":
        return _digits(name)
    if settings.source == "factory":
        inputs, labels = read_factory(settings, name, limit)
        return Split(dataset=str(settings.factory), name=name, inputs=inputs, labels=labels)
    named = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    paths = {split: Path(path) for split, path in named.items() if path is not None}
    if name not in paths:
        what = "folder" if settings.source == "image_folder" else "file"
        raise UsageError(f"data.{name}: the experiment names no {what} for the split {name!r}; add it, or use --split")
    if settings.source == "image_folder":
        inputs, labels, classes = read_image_folder(settings, name, paths, limit)
        return Split(dataset=paths[name].name, name=name, inputs=inputs, labels=labels, classes=classes)
    if settings.source == "sample_index":
        values, labels = read_sample_index(settings, name, paths, limit, beside)
        return Split(dataset=paths[name].stem, name=name, inputs=values, labels=labels)
    return read_tensor_file(paths[name], name)


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
