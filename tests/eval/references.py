"""Slow, obviously right twins of `qbw_eval`: NumPy in float64, from the table of formulas, sharing no code with it.

Arrays go in and out; nothing here knows torch's modules. `tanh` can be handed in, because NumPy's and torch's differ in
the last place and everything after it is to be compared exactly.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Tanh = Callable[[Floats], Floats]

# --- quantizers -----------------------------------------------------------------------------------------------------


def dorefa_weight_before_rounding(w: Floats, bits: int, tanh: Tanh = np.tanh) -> Floats:
    """Return t * n, with t = tanh(w) / (2 (max|tanh(w)| + 1e-8)) + 1/2 and n = 2**bits - 1."""
    t = tanh(w)
    t = t / (2 * (np.abs(t).max() + 1e-8)) + 0.5
    return t * (2.0**bits - 1)


def dorefa_weight(w: Floats, bits: int, tanh: Tanh = np.tanh) -> Floats:
    """2 round(t n) / n - 1; unchanged at 32 bits."""
    if bits == 32:
        return w
    return 2 * np.rint(dorefa_weight_before_rounding(w, bits, tanh)) / (2.0**bits - 1) - 1


def dorefa_scaled_weight_before_rounding(w: Floats, bits: int, tanh: Tanh = np.tanh) -> Floats:
    """As `dorefa_weight_before_rounding`, without the 1e-8."""
    t = tanh(w)
    return (t / (2 * np.abs(t).max()) + 0.5) * (2.0**bits - 1)


def dorefa_scaled_weight(w: Floats, bits: int, tanh: Tanh = np.tanh) -> Floats:
    """(2 round(t n) / n - 1) E with E = mean|w|; tanh(w) / max|tanh(w)| * E at 32 bits; all zeros stay zeros."""
    if not w.any():
        return np.zeros_like(w)
    e = math.fsum(np.abs(w).ravel()) / w.size
    if bits == 32:
        return tanh(w) / np.abs(tanh(w)).max() * e
    return (2 * np.rint(dorefa_scaled_weight_before_rounding(w, bits, tanh)) / (2.0**bits - 1) - 1) * e


def dorefa_activation(x: Floats, bits: int) -> Floats:
    """round(clamp(x, 0, 1) n) / n; only the clamp at 32 bits."""
    clamped = np.minimum(np.maximum(x, 0.0), 1.0)
    if bits == 32:
        return clamped
    n = 2.0**bits - 1
    return np.rint(clamped * n) / n


def pact_activation(x: Floats, alpha: float, bits: int) -> Floats:
    """round(clamp(x, 0, alpha) n / alpha) alpha / n; unchanged at 32 bits."""
    if bits == 32:
        return x
    n = 2.0**bits - 1
    return np.rint(np.minimum(np.maximum(x, 0.0), alpha) * n / alpha) * alpha / n


def lsq(x: Floats, step: float, bits: int, signed: bool) -> Floats:
    """clamp(round(x / s), qn, qp) s; unchanged at 32 bits."""
    if bits == 32:
        return x
    lowest, highest = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    return np.minimum(np.maximum(np.rint(x / step), lowest), highest) * step


def lsq_plus(x: Floats, step: float, zero_point: float, bits: int) -> Floats:
    """(clamp(round(x / s + z), 0, n) - z) s; unchanged at 32 bits."""
    if bits == 32:
        return x
    return (np.minimum(np.maximum(np.rint(x / step + zero_point), 0.0), 2.0**bits - 1) - zero_point) * step


def normalized_weight(w: Floats) -> Floats:
    """Weights over their standard deviation, unbiased; unchanged where there is no spread."""
    mean = math.fsum(w.ravel()) / w.size
    variance = math.fsum((w - mean).ravel() ** 2) / (w.size - 1) if w.size > 1 else 0.0
    return w / math.sqrt(variance) if variance > 0 else w


def quantized_weight(quantizer: str, w: Floats, bits: int, step: float, zero_point: float = 0.0) -> Floats:
    """The weights of a layer whose weight quantizer is called `quantizer`."""
    match quantizer:
        case "none":
            return w
        case "dorefa":
            return dorefa_weight(w, bits)
        case "dorefa_scaled":
            return dorefa_scaled_weight(w, bits)
        case "lsq":
            return lsq(w, step, bits, signed=True)
        case "lsqplus":
            return lsq_plus(w, step, zero_point, bits)
    raise ValueError(quantizer)


def quantized_activation(
    quantizer: str, weight_quantizer: str, x: Floats, bits: int, parameter: float, zero_point: float = 0.0
) -> Floats:
    """The input of a layer; `parameter` is PACT's alpha, or LSQ's or LSQ+'s step."""
    match quantizer:
        case "none":
            return x
        case "dorefa" if bits == 32 and weight_quantizer == "dorefa_scaled":
            return np.maximum(x, 0.0)  # Any-Precision DNN: relu, no clamp
        case "dorefa":
            return dorefa_activation(x, bits)
        case "pact":
            return pact_activation(x, parameter, bits)
        case "lsq":
            return lsq(x, parameter, bits, signed=False)
        case "lsqplus":
            return lsq_plus(x, parameter, zero_point, bits)
    raise ValueError(quantizer)


# --- layers and a whole network -------------------------------------------------------------------------------------


def conv2d(
    x: Floats,
    w: Floats,
    bias: Floats | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Floats:
    """A convolution, the sum over its kernel's taps: x (N, C, H, W), w (O, C / groups, KH, KW)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    outputs, channels, kernel_height, kernel_width = w.shape
    height = (x.shape[2] - dilation * (kernel_height - 1) - 1) // stride + 1
    width = (x.shape[3] - dilation * (kernel_width - 1) - 1) // stride + 1
    y = np.zeros((len(x), outputs, height, width))
    per_group = outputs // groups
    for group in range(groups):
        into = slice(group * per_group, (group + 1) * per_group)
        of = slice(group * channels, (group + 1) * channels)
        for top in range(kernel_height):
            for left in range(kernel_width):
                rows = slice(dilation * top, dilation * top + stride * height, stride)
                columns = slice(dilation * left, dilation * left + stride * width, stride)
                seen = x[:, of, rows, columns]
                y[:, into] += np.einsum("nchw,oc->nohw", seen, w[into, :, top, left])
    return y if bias is None else y + bias[:, None, None]


def batch_norm(x: Floats, state: Mapping[str, Floats], name: str) -> Floats:
    """A batch norm in evaluation: (x - mean) / sqrt(var + 1e-5) * weight + bias, per channel."""
    mean, var, weight, bias = (
        state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


RESNET8_LAYERS = (
    *("layer1.0.conv1", "layer1.0.conv2"),
    *("layer2.0.conv1", "layer2.0.conv2", "layer2.0.shortcut.0"),
    *("layer3.0.conv1", "layer3.0.conv2", "layer3.0.shortcut.0"),
)
"""In forward order."""


def resnet8(state: Mapping[str, Floats], x: Floats, bits: Sequence[int], options: Sequence[int]) -> Floats:
    """The logits of a ResNet-8 with DoReFa weights, switchable PACT activations and shared batch norm, in evaluation.

    Args:
        state: the state dict, in float64.
        x: (N, C, H, W).
        bits: per layer of `RESNET8_LAYERS`.
        options: what the entries of each `alpha` belong to.
    """
    bits_of = dict(zip(RESNET8_LAYERS, bits, strict=True))

    def conv(x: Floats, name: str, stride: int, padding: int) -> Floats:
        k = bits_of[name]
        alpha = 1.0 if k == 32 else float(state[f"{name}.alpha"][list(options).index(k)])
        return conv2d(
            pact_activation(x, alpha, k), dorefa_weight(state[f"{name}.weight"], k), stride=stride, padding=padding
        )

    x = np.maximum(batch_norm(conv2d(x, state["conv1.weight"], padding=1), state, "bn1"), 0)
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        block = f"layer{stage}.0"
        y = np.maximum(batch_norm(conv(x, f"{block}.conv1", stride, 1), state, f"{block}.bn1"), 0)
        y = batch_norm(conv(y, f"{block}.conv2", 1, 1), state, f"{block}.bn2")
        if stage > 1:
            x = batch_norm(conv(x, f"{block}.shortcut.0", stride, 0), state, f"{block}.shortcut.1")
        x = np.maximum(y + x, 0)
    return x.mean(axis=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def max_pool(x: Floats) -> Floats:
    """The largest of 3x3 pixels, every second row and column, borders included."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    height, width = (x.shape[2] - 3) // 2 + 1, (x.shape[3] - 3) // 2 + 1
    taps = [x[:, :, i : i + 2 * height : 2, j : j + 2 * width : 2] for i in range(3) for j in range(3)]
    return np.max(taps, axis=0)


@dataclass(frozen=True)
class Arithmetic:
    """What the networks below compute with: by default NumPy; a test hands in torch's operations in float32."""

    conv: Callable[[Any, Any, int, int], Any] = lambda x, w, stride, padding: conv2d(
        x, w, stride=stride, padding=padding
    )
    norm: Callable[[Any, Mapping[str, Any], str], Any] = batch_norm
    weight: Callable[[Any, int], Any] = dorefa_scaled_weight
    activation: Callable[[Any, int], Any] = lambda x, bits: quantized_activation(
        "dorefa", "dorefa_scaled", x, bits, math.nan
    )
    linear: Callable[[Any, Any, Any], Any] = lambda x, w, bias: x @ w.T + bias
    max_pool: Callable[[Any], Any] = max_pool
    average: Callable[[Any], Any] = lambda x: x.mean((2, 3))


def any_precision_resnet20(
    state: Mapping[str, Any], x: Any, bits: Mapping[str, int], options: Sequence[int], with_: Arithmetic | None = None
) -> Any:
    """The logits of Any-Precision DNN's resnet20q: a batch norm has the bits of the convolution that it feeds.

    The last one has those of the last convolution.

    Args:
        state: the state dict.
        x: (N, C, H, W).
        bits: per quantized convolution.
        options: the bits for which there are batch norms; the largest one's runs where 32 is not among them.
        with_: what to compute with.
    """
    a = with_ or Arithmetic()

    def activated(x: Any, norm: str, k: int) -> Any:
        return a.activation(a.norm(x, state, f"{norm}.bn_dict.{k if k in options else max(options)}"), k)

    x = a.conv(x, state["conv0.weight"], 1, 1)
    for block in range(9):
        name, stride = f"layers.{block}", 2 if block in (3, 6) else 1
        first, second = bits[f"{name}.conv0"], bits[f"{name}.conv1"]
        y = activated(x, f"{name}.bn0", first)
        if stride == 2:
            x = a.norm(a.conv(y, state[f"{name}.skip_conv.weight"], 2, 0), state, f"{name}.skip_bn")
        y = a.conv(y, a.weight(state[f"{name}.conv0.weight"], first), stride, 1)
        y = activated(y, f"{name}.bn1", second)
        x = a.conv(y, a.weight(state[f"{name}.conv1.weight"], second), 1, 1) + x
    last = bits["layers.8.conv1"]
    x = a.norm(x, state, f"bn.bn_dict.{last if last in options else max(options)}")
    return a.linear(x.mean(2).mean(2), state["fc.weight"], state["fc.bias"])


def any_precision_resnet50(
    state: Mapping[str, Any], x: Any, bits: Mapping[str, int], options: Sequence[int], with_: Arithmetic | None = None
) -> Any:
    """The logits of Any-Precision DNN's resnet50q; arguments and batch norms as in `any_precision_resnet20`.

    A shortcut's batch norm has the bits of the block's last convolution; the last activation those of the last of all.
    """
    a = with_ or Arithmetic()

    def norm(x: Any, name: str, k: int) -> Any:
        return a.norm(x, state, f"{name}.bn_dict.{k if k in options else max(options)}")

    x = a.max_pool(a.conv(x, state["conv1.weight"], 2, 3))
    for stage, count in enumerate((3, 4, 6, 3), start=1):
        for position in range(count):
            name, stride = f"layer{stage}.{position}", 2 if stage > 1 and position == 0 else 1
            y = x
            for index, (step, padding) in enumerate(((1, 0), (stride, 1), (1, 0))):
                k = bits[f"{name}.conv{index}"]
                y = a.activation(norm(y, f"{name}.bn{index}", k), k)
                y = a.conv(y, a.weight(state[f"{name}.conv{index}.weight"], k), step, padding)
            if position == 0:
                x = norm(a.conv(x, state[f"{name}.downsample.0.weight"], stride, 0), f"{name}.downsample.1", k)
            x = y + x
    k = bits["layer4.2.conv2"]
    return a.linear(a.average(a.activation(norm(x, "bn", k), k)), state["fc.weight"], state["fc.bias"])


# --- costs and counts -----------------------------------------------------------------------------------------------


def convolution_macs(
    input_shape: Sequence[int], weight_shape: Sequence[int], stride: int, padding: int, groups: int = 1
) -> int:
    """Multiply-accumulates of one sample, counted window by window; taps on the padding count."""
    channels, height, width = input_shape
    outputs, channels_per_group, kernel_height, kernel_width = weight_shape
    assert channels == channels_per_group * groups
    count = 0
    for _top in range(0, height + 2 * padding - kernel_height + 1, stride):
        for _left in range(0, width + 2 * padding - kernel_width + 1, stride):
            for _output in range(outputs):
                count += channels_per_group * kernel_height * kernel_width
    return count


def costs(bits: Sequence[int], weights: Sequence[int], macs: Sequence[int], largest: int) -> dict[str, Any]:
    """The costs of a configuration, bit by bit and as exact fractions."""
    stored = [b for b, count in zip(bits, weights, strict=True) for _ in range(count)]  # the bits of every weight
    total = sum(stored)
    operations = sum(m * b * b for m, b in zip(macs, bits, strict=True))
    return {
        "avg_bitwidth": float(Fraction(sum(bits), len(bits))),
        "weighted_avg_bitwidth": float(Fraction(total, len(stored))),
        "weight_bytes": math.ceil(Fraction(total, 8)),
        "relative_weight_bytes": math.ceil(Fraction(total, 8)) / math.ceil(Fraction(largest * len(stored), 8)),
        "bit_ops": operations,
        "relative_bit_ops": float(Fraction(operations, sum(m * largest * largest for m in macs))),
    }


def tally(logits: Floats, labels: NDArray[np.int64], reference: NDArray[np.int64] | None) -> dict[str, Any]:
    """What a configuration scored, sample by sample."""
    predicted, losses = [], []
    for row, label in zip(logits, labels, strict=True):
        if np.isnan(row).any():
            predicted.append(-1)
            losses.append(math.nan)
            continue
        predicted.append(int(row.argmax()))
        shifted = row - row.max()
        losses.append(math.log(math.fsum(np.exp(shifted))) - shifted[label])
    hits = np.array(predicted) == labels
    return {
        "correct": int(hits.sum()),
        "num_samples": len(labels),
        "loss": math.nan if any(map(math.isnan, losses)) else math.fsum(losses) / len(losses),
        "correct_mask": np.packbits(hits, bitorder="little").tobytes(),
        "agreement": None if reference is None else float(Fraction(int((predicted == reference).sum()), len(labels))),
    }


def runs_of_missing(count: int, chunk_size: int, done: Iterable[int]) -> list[list[int]]:
    """The indices below `count` that are not done, walked one by one: a new run after a gap and at each multiple."""
    done = set(done)
    runs: list[list[int]] = []
    for index in range(count):
        if index in done:
            continue
        if runs and runs[-1][-1] == index - 1 and index % chunk_size:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs
