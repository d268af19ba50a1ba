"""One region of a network in integers: at every bitwidth its weights, its scales, and what it computes."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from qbw_eval.engine.convolutions import (
    Affine,
    Arithmetic,
    ConvolutionOfFloats,
    ConvolutionWithLevels,
    pads_with_zeros,
)
from qbw_eval.engine.incremental import QuantizedWeights
from qbw_eval.engine.packing import Halves, Split, integers_of
from qbw_eval.engine.passes import halves_of, levels_on, rounded, rows_of, shaped
from qbw_eval.engine.regions import Region
from qbw_eval.engine.walk import Bits, Rider
from qbw_eval.quantization.bitwidths import set_bitwidth
from qbw_eval.quantization.layers import ActivationGrid, QuantConv2d, QuantLinear, SwitchableBatchNorm2d

_BITS_OF_A_BYTE = 8

MOST_UNIT = 2.0**50
"""How far apart levels may be; and how close, the other way round. A GPU's kernel divides by them (`triton_kernels`),
and neither reciprocals nor remainders may leave float32's range."""

_ZERO, _NO_BOUND = torch.tensor(0.0), torch.tensor(float("-inf"))


class IntegerRegion:
    """A region at every bitwidth. Above those of the arithmetic, and where it knows no exact way, it runs in float32.

    That either the arithmetic does, too, or torch, operation by operation.

    Args:
        region: its nodes.
        position: its layer's, in the layer names.
        reader: the region that alone reads its value, and that it rounds for; or None.
        weights: where quantized weights are kept, for what runs in float32.
        arithmetic: what convolves.
    """

    def __init__(
        self,
        region: Region,
        position: int,
        reader: "IntegerRegion | None",
        weights: QuantizedWeights,
        arithmetic: Arithmetic,
    ) -> None:
        self.region = region
        self.position = position
        self.positions = frozenset([position] if reader is None else [position, reader.position])
        """The layers whose bits `run` looks at."""
        self._layer = region.layer
        # What a layer is at a bitwidth is worked out on the CPU, wherever it runs: another device's tanh may differ in
        # its last place, and nothing is to wait for a device in the middle of a walk.
        self._on_cpu = region.layer if region.layer.weight.is_cpu else copy.deepcopy(region.layer).cpu()
        self.reader = reader
        followed = getattr(region.batch_norm, "bitwidth_sources", (region.layer,))
        self.norm_follows_reader = reader is not None and followed != (region.layer,)
        """Whether the batch norm follows the bits of the reader, not those of the layer itself."""
        self._weights = weights
        self._arithmetic = arithmetic
        self.convolution = arithmetic.of_layer(self._on_cpu, self._split)
        """What convolves for the layer."""
        self._most_levels = 0
        """For how many readers its value is rounded in the same pass, where that is images in float32."""
        if reader is None and isinstance(region.layer, QuantConv2d):
            convolution = self.convolution
            self._most_levels = convolution.most_levels if isinstance(convolution, ConvolutionWithLevels) else 0
        self._least = (_ZERO if region.relu else _NO_BOUND).to(region.layer.weight.device)
        self._whys: dict[int, str | None] = {}
        self._takes_floats: dict[int, bool] = {}
        self._scales: dict[tuple[int, int, ActivationGrid | None], Affine] = {}

    # --- what it is at a bitwidth -----------------------------------------------------------------------------------

    def grid(self, bits: int) -> ActivationGrid | None:
        """Return what the layer's input is rounded to where the region runs in integers; None where it does not."""
        return self.at(bits).activation_grid() if self.in_integers(bits) else None

    def in_integers(self, bits: int) -> bool:
        """Return whether the layer runs in integers at so many bits; it may set them."""
        return bits <= self._arithmetic.most_bits and self.why_not(bits) is None

    def convolved(self, bits: int) -> bool:
        """Return whether the arithmetic convolves the layer at so many bits, integers or float32; it may set them."""
        if self.in_integers(bits):
            return True
        if bits not in self._takes_floats:
            convolution = self.convolution
            self._takes_floats[bits] = isinstance(convolution, ConvolutionOfFloats) and convolution.takes_floats(bits)
        return self._takes_floats[bits]

    def at(self, bits: int) -> QuantConv2d | QuantLinear:
        """Return the layer on the CPU, at so many bits."""
        set_bitwidth(self._on_cpu, bits)
        return self._on_cpu

    def why_not(self, bits: int) -> str | None:
        """Return why the layer does not run in integers at so few bits; None where it does. Sets the layer's bits."""
        if bits not in self._whys:
            split = self._split(bits)
            self._whys[bits] = split if isinstance(split, str) else None
        return self._whys[bits]

    def _split(self, bits: int) -> Split | Halves | str:
        """Return the integer weights in parts that convolve exactly; or why there are none."""
        layer = self.at(bits)
        unit, grid = layer.weight_unit(), layer.activation_grid()
        quantizers = layer.quantizers
        if "lsqplus" in (quantizers.weight, quantizers.activation):
            return "LSQ+'s levels have a zero point that need not be whole"
        if unit is None or grid is None:
            return "its weights or activations are not quantized"
        # A clipping value or a step that is not positive turns the order of levels around; float32 follows that too.
        if not unit > 0 or not grid.unit > 0:
            return "a clipping value, a step or all of its weights are not positive"
        if not 1 / MOST_UNIT < grid.unit < MOST_UNIT:
            return "its levels are too close to each other, or too far apart"
        integers = integers_of(layer.quantize_weight().detach(), unit)
        if integers is None:
            return "its quantized weights are no multiples of one value"
        if not pads_with_zeros(layer):
            return "it pads with something else than so many zeros"
        groups = 1
        if isinstance(layer, QuantLinear):
            integers = integers[:, :, None, None]  # a linear layer is a 1x1 convolution of 1x1 images
        else:
            groups = layer.groups
        return self._arithmetic.split(integers, grid.largest, groups)

    def affine(self, own: int, of_norm: int, to: ActivationGrid | None) -> Affine:
        """Return what leads from sums of integers, or of float32, to values, or to multiples of another layer's unit.

        Worked out in float64 and rounded once.

        Args:
            own: the layer's bits.
            of_norm: those that its batch norm follows; see `norm_follows_reader`.
            to: the grid of that other layer.
        """
        key = own, of_norm, to
        if key not in self._scales:
            factor, shift = _affine(self.region, of_norm)
            unit = 1.0 if to is None else to.unit
            scale = factor * self._unit_of_sums(own) / unit
            self._scales[key] = Affine(scale.float(), (shift / unit).float())
        return self._scales[key]

    def _unit_of_sums(self, bits: int) -> float:
        if not self.in_integers(bits):
            return 1.0
        layer = self.at(bits)
        weight_unit, grid = layer.weight_unit(), layer.activation_grid()
        assert weight_unit is not None
        assert grid is not None
        return weight_unit * grid.unit

    # --- what it computes -------------------------------------------------------------------------------------------

    def round_input(self, values: Sequence[Tensor], bits: Bits) -> Tensor:
        """Return the layer's input as uint8 integers; as it is where the region does not run in integers."""
        grid = self.grid(bits[self.position])
        return values[0] if grid is None else self.as_levels(values[0], grid)

    def run(self, values: Sequence[Tensor], bits: Bits) -> Tensor:
        """Return the region's value: float32, or uint8 integers for its reader where that runs in integers.

        Args:
            values: the layer's input, rounded by `round_input` or by the region that it comes from; and what is added.
            bits: of every layer.
        """
        x, *others = values
        to = self.reader.grid(bits[self.reader.position]) if self.reader is not None else None
        if not self.convolved(bits[self.position]):
            return self._for_reader(self._in_float32(x, bits[self.position], others), to)
        if to is not None and halves_of(to.largest) == 2 and not self._has_the_readers_channels:
            return self._for_reader(self._by_arithmetic(x, bits, others, None), to)
        return self._by_arithmetic(x, bits, others, to)

    @property
    def _has_the_readers_channels(self) -> bool:
        """Whether what are channels here are channels to the reader: a linear layer's are those of the last axis."""
        return self.reader is None or isinstance(self._layer, QuantConv2d) == isinstance(
            self.reader._layer, QuantConv2d
        )

    def _for_reader(self, y: Tensor, to: ActivationGrid | None) -> Tensor:
        """Return a value, rounded by a pass of its own where the reader runs in integers."""
        return y if to is None or self.reader is None else self.reader.as_levels(y, to)

    def rides(self, bits: Bits, /) -> bool:
        """Return whether `round_input` makes integers that what computes the input may write along.

        Where they take two bytes, they are channels to both: a linear layer's are those of the last axis.
        """
        bits_here = bits[self.position]
        narrow = bits_here <= _BITS_OF_A_BYTE
        return self.in_integers(bits_here) and (narrow or isinstance(self._layer, QuantConv2d))

    def carries(self, bits: Bits, /) -> int:
        """Return for how many readers `run` may round its value along."""
        return self._most_levels if self.convolved(bits[self.position]) else 0

    def compute_with(
        self, values: Sequence[Tensor], bits: Bits, riders: Sequence[Rider], *, kept: bool
    ) -> tuple[Tensor | None, ...]:
        """Return `run`'s value, then what `round_input` of each rider, a region that reads it, makes of that value.

        The value itself may be None where it is not kept.
        """
        x, *others = values
        own, grids = bits[self.position], []
        for rider in riders:
            assert isinstance(rider, IntegerRegion)
            grid = rider.grid(bits[rider.position])
            assert grid is not None
            grids.append((rider, grid))
        if others and not self.adds_alike(others[0], x):
            value = self.run(values, bits)
            return (value, *(rider.as_levels(value, grid) for rider, grid in grids))
        assert isinstance(self.convolution, ConvolutionWithLevels)
        return self.convolution.with_levels(
            self._for_convolution(x, own),
            own,
            self.affine(own, own, None),
            relu=self.region.relu,
            other=self.as_images(others[0]) if others else None,
            to=[grid for _, grid in grids],
            kept=kept,
        )

    def adds_alike(self, other: object, x: Tensor) -> bool:
        """Return whether what is added for an input x is float32 of the output's shape; else torch's rules decide.

        It may be a number, such as the size of a batch.
        """
        return isinstance(other, Tensor) and (other.dtype, other.shape) == (torch.float32, self.shape_for(x))

    def _for_convolution(self, x: Tensor, bits: int) -> Tensor:
        """Return the layer's input as images that it convolves at its bits; clamping float32, it does itself."""
        if not self.in_integers(bits) and self.at(bits).activation_bounds() is None:
            x = self._quantized(x, bits)
        return self.as_images(x)

    def _by_arithmetic(self, x: Tensor, bits: Bits, others: Sequence[Tensor], to: ActivationGrid | None) -> Tensor:
        """Return the value of a region whose layer is `convolved`; rounded for the layer whose grid is `to`."""
        own = bits[self.position]
        images = self._for_convolution(x, own)
        of_norm = own if self.reader is None or not self.norm_follows_reader else bits[self.reader.position]
        if others and not self.adds_alike(others[0], x):
            y = self.convolution(images, own, self.affine(own, of_norm, None), relu=False, other=None, to=None)
            return self._for_reader(torch.maximum(self.like_input(y, x) + others[0], self._least), to)
        y = self.convolution(
            images,
            own,
            self.affine(own, of_norm, None if others else to),
            relu=self.region.relu,
            other=self.as_images(others[0]) if others else None,
            to=to,
        )
        return self.like_input(y, x)

    def _in_float32(self, x: Tensor, bits: int, others: Sequence[Tensor]) -> Tensor:
        return self.finish(
            self._quantized(x, bits), self._weights.of(self._layer, bits), self.region.batch_norm, others
        )

    def finish(
        self, x: Tensor, weight: Tensor, batch_norm: Callable[[Tensor], Tensor] | None, others: Sequence[Tensor]
    ) -> Tensor:
        """Return what the region computes operation by operation: every bit as the network's own forward gives it.

        Args:
            x: the layer's input, quantized.
            weight: quantized, too.
            batch_norm: the one that follows the layer at its bits.
            others: what is added, if anything is.
        """
        y = self._layer.run(x, weight)
        if batch_norm is not None:
            y = batch_norm(y)
        for other in others:
            if isinstance(other, Tensor) and y.shape == other.shape:
                return shaped(self._arithmetic.passes.added(rows_of(y), rows_of(other), self._least), y.shape)
            y = y + other  # a number, or of another shape, which torch repeats
        return torch.relu(y) if self.region.relu else y

    def _quantized(self, x: Tensor, bits: int) -> Tensor:
        """Return the layer's input at its bits in float32, in one pass where it is rounded."""
        set_bitwidth(self._layer, bits)
        grid = self.at(bits).activation_grid()
        if grid is None or not grid.unit > 0:
            return self._layer.quantize_activation(x)
        passes = self._arithmetic.passes
        return rounded(x, grid, passes.values_by_clipping, passes.values_by_step)

    def as_levels(self, x: Tensor, grid: ActivationGrid) -> Tensor:
        """Return x rounded to the layer's integers, uint8; images in channels_last.

        In the shape of x, or with twice as many channels where they are wider than a byte.
        """
        if halves_of(grid.largest) == 1:
            return levels_on(grid, x, self._arithmetic.passes)
        return self.like_input(levels_on(grid, self.as_images(x), self._arithmetic.passes), x)

    def as_images(self, x: Tensor) -> Tensor:
        """Return the layer's input, or something of its output's shape, as (N, C, H, W) in channels_last."""
        images = x if isinstance(self._layer, QuantConv2d) else x.reshape(-1, x.shape[-1], 1, 1)
        return images.contiguous(memory_format=torch.channels_last)

    def like_input(self, images: Tensor, x: Tensor) -> Tensor:
        """Undo `as_images` for an output."""
        return images if isinstance(self._layer, QuantConv2d) else images.reshape(*x.shape[:-1], images.shape[1])

    def shape_for(self, x: Tensor) -> tuple[int, ...]:
        """Return the shape of the layer's output for an input x."""
        layer = self._layer
        if not isinstance(layer, QuantConv2d):
            return (*x.shape[:-1], layer.out_features)
        assert not isinstance(layer.padding, str)
        sizes = zip(x.shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
        spans = [(size + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for size, kernel, step, pad, gap in sizes]
        return (len(x), layer.out_channels, *spans)


def _affine(region: Region, bits: int) -> tuple[Tensor, Tensor]:
    """Return (out,) factor and shift in float64 on the CPU: what a layer's bias and its batch norm do to its output.

    `bits` are those of the layer that the batch norm follows.
    """
    layer, norm = region.layer, region.batch_norm
    outputs = layer.weight.shape[0]
    bias = torch.zeros(outputs, dtype=torch.float64) if layer.bias is None else layer.bias.detach().cpu().double()
    if norm is None:
        return torch.ones(outputs, dtype=torch.float64), bias
    if isinstance(norm, SwitchableBatchNorm2d):
        norm = norm.batch_norm_at(bits)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.cpu().double() + norm.eps).rsqrt()
    shift = (bias - norm.running_mean.cpu().double()) * factor
    if norm.affine:
        weight = norm.weight.detach().cpu().double()
        factor, shift = factor * weight, shift * weight + norm.bias.detach().cpu().double()
    return factor, shift
