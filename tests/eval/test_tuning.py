"""Tuning tiles: which are tried, which is taken, and what is kept on disk; clocks are injected, kernels interpreted."""

import doctest
import json
import math
import multiprocessing
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from convolved import sums_of
from random_networks import configurations_of, layer_names_of, randomize
from torch import Tensor

from qbw_eval.engine.integer import IntegerEngine
from qbw_eval.networks.resnet import ResNet, Shape
from qbw_eval.quantization.layers import Quantizers

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install '.[gpu]'")

from test_replay import replaying_on  # noqa: E402 - they need Triton
from test_triton import plainly  # noqa: E402
from triton.runtime.errors import OutOfResources  # noqa: E402

from benchmarks.tiles import End, compiled_for  # noqa: E402
from qbw_eval.engine import tile_file, tuning  # noqa: E402
from qbw_eval.engine.tile_file import TileFile, cache_folder  # noqa: E402
from qbw_eval.engine.triton_arithmetic import TritonArithmetic  # noqa: E402
from qbw_eval.engine.triton_kernels import (  # noqa: E402
    Addend,
    Epilogues,
    Rounding,
    Tile,
    WeightBank,
    Window,
    best_tile,
)
from qbw_eval.engine.tuning import (  # noqa: E402
    Bench,
    NoTileError,
    Summand,
    Tuner,
    Workload,
    candidates,
    fastest,
    identity_of,
    workload_of,
)

CPU = torch.device("cpu")
IDENTITY = {"device": "of the tests"}
STAGE = Workload(64, 64, 56, 56, 64, Window((3, 3), (1, 1), (1, 1)), True, True, False, Rounding.SCALED)
"""The first stage of a ResNet-18."""
WIDE = Workload(64, 256, 14, 14, 1024, Window(), True, True, True, Rounding.NONE)
"""A bottleneck's end: float32 is added, and nobody alone reads the result."""
ROUND = WIDE._replace(added=False, addend=Summand(512, 28, 28, Window(stride=(2, 2)), True))
"""The same where the way round it is a convolution."""
EVERY_TILE = sorted(
    {
        tile
        for stage in (
            STAGE,
            WIDE,
            WIDE._replace(added=False),
            ROUND,
            STAGE._replace(samples=1, height=7, width=7, outputs=512),
        )
        for channels in (32, 64, 512)
        for tile in candidates(stage._replace(channels=channels), hopper=True)
    }
)


def random_workload(draw: random.Random) -> Workload:
    kernel = draw.choice([1, 3, 7])
    workload = Workload(
        samples=2 ** draw.randint(0, 11),
        channels=draw.choice([1, 3, 16, 64, 80, 320, 512, 2048]),
        height=draw.randint(7, 60),
        width=draw.randint(7, 60),
        outputs=draw.choice([10, 16, 64, 80, 320, 512, 2048]),
        window=Window((kernel, kernel), padding=(kernel // 2, kernel // 2)),
        wide=draw.random() < 0.5,
        relu=draw.random() < 0.5,
        added=draw.random() < 0.5,
        rounding=draw.choice(list(Rounding)),
    )
    if workload.rounding is Rounding.NONE:
        along = draw.choices([Rounding.CLIPPING, Rounding.STEP], k=draw.randint(0, 2))
        workload = workload._replace(levels=tuple(along))
    if draw.random() < 0.3:
        addend = Summand(draw.choice([16, 64, 1024]), 2 * workload.height, workload.width, Window(stride=(2, 1)), True)
        workload = workload._replace(added=False, addend=addend)
    return workload._replace(samples=min(workload.samples, 2**24 // (workload.pixels // workload.samples)))


RANDOM = [random_workload(random.Random(seed)) for seed in range(300)]


def test_examples() -> None:
    for module in (tile_file, tuning):
        results = doctest.testmod(module)
        assert results.attempted > 0
        assert results.failed == 0


# --- which tiles are tried ------------------------------------------------------------------------------------------


def test_the_first_candidate_is_what_is_taken_untuned() -> None:
    for work in RANDOM:
        channels = work.channels if work.addend is None else min(work.channels, work.addend.channels)
        along = work.addend is not None
        expected = best_tile(torch.device("cuda"), work.pixels, work.outputs, channels, along=along)
        assert candidates(work, hopper=False)[0] == candidates(work, hopper=True)[0] == expected


def test_candidates_are_few_different_and_none_is_larger_than_the_work() -> None:
    for work in RANDOM:
        tiles = candidates(work, hopper=True)
        assert len(set(tiles)) == len(tiles) <= 9
        for tile in tiles:
            assert tile.pixels == 16 or tile.pixels < 2 * work.pixels
            assert tile.outputs == 16 or tile.outputs < 2 * work.outputs
            assert tile.channels == 32 or tile.channels < 2 * work.channels
            assert all(size & (size - 1) == 0 for size in tile[:4])
            assert work.added or not tile.early
    for work in (STAGE, WIDE):
        assert 3 <= len(candidates(work, hopper=False)) <= 6
        assert 3 <= len(candidates(work, hopper=True)) <= 6
    assert {tile.early for tile in candidates(WIDE, hopper=True)} == {False, True}


def test_candidates_fit_into_registers_and_shared_memory() -> None:
    """Sums are int32 in a thread's 255 registers; images and weights int8 in 160 KiB for all stages, as are results."""
    most = set()
    for hopper in (False, True):
        for work in RANDOM:
            for tile in candidates(work, hopper=hopper):
                values, threads = tile.pixels * tile.outputs, 32 * tile.warps
                room = 32 if work.addend else 128 if hopper and not work.added else 64
                assert values / threads <= room
                assert tile.stages * (tile.pixels + tile.outputs) * tile.channels <= 160 * 2**10
                assert 4 * values <= 160 * 2**10
                most.add(values // threads)
    assert {64, 128} <= most


def test_candidates_that_leave_a_gpu_idle_or_cut_too_finely_are_left_out() -> None:
    last = STAGE._replace(samples=4, height=16, width=16, channels=512, outputs=512)  # 64 programs, untuned
    assert Tile(128, 128, 128, 8, 3) not in candidates(last, hopper=False)

    def programs(tile: Tile, work: Workload) -> int:
        return -(-work.pixels // tile.pixels) * -(-work.outputs // tile.outputs)

    for work in (STAGE, WIDE, last):
        usual, *others = (programs(tile, work) for tile in candidates(work, hopper=True))
        assert all(64 <= number <= max(4096, 2 * usual) for number in others)
    few = STAGE._replace(samples=1, height=7, width=7)  # 49 pixels, 64 outputs: any larger tile would be one program
    assert set(candidates(few, hopper=True)) == {
        Tile(64, 64, 64, 4, 3),
        Tile(64, 64, 64, 4, 4),
        Tile(64, 64, 64, 8, 3),
        Tile(64, 32, 64, 4, 4),
        Tile(32, 64, 64, 4, 4),
        Tile(32, 32, 64, 4, 4),
    }


def test_a_workload_is_what_a_launch_is_and_no_more_than_keeps_a_gpu_busy() -> None:
    def one(samples: int, channels: int, side: int, window: Window) -> Addend:
        images = torch.empty(samples, channels, side, side, dtype=torch.uint8, device="meta")
        weights = torch.empty(2, 64, math.prod(window.kernel) * channels, dtype=torch.int8)
        bank = WeightBank(weights, torch.empty(0), torch.empty(0), wide=True)
        return Addend(images, bank, Epilogues(*[torch.empty(0)] * 3), torch.empty(0), window)

    def of(samples: int, side: int, other: Tensor | Addend | None = None) -> Workload:
        own = one(samples, 16, side, Window((3, 3), padding=(1, 1)))
        return workload_of(own, relu=True, other=other, rounding=Rounding.STEP)

    assert (
        of(784, 8)
        == of(1024, 8)
        == Workload(1024, 16, 8, 8, 64, Window((3, 3), (1, 1), (1, 1)), True, True, False, Rounding.STEP)
    )
    assert of(784, 8).pixels == 1024 * 64
    assert of(2, 8).work == 2 * 64 * 64 * 144
    assert of(2, 8, torch.empty(0)) == of(2, 8)._replace(added=True)
    along = of(2, 8, one(2, 32, 16, Window(stride=(2, 2))))
    assert along == of(2, 8)._replace(addend=Summand(32, 16, 16, Window(stride=(2, 2)), True))
    assert along.work == 2 * 64 * 64 * (144 + 32)
    for side in (8, 32, 100, 600):
        values = of(10**6, side).pixels * 64
        assert values <= 2**24 or of(10**6, side).samples == 1
    assert of(10**6, 32).samples == 256


def test_names_in_the_file_tell_workloads_apart() -> None:
    names = {work.name for work in RANDOM}
    assert len(names) == len(set(RANDOM))
    assert all(len(name) <= 300 and name.isascii() and name.isprintable() for name in names)


# --- no tile changes a bit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", sorted({tile[:3] for tile in EVERY_TILE}), ids=str)
def test_no_candidate_changes_a_sum(size: tuple[int, int, int]) -> None:
    """Wide weights, a window, and sizes that the smaller tiles cut up and every tile hangs over, on all sides.

    Warps and stages are the compiler's business: to the interpreter they are nothing.
    """
    generator = torch.Generator().manual_seed(0)
    window = Window((2, 1), (2, 1), (1, 0), (1, 2))
    x = torch.randint(0, 256, (2, 36, 7, 6), generator=generator, dtype=torch.uint8)
    weights = (torch.randint(-128, 128, (40, 36, 2, 1), generator=generator) * 2 + 1).int()
    assert (plainly(x, weights, window, Tile(*size)).numpy() == sums_of(x, weights, window)).all()


def test_there_are_tiles_of_every_kind() -> None:
    odd = {Tile(128, 256, 128, 8, 3), Tile(32, 32, 128, 4, 4), Tile(64, 64, 64, 4, 4, early=True)}
    assert {Tile(), *odd} <= set(EVERY_TILE)


def test_the_largest_candidate_keeps_its_sums_in_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """128 a thread, where nothing is added; on 8.0 as many do not fit even then."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    largest = Tile(128, 256, 128, 8, 3)
    unadded = WIDE._replace(added=False)
    assert largest in candidates(unadded, hopper=True)
    assert compiled_for(90, End(Rounding.NONE), largest).registers()[1] == 0
    assert largest not in candidates(unadded, hopper=False)
    assert compiled_for(80, End(Rounding.NONE), largest).registers()[1] > 0


# --- which tile is taken --------------------------------------------------------------------------------------------


def among(times: dict[Tile, float | BaseException]) -> Callable[[Tile], float]:
    def seconds(tile: Tile) -> float:
        time = times[tile]
        if isinstance(time, BaseException):
            raise time
        return time

    return seconds


A, B, C, D = (Tile(stages=stages) for stages in (1, 2, 3, 4))
TOO_LARGE = OutOfResources(300_000, 232_448, "shared memory")


def test_the_fastest_is_taken_and_of_equal_ones_the_first() -> None:
    draw = random.Random(0)
    for _ in range(200):
        times: dict[Tile, float | BaseException] = {
            tile: draw.choice([1.0, 2.0, 3.0, TOO_LARGE, RuntimeError("PassManager::run failed")])
            for tile in (A, B, C, D)
        }
        running = sorted((time, tile.stages, tile) for tile, time in times.items() if isinstance(time, float))
        if running:
            assert fastest([A, B, C, D], among(times)) == running[0][2]


def test_where_no_tile_runs_it_says_what_the_first_said() -> None:
    with pytest.raises(NoTileError) as error:
        fastest([A, B], among({A: TOO_LARGE, B: RuntimeError("something else")}))
    assert error.value.format_message() == (
        "Triton's convolution: one of 2 tiles was expected to run here, and none does (out of resource: shared memory, "
        "Required: 300000, Hardware limit: 232448. Reducing block sizes or `num_stages` may help.); "
        "use --engine incremental"
    )


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no memory"), torch.AcceleratorError("an illegal address"), KeyboardInterrupt()]
)
def test_what_is_no_tiles_fault_is_not_passed_over(error: BaseException) -> None:
    with pytest.raises(type(error)):
        fastest([A, B], among({A: 1.0, B: error}))


class Clock:
    """A bench without a device: the tile that a launch uses decides how long it takes."""

    def __init__(self, path: Path | None, favourite: Tile | None = None, worth: int = 0) -> None:
        self.favourite, self.tried, self.captures = favourite, list[Tile](), False
        self.bench = Bench(
            seconds=self._seconds,
            capturing=lambda: self.captures,
            hopper=False,
            file=TileFile(path, IDENTITY),
            worth=worth,
        )

    def _seconds(self, launch: Callable[[], object]) -> float:
        launch()
        return 1.0 if self.favourite is None or self.tried[-1] == self.favourite else 2.0

    def launch(self, tile: Tile) -> list[Tensor]:
        self.tried.append(tile)
        return [torch.tensor([1.0, float("nan")])]


def test_a_workload_is_tuned_once_and_by_one_process(tmp_path: Path) -> None:
    folder, third = tmp_path / "new" / "qbw", candidates(STAGE, hopper=False)[2]
    clock = Clock(folder, third)
    tuner = Tuner(CPU, clock.bench)
    assert tuner.tile(STAGE, clock.launch) == third
    assert set(clock.tried) == set(candidates(STAGE, hopper=False))
    clock.tried.clear()
    assert tuner.tile(STAGE, clock.launch) == third
    again = Clock(folder, Tile())
    assert Tuner(CPU, again.bench).tile(STAGE, again.launch) == third
    assert clock.tried == again.tried == []
    assert [path.name for path in folder.iterdir()] == [clock.bench.file.path.name]  # type: ignore[union-attr]
    assert Tuner(CPU, again.bench).tile(WIDE, again.launch) == Tile(), "another workload is another matter"


def test_what_a_race_lost_is_written_again_with_the_next_tile(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    tuner, path = Tuner(CPU, clock.bench), clock.bench.file.path
    tuner.tile(STAGE, clock.launch)
    assert path is not None
    path.unlink()
    tuner.tile(WIDE, clock.launch)
    assert clock.bench.file.read().keys() == {STAGE.name, WIDE.name}


def test_a_kept_tile_that_is_no_candidate_is_not_taken(tmp_path: Path) -> None:
    strange = Tile(4096, 4096, 4096, 4, 3)
    clock = Clock(tmp_path)
    clock.bench.file.merge({STAGE.name: strange, "of others": A})
    assert Tuner(CPU, clock.bench).tile(STAGE, clock.launch) == Tile()
    assert strange not in clock.tried
    assert clock.bench.file.read() == {STAGE.name: Tile(), "of others": A}


def test_nothing_is_tuned_while_launches_are_recorded(tmp_path: Path) -> None:
    clock = Clock(tmp_path, candidates(STAGE, hopper=False)[1])
    tuner = Tuner(CPU, clock.bench)
    clock.captures = True
    assert tuner.tile(STAGE, clock.launch) is None
    assert clock.tried == []
    clock.captures = False
    assert tuner.tile(STAGE, clock.launch) == clock.favourite
    clock.captures = True
    assert tuner.tile(STAGE, clock.launch) == clock.favourite


def test_what_takes_microseconds_is_not_tuned(tmp_path: Path) -> None:
    clock = Clock(tmp_path, worth=STAGE.work + 1)
    assert Tuner(CPU, clock.bench).tile(STAGE, clock.launch) is None
    assert clock.tried == []
    clock = Clock(tmp_path, worth=STAGE.work)
    assert Tuner(CPU, clock.bench).tile(STAGE, clock.launch) is not None


@pytest.mark.parametrize("where", ["values", "levels beside"])
def test_a_tile_that_gives_other_bits_is_left_out(tmp_path: Path, where: str) -> None:
    """The fastest is; of the others, equal in speed, the first is taken."""
    wrong = candidates(STAGE, hopper=False)[1]
    clock = Clock(tmp_path, wrong)

    def launch(tile: Tile) -> list[Tensor]:
        values, levels = clock.launch(tile)[0], torch.tensor([3], dtype=torch.uint8)
        if tile != wrong:
            return [values, levels]
        return [values + 2.0**-23, levels] if where == "values" else [values, levels + 1]

    assert Tuner(CPU, clock.bench).tile(STAGE, launch) == Tile()
    assert wrong in clock.tried


def test_the_cpu_tunes_nothing() -> None:
    def launch(tile: Tile) -> list[Tensor]:
        raise AssertionError(f"{tile} was tried")

    assert Tuner(CPU).tile(STAGE, launch) is None


def test_a_tuned_network_has_the_bits_of_an_untuned_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every workload is timed once, some on one of two images; the last candidates are the fastest."""
    monkeypatch.setattr(tuning, "_MOST_VALUES", 2**9)
    monkeypatch.setattr(tuning, "_workload", tuning._workload.__wrapped__)  # which remembers nothing of it
    quantizers = Quantizers(options=(2, 8), activation="pact", switchable=True)
    network = ResNet(Shape(blocks=(1, 1), stem="cifar"), quantizers, width=20, in_channels=3, num_classes=4).eval()
    randomize(network, 3)
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    configurations = configurations_of((2, 8, 2, 8, 2))
    timed: list[Callable[[], Any]] = []

    def seconds(launch: Callable[[], object]) -> float:
        timed.append(launch)
        return 1.0 / len(timed)

    tuner = Tuner(CPU, Bench(seconds, lambda: False, False, TileFile(tmp_path, IDENTITY), worth=0))
    found = []
    for each in (Tuner(CPU), tuner):
        arithmetic = TritonArithmetic(CPU, 10**8, each)
        replaying = None if each is not tuner else replaying_on([])
        engine = IntegerEngine(
            *(network, layer_names_of(network), x, (2, 8), 10**8), arithmetic=arithmetic, replaying=replaying
        )
        with torch.inference_mode():
            found.append(dict(engine.logits(x, configurations)))
    assert len(timed) == sum(len(candidates(work, hopper=False)) for work in tuner._tiles)
    assert {work.samples for work in tuner._tiles} == {1, 2}
    assert len(timed[0]()[0]) == 1
    assert {len(work.levels) for work in tuner._tiles} == {0, 2}
    chosen = [(tile, candidates(work, hopper=False)) for work, tile in tuner._tiles.items()]
    assert all(tile == tiles[-1] for tile, tiles in chosen)
    assert any(tile[:3] != tiles[0][:3] for tile, tiles in chosen)
    assert {(work.added, work.addend is not None) for work in tuner._tiles} == {
        (False, False),
        (True, False),
        (False, True),
    }
    untuned, tuned = found
    assert untuned.keys() == tuned.keys()
    assert all(torch.equal(tuned[position], untuned[position]) for position in tuned)


# --- the file -------------------------------------------------------------------------------------------------------


def test_where_caches_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path("~").expanduser()
    assert cache_folder({}) == home / ".cache" / "qbw"
    assert cache_folder({"XDG_CACHE_HOME": "relative", "QBW_CACHE_DIR": ""}) == home / ".cache" / "qbw"
    monkeypatch.setenv("QBW_CACHE_DIR", "/scratch/qbw")
    assert cache_folder() == Path("/scratch/qbw")


def test_everything_that_decides_speed_decides_the_file(tmp_path: Path) -> None:
    one = identity_of("A", (9, 0))
    assert one.keys() == {"device", "capability", "triton", "torch", "kernels"}
    assert one == identity_of("A", (9, 0))
    paths = {
        TileFile(tmp_path, identity).path
        for identity in (
            one,
            identity_of("B", (9, 0)),
            identity_of("A", (8, 0)),
            *(one | {key: "other"} for key in ("triton", "torch", "kernels")),
        )
    }
    assert len(paths) == 6


def test_what_is_kept_is_read_and_what_is_newer_wins(tmp_path: Path) -> None:
    file = TileFile(tmp_path, IDENTITY)
    assert file.read() == {}
    file.merge({"one": A, "two": B})
    file.merge({"two": C, "three": D})
    assert file.read() == TileFile(tmp_path, dict(IDENTITY)).read() == {"one": A, "two": C, "three": D}
    assert TileFile(tmp_path, IDENTITY | {"more": "x"}).read() == {}


def content(**changes: object) -> bytes:
    return json.dumps({"format": 1, "identity": IDENTITY, "tiles": {"kept": list(A)}} | changes).encode()


DAMAGED = {
    "empty": b"",
    "cut short": content()[:-2],
    "no JSON": b"\x80\x04K\x01.",
    "a list": b"[]",
    "a number of 5000 digits": b"9" * 5000,
    "deep": b"[" * 100_000,
    "huge": content(more="x" * 2**21),
    "another format": content(format=2),
    "another's": content(identity={"device": "other"}),
    "tiles in a list": content(tiles=[["kept", list(A)]]),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_file_that_makes_no_sense_is_as_good_as_none_and_is_overwritten(data: bytes, tmp_path: Path) -> None:
    file = TileFile(tmp_path, IDENTITY)
    assert file.path is not None
    file.path.write_bytes(content())
    assert file.read() == {"kept": A}
    file.path.write_bytes(data)
    assert file.read() == {}
    file.merge({"new": B})
    assert file.read() == {"new": B}


@pytest.mark.parametrize(
    "entry",
    [
        *(None, 5, "12345", {}, [], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6]),
        *([strange, 64, 64, 4, 3] for strange in (128.0, True, 0, -128, 10**4000, "128", [])),
    ],
    ids=lambda entry: str(entry)[:20],
)
def test_an_entry_that_makes_no_sense_is_left_out(entry: object, tmp_path: Path) -> None:
    file = TileFile(tmp_path, IDENTITY)
    assert file.path is not None
    file.path.write_bytes(content(tiles={"strange": entry, "kept": list(A), "x" * 401: list(A), "ü": list(A)}))
    assert file.read() == {"kept": A}


def test_what_lies_there_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    file = TileFile(tmp_path, IDENTITY)
    assert file.path is not None
    os.mkfifo(file.path)
    assert file.read() == {}
    file.merge({"new": A})
    assert file.read() == {"new": A}
    file.path.unlink()
    file.path.mkdir()
    file.merge({"new": A})
    assert file.read() == {}
    assert [path.name for path in tmp_path.iterdir()] == [file.path.name], "nothing is left behind"


def test_where_nothing_can_be_written_tiles_last_as_long_as_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", None):
        clock = Clock(folder, candidates(STAGE, hopper=False)[1])
        tuner = Tuner(CPU, clock.bench)
        assert tuner.tile(STAGE, clock.launch) == clock.favourite
        clock.tried.clear()
        assert tuner.tile(STAGE, clock.launch) == clock.favourite
        assert clock.tried == []
        assert clock.bench.file.read() == {}


def test_a_full_file_is_still_read_and_the_newest_are_in_it(tmp_path: Path) -> None:
    """With names as long as they may be, all of them characters that JSON writes as two."""
    file, largest = TileFile(tmp_path, IDENTITY), Tile(4096, 4096, 4096, 4096, 4096)
    file.merge({f"{number:06}" + '"' * 194: largest for number in range(4096)})
    assert len(file.read()) == 4096
    file.merge({"new": A})
    kept = file.read()
    assert len(kept) == 4096
    assert kept["new"] == A


def add_tiles(folder: Path, writer: int, count: int) -> None:
    """Add one tile after the other, each time with all before, as a tuner does."""
    tiles = {}
    for number in range(count):
        tiles[f"{writer}: {number}"] = Tile(pixels=1 + writer, stages=1 + number)
        TileFile(folder, IDENTITY).merge(tiles)


# Python 3.12 warns of forking where threads are; these children compute nothing; importing torch anew takes seconds.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_processes_never_leave_half_a_file(tmp_path: Path) -> None:
    """Whoever writes last leaves all of its own tiles; what a reader meets meanwhile is whole."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=add_tiles, args=(tmp_path, writer, 60)) for writer in range(2)]
    file = TileFile(tmp_path, IDENTITY)
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        found = file.read()
        assert found or not seen, "once there is a file, there is always a whole one"
        seen = max(seen, len(found))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    kept = file.read()
    whole = [{f"{writer}: {number}" for number in range(60)} <= kept.keys() for writer in range(2)]
    assert any(whole)
    assert all(tile == Tile(pixels=1 + int(name[0]), stages=1 + int(name.split()[1])) for name, tile in kept.items())
    assert len(list(tmp_path.iterdir())) == 1
