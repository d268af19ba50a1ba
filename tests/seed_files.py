"""Checkpoints, samples and configurations as the seed's training code leaves them, written from a list of its keys."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from any_precision_files import random_state
from torch import Tensor

BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
SENSORS: Mapping[str, Mapping[str, int]] = {"shake": {"seismic": 2, "audio": 2}}


def _norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def _backbone(variant: str, width: int, channels: int) -> tuple[dict[str, tuple[int, ...]], int]:
    """Return key -> shape of one backbone, and how many features it makes."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (width, channels, 7, 7), **dict(_norm("bn1", width))}
    wide = 1 if variant in ("resnet18", "resnet34") else 4
    inputs = width
    for stage, count in enumerate(BLOCKS[variant]):
        middle = width * 2**stage
        for position in range(count):
            name = f"layer{stage + 1}.{position}"
            kernels = (3, 3) if wide == 1 else (1, 3, 1)
            sizes = [inputs, *[middle] * (len(kernels) - 1), middle * wide]
            for number, kernel in enumerate(kernels, start=1):
                shapes[f"{name}.conv{number}.weight"] = (sizes[number], sizes[number - 1], kernel, kernel)
                shapes.update(_norm(f"{name}.bn{number}", sizes[number]))
            if position == 0 and (stage > 0 or inputs != middle * wide):
                shapes[f"{name}.shortcut.0.weight"] = (middle * wide, inputs, 1, 1)
                shapes.update(_norm(f"{name}.shortcut.1", middle * wide))
            inputs = middle * wide
    return shapes, inputs


def seed_state(
    variant: str,
    *,
    sensors: Mapping[str, Mapping[str, int]] = SENSORS,
    width: int = 4,
    fc_dim: int = 6,
    classes: int = 5,
    options: Sequence[int] = (2, 4, 8),
    weight: str | None = "dorefa",
    activation: str | None = "pact",
    switchable: bool = True,
    later: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return a state dict with random weights and scales; `later`: as later versions of the seed keep LSQ's steps."""
    shapes: dict[str, tuple[int, ...]] = {}
    features = 0
    for location, modalities in sensors.items():
        for modality, channels in modalities.items():
            backbone, features = _backbone(variant, width, channels)
            shapes |= {f"mod_loc_backbones.{location}.{modality}.{key}": shape for key, shape in backbone.items()}
    shapes |= {"sample_embd_layer.0.weight": (fc_dim, features), "sample_embd_layer.0.bias": (fc_dim,)}
    shapes |= {"class_layer.weight": (classes, fc_dim), "class_layer.bias": (classes,)}
    state = random_state(shapes, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    count = len(options)
    for name in [
        name for name, shape in shapes.items() if len(shape) == 4 and not name.endswith((".conv1.weight",))
    ] + [name for name in shapes if name.endswith(".conv1.weight") and ".layer" in name]:
        layer = name.removesuffix(".weight")
        if activation == "pact":
            values = 0.5 + 2 * torch.rand(count if switchable else 1, generator=generator)
            state[f"{layer}.alpha"] = values.view(-1, 1, 1, 1)
        for part, kind, magnitude in (("quantize_w", weight, 0.05), ("quantize_a", activation, 0.2)):
            if kind in ("lsq", "lsqplus"):
                shape = (count, 1) if later else (1,)
                state[f"{layer}.{part}.step_size"] = magnitude * (0.5 + torch.rand(shape, generator=generator))
                if kind == "lsqplus":
                    state[f"{layer}.{part}.zp"] = 2 * torch.rand(shape, generator=generator) - 1
                if later:
                    state[f"{layer}.{part}.initialized"] = torch.ones(count, dtype=torch.bool)
    return state


def seed_config(
    variant: str = "resnet18",
    *,
    sensors: Mapping[str, Mapping[str, int]] = SENSORS,
    fc_dim: int = 6,
    classes: int = 5,
    options: Sequence[int] = (2, 4, 8),
    weight: str = "dorefa",
    activation: str = "pact",
    switchable: bool = True,
    sat: bool = False,
    enable: bool = True,
    index_files: Mapping[str, str] | None = None,
    normalization: str = "standard",
) -> dict[str, Any]:
    """Return the configuration of a training: the YAML, and the command line's words."""
    method = {
        "bitwidth_options": list(options),
        "weight_quantization": weight,
        "activation_quantization": activation,
        "training_method": "joint_quantization",
        "validation_function": "random_bitwidths",
        "switchable_clipping": switchable,
        "sat_weight_normalization": sat,
        "joint_quantization_batch_size": 2,
        "Conv": "QuanConv",
    }
    indexes = index_files or {split: f"/elsewhere/{split}_index.txt" for split in ("train", "val", "test")}
    return {
        "model": "ResNet",
        "model_variant": variant,
        "yaml_path": "/elsewhere/Parkland.yaml",
        "device": "cuda:0",
        "location_names": list(sensors),
        "modality_names": list(next(iter(sensors.values()))),
        "loc_mod_in_freq_channels": {loc: dict(modalities) for loc, modalities in sensors.items()},
        "loc_mod_spectrum_len": {loc: dict.fromkeys(modalities, 20) for loc, modalities in sensors.items()},
        "vehicle_classification": {
            "num_classes": classes,
            "class_names": [f"vehicle {number}" for number in range(classes)],
            **{f"{split}_index_file": file for split, file in indexes.items()},
        },
        "fc_dim": fc_dim,
        "num_segments": 4,
        "batch_size": 16,
        "num_workers": 4,
        "normalization": {"method": normalization, "minmax_range": [0, 1]},
        "quantization": {"enable": enable, "any_precision": method, "random_bitwidths": {"number_of_configs": 5}},
        "quantization_method": "any_precision" if enable else None,
        "ResNet": {
            "dropout_ratio": 0.2,
            "optimizer": {"name": "AdamW", "start_lr": 0.003, "weight_decay": 0.05},
            "lr_scheduler": {"name": "cosine", "train_epochs": 3},
        },
        "mixup": {"prob": 1.0, "mode": "random_batch"},
    }


def seed_content(state: Mapping[str, Tensor], config: Mapping[str, Any], *, epoch: int = 9) -> dict[str, Any]:
    """Return what the seed's training loop saves after an epoch, counted from 0."""
    return {
        "epoch": epoch,
        "model_state_dict": dict(state),
        "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 0.001, "params": [0, 1]}]},
        "val_acc": np.float64(0.625),
        "val_loss": np.float32(1.5),
        "config": dict(config),
        "quantization_method": config["quantization_method"],
    }


def write_samples(
    folder: Path,
    counts: Mapping[str, int],
    *,
    sensors: Mapping[str, Mapping[str, int]] = SENSORS,
    lengths: Mapping[str, int] | None = None,
    segments: int = 4,
    classes: int = 5,
    seed: int = 0,
) -> dict[str, str]:
    """Write samples of learnable classes and an index for every split; return split -> index file.

    Each sensor's signal is (channels / 2, segments, length): a wave whose frequency is the class's, and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    indexes = {}
    for split, count in counts.items():
        lines = []
        for number in range(count):
            label = number % classes
            data: dict[str, dict[str, Tensor]] = {}
            for location, modalities in sensors.items():
                data[location] = {}
                for modality, channels in modalities.items():
                    length = (lengths or {}).get(modality, 20)
                    time = torch.arange(length) / length
                    wave = torch.sin(2 * torch.pi * (label + 1) * time + 6 * torch.rand(1, generator=generator))
                    noise = 0.3 * torch.randn((channels // 2, segments, length), generator=generator)
                    data[location][modality] = 3 * (wave + noise) + 1
            path = folder / split / f"sample_{number:04d}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"data": data, "label": {"vehicle_type": torch.tensor(label)}}, path)
            lines.append(str(path))
        index = folder / f"{split}_index.txt"
        index.write_text("\n".join(lines) + "\n")
        indexes[split] = str(index)
    return indexes
