"""Measure the product's figures, one line each; what is compared is measured in turn within one run.

make bench [DEVICE=cuda] [JSON=file] [QUICK=1]

The file gets an array of {figure, value, unit, at_least | at_most, spread, machine}.

docs/performance.md says what each figure means.
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import torch

from benchmarks.allocator import allocator_figures
from benchmarks.coverage import all_shares
from benchmarks.engines import Bounds, Effort, engine_figures, growth_figures
from benchmarks.figures import Figure
from benchmarks.gpu import GPU_SECONDS, QUICK_GPU_SECONDS, effort_on_gpu, gpu_figures, tell
from benchmarks.help import help_times
from benchmarks.loading import loading_figures
from benchmarks.machine import machine_line
from benchmarks.measurements import many_classes_figures, measurement_figures
from benchmarks.memory import memory_figures
from benchmarks.prepared import prepare
from benchmarks.recommendation import recommendation_figures
from benchmarks.reports import report_figures
from benchmarks.store import append_time
from benchmarks.workers import coordinator_figures, scaling_figures
from benchmarks.workloads import HIGH_BITS, WORKLOADS, Workload
from qbw_eval.commands.device import allow_tf32, choose_device
from qbw_eval.memory import keep_freed_memory
from schemas.errors import exit_code_of

_ROUNDS, _FEW_ROUNDS = 7, 3
_TRIALS = 250
_QUICK_SECONDS = 60.0
"""Of the rounds; on a slow machine fewer are run, at least one."""

_FIRST = Bounds(loop=12, plain=6, floor=1.8, sweep=0.6)
_FIRST_AT_HIGH_BITS = Bounds(loop=3)
_MEMORY = 3.0
_MEASUREMENTS = 1.03
"""Set for two cores with AMX, and for ResNet-18 alone."""


def _bounds(workload: Workload) -> Bounds:
    if workload.network != WORKLOADS[0].network:
        return Bounds()
    return _FIRST_AT_HIGH_BITS if workload.options == HIGH_BITS else _FIRST


def measure_all(
    device: torch.device, effort: Effort, *, quick: bool, only: Sequence[str] = (), trials: int = _TRIALS
) -> Iterator[list[Figure]]:
    """Yield group after group of figures; of the workloads in whose label one of `only` stands, where there are any.

    Quick: the first workload alone, unless others are asked for. Otherwise the answers' intervals are tried on so many
    simulations of every kind. Of a GPU what it changes.
    """
    if device.type == "cuda":
        yield from gpu_figures(device, effort, quick=quick, only=only)
        return
    if not only:
        yield help_times()
        yield append_time()
        yield loading_figures()
        yield coordinator_figures()
        if not quick:
            yield scaling_figures(_FEW_ROUNDS)
            yield report_figures()
            yield recommendation_figures()
            tell(f"trying the report's intervals on {trials} simulations of every kind")
            yield from ([share.figure()] for share in all_shares(trials))
    for workload in WORKLOADS[:1] if quick and not only else WORKLOADS:
        if only and not any(words in workload.label for words in only):
            continue
        prepared = prepare(workload, device)
        tell(f"{workload.label}: auto takes {prepared.auto}: {prepared.why}")
        yield engine_figures(prepared, effort, _bounds(workload))
        if workload is WORKLOADS[0]:
            engines = [prepared.auto] if quick else [prepared.auto, "incremental"]
            yield memory_figures(prepared, engines, 1 if quick else _FEW_ROUNDS, _MEMORY)
            yield measurement_figures(prepared, effort.rounds, _MEASUREMENTS, limit_s=effort.limit_s / 3)
            yield many_classes_figures(device, effort.rounds)
            if not quick:
                yield growth_figures(prepared, min(effort.rounds, _FEW_ROUNDS))
    if not quick and not only:
        yield allocator_figures(WORKLOADS[0], effort.rounds)


@click.command()
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to this file.")
@click.option("--quick", is_flag=True, help="In few rounds; the first workload alone, unless --only.")
@click.option("--device", "device_name", default="auto", show_default=True, help="auto, cpu, cuda or cuda:INDEX.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch; its own choice unless given.")
@click.option("--rounds", type=click.IntRange(min=1), help=f"Rounds; {_ROUNDS}, or at most {_FEW_ROUNDS} with --quick.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    help=f"Of a workload's rounds; {_QUICK_SECONDS:g} if --quick; on a GPU {GPU_SECONDS:g}, {QUICK_GPU_SECONDS:g}.",
)
@click.option(
    "--trials", type=click.IntRange(min=1), default=_TRIALS, show_default=True, help="Of the report's intervals."
)
@click.option(
    "--only",
    multiple=True,
    help="Only workloads in whose name this stands: 'ResNet-20' or '{8,16,32}'; on a GPU also 'classes'.",
)
def main(
    json_path: Path | None,
    quick: bool,
    device_name: str,
    threads: int | None,
    rounds: int | None,
    seconds: float | None,
    trials: int,
    only: tuple[str, ...],
) -> None:
    """Measure and print every figure."""
    if threads is not None:
        torch.set_num_threads(threads)
    device = choose_device(device_name)
    allow_tf32(False)  # as `qbw-eval run` does
    keep_freed_memory()  # likewise; everything that is measured here profits, the people's loop too
    if json_path is not None:  # now, and not after many minutes
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text("[]\n")
    machine = machine_line(device)
    print(f"Machine: {machine}.", flush=True)
    effort = (
        Effort(
            rounds=rounds or _FEW_ROUNDS,
            limit_s=_QUICK_SECONDS if seconds is None else seconds,
            incremental=16,
            auto_sweep=False,
        )
        if quick
        else Effort(rounds=rounds or _ROUNDS, limit_s=math.inf if seconds is None else seconds)
    )
    if device.type == "cuda":
        effort = effort_on_gpu(effort, seconds, quick=quick)
    written: list[dict[str, object]] = []
    for figures in measure_all(device, effort, quick=quick, only=only, trials=trials):
        for figure in figures:
            print(figure.line(), flush=True)
            written.append({**figure.as_dict(), "machine": machine})
        if json_path is not None:  # after every group: a run that is interrupted keeps what it has
            json_path.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(exit_code_of("bench", lambda: main(standalone_mode=False)))
