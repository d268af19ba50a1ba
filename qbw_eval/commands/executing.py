"""Where `qbw-eval run` computes: the options that say so -> an executor, checked before anything waits for it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from qbw_eval.commands.device import choose_device
from qbw_eval.commands.evaluating import RunOptions, Worker
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
    environments = _environments(options, executing)
    if len(environments) == 1:
        return Inline(partial(Worker, options), hear)
    pinned = any("CUDA_VISIBLE_DEVICES" in environment for environment in environments)
    sharing = len(environments) // len({environment.get("CUDA_VISIBLE_DEVICES") for environment in environments})
    there = replace(options, device="cuda" if pinned else "cpu")
    return Processes(partial(Worker, there, sharing=sharing), hear, environments)


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
