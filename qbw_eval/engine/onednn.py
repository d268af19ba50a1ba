"""Integers convolved by oneDNN on the CPU: packed weights, and passes for what it does not do itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qbw_eval.engine.cache import BoundedCache
from qbw_eval.engine.convolutions import Affine, SplitOf
from qbw_eval.engine.packing import PackedConvolution, Split, pack, pairs_saturate, split_weights, why_not_here
from qbw_eval.engine.passes import Passes, rounded, rows_of, shaped
from qbw_eval.quantization.layers import ActivationGrid, QuantConv2d, QuantLinear

_ZERO, _NO_BOUND = torch.tensor(0.0), torch.tensor(float("-inf"))


class OnednnArithmetic:
    """See `convolutions.Arithmetic`.

    Args:
        cache_bytes: how much may be spent on packed weights.
        passes: what lies between convolutions, plain or compiled.
    """

    most_bits = 8

    def __init__(self, cache_bytes: int, passes: Passes) -> None:
        self.passes = passes
        self._packed: BoundedCache[PackedConvolution] = BoundedCache(cache_bytes)

    def why_not(self, devices: Sequence[torch.device]) -> str | None:
        """Return why int8 convolutions cannot be trusted here; None where they can."""
        if any(device.type != "cpu" for device in devices):
            return "it runs on the CPU only"
        return why_not_here()

    def split(self, integers: Tensor, largest_activation: int, groups: int) -> Split | str:
        """Return integer weights in parts that this CPU convolves exactly; or that there are none."""
        split = split_weights(integers, largest_activation, pairs_saturate=pairs_saturate(), groups=groups)
        return split or "its sums do not fit into the integers of this CPU, or it is wide and grouped"

    def of_layer(self, layer: QuantConv2d | QuantLinear, split_of: SplitOf) -> "OnednnConvolution":
        """Return what convolves for a layer."""
        return OnednnConvolution(layer, split_of, self._packed, self.passes)


@dataclass(frozen=True)
class OnednnConvolution:
    """See `convolutions.LayerConvolution`; weights are packed for inputs of the first shape that is met."""

    layer: QuantConv2d | QuantLinear
    split_of: SplitOf
    packed: BoundedCache[PackedConvolution]
    passes: Passes

    def __call__(
        self,
        images: Tensor,
        bits: int,
        affine: Affine,
        *,
        relu: bool,
        other: Tensor | None,
        to: ActivationGrid | None,
    ) -> Tensor:
        """Return what the protocol says, in as few passes over memory as oneDNN and `Passes` allow."""
        convolution = self._packed(bits, images)
        if other is not None:
            y = self._values_and(convolution, images, affine, relu, other)
            passes = self.passes
            return y if to is None else rounded(y, to, passes.levels_by_clipping, passes.levels_by_step)
        if not convolution.split.low_outputs:
            if to is None:
                return convolution(images, affine.scale, affine.bias, relu=relu)
            return convolution.levels(images, affine.scale, affine.bias, to.largest)
        accumulators = convolution.accumulators(images)
        parts = _parts(accumulators, convolution.split)
        if to is None:
            rows = self.passes.combined(*parts, affine.scale, affine.bias, _least(relu))
        else:
            rows = self.passes.combined_levels(*parts, affine.scale, affine.bias, torch.tensor(float(to.largest)))
        return shaped(rows, (len(images), len(affine.scale), *accumulators.shape[2:]))

    def _values_and(
        self, convolution: PackedConvolution, images: Tensor, affine: Affine, relu: bool, other: Tensor
    ) -> Tensor:
        """Return the value where `other` is added, in float32."""
        least, added = _least(relu), rows_of(other)
        if not convolution.split.low_outputs:
            y = convolution(images, affine.scale, affine.bias)
            return shaped(self.passes.added(rows_of(y), added, least), other.shape)
        parts = _parts(convolution.accumulators(images), convolution.split)
        return shaped(self.passes.combined_and_added(*parts, affine.scale, affine.bias, added, least), other.shape)

    def _packed(self, bits: int, images: Tensor) -> PackedConvolution:
        def make() -> tuple[PackedConvolution, int]:
            split = self.split_of(bits)
            assert isinstance(split, Split)
            packed = pack(split, images.shape, self.layer if isinstance(self.layer, QuantConv2d) else None)
            return packed, packed.size

        return self.packed.get((self.layer, bits), make)


def _least(relu: bool) -> Tensor:
    return _ZERO if relu else _NO_BOUND


def _parts(accumulators: Tensor, split: Split) -> tuple[Tensor, Tensor, Tensor]:
    """Return (pixels, out) high, (pixels, out or 1) low and the factor between them."""
    rows = rows_of(accumulators)
    low = rows[:, split.outputs : split.outputs + split.low_outputs]
    return rows[:, : split.outputs], low, torch.tensor(float(split.factor))
