"""What a configuration costs: with every engine, with what people run today, and at the least."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.figures import Figure, ratio
from benchmarks.floor import BareConvolutions
from benchmarks.prepared import Prepared
from benchmarks.timing import Failed, Timed, interleaved
from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.engine.incremental import IncrementalEngine
from qbw_eval.engine.packing import why_not_here

_FEW = 2
"""Configurations a round of what costs the same for every one of them."""

_FLOOR_CONFIGURATIONS = 4

_QUEUED = 8
"""Forwards, or the expert's configurations, a round on a GPU: waiting for each alone would count its launching, too."""

TF32_FORWARD, EXPERTS_LOOP = "compiled TF32 forward", "compiled bf16 fake quantization"
"""What is timed on a GPU besides."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What the figures of one workload shall reach; None for no bound. What auto shall reach, `Effort.judged` shall.

    Attributes:
        loop: people's loop / auto, at least.
        plain: plain float32 forward / auto, at least.
        tf32: TF32 forward / auto, at least.
        expert: expert's loop / auto, at least.
        floor: auto / bare int8 convolutions, at most.
        sweep: full passes of the incremental engine per configuration of a one-layer-at-a-time sweep, at most.
    """

    loop: float | None = None
    plain: float | None = None
    tf32: float | None = None
    expert: float | None = None
    floor: float | None = None
    sweep: float | None = None


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: at most.
        limit_s: of all rounds of one workload; at least one is run.
        incremental: random configurations for the incremental engine where auto takes another.
        auto_sweep: whether auto sweeps too.
        gpu_ways: whether the forward in TF32 and the expert's loop are timed.
        judged: engines that are held to the bounds of auto, whichever it takes. They run once as they are timed before
            that: what launches are recorded for depends on the configurations.
        failed: told of what could not be timed, and has no figures; None to raise.
    """

    rounds: int
    limit_s: float = math.inf
    incremental: int = 64
    auto_sweep: bool = True
    gpu_ways: bool = False
    judged: Sequence[str] = ()
    failed: Failed | None = None


def engine_figures(prepared: Prepared, effort: Effort, bounds: Bounds) -> list[Figure]:
    """Everything about random configurations and one-layer-at-a-time sweeps of one workload, in one run of rounds."""
    workload = prepared.workload
    configurations, sweep = workload.random_configurations(), workload.one_at_a_time
    full_pass = [workload.uniform_configurations[-1]]
    few = configurations[:_FEW]
    drawn = {"reference": few, "incremental": configurations[: effort.incremental], prepared.auto: configurations}
    # Every layer at every option, so that no weights are missing; and some mixes, which may compile passes anew.
    warm = [*workload.uniform_configurations, *few]

    timed = {
        "people's loop": Timed(action=prepared.peoples_loop(few), units=len(few)),
        "plain fp32 forward": Timed(action=prepared.plain_forward()),
    }
    compiled = prepared.compiled_forward()
    if compiled is not None:
        timed[prepared.compiled_name] = _queued(compiled) if effort.gpu_ways else Timed(action=compiled)
    if effort.gpu_ways:
        timed[TF32_FORWARD] = _queued(prepared.tf32_forward())
        queued = configurations[:_QUEUED]
        timed[EXPERTS_LOOP] = Timed(action=prepared.experts_loop(queued), units=len(queued))
    for name in prepared.engines:
        of = drawn.get(name, configurations)
        warm_up = None if name in effort.judged else prepared.measuring(name, warm)
        timed[name] = Timed(action=prepared.measuring(name, of), units=len(of), warm_up=warm_up)
    for name in dict.fromkeys(("incremental", *([prepared.auto] if effort.auto_sweep else []))):
        if name != "reference":
            warm_up = None if name in effort.judged else prepared.measuring(name, full_pass)
            timed[_sweep(name)] = Timed(action=prepared.measuring(name, sweep), units=len(sweep), warm_up=warm_up)
            timed[_full_pass(name)] = Timed(action=prepared.measuring(name, full_pass))
    if _has_floor(prepared):
        for_floor = configurations[:_FLOOR_CONFIGURATIONS]
        bare = BareConvolutions(prepared.model, workload.table.names, prepared.batches[0].inputs, for_floor)
        timed["bare int8 convolutions"] = Timed(action=bare.run, units=len(for_floor))

    times = interleaved(timed, effort.rounds, prepared.device, limit_s=effort.limit_s, failed=effort.failed)
    if prepared.auto in times:
        times["auto"] = times[prepared.auto]
    counts = {name: timed[name].units for name in prepared.engines}
    return [
        *_costs(prepared, times, counts),
        *_ratios(prepared, times, counts, bounds, effort.judged),
        *_sweeps(prepared, times, sweep, bounds),
    ]


def _queued(action: Callable[[], object]) -> Timed:
    """Return what does something several times, waiting only after the last."""

    def several() -> None:
        for _ in range(_QUEUED):
            action()

    return Timed(action=several, units=_QUEUED)


def _sweep(engine: str) -> str:
    return f"sweep, {engine}"


def _full_pass(engine: str) -> str:
    return f"full pass, {engine}"


def _has_floor(prepared: Prepared) -> bool:
    integers_only = max(prepared.workload.options) <= 8
    return integers_only and prepared.device.type == "cpu" and why_not_here() is None


def _costs(prepared: Prepared, times: Mapping[str, Sequence[float]], counts: Mapping[str, int]) -> list[Figure]:
    """What each way costs, in milliseconds a configuration."""
    constant = "any number of configurations"
    engines = {
        name: constant if name == "reference" else f"{count} random configurations" for name, count in counts.items()
    }
    names = {
        "people's loop": constant,
        "plain fp32 forward": constant,
        prepared.compiled_name: constant,
        TF32_FORWARD: constant,
        EXPERTS_LOOP: constant,
        **engines,
        "auto": f"{engines[prepared.auto]}; takes {prepared.auto}",
        "bare int8 convolutions": constant,
    }
    return [
        Figure(
            figure=f"{name}, {prepared.workload.label}, {of}",
            values=_milliseconds(times[name]),
            unit="ms/configuration",
        )
        for name, of in names.items()
        if name in times
    ]


def _ratios(
    prepared: Prepared,
    times: Mapping[str, Sequence[float]],
    counts: Mapping[str, int],
    bounds: Bounds,
    judged: Sequence[str],
) -> list[Figure]:
    counts = {**counts, "auto": counts[prepared.auto]}

    def against(above: str, below: str, at_least: float | None = None, at_most: float | None = None) -> list[Figure]:
        """Return the figure, or none where one of the two was not timed."""
        if not {above, below} <= times.keys():
            return []
        count = counts["auto" if above == "auto" else below]
        name = f"{above} / {below}, {prepared.workload.label}, {count} random configurations"
        return [ratio(name, times[above], times[below], at_least=at_least, at_most=at_most)]

    figures = []
    for name in ("auto", *judged):
        figures += against("people's loop", name, at_least=bounds.loop)
        figures += against("plain fp32 forward", name, at_least=bounds.plain)
        figures += against(prepared.compiled_name, name)
        figures += against(TF32_FORWARD, name, at_least=bounds.tf32)
        figures += against(EXPERTS_LOOP, name, at_least=bounds.expert)
    figures += against("auto", "bare int8 convolutions", at_most=bounds.floor)
    for name in prepared.engines:
        if name not in judged:
            figures += against("people's loop", name)
    return figures


def _sweeps(
    prepared: Prepared,
    times: Mapping[str, Sequence[float]],
    sweep: Sequence[BitwidthConfiguration],
    bounds: Bounds,
) -> list[Figure]:
    """A one-layer-at-a-time sweep against as many full passes, by the clock and by multiply-accumulates."""
    label = f"{prepared.workload.label}, {len(sweep)} configurations"
    figures = []
    for name in prepared.engines:
        if {_sweep(name), _full_pass(name)} <= times.keys():
            figures.append(
                ratio(
                    f"one-layer-at-a-time sweep, full passes per configuration, {name}, {label}",
                    times[_sweep(name)],
                    times[_full_pass(name)],
                    at_most=bounds.sweep if name == "incremental" else None,
                )
            )
    share = Figure(
        figure=f"one-layer-at-a-time sweep, share of multiply-accumulates, incremental, {label}",
        values=[share_of_macs(prepared, sweep)],
        unit="x",
    )
    return [*figures, share]


def share_of_macs(prepared: Prepared, configurations: Sequence[BitwidthConfiguration]) -> float:
    """Return which share of the quantized layers' work the incremental engine does for the configurations."""
    engine = prepared.engines["incremental"]
    assert isinstance(engine, IncrementalEngine)
    macs = [layer.macs for layer in prepared.workload.table.layers]
    done = sum(
        macs[layer]
        for step in engine.program.plan(configurations)
        for number in step.numbers
        for layer in engine.program.operations[number - 1].layers
    )
    return done / (sum(macs) * len(configurations))


def growth_figures(prepared: Prepared, rounds: int, counts: Sequence[int] = (1, 4, 16, 64, 256)) -> list[Figure]:
    """What a configuration costs when more of them share one pass, weights quantized and packed beforehand."""
    workload = prepared.workload
    drawn = {count: workload.random_configurations(count) for count in counts}
    warm = prepared.workload.uniform_configurations
    timed = {
        f"{name}, {workload.label}, growth: {count} random configurations": Timed(
            action=prepared.measuring(name, drawn[count]), units=count, warm_up=prepared.measuring(name, warm)
        )
        for name in dict.fromkeys((prepared.auto, "incremental"))
        for count in counts
    }
    times = interleaved(timed, rounds, prepared.device)
    return [
        Figure(figure=figure, values=_milliseconds(values), unit="ms/configuration") for figure, values in times.items()
    ]


def _milliseconds(values: Sequence[float]) -> list[float]:
    return [1000 * value for value in values]
