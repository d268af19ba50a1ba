"""What a configuration costs: with every engine, with what people run today, and at the least."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.figures import Figure, ratio
from benchmarks.floor import BareConvolutions
from benchmarks.prepared import Prepared
from benchmarks.timing import Timed, interleaved
from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.engine.incremental import IncrementalEngine
from qbw_eval.engine.packing import why_not_here

_FEW = 2
"""Configurations a round of what costs the same for every one of them."""

_FLOOR_CONFIGURATIONS = 4


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What the figures of one workload shall reach, on the CPU; None for no bound.

    Attributes:
        loop: people's loop / auto, at least.
        plain: plain float32 forward / auto, at least.
        floor: auto / bare int8 convolutions, at most.
        sweep: full passes of the incremental engine per configuration of a one-layer-at-a-time sweep, at most.
    """

    loop: float | None = None
    plain: float | None = None
    floor: float | None = None
    sweep: float | None = None


def engine_figures(prepared: Prepared, rounds: int, bounds: Bounds) -> list[Figure]:
    """Everything about random configurations and one-layer-at-a-time sweeps of one workload, in one run of rounds."""
    workload = prepared.workload
    configurations, sweep = workload.random_configurations(), workload.one_at_a_time
    full_pass = [workload.uniform_configurations[-1]]
    few = configurations[:_FEW]
    warm = workload.uniform_configurations  # every layer at every option: all weights that will be needed

    timed = {
        "people's loop": Timed(action=prepared.peoples_loop(few), units=len(few)),
        "plain fp32 forward": Timed(action=prepared.plain_forward()),
    }
    compiled = prepared.compiled_forward()
    if compiled is not None:
        timed["compiled bf16 forward"] = Timed(action=compiled)
    for name in prepared.engines:
        drawn = few if name == "reference" else configurations
        # Compiled passes are compiled anew for shapes they have not seen, so that engine is warmed by the work itself.
        first = None if name == "integer" else prepared.measuring(name, warm)
        timed[name] = Timed(action=prepared.measuring(name, drawn), units=len(drawn), warm_up=first)
    for name in dict.fromkeys(("incremental", prepared.auto)):
        if name != "reference":
            timed[f"sweep, {name}"] = Timed(
                action=prepared.measuring(name, sweep), units=len(sweep), warm_up=prepared.measuring(name, warm)
            )
            timed[f"full pass, {name}"] = Timed(action=prepared.measuring(name, full_pass))
    if _has_floor(prepared):
        drawn = [c for c in configurations if max(c.bitwidths) <= 8][:_FLOOR_CONFIGURATIONS]
        bare = BareConvolutions(prepared.model, workload.table.names, prepared.batches[0].inputs, drawn)
        timed["bare int8 convolutions"] = Timed(action=bare.run, units=len(drawn))

    times = interleaved(timed, rounds, prepared.device)
    times["auto"] = times[prepared.auto]
    return [
        *_costs(prepared, times, len(configurations)),
        *_ratios(prepared, times, len(configurations), bounds),
        *_sweeps(prepared, times, sweep, bounds),
    ]


def _has_floor(prepared: Prepared) -> bool:
    integers_only = max(prepared.workload.options) <= 8
    return integers_only and prepared.device.type == "cpu" and why_not_here() is None


def _costs(prepared: Prepared, times: Mapping[str, Sequence[float]], count: int) -> list[Figure]:
    """What each way costs, in milliseconds a configuration."""
    label = prepared.workload.label
    constant = "any number of configurations"
    names = {
        "people's loop": constant,
        "plain fp32 forward": constant,
        "compiled bf16 forward": constant,
        "reference": constant,
        "incremental": f"{count} random configurations",
        "integer": f"{count} random configurations",
        "auto": f"{count} random configurations; takes {prepared.auto}",
        "bare int8 convolutions": constant,
    }
    return [
        Figure(figure=f"{name}, {label}, {of}", values=_milliseconds(times[name]), unit="ms/configuration")
        for name, of in names.items()
        if name in times
    ]


def _ratios(prepared: Prepared, times: Mapping[str, Sequence[float]], count: int, bounds: Bounds) -> list[Figure]:
    label = f"{prepared.workload.label}, {count} random configurations"
    loop, auto = times["people's loop"], times["auto"]
    figures = [
        ratio(f"people's loop / auto, {label}", loop, auto, at_least=bounds.loop),
        ratio(f"plain fp32 forward / auto, {label}", times["plain fp32 forward"], auto, at_least=bounds.plain),
    ]
    if "compiled bf16 forward" in times:
        figures.append(ratio(f"compiled bf16 forward / auto, {label}", times["compiled bf16 forward"], auto))
    if "bare int8 convolutions" in times:
        floor = times["bare int8 convolutions"]
        figures.append(ratio(f"auto / bare int8 convolutions, {label}", auto, floor, at_most=bounds.floor))
    figures += [ratio(f"people's loop / {name}, {label}", loop, times[name]) for name in prepared.engines]
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
        if f"sweep, {name}" in times:
            figures.append(
                ratio(
                    f"one-layer-at-a-time sweep, full passes per configuration, {name}, {label}",
                    times[f"sweep, {name}"],
                    times[f"full pass, {name}"],
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
        for number, _ in step.run
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
