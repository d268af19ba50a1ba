"""The demo's network, trained anew: a small one that is trained in seconds, on real data."""

from pathlib import Path

import torch

from qbw_eval.data.fit import with_data_shape
from qbw_eval.data.sources import load_split
from qbw_eval.experiment import load_experiment
from qbw_eval.training import epoch_files, train

DEMO = Path(__file__).parent.parent / "examples" / "digits.yaml"


def train_demo(folder: Path) -> Path:
    """Train it as `make demo` does, but for fewer configurations that are validated on the way; return the last file.

    Args:
        folder: where checkpoints are written; exists.
    """
    experiment = load_experiment(DEMO)
    fewer = experiment.random_bitwidths.model_copy(update={"num_bitwidths": 1})
    splits = load_split(experiment.data, "train"), load_split(experiment.data, "validation")
    experiment = with_data_shape(experiment.model_copy(update={"random_bitwidths": fewer}), splits[0])
    files = epoch_files(folder, experiment)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as `make demo`: its tensors are tiny, and more threads mostly wait for each other
    try:
        *_, last = train(experiment, *splits, files, device=torch.device("cpu"), log=lambda _line: None)
    finally:
        torch.set_num_threads(threads)
    return last.checkpoint
