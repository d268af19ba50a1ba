"""What a worker of `qbw-eval run` does: reads checkpoints, opens them, evaluates chunks of their configurations."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

import pyarrow as pa
import torch

from qbw_eval.checkpoints.native import Checkpoint
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.commands.device import allow_tf32, choose_device
from qbw_eval.commands.sampler_options import SamplerOptions, read_configurations, resolve
from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.data.fit import with_data_shape
from qbw_eval.data.sources import load_split
from qbw_eval.data.split import Split, SplitName
from qbw_eval.dispatch import Chunk, Open, Opened, Published, Read, Task
from qbw_eval.engine.tally import Measures, has_top5
from qbw_eval.evaluate import Evaluation, EvaluationSettings, evaluate, prepare
from qbw_eval.executors.seam import Advanced, Event, Told
from qbw_eval.experiment import load_evaluation_file
from qbw_eval.memory import free_memory, keep_freed_memory
from qbw_eval.sampling.given import Given
from qbw_eval.settings.data import DataSettings
from qbw_eval.store import RecordStore
from schemas.errors import QBWError


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of `qbw-eval run`, as its help describes them; None where the experiment decides."""

    checkpoints: tuple[str, ...]
    config: Path | None
    records: Path
    sampling: SamplerOptions
    bitwidths: tuple[int, ...] | None
    device: str
    batch_size: int | None
    limit: int | None
    split: SplitName
    engine: str
    skip: frozenset[str] | None
    per_class: bool
    memory: int | None
    data_root: Path | None
    max_bytes: int | None
    trust_pickle: tuple[Path, ...]
    tf32: bool
    resume: bool
    dry_run: bool
    as_json: bool
    quiet: bool
    verbose: bool


class Session:
    """One checkpoint's evaluation, chunk by chunk, in whatever order they are asked for.

    What chunks have in common, such as the data on a GPU and the reference's results, is kept from one to the next.

    Args:
        evaluation: what to run.
        store: where rows go.
        tell: told what there is to say, and how far it is.
        verbose: say every row.
    """

    def __init__(
        self, evaluation: Evaluation, store: RecordStore, tell: Callable[[Event], object], *, verbose: bool = False
    ) -> None:
        self.evaluation = evaluation
        self._store, self._tell, self._verbose = store, tell, verbose
        self._piece: list[BitwidthConfiguration] = []
        self._rows: Iterator[pa.Table] | None = None

    def opened(self) -> Opened:
        """Return what there is to do, having said what is odd about it."""
        checkpoint, plan = self.evaluation.checkpoint, self.evaluation.plan
        total = len(plan.configurations)
        if not checkpoint.experiment.quantization.enable:
            self._say(
                f"{checkpoint.path}: quantization is off (quantization.enable: false), so there is nothing to vary: "
                "one configuration, every layer at 32 bits"
            )
        elif plan.count is not None and total < plan.count:
            within = f" with {plan.settings.range}" if plan.settings.range else ""
            self._say(
                f"{checkpoint.path}: {plan.count} configurations of {list(plan.options)}{within} asked for, "
                f"only {total} exist"
            )
        done = self._store.done(checkpoint.sha256, plan.plan_id)
        lacking = self._lacking()
        if lacking:
            self._say(
                f"rows that are there have no {', '.join(lacking)}, which was not measured for them, and stay as they "
                "are; --no-resume evaluates all of it again",
                once=True,
            )
        chunks = [
            (len(indices), len(indices - done))
            for indices in (self._indices(chunk) for chunk in range(-(-total // plan.chunk_size)))
        ]
        return Opened(
            checkpoint_id=checkpoint.sha256,
            plan_id=plan.plan_id,
            repeat=plan.repeat,
            experiment=checkpoint.experiment.experiment,
            epoch=checkpoint.epoch,
            samples=len(self.evaluation.split),
            val_acc=checkpoint.val_acc,
            engine=self.evaluation.engine.name,
            why=self.evaluation.why,
            chunks=tuple(chunks),
        )

    def evaluate(self, chunk: int, *, regardless: bool = False) -> Published:
        """Evaluate and commit what is missing of a chunk, unless somebody else is at it.

        Raises:
            QBWError: it cannot be evaluated, or not be committed.
        """
        plan, checkpoint_id = self.evaluation.plan, self.evaluation.checkpoint.sha256
        accuracies: list[float] = []
        first = chunk * plan.chunk_size
        with self._store.claimed(checkpoint_id, plan.plan_id, first, plan.chunk_size) as mine:
            if mine or regardless:
                # Somebody may have finished it, and given its claim back, since we looked.
                for piece in plan.pieces(self.missing(chunk)):
                    rows = self._rows_of(piece)
                    new = self._store.append(checkpoint_id, plan.plan_id, rows)
                    accuracies += rows["accuracy"].to_pylist()[-new:] if new else []
                    if self._verbose:
                        self._say_rows(rows)
        left = 0 if mine or regardless else len(self.missing(chunk))
        return Published(accuracies=tuple(accuracies), left=left)

    def missing(self, chunk: int) -> list[BitwidthConfiguration]:
        """Return the configurations of a chunk that have no row, in order."""
        plan = self.evaluation.plan
        done = self._store.done(self.evaluation.checkpoint.sha256, plan.plan_id)
        return [plan.configurations[index] for index in sorted(self._indices(chunk) - done)]

    def _indices(self, chunk: int) -> set[int]:
        plan = self.evaluation.plan
        return set(range(chunk * plan.chunk_size, min((chunk + 1) * plan.chunk_size, len(plan.configurations))))

    def _rows_of(self, piece: list[BitwidthConfiguration]) -> pa.Table:
        """Return the rows of consecutive configurations."""
        self._piece = piece
        if self._rows is None:
            self._rows = evaluate(self.evaluation, self._pieces(), self._advance, self._say)
        rows, self._rows = self._rows, None  # an error ends a generator: the next piece begins with a new one
        table = next(rows)
        self._rows = rows
        return table

    def _pieces(self) -> Iterator[list[BitwidthConfiguration]]:
        while True:  # as often as `_rows_of` asks for rows
            yield self._piece

    def _lacking(self) -> list[str]:
        """Return what was not measured for rows that are there and would be now."""
        measures, plan = self.evaluation.settings.measures, self.evaluation.plan
        wanted = {
            "agreement": measures.agreement,
            "correct_mask": measures.mask,
            "kl_divergence": measures.kl,
            "top5_correct": measures.top5 and has_top5(self.evaluation.split.num_classes),
            "correct_per_class": measures.per_class,
        }
        lacking = self._store.lacking(self.evaluation.checkpoint.sha256, plan.plan_id)
        return sorted(lacking & {name for name in wanted if wanted[name]})

    def _say_rows(self, rows: pa.Table) -> None:
        """Say the seed document's line for every row."""
        total = len(self.evaluation.plan.configurations)
        columns = (rows[name].to_pylist() for name in ("config_index", "accuracy", "loss", "avg_bitwidth"))
        for index, accuracy, loss, bits in zip(*columns, strict=True):
            self._say(f"Config {index + 1}/{total}: Acc={accuracy:.4f}, Loss={loss:.4f}, Avg Bitwidth={bits:.2f}")

    def _advance(self, amount: float) -> None:
        self._tell(Advanced(amount))

    def _say(self, sentence: str, *, once: bool = False) -> None:
        self._tell(Told(sentence, once))


class Worker:
    """Does the tasks of `dispatch`; keeps the checkpoint that it was last at, and the data.

    Args:
        options: what the user wants.
        tell: told what there is to say.
        sharing: how many workers share the memory of a device.

    Raises:
        QBWError: this machine has no such device, or a file that the options name cannot be read.
    """

    def __init__(self, options: RunOptions, tell: Callable[[Event], object], sharing: int = 1) -> None:
        self._instead = load_evaluation_file(options.config) if options.config else None
        self._given = read_configurations(options.sampling)
        self._device = choose_device(options.device)
        if sharing > 1:
            memory = free_memory(self._device) // 4 if options.memory is None else options.memory
            options = replace(options, memory=memory // sharing)
        self._options, self._tell = options, tell
        allow_tf32(options.tf32)
        keep_freed_memory()
        self._store = RecordStore(options.records)
        self._splits: dict[DataSettings, Split] = {}
        self._checkpoint: Checkpoint | None = None
        self._session: Session | None = None

    def __call__(self, task: Task) -> object:
        """Do a task and return its answer.

        Raises:
            QBWError: it cannot be done.
        """
        match task:
            case Read():
                self._checkpoint = self._read(task)
                for remark in self._checkpoint.remarks:
                    self._tell(Told(remark))
                return self._checkpoint.same_network()
            case Open():
                session = self.open(task)
                opened = session.opened()
                # Before any work, so that a folder that cannot be written is told at once.
                self._store.add_layers(session.evaluation.plan.table)
                return opened
            case Chunk():
                return self.session_of(task).evaluate(task.chunk, regardless=task.regardless)
        assert_never(task)

    def open(self, task: Open) -> Session:
        """Return a checkpoint's evaluation, ready to run.

        Raises:
            QBWError: it cannot be evaluated as it was asked for.
        """
        evaluation = self._prepared(task)
        if not self._options.resume:
            evaluation = _again(evaluation, self._store)
        self._session = Session(evaluation, self._store, self._tell, verbose=self._options.verbose)
        return self._session

    def _read(self, task: Task) -> Checkpoint:
        path, options = Path(task.path), self._options
        trust = path.resolve() in {trusted.resolve() for trusted in options.trust_pickle}
        return read_checkpoint(path, self._instead, trust=trust, max_bytes=options.max_bytes)

    def _prepared(self, task: Task) -> Evaluation:
        checkpoint, self._checkpoint, self._session = self._checkpoint, None, None
        if checkpoint is None or str(checkpoint.path) != task.path:
            checkpoint = self._read(task)
        return prepare_one(checkpoint, self._options, self._given, self._device, self._splits)

    def session_of(self, chunk: Chunk) -> Session:
        """Return the session that a chunk belongs to; a checkpoint that somebody else has opened is opened here too.

        Raises:
            QBWError: what is here would be called otherwise.
        """
        session = self._session
        if session is None or _identity(session.evaluation) != (chunk.checkpoint_id, chunk.plan_id):
            evaluation = self._prepared(chunk)
            evaluation = replace(evaluation, plan=replace(evaluation.plan, repeat=chunk.repeat))
            if evaluation.checkpoint.sha256 != chunk.checkpoint_id:
                raise QBWError(f"{chunk.path}: has changed while it was evaluated; run the same command again")
            if evaluation.plan.plan_id != chunk.plan_id:
                raise QBWError(
                    f"{chunk.path}: this worker's rows would be of another series than those of the worker that opened "
                    f"it (here: {evaluation.engine.name} on {self._device}); workers must have the same versions, data "
                    "and kind of device, or name an --engine and a --device that all have"
                )
            session = self._session = Session(evaluation, self._store, self._tell, verbose=self._options.verbose)
        return session


def _identity(evaluation: Evaluation) -> tuple[str, str]:
    return evaluation.checkpoint.sha256, evaluation.plan.plan_id


def prepare_one(
    checkpoint: Checkpoint,
    options: RunOptions,
    given: Given | None,
    device: torch.device,
    splits: dict[DataSettings, Split],
) -> Evaluation:
    """Return a checkpoint's evaluation, ready to run; `splits` holds the data that were read before.

    Raises:
        QBWError: it cannot be evaluated as it was asked for.
    """
    data = checkpoint.experiment.data.below(options.data_root)
    if data not in splits:
        splits[data] = load_split(data, options.split, limit=options.limit, beside=options.records.parent)
    # A file given with --config may leave to the data what a checkpoint's own configuration says.
    complete = replace(checkpoint, experiment=with_data_shape(checkpoint.experiment, splits[data]))
    return prepare(complete, splits[data].limited(options.limit), _settings(complete, options, given, device))


def _again(evaluation: Evaluation, store: RecordStore) -> Evaluation:
    """Return the evaluation under the first plan of its kind that has no rows yet."""
    plan = evaluation.plan
    while store.done(evaluation.checkpoint.sha256, plan.plan_id):
        plan = replace(plan, repeat=plan.repeat + 1)
    return replace(evaluation, plan=plan)


def _settings(
    checkpoint: Checkpoint, options: RunOptions, given: Given | None, device: torch.device
) -> EvaluationSettings:
    drawn = resolve(options.sampling, given, checkpoint.experiment.random_bitwidths)
    return EvaluationSettings(
        sampler=drawn.sampler,
        num_configs=drawn.count,
        seed=drawn.seed,
        range=drawn.range,
        cost=drawn.cost,
        base=drawn.base,
        given=drawn.given,
        bitwidths=options.bitwidths,
        batch_size=options.batch_size or checkpoint.experiment.data.batch_size,
        device=device,
        engine=options.engine,
        memory=options.memory,
        tf32=options.tf32 and device.type == "cuda",
        measures=Measures(per_class=options.per_class, **dict.fromkeys(options.skip or (), False)),
    )
