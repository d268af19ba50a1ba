"""Convolutions of integers one by one: how far each is from what the card can do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.ceilings import Ceilings
from benchmarks.figures import Figure
from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.engine.convolutions import Affine, Arithmetic, LayerConvolution, SplitOf
from qbw_eval.engine.integer import IntegerEngine
from qbw_eval.engine.packing import Halves, Split
from qbw_eval.quantization.layers import ActivationGrid, QuantConv2d, QuantLinear

Clock = Callable[[Callable[[], object]], float]
"""Does something a few times; returns the seconds of one."""

_LEVELS = ActivationGrid(largest=255, clipping=1.0, unit=1 / 255)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One layer's convolution in a forward pass.

    Attributes:
        layer: its name.
        shape: of input, weights and output, for people.
        operations: two a multiply-accumulate.
        moved: bytes that `bare` reads and writes at least: images, weights and result, each once.
        bare: seconds of the convolution that rounds its result to uint8, whatever the network does with it.
        whole: seconds with what the network has follow it in the same launch: a sum is read, float32 may be written.
    """

    layer: str
    shape: str
    operations: int
    moved: int
    bare: float
    whole: float


class TimedArithmetic:
    """An arithmetic (`convolutions.Arithmetic`) whose convolutions are timed when they run; results are its own.

    Args:
        arithmetic: what convolves.
        clock: what times a convolution.

    Attributes:
        launches: what has been timed.
    """

    def __init__(self, arithmetic: Arithmetic, clock: Clock) -> None:
        self.passes = arithmetic.passes
        self.most_bits = arithmetic.most_bits
        self.launches: list[Launch] = []
        self._arithmetic = arithmetic
        self._clock = clock

    def why_not(self, devices: Sequence[torch.device]) -> str | None:
        """Return why it cannot be trusted; None where it can."""
        return self._arithmetic.why_not(devices)

    def split(self, integers: Tensor, largest_activation: int, groups: int) -> Split | Halves | str:
        """Return integer weights in parts; or why there are none."""
        return self._arithmetic.split(integers, largest_activation, groups)

    def of_layer(self, layer: QuantConv2d | QuantLinear, split_of: SplitOf) -> LayerConvolution:
        """Return what convolves for a layer, and is timed."""
        convolution = self._arithmetic.of_layer(layer, split_of)

        def timed(
            images: Tensor,
            bits: int,
            affine: Affine,
            *,
            relu: bool,
            other: Tensor | None,
            to: ActivationGrid | None,
        ) -> Tensor:
            def whole() -> Tensor:
                return convolution(images, bits, affine, relu=relu, other=other, to=to)

            def bare() -> Tensor:
                return convolution(images, bits, affine, relu=relu, other=None, to=_LEVELS)

            result, weight = whole(), layer.weight
            self.launches.append(
                Launch(
                    layer=layer.layer_name,
                    shape=f"{_sizes(images)} * {_sizes(weight)} = {_sizes(result)}",
                    operations=2 * result.numel() * weight[0].numel(),
                    moved=images.numel() + weight.numel() + result.numel(),
                    bare=self._clock(bare),
                    whole=self._clock(whole),
                )
            )
            return result

        return timed


def _sizes(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def launches_of(
    model: nn.Module,
    layer_names: Sequence[str],
    inputs: Tensor,
    options: Sequence[int],
    arithmetic: Arithmetic,
    clock: Clock,
) -> list[Launch]:
    """Return the convolutions of one forward pass, every layer at the largest option, in forward order.

    How many bits a layer has does not change what a GPU does.

    Raises:
        DeclinedError: the network or the machine is none for integers.
    """
    timed = TimedArithmetic(arithmetic, clock)
    engine = IntegerEngine(model, layer_names, inputs, options, 2**31, arithmetic=timed)
    largest = BitwidthConfiguration(bitwidths=(max(options),) * len(layer_names), index=0)
    with torch.inference_mode():
        for _ in engine.logits(inputs, [largest]):
            pass
    return timed.launches


def share_figures(
    launches: Sequence[Launch], ceilings: Ceilings, label: str, *, at_least: float | None
) -> list[Figure]:
    """Return which share of the int8 ceiling the convolutions reach, all operations over all time.

    Args:
        launches: of one forward pass; at least one.
        ceilings: of the card that they ran on.
        label: which network.
        at_least: bound of all bare convolutions together, in percent.
    """
    of = "share of the int8 matrix ceiling"
    operations = sum(launch.operations for launch in launches)

    def percent(seconds: float, operations: int = operations) -> list[float]:
        return [100 * operations / seconds / ceilings.int8]

    least = sum(ceilings.least_seconds(launch.operations, launch.moved) for launch in launches)
    worst = worst_first(launches)[0]
    return [
        Figure(
            figure=f"convolutions, {of}, {label}",
            values=percent(sum(launch.bare for launch in launches)),
            unit="%",
            at_least=at_least,
        ),
        Figure(
            figure=f"convolutions, {of}, the worst layer, {label}",
            values=percent(worst.bare, worst.operations),
            unit="%",
        ),
        Figure(
            figure=f"convolutions with sums and float32 results, {of}, {label}",
            values=percent(sum(launch.whole for launch in launches)),
            unit="%",
        ),
        Figure(figure=f"convolutions, {of} that memory allows, {label}", values=percent(least), unit="%"),
    ]


def worst_first(launches: Sequence[Launch]) -> list[Launch]:
    """Return launches by operations a second of the bare convolution, the fewest first."""
    return sorted(launches, key=lambda launch: launch.operations / launch.bare)


def describe(launch: Launch, ceilings: Ceilings) -> str:
    """Return a launch in a line."""
    share = 100 * launch.operations / launch.bare / ceilings.int8
    allowed = 100 * launch.operations / ceilings.least_seconds(launch.operations, launch.moved) / ceilings.int8
    times = f"{1e6 * launch.bare:.1f} us, {1e6 * launch.whole:.1f} us in the network"
    return f"{launch.layer}: {launch.shape}: {times}: {share:.1f}% of the int8 ceiling, memory allows {allowed:.1f}%"
