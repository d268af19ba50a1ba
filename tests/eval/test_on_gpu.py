"""What only a GPU can show: sums, the CPU's bits, captured graphs, streams, tuning, and that nothing waits.

Everything here is skipped where there is no CUDA device; what it relies on is tested without one (`test_triton`,
`test_replay`, `test_tuning`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from random_networks import layer_names_of, randomize
from torch import Tensor, nn

from qbw_eval.configurations import sample
from qbw_eval.data.batches import Batch
from qbw_eval.engine.choose import choose_engine
from qbw_eval.engine.comparison import Comparison
from qbw_eval.engine.integer import IntegerEngine
from qbw_eval.engine.packing import why_not_here
from qbw_eval.engine.passes import PLAIN
from qbw_eval.evaluate import measure
from qbw_eval.networks.resnet import ResNet, Shape
from qbw_eval.quantization.layers import Quantizers

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(why_not_here() is not None, reason=f"no oneDNN to compare with: {why_not_here()}"),
]
pytest.importorskip("triton", reason="Triton is not installed: pip install '.[gpu]'")

from triton.runtime.errors import OutOfResources  # noqa: E402 - they need Triton

from qbw_eval.engine.packing import split_weights  # noqa: E402
from qbw_eval.engine.triton_kernels import (  # noqa: E402
    Addend,
    Epilogues,
    Rounding,
    Tile,
    Window,
    convolve,
    rounded,
    weight_bank,
)
from qbw_eval.engine.tuning import Tuner, bench_on, candidates, workload_of  # noqa: E402

GPU = torch.device("cuda", 0)
OPTIONS = (2, 4, 8)
MUCH = 10**9


def network() -> nn.Module:
    quantizers = Quantizers(options=OPTIONS, activation="pact", switchable=True)
    built = ResNet(Shape(blocks=(1, 1), stem="cifar"), quantizers, width=16, in_channels=3, num_classes=10).eval()
    randomize(built, 1)
    return built


def batches(count: int, samples: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(2)
    return [
        Batch(torch.randn(samples, 3, 16, 16, generator=generator), torch.randint(10, (samples,), generator=generator))
        for _ in range(count)
    ]


def on_gpu(batch: Batch) -> Batch:
    return Batch(batch.inputs.to(GPU), batch.labels.to(GPU))


def integer_engine(inputs: torch.Tensor) -> IntegerEngine:
    built = network().to(GPU)
    choice = choose_engine(
        "integer", built, layer_names_of(built), inputs[:2], OPTIONS, cache_bytes=MUCH, activation_bytes=MUCH
    )
    assert isinstance(choice.engine, IntegerEngine), choice.reason
    assert choice.engine.not_replayed is None
    return choice.engine


def test_replayed_on_a_gpu_logits_are_the_cpus() -> None:
    """But for the last digits of the first and the last layer, which are float32: a GPU adds in another order."""
    on_cpu = network()
    names = layer_names_of(on_cpu)
    configurations = sample("iid", len(names), OPTIONS, 12, seed=0)
    (first, second, _), small = batches(3, 8), batches(1, 3)[0]
    cpu = IntegerEngine(on_cpu, names, first.inputs, OPTIONS, MUCH, PLAIN)
    gpu = integer_engine(first.inputs.to(GPU))
    with torch.no_grad():
        for batch in (first, second, small, first):
            found = dict(gpu.logits(batch.inputs.to(GPU), configurations))
            for position, logits in cpu.logits(batch.inputs, configurations):
                theirs = found[position].cpu()
                assert torch.equal(theirs.argmax(dim=1), logits.argmax(dim=1)), configurations[position].bitwidths
                torch.testing.assert_close(theirs, logits, rtol=1e-4, atol=1e-4)


def test_several_lanes_give_the_same_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = [on_gpu(batch) for batch in batches(4, 32)]
    configurations = sample("iid", len(layer_names_of(network())), OPTIONS, 16, seed=0)
    found = []
    for lanes in ((1,), (1, 2, 4)):
        monkeypatch.setattr("qbw_eval.engine.replay.LANES", lanes)
        monkeypatch.setattr("qbw_eval.engine.replay._WORTH", 1.0 if lanes == (1,) else 1e9)  # take the most
        engine = integer_engine(data[0].inputs)
        found.append(measure(engine, data, configurations, Comparison(engine, configurations[0], MUCH, kl=True)))
    assert found[0] == found[1]


@contextmanager
def nothing_may_wait() -> Iterator[None]:
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")  # a prototype, torch says, each time
def test_inside_a_chunk_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    data = [on_gpu(batch) for batch in batches(3, 32)]
    configurations = sample("iid", len(layer_names_of(network())), OPTIONS, 8, seed=0)
    engine = integer_engine(data[0].inputs)
    reference = Comparison(engine, configurations[0], MUCH, kl=True)
    measure(engine, data, configurations, reference)  # records
    monkeypatch.setattr("qbw_eval.engine.tally.Tally.finish", lambda tally: tally)  # which fetches the sums
    with nothing_may_wait():
        measure(engine, data, configurations, reference)


@pytest.mark.parametrize("exponent", [-49, -4, 0, 49])
def test_values_at_and_beside_ties_are_rounded_as_division_rounds_them(exponent: int) -> None:
    draw, largest = torch.Generator().manual_seed(exponent + 50), torch.tensor(255.0)
    for significand in (1 + torch.rand(20, generator=draw)).tolist():
        unit = torch.tensor(significand * 2.0**exponent)
        ties = (torch.arange(256) + 0.5) * unit
        x = torch.cat([where * (1 + steps * 2.0**-23) for steps in range(-4, 5) for where in (ties, ties / 255)])
        limits = torch.stack([largest, unit]).to(GPU)
        by_clipping, by_step = (rounded(x.to(GPU), limits, how).cpu() for how in (Rounding.CLIPPING, Rounding.STEP))
        assert torch.equal(by_clipping, PLAIN.levels_by_clipping(x, unit, largest))
        assert torch.equal(by_step, PLAIN.levels_by_step(x, unit, largest))


@pytest.mark.parametrize("rounding", [Rounding.NONE, Rounding.SCALED])
def test_tiles_are_tuned_and_kept_and_change_no_bit(
    rounding: Rounding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QBW_CACHE_DIR", str(tmp_path))
    bench_on.cache_clear()
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (64, 128, 28, 28), generator=generator, dtype=torch.uint8).to(GPU)
    images = images.contiguous(memory_format=torch.channels_last)
    weights = (torch.randint(-128, 128, (256, 128, 3, 3), generator=generator) * 2 + 1).int()
    split = split_weights(weights, 255, pairs_saturate=False)
    assert split is not None
    bank, window = weight_bank([split], GPU), Window((3, 3), padding=(1, 1))
    scales, biases, limits = torch.full((1, 256), 2.0**-16), torch.ones(1, 256), torch.tensor([[255.0, 0.0]])
    epilogues = Epilogues(*(table.to(GPU) for table in (scales, biases, limits)))
    choice = torch.zeros(2, dtype=torch.int32, device=GPU)

    def launch(tile: Tile) -> Tensor:
        return convolve(images, bank, epilogues, choice, window, relu=True, rounding=rounding, tile=tile)

    def alone(tile: Tile) -> list[Tensor]:
        return [launch(tile)]

    def fail(tile: Tile) -> list[Tensor]:
        raise AssertionError(f"{tile} was tried again")

    work = workload_of(Addend(images, bank, epilogues, choice, window), relu=True, other=None, rounding=rounding)
    tiles = candidates(work, hopper=torch.cuda.get_device_capability(GPU)[0] == 9)
    tuned = Tuner(GPU).tile(work, alone)
    assert tuned in tiles
    assert Tuner(GPU).tile(work, fail) == tuned, "from the file"
    expected, ran = launch(tiles[0]), 0
    for tile in tiles:
        try:
            found = launch(tile)
        except OutOfResources:
            continue
        assert torch.equal(found, expected), tile
        ran += 1
    assert ran > 1
    bench_on.cache_clear()
