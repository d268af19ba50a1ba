"""`qbw-eval train`: train the network of an experiment file, ours or the seed's."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from qbw_eval.checkpoints.native import Trained
from qbw_eval.checkpoints.seed_files import SeedFiles, experiment_folder
from qbw_eval.commands.console import progress_on_stderr
from qbw_eval.commands.device import allow_tf32, choose_device
from qbw_eval.data.fit import with_data_shape
from qbw_eval.data.sources import load_split
from qbw_eval.data.split import Split
from qbw_eval.experiment import Experiment, load_experiment
from qbw_eval.seed_experiment import SeedExperiment, load_seed_experiment
from qbw_eval.settings.model import FactoryModel
from qbw_eval.training import EpochResult, TrainingError, epoch_files, train
from schemas.errors import InterruptedByUserError, UsageError


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of `qbw-eval train`, as its help describes them; None where the file decides."""

    config: Path
    out: Path
    model: str | None
    model_variant: str | None
    quantization_method: str | None
    data_root: Path | None
    device: str
    overwrite: bool
    quiet: bool


def train_command(options: TrainOptions) -> None:
    """Train and write a checkpoint every epoch; each validation goes to stdout, what is happening to stderr."""
    words = {"model": options.model, "model_variant": options.model_variant}
    overrides: dict[str, object] = {key: word for key, word in words.items() if word is not None}
    method = {} if options.quantization_method is None else {"quantization_method": options.quantization_method}
    seed = load_seed_experiment(options.config, overrides | method)
    if seed is not None:
        _train_seed(seed, options)
        return
    if overrides:
        option = f"--{next(iter(overrides)).replace('_', '-')}"
        raise UsageError(f"{option}: goes with the seed's experiment files; {options.config} names its network itself")
    _train_ours(load_experiment(options.config, quantization_method=options.quantization_method), options)


def _train_ours(experiment: Experiment, options: TrainOptions) -> None:
    """Write OUT/<experiment>/checkpoints/epoch_NNN.pt."""
    if isinstance(experiment.model, FactoryModel):
        raise UsageError(
            f"{options.config}: model.factory: QBW trains networks of its own only; train yours in a loop of your own "
            "(validate_random_bitwidths fits in there) and evaluate its checkpoints with qbw-eval run"
        )
    folder = options.out / experiment.experiment / "checkpoints"
    device = choose_device(options.device)
    experiment, splits = _with_data(experiment, options, folder.parent)
    earlier = _earlier_checkpoints(folder, overwrite=options.overwrite)

    def clean_up(result: EpochResult) -> None:
        for path in earlier - {result.checkpoint}:
            path.unlink(missing_ok=True)  # not before there is something in their place
        earlier.clear()

    _run(experiment, splits, epoch_files(folder, experiment), folder, device, options, print, clean_up)
    print(f"Next: make eval CKPT={folder}", file=sys.stderr)


def _train_seed(seed: SeedExperiment, options: TrainOptions) -> None:
    """Write the seed's layout into OUT/<time>_<model>_<variant>."""
    device = choose_device(options.device)
    folder = experiment_folder(options.out, seed, datetime.now().astimezone())
    experiment, splits = _with_data(seed.experiment, options, folder)
    try:
        files = SeedFiles(folder, seed)
        log = files.log.open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise _unwritable(folder, error) from None
    with log:

        def tell(line: str) -> None:
            print(line)
            print(line, file=log)

        last = _run(experiment, splits, files.write, files.models, device, options, tell, lambda _result: None)
    files.summarize(epochs=last.epoch + 1, val_acc=last.val_acc)
    print(f"Next: make eval CKPT={files.models}", file=sys.stderr)


def _with_data(experiment: Experiment, options: TrainOptions, folder: Path) -> tuple[Experiment, tuple[Split, Split]]:
    """Return the complete experiment, and the splits for training and validation; fits are kept in `folder`."""
    data = experiment.data.below(options.data_root)
    splits = load_split(data, "train", beside=folder), load_split(data, "validation", beside=folder)
    return with_data_shape(experiment.model_copy(update={"data": data}), splits[0]), splits


def _run(
    experiment: Experiment,
    splits: tuple[Split, Split],
    write: Callable[[Trained], Path],
    folder: Path,
    device: torch.device,
    options: TrainOptions,
    log: Callable[[str], object],
    note: Callable[[EpochResult], object],
) -> EpochResult:
    """Train, telling of every epoch; `write` puts it into `folder`, then `note` is called. Return the last epoch."""
    allow_tf32(False)
    epochs = experiment.training.epochs
    batches = epochs * -(-len(splits[0]) // experiment.training.batch_size)
    name, finished = experiment.experiment, 0
    try:
        with progress_on_stderr(f"training {name}", batches, "batches", quiet=options.quiet) as advance:
            for result in train(experiment, *splits, write, device=device, log=log, advance=advance):
                finished += 1
                note(result)
                print(flush=True)  # an empty line between the validations of two epochs
                print(
                    f"Epoch {result.epoch + 1}/{epochs}: train loss {result.train_loss:.4f}, "
                    f"validation accuracy {result.val_acc:.4f}, wrote {result.checkpoint}",
                    file=sys.stderr,
                )
    except KeyboardInterrupt:
        raise InterruptedByUserError(
            f"interrupted after {finished} finished epochs; their checkpoints are kept in {folder}"
        ) from None
    return result


def _earlier_checkpoints(folder: Path, *, overwrite: bool) -> set[Path]:
    """Return the checkpoints of an earlier training in the folder, which is created if it is not there.

    Raises:
        TrainingError: it has some and `overwrite` is False, or it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = set(folder.glob("epoch_*.pt"))
    except OSError as error:
        raise _unwritable(folder, error) from None
    if earlier and not overwrite:
        raise TrainingError(
            f"{folder}: holds {len(earlier)} checkpoints of an earlier training; "
            "name another --out, change 'experiment' in the file, or say --overwrite"
        )
    return earlier


def _unwritable(folder: Path, error: OSError) -> TrainingError:
    return TrainingError(f"{folder}: cannot be written ({error.strerror}); name another folder with --out")
