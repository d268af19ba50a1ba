"""What many tests need: the demo's network, really trained, once per session."""

from pathlib import Path

import pytest
import torch

from qbw_eval.data.fit import with_data_shape
from qbw_eval.data.sources import load_split
from qbw_eval.experiment import Experiment, load_experiment
from qbw_eval.training import EpochResult, epoch_files, train

# The tests' tensors are tiny: on a busy machine a second thread is mostly waited for (a training took 400 s for 24).
torch.set_num_threads(1)

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def demo_experiment() -> Experiment:
    """The experiment of `make demo`, but for fewer validated configurations an epoch (most of its time)."""
    experiment = load_experiment(REPOSITORY / "examples" / "digits.yaml")
    fewer = experiment.random_bitwidths.model_copy(update={"num_bitwidths": 4})
    return with_data_shape(
        experiment.model_copy(update={"random_bitwidths": fewer}), load_split(experiment.data, "train")
    )


@pytest.fixture(scope="session")
def demo_training(
    demo_experiment: Experiment, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[EpochResult], list[str]]:
    """The results and the log lines of the demo's training; checkpoints lie in one folder, `epoch_001.pt` and so on."""
    folder = tmp_path_factory.mktemp("demo") / "checkpoints"
    folder.mkdir()
    splits = load_split(demo_experiment.data, "train"), load_split(demo_experiment.data, "validation")
    lines: list[str] = []
    results = list(
        train(
            demo_experiment,
            *splits,
            epoch_files(folder, demo_experiment),
            device=torch.device("cpu"),
            log=lines.append,
        )
    )
    return results, lines


@pytest.fixture(scope="session")
def demo_checkpoint(demo_training: tuple[list[EpochResult], list[str]]) -> Path:
    """The demo's last checkpoint."""
    return demo_training[0][-1].checkpoint
