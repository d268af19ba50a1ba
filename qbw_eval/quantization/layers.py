"""Layers that run at the bitwidth set on them; they hold parameters and call `numerics`.

Invariants: `curr_bitwidth` is one of `bitwidth_options` or 32; weights and activations are quantized to the same bits;
biases are not quantized. Setting a bitwidth changes nothing but `curr_bitwidth`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbw_eval.quantization import numerics
from qbw_eval.quantization.numerics import FULL_PRECISION, SMALLEST_SCALE
from schemas.errors import UsageError

WeightQuantizer = Literal["none", "dorefa", "dorefa_scaled", "lsq", "lsqplus"]
ActivationQuantizer = Literal["none", "dorefa", "pact", "lsq", "lsqplus"]

_INITIAL_CLIPPING = 8.0
"""PACT's alpha before training; the paper starts it large and lets weight decay shrink it (section 3)."""


class BitwidthError(UsageError):
    """A layer was asked to run at a bitwidth that it does not offer."""


@dataclass(frozen=True, kw_only=True)
class Quantizers:
    """How a layer is quantized.

    Attributes:
        options: the bitwidths that a layer can run at besides 32, ascending.
        weight: the weight quantizer.
        activation: the quantizer of the layer's input.
        switchable: one clipping value (PACT), step (LSQ, LSQ+) and zero point (LSQ+) per option instead of one for all.
        weight_normalization: divide quantized weights by their standard deviation (`numerics.normalizing_std`).
        dorefa_epsilon: of `numerics.dorefa_weight`.
    """

    options: tuple[int, ...]
    weight: WeightQuantizer = "dorefa"
    activation: ActivationQuantizer = "dorefa"
    switchable: bool = False
    weight_normalization: bool = False
    dorefa_epsilon: float = numerics.DOREFA_EPSILON

    def __post_init__(self) -> None:
        if not self.options or list(self.options) != sorted(set(self.options)):
            raise BitwidthError(f"bitwidth options must ascend without repeats, found {list(self.options)}")
        smallest = 2 if "lsq" in (self.weight, self.activation) else 1
        wrong = [bits for bits in self.options if not smallest <= bits <= FULL_PRECISION]
        if wrong:
            raise BitwidthError(
                f"bitwidth options must lie between {smallest} and 32 for weights {self.weight!r} "
                f"and activations {self.activation!r}, found {wrong}"
            )


@dataclass(frozen=True, kw_only=True)
class ActivationGrid:
    """The integers 0..largest that activations become, and what they stand for.

    Attributes:
        largest: n = 2**bits - 1.
        clipping: the value that becomes n (DoReFa: 1, PACT: alpha); None where the step is learned instead (LSQ).
        unit: what one integer stands for, in float64.
    """

    largest: int
    clipping: float | None
    unit: float


class StepSize(nn.Module):
    """LSQ's learned steps: one for all options, or one per option."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.step_size = nn.Parameter(torch.ones(count))


class StepSizeAndZeroPoint(StepSize):
    """LSQ+'s learned steps and zero points."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.zp = nn.Parameter(torch.zeros(count))


_LEARNED = {"lsq": StepSize, "lsqplus": StepSizeAndZeroPoint}
"""What the quantizers learn that keep it in a module of its own."""


def _lsq_start(mean_magnitude: Tensor, bits: int, *, signed: bool) -> tuple[Tensor]:
    """Return LSQ's starting step; a layer may be fed nothing but zeros."""
    return (numerics.lsq_initial_step(mean_magnitude, bits, signed).clamp(min=SMALLEST_SCALE),)


class QuantizedLayer(nn.Module):
    """What `QuantConv2d` and `QuantLinear` share: the bitwidth, the quantizers and their parameters.

    Attributes:
        bitwidth_options: the bitwidths offered besides 32.
        curr_bitwidth: the bits of weights and activations in the next forward pass.
        layer_name: the module's path in its network; errors name it. Set by `bitwidths.name_layers`.
        alpha: (options,) or (1,), PACT's clipping values; absent for other quantizers.
        quantize_w, quantize_a: LSQ's steps, or LSQ+'s steps and zero points, of weights and activations; absent for
            other quantizers.
    """

    weight: Tensor

    def _set_up(self, quantizers: Quantizers) -> None:
        """Create the quantizers' parameters; called once by the subclass after its weights exist."""
        self.quantizers = quantizers
        self.bitwidth_options = quantizers.options
        self.curr_bitwidth = quantizers.options[-1]
        self.layer_name = ""
        count = len(quantizers.options) if quantizers.switchable else 1
        if quantizers.activation == "pact":
            self.alpha = nn.Parameter(torch.full((count,), _INITIAL_CLIPPING))
        if quantizers.weight in _LEARNED:
            self.quantize_w = _LEARNED[quantizers.weight](count)
            self.initialize_weight_steps()
        if quantizers.activation in _LEARNED:
            self.quantize_a = _LEARNED[quantizers.activation](count)

    def initialize_weight_steps(self) -> None:
        """Set LSQ's or LSQ+'s starting values from the weights; shared ones suit the fewest bits."""
        weight = self.weight.detach()
        if self.quantizers.weight == "lsq":
            self._start(self.quantize_w, partial(_lsq_start, weight.abs().mean(), signed=True))
        else:
            self._start(self.quantize_w, partial(numerics.lsq_plus_initial_weight, weight))

    def initialize_activation_steps(self, x: Tensor) -> None:
        """Set LSQ's or LSQ+'s starting values from a layer's input; shared ones suit the fewest bits."""
        if self.quantizers.activation == "lsq":
            self._start(self.quantize_a, partial(_lsq_start, x.abs().mean(), signed=False))
        else:
            self._start(self.quantize_a, partial(numerics.lsq_plus_initial_activation, x))

    def _start(self, learned: StepSize, initial: Callable[[int], tuple[Tensor, ...]]) -> None:
        """Set (options,) or (1,) values to what `initial` makes of each one's bits."""
        with torch.no_grad():
            for index, bits in enumerate(self.bitwidth_options[: len(learned.step_size)]):
                for values, value in zip(learned.parameters(), initial(min(bits, 31)), strict=True):
                    values[index] = value

    def set_bitwidth(self, bits: int) -> None:
        """Run at `bits` from now on.

        Raises:
            BitwidthError: `bits` is neither an option nor 32; names the layer, the value and the options.
        """
        # To Python True equals 1 and 4.0 equals 4, but neither is a bitwidth; NumPy's integers are.
        if isinstance(bits, bool | float) or bits not in (*self.bitwidth_options, FULL_PRECISION):
            raise BitwidthError(
                f"layer {self.layer_name or type(self).__name__!r}: bitwidth {bits!r} is not among its options "
                f"{list(self.bitwidth_options)} (or 32 for full precision)"
            )
        self.curr_bitwidth = int(bits)

    def quantize_weight(self) -> Tensor:
        """Return the weights at the current bitwidth, in the shape of `weight`."""
        rounded = self._rounded_weight()
        return rounded / numerics.normalizing_std(rounded) if self._normalizes else rounded

    @property
    def _normalizes(self) -> bool:
        return self.quantizers.weight_normalization and self.curr_bitwidth != FULL_PRECISION

    def _rounded_weight(self) -> Tensor:
        """Return the weights at the current bitwidth before normalization."""
        match self.quantizers.weight:
            case "dorefa":
                return numerics.dorefa_weight(self.weight, self.curr_bitwidth, self.quantizers.dorefa_epsilon)
            case "dorefa_scaled":
                return numerics.dorefa_scaled_weight(self.weight, self.curr_bitwidth)
            case "lsq":
                return numerics.lsq(self.weight, self._of_bitwidth(self.quantize_w.step_size), self.curr_bitwidth, True)
            case "lsqplus":
                return numerics.lsq_plus(self.weight, *self._step_and_zero_point(self.quantize_w), self.curr_bitwidth)
            case "none":
                return self.weight

    def quantize_activation(self, x: Tensor) -> Tensor:
        """Return the layer's input at the current bitwidth, in the shape of `x`."""
        match self.quantizers.activation:
            case "dorefa" if self.quantizers.weight == "dorefa_scaled" and self.curr_bitwidth == FULL_PRECISION:
                return torch.relu(x)  # Any-Precision DNN does not clamp at full precision; the seed family does
            case "dorefa":
                return numerics.dorefa_activation(x, self.curr_bitwidth)
            case "pact":
                return numerics.pact_activation(x, self._of_bitwidth(self.alpha), self.curr_bitwidth)
            case "lsq":
                return numerics.lsq(x, self._of_bitwidth(self.quantize_a.step_size), self.curr_bitwidth, False)
            case "lsqplus":
                return numerics.lsq_plus(x, *self._step_and_zero_point(self.quantize_a), self.curr_bitwidth)
            case "none":
                return x

    def weight_unit(self) -> float | None:
        """Return what one integer of the quantized weights stands for; None where they are no multiples of one value.

        In float64, from the very float32 values that `quantize_weight` computes with.
        """
        if self.curr_bitwidth == FULL_PRECISION:
            return None
        unit = self._rounded_weight_unit()
        if unit is None or not self._normalizes:
            return unit
        return unit / float(numerics.normalizing_std(self._rounded_weight()))

    def _rounded_weight_unit(self) -> float | None:
        match self.quantizers.weight:
            case "dorefa":
                return 1 / numerics.largest_integer(self.curr_bitwidth)
            case "dorefa_scaled":
                return float(self.weight.detach().abs().mean()) / numerics.largest_integer(self.curr_bitwidth)
            case "lsq":
                return float(self._of_bitwidth(self.quantize_w.step_size.detach()))
            case "lsqplus" | "none":
                return None  # LSQ+'s zero point need not be a whole number of steps

    def activation_grid(self) -> ActivationGrid | None:
        """Return the integers that `quantize_activation` rounds to; None where it does not, or not from zero (LSQ+)."""
        if self.curr_bitwidth == FULL_PRECISION:
            return None
        largest = numerics.largest_integer(self.curr_bitwidth)
        match self.quantizers.activation:
            case "dorefa":
                return ActivationGrid(largest=largest, clipping=1.0, unit=1 / largest)
            case "pact":
                alpha = float(self._of_bitwidth(self.alpha.detach()))
                return ActivationGrid(largest=largest, clipping=alpha, unit=alpha / largest)
            case "lsq":
                step = float(self._of_bitwidth(self.quantize_a.step_size.detach()))
                return ActivationGrid(largest=largest, clipping=None, unit=step)
            case "lsqplus" | "none":
                return None

    def activation_bounds(self) -> tuple[float, float] | None:
        """Return what `quantize_activation` clamps its input to where it does nothing else; None where it rounds.

        Minus or plus infinity is no bound.
        """
        if self.curr_bitwidth != FULL_PRECISION and self.quantizers.activation != "none":
            return None
        if self.quantizers.activation != "dorefa":
            return -math.inf, math.inf
        return 0.0, math.inf if self.quantizers.weight == "dorefa_scaled" else 1.0

    def _step_and_zero_point(self, learned: nn.Module) -> tuple[Tensor, Tensor]:
        assert isinstance(learned, StepSizeAndZeroPoint)
        return self._of_bitwidth(learned.step_size), self._of_bitwidth(learned.zp)

    def _of_bitwidth(self, values: Tensor) -> Tensor:
        """Return the value for the current bitwidth out of (options,) or (1,) values."""
        switchable = len(values) > 1 and self.curr_bitwidth in self.bitwidth_options
        return values[self.bitwidth_options.index(self.curr_bitwidth) if switchable else 0]


class QuantConv2d(QuantizedLayer, nn.Conv2d):
    """A convolution on quantized weights and inputs; full precision at 32 bits."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        quantizers: Quantizers,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        nn.Conv2d.__init__(
            self, in_channels, out_channels, kernel_size, stride=stride, padding=padding, groups=groups, bias=bias
        )
        self._set_up(quantizers)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name for the argument
        """Map (N, C_in, H, W) to (N, C_out, H_out, W_out)."""
        return self.run(self.quantize_activation(input), self.quantize_weight())

    def run(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return what the layer makes of inputs and weights that are quantized already."""
        output: Tensor = self._conv_forward(x, weight, self.bias)
        return output


class QuantLinear(QuantizedLayer, nn.Linear):
    """A linear layer on quantized weights and inputs; full precision at 32 bits."""

    def __init__(self, in_features: int, out_features: int, *, quantizers: Quantizers, bias: bool = True) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias=bias)
        self._set_up(quantizers)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name for the argument
        """Map (..., in_features) to (..., out_features)."""
        return self.run(self.quantize_activation(input), self.quantize_weight())

    def run(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return what the layer makes of inputs and weights that are quantized already."""
        return F.linear(x, weight, self.bias)


class SwitchableBatchNorm2d(nn.Module):
    """One batch norm per bitwidth (Any-Precision DNN, arXiv 1911.07346, section 3.3), keys `bn_dict.<bits>`.

    Which one runs is read from a quantized layer, `source`: the one that it normalizes for, before or behind it. Where
    that runs at 32 bits and 32 is no option, nothing was learned for 32 and the largest option's batch norm runs.
    """

    def __init__(self, num_features: int, source: QuantizedLayer) -> None:
        super().__init__()
        self.bn_dict = nn.ModuleDict({str(bits): nn.BatchNorm2d(num_features) for bits in source.bitwidth_options})
        # In a tuple, because nn.Module would register it as our child and double it in the state dict.
        self._source: Sequence[QuantizedLayer] = (source,)

    @property
    def bitwidth_sources(self) -> Sequence[QuantizedLayer]:
        """The layers whose bits decide what this module does; engines that skip work ask every module for it."""
        return self._source

    def batch_norm_at(self, bits: int) -> nn.BatchNorm2d:
        """Return the batch norm that runs where the source layer runs at `bits`."""
        options = self._source[0].bitwidth_options
        found = self.bn_dict[str(bits if bits in options else options[-1])]
        assert isinstance(found, nn.BatchNorm2d)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W) with the statistics of the source layer's bitwidth."""
        normalized: Tensor = self.batch_norm_at(self._source[0].curr_bitwidth)(x)
        return normalized


class QuantActivation(nn.Module):
    """What a quantized layer makes of its input, where somebody else reads that too; has no bits of its own."""

    def __init__(self, source: QuantizedLayer) -> None:
        super().__init__()
        self._source: Sequence[QuantizedLayer] = (source,)  # in a tuple, as in SwitchableBatchNorm2d

    @property
    def bitwidth_sources(self) -> Sequence[QuantizedLayer]:
        """The layer whose bits decide what this module does."""
        return self._source

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` as `source` quantizes it at its current bitwidth."""
        return self._source[0].quantize_activation(x)
