"""`qbw-eval run`: evaluate checkpoints and append what is missing to the records."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from qbw_eval.checkpoints.find import find_checkpoints, trusted_among
from qbw_eval.commands.console import print_table, tell
from qbw_eval.commands.display import Display, OneAfterTheOther, Sentences, SideBySide
from qbw_eval.commands.dry_run import DryRun, counted
from qbw_eval.commands.evaluating import RunOptions, Session, Worker
from qbw_eval.commands.executing import ExecutorOptions, executor_of
from qbw_eval.commands.stopping import stopping
from qbw_eval.dispatch import Dispatch, Happened, Open, Published, Read, State, Task, drive
from qbw_eval.evaluate import Evaluation
from qbw_eval.executors.inline import Inline
from qbw_eval.executors.seam import Event
from qbw_eval.shares import WHOLE
from qbw_eval.store import RecordStore
from schemas.errors import QBWError, UsageError


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


def run_command(options: RunOptions, executing: ExecutorOptions | None = None) -> None:
    """Evaluate every checkpoint that the words name, once, and print what happened.

    Raises:
        UsageError: what was asked for makes no sense.
        QBWError: some of it could not be done; the rest has been.
    """
    executing = executing or ExecutorOptions()
    paths = find_checkpoints(options.checkpoints)
    trusted_among(paths, options.trust_pickle)
    share = executing.share(os.environ)
    if not options.resume and share != WHOLE:
        raise UsageError("--no-resume: goes without --shard, since jobs could not agree on which repetition it is")
    if executing.scheduler is not None:  # its workers may stand elsewhere
        paths = [path.absolute() for path in paths]
    run = _Run(options, Dispatch([str(path) for path in paths], share))
    if options.dry_run:
        _dry_run(run)
    else:
        _run(run, executing)
    run.check()


def _run(run: "_Run", executing: ExecutorOptions) -> None:
    with stopping(run.kept), executor_of(run.options, executing, run.hear) as executor:
        RecordStore(run.options.records).sweep()
        run.display = OneAfterTheOther(quiet=run.options.quiet) if isinstance(executor, Inline) else run.display
        with run.display:
            for happened in drive(executor, run.dispatch):
                run.see(happened)
    _print(run, None)


def _dry_run(run: "_Run") -> None:
    dry_run = DryRun()
    with stopping(run.kept), Inline(partial(_DryWorker, run.options, dry_run), run.hear) as executor:
        for happened in drive(executor, run.dispatch):
            run.see(happened)
    _print(run, dry_run)


class _DryWorker:
    """Does all that a worker does but for the work itself; what that would take is forecast."""

    def __init__(self, options: RunOptions, dry_run: DryRun, tell: Callable[[Event], object]) -> None:
        self._worker, self._dry_run = Worker(options, tell), dry_run

    def __call__(self, task: Task) -> object:
        """Do a task and return its answer; a chunk is not evaluated."""
        if isinstance(task, Read):
            return self._worker(task)
        if isinstance(task, Open):
            return self._worker.open(task).opened()
        session = self._worker.session_of(task)
        self._dry_run.add(session.evaluation, session.evaluation.plan.pieces(session.missing(task.chunk)))
        return Published()


class _Run:
    """What is known of a run, for whoever asks in the end or in the midst of it.

    Args:
        options: what the user wants.
        dispatch: what there is to do.
    """

    def __init__(self, options: RunOptions, dispatch: Dispatch) -> None:
        self.options, self.dispatch = options, dispatch
        self.display: Display = SideBySide(quiet=options.quiet)
        self.finished: list[State] = []
        self.failed: list[State] = []
        self.lost = self.committed = 0

    def hear(self, worker: str, event: Event) -> None:
        """Show what a worker says."""
        self.display.hear(worker, event)

    def kept(self, word: str) -> str:
        """Return what is safe when a run is stopped, in words."""
        then = "continues" if self.options.resume else "evaluates all of it once more"
        return (
            f"{word}; {self.committed} new rows are kept in {self.options.records} "
            f"({len(self.finished)} of {self.dispatch.checkpoints} checkpoints are finished); the same command {then}"
        )

    def see(self, happened: Happened) -> None:
        """Take note of what happened, and show it.

        Raises:
            QBWError: the only checkpoint cannot be evaluated.
        """
        state = happened.state
        if not self.options.dry_run:
            self.display.see(happened)
        self.committed += happened.new
        match happened.what:
            case "same":
                tell(f"{state.path}: the same weights and epoch as {state.same_as}; evaluated once")
            case "failed" if state.error is not None:
                if len(self.dispatch.states) == 1:
                    raise state.error
                tell(f"qbw-eval: error: {state.error.format_message()}")
                self.failed.append(state)
            case "lost" if happened.finished is not None:
                self.lost += 1
                first, last = state.configurations_of(happened.finished.task.chunk)
                tell(
                    f"{state.path}: configurations {first} to {last} killed their worker {happened.finished.deaths} "
                    f"times ({happened.finished.how}) and are left out; the others go on"
                )
            case "finished":
                self.finished.append(state)
                others = state.total - state.done - len(state.accuracies) - state.given_up
                if others and not self.options.dry_run:
                    tell(f"{state.path}: {others} configurations were done or are being done by another evaluator")

    def outcomes(self) -> "list[Outcome]":
        """Return what happened to each checkpoint that is finished, in order."""
        return [outcome_of(state) for state in sorted(self.finished, key=lambda state: state.number)]

    def check(self) -> None:
        """Raise QBWError where something could not be done."""
        wrong = []
        if self.failed:
            wrong.append(f"{len(self.failed)} of {len(self.dispatch.states)} checkpoints could not be evaluated")
        if self.lost:
            wrong.append(f"{counted(self.lost, 'chunk')} of configurations killed every worker that tried")
        if wrong:
            raise QBWError(f"{', and '.join(wrong)}; the sentences above say why")


def outcome_of(state: State) -> Outcome:
    """Return what happened to an opened checkpoint."""
    opened, accuracies = state.opened, state.accuracies
    assert opened is not None, "only an opened checkpoint has something that happened"
    return Outcome(
        checkpoint=state.path,
        experiment=opened.experiment,
        epoch=opened.epoch,
        samples=opened.samples,
        configurations=state.total,
        done_before=state.done,
        evaluated_now=len(accuracies),
        mean_accuracy=sum(accuracies) / len(accuracies) if accuracies else None,
        min_accuracy=min(accuracies, default=None),
        max_accuracy=max(accuracies, default=None),
        val_acc=opened.val_acc,
    )


def run_one(
    evaluation: Evaluation, store: RecordStore, options: RunOptions, committed: list[int], told: Sentences
) -> Outcome:
    """Evaluate what is missing of one checkpoint here and now, noting new rows in `committed`, chunk by chunk."""
    display = OneAfterTheOther(quiet=options.quiet, say=told)
    session = Session(evaluation, store, lambda event: display.hear("", event), verbose=options.verbose)
    run = _Run(options, Dispatch([str(evaluation.checkpoint.path)]))
    run.display = display

    def work(task: Task) -> object:
        if isinstance(task, Read):
            return ""
        if isinstance(task, Open):
            opened = session.opened()
            store.add_layers(evaluation.plan.table)
            return opened
        return session.evaluate(task.chunk)

    with Inline(lambda _tell: work, run.hear) as executor, display:
        for happened in drive(executor, run.dispatch):
            run.see(happened)
            if happened.new:
                committed.append(happened.new)
    return run.outcomes()[0]


def _print(run: _Run, dry_run: DryRun | None) -> None:
    """Print the outcomes on stdout, and where the rows are; or would be, and what that would take."""
    options, outcomes = run.options, run.outcomes()
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
