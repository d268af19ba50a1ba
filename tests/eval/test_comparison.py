"""The reference configuration's results: kept within a limit, else computed again, and the same either way."""

from collections.abc import Generator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.data.batches import Batch
from qbw_eval.engine.comparison import Comparison
from qbw_eval.engine.tally import Compared, Measures
from qbw_eval.evaluate import measure

REFERENCE = BitwidthConfiguration(bitwidths=(8,), index=-1)
OTHERS = [BitwidthConfiguration(bitwidths=(bits,), index=index) for index, bits in enumerate((2, 4, 8))]
CLASSES = 12


class Scaling:
    """An engine whose logits are its inputs, rounded to multiples of 1 / bits, in memory that it uses again."""

    name = numerics = "scaling"

    def __init__(self) -> None:
        self.reference_runs: list[int] = []
        """Samples of each batch that the reference configuration alone was computed for."""

    def logits(self, inputs: Any, configurations: Sequence[BitwidthConfiguration]) -> Generator[tuple[int, Tensor]]:
        if configurations == [REFERENCE]:
            self.reference_runs.append(len(inputs))
        memory = torch.empty_like(inputs)
        for position, configuration in enumerate(configurations):
            (bits,) = configuration.bitwidths
            yield position, memory.copy_((inputs * bits).round() / bits)
        memory.fill_(torch.nan)

    def peak_bytes(self, _inputs: Any, _configurations: Sequence[BitwidthConfiguration]) -> None:
        return None


def batches(*sizes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(torch.randn(size, CLASSES, generator=generator), torch.randint(CLASSES, (size,), generator=generator))
        for size in sizes
    ]


@pytest.mark.parametrize(
    ("kl", "a_sample"),
    [(True, 4 * CLASSES), (False, 8)],  # logits, float32; a class, int64
)
@pytest.mark.parametrize(
    ("limit_in_samples", "runs_again"),
    [(0, [5, 4, 3]), (5, [4, 3]), (8, [4]), (11, [3]), (12, []), (1000, [])],
)
def test_as_many_batches_are_kept_as_fit_and_what_is_measured_does_not_depend_on_it(
    kl: bool, a_sample: int, limit_in_samples: int, runs_again: list[int]
) -> None:
    data, measures = batches(5, 4, 3), Measures(kl=kl)
    unlimited = Comparison(Scaling(), REFERENCE, 10**9, kl=kl)
    expected = measure(Scaling(), data, OTHERS, unlimited, measures=measures)
    engine = Scaling()
    comparison = Comparison(engine, REFERENCE, limit_in_samples * a_sample, kl=kl)
    assert measure(engine, data, OTHERS, comparison, measures=measures) == expected
    assert engine.reference_runs == [5, 4, 3]
    assert comparison.kept_bytes == (12 - sum(runs_again)) * a_sample
    engine.reference_runs.clear()
    assert measure(engine, data, OTHERS, comparison, measures=measures) == expected
    assert engine.reference_runs == runs_again
    assert [measurement.agreement == 1 for measurement in expected] == [False, False, True]
    divergences = [measurement.kl_divergence for measurement in expected]
    if kl:
        assert divergences[0] > divergences[1] > divergences[2] == 0  # type: ignore[operator]  # none of them is None
    else:
        assert divergences == [None] * 3


def test_what_is_kept_outlives_the_memory_that_the_engine_uses_again() -> None:
    (batch,) = batches(6)
    comparison = Comparison(Scaling(), REFERENCE, 10**9, kl=True)
    expected = Compared.of((batch.inputs * 8).round() / 8)
    for _ in range(2):
        found = comparison.of(0, batch)
        assert found.log_softmax is not None
        assert expected.log_softmax is not None
        assert torch.equal(found.log_softmax, expected.log_softmax)
        assert torch.equal(found.classes, expected.classes)


def test_the_reference_is_left_alone_where_nothing_is_compared() -> None:
    engine = Scaling()
    measure(engine, batches(3), OTHERS)
    assert engine.reference_runs == []
