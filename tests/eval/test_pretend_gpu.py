"""All that a GPU runs, on a GPU that is none (`pretend_gpu`): the CPU's counts, on one device, and nothing waits.

Batches are narrowed and sent, launches are captured and replayed on lanes, and measured, by the very code that calls
`torch.cuda` on a GPU.
"""

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from random_networks import configurations_of, layer_names_of, randomize
from torch import Tensor, nn

from qbw_eval.data.batches import batches_on
from qbw_eval.data.split import Split
from qbw_eval.engine import replay
from qbw_eval.engine.choose import WORTH_COMPILING_ON_GPU, choose_engine
from qbw_eval.engine.comparison import Comparison
from qbw_eval.engine.cuda_graphs import CudaLane
from qbw_eval.engine.integer import IntegerEngine
from qbw_eval.engine.passes import PLAIN
from qbw_eval.engine.tally import Measures, Tally
from qbw_eval.engine.walk import UnreplayableError
from qbw_eval.evaluate import measure
from qbw_eval.quantization.layers import QuantConv2d, Quantizers, QuantLinear

pytest.importorskip("triton", reason="Triton is not installed: pip install '.[gpu]'")

import pretend_gpu
from pretend_gpu import DEVICE, Gpu

OPTIONS = (2, 4)
MUCH = 10**8
EACH = configurations_of((2, 2, 2), (2, 4, 2), (2, 4, 4), (4, 2, 4))


class Small(nn.Module):
    """A sum, batch norm, a rounding that two layers read, a linear layer; 12 classes, so that top-5 says something."""

    def __init__(self) -> None:
        super().__init__()
        quantizers = Quantizers(options=OPTIONS, activation="pact", switchable=True)
        self.first = QuantConv2d(1, 4, 1, quantizers=quantizers)
        self.norm = nn.BatchNorm2d(4)
        self.second = QuantConv2d(4, 4, 1, quantizers=quantizers)
        self.linear = QuantLinear(4, 12, quantizers=quantizers)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(x) + x)
        return self.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]  # modules are untyped calls


def network() -> nn.Module:
    built = Small().eval()
    randomize(built, 1)
    return built


def split() -> Split:
    generator = torch.Generator().manual_seed(2)
    bytes_ = torch.randint(256, (7, 1, 2, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(12, (7,), generator=generator)
    return Split(dataset="pretended", name="validation", inputs=bytes_.float() / 255 - 0.2, labels=labels)


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    from qbw_eval.engine import triton_arithmetic, tuning

    remembered = (triton_arithmetic.why_not_on, tuning.bench_on)
    for cached in remembered:
        cached.cache_clear()
    # The interpreter is slow: fewer lanes, and fewer configurations to try them on.
    few = mock.patch.object(replay, "LANES", (1, 2)), mock.patch.object(replay, "_TRIED", 2)
    with few[0], few[1], torch.no_grad(), pretend_gpu.installed() as installed:
        yield installed
    for cached in remembered:
        cached.cache_clear()


def test_it_refuses_what_a_gpu_refuses_and_notes_who_waits(gpu: Gpu) -> None:
    x = torch.ones(2, 3, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(2, 3)
    assert (x[:1] + 1).device == DEVICE
    pinned = torch.ones(2, 3).pin_memory()
    x.copy_(pinned, non_blocking=True)
    assert gpu.waits == []
    assert x.sum().item() == 6
    assert x.cpu().device == torch.device("cpu")
    x.copy_(torch.ones(2, 3), non_blocking=True)  # from memory that the system may move
    assert gpu.waits == ["aten._local_scalar_dense.default", "copy", "copy"]


def test_a_captured_graph_repeats_what_was_noted_and_nothing_else(gpu: Gpu) -> None:
    assert gpu.captures == 0
    x, y, factor = torch.ones(2, device="cuda"), torch.zeros(2, device="cuda"), [2.0]
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(AssertionError, match="default stream"):
        graph.capture_begin(pool=torch.cuda.graph_pool_handle())
    with torch.cuda.stream(torch.cuda.Stream()):
        graph.capture_begin(pool=torch.cuda.graph_pool_handle())
        y.copy_(x * factor[0])
        with pytest.raises(AssertionError, match="cannot be captured"):
            x.sum().item()
        graph.capture_end()
    x.copy_(torch.full((2,), 5.0))
    factor[0] = 100.0
    graph.replay()
    assert y.cpu().tolist() == [10.0, 10.0]


def test_what_fails_while_it_is_captured_is_what_is_raised_and_nothing_is_captured_any_more(gpu: Gpu) -> None:
    failures = 9

    def copy() -> None:
        nonlocal failures
        y.copy_(x)
        failures -= 1
        if failures >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory")

    x, y = torch.ones(2, device="cuda"), torch.zeros(2, device="cuda")
    lane = CudaLane(DEVICE)
    with pytest.raises(torch.OutOfMemoryError):
        lane.record(copy)
    assert gpu.notes is None
    failures = 1  # until spare memory was given back
    again = lane.record(copy)
    x.copy_(torch.full((2,), 5.0))
    again()
    assert y.cpu().tolist() == [5.0, 5.0]


def test_auto_takes_integers_where_there_is_work_for_a_gpu_and_launches_are_replayed(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, x = network().to(DEVICE), split().inputs[:2].to(DEVICE)

    def auto(work: int) -> tuple[str, str]:
        names = layer_names_of(there)
        choice = choose_engine("auto", there, names, x, OPTIONS, cache_bytes=MUCH, activation_bytes=MUCH, work=work)
        return choice.engine.name, choice.reason

    equal = "equal to the reference in every bit"
    assert auto(WORTH_COMPILING_ON_GPU - 1) == ("incremental", f"{equal}, and there is little to compute")
    engine, words = auto(WORTH_COMPILING_ON_GPU)
    assert (engine, words[:57]) == ("integer", "exact convolutions of integers at 8 bits or fewer; by Tri")
    assert gpu.replays

    def fail(_lane: object, _run: object) -> None:
        raise UnreplayableError("it is Thursday")

    monkeypatch.setattr(CudaLane, "record", fail)
    why = "launched one by one, they were never measured on a GPU: it is Thursday"
    assert auto(WORTH_COMPILING_ON_GPU) == ("incremental", f"{equal}; no integers: {why}")


def test_counts_are_the_cpus_and_inside_a_chunk_nothing_waits(gpu: Gpu) -> None:
    data, built, measures = split(), network(), Measures(per_class=True)
    names = layer_names_of(built)
    there = network().to(DEVICE)
    choice = choose_engine(
        "integer", there, names, data.inputs[:2].to(DEVICE), OPTIONS, cache_bytes=MUCH, activation_bytes=MUCH
    )
    assert isinstance(choice.engine, IntegerEngine), choice.reason
    assert choice.engine.not_replayed is None
    sent, resident = (batches_on(data, 4, DEVICE, resident=stay, narrow=True) for stay in (False, True))
    reference = Comparison(choice.engine, EACH[-1], MUCH, kl=True)
    found = measure(choice.engine, resident, EACH, reference, measures=measures)
    captures, replays = gpu.captures, gpu.replays
    gpu.waits.clear()
    with mock.patch.object(Tally, "finish", lambda tally: tally):  # which fetches the sums
        again = [measure(choice.engine, batches, EACH, reference, measures=measures) for batches in (sent, resident)]
    assert gpu.waits == []
    assert gpu.captures == captures
    assert gpu.replays == replays + 2 * len(EACH) * len(sent)
    cpu = IntegerEngine(built, names, data.inputs, OPTIONS, MUCH, PLAIN)
    here = batches_on(data, 4, torch.device("cpu"))
    expected = measure(cpu, here, EACH, Comparison(cpu, EACH[-1], MUCH, kl=True), measures=measures)
    assert len({measured.loss for measured in expected}) == len(EACH)
    for measured in (found, *([tally.finish() for tally in tallies] for tallies in again)):
        assert measured == expected
    assert gpu.waits
