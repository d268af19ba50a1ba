"""Exact low-bit arithmetic on the CPU: at 8 bits or fewer a quantized layer is a convolution of integers.

Every region of the network (`regions`) becomes one operation: an int8 convolution that is exact (`packing`), then batch
norm, sum, ReLU and the rounding for the next layer in float32, folded into one multiplication and one addition. Between
two layers that nobody else reads the tensor stays uint8. What an operation computes depends on the bits of its own
layer and of the layer it rounds for, never on what was computed before or beside it, so that the order and the company
of a configuration cannot change its result. Layers above 8 bits, and those that no exact convolution is known for, run
in float32 on weights quantized once. `walk` recomputes only what changed.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from qbw_eval.engine.cache import BoundedCache
from qbw_eval.engine.graph import TracedNetwork, trace_network
from qbw_eval.engine.incremental import QuantizedWeights, TracedEngine, operation_of, own_layer
from qbw_eval.engine.packing import (
    PackedConvolution,
    Split,
    integers_of,
    pack,
    pairs_saturate,
    split_weights,
    why_not_here,
)
from qbw_eval.engine.passes import PLAIN, Passes
from qbw_eval.engine.regions import Region, find_regions
from qbw_eval.engine.walk import Bits, Operation, Program
from qbw_eval.quantization.bitwidths import set_bitwidth
from qbw_eval.quantization.layers import (
    ActivationGrid,
    QuantConv2d,
    QuantLinear,
    SwitchableBatchNorm2d,
)
from schemas.errors import QBWError

MOST_BITS = 8
"""The widest activations that fit into uint8."""


class DeclinedError(QBWError):
    """This network or this machine is none for integer arithmetic; the text says why and is no whole sentence."""


class IntegerEngine(TracedEngine):
    """Exact convolutions of integers; see the module.

    Args:
        model: the network, in evaluation mode, on the CPU.
        layer_names: what a configuration's bitwidths belong to.
        inputs: a batch; its containers count, and the number of samples, which weights are laid out for.
        cache_bytes: how much may be spent on quantized and packed weights.
        passes: what lies between convolutions, plain or compiled; both give the same bits.

    Raises:
        UntraceableError: the network cannot be traced.
        DeclinedError: it would not be exact, or there is nothing for it to do.
    """

    name = "integer"
    numerics = "integer-convolution/1"

    def __init__(
        self,
        model: nn.Module,
        layer_names: Sequence[str],
        inputs: Any,
        cache_bytes: int,
        passes: Passes = PLAIN,
    ) -> None:
        _check(model)
        traced = trace_network(model, layer_names, inputs)
        regions = find_regions(traced, own_layer)
        if not regions:
            raise DeclinedError("none of its quantized layers is one that QBW knows the arithmetic of")
        super().__init__(model, layer_names, _program(traced, regions, cache_bytes, passes))


def _check(model: nn.Module) -> None:
    """Raise DeclinedError where integer arithmetic cannot be exact."""
    reason = why_not_here()
    if reason is not None:
        raise DeclinedError(reason)
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.device.type != "cpu" for tensor in tensors):
        raise DeclinedError("it runs on the CPU only")
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in tensors):
        raise DeclinedError("its weights are not float32")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise DeclinedError("some of its weights are NaN or infinite, which integers cannot carry on")


def _program(traced: TracedNetwork, regions: Sequence[Region], cache_bytes: int, passes: Passes) -> Program:
    """Return the network as operations: roundings of what several layers read, regions, and the rest."""
    weights, packed = QuantizedWeights(cache_bytes // 2), BoundedCache[PackedConvolution](cache_bytes // 2)
    layers = {
        region.node: _Layer(region, next(iter(traced.layers[region.node])), weights, packed) for region in regions
    }
    by_last = {region.last: region for region in regions}
    inside = {member for region in regions for member in region.members}
    rounded_by_region = {region.reader for region in regions if region.reader is not None}
    number = {traced.nodes[0]: 0}
    rounded: dict[fx.Node, int] = {}  # layer's node -> the position of its rounded input
    operations: list[Operation] = []

    def add(operation: Operation) -> int:
        operations.append(operation)
        return len(operations)

    for node in traced.nodes[1:]:
        region = by_last.get(node)
        if region is None:
            if node not in inside:
                number[node] = add(operation_of(node, traced, number, weights))
            continue
        layer, (source,) = layers[region.node], region.node.all_input_nodes
        if region.node in rounded_by_region:
            rounded[region.node] = number[source]
        else:
            rounded[region.node] = add(
                Operation(
                    name=f"{region.node.name}_rounded",
                    inputs=(number[source],),
                    layers=frozenset([layer.position]),
                    compute=partial(_round, layer, passes),
                )
            )
        reader = layers[region.reader] if region.reader is not None else None
        others = (number[region.other],) if region.other is not None else ()
        number[node] = add(
            Operation(
                name=node.name,
                inputs=(rounded[region.node], *others),
                layers=frozenset([layer.position] + ([reader.position] if reader else [])),
                compute=partial(_run_region, layer, reader, passes),
            )
        )
    return Program(operations)


_ZERO, _NO_BOUND = torch.tensor(0.0), torch.tensor(float("-inf"))


class _Layer:
    """One region at every bitwidth: its packed weights, its scales, and whether it runs in integers there at all."""

    def __init__(
        self, region: Region, position: int, weights: QuantizedWeights, packed: BoundedCache[PackedConvolution]
    ) -> None:
        self.region = region
        self.layer = region.layer
        self.position = position
        self._weights = weights
        self._packed = packed
        self._grids: dict[int, ActivationGrid | None] = {}
        self._scales: dict[tuple[int, object], tuple[Tensor, Tensor]] = {}
        self._integer: dict[int, bool] = {}

    def grid(self, bits: int) -> ActivationGrid | None:
        """Return what the layer's input is rounded to where the layer runs in integers; None where it does not."""
        if bits not in self._integer:
            self._integer[bits] = self._can(bits)
        return self._grids[bits] if self._integer[bits] else None

    def _can(self, bits: int) -> bool:
        if bits > MOST_BITS:
            return False
        set_bitwidth(self.layer, bits)
        unit, grid = self.layer.weight_unit(), self.layer.activation_grid()
        # A clipping value or a step that is not positive turns the order of levels around; float32 follows that too.
        if unit is None or grid is None or not unit > 0 or not grid.unit > 0:
            return False
        self._grids[bits] = grid
        return self._split(bits) is not None

    def _split(self, bits: int) -> Split | None:
        """Return the integer weights in parts that convolve exactly; None where no exact way is known."""
        set_bitwidth(self.layer, bits)
        unit, grid = self.layer.weight_unit(), self._grids[bits]
        assert unit is not None
        assert grid is not None
        integers = integers_of(self._weights.of(self.layer, bits), unit)
        if integers is None:
            return None
        groups = 1
        if isinstance(self.layer, QuantConv2d):
            if self.layer.padding_mode != "zeros" or isinstance(self.layer.padding, str):
                return None
            groups = self.layer.groups
        else:
            integers = integers[:, :, None, None]  # a linear layer is a 1x1 convolution of 1x1 images
        return split_weights(integers, grid.largest, pairs_saturate=pairs_saturate(), groups=groups)

    def packed(self, bits: int, x: Tensor) -> PackedConvolution:
        """Return the packed weights, laid out for inputs of the shape of the first `x` that was asked for."""

        def make() -> tuple[PackedConvolution, int]:
            split = self._split(bits)
            assert split is not None
            packed = pack(split, self.as_images(x).shape, self.layer if isinstance(self.layer, QuantConv2d) else None)
            return packed, packed.size

        return self._packed.get((self.layer, bits), make)

    def as_images(self, x: Tensor) -> Tensor:
        """Return the layer's input as (N, C, H, W) in channels_last."""
        images = x if isinstance(self.layer, QuantConv2d) else x.reshape(-1, x.shape[-1], 1, 1)
        return images.contiguous(memory_format=torch.channels_last)

    def like_inputs(self, images: Tensor, x: Tensor) -> Tensor:
        """Undo `as_images` for an output."""
        return images if isinstance(self.layer, QuantConv2d) else images.view(*x.shape[:-1], images.shape[1])

    @property
    def least(self) -> Tensor:
        """Return what smaller values become: 0 with a ReLU."""
        return _ZERO if self.region.relu else _NO_BOUND

    def scales(self, bits: int, to: ActivationGrid | None) -> tuple[Tensor, Tensor]:
        """Return (out,) scale and bias that turn accumulators into values, or into multiples of another layer's unit.

        Worked out in float64 and rounded once.
        """
        key = bits, to
        if key not in self._scales:
            set_bitwidth(self.layer, bits)
            weight_unit, grid = self.layer.weight_unit(), self._grids[bits]
            assert weight_unit is not None
            assert grid is not None
            factor, shift = _affine(self.region.batch_norm, bits, self.layer)
            divisor = 1.0 if to is None else to.unit
            self._scales[key] = (
                (factor * (weight_unit * grid.unit) / divisor).float(),
                (shift / divisor).float(),
            )
        return self._scales[key]

    def in_float32(self, x: Tensor, bits: int, other: Tensor | None) -> Tensor:
        """Return what the region computes in float32, operation by operation as the network's own forward does."""
        set_bitwidth(self.layer, bits)
        y = self.layer.run(self.layer.quantize_activation(x), self._weights.of(self.layer, bits))
        if self.region.batch_norm is not None:
            y = self.region.batch_norm(y)
        if other is not None:
            y = y + other
        return torch.relu(y) if self.region.relu else y


def _affine(
    batch_norm: nn.BatchNorm2d | SwitchableBatchNorm2d | None, bits: int, layer: QuantConv2d | QuantLinear
) -> tuple[Tensor, Tensor]:
    """Return (out,) factor and shift in float64: what a layer's bias and its batch norm do to its output."""
    outputs = layer.weight.shape[0]
    bias = torch.zeros(outputs, dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()
    if batch_norm is None:
        return torch.ones(outputs, dtype=torch.float64), bias
    norm = batch_norm.batch_norm_at(bits) if isinstance(batch_norm, SwitchableBatchNorm2d) else batch_norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.detach().double()
    shift = (bias - norm.running_mean.double()) * factor
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return factor, shift


def _round(layer: _Layer, passes: Passes, values: Sequence[Tensor], bits: Bits) -> Tensor:
    """Return the layer's input as uint8 integers; as it is where the layer does not run in integers."""
    grid = layer.grid(bits[layer.position])
    return values[0] if grid is None else levels(values[0], grid, passes)


def levels(x: Tensor, grid: ActivationGrid, passes: Passes) -> Tensor:
    """Return x rounded to a layer's integers, uint8 in the shape of `x`; images in channels_last."""
    rows, largest = _rows(x), torch.tensor(float(grid.largest))
    if grid.clipping is not None:
        return _shaped(passes.levels_by_clipping(rows, torch.tensor(grid.clipping), largest), x.shape)
    return _shaped(passes.levels_by_step(rows, torch.tensor(grid.unit), largest), x.shape)


def _run_region(layer: _Layer, reader: _Layer | None, passes: Passes, values: Sequence[Tensor], bits: Bits) -> Tensor:
    """Return what a region computes: float32, or uint8 integers for its reader where that runs in integers."""
    own = bits[layer.position]
    x, other = values[0], values[1] if len(values) > 1 else None
    to = reader.grid(bits[reader.position]) if reader is not None else None
    if layer.grid(own) is None:
        y = layer.in_float32(x, own, other)
    elif other is None:
        return _convolve(layer, passes, x, own, to)
    else:
        y = _convolve_and_add(layer, passes, x, own, other)
    return y if to is None else levels(y, to, passes)


def _convolve(layer: _Layer, passes: Passes, x: Tensor, bits: int, to: ActivationGrid | None) -> Tensor:
    """Return the value of a region that adds nothing; rounded for the layer whose grid is `to`."""
    convolution = layer.packed(bits, x)
    scale, bias = layer.scales(bits, to)
    if convolution.split.low_outputs == 0 and to is not None:
        return layer.like_inputs(convolution.levels(layer.as_images(x), scale, bias, to.largest), x)
    if convolution.split.low_outputs == 0:
        return layer.like_inputs(convolution(layer.as_images(x), scale, bias, relu=layer.region.relu), x)
    accumulators = convolution.accumulators(layer.as_images(x))
    parts = _parts(accumulators, convolution.split)
    if to is not None:
        rows = passes.combined_levels(*parts, scale, bias, torch.tensor(float(to.largest)))
    else:
        rows = passes.combined(*parts, scale, bias, layer.least)
    return layer.like_inputs(_images(rows, accumulators), x)


def _convolve_and_add(layer: _Layer, passes: Passes, x: Tensor, bits: int, other: Tensor) -> Tensor:
    """Return the value of a region that adds `other`, in float32."""
    convolution = layer.packed(bits, x)
    scale, bias = layer.scales(bits, None)
    if convolution.split.low_outputs == 0:
        y = layer.like_inputs(convolution(layer.as_images(x), scale, bias), x)
        if y.shape == other.shape:
            return _shaped(passes.added(_rows(y), _rows(other), layer.least), y.shape)
    else:
        accumulators = convolution.accumulators(layer.as_images(x))
        parts = _parts(accumulators, convolution.split)
        if other.shape == (len(x), len(scale), *accumulators.shape[2:]):
            rows = passes.combined_and_added(*parts, scale, bias, _rows(other), layer.least)
            return _images(rows, accumulators)
        y = layer.like_inputs(_images(passes.combined(*parts, scale, bias, _NO_BOUND), accumulators), x)
    return torch.maximum(y + other, layer.least)  # it has another shape, which torch repeats


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


def _images(rows: Tensor, like: Tensor) -> Tensor:
    """Return (pixels, C) as (N, C, H, W), with the N, H and W of `like`."""
    return _shaped(rows, (len(like), rows.shape[1], *like.shape[2:]))
