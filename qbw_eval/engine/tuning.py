"""Which tile a GPU convolves fastest with: found by trying, once per workload, and kept on disk.

A workload is a convolution's sizes and what it is compiled for. At its first launch a handful of tiles that could be
useful are timed on the very images and weights, with the L2 cache emptied before each launch, as after a batch that is
larger than it. No tile changes a bit of the result; one that does on this device is left out, as is one that does not
compile or fit. Nothing is timed while launches are only recorded into a CUDA graph: what is to be captured runs once
before. The CPU's interpreter has no tiles to choose from.

Triton's own autotuner can keep its results on disk, too. It would tune inside a capture, does not compare results, and
believes its files.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from qbw_eval.engine import tile_file, triton_kernels
from qbw_eval.engine.gpu_clock import seconds_on_gpu
from qbw_eval.engine.tile_file import TileFile
from qbw_eval.engine.triton_kernels import SMALLEST, Addend, Rounding, Tile, Window
from qbw_eval.memory import is_out_of_memory
from schemas.errors import QBWError, first_line

_TILES = (
    Tile(),
    Tile(64, 128, 128, warps=4, stages=3),
    Tile(64, 32, 128, warps=4, stages=4),
    Tile(32, 64, 128, warps=4, stages=4),
    Tile(32, 32, 128, warps=4, stages=4),
)
_WITH_ADDITION = (
    Tile(64, 64, 64),
    Tile(64, 64, 64, early=True),
    Tile(64, 64, 64, warps=8),
    Tile(128, 32, 64),
)
_WITH_CONVOLUTION = (
    Tile(64, 64, 64),
    Tile(64, 64, 128, warps=4, stages=3),
    Tile(64, 128, 64, warps=8),
    Tile(128, 64, 64, warps=8),
    Tile(64, 64, 64, warps=8),
    Tile(128, 32, 64),
    Tile(64, 32, 128),
    Tile(32, 64, 128),
    Tile(32, 32, 128),
)
_WITHOUT_ADDITION = (Tile(128, 64, 128, warps=4, stages=3), Tile(128, 128, 128, warps=8, stages=3))
"""What is tried: what some layer of ResNet-18 or ResNet-50 was fastest with on a GPU of compute capability 9, and
smaller tiles for smaller networks. What is added takes registers, which docs/performance.md has counted: with more
than 64 sums a thread there are too few."""

_WITHOUT_ADDITION_ON_HOPPER = (
    Tile(128, 64, 128, warps=4, stages=3),
    Tile(128, 128, 64, warps=4, stages=4),
    Tile(128, 256, 128, warps=8, stages=3),
)
"""Where nothing is added and sums are all that a thread holds, as on compute capability 9."""

_FEW, _MANY = 64, 4096
"""Programs: fewer leave most of a GPU's hundred multiprocessors idle; more than that and than twice what is usual read
images and weights again too often."""

_MOST_VALUES = 2**24
"""Values that are computed while tuning; of larger workloads, that much. It keeps every multiprocessor busy for several
programs in a row, and takes 64 MiB as float32."""

WORTH = 2**28
"""Multiply-accumulates: fewer take a GPU a few microseconds with any tile, and trying them would take longer."""

Launch = Callable[[], object]


class NoTileError(QBWError):
    """No tile runs."""


class InexactTileError(RuntimeError):
    """A tile gives other bits than another."""


class Summand(NamedTuple):
    """A convolution that is computed along, to be added: its images and weights."""

    channels: int
    height: int
    width: int
    window: Window
    wide: bool

    @property
    def name(self) -> str:
        """It in words."""
        wide = ", wide" if self.wide else ""
        return f"{self.channels}x{self.height}x{self.width}, {_in_words(self.window)}{wide}"


class Workload(NamedTuple):
    """What a tile is tuned for.

    Attributes:
        samples: images, rounded up to a power of 2, but no more than `_MOST_VALUES` allow.
        channels, height, width: of the images.
        outputs, window, wide: of the weights.
        relu, added, rounding: what follows; whether float32 is added that lies in memory.
        levels: how each of what is written besides is rounded.
        addend: what is convolved along, to be added.
    """

    samples: int
    channels: int
    height: int
    width: int
    outputs: int
    window: Window
    wide: bool
    relu: bool
    added: bool
    rounding: Rounding
    levels: tuple[Rounding, ...] = ()
    addend: "Summand | None" = None

    @property
    def pixels(self) -> int:
        """Places that the window takes."""
        return self.samples * math.prod(self.window.over(self.height, self.width))

    @property
    def work(self) -> int:
        """Multiply-accumulates."""
        window = self.channels * math.prod(self.window.kernel)
        if self.addend is not None:
            window += self.addend.channels * math.prod(self.addend.window.kernel)
        return self.pixels * self.outputs * window

    @property
    def name(self) -> str:
        """It in words, as it stands in the file.

        >>> Workload(64, 3, 32, 30, 16, Window((3, 3), (2, 2), (1, 1)), True, True, False, Rounding.SCALED).name
        '64x3x32x30 to 16, kernel 3x3, stride 2x2, padding 1x1, dilation 1x1, wide, relu, scaled'
        """
        sizes = f"{self.samples}x{self.channels}x{self.height}x{self.width} to {self.outputs}"
        follows = [what for what in ("wide", "relu", "added") if getattr(self, what)]
        besides = [f"levels by {each.name.lower()}" for each in self.levels]
        along = [] if self.addend is None else [f"plus {self.addend.name}"]
        return ", ".join([sizes, _in_words(self.window), *follows, self.rounding.name.lower(), *besides, *along])


def _in_words(window: Window) -> str:
    return ", ".join(f"{what} {down}x{across}" for what, (down, across) in window._asdict().items())


def workload_of(
    own: Addend,
    *,
    relu: bool,
    other: Tensor | Addend | None,
    rounding: Rounding,
    levels: tuple[Rounding, ...] = (),
) -> Workload:
    """Return the workload of a convolution and what follows it; see `triton_kernels.convolve`."""
    along = _summand(other.x.shape, other.window, other.bank.wide) if isinstance(other, Addend) else None
    added = isinstance(other, Tensor)
    bank = own.bank
    return _workload(own.x.shape, bank.weights.shape[1], own.window, bank.wide, relu, added, rounding, levels, along)


@lru_cache(maxsize=1024)
def _summand(shape: torch.Size, window: Window, wide: bool) -> Summand:
    _, channels, height, width = shape
    return Summand(channels, height, width, window, wide)


@lru_cache(maxsize=1024)  # every launch asks
def _workload(
    shape: torch.Size,
    outputs: int,
    window: Window,
    wide: bool,
    relu: bool,
    added: bool,
    rounding: Rounding,
    levels: tuple[Rounding, ...],
    addend: Summand | None,
) -> Workload:
    samples, channels, height, width = shape
    most = max(1, _MOST_VALUES // max(1, outputs * math.prod(window.over(height, width))))
    samples = min(_power_of_2(samples), 2 ** (most.bit_length() - 1))
    return Workload(samples, channels, height, width, outputs, window, wide, relu, added, rounding, levels, addend)


def candidates(workload: Workload, *, hopper: bool) -> list[Tile]:
    """Return the tiles that a workload may be fastest with, none larger than it; the first is what is taken untuned.

    Args:
        workload: the convolution.
        hopper: whether the device is of compute capability 9.
    """
    unadded = _WITHOUT_ADDITION_ON_HOPPER if hopper else _WITHOUT_ADDITION
    tiles = _WITH_CONVOLUTION if workload.addend else (*_TILES, *(_WITH_ADDITION if workload.added else unadded))
    untuned, *others = dict.fromkeys(_cut(tile, workload) for tile in tiles)
    usual = _programs(untuned, workload)
    few, many = min(_FEW, usual), max(_MANY, 2 * usual)
    return [untuned, *(tile for tile in others if few <= _programs(tile, workload) <= many)]


def _cut(tile: Tile, workload: Workload) -> Tile:
    """Return a tile that is no larger than the workload, as far as tensor cores go."""
    channels = min(each.channels for each in (workload, workload.addend) if each is not None)
    return tile._replace(
        pixels=max(SMALLEST, min(tile.pixels, _power_of_2(workload.pixels))),
        outputs=max(SMALLEST, min(tile.outputs, _power_of_2(workload.outputs))),
        channels=max(2 * SMALLEST, min(tile.channels, _power_of_2(channels))),
    )


def _programs(tile: Tile, workload: Workload) -> int:
    return -(-workload.pixels // tile.pixels) * -(-workload.outputs // tile.outputs)


def _power_of_2(number: int) -> int:
    """Return the smallest power of 2 that is not below a number; 1 at least."""
    return int(triton.next_power_of_2(max(1, number)))


def fastest(tiles: Sequence[Tile], seconds: Callable[[Tile], float]) -> Tile:
    """Return the tile that takes least; of equal ones the first. A tile that does not run is passed over.

    Args:
        tiles: one or more.
        seconds: how long it takes with a tile; raises TritonError or RuntimeError where it does not run with it.

    Raises:
        NoTileError: it runs with none of them.
        RuntimeError: the device is out of memory, or broke down: no tile's fault.
    """
    times: dict[Tile, float] = {}
    reasons: list[str] = []
    for tile in tiles:
        try:
            times[tile] = seconds(tile)
        except (TritonError, RuntimeError) as error:
            if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
                raise
            reasons.append(first_line(error))
    if not times:
        raise NoTileError(
            f"Triton's convolution: one of {len(tiles)} tiles was expected to run here, and none does ({reasons[0]}); "
            "use --engine incremental"
        )
    return min(times, key=times.__getitem__)


@dataclass(frozen=True)
class Bench:
    """What tuning needs of a device.

    Attributes:
        seconds: how long a launch takes.
        capturing: whether launches are recorded at the moment, not run.
        hopper: whether the device is of compute capability 9.
        file: where tiles are kept.
        worth: from how many multiply-accumulates on a workload is tuned.
    """

    seconds: Callable[[Launch], float]
    capturing: Callable[[], bool]
    hopper: bool
    file: TileFile
    worth: int = WORTH


class Tuner:
    """The tile of every workload, tuned when it is first asked for.

    Args:
        device: where launches run.
        bench: what is tuned by; what the device has if left out. The CPU has none: there nothing is tuned.
    """

    def __init__(self, device: torch.device, bench: Bench | None = None) -> None:
        self._device = device
        self._bench = bench
        self._tiles: dict[Workload, Tile] = {}

    def tile(self, workload: Workload, launch: Callable[[Tile], Sequence[Tensor]]) -> Tile | None:
        """Return the fastest tile, or None for what is thought best where nothing can be tuned or nothing is gained.

        Args:
            workload: the convolution.
            launch: convolves no more than `workload.samples` images with a tile; returns all that it writes, each time
                in memory of its own.

        Raises:
            NoTileError: it runs with no tile.
        """
        if workload not in self._tiles:
            bench = self._bench or bench_on(self._device)
            if bench is None or workload.work < bench.worth or bench.capturing():
                return None
            self._tiles[workload] = _kept(workload, bench) or self._tuned(workload, launch, bench)
        return self._tiles[workload]

    def _tuned(self, workload: Workload, launch: Callable[[Tile], Sequence[Tensor]], bench: Bench) -> Tile:
        """Return the fastest tile, having tried, and keep it beside all others of this process."""
        tile = fastest(candidates(workload, hopper=bench.hopper), _timed(launch, bench))
        bench.file.merge({known.name: its for known, its in self._tiles.items()} | {workload.name: tile})
        return tile


def _kept(workload: Workload, bench: Bench) -> Tile | None:
    """Return the tile that the file has, if it could have been tuned here."""
    tile = bench.file.read().get(workload.name)
    return tile if tile in candidates(workload, hopper=bench.hopper) else None


def _timed(launch: Callable[[Tile], Sequence[Tensor]], bench: Bench) -> Callable[[Tile], float]:
    """Return what times a tile, or raises InexactTileError where it gives other bits than the first that ran."""
    first: list[Sequence[Tensor]] = []

    def seconds(tile: Tile) -> float:
        found = launch(tile)
        if first and not all(_same_bits(one, other) for one, other in zip(found, first[0], strict=True)):
            raise InexactTileError(f"{tile} gives other bits than another tile")
        first.append(found)
        del first[1:]
        return bench.seconds(lambda: launch(tile))

    return seconds


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Compare float32 or uint8 of equal shape; the same NaN is the same."""
    kind = torch.int32 if one.dtype == torch.float32 else torch.uint8
    return torch.equal(one.view(kind), other.view(kind))


# --- what devices have ----------------------------------------------------------------------------------------------


@cache
def bench_on(device: torch.device) -> Bench | None:
    """Return what tuning needs of a device; None for the CPU."""
    if device.type != "cuda":
        return None

    capability = torch.cuda.get_device_capability(device)
    return Bench(
        seconds=partial(seconds_on_gpu, device=device),
        capturing=torch.cuda.is_current_stream_capturing,
        hopper=capability[0] == 9,
        file=TileFile(tile_file.cache_folder(), identity_of(torch.cuda.get_device_name(device), capability)),
    )


def identity_of(device_name: str, capability: tuple[int, int]) -> dict[str, str]:
    """Return everything that the fastest tile depends on besides the workload."""
    sources = b"".join(Path(module).read_bytes() for module in (triton_kernels.__file__, __file__))
    return {
        "device": device_name,
        "capability": f"{capability[0]}.{capability[1]}",
        "triton": str(triton.__version__),
        "torch": str(torch.__version__),
        "kernels": hashlib.blake2b(sources, digest_size=16).hexdigest(),
    }
