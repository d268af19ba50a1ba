"""What only a GPU can show: the kernels' sums, the CPU's bits, captured graphs, streams, and that nothing waits.

Everything here is skipped where there is no CUDA device; what it relies on is tested without one (`test_triton`,
`test_replay`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from random_networks import layer_names_of, randomize
from torch import nn

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


def test_replayed_on_a_gpu_every_logit_has_the_cpus_bits() -> None:
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
                assert torch.equal(found[position].cpu(), logits), configurations[position].bitwidths


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
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_inside_a_chunk_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    data = [on_gpu(batch) for batch in batches(3, 32)]
    configurations = sample("iid", len(layer_names_of(network())), OPTIONS, 8, seed=0)
    engine = integer_engine(data[0].inputs)
    reference = Comparison(engine, configurations[0], MUCH, kl=True)
    measure(engine, data, configurations, reference)  # records
    monkeypatch.setattr("qbw_eval.engine.tally.Tally.finish", partial(id))
    with nothing_may_wait():
        measure(engine, data, configurations, reference)
