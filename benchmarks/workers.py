"""What many workers gain, and what it costs to keep them busy."""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.figures import Figure, ratio
from benchmarks.timing import Timed, interleaved
from qbw_eval.checkpoints.native import Trained, write_checkpoint
from qbw_eval.commands.display import SideBySide
from qbw_eval.commands.evaluating import RunOptions, Worker
from qbw_eval.commands.sampler_options import SamplerOptions
from qbw_eval.data.fit import with_data_shape
from qbw_eval.data.sources import load_split
from qbw_eval.dispatch import Dispatch, Open, Opened, Published, Read, Task, drive
from qbw_eval.executors.cluster import Cluster
from qbw_eval.executors.processes import Processes
from qbw_eval.executors.seam import Event, Executor, Work
from qbw_eval.experiment import experiment_from_mapping
from qbw_eval.networks.build import build_network

_CHECKPOINTS, _CONFIGURATIONS = 4, 512
_CHUNKS = 1000

_EXPERIMENT = {
    "experiment": "benchmark",
    "model": {"name": "resnet8", "width": 8},
    "data": {"source": "digits"},
    "quantization": {"mine": {"bitwidth_options": [2, 4, 8], "activation_quantization": "pact"}},
}

_OPTIONS = RunOptions(
    checkpoints=(),
    config=None,
    records=Path(),
    sampling=SamplerOptions(
        sampler=None,
        num_configs=_CONFIGURATIONS,
        seed=None,
        range=None,
        cost=None,
        base=None,
        configurations=None,
        of=None,
    ),
    bitwidths=None,
    device="cpu",
    batch_size=None,
    limit=100,
    split="validation",
    engine="incremental",
    skip=None,
    per_class=False,
    memory=None,
    data_root=None,
    max_bytes=None,
    trust_pickle=(),
    tf32=False,
    resume=False,
    dry_run=False,
    as_json=False,
    quiet=True,
    verbose=False,
)
"""Everything is evaluated again each time, into another plan."""


def scaling_figures(rounds: int) -> list[Figure]:
    """How much faster two single-threaded workers are than one; starting them is not counted."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        paths = _write_checkpoints(Path(folder))
        start = partial(Worker, replace(_OPTIONS, records=Path(folder) / "records"))
        one, two = (
            running.enter_context(Processes(start, _hear, [{"OMP_NUM_THREADS": "1"}] * count)) for count in (1, 2)
        )
        times = interleaved(
            {name: Timed(action=partial(_evaluate, workers, paths)) for name, workers in (("one", one), ("two", two))},
            rounds,
        )
    figure = f"two single-threaded workers / one, {_CHECKPOINTS} checkpoints x {_CONFIGURATIONS} configurations"
    return [ratio(figure, times["one"], times["two"], at_least=1.8)]


def coordinator_figures() -> list[Figure]:
    """The processor time that handing out a chunk costs, whose work is nothing.

    The coordinator's own is that of its one thread; beside it Dask has threads for its client, and here its scheduler.
    """
    environments = [{"OMP_NUM_THREADS": "1"}] * 2
    kinds: dict[str, Callable[[], Executor]] = {
        "processes": lambda: Processes(_idle, _hear, environments),
        "Dask": lambda: Cluster(_idle, _hear, environments=environments),
    }
    figures = []
    for name, made in kinds.items():
        with made() as executor:
            _evaluate(executor, ["warm-up"])  # the workers start
            begin, begin_of_all = time.thread_time(), time.process_time()
            _evaluate(executor, ["checkpoint"])
            own, of_all = time.thread_time() - begin, time.process_time() - begin_of_all
        what = f"time per chunk, {_CHUNKS} chunks, {name}"
        figures += [
            Figure(figure=f"coordinator's own {what}", values=[1000 * own / _CHUNKS], unit="ms", at_most=5),
            Figure(figure=f"all threads of its process, {what}", values=[1000 * of_all / _CHUNKS], unit="ms"),
        ]
    return figures


def _evaluate(executor: Executor, paths: list[str]) -> None:
    """Do what `qbw-eval run` does between the start and the end of its workers."""
    with SideBySide(quiet=True) as display:
        for happened in drive(executor, Dispatch(paths)):
            display.see(happened)


def _hear(_worker: str, _event: Event) -> None: ...


def _write_checkpoints(folder: Path) -> list[str]:
    """Write checkpoints of untrained networks, which take as long as any."""
    experiment = experiment_from_mapping(_EXPERIMENT, "benchmark")
    experiment = with_data_shape(experiment, load_split(experiment.data, "validation"))
    paths = []
    for epoch in range(_CHECKPOINTS):
        torch.manual_seed(epoch)
        model = build_network(experiment)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trained = Trained(epoch=epoch, model=model, optimizer=optimizer, val_acc=0.1, val_loss=2.3)
        path = folder / f"epoch_{epoch}.pt"
        write_checkpoint(path, trained, experiment)
        paths.append(str(path))
    return paths


def _idle(_tell: Callable[[Event], object]) -> Work:
    """Begin a worker that does nothing, of a thousand chunks each time."""

    def work(task: Task) -> object:
        if isinstance(task, Read):
            return task.path
        if isinstance(task, Open):
            return Opened(
                checkpoint_id="c" * 64,
                plan_id="p" * 32,
                repeat=0,
                experiment="benchmark",
                epoch=0,
                samples=1,
                val_acc=None,
                engine="none",
                why="a benchmark",
                chunks=((64, 64),) * _CHUNKS,
            )
        return Published(accuracies=(0.5,) * 64)

    return work
