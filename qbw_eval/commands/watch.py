"""`qbw-eval watch`: evaluate checkpoints as training writes them. Training never waits: its files are only read."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from qbw_eval.checkpoints.find import checkpoints_below
from qbw_eval.checkpoints.native import Checkpoint
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.checkpoints.safe_load import CheckpointError
from qbw_eval.commands.device import allow_tf32, choose_device
from qbw_eval.commands.display import Sentences
from qbw_eval.commands.evaluating import RunOptions, prepare_one
from qbw_eval.commands.run import Outcome, run_one
from qbw_eval.commands.sampler_options import read_configurations
from qbw_eval.commands.stopping import stopping
from qbw_eval.data.errors import DataError
from qbw_eval.data.split import Split
from qbw_eval.evaluate import Evaluation
from qbw_eval.experiment import Experiment, WithoutNetwork, load_evaluation_file
from qbw_eval.memory import keep_freed_memory
from qbw_eval.private_copy import NotReadyError, private_copy, stamp_of, sweep
from qbw_eval.settings.data import DataSettings
from qbw_eval.store import RecordStore, StoreError
from qbw_eval.watching import (
    SECOND_READ,
    Recent,
    Rules,
    Stamp,
    State,
    handled,
    in_words,
    look,
    not_ready,
    waiting,
)
from schemas.errors import QBWError, UsageError

_REMEMBERED = 1000
"""Contents and networks that are not evaluated, or complained of, a second time; to forget one costs time only."""

_LASTING = (CheckpointError, DataError, UsageError)
"""What is wrong will be wrong again; other errors, such as too little memory, may pass."""


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """The options of `qbw-eval watch`, as its help describes them.

    Attributes:
        folder: where checkpoints are written.
        every: seconds between two looks at it.
        settle: seconds that a file must have stayed the same.
        once: stop after what is ready now.
        until_idle: stop when nothing new has come for so many seconds; None for never.
        run: how to evaluate.
    """

    folder: Path
    every: float
    settle: float
    once: bool
    until_idle: float | None
    run: RunOptions


def watch_command(
    options: WatchOptions,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Look at the folder again and again, and evaluate what training has finished; say of each what came of it.

    Args:
        options: what the user wants.
        now: a clock in seconds that only goes forward.
        sleep: waits so many seconds.

    Raises:
        UsageError: there is no such folder, or it makes no sense.
        QBWError: it ended by itself, and some checkpoints could not be evaluated; or the records cannot be written.
    """
    _check(options)
    instead = load_evaluation_file(options.run.config) if options.run.config else None
    device = choose_device(options.run.device)
    allow_tf32(options.run.tf32)
    keep_freed_memory()
    evaluator = _Evaluator(options.run, instead, device)
    evaluator.sweep()
    rules = Rules(settle_s=options.settle)
    if not options.run.quiet:
        end = " once" if options.once else f" every {in_words(options.every)}; Ctrl-C stops"
        _tell(f"watching {options.folder}{end}")
    with stopping(lambda word: f"{word}; {evaluator.kept()}; the same command goes on"):
        state = _watch(options, evaluator, rules, now, sleep)
    left = [f"{path}: not ready: {file.reason}" for path, file in waiting(state).items()]
    for sentence in left:
        _tell(sentence)
    if not options.run.as_json:
        print(f"{evaluator.summary()}. Next: make report")
    if evaluator.failed or (left and not options.once):
        raise QBWError(
            f"checkpoints that could not be evaluated: {evaluator.failed}, that were not ready: {len(left)}; "
            "the sentences above say why"
        )


def _check(options: WatchOptions) -> None:
    folder = options.folder
    try:
        if folder.is_file():
            raise UsageError(f"{folder}: expected a folder, found a file; to evaluate it: qbw-eval run {folder}")
        next(folder.iterdir(), None)
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot be watched ({error.strerror}); name the folder that training writes its checkpoints into"
        ) from None
    if options.once and options.until_idle is not None:
        raise UsageError("--once: goes without --until-idle, since it does not wait for anything new")
    shortest = options.every + options.settle
    if options.until_idle is not None and options.until_idle < shortest:
        raise UsageError(
            f"--until-idle: expected at least {in_words(shortest)}, as --every and --settle add up to, found "
            f"{in_words(options.until_idle)}; before that no file can become ready"
        )


def _watch(
    options: WatchOptions,
    evaluator: "_Evaluator",
    rules: Rules,
    now: Callable[[], float],
    sleep: Callable[[float], object],
) -> State:
    """Look, evaluate and wait until it is enough; return what is known of the folder then."""
    state, looks, unseen = State(files={}, last_news=now()), 0, False
    while True:
        listing = _listing(options.folder)
        if listing is None and not unseen:
            _tell(f"{options.folder}: cannot be listed any more; waiting for it")
        unseen = listing is None
        if listing is not None:
            seen = look(state, listing, now(), rules)
            state = seen.state
            for sentence in seen.reports:
                _tell(sentence)
            for path in seen.ready:
                reason = evaluator.take(path, state.files[path].stamp)
                ended = now()
                state = handled(state, path, ended) if reason is None else not_ready(state, path, reason, ended, rules)
        looks += 1
        pause = options.every
        if options.once:
            due = [file.due for file in waiting(state).values() if looks == 1 or file.reason == SECOND_READ]
            if not due or looks == 3:
                return state
            pause = max(0.0, max(due) - now())
        elif options.until_idle is not None and now() - state.last_news >= options.until_idle:
            return state
        sleep(pause)


def _listing(folder: Path) -> dict[Path, Stamp] | None:
    """Return the checkpoint files that are there; None where the folder is not."""
    try:
        if not folder.is_dir():
            return None
        stamps = {path: stamp_of(path) for path in checkpoints_below(folder)}
    except OSError:  # a network file system has its moments
        return None
    return {path: stamp for path, stamp in stamps.items() if stamp is not None}


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A finished checkpoint that is to be evaluated.

    Attributes:
        network: its fingerprint, see `Checkpoint.same_network`.
        sha256: of the file's bytes.
    """

    evaluation: Evaluation
    network: str
    sha256: str


class _Evaluator:
    """Evaluates one file after the other and keeps count; of the files themselves it keeps nothing.

    Args:
        options: how to evaluate.
        instead: what a file given with --config says.
        device: where.
    """

    def __init__(self, options: RunOptions, instead: Experiment | WithoutNetwork | None, device: torch.device) -> None:
        self.finished = self.failed = 0
        self._options, self._instead, self._device = options, instead, device
        self._given = read_configurations(options.sampling)
        self._copies = RecordStore(options.records).private / "watch"
        self._splits: dict[DataSettings, Split] = {}
        self._contents, self._networks = Recent(_REMEMBERED), Recent(_REMEMBERED)
        self._sentences, self._unchecked = Recent(_REMEMBERED), Recent(_REMEMBERED)
        self._told = Sentences()
        self._committed: list[int] = []

    def sweep(self) -> None:
        """Remove what processes that were killed have left."""
        RecordStore(self._options.records).sweep()
        sweep(self._copies)

    def kept(self) -> str:
        """Return what is safe, in words."""
        return (
            f"{sum(self._committed)} new rows are kept in {self._options.records} "
            f"({self.finished} checkpoints are finished)"
        )

    def summary(self) -> str:
        """Return what came of it all, in words."""
        return f"Checkpoints: {self.finished}. New rows: {sum(self._committed)}. Rows: {self._options.records}"

    def take(self, path: Path, stamp: Stamp) -> str | None:
        """Evaluate a file in one of its states, or say what is wrong with it.

        Returns:
            None where there is nothing to do until the file changes, or why it is not ready.

        Raises:
            StoreError: the records or the copy cannot be written.
        """
        try:
            candidate = self._candidate(path, stamp)
            if candidate is not None:
                self._run(path, candidate)
        except NotReadyError as error:
            return str(error)
        return None

    def _candidate(self, path: Path, stamp: Stamp) -> _Candidate | None:
        """Return what is to be evaluated of a file; None where that is nothing.

        Raises:
            NotReadyError: not ready.
        """
        with private_copy(path, stamp, self._copies) as copy:
            sha256 = copy.sha256
            if not copy.checked and self._unchecked.get(str(path)) != sha256:
                self._unchecked.note(str(path), sha256)
                raise NotReadyError(SECOND_READ)
            if self._contents.get(sha256) is not None:
                return None
            try:
                checkpoint = read_checkpoint(path, self._instead, bytes_at=copy.path, max_bytes=self._options.max_bytes)
            except QBWError as error:
                self._complain(error, path, sha256)
                return None
        for remark in checkpoint.remarks:
            self._tell_once(remark, remark)
        network = checkpoint.same_network()
        same = self._networks.get(network)
        if same is not None:
            _tell(f"{path}: the same weights and epoch as {same}; evaluated once")
            self._contents.note(sha256, str(path))
            return None
        try:
            return _Candidate(evaluation=self._prepared(checkpoint), network=network, sha256=sha256)
        except QBWError as error:
            self._complain(error, path, sha256)
            return None

    def _prepared(self, checkpoint: Checkpoint) -> Evaluation:
        """Return the checkpoint's evaluation; of data, those of the last one only are kept."""
        data = checkpoint.experiment.data.below(self._options.data_root)
        if data not in self._splits:
            self._splits.clear()
        return prepare_one(checkpoint, self._options, self._given, self._device, self._splits)

    def _complain(self, error: QBWError, path: Path, sha256: str) -> None:
        """Tell once what is wrong with a content.

        Raises:
            NotReadyError: it may be right another time.
        """
        self._tell_once(sha256, f"qbw-eval: error: {error.format_message()}")
        if not isinstance(error, _LASTING):
            raise NotReadyError(error.format_message()) from None
        self.failed += 1
        self._contents.note(sha256, str(path))

    def _tell_once(self, key: str, sentence: str) -> None:
        if self._sentences.get(key) is None:
            _tell(sentence)
            self._sentences.note(key, sentence)

    def _run(self, path: Path, candidate: _Candidate) -> None:
        """Evaluate what is missing, and print what came of it.

        Raises:
            NotReadyError: it must be tried again.
        """
        store = RecordStore(self._options.records)  # a new one each time: it remembers every part that it has seen
        try:
            outcome = run_one(candidate.evaluation, store, self._options, self._committed, self._told)
        except StoreError:
            raise
        except QBWError as error:
            self._complain(error, path, candidate.sha256)
            return
        self._committed = [sum(self._committed)]
        if outcome.done_before + outcome.evaluated_now < outcome.configurations:
            raise NotReadyError("another evaluator is at it")
        self._contents.note(candidate.sha256, str(path))
        self._networks.note(candidate.network, str(path))
        self.finished += 1
        _print(outcome, candidate.sha256, self._options)


def _print(outcome: Outcome, sha256: str, options: RunOptions) -> None:
    """Print a line for a finished checkpoint; at once, as nobody knows when the next one comes."""
    if options.as_json:
        print(json.dumps({"records": str(options.records), "checkpoint_id": sha256, **asdict(outcome)}), flush=True)
        return
    what = f"{outcome.checkpoint}: epoch {outcome.epoch + 1}"
    if outcome.mean_accuracy is None:
        print(f"{what}: nothing to do, its {outcome.done_before} rows are there", flush=True)
        return
    said = "" if outcome.val_acc is None else f"; training said {outcome.val_acc:.4f}"
    print(
        f"{what}: {outcome.evaluated_now} configurations evaluated, {outcome.done_before} before; mean accuracy "
        f"{outcome.mean_accuracy:.4f} ({outcome.min_accuracy:.4f}-{outcome.max_accuracy:.4f}){said}",
        flush=True,
    )


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
