"""A CPU's convolution of integers with everything that follows it, in C++ (`amx.cpp`), compiled when it is needed.

    levels = round(clamp(conv(x, w) * scale + bias + other))

Of 9 to 16 bits are activations and weights in two *halves*, bytes both, whose four products are put together there. As
images, such levels have twice as many channels: the low bytes of all, then the high ones.

AMX multiplies a tile of 16 x 64 uint8 by one of 64 x 16 int8 in 16 cycles. oneDNN uses it as well, but leaves putting
split weights together, adding and rounding to passes of their own, which take as long as the convolutions. Here they
are done to one block of sums while the next is multiplied. The bits are those of `passes`, and of Triton's kernel.

The compiler writes into a folder that nobody else may enter and that is gone at once: no library lies about that others
might replace. Threads are torch's own. Whatever has no AMX may run the same program with its tiles *emulated* by loops,
for tests.
"""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qbw_eval.engine.convolutions import Affine, Rounding, Window
from qbw_eval.engine.packing import Halves, Split
from qbw_eval.engine.passes import COMPILERS, halves_of

MOST_LEVELS = 2
"""How many tensors of levels a call writes, at most."""

SCRATCH = 2**20
"""Bytes of images that a thread copies at a time; with the weights they are to stay in a core's own cache."""

STREAMED = 12 * 2**20
"""Bytes of float32 values from which on they are written past the caches: what is written otherwise is read first."""

_SOURCE = Path(__file__).with_name("amx.cpp")
_BLOCK, _SLAB = 16, 64
"""Outputs and channels of a tile."""

_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-Wno-psabi")
_EXACT_FLAGS = ("-ffp-contract=off", "-fwrapv", "-fno-math-errno")
"""Nothing is contracted, and int32 wraps around; that errno is left alone changes no value."""

REAL_FLAGS = (
    *("-DQBW_TILES", "-mamx-tile", "-mamx-int8"),
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
)
"""With tiles; 64 bytes at a time, since they do not slow down a CPU that has them."""

EMULATED_FLAGS = ("-march=native", "-O1")
"""Without; the last of several -O counts, and this one compiles in half the time."""

_NEEDED = {"amx_tile", "amx_int8", "avx512f", "avx512bw", "avx512dq", "avx512vl"}
"""What Linux calls that in /proc/cpuinfo, where the system lets programs use it."""


class KernelError(Exception):
    """There is no such kernel here; the text says why and is no whole sentence."""


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
    *("folded", "factor", "halves", "relu", "streamed", "threads", "scratch"),
)


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("levels", _Levels * MOST_LEVELS),
        *((name, ctypes.c_int64) for name in _SIZES),
    )


@dataclass(frozen=True)
class Levels:
    """Levels that a call writes beside its float32 values: those values rounded.

    Attributes:
        rounding: how; not NONE, and not SCALED, which is for values in other units.
        limits: (largest, unit) of the grid.
        out: where they are written: uint8 in channels_last, in the shape of the values, but that there are
            `passes.halves_of` times as many channels.
    """

    rounding: Rounding
    limits: tuple[float, float]
    out: Tensor


@dataclass(frozen=True)
class PackedWeights:
    """A layer's integer weights w = factor * m + factor - 1 as tiles.

    Attributes:
        tiles: (blocks, halves, kernel rows, places, slabs, slab / 4, 16, 4) int8, the m of 16 outputs each, or the bits
            of their low bytes and then of their high ones; of outputs and channels that there are not, they are 0.
        outputs: how many there are.
        channels: of the images, each of which has as many halves as weights have.
        factor: 1 or 2.
        halves: 1; or 2, where m is more than a byte.
        window: what slides over the images.
        folded: whether a whole row of the window counts as one place, whose channels are those of all its places.
    """

    tiles: Tensor
    outputs: int
    channels: int
    factor: int
    halves: int
    window: Window
    folded: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return self.tiles.nbytes


def packed(weights: Split | Halves, window: Window) -> PackedWeights:
    """Return weights in the order that they are multiplied in.

    Args:
        weights: with a factor of 1 or 2.
        window: the geometry; its kernel is that of the weights.
    """
    if isinstance(weights, Split):
        parts = weights.parts[None, : weights.outputs]
    else:
        parts = torch.stack([weights.low.view(torch.int8), weights.high])
    parts = parts.permute(0, 1, 3, 4, 2)  # (halves, out, kernel y, kernel x, in)
    halves, outputs, rows, places, channels = parts.shape
    folded = places > 1 and places * channels <= _SLAB
    if folded:
        parts = parts.reshape(halves, outputs, rows, 1, places * channels)
    geometry, depth = parts.shape[2:4], parts.shape[-1]
    slab = min(_SLAB, _up(depth, 4))
    tiles = torch.zeros(halves, _up(outputs, _BLOCK), *geometry, _up(depth, slab), dtype=torch.int8)
    tiles[:, :outputs, :, :, :depth] = parts
    tiles = tiles.view(halves, -1, _BLOCK, *geometry, tiles.shape[-1] // slab, slab // 4, 4)
    tiles = tiles.permute(1, 0, 3, 4, 5, 6, 2, 7).contiguous()
    return PackedWeights(tiles, outputs, channels, weights.factor, halves, window, folded)


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
        self._parallel = _torch_threads()

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
    ) -> Tensor:
        """Return a convolution and what follows it, (N, out, H', W') in channels_last; uint8 if rounded, else float32.

        Where it is rounded to more than a byte, it is (N, 2 * out, H', W').

        Args:
            x: (N, in * halves, H, W) uint8 in channels_last.
            weights: of the layer.
            affine: what follows.
            relu: replace negative values by zero, before rounding.
            other: (N, out, H', W') float32 in channels_last, added before that.
            rounding: what becomes of the value.
            limits: (largest, unit) of the grid it is rounded to.
            levels: what is written besides, at most `MOST_LEVELS`; only where nothing is rounded.
        """
        down, across = weights.window.over(*x.shape[2:])
        shape = (len(x), weights.outputs, down, across)
        dtype = torch.float32 if rounding is Rounding.NONE else torch.uint8
        halves = 1 if rounding is Rounding.NONE else halves_of(limits[0])
        out = torch.empty(_times(halves, shape), dtype=dtype, memory_format=torch.channels_last)
        assert len(levels) <= (MOST_LEVELS if rounding is Rounding.NONE else 0)
        given = [(x, torch.uint8, (len(x), weights.channels * weights.halves, *x.shape[2:]))]
        given += [] if other is None else [(other, torch.float32, shape)]
        given += [(each.out, torch.uint8, _times(halves_of(each.limits[0]), shape)) for each in levels]
        for tensor, kind, expected in given:
            assert tensor.is_cpu
            assert (tensor.dtype, tuple(tensor.shape)) == (kind, expected)
            assert tensor.is_contiguous(memory_format=torch.channels_last)
        vectors = [values.contiguous() for values in (affine.scale, affine.bias)]  # kept alive until it has run
        assert all(each.dtype is torch.float32 and each.shape == (weights.outputs,) for each in vectors)
        written = [(each.rounding, *each.limits, each.out.data_ptr()) for each in levels]
        if rounding is not Rounding.NONE:
            written = [(rounding, *limits, out.data_ptr())]
        whole_lines = weights.outputs % _BLOCK == 0 and out.data_ptr() % _SLAB == 0
        streamed = rounding is Rounding.NONE and whole_lines and out.nbytes >= self._streamed
        call = _Call(
            *(x.data_ptr(), weights.tiles.data_ptr(), *(values.data_ptr() for values in vectors)),
            None if other is None else other.data_ptr(),
            out.data_ptr() if rounding is Rounding.NONE else None,
            (_Levels * MOST_LEVELS)(*(_Levels(*each) for each in written)),
            *(len(x), weights.channels, *x.shape[2:], weights.outputs, down, across),
            *(size for pair in weights.window for size in pair),
            *(weights.folded, weights.factor, weights.halves, relu, streamed, torch.get_num_threads(), self._scratch),
        )
        if self._program.qbw_convolve(ctypes.byref(call), self._parallel):
            raise MemoryError(f"a convolution's {torch.get_num_threads()} threads found no memory to copy images to")
        return out


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


def _torch_threads() -> int:
    """Return the address of GOMP_parallel in the library that torch's own threads come from, whichever that is.

    Every OpenMP runtime has it that GCC's or Clang's programs may be linked with. It is looked for where torch's own
    library would find it, so that no second runtime, with threads of its own, is ever started.

    Raises:
        KernelError: torch has no such threads.
    """
    assert torch.__file__ is not None
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        address = ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        raise KernelError("torch's threads are not OpenMP's") from None
    assert address is not None
    return address


def compile_to(library: Path, flags: Sequence[str]) -> None:
    """Compile the program.

    Args:
        library: the file to be written.
        flags: besides those that every variant has.

    Raises:
        KernelError: there is no compiler, or it fails.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise KernelError("no C++ compiler is found")
    command = [compiler, *_FLAGS, *_EXACT_FLAGS, *flags, "-o", str(library), str(_SOURCE)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"its C++ compiler does not run ({type(error).__name__})") from None
    if done.returncode:
        lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
        raise KernelError(f"its C++ compiler fails ({next((line for line in lines if 'error' in line), lines[0])})")


def program_with(flags: Sequence[str]) -> ctypes.CDLL:
    """Return the program, compiled with these flags and loaded.

    Raises:
        KernelError: there is no compiler, it fails, it has no folder to write to, or what it makes cannot be loaded.
    """
    try:
        temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # NFS keeps files that are in use
    except OSError as error:
        raise KernelError(f"there is no folder to compile it in ({error.strerror})") from None
    with temporary as folder:
        library = Path(folder) / "amx.so"
        compile_to(library, flags)
        try:
            program = ctypes.CDLL(str(library))
        except OSError as error:
            raise KernelError(f"what is compiled cannot be loaded ({error})") from None
    program.qbw_convolve.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    program.qbw_call_bytes.restype = ctypes.c_int64
    assert program.qbw_call_bytes() == ctypes.sizeof(_Call)
    return program
