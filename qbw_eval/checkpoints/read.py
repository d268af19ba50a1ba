"""A checkpoint file -> a checkpoint: which layout it has is seen in what it holds, never in its name.

Where the user names a factory for the network, the weights are all that is taken from the file.
"""

from pathlib import Path

from qbw_eval.checkpoints.any_precision import any_precision_checkpoint, is_any_precision
from qbw_eval.checkpoints.foreign import foreign_checkpoint
from qbw_eval.checkpoints.load import load_checkpoint_file
from qbw_eval.checkpoints.native import Checkpoint, native_checkpoint
from qbw_eval.checkpoints.safe_load import CheckpointError, LoadedFile
from qbw_eval.checkpoints.seed import is_seed, seed_checkpoint
from qbw_eval.experiment import Experiment, WithoutNetwork
from qbw_eval.settings.model import FactoryModel


def read_checkpoint(
    path: Path,
    instead: Experiment | WithoutNetwork | None = None,
    *,
    needs_data: bool = True,
    trust: bool = False,
    max_bytes: int | None = None,
    bytes_at: Path | None = None,
) -> Checkpoint:
    """Read and check a checkpoint.

    Args:
        path: the file.
        instead: what a file given with --config says, to use in place of what the checkpoint says.
        needs_data: it is to be evaluated, so where nobody names data, say what to name.
        trust: let pickle run what the file says, where it cannot be read without.
        max_bytes: what the file may hold; half of the machine's memory if not given.
        bytes_at: a copy of the file to read instead, where somebody may be writing the file; all that is said, and the
            checkpoint itself, still name the file.

    Raises:
        CheckpointError: not readable, or a key is missing or of the wrong type; says which.
        ExperimentError: its configuration makes no sense.
        UsageError: what `instead` says, or does not say, does not go with the checkpoint.
    """
    if bytes_at is None:
        loaded = load_checkpoint_file(path, trust=trust, max_bytes=max_bytes)
    else:
        loaded = _load_copy(bytes_at, path, trust=trust, max_bytes=max_bytes)
    if isinstance(instead, Experiment) and isinstance(instead.model, FactoryModel):
        return foreign_checkpoint(loaded, path, instead)
    if is_any_precision(loaded.content):
        return any_precision_checkpoint(loaded, path, instead, needs_data=needs_data)
    if is_seed(loaded.content):
        return seed_checkpoint(loaded, path, instead)
    return native_checkpoint(loaded, path, instead)


def _load_copy(copy: Path, path: Path, *, trust: bool, max_bytes: int | None) -> LoadedFile:
    try:
        return load_checkpoint_file(copy, trust=trust, max_bytes=max_bytes)
    except CheckpointError as error:
        raise type(error)(str(error).replace(str(copy), str(path))) from None
