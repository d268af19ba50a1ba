"""A checkpoint file -> a checkpoint: which layout it has is seen in what it holds, never in its name.

Where the user names a factory for the network, the weights are all that is taken from the file.
"""

from pathlib import Path

from qbw_eval.checkpoints.any_precision import any_precision_checkpoint, is_any_precision
from qbw_eval.checkpoints.foreign import foreign_checkpoint
from qbw_eval.checkpoints.load import load_checkpoint_file
from qbw_eval.checkpoints.native import Checkpoint, native_checkpoint
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
) -> Checkpoint:
    """Read and check a checkpoint.

    Args:
        path: the file.
        instead: what a file given with --config says, to use in place of what the checkpoint says.
        needs_data: it is to be evaluated, so where nobody names data, say what to name.
        trust: let pickle run what the file says, where it cannot be read without.
        max_bytes: what the file may hold; half of the machine's memory if not given.

    Raises:
        CheckpointError: not readable, or a key is missing or of the wrong type; says which.
        ExperimentError: its configuration makes no sense.
        UsageError: what `instead` says, or does not say, does not go with the checkpoint.
    """
    loaded = load_checkpoint_file(path, trust=trust, max_bytes=max_bytes)
    if isinstance(instead, Experiment) and isinstance(instead.model, FactoryModel):
        return foreign_checkpoint(loaded, path, instead)
    if is_any_precision(loaded.content):
        return any_precision_checkpoint(loaded, path, instead, needs_data=needs_data)
    if is_seed(loaded.content):
        return seed_checkpoint(loaded, path, instead)
    return native_checkpoint(loaded, path, instead)
