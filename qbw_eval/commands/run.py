"""`qbw-eval run`: evaluate checkpoints and append what is missing to the records."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import torch

from qbw_eval.checkpoints.find import find_checkpoints, trusted_among
from qbw_eval.checkpoints.native import Checkpoint
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.commands.console import print_table, progress_on_stderr
from qbw_eval.commands.device import allow_tf32, choose_device
from qbw_eval.commands.dry_run import DryRun
from qbw_eval.commands.sampler_options import SamplerOptions, read_configurations, resolve
from qbw_eval.commands.stopping import stopping
from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.data.fit import with_data_shape
from qbw_eval.data.sources import load_split
from qbw_eval.data.split import Split, SplitName
from qbw_eval.engine.tally import Measures, has_top5
from qbw_eval.evaluate import Evaluation, EvaluationSettings, evaluate, prepare
from qbw_eval.experiment import Experiment, WithoutNetwork, load_evaluation_file
from qbw_eval.memory import keep_freed_memory
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


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What happened to one checkpoint.

    Attributes:
        configurations: how many were asked for and exist.
        done_before, evaluated_now: how many of them have rows; the rest was not run (dry run).
        mean_accuracy, min_accuracy, max_accuracy: over those evaluated now; None where there are none.
        val_acc: what training measured itself at the end of the epoch; None where it did not say.
    """

    checkpoint: str
    experiment: str
    epoch: int
    samples: int
    configurations: int
    done_before: int
    evaluated_now: int
    mean_accuracy: float | None
    min_accuracy: float | None
    max_accuracy: float | None
    val_acc: float | None


def run_command(options: RunOptions) -> None:
    """Evaluate every checkpoint that the words name, once, and print what happened."""
    paths = find_checkpoints(options.checkpoints)
    trusted = trusted_among(paths, options.trust_pickle)
    instead = load_evaluation_file(options.config) if options.config else None
    given = read_configurations(options.sampling)
    device = choose_device(options.device)
    allow_tf32(options.tf32)
    keep_freed_memory()
    store = RecordStore(options.records)
    if not options.dry_run:
        store.sweep()
    dry_run = DryRun() if options.dry_run else None
    outcomes: list[Outcome] = []
    failed: list[Path] = []
    committed: list[int] = []  # rows per part, also of a checkpoint that is not finished
    told: set[str] = set()

    def kept(word: str) -> str:
        return (
            f"{word}; {sum(committed)} new rows are kept in {options.records} "
            f"({len(outcomes)} of {len(paths)} checkpoints are finished); "
            + ("the same command continues" if options.resume else "the same command evaluates all of it once more")
        )

    with stopping(kept):
        for evaluation in _evaluations(paths, trusted, instead, options, given, device, store, failed):
            outcomes.append(run_one(evaluation, store, options, committed, told))
            if dry_run is not None:
                plan = evaluation.plan
                dry_run.add(evaluation, plan.chunks(store.done(evaluation.checkpoint.sha256, plan.plan_id)))
    _print(outcomes, options, dry_run)
    if failed:
        raise QBWError(f"{len(failed)} of {len(paths)} checkpoints could not be evaluated; the sentences above say why")


def _evaluations(
    paths: list[Path],
    trusted: set[Path],
    instead: Experiment | WithoutNetwork | None,
    options: RunOptions,
    given: Given | None,
    device: torch.device,
    store: RecordStore,
    failed: list[Path],
) -> Iterator[Evaluation]:
    """Yield each checkpoint, ready to run; files with the same weights are one checkpoint, equal data are read once.

    Of several checkpoints, one that cannot be evaluated is told, noted in `failed`, and does not stop the others.
    """
    first_of: dict[str, Path] = {}
    splits: dict[DataSettings, Split] = {}
    for path in paths:
        try:
            checkpoint = read_checkpoint(path, instead, trust=path in trusted, max_bytes=options.max_bytes)
            for remark in checkpoint.remarks:
                _tell(remark)
            same = first_of.setdefault(checkpoint.same_network(), path)
            if same != path:
                _tell(f"{path}: the same weights and epoch as {same}; evaluated once")
                continue
            evaluation = prepare_one(checkpoint, options, given, device, splits)
        except QBWError as error:
            if len(paths) == 1:
                raise
            _tell(f"qbw-eval: error: {error.format_message()}")
            failed.append(path)
            continue
        yield evaluation if options.resume else _again(evaluation, store)


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


def run_one(
    evaluation: Evaluation, store: RecordStore, options: RunOptions, committed: list[int], told: set[str]
) -> Outcome:
    """Evaluate what is missing of one checkpoint, committing chunk by chunk and noting each in `committed`.

    Which engine runs, and why, is told once for all checkpoints that it is the same for; `told` remembers.
    """
    checkpoint, plan = evaluation.checkpoint, evaluation.plan
    total = len(plan.configurations)
    if not checkpoint.experiment.quantization.enable:
        _tell(
            f"{checkpoint.path}: quantization is off (quantization.enable: false), so there is nothing to vary: "
            "one configuration, every layer at 32 bits"
        )
    elif plan.count is not None and total < plan.count:
        within = f" with {plan.settings.range}" if plan.settings.range else ""
        _tell(
            f"{checkpoint.path}: {plan.count} configurations of {list(plan.options)}{within} asked for, "
            f"only {total} exist"
        )
    done = store.done(checkpoint.sha256, plan.plan_id) & {c.index for c in plan.configurations}
    _tell_what_is_lacking(evaluation, store, told)
    accuracies: list[float] = []
    if not options.dry_run:
        store.add_layers(plan.table)  # before any work, so that a folder that cannot be written is told at once
        what, missing = f"{checkpoint.path.name} ({evaluation.engine.name})", total - len(done)
        engine = f"engine: {evaluation.engine.name} ({evaluation.why})"
        if missing and not options.quiet and engine not in told:
            _tell(engine)
            told.add(engine)
        chunks = _claimed_chunks(evaluation, store, done)
        with progress_on_stderr(what, missing, "configurations", quiet=options.quiet) as advance:
            for rows in evaluate(evaluation, chunks, advance, _tell):
                committed.append(store.append(checkpoint.sha256, plan.plan_id, rows))
                accuracies += rows["accuracy"].to_pylist()
                if options.verbose:
                    _tell_rows(rows, total)
        if len(done) + len(accuracies) < total:
            others = total - len(done) - len(accuracies)
            _tell(f"{checkpoint.path}: {others} configurations were done or are being done by another evaluator")
    return Outcome(
        checkpoint=str(checkpoint.path),
        experiment=checkpoint.experiment.experiment,
        epoch=checkpoint.epoch,
        samples=len(evaluation.split),
        configurations=total,
        done_before=len(done),
        evaluated_now=len(accuracies),
        mean_accuracy=sum(accuracies) / len(accuracies) if accuracies else None,
        min_accuracy=min(accuracies, default=None),
        max_accuracy=max(accuracies, default=None),
        val_acc=checkpoint.val_acc,
    )


def _tell_what_is_lacking(evaluation: Evaluation, store: RecordStore, told: set[str]) -> None:
    """Say, once for all checkpoints, what was not measured for rows that are there and would be now."""
    measures, plan = evaluation.settings.measures, evaluation.plan
    wanted = {
        "agreement": measures.agreement,
        "correct_mask": measures.mask,
        "kl_divergence": measures.kl,
        "top5_correct": measures.top5 and has_top5(evaluation.split.num_classes),
        "correct_per_class": measures.per_class,
    }
    lacking = store.lacking(evaluation.checkpoint.sha256, plan.plan_id) & {name for name in wanted if wanted[name]}
    sentence = (
        f"rows that are there have no {', '.join(sorted(lacking))}, which was not measured for them, and stay as they "
        "are; --no-resume evaluates all of it again"
    )
    if lacking and sentence not in told:
        _tell(sentence)
        told.add(sentence)


def _claimed_chunks(
    evaluation: Evaluation, store: RecordStore, done: set[int]
) -> Iterator[list[BitwidthConfiguration]]:
    """Yield each missing chunk that nobody else is working on; a chunk is claimed until the next is asked for."""
    plan, checkpoint_id = evaluation.plan, evaluation.checkpoint.sha256
    for chunk in plan.chunks(done):
        with store.claimed(checkpoint_id, plan.plan_id, chunk[0].index, plan.chunk_size) as mine:
            if mine:
                # Somebody may have finished it, and given its claim back, since we looked.
                missing = {configuration.index for configuration in chunk}
                missing -= store.done(checkpoint_id, plan.plan_id)
                yield from plan.chunks({configuration.index for configuration in plan.configurations} - missing)


def _tell_rows(rows: pa.Table, total: int) -> None:
    """Print the seed document's line for every row."""
    columns = (rows[name].to_pylist() for name in ("config_index", "accuracy", "loss", "avg_bitwidth"))
    for index, accuracy, loss, bits in zip(*columns, strict=True):
        _tell(f"Config {index + 1}/{total}: Acc={accuracy:.4f}, Loss={loss:.4f}, Avg Bitwidth={bits:.2f}")


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _print(outcomes: list[Outcome], options: RunOptions, dry_run: DryRun | None) -> None:
    """Print the outcomes on stdout, and where the rows are; or would be, and what that would take."""
    if options.as_json:
        told = {"records": str(options.records), "checkpoints": [asdict(o) for o in outcomes]}
        print(json.dumps(told | ({"forecast": dry_run.as_dict(options.records)} if dry_run else {}), indent=2))
        return
    training_said = any(o.val_acc is not None for o in outcomes)
    print_table(
        (
            "checkpoint",
            "epoch",
            "samples",
            "configurations",
            "done before",
            "evaluated now",
            "mean accuracy",
            "min-max",
            *(["training said"] if training_said else []),
        ),
        [
            (
                Path(o.checkpoint).name,
                *(o.epoch + 1, o.samples, o.configurations, o.done_before, o.evaluated_now),
                "" if o.mean_accuracy is None else f"{o.mean_accuracy:.4f}",
                "" if o.min_accuracy is None else f"{o.min_accuracy:.4f}-{o.max_accuracy:.4f}",
                *(["" if o.val_acc is None else f"{o.val_acc:.4f}"] if training_said else []),
            )
            for o in outcomes
        ],
    )
    done, now = sum(o.done_before for o in outcomes), sum(o.evaluated_now for o in outcomes)
    missing = sum(o.configurations for o in outcomes) - done - now
    if dry_run is not None:
        print("".join(f"{line}\n" for line in dry_run.lines(options.records)), end="")
        print(f"Dry run: {missing} configurations would be evaluated; {done} are in {options.records}.")
    elif now == 0:
        print(f"Nothing to do: all {done} rows are in {options.records}.")
    else:
        print(f"Done before: {done}. Evaluated now: {now}. Rows: {options.records}. Next: make report")
