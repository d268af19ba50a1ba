"""A split: preprocessed samples in file order, and their fingerprint."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from qbw_eval.data.mapped import MappedFile
from qbw_eval.data.narrow import Form, Narrow, bytes_in, form_of, narrowed
from qbw_eval.memory import free_memory
from qbw_eval.nested import first_sample, for_each_tensor, places, samples, tensors_in

SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Split:
    """One preprocessed data split.

    Attributes:
        dataset: the source's name.
        name: train, validation or test.
        inputs: (N, ...) float32, images for instance (N, channels, height, width); or dicts, lists and tuples of such
            tensors, all of them with N samples.
        labels: (N,) int64, from 0.
        classes: how many classes the source has, where more than the labels tells.
        file: the file that the inputs lie in, where they were not read into memory of our own.
    """

    dataset: str
    name: str
    inputs: Any
    labels: Tensor
    classes: int | None = None
    file: MappedFile | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def first(self) -> Any:
        """A batch of the first sample."""
        return first_sample(self.inputs)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Channels, height, width; None where the inputs are no images (N, channels, height, width)."""
        if not isinstance(self.inputs, Tensor) or self.inputs.ndim != 4:
            return None
        channels, height, width = self.inputs.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """What the source says, or one more than the largest label."""
        return int(self.labels.max()) + 1 if self.classes is None else self.classes

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        """The narrowest forms of the inputs' tensors in order, and of the labels; all values are looked at, once."""
        return tuple(form_of(tensor) for tensor in tensors_in((self.inputs, self.labels)))

    @property
    def narrow_bytes(self) -> int:
        """How many bytes inputs and labels take in their narrowest forms."""
        tensors = tensors_in((self.inputs, self.labels))
        return sum(bytes_in(form, tensor) for form, tensor in zip(self.forms, tensors, strict=True))

    def narrowed(self, device: torch.device) -> tuple[Any, Narrow]:
        """Return inputs and labels in their narrowest forms on a device, a piece at a time."""
        forms = iter(self.forms)
        kept = for_each_tensor((self.inputs, self.labels), lambda tensor: narrowed(tensor, next(forms), device))
        return kept[0], kept[1]

    @cached_property
    def narrow_copy(self) -> tuple[Any, Narrow] | None:
        """The same in memory, made once for all checkpoints.

        None where the samples lie in a file, and may be more than memory holds, or where a copy would take more than a
        quarter of what is free.
        """
        cpu = torch.device("cpu")
        return self.narrowed(cpu) if self.file is None and self.narrow_bytes <= free_memory(cpu) // 4 else None

    def limited(self, limit: int | None) -> "Split":
        """Return the first `limit` samples, all where it is None or larger."""
        return replace(self, inputs=samples(self.inputs, slice(limit)), labels=self.labels[:limit])

    def check_unchanged(self) -> None:
        """Check that the samples are still those that were read.

        Raises:
            DataError: the file that they lie in has changed.
        """
        if self.file is not None:
            self.file.check_unchanged()

    def data_id(self) -> str:
        """Return the fingerprint of the preprocessed inputs and labels: places, shapes and values, in order."""
        hasher = hashlib.blake2b(digest_size=16)
        for place, tensor in [*places(self.inputs), ("", self.labels)]:
            hasher.update(f"{place}{tensor.dtype}{tuple(tensor.shape)}".encode())
            hasher.update(np.ascontiguousarray(tensor.numpy()).data)
        return hasher.hexdigest()
