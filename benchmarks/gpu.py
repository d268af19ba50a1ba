"""What a GPU is measured on: two networks with large batches, their convolutions one by one, classes against the CPU's.

Nothing that fails here, be it for want of memory, keeps the rest from being measured: a sentence says what failed.
"""

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from traceback import extract_tb
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.ceilings import Ceilings, measured_ceilings
from benchmarks.demo import train_demo
from benchmarks.devices import CONFIGURATIONS, IMAGES, demo_differences
from benchmarks.engines import Bounds, Effort, engine_figures
from benchmarks.figures import Figure
from benchmarks.kernels import describe, launches_of, share_figures, worst_first
from benchmarks.measurements import many_classes_figures, measurement_figures
from benchmarks.memory import memory_figures
from benchmarks.prepared import CACHE_BYTES, Prepared, allowed_activations, prepare
from benchmarks.timing import typical_seconds
from benchmarks.workloads import GPU_WORKLOADS, Workload
from qbw_eval.engine.choose import Engine, choose_engine
from qbw_eval.engine.convolutions import Arithmetic
from qbw_eval.engine.integer import DeclinedError

BOUNDS = Bounds(loop=10, tf32=2, expert=1.5)
_SHARE = 35.0
"""Percent of the int8 ceiling."""
_DIFFERENCES = 1.0
"""Classes in 100,000."""

GPU_SECONDS, QUICK_GPU_SECONDS = 75.0, 25.0
"""Of a workload's rounds; at least one is run."""

_REPOSITORY = Path(__file__).parent.parent

Result = TypeVar("Result")


def effort_on_gpu(effort: Effort, seconds: float | None, *, quick: bool) -> Effort:
    """Return how much is measured on a GPU, which is lent for minutes; so many seconds of rounds if given."""
    limit = (QUICK_GPU_SECONDS if quick else GPU_SECONDS) if seconds is None else seconds
    return replace(effort, limit_s=limit, incremental=16, gpu_ways=True, judged=("integer",), failed=tell_failure)


def gpu_figures(
    device: torch.device,
    effort: Effort,
    *,
    quick: bool,
    only: Sequence[str] = (),
    workloads: Sequence[Workload] = GPU_WORKLOADS,
    ceilings: Callable[[torch.device], Ceilings] = measured_ceilings,
) -> Iterator[list[Figure]]:
    """Yield group after group of figures; of those workloads, and `classes`, in whose name one of `only` stands.

    Where there is no `only`, of all. What decides comes first: a machine may be lent for minutes. Quick: the first
    workload's engines, the last one's convolutions, and classes.
    """
    start = time.perf_counter()
    first, last = workloads[0], workloads[-1]

    def is_wanted(name: str) -> bool:
        return not only or any(words in name for words in only)

    wanted = [workload for workload in workloads if is_wanted(workload.label)]
    for workload in wanted:
        makers: dict[str, Callable[[Prepared], list[Figure]]] = {}
        if workload is first or not quick:
            makers["the engines"] = lambda prepared: engine_figures(prepared, effort, BOUNDS)
        if workload is last:
            makers["the convolutions"] = lambda prepared: _convolutions(prepared, ceilings)
        yield from _of_workload(workload, device, makers)
        tell(f"{time.perf_counter() - start:.0f} s so far")
    if is_wanted("classes"):
        yield attempt("classes", _classes, device) or []
    if first in wanted and not quick:
        yield from _of_workload(
            first,
            device,
            {
                "memory": _memory,
                "measurements": lambda prepared: _measurements(prepared, effort),
                "many classes": lambda _prepared: many_classes_figures(device, effort.rounds),
            },
        )
    tell(f"{time.perf_counter() - start:.0f} s in all")


def _of_workload(
    workload: Workload, device: torch.device, makers: Mapping[str, Callable[[Prepared], list[Figure]]]
) -> Iterator[list[Figure]]:
    """Yield a group of figures of each that is made of a prepared workload; nothing of it stays on the device."""
    if not makers:
        return
    prepared = attempt(workload.label, prepare, workload, device)
    if prepared is None:
        return
    tell(f"{workload.label}: auto takes {prepared.auto}: {prepared.why}")
    for what, make in makers.items():
        yield attempt(f"{what}, {workload.label}", make, prepared) or []
    del prepared
    torch.compiler.reset()  # or the next network's compiled forwards would be counted as further ones of this one's
    _give_memory_back()


def _convolutions(prepared: Prepared, measured: Callable[[torch.device], Ceilings]) -> list[Figure]:
    """Return what the card can do at best, and which share of it the convolutions of a network reach."""
    workload, device = prepared.workload, prepared.device
    ceilings = measured(device)
    launches = launches_of(
        *(prepared.model, workload.table.names, prepared.batches[0].inputs, workload.options),
        *(_triton_on(device), lambda action: typical_seconds(action, device)),
    )
    for launch in worst_first(launches):
        tell(describe(launch, ceilings))
    return [*ceilings.figures(), *share_figures(launches, ceilings, workload.label, at_least=_SHARE)]


def _classes(device: torch.device) -> list[Figure]:
    """Return how many classes differ from the CPU's."""
    with tempfile.TemporaryDirectory() as folder:
        differences = demo_differences(train_demo(Path(folder)), device, _integers_on)
    tell(f"{differences}; by configuration: {differences.of_configuration}")
    label = f"{IMAGES} varied digits, {CONFIGURATIONS} configurations of the demo's network"
    return [differences.figure(label, at_most=_DIFFERENCES)]


def _integers_on(model: nn.Module, layer_names: Sequence[str], inputs: Tensor, options: Sequence[int]) -> Engine:
    """Return the engine that `qbw-eval run --engine integer` takes on a device.

    Raises:
        DeclinedError: it takes another; says why.
    """
    choice = choose_engine(
        *("integer", model, layer_names, inputs, options),
        cache_bytes=CACHE_BYTES,
        activation_bytes=allowed_activations(inputs.device),
    )
    tell(f"classes: {choice.engine.name}: {choice.reason}")
    if choice.engine.name != "integer":
        raise DeclinedError(choice.reason)
    return choice.engine


def _triton_on(device: torch.device) -> Arithmetic:
    """Return Triton's convolutions on a device.

    Raises:
        ImportError: Triton is not installed.
    """
    from qbw_eval.engine.triton_arithmetic import TritonArithmetic  # optional, and slow to import

    with_index = torch.empty(0, device=device).device  # which tensors are on: cuda:0, where cuda was asked for
    return TritonArithmetic(with_index, CACHE_BYTES)


def _memory(prepared: Prepared) -> list[Figure]:
    engines = [name for name in (prepared.auto, "integer") if name in prepared.engines]
    return memory_figures(prepared, engines, 1, None)


def _measurements(prepared: Prepared, effort: Effort) -> list[Figure]:
    return measurement_figures(prepared, effort.rounds, None, limit_s=effort.limit_s / 5)


# --- what fails -----------------------------------------------------------------------------------------------------


def attempt(what: str, make: Callable[..., Result], *given: object) -> Result | None:
    """Return what is made of what is given; None, having told of it, where that fails."""
    try:
        return make(*given)
    except Exception as error:  # memory, compilers and devices fail in many ways
        tell_failure(what, error)
        return None


def tell_failure(what: str, error: Exception) -> None:
    """Say in a sentence what has no figures, why, and where in our own code that was seen; give memory back."""
    reason = (str(error).strip() or "no word why").splitlines()[0]
    ours = [frame for frame in extract_tb(error.__traceback__) if _is_ours(frame.filename)]
    place = f", {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    tell(f"no figures of {what} here: {reason} ({type(error).__name__}{place})")
    error.__traceback__ = None  # its frames hold tensors
    _give_memory_back()


def _is_ours(filename: str) -> bool:
    return any(Path(filename).is_relative_to(_REPOSITORY / package) for package in ("benchmarks", "qbw_eval"))


def _give_memory_back() -> None:
    """Give what torch keeps of a GPU's memory back to it, so that whatever comes next finds it."""
    if torch.cuda.is_available():
        gc.collect()  # engines refer to themselves
        torch.cuda.empty_cache()


def tell(sentence: str) -> None:
    """Say something on stderr."""
    print(f"bench: {sentence}", file=sys.stderr, flush=True)
