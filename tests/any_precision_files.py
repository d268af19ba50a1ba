"""Checkpoints in Any-Precision DNN's layout with random weights, written from a list of its keys and shapes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def _norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def _switchable(name: str, channels: int, options: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for bits in options:
        yield from _norm(f"{name}.bn_dict.{bits}", channels)


def resnet20q_shapes(width: int, channels: int, classes: int, options: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return key -> shape; the authors' has a width of 80."""
    shapes: dict[str, tuple[int, ...]] = {"conv0.weight": (width, channels, 3, 3)}
    inputs = width
    for block in range(9):
        outputs, name = width * (1, 2, 4)[block // 3], f"layers.{block}"
        shapes.update(_switchable(f"{name}.bn0", inputs, options))
        shapes[f"{name}.conv0.weight"] = (outputs, inputs, 3, 3)
        shapes.update(_switchable(f"{name}.bn1", outputs, options))
        shapes[f"{name}.conv1.weight"] = (outputs, outputs, 3, 3)
        if block in (3, 6):
            shapes[f"{name}.skip_conv.weight"] = (outputs, inputs, 1, 1)
            shapes.update(_norm(f"{name}.skip_bn", outputs))
        inputs = outputs
    shapes.update(_switchable("bn", inputs, options))
    return shapes | {"fc.weight": (classes, inputs), "fc.bias": (classes,)}


def resnet50q_shapes(width: int, channels: int, classes: int, options: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return key -> shape; the authors' has a width of 64."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (width, channels, 7, 7)}
    inputs = width
    for stage, count in ((1, 3), (2, 4), (3, 6), (4, 3)):
        middle, outputs = width * 2 ** (stage - 1), width * 2 ** (stage + 1)
        for position in range(count):
            name = f"layer{stage}.{position}"
            shapes.update(_switchable(f"{name}.bn0", inputs, options))
            shapes[f"{name}.conv0.weight"] = (middle, inputs, 1, 1)
            shapes.update(_switchable(f"{name}.bn1", middle, options))
            shapes[f"{name}.conv1.weight"] = (middle, middle, 3, 3)
            shapes.update(_switchable(f"{name}.bn2", middle, options))
            shapes[f"{name}.conv2.weight"] = (outputs, middle, 1, 1)
            if position == 0:
                shapes[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                shapes.update(_switchable(f"{name}.downsample.1", outputs, options))
            inputs = outputs
    shapes.update(_switchable("bn", inputs, options))
    return shapes | {"fc.weight": (classes, inputs), "fc.bias": (classes,)}


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Return weights that keep activations within a few units, and statistics and affine parameters that differ."""
    generator = torch.Generator().manual_seed(seed)

    def values(name: str, shape: tuple[int, ...]) -> Tensor:
        part = name.rpartition(".")[2]
        if part == "num_batches_tracked":
            return torch.tensor(7)
        if len(shape) > 1:
            return torch.randn(shape, generator=generator) * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        spread = torch.rand(shape, generator=generator)
        return spread + 0.5 if part in ("running_var", "weight") else spread - 0.3

    return {name: values(name, shape) for name, shape in shapes.items()}


def any_precision_content(
    *,
    model: str = "resnet20q",
    width: int = 4,
    channels: int = 3,
    classes: int = 5,
    options: Sequence[int] = (1, 2, 4, 8, 32),
    prefix: str = "",
    epoch: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Return what the authors' training loop saves after an epoch, counted from 1."""
    shapes = resnet20q_shapes if model == "resnet20q" else resnet50q_shapes
    state = random_state(shapes(width, channels, classes, options), seed)
    return {
        "epoch": epoch,
        "model": model,
        "state_dict": {prefix + name: tensor for name, tensor in state.items()},
        "best_prec1": 93.75,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.5, "params": [0, 1]}]},
    }


def save(content: object, path: Path) -> Path:
    """Write a checkpoint and return where."""
    torch.save(content, path)
    return path
