"""Tensors in the narrowest form from which every bit comes back: how data are kept on a GPU, and sent to it.

Images that were bytes once have at most 256 different values a channel, however they were scaled and normalized. So
each value can be kept as one byte, its place among them: indexed colour, as in a GIF. Four times as many samples stay
on the device, and a quarter of the bytes are sent to those that do not. What comes out are the very bits that went in.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

import torch
from torch import Tensor

_MOST_VALUES: Final = 256  # that a byte can tell apart
_MOST_CHANNELS: Final = 64  # more are features, whose values are many; each has a table of 64 KiB while it is looked at
_SLOTS: Final = 2**16
_FIRST: Final = 2**16  # bytes that are looked at first: most data that have too many values show it there
_PIECE: Final = 2**22  # bytes that are looked at at a time; what that takes beside them is a few times as much

_INTEGERS: Final = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_CPU: Final = torch.device("cpu")


class Form(Protocol):
    """How a tensor is kept. Invariant: `widened(narrowed(tensor))` has the bits of every tensor that it was made for.

    Both work on any samples of it, and keep the layout in memory (channels_last, for instance).
    """

    @property
    def kept(self) -> torch.dtype:
        """The type of what is kept: one element for each."""
        ...

    @property
    def nbytes(self) -> int:
        """How many bytes are kept beside the elements."""
        ...

    def narrowed(self, tensor: Tensor) -> Tensor:
        """Return what is kept of some samples, which lie on the CPU."""
        ...

    def widened(self, values: Tensor) -> Tensor:
        """Return the samples again, of which `values` were kept, on the device where those are."""
        ...

    def to(self, device: torch.device) -> "Form":
        """Return the same for values on a device; it can widen there, and nothing else."""
        ...


@dataclass(frozen=True)
class Cast:
    """Elements as another type that holds them exactly; or as they are, where both are the same.

    Attributes:
        wide: the type of the tensor.
        kept: the narrower one.
    """

    wide: torch.dtype
    kept: torch.dtype
    nbytes: int = 0

    def narrowed(self, tensor: Tensor) -> Tensor:  # noqa: D102 - see Form
        return tensor.to(self.kept)

    def widened(self, values: Tensor) -> Tensor:  # noqa: D102
        return values.to(self.wide)

    def to(self, _device: torch.device) -> "Cast":  # noqa: D102
        return self


@dataclass(frozen=True, eq=False)
class Palette:
    """Elements of float32 as bytes: each its place among the values that its channel has.

    Where a value has its place is found by multiplication: no two patterns of a channel have the same upper 16 bits of
    their product with its multiplier, so these say where to look. (2 ns a value; bisection takes 50.)

    Attributes:
        patterns: (channels, K) int32, K <= 256: the values' bits; of a channel that has fewer, the last repeated. One
            channel where a tensor (N, ...) has fewer than three dimensions, or more than 64 channels.
        multipliers: (channels,) int32.
        places: (channels * 2**16,) uint8: where a pattern stands, by the upper half of its product.
    """

    patterns: Tensor
    multipliers: Tensor
    places: Tensor

    @classmethod
    def of(cls, values: list[Tensor]) -> "Palette":
        """Return the palette of (K,) int32 patterns for each channel, all different, 0 < K <= 256."""
        width = max(map(len, values))
        multipliers = torch.tensor([_multiplier_for(own) for own in values], dtype=torch.int32)
        places = torch.zeros((len(values), _SLOTS), dtype=torch.uint8)
        for own, multiplier, row in zip(values, multipliers, places, strict=True):
            row[_slots(own, multiplier).long()] = torch.arange(len(own), dtype=torch.uint8)
        patterns = torch.stack([torch.cat([own, own[-1:].expand(width - len(own))]) for own in values])
        return cls(patterns=patterns, multipliers=multipliers, places=places.view(-1))

    @property
    def kept(self) -> torch.dtype:  # noqa: D102 - see Form
        return torch.uint8

    @property
    def nbytes(self) -> int:  # noqa: D102
        return self.patterns.nbytes

    def narrowed(self, tensor: Tensor) -> Tensor:  # noqa: D102
        index = _slots(tensor.view(torch.int32), _along_channels(self.multipliers, tensor.ndim))
        return _looked_up(self.places, index.add_(self._firsts(_SLOTS, tensor)))

    def widened(self, values: Tensor) -> Tensor:  # noqa: D102
        return self._patterns_of(values).view(torch.float32)

    def to(self, device: torch.device) -> "Palette":  # noqa: D102
        return replace(self, patterns=self.patterns.to(device))

    def lacks(self, tensor: Tensor) -> Tensor:
        """Return, for each element of some samples, whether it is none of the values of its channel."""
        return self._patterns_of(self.narrowed(tensor)) != tensor.view(torch.int32)

    def _patterns_of(self, values: Tensor) -> Tensor:
        return _looked_up(self.patterns.view(-1), values + self._firsts(self.patterns.shape[1], values))

    def _firsts(self, width: int, like: Tensor) -> Tensor:
        """Return where each channel begins in a table of so many entries a channel."""
        stop = width * len(self.patterns)
        return _along_channels(torch.arange(0, stop, width, dtype=torch.int32, device=like.device), like.ndim)


@dataclass(frozen=True, eq=False)
class Narrow:
    """A tensor (N, ...), or some of its samples, as it is kept.

    Attributes:
        values: (N, ...) what is kept of each element.
        form: how they become elements again.
    """

    values: Tensor
    form: Form

    @property
    def nbytes(self) -> int:
        """How many bytes this takes."""
        return self.values.nbytes + self.form.nbytes

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: slice) -> "Narrow":
        return Narrow(self.values[part], self.form)

    def to(self, device: torch.device) -> "Narrow":
        """Return the same on a device."""
        return Narrow(self.values.to(device), self.form.to(device))

    def widened(self) -> Tensor:
        """Return the tensor, bit for bit; a view of what is kept where that is the tensor itself."""
        return self.form.widened(self.values)


def narrowed(tensor: Tensor, form: Form | None = None, device: torch.device = _CPU) -> Narrow:
    """Return a tensor in its narrowest form, or in one that was found for it, on a device.

    Beside the result this needs memory for a piece of the tensor only; where the tensor is kept as it is and where it
    is, none: the result is the tensor.

    Args:
        tensor: (N, ...), on the CPU, of any layout.
        form: as `form_of` returns it for this tensor, or for one that this is some samples of.
        device: where to keep it.
    """
    form = form_of(tensor) if form is None else form
    if form.kept == tensor.dtype:
        return Narrow(tensor.to(device), form.to(device))
    values = torch.empty_like(tensor, dtype=form.kept, device=device)
    for part in _pieces(tensor):
        values[part] = form.narrowed(tensor[part])
    return Narrow(values, form.to(device))


def as_it_is(tensor: Tensor) -> Narrow:
    """Return a tensor kept as it is, where it is."""
    return Narrow(tensor, Cast(tensor.dtype, tensor.dtype))


def form_of(tensor: Tensor) -> Form:
    """Return the form in which a tensor (N, ...) on the CPU takes the fewest bytes.

    float32 becomes a palette, or float16 or bfloat16 where these hold every value; an integer type the narrowest that
    does. Whatever is none of these stays as it is. All elements are looked at, once a form, and no further than to the
    first piece that tells that it will not do.
    """
    forms: list[Form | None] = [Cast(tensor.dtype, tensor.dtype)]
    if tensor.numel() == 0:
        pass
    elif tensor.dtype == torch.float32:
        forms += [_palette_of(tensor), *(_half_of(tensor, half) for half in (torch.float16, torch.bfloat16))]
    elif tensor.dtype in _INTEGERS:
        forms += [Cast(tensor.dtype, _narrowest_integer(tensor))]
    return min((form for form in forms if form is not None), key=lambda form: bytes_in(form, tensor))


def bytes_in(form: Form, tensor: Tensor) -> int:
    """Return how many bytes a tensor takes in a form."""
    return tensor.numel() * form.kept.itemsize + form.nbytes


def _palette_of(tensor: Tensor) -> Palette | None:
    """Return the palette of a float32 tensor; None where a channel has too many values."""
    by_channel = tensor.ndim > 2 and tensor.shape[1] <= _MOST_CHANNELS
    values = [torch.empty(0, dtype=torch.int32) for _ in range(tensor.shape[1] if by_channel else 1)]
    palette: Palette | None = None
    for part in _pieces(tensor):
        piece = tensor[part]
        lacking = torch.ones_like(piece, dtype=torch.bool) if palette is None else palette.lacks(piece)
        if not lacking.any():
            continue
        channels = [piece.view(torch.int32)] if len(values) == 1 else piece.view(torch.int32).unbind(1)
        absent = [lacking] if len(values) == 1 else lacking.unbind(1)
        values = [
            torch.cat([own, torch.unique(found[new])]) for own, found, new in zip(values, channels, absent, strict=True)
        ]
        if max(map(len, values)) > _MOST_VALUES:
            return None
        palette = Palette.of(values)
    return palette


def _half_of(tensor: Tensor, kept: torch.dtype) -> Cast | None:
    """Return the cast of a float32 tensor to a type of 16 bits; None where it would lose something.

    Never of a NaN: which one comes back depends on the device.
    """
    for part in _pieces(tensor):
        piece = tensor[part]
        back = piece.to(kept).float()
        if not torch.equal(back.view(torch.int32), piece.view(torch.int32)) or bool(piece.isnan().any()):
            return None
    return Cast(tensor.dtype, kept)


def _narrowest_integer(tensor: Tensor) -> torch.dtype:
    least, most = (int(bound) for bound in tensor.aminmax())
    limits = ((dtype, torch.iinfo(dtype)) for dtype in _INTEGERS)
    return next(dtype for dtype, limit in limits if limit.min <= least and most <= limit.max)


def _pieces(tensor: Tensor) -> Iterator[slice]:
    """Yield which samples to look at together, in order; at first few, then more."""
    a_sample = max(1, tensor[:1].nbytes)
    first, wanted = 0, _FIRST
    while first < len(tensor):
        count = max(1, wanted // a_sample)
        yield slice(first, first + count)
        first, wanted = first + count, min(4 * wanted, _PIECE)


def _multiplier_for(patterns: Tensor) -> int:
    """Return an odd number with which no two of (K,) patterns share a slot, as int32.

    Of all odd numbers at least one in 256 does: two patterns share a slot with at most 2 in 2**16 of them
    (Dietzfelbinger et al. 1997, A reliable randomized algorithm for the closest-pair problem), and 256 patterns are
    32,640 pairs.
    """
    candidates = random.Random(0)
    while True:
        multiplier = candidates.randrange(1, 2**32, 2) - 2**31
        slots = _slots(patterns, torch.tensor(multiplier, dtype=torch.int32))
        if len(torch.unique(slots)) == len(patterns):
            return multiplier


def _slots(patterns: Tensor, multiplier: Tensor) -> Tensor:
    """Return the upper 16 bits of the products modulo 2**32, as int32."""
    return (patterns * multiplier).bitwise_right_shift_(16).bitwise_and_(_SLOTS - 1)


def _along_channels(values: Tensor, ndim: int) -> Tensor:
    """Return (channels,) values so that they broadcast along the second of so many dimensions."""
    return values.view(1, -1, *[1] * (ndim - 2)) if ndim > 1 else values


def _looked_up(table: Tensor, index: Tensor) -> Tensor:
    """Return `table[index]` of a table (K,) and an int32 index, in the index's layout in memory.

    As an index select, which takes int32 as it is: indexing would make int64 of it first.
    """
    strides = index.stride()
    order = sorted(range(index.ndim), key=lambda axis: -strides[axis])  # outermost first
    there = index.permute(order)
    found = table.index_select(0, there.reshape(-1)).view(there.shape)
    return found.permute(sorted(range(index.ndim), key=order.__getitem__))
