"""Operations of the integer engine with bits as data: what differs between bitwidths lies in tables on the device.

A captured CUDA graph repeats the very same launches. So each launch here is the same for every bitwidth of one *form*,
and reads two numbers, its *dial*, on the device: which weights of a bank, which scales, levels or batch norm of a
table. A layer has one form in integers, and one in float32 for each way in which its input is rounded there; above 8
bits a form is bits of its own where an input is not rounded to a grid at all.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbw_eval.engine.convolutions import limits_of, rounding_for
from qbw_eval.engine.integer_region import IntegerRegion
from qbw_eval.engine.passes import PLAIN, rows_of, shaped
from qbw_eval.engine.triton_arithmetic import TritonConvolution
from qbw_eval.engine.triton_kernels import MOST_LEVELS, Addend, Epilogues, Levels, Rounding, WeightBank, rounded
from qbw_eval.engine.walk import Addition, Bits, Dialled, Ride, UnreplayableError
from qbw_eval.quantization.bitwidths import set_bitwidth
from qbw_eval.quantization.layers import ActivationGrid, QuantConv2d, SwitchableBatchNorm2d

_MOST_PRODUCTS = 1024
"""Of a value, up to which a convolution that is added runs in the same launch. It saves writing the values and reading
them back, but sums of two convolutions leave registers for smaller tiles only. On an H200 that paid for 128, 384 and
768 products (ResNet-50), made no difference for 1536, and cost time for 1216 (ResNet-18)."""


@dataclass(frozen=True)
class _Form:
    """What a region launches.

    Attributes:
        integers: whether its layer runs in integers.
        input: how its input is rounded in float32; or the bits at which the layer itself does what it does to it.
        result: how its value is rounded for its reader.
    """

    integers: bool
    input: Rounding | int
    result: Rounding


class DialledRegion:
    """See `walk.DialledCarrier`; the twin of `IntegerRegion.run`.

    Args:
        region: one whose arithmetic is Triton's.
        options: the bitwidths that will be asked for.
    """

    def __init__(self, region: IntegerRegion, options: Sequence[int]) -> None:
        assert isinstance(region.convolution, TritonConvolution)
        self._region = region
        self._layer = region.region.layer
        self._options = tuple(options)
        self._convolution = region.convolution
        self._device = self._layer.weight.device

    def form(self, bits: Bits) -> Hashable | None:
        """Return what is launched at these bits."""
        return self._forms.get(self._key(bits))

    def dial(self, bits: Bits) -> tuple[int, int]:
        """Return rows of the bank of weights and of the table of epilogues; in float32, of options twice."""
        return self._dials[self._key(bits)]

    def run(self, inputs: Sequence[Any], form: Hashable, dial: Tensor, out: Tensor | None) -> Tensor:
        """Return the region's value."""
        assert isinstance(form, _Form)
        x, *others = inputs
        if form.integers:
            return self._in_integers(x, others, form, dial, out)
        y = self._in_float32(x, others, form, dial)
        return y if form.result is Rounding.NONE else _levels(y, _of(self._reader_limits, dial[1:]), form.result, out)

    def carries(self, form: Hashable) -> int:
        """Return of how many layers that read its value the input is rounded along, where it is images in float32."""
        assert isinstance(form, _Form)
        fits = form.integers and form.result is Rounding.NONE and isinstance(self._layer, QuantConv2d)
        return MOST_LEVELS if fits else 0

    def adds(self, form: Hashable, summand: Dialled, of_summand: Hashable) -> bool:
        """Return whether both are convolutions of integers, the other's value is nothing but that, and it pays."""
        assert isinstance(form, _Form)
        return (
            isinstance(summand, DialledRegion)
            and sum(each._layer.weight[0].numel() for each in (self, summand)) <= _MOST_PRODUCTS
            and form.integers
            and of_summand == _Form(integers=True, input=Rounding.NONE, result=Rounding.NONE)
            and self._region.region.other is not None
            and summand._region.region.other is None
            and not summand._region.region.relu
            and all(isinstance(layer, QuantConv2d) for layer in (self._layer, summand._layer))
        )

    def run_with(
        self,
        inputs: Sequence[Any],
        form: Hashable,
        dial: Tensor,
        out: Tensor | None,
        rides: Sequence[Ride],
        addition: Addition | None,
    ) -> tuple[Tensor, ...]:
        """Return the region's value, and the same rounded for those that read it."""
        assert isinstance(form, _Form)
        x, *others = inputs
        levels = [self._levels_of(ride, x) for ride in rides]
        if addition is not None:
            assert isinstance(addition.summand, DialledRegion)
            others = [addition.summand._addend(addition.inputs[0], addition.dial, self._region.shape_for(x))]
        return (self._in_integers(x, others, form, dial, out, levels), *(each.out for each in levels))

    def _addend(self, x: Tensor, dial: Tensor, shape: tuple[int, ...]) -> Addend:
        """Return the convolution of an input x, for another region's launch to add to values of a shape."""
        if self._region.shape_for(x) != shape:
            raise UnreplayableError("it adds values of another shape")
        return Addend(self._region.as_images(x), self._bank[0], self._epilogues, dial, self._convolution.window)

    def _levels_of(self, ride: Ride, x: Tensor) -> Levels:
        """Return what is written for a rider, for an input x."""
        out, rider = ride.out, ride.rider
        assert isinstance(rider, DialledRounding)
        assert isinstance(ride.form, Rounding)
        if out is None:
            shape = self._region.shape_for(x)
            out = torch.empty(shape, dtype=torch.uint8, device=x.device, memory_format=torch.channels_last)
        return Levels(ride.form, rider.limits, ride.dial[:1], out)

    def _key(self, bits: Bits) -> tuple[int, int]:
        own = bits[self._region.position]
        return own, own if self._region.reader is None else bits[self._region.reader.position]

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        """The bits of the layer and of its reader, together."""
        alone = self._region.reader is None
        return [(own, other) for own in self._options for other in ([own] if alone else self._options)]

    def _grid_of_reader(self, bits: int) -> ActivationGrid | None:
        return None if self._region.reader is None else self._region.reader.grid(bits)

    @cached_property
    def _forms(self) -> dict[tuple[int, int], _Form]:
        forms = {}
        for own, other in self._pairs:
            to, integers = self._grid_of_reader(other), self._region.grid(own) is not None
            added = self._region.region.other is not None or not integers
            forms[own, other] = _Form(
                integers, Rounding.NONE if integers else self._rounding_at(own), rounding_for(to, added=added)
            )
        return forms

    def _rounding_at(self, bits: int) -> Rounding | int:
        """Return how the layer's input is rounded in float32."""
        grid = self._region.at(bits).activation_grid()
        return bits if grid is None or not grid.unit > 0 else rounding_for(grid, added=True)

    @cached_property
    def _dials(self) -> dict[tuple[int, int], tuple[int, int]]:
        """All of them, so that the table of epilogues has all its rows."""
        dials = {}
        for own, other in self._pairs:
            dials[own, other] = self._options.index(own), self._options.index(other)
            if self._forms[own, other].integers:
                to = self._grid_of_reader(other)
                of_norm = other if self._region.norm_follows_reader else own
                affine = self._region.affine(own, of_norm, None if self._region.region.other is not None else to)
                dials[own, other] = self._bank[1].index(own), self._convolution.way(affine, to)
        return dials

    # --- in integers ------------------------------------------------------------------------------------------------

    @cached_property
    def _bank(self) -> tuple[WeightBank, tuple[int, ...]]:
        """The weights. Held here, since what is captured does not keep them alive."""
        return self._convolution.bank

    @cached_property
    def _epilogues(self) -> Epilogues:
        """The table of epilogues, held likewise."""
        assert self._dials  # or it would lack rows
        return self._convolution.epilogues

    @property
    def held_bytes(self) -> int:
        """Bytes of weights that are held for as long as this lives."""
        integers = [form.integers for form in self._forms.values()]
        floats = 0 if all(integers) else len(self._options) * self._layer.weight.nbytes
        return floats + (self._bank[0].size if any(integers) else 0)

    def _in_integers(
        self,
        x: Tensor,
        others: Sequence[Tensor | Addend],
        form: _Form,
        dial: Tensor,
        out: Tensor | None,
        levels: Sequence[Levels] = (),
    ) -> Tensor:
        region, other = self._region, others[0] if others else None
        if other is not None and not isinstance(other, Addend):
            if not region.adds_alike(other, x):
                raise UnreplayableError("it adds values of another shape or kind")
            other = region.as_images(other)
        y = self._convolution.launch(
            *(region.as_images(x), self._bank[0], self._epilogues, dial),
            relu=region.region.relu,
            other=other,
            rounding=form.result,
            out=out if isinstance(self._layer, QuantConv2d) else None,
            levels=levels,
        )
        return region.like_input(y, x)

    # --- in float32 -------------------------------------------------------------------------------------------------

    def _in_float32(self, x: Tensor, others: Sequence[Tensor], form: _Form, dial: Tensor) -> Tensor:
        own = dial[:1]
        if isinstance(form.input, Rounding):
            largest, unit = _of(self._own_limits, own)
            by = PLAIN.values_by_step if form.input is Rounding.STEP else PLAIN.values_by_clipping
            x = shaped(by(rows_of(x), unit, largest), x.shape)
        else:
            set_bitwidth(self._layer, form.input)
            x = self._layer.quantize_activation(x)
        return self._region.finish(x, self._weight(own), self._batch_norm(dial), others)

    @cached_property
    def _float_weights(self) -> Tensor:
        """The quantized weights at every option, each as it lies in memory: (options, numbers)."""
        rows = []
        for bits in self._options:
            set_bitwidth(self._layer, bits)
            weight = torch.empty_like(self._layer.weight).copy_(self._layer.quantize_weight())
            rows.append(weight.as_strided((weight.numel(),), (1,)))
        return torch.stack(rows).detach()

    def _weight(self, own: Tensor) -> Tensor:
        like = self._layer.weight
        return self._float_weights.index_select(0, own).as_strided(like.shape, like.stride())

    def _batch_norm(self, dial: Tensor) -> Callable[[Tensor], Tensor] | None:
        norm = self._region.region.batch_norm
        if not isinstance(norm, SwitchableBatchNorm2d):
            return norm
        number = dial[1:] if self._region.norm_follows_reader else dial[:1]
        return lambda y: _normalized(y, self._norms, number)

    @cached_property
    def _norms(self) -> "_Norms":
        norm = self._region.region.batch_norm
        assert isinstance(norm, SwitchableBatchNorm2d)
        return _Norms.of(norm, self._options)

    @cached_property
    def _own_limits(self) -> Tensor:
        return _limits([self._region.at(bits).activation_grid() for bits in self._options], self._device)

    @cached_property
    def _reader_limits(self) -> Tensor:
        return _limits([self._grid_of_reader(bits) for bits in self._options], self._device)


class DialledRounding:
    """See `walk.DialledRider`; the twin of `IntegerRegion.round_input`.

    Args:
        region: the region.
        options: the bitwidths that will be asked for.

    Attributes:
        limits: (options, 2) float32, see `Epilogues.limits`.
    """

    def __init__(self, region: IntegerRegion, options: Sequence[int]) -> None:
        self._position = region.position
        self._options = tuple(options)
        grids = {bits: region.grid(bits) for bits in options}
        self._forms = {bits: rounding_for(grid, added=True) for bits, grid in grids.items()}
        self.limits = _limits(list(grids.values()), region.region.layer.weight.device)

    @property
    def held_bytes(self) -> int:
        """Bytes of the table of levels."""
        return self.limits.nbytes

    def form(self, bits: Bits) -> Hashable | None:
        """Return how the input is rounded."""
        return self._forms.get(bits[self._position])

    def dial(self, bits: Bits) -> tuple[int, int]:
        """Return the row of the table of levels."""
        return self._options.index(bits[self._position]), 0

    def run(self, inputs: Sequence[Any], form: Hashable, dial: Tensor, out: Tensor | None) -> Tensor:
        """Return the layer's input as uint8 integers, or as it is."""
        assert isinstance(form, Rounding)
        return inputs[0] if form is Rounding.NONE else _levels(inputs[0], _of(self.limits, dial[:1]), form, out)

    def rides(self, form: Hashable) -> bool:
        """Return whether anything is rounded."""
        return form is not Rounding.NONE


class DialledBatchNorm:
    """See `walk.Dialled`; the twin of a switchable batch norm that is no part of a region.

    Args:
        norm: the batch norm.
        position: of the layer whose bits it follows.
        options: the bitwidths that will be asked for.
    """

    def __init__(self, norm: SwitchableBatchNorm2d, position: int, options: Sequence[int]) -> None:
        self._position = position
        self._options = tuple(options)
        self._norms = _Norms.of(norm, options)

    @property
    def held_bytes(self) -> int:
        """Bytes of the table of batch norms."""
        return 4 * self._norms.means.nbytes

    def form(self, bits: Bits) -> Hashable | None:
        """Return that there is one form."""
        return "batch norm" if bits[self._position] in self._options else None

    def dial(self, bits: Bits) -> tuple[int, int]:
        """Return the row of the table of batch norms."""
        return self._options.index(bits[self._position]), 0

    def run(self, inputs: Sequence[Any], form: Hashable, dial: Tensor, out: Tensor | None) -> Tensor:  # noqa: ARG002 - of the protocol
        """Return the normalized input."""
        return _normalized(inputs[0], self._norms, dial[:1])


@dataclass(frozen=True)
class _Norms:
    """Batch norms of one place at every option: (options, channels) each."""

    means: Tensor
    variances: Tensor
    weights: Tensor
    biases: Tensor
    eps: float

    @classmethod
    def of(cls, norm: SwitchableBatchNorm2d, options: Sequence[int]) -> "_Norms":
        norms = [norm.batch_norm_at(bits) for bits in options]
        if any(type(each) is not nn.BatchNorm2d or each.running_mean is None or not each.affine for each in norms):
            raise UnreplayableError("one of its batch norms is none that QBW knows")
        if len({each.eps for each in norms}) > 1:
            raise UnreplayableError("its batch norms differ in more than what they learned")

        def stacked(name: str) -> Tensor:
            return torch.stack([getattr(each, name).detach() for each in norms])

        return cls(stacked("running_mean"), stacked("running_var"), stacked("weight"), stacked("bias"), norms[0].eps)


def _normalized(x: Tensor, norms: _Norms, number: Tensor) -> Tensor:
    mean, variance, weight, bias = (
        _of(table, number) for table in (norms.means, norms.variances, norms.weights, norms.biases)
    )
    return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=norms.eps)


def _levels(x: Tensor, limits: Tensor, rounding: Rounding, out: Tensor | None) -> Tensor:
    """Return x rounded to levels, uint8 in the shape of x; images in channels_last. It is `out` if that is given."""
    if x.dtype != torch.float32:
        raise UnreplayableError("it rounds values of another kind than float32")
    if out is None:
        return shaped(rounded(rows_of(x), limits, rounding), x.shape)
    rows = (out.permute(0, 2, 3, 1) if out.ndim == 4 else out).view(-1, x.shape[1 if x.ndim == 4 else -1])
    rounded(rows_of(x), limits, rounding, rows)  # which are a view, or there would have been an error
    return out


def _of(table: Tensor, number: Tensor) -> Tensor:
    """Return one row of a table; `number` is (1,) and is read on the device."""
    return table.index_select(0, number)[0]


def _limits(grids: Sequence[ActivationGrid | None], device: torch.device) -> Tensor:
    return torch.tensor([limits_of(grid) for grid in grids]).to(device)
