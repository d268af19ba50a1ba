"""What measurements cost: of the pass that they are made in; and for themselves, where there are many classes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.figures import Figure, ratio
from benchmarks.prepared import Prepared
from benchmarks.timing import Timed, interleaved
from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.data.batches import Batch
from qbw_eval.engine.comparison import Comparison
from qbw_eval.engine.tally import Compared, Measures, Tally
from qbw_eval.evaluate import measure

_CONFIGURATIONS = 16
_CLASSES, _SAMPLES = 1000, 256
_REPEATS = 20

_NOTHING = Measures(agreement=False, kl=False, mask=False, top5=False)
MEASURES: Mapping[str, Measures] = {
    "accuracy and loss": _NOTHING,
    **{
        f"and {name}": Measures(**{**vars(_NOTHING), name: True})
        for name in ("agreement", "kl", "mask", "top5", "per_class")
    },
    "all": Measures(per_class=True),
}
"""What is measured, by name; of the last all that there is."""


def measurement_figures(
    prepared: Prepared, rounds: int, at_most: float | None, limit_s: float = float("inf")
) -> list[Figure]:
    """The pass with measurements against the bare pass, and each measurement's share of it.

    A pass differs more from the next than by what measurements cost. So the shares are of the time of tallying logits
    that were computed before; the last two figures are of whole passes. The reference configuration's own pass is once
    a checkpoint.

    Args:
        prepared: what is measured.
        rounds: at most.
        at_most: the bound for all measurements together.
        limit_s: of the rounds.
    """
    workload, engine, batches = prepared.workload, prepared.engines[prepared.auto], prepared.batches
    configurations = workload.random_configurations(_CONFIGURATIONS)
    reference = BitwidthConfiguration(bitwidths=(workload.options[-1],) * len(workload.table), index=-1)
    comparison = Comparison(engine, reference, 2**30, kl=True)
    (batch,) = batches
    compared = comparison.of(0, batch)

    def bare() -> None:
        with torch.no_grad():
            for _ in engine.logits(batch.inputs, configurations):
                pass

    with torch.no_grad():
        logits = [result.clone() for _, result in engine.logits(batch.inputs, configurations)]
    everything = MEASURES["all"]
    timed = {
        "bare": Timed(action=bare),
        "measured": Timed(action=lambda: measure(engine, batches, configurations, comparison, measures=everything)),
        "reference": Timed(action=lambda: Comparison(engine, reference, 0, kl=True).of(0, batch).classes.cpu()),
        **{
            name: _tallying(logits, batch.labels, compared, measures)
            for name, measures in MEASURES.items()
            if name != "and top5"  # ten classes
        },
    }
    times = interleaved(timed, rounds, prepared.device, limit_s=limit_s)
    label = f"{workload.label}, {len(configurations)} random configurations, {prepared.auto}"
    figures = [
        Figure(
            figure=f"measuring {name}, share of the bare pass, {label}",
            values=[100 * share for share in _shares(times, name)],
            unit="%",
        )
        for name in MEASURES
        if name in times
    ]
    return [
        *figures,
        ratio(f"pass with all measurements / bare pass, {label}", times["measured"], times["bare"], at_most=at_most),
        ratio(f"the reference configuration alone / bare pass, {label}", times["reference"], times["bare"]),
    ]


def _shares(times: Mapping[str, Sequence[float]], name: str) -> list[float]:
    """Return, round by round, what a measurement adds to accuracy and loss, in bare passes; those and `all` whole."""
    base = times["accuracy and loss"] if name.startswith("and ") else [0.0] * len(times[name])
    return [(one - less) / bare for one, less, bare in zip(times[name], base, times["bare"], strict=True)]


def _tallying(logits: Sequence[Tensor], labels: Tensor, compared: Compared, measures: Measures) -> Timed:
    """Return what tallies the logits of a batch, one configuration after the other."""

    def tally() -> None:
        with torch.no_grad():
            for one in logits:
                tallied = Tally(measures)
                tallied.update(one, labels, compared if measures.comparisons else None)
                tallied.finish()

    def several() -> None:
        for _ in range(_REPEATS):
            tally()

    return Timed(action=several, units=_REPEATS)


def many_classes_figures(device: torch.device, rounds: int) -> list[Figure]:
    """What measuring one batch of made-up logits of many classes takes, a configuration."""
    generator = torch.Generator().manual_seed(0)
    logits, reference = (torch.randn(_SAMPLES, _CLASSES, generator=generator).to(device) for _ in range(2))
    batch = Batch(logits, torch.randint(_CLASSES, (_SAMPLES,), generator=generator).to(device))
    compared = Compared.of(reference)
    timed = {name: _tallying([logits], batch.labels, compared, measures) for name, measures in MEASURES.items()}
    times = interleaved(timed, rounds, device)
    return [
        Figure(
            figure=f"measuring {name}, {_SAMPLES} samples, {_CLASSES} classes",
            values=[1000 * value for value in times[name]],
            unit="ms/configuration",
        )
        for name in MEASURES
    ]
