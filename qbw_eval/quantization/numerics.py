"""From bits to levels to integers to values: fake quantization as plain functions on tensors.

Invariants of every quantizer here, for `bits` < 32:
    a k-bit tensor takes at most 2**k values, each an integer times one scale (DoReFa weights: an odd integer over n;
    LSQ+: an integer less a learned zero point, which need not be whole, times one scale);
    rounding is half to even; arithmetic is done in the dtype of the input, in the order of the published formula;
    gradients pass straight through the rounding (Bengio et al. 2013, arXiv 1308.3432), stopping where values clip.

     bits | levels 2**k | n = 2**k - 1 | LSQ weight      | LSQ activation | LSQ+, both
    ------|-------------|--------------|-----------------|----------------|-----------
        1 |           2 |            1 | (from 2 bits)   | (from 2 bits)  | 0 ..   1
        2 |           4 |            3 |   -2 ..   1     | 0 ..   3       | 0 ..   3
        4 |          16 |           15 |   -8 ..   7     | 0 ..  15       | 0 ..  15
        8 |         256 |          255 | -128 .. 127     | 0 .. 255       | 0 .. 255
       32 | not quantized
"""

import math
from typing import Any

import torch
from torch import Tensor

FULL_PRECISION = 32
"""At this bitwidth nothing is rounded."""

SMALLEST_SCALE = 1e-8
"""No learned scale (PACT's clipping value, LSQ's and LSQ+'s step) starts or is trained below this."""

_RANGES_TRIED = 32


def largest_integer(bits: int) -> int:
    """Return n = 2**bits - 1, the number of steps between the smallest and the largest level.

    >>> [largest_integer(bits) for bits in (1, 2, 4, 8)]
    [1, 3, 15, 255]
    """
    return (1 << bits) - 1


class _RoundStraightThrough(torch.autograd.Function):
    """Round half to even forwards, identity backwards; `x + (round(x) - x).detach()` would not round exactly."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(_ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]


class _ScaleGradient(torch.autograd.Function):
    """Identity forwards, multiplied by a number backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0] * ctx.factor, None


def round_straight_through(x: Tensor) -> Tensor:
    """Round half to even; the gradient is that of the identity."""
    rounded: Tensor = _RoundStraightThrough.apply(x)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return rounded


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return `x`; its gradient is multiplied by `factor`."""
    same: Tensor = _ScaleGradient.apply(x, factor)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return same


DOREFA_EPSILON = 1e-8
"""What the seed family adds to the largest |tanh(w)|: an all-zero tensor has none to divide by. The paper adds none."""


def dorefa_weight(weight: Tensor, bits: int, epsilon: float = DOREFA_EPSILON) -> Tensor:
    """Quantize weights to the odd integers -n, -n+2, ..., n over n (DoReFa-Net, arXiv 1606.06160, equation 9).

    Args:
        weight: any shape; the largest magnitude of tanh(weight) is taken over all of it.
        bits: 1 to 31; 32 returns `weight` itself.
        epsilon: what is added to that largest magnitude.

    Returns:
        The same shape, within [-1, 1].
    """
    if bits == FULL_PRECISION:
        return weight
    n = largest_integer(bits)
    t = torch.tanh(weight)
    t = t / (2 * (t.abs().max() + epsilon)) + 0.5
    return 2 * round_straight_through(t * n) / n - 1


def dorefa_scaled_weight(weight: Tensor, bits: int) -> Tensor:
    """Quantize weights as DoReFa does, times their mean magnitude (Any-Precision DNN, arXiv 1911.07346, section 3).

    Args:
        weight: any shape. All zeros stay zeros (the published formula would divide by zero).
        bits: 1 to 31; 32 normalizes and scales without rounding.

    Returns:
        The same shape, within [-E, E] where E = mean |weight|.
    """
    mean_magnitude = weight.abs().mean().detach()
    t = torch.tanh(weight)
    largest = t.abs().max()
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    if bits == FULL_PRECISION:
        return t / largest * mean_magnitude
    n = largest_integer(bits)
    t = t / (2 * largest) + 0.5
    return (2 * round_straight_through(t * n) / n - 1) * mean_magnitude


def dorefa_activation(x: Tensor, bits: int) -> Tensor:
    """Quantize activations to 0, 1/n, ..., 1 (DoReFa-Net, arXiv 1606.06160, section 2.4); 32 bits clamps only."""
    x = x.clamp(0, 1)
    if bits == FULL_PRECISION:
        return x
    n = largest_integer(bits)
    return round_straight_through(x * n) / n


def pact_activation(x: Tensor, alpha: Tensor, bits: int) -> Tensor:
    """Quantize activations to 0, alpha/n, ..., alpha with a learned clipping value (PACT, arXiv 1805.06085, section 3).

    The gradient of `alpha` is 1 where `x` is clipped and 0 elsewhere, as in equation 3 of the paper: the rounding is
    differentiated with respect to `x` alone.

    Args:
        x: any shape.
        alpha: one value, positive.
        bits: 1 to 31; 32 returns `x` itself, unclipped.
    """
    if bits == FULL_PRECISION:
        return x
    n = largest_integer(bits)
    clipped = torch.where(x >= alpha, alpha, torch.relu(x))  # `minimum` would halve the gradient where x == alpha
    scale = alpha.detach()
    return round_straight_through(clipped * n / scale) * scale / n


def lsq_bounds(bits: int, signed: bool) -> tuple[int, int]:
    """Return the smallest and the largest integer of LSQ: signed for weights, unsigned for activations.

    >>> lsq_bounds(4, signed=True), lsq_bounds(4, signed=False)
    ((-8, 7), (0, 15))
    """
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, largest_integer(bits))


def lsq(x: Tensor, step: Tensor, bits: int, signed: bool) -> Tensor:
    """Quantize to integer multiples of a learned step (LSQ, arXiv 1902.08153, equations 1 to 3).

    The gradient of `step` is scaled by 1 / sqrt(elements * largest integer) as in section 2.2 of the paper.

    Args:
        x: any shape.
        step: one value, positive.
        bits: 2 to 31; 32 returns `x` itself.
        signed: True for weights, False for activations.
    """
    if bits == FULL_PRECISION:
        return x
    smallest, largest = lsq_bounds(bits, signed)
    step = scale_gradient(step, 1 / math.sqrt(x.numel() * largest))
    # Clamping to integers before or after rounding is the same; before, the gradient stops at the bounds themselves.
    return round_straight_through((x / step).clamp(smallest, largest)) * step


def lsq_initial_step(mean_magnitude: Tensor, bits: int, signed: bool) -> Tensor:
    """Return LSQ's starting step 2 <|x|> / sqrt(largest integer) (arXiv 1902.08153, section 2.1)."""
    return 2 * mean_magnitude / math.sqrt(lsq_bounds(bits, signed)[1])


def lsq_plus(x: Tensor, step: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Quantize to 0..n, less a learned zero point, times a learned step (LSQ+, arXiv 2004.09576, section 3.1).

    (clamp(round(x / s + z), 0, n) - z) s, for weights and activations alike; -z s is the paper's offset. Straight
    through the rounding, the gradient of `zero_point` is 0 where `x` is not clipped and -s where it is. Those of `step`
    and `zero_point` are scaled by 1 / sqrt(elements * n), as LSQ's.

    Args:
        x: any shape.
        step: one value, positive.
        zero_point: one value, which need not be whole.
        bits: 1 to 31 (two levels anywhere make sense at 1 bit, unlike LSQ's -1 and 0); 32 returns `x` itself.
    """
    if bits == FULL_PRECISION:
        return x
    n = largest_integer(bits)
    factor = 1 / math.sqrt(x.numel() * n)
    step, zero_point = scale_gradient(step, factor), scale_gradient(zero_point, factor)
    levels = round_straight_through((x / step + zero_point).clamp(0, n))  # before or after rounding: as in `lsq`
    return (levels - zero_point) * step


def lsq_plus_initial_weight(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return LSQ+'s starting step and zero point of weights.

    The step is the paper's, max |mean ± 3 std| / 2**(bits - 1) (arXiv 2004.09576, on initialization). The zero point
    n / 2, with which levels lie evenly around zero, is ours: the paper has none for weights, whose signed integers
    leave one positive level at 2 bits and none at 1.
    """
    mean, std = weight.mean(), weight.std(correction=0)
    step = torch.maximum((mean - 3 * std).abs(), (mean + 3 * std).abs()) / 2 ** (bits - 1)
    return step.clamp(min=SMALLEST_SCALE), torch.full_like(step, largest_integer(bits) / 2)


def lsq_plus_initial_activation(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return LSQ+'s starting step and zero point of activations: those with the least squared error on `x`.

    The paper minimizes that error too (arXiv 2004.09576, on initialization); here over 32 ranges, shares of the one
    from the smallest to the largest value and zero.
    """
    n = largest_integer(bits)
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    candidates = []
    for part in range(1, _RANGES_TRIED + 1):
        share = part / _RANGES_TRIED
        step = ((high - low) * share / n).clamp(min=SMALLEST_SCALE)
        candidates.append((step, -low * share / step))
    errors = [(lsq_plus(x, step, zero_point, bits) - x).square().mean() for step, zero_point in candidates]
    return candidates[int(torch.stack(errors).argmin())]


def normalizing_std(weight: Tensor) -> Tensor:
    """Return what weight normalization divides quantized weights by: their standard deviation, without gradient.

    Unbiased, over all of `weight`; 1 where there is none (a single weight) or it is 0 or NaN. After SAT (arXiv
    1912.10207), without its factor of the square root of the outputs, as the seed's networks have it.
    """
    if weight.numel() < 2:
        return weight.new_ones(())
    std = weight.detach().std()
    return torch.where(std > 0, std, torch.ones_like(std))
