"""What the tiles that tuning tries take of a GPU: registers, what spills out of them, shared memory; no GPU is asked.

python -m benchmarks.tiles [8.0 9.0 ...]

Each tile is compiled as it would be for wide weights of 3x3 windows, once for each way in which a convolution can end;
a line has the most that any of them takes.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qbw_eval.engine.triton_kernels import EXACT, Rounding, Tile, Window, _convolution
from qbw_eval.engine.tuning import Summand, Workload, candidates

PROGRAMS = Path(triton.__file__).parent / "backends/nvidia/bin"
"""Where NVIDIA's compiler and its companions lie, which Triton brings along."""


class End(NamedTuple):
    """How a convolution can end.

    Attributes:
        rounding: of its value.
        added: whether float32 is added before.
        convolved: whether what is added is convolved in the same launch.
    """

    rounding: Rounding
    added: bool = False
    convolved: bool = False

    @property
    def beside(self) -> int:
        """How often levels are written beside float32 values."""
        return 2 if self.rounding is Rounding.NONE and (self.added or self.convolved) else 0


_ENDS = (
    End(Rounding.NONE, added=True),
    End(Rounding.CLIPPING, added=True),
    End(Rounding.NONE, convolved=True),
    End(Rounding.CLIPPING, convolved=True),
    End(Rounding.SCALED),
    End(Rounding.NONE),
)
"""A step takes what clipping does."""

_SAMPLES, _CHANNELS, _OUTPUTS = (1, 64), (64, 512), (64, 1024)
_IMAGE = 14


@dataclass(frozen=True)
class Compiled:
    """A kernel for a GPU.

    Attributes:
        ptx: its assembly language.
        cubin: its machine code.
        shared: bytes of shared memory.
    """

    ptx: str
    cubin: bytes
    shared: int

    def registers(self) -> tuple[int, int]:
        """Return how many registers a thread has, and how many bytes of its values do not fit into them."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            command = [str(PROGRAMS / "cuobjdump"), "--dump-resource-usage", file.name]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
        assert found is not None, usage
        return int(found[1]), int(found[2]) + int(found[3])


def compiled_for(
    capability: int,
    end: End,
    tile: Tile | None = None,
    *,
    channels: int = 256,
    outputs: int = 256,
) -> Compiled:
    """Compile the kernel for wide weights of 3x3 windows; what is added in the same launch has 1x1 windows.

    Args:
        capability: 80 for 8.0.
        end: how it ends.
        tile: what is taken untuned if left out.
        channels: of the images.
        outputs: channels of the result.
    """
    kernel = triton.jit(_convolution)
    result = "u8" if end.rounding else "fp32"
    limits = ("fp32", "i32", "u8")
    convolution = ("u8", "i8", "i32", "i32", "fp32", "fp32", "i32")
    pointers = (*convolution, *convolution, "fp32", result, *limits, *limits)
    signature = {
        name: f"*{pointers[number]}" if number < len(pointers) else "i32"
        for number, name in enumerate(kernel.arg_names)
        if name.islower()
    }
    geometry = (_IMAGE, _IMAGE, channels, 3, 3, 1, 1, 1, 1, 1, 1, True)
    geometry_too = (2 * _IMAGE, 2 * _IMAGE, channels, 1, 1, 2, 2, 0, 0, 1, 1, True)
    tile = tile or Tile()
    sizes = (tile.early, tile.pixels, tile.outputs, tile.channels)
    one, two, *_ = (*[Rounding.CLIPPING] * end.beside, end.rounding, Rounding.NONE)
    follows = (True, end.added, end.convolved, not end.rounding, int(one), int(two), True)
    settings = (outputs, _IMAGE, _IMAGE, *geometry, *geometry_too, *follows, *sizes)
    names = [name for name in kernel.arg_names if name.isupper()]
    constants = {(kernel.arg_names.index(name),): value for name, value in zip(names, settings, strict=True)}
    anywhere = ("choice", "choice_too", "row", "row_too")
    aligned = [number for number, name in enumerate(kernel.arg_names[: len(pointers)]) if name not in anywhere]
    source = ASTSource(
        kernel,
        signature | dict.fromkeys(names, "constexpr"),
        constexprs=constants,
        attrs={(number,): [["tt.divisibility", 16]] for number in aligned},  # as a launch finds out by itself
    )
    options = {"num_warps": tile.warps, "num_stages": tile.stages, **EXACT}
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return Compiled(str(found.asm["ptx"]), found.asm["cubin"], int(found.metadata.shared))


def tiles_and_ends(capability: int) -> Iterator[tuple[Tile, list[End]]]:
    """Yield every tile that is tried for convolutions small and large, with the ends that it is tried for."""
    ends: dict[Tile, dict[End, None]] = {}
    for end in _ENDS:
        along = Summand(min(_CHANNELS), _IMAGE, _IMAGE, Window(), True) if end.convolved else None
        for samples in _SAMPLES:
            for channels in _CHANNELS:
                for outputs in _OUTPUTS:
                    sizes = (samples, channels, _IMAGE, _IMAGE, outputs)
                    window = Window((3, 3), padding=(1, 1))
                    work = Workload(*sizes, window, True, True, end.added, end.rounding, addend=along)
                    for tile in candidates(work, hopper=capability // 10 == 9):
                        ends.setdefault(tile, {})[end] = None
    yield from ((tile, list(ends[tile])) for tile in sorted(ends))


def main(capabilities: Sequence[int]) -> None:
    """Print a line a tile."""
    for capability in capabilities:
        for tile, ends in tiles_and_ends(capability):
            found = [compiled_for(capability, end, tile) for end in ends]
            registers, spilled = (max(numbers) for numbers in zip(*(one.registers() for one in found), strict=True))
            shared = max(one.shared for one in found)
            sizes = f"{tile.pixels}x{tile.outputs}x{tile.channels}, {tile.warps} warps, {tile.stages} stages"
            sizes += ", early" if tile.early else ""
            print(f"{capability / 10}: {sizes}: {registers} registers, {spilled} bytes spilled, {shared} bytes shared")


if __name__ == "__main__":
    main([round(10 * float(word)) for word in sys.argv[1:]] or [80, 90])
