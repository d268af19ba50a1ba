"""`qbw-eval train`: train the network of an experiment file."""

import sys
from dataclasses import dataclass
from pathlib import Path

from qbw_eval.commands.console import progress_on_stderr
from qbw_eval.commands.device import allow_tf32, choose_device
from qbw_eval.data.fit import with_data_shape
from qbw_eval.data.sources import load_split
from qbw_eval.experiment import load_experiment
from qbw_eval.training import TrainingError, train
from schemas.errors import InterruptedByUserError


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of `qbw-eval train`, as its help describes them."""

    config: Path
    out: Path
    quantization_method: str | None
    device: str
    overwrite: bool
    quiet: bool


def train_command(options: TrainOptions) -> None:
    """Train and write a checkpoint every epoch; each validation goes to stdout, what is happening to stderr."""
    experiment = load_experiment(options.config, quantization_method=options.quantization_method)
    device = choose_device(options.device)
    allow_tf32(False)
    home = options.out / experiment.experiment
    splits = load_split(experiment.data, "train", beside=home), load_split(experiment.data, "validation", beside=home)
    experiment = with_data_shape(experiment, splits[0])
    folder = home / "checkpoints"
    earlier = _earlier_checkpoints(folder, overwrite=options.overwrite)
    epochs = experiment.training.epochs
    batches = epochs * -(-len(splits[0]) // experiment.training.batch_size)
    finished = 0
    try:
        with progress_on_stderr(
            f"training {experiment.experiment}", batches, "batches", quiet=options.quiet
        ) as advance:
            for result in train(experiment, *splits, folder, device=device, log=print, advance=advance):
                finished += 1
                for path in earlier - {result.checkpoint}:
                    path.unlink(missing_ok=True)  # not before there is something in their place
                earlier.clear()
                print(flush=True)  # an empty line between the validations of two epochs
                print(
                    f"Epoch {result.epoch + 1}/{epochs}: train loss {result.train_loss:.4f}, "
                    f"validation accuracy {result.val_acc:.4f}, wrote {result.checkpoint}",
                    file=sys.stderr,
                )
    except KeyboardInterrupt:
        raise InterruptedByUserError(f"interrupted; {finished} finished checkpoints are kept in {folder}") from None
    print(f"Next: make eval CKPT={folder}", file=sys.stderr)


def _earlier_checkpoints(folder: Path, *, overwrite: bool) -> set[Path]:
    """Return the checkpoints of an earlier training in the folder, which is created if it is not there.

    Raises:
        TrainingError: it has some and `overwrite` is False, or it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = set(folder.glob("epoch_*.pt"))
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written ({error.strerror}); name another folder with --out") from None
    if earlier and not overwrite:
        raise TrainingError(
            f"{folder}: holds {len(earlier)} checkpoints of an earlier training; "
            "name another --out, change 'experiment' in the file, or say --overwrite"
        )
    return earlier
