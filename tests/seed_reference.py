"""The seed's network as a function of its checkpoint: torch's functions on the state dict, from the table of formulas.

Nothing of `qbw_eval` is used. The order of every operation is the formula's, so that results are to be equal exactly.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
CONVOLUTIONS = {"resnet18": 2, "resnet34": 2, "resnet50": 3, "resnet101": 3, "resnet152": 3}
"""In a block: 3x3, 3x3 with the stride on the first, or 1x1, 3x3, 1x1 with the stride on the second."""


def seed_logits(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    bitwidths: Mapping[str, int],
    inputs: Mapping[str, Mapping[str, Tensor]],
) -> Tensor:
    """Return the logits (N, classes) of a checkpoint of the seed, in evaluation.

    Args:
        state: `model_state_dict`. PACT's `alpha` may have any shape of one value, or one for every option.
        config: as a checkpoint holds it; read are `model_variant`, `location_names`, `modality_names`, `quantization`
            and `quantization_method`, the name of the method in it (not needed where `quantization.enable` is false).
        bitwidths: per quantized convolution; none where `quantization.enable` is false.
        inputs: location -> modality -> (N, channels, segments, bins).
    """
    of_locations = []
    for location in config["location_names"]:
        features = [
            _features(state, f"mod_loc_backbones.{location}.{modality}", config, bitwidths, inputs[location][modality])
            for modality in config["modality_names"]
        ]
        of_locations.append(torch.stack(features, dim=1).mean(dim=1))
    fused = torch.stack(of_locations, dim=1).mean(dim=1)
    embedded = F.relu(F.linear(fused, state["sample_embd_layer.0.weight"], state["sample_embd_layer.0.bias"]))
    return F.linear(embedded, state["class_layer.weight"], state["class_layer.bias"])


def _features(
    state: Mapping[str, Tensor], backbone: str, config: Mapping[str, Any], bitwidths: Mapping[str, int], x: Tensor
) -> Tensor:
    """Return what one backbone makes of its sensor's input, (N, features)."""
    x = F.conv2d(x, state[f"{backbone}.conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(F.relu(_norm(state, f"{backbone}.bn1", x)), 3, 2, 1)
    count = CONVOLUTIONS[config["model_variant"]]
    for stage, blocks in enumerate(BLOCKS[config["model_variant"]], start=1):
        for position in range(blocks):
            block = f"{backbone}.layer{stage}.{position}"
            stride = 2 if stage > 1 and position == 0 else 1
            y = x
            for number in range(1, count + 1):
                strides = stride if number == count - 1 else 1
                y = _conv(state, f"{block}.conv{number}", config, bitwidths, y, strides)
                y = _norm(state, f"{block}.bn{number}", y)
                y = F.relu(y) if number < count else y
            if f"{block}.shortcut.0.weight" in state:
                x = _conv(state, f"{block}.shortcut.0", config, bitwidths, x, stride)
                x = _norm(state, f"{block}.shortcut.1", x)
            x = F.relu(y + x)
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def _norm(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *parts)


def _conv(
    state: Mapping[str, Tensor],
    name: str,
    config: Mapping[str, Any],
    bitwidths: Mapping[str, int],
    x: Tensor,
    stride: int,
) -> Tensor:
    weight = state[f"{name}.weight"]
    padding = weight.shape[-1] // 2
    if not config["quantization"]["enable"]:
        return F.conv2d(x, weight, stride=stride, padding=padding)
    method, bits = config["quantization"][config["quantization_method"]], bitwidths[name]
    x = _activation(state, name, method, x, bits)
    return F.conv2d(x, _weight(state, name, method, weight, bits), stride=stride, padding=padding)


def _weight(state: Mapping[str, Tensor], name: str, method: Mapping[str, Any], w: Tensor, k: int) -> Tensor:
    if k == 32:
        return w
    n = 2**k - 1
    match method["weight_quantization"]:
        case "dorefa":
            t = torch.tanh(w)
            t = t / (2 * (t.abs().max() + 1e-8)) + 0.5
            w = 2 * torch.round(t * n) / n - 1
        case "lsq":
            s = _learned(state, f"{name}.quantize_w.step_size", method, k)
            w = torch.clamp(torch.round(w / s), -(2 ** (k - 1)), 2 ** (k - 1) - 1) * s
        case "lsqplus":
            s, z = (_learned(state, f"{name}.quantize_w.{part}", method, k) for part in ("step_size", "zp"))
            w = (torch.clamp(torch.round(w / s + z), 0, n) - z) * s
        case other:
            raise ValueError(other)
    if method.get("sat_weight_normalization") and w.std() > 0:
        w = w / w.std()
    return w


def _activation(state: Mapping[str, Tensor], name: str, method: Mapping[str, Any], x: Tensor, k: int) -> Tensor:
    n = 2**k - 1
    match method["activation_quantization"]:
        case "dorefa":
            x = torch.clamp(x, 0, 1)
            return x if k == 32 else torch.round(x * n) / n
        case _ if k == 32:
            return x
        case "pact":
            alpha = _learned(state, f"{name}.alpha", method, k)
            x = torch.minimum(torch.clamp(x, min=0), alpha)
            return torch.round(x * n / alpha) * alpha / n
        case "lsq":
            s = _learned(state, f"{name}.quantize_a.step_size", method, k)
            return torch.clamp(torch.round(x / s), 0, n) * s
        case "lsqplus":
            s, z = (_learned(state, f"{name}.quantize_a.{part}", method, k) for part in ("step_size", "zp"))
            return (torch.clamp(torch.round(x / s + z), 0, n) - z) * s
        case other:
            raise ValueError(other)


def _learned(state: Mapping[str, Tensor], key: str, method: Mapping[str, Any], k: int) -> Tensor:
    """Return the value for k bits: the option's, in the order in which the file lists the options, or the only one."""
    values = state[key].flatten()
    return values[list(method["bitwidth_options"]).index(k) if len(values) > 1 else 0]
