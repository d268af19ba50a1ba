"""Narrow forms: the same bits come back from as few bytes as a slow search finds, and memory is bounded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from qbw_eval.data import narrow
from qbw_eval.data.narrow import Cast, Narrow, Palette, as_it_is, bytes_in, form_of, narrowed

unhurried = settings(deadline=None, max_examples=100)  # a busy machine is no defect

ODD = [0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001]
ODD += [0x7FFFFFFF, 0xFFFFFFFF, 0x3F800000, 0x33800000, 0x33000000, 0x477FE000, 0x477FF000, 0x7F7FFFFF, 0x00800000]
"""Both zeros, the smallest numbers, infinities, NaNs quiet and signalling, the ends of float16, the largest number."""

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

# --- tensors ----------------------------------------------------------------------------------------------------------

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def from_bytes(source: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Images as they are prepared: bytes over 255, less a mean, over a deviation, channel by channel."""
    images = source.integers(0, 256, shape).astype(np.float32) / np.float32(255)
    along = (1, shape[1], *[1] * (len(shape) - 2)) if len(shape) > 1 else (1,)
    mean, std = (source.random(along).astype(np.float32) + np.float32(0.1) for _ in range(2))
    return (images - mean) / std


def from_a_pool(source: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Any bits, of which there may be few or many."""
    pool = source.integers(0, 2**32, int(source.integers(1, 600)), dtype=np.uint32)
    return source.choice(np.append(pool, np.array(ODD, dtype=np.uint32)), shape).view(np.float32)


FLOATS: dict[str, Draw] = {
    "images": from_bytes,
    "a pool": from_a_pool,
    "odd": lambda source, shape: source.choice(np.array(ODD, dtype=np.uint32), shape).view(np.float32),
    "any": lambda source, shape: source.standard_normal(shape, dtype=np.float32),
    "halves": lambda source, shape: source.standard_normal(shape).astype(np.float16).astype(np.float32),
    "upper halves": lambda source, shape: (
        source.standard_normal(shape, dtype=np.float32).view(np.uint32) & 0xFFFF0000
    ).view(np.float32),
    "one value": lambda source, shape: np.full(shape, source.standard_normal(), dtype=np.float32),
}


@st.composite
def float_tensors(draw: st.DrawFn) -> Tensor:
    """float32 (N, ...) of one to four dimensions, in any order in memory."""
    ndim = draw(st.integers(1, 4))
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=ndim, max_size=ndim)))
    if draw(st.booleans()):
        shape = (*shape[:-1], 64)  # so many values that a palette may not do
    source = np.random.default_rng(draw(st.integers(0, 2**32)))
    tensor = torch.from_numpy(FLOATS[draw(st.sampled_from(sorted(FLOATS)))](source, shape))
    order = draw(st.permutations(range(1, tensor.ndim)))
    back = sorted(range(tensor.ndim), key=[0, *order].__getitem__)
    return tensor.permute(0, *order).contiguous().permute(back)


@contextmanager
def pieces_of(size: int) -> Iterator[None]:
    """Look at so many bytes at a time, so that little tensors, too, have several pieces."""
    with mock.patch.object(narrow, "_FIRST", size), mock.patch.object(narrow, "_PIECE", 4 * size):
        yield


def bits_of(tensor: Tensor) -> np.ndarray:
    """Return float32 values as integers in the order of their indices."""
    return np.ascontiguousarray(tensor.numpy()).view(np.uint32)


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Every bit, and the layout in memory that a copy has."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if expected.dtype == torch.float32:
        assert np.array_equal(bits_of(found), bits_of(expected))
    else:
        assert torch.equal(found, expected)
    if expected.numel() > 0:
        copy = expected.clone()
        assert [stride for stride, side in zip(found.stride(), found.shape, strict=True) if side > 1] == [
            stride for stride, side in zip(copy.stride(), copy.shape, strict=True) if side > 1
        ]


# --- a slow search ----------------------------------------------------------------------------------------------------


def fewest_bytes(tensor: Tensor) -> int:
    """Return how many bytes the narrowest form of a float32 tensor takes: its values counted one by one."""
    bits = bits_of(tensor)
    sizes = [4 * bits.size]
    if bits.size == 0:
        return 0
    channels = range(bits.shape[1]) if bits.ndim > 2 and bits.shape[1] <= 64 else [slice(None)]
    counts = [len(set((bits if bits.ndim < 2 else bits[:, channel]).ravel().tolist())) for channel in channels]
    if max(counts) <= 256:
        sizes.append(bits.size + 4 * len(counts) * max(counts))
    values = bits.view(np.float32)
    if not np.isnan(values).any():
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16).astype(np.float32)
        if np.array_equal(halves.view(np.uint32), bits) or not (bits & 0xFFFF).any():
            sizes.append(2 * bits.size)
    return min(sizes)


@given(tensor=float_tensors(), size=st.sampled_from([1, 50, 300, 2**16]))
@unhurried
def test_every_bit_of_floats_comes_back_from_the_fewest_bytes(tensor: Tensor, size: int) -> None:
    with pieces_of(size):
        kept = narrowed(tensor)
    assert kept.nbytes == fewest_bytes(tensor)
    assert len(kept) == len(tensor)
    assert_same(kept.widened(), tensor)


@given(tensor=float_tensors(), first=st.integers(0, 9), count=st.integers(0, 9))
@unhurried
def test_some_samples_come_back_as_those(tensor: Tensor, first: int, count: int) -> None:
    form, part = form_of(tensor), slice(first, first + count)
    assert_same(narrowed(tensor, form)[part].widened(), tensor[part])
    assert_same(narrowed(tensor[part], form).widened(), tensor[part])
    assert bytes_in(form, tensor) == narrowed(tensor, form).nbytes


@pytest.mark.parametrize("wide", INTEGERS)
@given(data=st.data())
@settings(deadline=None, max_examples=20)
def test_integers_take_the_narrowest_type_that_holds_them(wide: torch.dtype, data: st.DataObject) -> None:
    limits = torch.iinfo(wide)
    ends = [sign * 2**power + off for power in range(64) for sign in (-1, 1) for off in (-1, 0, 1)]
    within = st.sampled_from([end for end in ends if limits.min <= end <= limits.max])
    values = data.draw(st.lists(within, min_size=1, max_size=9))
    tensor = torch.tensor(values, dtype=wide)
    kept = narrowed(tensor)
    fitting = [(0, 255, 1), (-128, 127, 1), (-(2**15), 2**15 - 1, 2), (-(2**31), 2**31 - 1, 4), (-(2**63), 2**63, 8)]
    size = next(size for least, most, size in fitting if least <= min(values) and max(values) <= most)
    assert kept.nbytes == size * len(values)
    assert_same(kept.widened(), tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([True, False]),
        torch.tensor([1.5, 2.5], dtype=torch.float64),
        torch.tensor([1.5], dtype=torch.float16),
        torch.empty((0, 3, 4)),
        torch.empty(0, dtype=torch.int64),
        torch.empty((3, 0, 2)),
    ],
    ids=str,
)
def test_what_is_neither_float32_nor_a_wide_integer_stays_as_it_is(tensor: Tensor) -> None:
    kept = narrowed(tensor)
    assert kept.values is tensor
    assert kept.widened() is tensor
    assert kept.nbytes == tensor.nbytes


@pytest.mark.parametrize("kept", INTEGERS)
def test_both_ends_of_an_integer_type_fit_into_it_and_no_more(kept: torch.dtype) -> None:
    limits = torch.iinfo(kept)
    for end, beyond in ((limits.min, limits.min - 1), (limits.max, limits.max + 1)):
        for values in ([end, 0], [end, 5]):
            form = form_of(torch.tensor(values))
            assert bytes_in(form, torch.tensor(values)) <= 2 * limits.bits // 8
        if kept != torch.int64:
            assert form_of(torch.tensor([limits.min, limits.max, beyond])).kept.itemsize > kept.itemsize
    if kept != torch.uint8:
        assert form_of(torch.tensor([limits.min, limits.max])) == Cast(torch.int64, kept)


# --- what the forms are -----------------------------------------------------------------------------------------------


def images(count: int = 40) -> Tensor:
    return torch.from_numpy(from_bytes(np.random.default_rng(3), (count, 3, 16, 16)))


def test_images_that_were_bytes_take_a_quarter_and_a_table() -> None:
    tensor = images()
    kept = narrowed(tensor)
    assert isinstance(kept.form, Palette)
    assert kept.values.dtype == torch.uint8
    assert len(torch.unique(tensor)) > 256, "no channel has the values of another"
    assert kept.nbytes == tensor.numel() + 3 * 256 * 4
    assert as_it_is(tensor).nbytes == tensor.nbytes


@pytest.mark.parametrize(
    ("shape", "channels"), [((600,), 1), ((60, 10), 1), ((60, 10, 3), 10), ((9, 64, 40), 64), ((9, 65, 40), 1)]
)
def test_channels_are_the_second_of_three_dimensions_unless_they_are_many(
    shape: tuple[int, ...], channels: int
) -> None:
    form = form_of(torch.arange(torch.Size(shape).numel()).remainder(7).div(3).view(shape))
    assert isinstance(form, Palette)
    assert form.patterns.shape[0] == channels


def test_channels_last_stays_channels_last() -> None:
    tensor = images().contiguous(memory_format=torch.channels_last)
    kept = narrowed(tensor)
    assert kept.values.is_contiguous(memory_format=torch.channels_last)
    assert kept[2:5].widened().is_contiguous(memory_format=torch.channels_last)
    assert_same(kept[2:5].widened(), tensor[2:5])


@pytest.mark.parametrize(
    ("tensor", "kept"),
    [
        (torch.linspace(-1, 1, 4096).half().float().view(8, 512), torch.float16),
        (torch.linspace(-1e30, 1e30, 4096).bfloat16().float().view(8, 512), torch.bfloat16),
        (torch.linspace(-1, 1, 4096).view(8, 512), torch.float32),
    ],
    ids=["float16", "bfloat16", "float32"],
)
def test_many_values_take_half_where_a_half_holds_them(tensor: Tensor, kept: torch.dtype) -> None:
    assert form_of(tensor) == Cast(torch.float32, kept)


def test_a_nan_is_never_left_to_a_cast() -> None:
    """Which one comes back depends on the device."""
    tensor = torch.linspace(-1, 1, 4096).half().float().view(8, 512)
    tensor[7, 511] = torch.nan
    assert form_of(tensor) == Cast(torch.float32, torch.float32)


def test_a_value_of_the_last_sample_that_is_one_too_many_is_seen() -> None:
    tensor = torch.arange(256.0).repeat(40).view(40, 256) / 3
    assert isinstance(form_of(tensor), Palette)
    tensor[-1, -1] = -0.0
    assert form_of(tensor) == Cast(torch.float32, torch.float32)


PATTERNS = {
    "neighbours": torch.arange(256),
    "the upper byte": torch.arange(256) << 24,
    "multiples of 2**16": torch.arange(256) << 16,
    "powers and their sums": torch.tensor([(1 << i) + (1 << j) for i in range(16) for j in range(16, 32)]),
    "both ends": torch.cat([torch.arange(128), -1 - torch.arange(128)]),
    "one": torch.tensor([7]),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_palette_finds_every_pattern_however_regular(name: str) -> None:
    own = PATTERNS[name].to(torch.int32)
    palette = Palette.of([own, torch.tensor([5, -5], dtype=torch.int32)])
    values = own.view(-1, 1, 1).expand(-1, 2, 1).contiguous()
    values[:, 1] = -5
    assert torch.equal(palette.widened(palette.narrowed(values.view(torch.float32))).view(torch.int32), values)
    assert not palette.lacks(values.view(torch.float32)).any()
    assert palette.lacks(torch.full((1, 2, 1), 1e-3)).all()


# --- how much is looked at, and at once -------------------------------------------------------------------------------


def test_a_first_piece_with_too_many_values_is_enough() -> None:
    """Of a tensor that nobody could go through: 2**40 samples, which are all the same 300 values in memory."""
    endless = torch.linspace(0.1, 1, 300).expand(2**40, 1, 300)
    assert form_of(endless) == Cast(torch.float32, torch.float32)


class Largest(TorchFunctionMode):
    """Notes the largest memory that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        theirs = {one.untyped_storage().data_ptr() for one in args if isinstance(one, Tensor)}
        for made in result if isinstance(result, list | tuple) else [result]:
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in theirs:
                self.nbytes = max(self.nbytes, made.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("halved", [False, True])
def test_memory_beside_the_result_is_a_piece(halved: bool) -> None:
    tensor = images(400)
    if halved:
        tensor = torch.linspace(-1, 1, tensor.numel()).half().float().view(tensor.shape)
    with pieces_of(2**13), Largest() as deciding:
        form = form_of(tensor)
    assert form.kept.itemsize == (2 if halved else 1)
    assert 0 < deciding.nbytes <= 3 * 2**16, "a piece, or a palette's tables"
    with pieces_of(2**13), Largest() as narrowing:
        kept = narrowed(tensor, form)
    assert narrowing.nbytes == kept.values.nbytes


def test_pieces_are_all_samples_once_and_grow() -> None:
    with pieces_of(100):
        parts = list(narrow._pieces(torch.zeros(1000, 5)))
    assert parts[0].start == 0
    assert all(one.stop == other.start for one, other in pairwise(parts))
    assert parts[-1].stop >= 1000
    sizes = [part.stop - part.start for part in parts]
    assert sizes[:3] == [5, 20, 20]


def test_a_narrow_tensor_moves_with_its_form() -> None:
    kept = narrowed(images()).to(torch.device("cpu"))
    assert isinstance(kept, Narrow)
    assert_same(kept.widened(), images())
