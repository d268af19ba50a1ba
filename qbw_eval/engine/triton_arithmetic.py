"""Integers convolved by Triton: a bank of weights and a table of epilogues per layer; is it to be trusted at all?"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property, partial

import torch
from torch import Tensor

from qbw_eval.engine.cache import BoundedCache
from qbw_eval.engine.convolutions import Affine, SplitOf, limits_of, rounding_for, window_of
from qbw_eval.engine.packing import Split, split_weights
from qbw_eval.engine.passes import PLAIN, Passes
from qbw_eval.engine.triton_kernels import (
    Addend,
    Epilogues,
    Levels,
    Rounding,
    Tile,
    WeightBank,
    Window,
    convolve,
    rounded,
    weight_bank,
)
from qbw_eval.engine.tuning import Tuner, workload_of
from qbw_eval.quantization.bitwidths import restored
from qbw_eval.quantization.layers import ActivationGrid, QuantConv2d, QuantLinear
from schemas.errors import first_line

_MOST_BITS = 8
"""The widest activations that fit into uint8."""


class TritonArithmetic:
    """See `convolutions.Arithmetic`.

    Args:
        device: a CUDA device; or the CPU, where Triton's interpreter does the same, slowly.
        cache_bytes: how much may be spent on banks of weights.
        tuner: picks tiles; the device's own if left out.
    """

    most_bits = _MOST_BITS
    passes = Passes(
        compiled=False,
        levels_by_clipping=lambda x, clipping, largest: _levels(x, clipping, largest, Rounding.CLIPPING),
        levels_by_step=lambda x, step, largest: _levels(x, step, largest, Rounding.STEP),
    )

    def __init__(self, device: torch.device, cache_bytes: int, tuner: Tuner | None = None) -> None:
        self.device = device
        self._tuner = tuner or Tuner(device)
        self._banks: BoundedCache[tuple[WeightBank, tuple[int, ...]]] = BoundedCache(cache_bytes)

    def why_not(self, devices: Sequence[torch.device]) -> str | None:
        """Return why the kernels cannot be trusted with a network on these devices; None where they can."""
        if any(device != self.device for device in devices):
            return f"it runs on {self.device} only"
        return why_not_on(self.device)

    def split(self, integers: Tensor, largest_activation: int, groups: int) -> Split | str:
        """Return integer weights in parts that the kernel knows; or why there are none."""
        if groups != 1:
            return "it is grouped"
        split = split_weights(integers, largest_activation, pairs_saturate=False)
        shifted = 128 * int(integers.abs().max()) * integers[0].numel()
        if split is None or shifted >= 2**31:
            return "its sums do not fit into 32 bits"
        return split if split.low_outputs <= 1 else "its weights fit neither into int8 nor are they odd"

    def of_layer(self, layer: QuantConv2d | QuantLinear, split_of: SplitOf) -> "TritonConvolution":
        """Return what convolves for a layer."""
        return TritonConvolution(layer, split_of, self.device, self._banks, self._tuner)


def _levels(x: Tensor, unit: Tensor, largest: Tensor, rounding: Rounding) -> Tensor:
    """Return x rounded to levels in one launch; numbers of another kind follow torch's own rules."""
    if x.dtype != torch.float32:
        return (PLAIN.levels_by_step if rounding is Rounding.STEP else PLAIN.levels_by_clipping)(x, unit, largest)
    return rounded(x, torch.stack([largest, unit]), rounding)


class TritonConvolution:
    """See `convolutions.LayerConvolution`. Bitwidths, scales and levels are picked on the device.

    Args:
        layer: on the CPU.
        split_of: its integer weights.
        device: where images are.
        banks: where banks are kept.
        tuner: picks tiles.
    """

    def __init__(
        self,
        layer: QuantConv2d | QuantLinear,
        split_of: SplitOf,
        device: torch.device,
        banks: BoundedCache[tuple[WeightBank, tuple[int, ...]]],
        tuner: Tuner,
    ) -> None:
        self._layer = layer
        self._split_of = split_of
        self._device = device
        self._banks = banks
        self._tuner = tuner
        self._ways: dict[tuple[Affine, tuple[float, float]], int] = {}
        self._epilogues = Epilogues(*(torch.empty(0, width, device=device) for width in (*[len(layer.weight)] * 2, 2)))
        self._choices: dict[tuple[int, int], Tensor] = {}

    @property
    def bank(self) -> tuple[WeightBank, tuple[int, ...]]:
        """The weights at every bitwidth that has integers, and which bitwidths those are."""
        return self._banks.get(self._layer, self._make_bank)

    @property
    def epilogues(self) -> Epilogues:
        """What follows the convolution in every way met so far; earlier ones keep their rows."""
        return self._epilogues

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
        """Return what the protocol says, in one launch."""
        bank, bitwidths = self.bank
        choice = bitwidths.index(bits), self.way(affine, to)
        if choice not in self._choices:
            self._choices[choice] = torch.tensor(choice, dtype=torch.int32, device=self._device)
        return self.launch(
            *(images, bank, self._epilogues, self._choices[choice]),
            relu=relu,
            other=other,
            rounding=rounding_for(to, added=other is not None),
        )

    def launch(
        self,
        images: Tensor,
        bank: WeightBank,
        epilogues: Epilogues,
        choice: Tensor,
        *,
        relu: bool,
        other: Tensor | Addend | None,
        rounding: Rounding,
        out: Tensor | None = None,
        levels: Sequence[Levels] = (),
    ) -> Tensor:
        """Return what `triton_kernels.convolve` does, with the fastest tile; the first launch of its kind is tuned."""
        convolved = partial(
            convolve, bank=bank, epilogues=epilogues, choice=choice, window=self.window, relu=relu, rounding=rounding
        )
        own = Addend(images, bank, epilogues, choice, self.window)
        besides = tuple(each.rounding for each in levels)
        workload = workload_of(own, relu=relu, other=other, rounding=rounding, levels=besides)

        def try_with(tile: Tile) -> list[Tensor]:
            few = workload.samples
            beside = [replace(each, out=torch.empty_like(each.out[:few])) for each in levels]
            added = replace(other, x=other.x[:few]) if isinstance(other, Addend) else other
            added = added[:few] if isinstance(added, Tensor) else added
            value = convolved(images[:few], other=added, tile=tile, levels=beside)
            return [value, *(each.out for each in beside)]

        return convolved(images, other=other, tile=self._tuner.tile(workload, try_with), out=out, levels=levels)

    @cached_property
    def window(self) -> Window:
        """What the layer slides over its images."""
        return window_of(self._layer)

    def _make_bank(self) -> tuple[tuple[WeightBank, tuple[int, ...]], int]:
        with restored(self._layer):  # on the CPU it is the network's own, whose bits others may look at
            found = {bits: self._split_of(bits) for bits in self._layer.bitwidth_options if bits <= _MOST_BITS}
        splits = {bits: split for bits, split in found.items() if isinstance(split, Split)}
        bank = weight_bank(list(splits.values()), self._device)
        return (bank, tuple(splits)), bank.size

    def way(self, affine: Affine, to: ActivationGrid | None) -> int:
        """Return the row of `epilogues` that leads to these values or levels; a new one where it is new."""
        limits = limits_of(to)
        way = self._ways.setdefault((affine, limits), len(self._ways))
        if way == len(self._epilogues.scales):
            new = (affine.scale, affine.bias, torch.tensor(limits))
            old = (self._epilogues.scales, self._epilogues.biases, self._epilogues.limits)
            self._epilogues = Epilogues(
                *(torch.cat([rows, row.to(self._device)[None]]) for rows, row in zip(old, new, strict=True))
            )
        return way


# --- is it to be trusted --------------------------------------------------------------------------------------------


@cache
def why_not_on(device: torch.device) -> str | None:
    """Return why the kernels cannot be trusted on a device, having tried them there; None where they can."""
    try:
        exact = (
            _exact(device, 255, 127, Rounding.NONE, Tile())
            and all(_exact(device, 255, 255, how) for how in Rounding)
            and all(_exact_beside(device, convolved=False, early=early) for early in (False, True))
            and _exact_beside(device, convolved=True, early=False)
            and all(_rounds_exactly(device, unit) for unit in _TRIED_UNITS)
        )
    except Exception as error:  # whatever a compiler, a driver or a device may say
        return f"Triton's convolution does not run on {device} ({first_line(error)})"
    return None if exact else f"Triton's convolution of integers is not exact on {device}"


_TRIED_UNITS = (1.0, 0.7, 1 / 3, 1.9999999, 2.0**-40)


def _rounds_exactly(device: torch.device, unit: float) -> bool:
    """Compare values at and beside every tie, and infinities, with what division makes of them."""
    largest, unit_of = torch.tensor(float(2**_MOST_BITS - 1)), torch.tensor(unit)
    ties = (torch.arange(2**_MOST_BITS) + 0.5) * unit_of
    x = torch.cat([ties, ties / largest, torch.tensor([float("inf"), float("-inf"), float("nan")])])
    up, down = torch.nextafter(x, torch.tensor(float("inf"))), torch.nextafter(x, torch.tensor(float("-inf")))
    x = torch.cat([x, up, down])
    limits = torch.stack([largest, unit_of]).to(device)
    return all(
        torch.equal(rounded(x.to(device), limits, how).cpu(), by(x.nan_to_num(nan=0.0), unit_of, largest))
        for how, by in ((Rounding.CLIPPING, PLAIN.levels_by_clipping), (Rounding.STEP, PLAIN.levels_by_step))
    )


def _exact_beside(device: torch.device, *, convolved: bool, early: bool) -> bool:
    """Compare what is added, and the levels that two readers get of the sum, with what they must be."""
    generator = torch.Generator().manual_seed(0)
    cl = torch.channels_last
    scale, rows = 2.0**-16, (((1, 20), 2.0**-16), ((1, 20), 0.0), ((1, 2), 0.0))

    def addend(channels: int, window: Window) -> tuple[Addend, Tensor]:
        """Return a convolution to (2, 20, 5, 5) on the device, and its values."""
        size = 4 * window.stride[0] + 1
        x = torch.randint(0, 256, (2, channels, size, size), generator=generator, dtype=torch.uint8)
        weights = torch.randint(-128, 128, (20, channels, *window.kernel), generator=generator, dtype=torch.int32)
        split = split_weights(weights, 255, pairs_saturate=False)
        assert split is not None
        epilogues = Epilogues(*(torch.full(shape, value, device=device) for shape, value in rows))
        choice = torch.zeros(2, dtype=torch.int32, device=device)
        bank = weight_bank([split], device)
        sums = torch.nn.functional.conv2d(
            x.double(), weights.double(), stride=window.stride, padding=window.padding
        ).float()
        return Addend(x.contiguous(memory_format=cl).to(device), bank, epilogues, choice, window), sums * scale

    own, values = addend(40, Window())
    along, added = addend(33, Window((3, 3), (2, 2), (1, 1)))
    units = torch.tensor([[15.0, 0.7], [255.0, 0.01]])
    beside = [
        Levels(how, units.to(device), torch.tensor([row], dtype=torch.int32, device=device), out)
        for row, how in enumerate((Rounding.CLIPPING, Rounding.STEP))
        for out in [torch.empty((2, 20, 5, 5), dtype=torch.uint8, device=device, memory_format=cl)]
    ]
    found = convolve(
        *(own.x, own.bank, own.epilogues, own.choice, own.window),
        relu=True,
        other=along if convolved else added.contiguous(memory_format=cl).to(device),
        tile=Tile(16, 16, 32, early=early),
        levels=beside,
    )
    value = (values + added).relu()
    levels = [
        by(value, unit, largest)
        for by, (largest, unit) in zip((PLAIN.levels_by_clipping, PLAIN.levels_by_step), units, strict=True)
    ]
    return torch.equal(found.cpu(), value) and all(
        torch.equal(each.out.cpu(), expected) for each, expected in zip(beside, levels, strict=True)
    )


def _exact(device: torch.device, activation: int, magnitude: int, rounding: Rounding, tile: Tile | None = None) -> bool:
    """Compare the largest sums, mixed ones, a border, and ties with what they must be."""
    x = torch.full((1, 48, 5, 5), activation, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    x[:, :, 2:, 1] = 1
    weights = torch.full((20, 48, 3, 3), magnitude, dtype=torch.int32)
    weights[::2, 24:] *= -1
    weights[1::4] *= -1
    split = split_weights(weights, activation, pairs_saturate=False)
    assert split is not None
    window = Window((3, 3), (2, 1), (1, 1))
    found = convolve(
        x.to(device),
        weight_bank([split], device),
        Epilogues(
            torch.full((1, 20), 0.5, device=device),
            torch.full((1, 20), 0.25, device=device),
            torch.tensor([[15.0, 7.0]], device=device),
        ),
        torch.zeros(2, dtype=torch.int32, device=device),
        window,
        rounding=rounding,
        tile=tile,
    )
    sums = torch.nn.functional.conv2d(x.double(), weights.double(), stride=window.stride, padding=window.padding)
    value = sums.float() * 0.5 + 0.25
    match rounding:
        case Rounding.SCALED:
            value = value.clamp(0, 15).round()
        case Rounding.CLIPPING:
            value = (value.clamp(0, 7) * 15 / 7).round()
        case Rounding.STEP:
            value = (value / 7).clamp(0, 15).round()
    return torch.equal(found.cpu().float(), value)
