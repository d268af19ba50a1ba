"""Where `qbw-eval run` computes: the options that say so -> an executor, checked before anything waits for it."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from qbw_eval.commands.device import choose_device
from qbw_eval.commands.evaluating import RunOptions, Worker
from qbw_eval.executors.cluster import Cluster, Facts
from qbw_eval.executors.inline import Inline
from qbw_eval.executors.processes import Processes
from qbw_eval.executors.seam import Executor, Hear
from qbw_eval.shares import WHOLE, Share, parse_share
from schemas.errors import QBWError, UsageError


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """What the user says of where to compute, as the help describes it.

    Attributes:
        executor: local, shard or dask; None where the other options tell.
        workers: how many processes; None for one a GPU, or one.
        gpus: how many GPUs; None for all.
        shard: which share, in words; None for all of it.
        scheduler: the address of Dask's; None for a cluster of our own.
    """

    executor: str | None = None
    workers: int | None = None
    gpus: int | None = None
    shard: str | None = None
    scheduler: str | None = None

    def share(self, environment: Mapping[str, str]) -> Share:
        """Return which part of the work is ours.

        Raises:
            UsageError: that does not follow from what was said.
        """
        if self.scheduler is not None and self.executor not in (None, "dask"):
            raise UsageError(f"--scheduler: goes with --executor dask, not with {self.executor}")
        if self.shard is not None and self.executor not in (None, "shard"):
            raise UsageError(f"--shard: goes with --executor shard, not with {self.executor}")
        if self.shard is not None and self.scheduler is not None:
            raise UsageError("--shard and --scheduler: they are two executors; leave one out")
        if self.shard is None and self.executor != "shard":
            return WHOLE
        return parse_share(self.shard or "auto", environment)


def executor_of(options: RunOptions, executing: ExecutorOptions, hear: Hear) -> Executor:
    """Return what the work runs on.

    Raises:
        UsageError: the options make no sense together.
        QBWError: there are fewer GPUs than were asked for, or none.
    """
    if executing.executor == "dask" or executing.scheduler is not None:
        return _cluster_of(options, executing, hear)
    environments = _environments(options, executing)
    if len(environments) == 1:
        return Inline(partial(Worker, options), hear)
    there, sharing = _there(options, environments)
    return Processes(partial(Worker, there, sharing=sharing), hear, environments)


def _there(options: RunOptions, environments: Sequence[Mapping[str, str]]) -> tuple[RunOptions, int]:
    """Return the options of processes that are pinned to their devices, and how many of them share one."""
    devices = [environment.get("CUDA_VISIBLE_DEVICES") for environment in environments]
    most = max(Counter(devices).values())
    if environments == [{}]:
        return options, 1
    return replace(options, device="cpu" if devices[0] is None else "cuda"), most


def _environments(options: RunOptions, executing: ExecutorOptions) -> list[dict[str, str]]:
    """Return what is to be set in each process; an empty one where this process is all there is.

    Raises:
        QBWError: there are fewer GPUs than were asked for.
    """
    gpus = visible_gpus(os.environ, torch.cuda.device_count()) if options.device in ("auto", "cuda") else []
    device = choose_device(options.device)
    if device.type == "cuda" and device.index is not None:
        gpus = [visible_gpus(os.environ, torch.cuda.device_count())[device.index]]
    if executing.gpus is not None and executing.gpus > len(gpus):
        found = f"there are {len(gpus)}" if gpus else "there is none"
        raise QBWError(f"--gpus: {executing.gpus} asked for, but with --device {options.device} {found} here")
    gpus = gpus[: executing.gpus]
    count = executing.workers or max(1, len(gpus))
    if count == 1:
        return [{}]
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count))}
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {}) for place in range(count)]


def _cluster_of(options: RunOptions, executing: ExecutorOptions, hear: Hear) -> Executor:
    """Return a Dask cluster whose workers have been asked what they have.

    Raises:
        UsageError: the options make no sense together.
        QBWError: Dask or its scheduler is not there, or its workers have not what was asked for.
    """
    if executing.scheduler is None:
        environments = _environments(options, executing)
        there, sharing = _there(options, environments)
        # Dask's own choice is one thread.
        environments = [{"OMP_NUM_THREADS": str(torch.get_num_threads()), **one} for one in environments]
        return Cluster(partial(Worker, there, sharing=sharing), hear, environments=environments)
    if executing.workers is not None:
        raise UsageError("--workers: goes without --scheduler, whose workers are those that have joined it")
    # Paths mean the same on another machine only if they do not depend on where one stands.
    there = replace(
        options,
        config=_absolute(options.config),
        records=options.records.absolute(),
        data_root=_absolute(options.data_root),
        sampling=replace(options.sampling, configurations=_absolute(options.sampling.configurations)),
        trust_pickle=tuple(path.absolute() for path in options.trust_pickle),
    )
    cluster = Cluster(partial(Worker, there), hear, scheduler=executing.scheduler, most=executing.gpus)
    try:
        check_workers(cluster.facts(), options.device, executing.gpus, executing.scheduler)
    except QBWError:
        cluster.__exit__(None, None, None)
        raise
    return cluster


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def check_workers(facts: Mapping[str, Facts], device: str, gpus: int | None, scheduler: str) -> None:
    """Raise QBWError where workers have not what was asked for, now instead of waiting for ever."""
    ours = version("qbw")
    others = sorted({fact.version for fact in facts.values()} - {ours})
    if others:
        raise QBWError(f"{scheduler}: its workers have QBW {', '.join(others)}, here it is {ours}; install one version")
    with_gpu = sum(fact.gpus > 0 for fact in facts.values())
    if gpus is not None and gpus > with_gpu:
        raise QBWError(f"--gpus: {gpus} asked for, but of the {len(facts)} workers of {scheduler} {with_gpu} have one")
    if device.startswith("cuda") and with_gpu < len(facts):
        raise QBWError(
            f"--device: {device!r} asked for, but of the {len(facts)} workers of {scheduler} {with_gpu} have a GPU"
        )
    if device == "auto" and 0 < with_gpu < len(facts):
        raise QBWError(
            f"--device: of the {len(facts)} workers of {scheduler} {with_gpu} have a GPU, and rows of both kinds would "
            "be two series; say --device cpu, or let only those with a GPU join"
        )


def visible_gpus(environment: Mapping[str, str], count: int) -> list[str]:
    """Return what `CUDA_VISIBLE_DEVICES` must be for each of the GPUs that this process sees, in torch's order.

    >>> visible_gpus({}, 2)
    ['0', '1']
    >>> visible_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-8932f937"}, 2)
    ['3', 'GPU-8932f937']

    Args:
        environment: of this process.
        count: how many torch finds.
    """
    named = environment.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(count)] if named is None else [name.strip() for name in named.split(",")]
    return names[:count]
