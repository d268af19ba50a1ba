"""One region of a network in integers: at every bitwidth its packed weights, its scales, and what it computes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qbw_eval.engine.cache import BoundedCache
from qbw_eval.engine.incremental import QuantizedWeights
from qbw_eval.engine.packing import PackedConvolution, Split, integers_of, pack, pairs_saturate, split_weights
from qbw_eval.engine.passes import Pass, Passes
from qbw_eval.engine.regions import Region
from qbw_eval.engine.walk import Bits
from qbw_eval.quantization.bitwidths import set_bitwidth
from qbw_eval.quantization.layers import ActivationGrid, QuantConv2d, QuantLinear, SwitchableBatchNorm2d

MOST_BITS = 8
"""The widest activations that fit into uint8."""

_ZERO, _NO_BOUND = torch.tensor(0.0), torch.tensor(float("-inf"))


class IntegerRegion:
    """A region at every bitwidth. Above 8 bits, and where no exact convolution is known, it runs in float32.

    Args:
        region: its nodes.
        position: its layer's, in the layer names.
        reader: the region that alone reads its value, and that it rounds for; or None.
        weights: where quantized weights are kept, for what runs in float32.
        packed: where packed weights are kept.
        passes: what lies between convolutions.
    """

    def __init__(
        self,
        region: Region,
        position: int,
        reader: "IntegerRegion | None",
        weights: QuantizedWeights,
        packed: BoundedCache[PackedConvolution],
        passes: Passes,
    ) -> None:
        self.region = region
        self.position = position
        self.positions = frozenset([position] if reader is None else [position, reader.position])
        """The layers whose bits `run` looks at."""
        self._layer = region.layer
        self._reader = reader
        followed = getattr(region.batch_norm, "bitwidth_sources", (region.layer,))
        self._norm_position = position if reader is None or followed == (region.layer,) else reader.position
        self._weights = weights
        self._packed = packed
        self._passes = passes
        self._least = _ZERO if region.relu else _NO_BOUND
        self._whys: dict[int, str | None] = {}
        self._scales: dict[tuple[int, int, ActivationGrid | None], tuple[Tensor, Tensor]] = {}

    # --- what it is at a bitwidth -----------------------------------------------------------------------------------

    def grid(self, bits: int) -> ActivationGrid | None:
        """Return what the layer's input is rounded to where the region runs in integers; None where it does not."""
        if bits > MOST_BITS or self.why_not(bits) is not None:
            return None
        set_bitwidth(self._layer, bits)
        return self._layer.activation_grid()

    def why_not(self, bits: int) -> str | None:
        """Return why the layer does not run in integers at so few bits; None where it does. Sets the layer's bits."""
        if bits not in self._whys:
            split = self._split(bits)
            self._whys[bits] = split if isinstance(split, str) else None
        return self._whys[bits]

    def _split(self, bits: int) -> Split | str:
        """Return the integer weights in parts that convolve exactly; or why there are none."""
        set_bitwidth(self._layer, bits)
        unit, grid = self._layer.weight_unit(), self._layer.activation_grid()
        quantizers = self._layer.quantizers
        if "lsqplus" in (quantizers.weight, quantizers.activation):
            return "LSQ+'s levels have a zero point that need not be whole"
        if unit is None or grid is None:
            return "its weights or activations are not quantized"
        # A clipping value or a step that is not positive turns the order of levels around; float32 follows that too.
        if not unit > 0 or not grid.unit > 0:
            return "a clipping value, a step or all of its weights are not positive"
        integers = integers_of(self._layer.quantize_weight().detach(), unit)
        if integers is None:
            return "its quantized weights are no multiples of one value"
        groups = 1
        if isinstance(self._layer, QuantLinear):
            integers = integers[:, :, None, None]  # a linear layer is a 1x1 convolution of 1x1 images
        elif self._layer.padding_mode != "zeros" or isinstance(self._layer.padding, str):
            return "it pads with something else than so many zeros"
        else:
            groups = self._layer.groups
        split = split_weights(integers, grid.largest, pairs_saturate=pairs_saturate(), groups=groups)
        return split or "its sums do not fit into the integers of this CPU, or it is wide and grouped"

    def _convolution(self, bits: int, images: Tensor) -> PackedConvolution:
        """Return the packed weights, laid out for inputs of the first shape that was asked for."""

        def make() -> tuple[PackedConvolution, int]:
            split = self._split(bits)
            assert isinstance(split, Split)
            packed = pack(split, images.shape, self._layer if isinstance(self._layer, QuantConv2d) else None)
            return packed, packed.size

        return self._packed.get((self._layer, bits), make)

    def _scale_and_bias(self, bits: Bits, to: ActivationGrid | None) -> tuple[Tensor, Tensor]:
        """Return (out,) scale and bias from accumulators to values, or to multiples of another layer's unit.

        Worked out in float64 and rounded once.
        """
        own, of_norm = bits[self.position], bits[self._norm_position]
        key = own, of_norm, to
        if key not in self._scales:
            set_bitwidth(self._layer, own)
            weight_unit, grid = self._layer.weight_unit(), self._layer.activation_grid()
            assert weight_unit is not None
            assert grid is not None
            factor, shift = _affine(self.region, of_norm)
            unit = 1.0 if to is None else to.unit
            self._scales[key] = (factor * (weight_unit * grid.unit) / unit).float(), (shift / unit).float()
        return self._scales[key]

    # --- what it computes -------------------------------------------------------------------------------------------

    def round_input(self, values: Sequence[Tensor], bits: Bits) -> Tensor:
        """Return the layer's input as uint8 integers; as it is where the region does not run in integers."""
        grid = self.grid(bits[self.position])
        return values[0] if grid is None else self._rounded(values[0], grid)

    def run(self, values: Sequence[Tensor], bits: Bits) -> Tensor:
        """Return the region's value: float32, or uint8 integers for its reader where that runs in integers.

        Args:
            values: the layer's input, rounded by `round_input` or by the region that it comes from; and what is added.
            bits: of every layer.
        """
        own = bits[self.position]
        x, *others = values
        to = self._reader.grid(bits[self._reader.position]) if self._reader is not None else None
        if self.grid(own) is None:
            y = self._in_float32(x, own, others)
        elif others:
            y = self._convolved_and_added(x, bits, others[0])
        else:
            return self._convolved(x, bits, to)
        return y if to is None else self._rounded(y, to)

    def _in_float32(self, x: Tensor, bits: int, others: Sequence[Tensor]) -> Tensor:
        """Return what the region computes operation by operation: every bit as the network's own forward gives it."""
        y = self._layer.run(self._quantized(x, bits), self._weights.of(self._layer, bits))
        if self.region.batch_norm is not None:
            y = self.region.batch_norm(y)
        for other in others:
            if y.shape == other.shape:
                return _shaped(self._passes.added(_rows(y), _rows(other), self._least), y.shape)
            y = y + other  # it has another shape, which torch repeats
        return torch.relu(y) if self.region.relu else y

    def _quantized(self, x: Tensor, bits: int) -> Tensor:
        """Return the layer's input at its bits in float32, in one pass where it is rounded."""
        set_bitwidth(self._layer, bits)
        grid = self._layer.activation_grid()
        if grid is None or not grid.unit > 0:
            return self._layer.quantize_activation(x)
        return self._pass_over(x, grid, self._passes.values_by_clipping, self._passes.values_by_step)

    def _rounded(self, x: Tensor, grid: ActivationGrid) -> Tensor:
        """Return x rounded to a layer's integers, uint8 in the shape of x; images in channels_last."""
        return self._pass_over(x, grid, self._passes.levels_by_clipping, self._passes.levels_by_step)

    def _pass_over(self, x: Tensor, grid: ActivationGrid, by_clipping: Pass, by_step: Pass) -> Tensor:
        rows, largest = _rows(x), torch.tensor(float(grid.largest))
        if grid.clipping is not None:
            return _shaped(by_clipping(rows, torch.tensor(grid.clipping), largest), x.shape)
        return _shaped(by_step(rows, torch.tensor(grid.unit), largest), x.shape)

    def _convolved(self, x: Tensor, bits: Bits, to: ActivationGrid | None) -> Tensor:
        """Return the value where nothing is added; rounded for the layer whose grid is `to`."""
        images = self._as_images(x)
        convolution = self._convolution(bits[self.position], images)
        scale, bias = self._scale_and_bias(bits, to)
        if convolution.split.low_outputs:
            accumulators = convolution.accumulators(images)
            parts = _parts(accumulators, convolution.split)
            if to is None:
                rows = self._passes.combined(*parts, scale, bias, self._least)
            else:
                rows = self._passes.combined_levels(*parts, scale, bias, torch.tensor(float(to.largest)))
            y = _shaped(rows, (len(images), len(scale), *accumulators.shape[2:]))
        elif to is None:
            y = convolution(images, scale, bias, relu=self.region.relu)
        else:
            y = convolution.levels(images, scale, bias, to.largest)
        return self._like_input(y, x)

    def _convolved_and_added(self, x: Tensor, bits: Bits, other: Tensor) -> Tensor:
        """Return the value where `other` is added, in float32."""
        images = self._as_images(x)
        convolution = self._convolution(bits[self.position], images)
        scale, bias = self._scale_and_bias(bits, None)
        if convolution.split.low_outputs:
            accumulators = convolution.accumulators(images)
            parts = _parts(accumulators, convolution.split)
            shape = (len(images), len(scale), *accumulators.shape[2:])
            if other.shape == shape:
                return _shaped(self._passes.combined_and_added(*parts, scale, bias, _rows(other), self._least), shape)
            y = _shaped(self._passes.combined(*parts, scale, bias, _NO_BOUND), shape)
        else:
            y = convolution(images, scale, bias)
        y = self._like_input(y, x)
        if y.shape == other.shape:
            return _shaped(self._passes.added(_rows(y), _rows(other), self._least), y.shape)
        return torch.maximum(y + other, self._least)  # it has another shape, which torch repeats

    def _as_images(self, x: Tensor) -> Tensor:
        """Return the layer's input as (N, C, H, W) in channels_last."""
        images = x if isinstance(self._layer, QuantConv2d) else x.reshape(-1, x.shape[-1], 1, 1)
        return images.contiguous(memory_format=torch.channels_last)

    def _like_input(self, images: Tensor, x: Tensor) -> Tensor:
        """Undo `_as_images` for an output."""
        return images if isinstance(self._layer, QuantConv2d) else images.reshape(*x.shape[:-1], images.shape[1])


def _affine(region: Region, bits: int) -> tuple[Tensor, Tensor]:
    """Return (out,) factor and shift in float64: what a layer's bias and its batch norm do to its output.

    `bits` are those of the layer that the batch norm follows.
    """
    layer, norm = region.layer, region.batch_norm
    outputs = layer.weight.shape[0]
    bias = torch.zeros(outputs, dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()
    if norm is None:
        return torch.ones(outputs, dtype=torch.float64), bias
    if isinstance(norm, SwitchableBatchNorm2d):
        norm = norm.batch_norm_at(bits)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    shift = (bias - norm.running_mean.double()) * factor
    if norm.affine:
        weight = norm.weight.detach().double()
        factor, shift = factor * weight, shift * weight + norm.bias.detach().double()
    return factor, shift


def _parts(accumulators: Tensor, split: Split) -> tuple[Tensor, Tensor, Tensor]:
    """Return (pixels, out) high, (pixels, out or 1) low and the factor between them."""
    rows = _rows(accumulators)
    low = rows[:, split.outputs : split.outputs + split.low_outputs]
    return rows[:, : split.outputs], low, torch.tensor(float(split.factor))


def _rows(x: Tensor) -> Tensor:
    """Return (N, C, H, W) or (..., C) as (pixels, C), which copies nothing where images are in channels_last."""
    if x.ndim == 4:
        x = x.permute(0, 2, 3, 1)
    return x.reshape(-1, x.shape[-1])


def _shaped(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo `_rows` for values of `shape`; images are in channels_last."""
    if len(shape) == 4:
        n, c, h, w = shape
        return rows.view(n, h, w, c).permute(0, 3, 1, 2)
    return rows.view(*shape)
