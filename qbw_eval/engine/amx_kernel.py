"""A CPU's convolution of integers with everything that follows it, in C++ (`amx.cpp`), compiled when it is needed.

    levels = round(clamp(conv(x, w) * scale + bias + other))

Of 9 to 16 bits are activations and weights in two *halves*, bytes both, whose four products are put together there. As
images, such levels have twice as many channels: the low bytes of all, then the high ones.

Layers that are not quantized are convolved in *thirds*: float32 numbers as sums of three bfloat16 ones, of whose nine
products the six largest are added up in float32, in half the time that float32's own instructions take.

AMX multiplies a tile of 16 x 64 uint8 by one of 64 x 16 int8 in 16 cycles. oneDNN uses it as well, but leaves putting
split weights together, adding and rounding to passes of their own, which take as long as the convolutions. Here they
are done to one block of sums while the next is multiplied. The bits are those of `passes`, and of Triton's kernel.

Threads are torch's own. Whatever has no AMX may run the same program with its tiles *emulated* by loops, for tests.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qbw_eval.engine.compiled import KernelError, compiled, torch_threads
from qbw_eval.engine.convolutions import Affine, Rounding, Window
from qbw_eval.engine.packing import Halves, Split, Thirds
from qbw_eval.engine.passes import halves_of

MOST_LEVELS = 2
"""How many tensors of levels a call writes, at most."""

SCRATCH = 2**20
"""Bytes of images that a thread copies at a time; with the weights they are to stay in a core's own cache."""

STREAMED = 12 * 2**20
"""Bytes of float32 values from which on they are written past the caches: what is written otherwise is read first."""

SOURCE = Path(__file__).with_name("amx.cpp")
_BLOCK, _SLAB = 16, 64
"""Outputs of a tile, and bytes of channels."""

_THIRDS = 3

_LARGEST = torch.finfo(torch.bfloat16).max

REAL_FLAGS = (
    *("-DQBW_TILES", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
)
"""With tiles; 64 bytes at a time, since they do not slow down a CPU that has them."""

EMULATED_FLAGS = ("-march=native", "-O1")
"""Without; the last of several -O counts, and this one compiles in half the time."""

_NEEDED = {"amx_tile", "amx_int8", "amx_bf16", "avx512f", "avx512bw", "avx512dq", "avx512vl"}
"""What Linux calls that in /proc/cpuinfo, where the system lets programs use it."""


class _Levels(ctypes.Structure):
    _fields_ = (
        ("rounding", ctypes.c_int32),
        ("largest", ctypes.c_float),
        ("unit", ctypes.c_float),
        ("out", ctypes.c_void_p),
    )


_POINTERS = ("x", "weights", "scale", "bias", "other", "values")
_SIZES = (
    *("samples", "channels", "height", "width", "outputs", "down", "across"),
    *(f"{what}_{axis}" for what in Window._fields for axis in "yx"),
    *("folded", "factor", "parts", "relu", "streamed", "threads", "scratch"),
)


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("levels", _Levels * MOST_LEVELS),
        *(("lowest", ctypes.c_float), ("highest", ctypes.c_float)),
        *((name, ctypes.c_int64) for name in _SIZES),
    )


@dataclass(frozen=True)
class Levels:
    """Levels that a call writes: values rounded.

    Attributes:
        rounding: how; not NONE, and beside float32 values not SCALED, which is for values in other units.
        limits: (largest, unit) of the grid.
        out: where they are written: uint8 in channels_last, in the shape of the values, but that there are
            `passes.halves_of` times as many channels.
    """

    rounding: Rounding
    limits: tuple[float, float]
    out: Tensor


@dataclass(frozen=True)
class PackedWeights:
    """A layer's weights as tiles: integers w = factor * m + factor - 1, or float32 numbers.

    Attributes:
        tiles: (blocks, parts, kernel rows, places, slabs, slab / 4, 16, 4) int8, bytes of 16 outputs each; those of
            outputs and channels that there are not are 0.
        outputs: how many there are.
        channels: of the images, each of which has as many parts as weights have.
        factor: 1 or 2.
        parts: 1, where the bytes are m; 2, the bits of its low bytes and then of its high ones; or 3, of thirds.
        window: what slides over the images.
        folded: whether a whole row of the window counts as one place, whose channels are those of all its places.
    """

    tiles: Tensor
    outputs: int
    channels: int
    factor: int
    parts: int
    window: Window
    folded: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return self.tiles.nbytes

    def shape_for(self, images: Tensor) -> tuple[int, int, int, int]:
        """Return the shape of what images (N, C, H, W) are convolved to."""
        return (len(images), self.outputs, *self.window.over(*images.shape[2:]))


def packed(weights: Split | Halves | Thirds, window: Window) -> PackedWeights:
    """Return weights in the order that they are multiplied in.

    Args:
        weights: with a factor of 1 or 2.
        window: the geometry; its kernel is that of the weights.
    """
    match weights:
        case Split():
            parts = weights.parts[None, : weights.outputs]
        case Halves():
            parts = torch.stack([weights.low.view(torch.int8), weights.high])
        case Thirds():
            parts = torch.stack([weights.high, weights.middle, weights.low])
    parts = parts.permute(0, 1, 3, 4, 2).contiguous()  # (parts, out, kernel y, kernel x, in)
    channels = parts.shape[-1]
    parts = parts.flatten().view(torch.int8).view(*parts.shape[:-1], -1)  # as many bytes as a channel has
    number, outputs, rows, places, depth = parts.shape
    folded = places > 1 and places * depth <= _SLAB
    if folded:
        parts = parts.reshape(number, outputs, rows, 1, places * depth)
    geometry, depth = parts.shape[2:4], parts.shape[-1]
    slab = min(_SLAB, _up(depth, 4))
    tiles = torch.zeros(number, _up(outputs, _BLOCK), *geometry, _up(depth, slab), dtype=torch.int8)
    tiles[:, :outputs, :, :, :depth] = parts
    tiles = tiles.view(number, -1, _BLOCK, *geometry, tiles.shape[-1] // slab, slab // 4, 4)
    tiles = tiles.permute(1, 0, 3, 4, 5, 6, 2, 7).contiguous()
    factor = 1 if isinstance(weights, Thirds) else weights.factor
    return PackedWeights(tiles, outputs, channels, factor, number, window, folded)


def _up(number: int, to: int) -> int:
    """Return the next multiple of `to`."""
    return -(-number // to) * to


def _times(halves: int, shape: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return the shape of images with so many times the channels."""
    samples, channels, down, across = shape
    return samples, halves * channels, down, across


class AmxKernel:
    """The compiled program.

    Args:
        emulated: whether tiles are plain loops, which run everywhere, slowly.
        scratch: bytes of images that a thread copies at a time, if one row of them is not more.
        streamed: see `STREAMED`.

    Raises:
        KernelError: it cannot run here.
    """

    def __init__(self, *, emulated: bool = False, scratch: int = SCRATCH, streamed: int = STREAMED) -> None:
        if not emulated:
            _check_cpu()
        self._scratch = scratch
        self._streamed = streamed
        self._program = program_with(EMULATED_FLAGS if emulated else REAL_FLAGS)
        if self._program.qbw_allow_tiles():
            raise KernelError("the system does not let it use AMX")
        self._parallel = torch_threads()

    def convolve(
        self,
        x: Tensor,
        weights: PackedWeights,
        affine: Affine,
        *,
        relu: bool = False,
        other: Tensor | None = None,
        rounding: Rounding = Rounding.NONE,
        limits: tuple[float, float] = (0.0, 0.0),
        levels: Sequence[Levels] = (),
        between: tuple[float, float] = (-math.inf, math.inf),
    ) -> Tensor:
        """Return a convolution and what follows it, (N, out, H', W') in channels_last; uint8 if rounded, else float32.

        Where it is rounded to more than a byte, it is (N, 2 * out, H', W').

        Args:
            x: (N, in * halves, H, W) uint8 in channels_last; or (N, in, H, W) float32, where weights are in thirds.
            weights: of the layer.
            affine: what follows.
            relu: replace negative values by zero, before rounding.
            other: (N, out, H', W') float32 in channels_last, added before that.
            rounding: what becomes of the value.
            limits: (largest, unit) of the grid it is rounded to.
            levels: what is written besides, at most `MOST_LEVELS`; only where nothing is rounded.
            between: what float32 images are clamped to first, lowest and highest; and to bfloat16's numbers, so that
                what is infinite is as large as they come.
        """
        shape = weights.shape_for(x)
        dtype = torch.float32 if rounding is Rounding.NONE else torch.uint8
        halves = 1 if rounding is Rounding.NONE else halves_of(limits[0])
        out = torch.empty(_times(halves, shape), dtype=dtype, memory_format=torch.channels_last)
        if rounding is not Rounding.NONE:
            assert not levels
            self._run(x, weights, affine, relu, other, None, [Levels(rounding, limits, out)], between)
        else:
            self._run(x, weights, affine, relu, other, out, levels, between)
        return out

    def round_only(
        self,
        x: Tensor,
        weights: PackedWeights,
        affine: Affine,
        *,
        relu: bool,
        other: Tensor | None,
        levels: Sequence[Levels],
        between: tuple[float, float] = (-math.inf, math.inf),
    ) -> None:
        """Write the levels that `convolve` writes beside its values, without these."""
        self._run(x, weights, affine, relu, other, None, levels, between)

    def _run(
        self,
        x: Tensor,
        weights: PackedWeights,
        affine: Affine,
        relu: bool,
        other: Tensor | None,
        out: Tensor | None,
        levels: Sequence[Levels],
        between: tuple[float, float],
    ) -> None:
        """Check what is given, and call the program; `out` gets float32 values, if it is there."""
        shape = weights.shape_for(x)
        assert len(levels) <= MOST_LEVELS
        kind, times = (torch.float32, 1) if weights.parts == _THIRDS else (torch.uint8, weights.parts)
        given = [(x, kind, (len(x), times * weights.channels, *x.shape[2:]))]
        given += [] if other is None else [(other, torch.float32, shape)]
        given += [(each.out, torch.uint8, _times(halves_of(each.limits[0]), shape)) for each in levels]
        for tensor, kind, expected in given:
            assert tensor.is_cpu
            assert (tensor.dtype, tuple(tensor.shape)) == (kind, expected)
            assert tensor.is_contiguous(memory_format=torch.channels_last)
        vectors = [values.contiguous() for values in (affine.scale, affine.bias)]  # kept alive until it has run
        assert all(each.dtype is torch.float32 and each.shape == (weights.outputs,) for each in vectors)
        streamed = (
            out is not None
            and out.nbytes >= self._streamed
            and weights.outputs % _BLOCK == 0  # whole lines of the cache
            and out.data_ptr() % _SLAB == 0
        )
        call = _Call(
            *(x.data_ptr(), weights.tiles.data_ptr(), *(values.data_ptr() for values in vectors)),
            None if other is None else other.data_ptr(),
            None if out is None else out.data_ptr(),
            (_Levels * MOST_LEVELS)(*(_Levels(each.rounding, *each.limits, each.out.data_ptr()) for each in levels)),
            *(max(between[0], -_LARGEST), min(between[1], _LARGEST)),
            *(len(x), weights.channels, *x.shape[2:], *shape[1:]),
            *(size for pair in weights.window for size in pair),
            *(weights.folded, weights.factor, weights.parts, relu, streamed, torch.get_num_threads(), self._scratch),
        )
        if self._program.qbw_convolve(ctypes.byref(call), self._parallel):
            raise MemoryError(f"a convolution's {torch.get_num_threads()} threads found no memory to copy images to")


def why_no_tiles(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return what this machine lacks, as no whole sentence; None where it has AMX."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "whether it has AMX is known on Linux only"
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set[str]())
    return None if flags >= _NEEDED else "it has no AMX"


def _check_cpu() -> None:
    """Raise KernelError where the CPU has no tiles, or the system hides them."""
    why = why_no_tiles()
    if why is not None:
        raise KernelError(why)


def program_with(flags: Sequence[str]) -> ctypes.CDLL:
    """Return the program, compiled with these flags and loaded.

    Raises:
        KernelError: see `compiled.compiled`.
    """
    program = compiled(SOURCE, flags, _Call)
    program.qbw_convolve.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    return program
