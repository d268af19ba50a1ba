"""Fixtures of the stage's tests: a small network, really trained."""

from pathlib import Path

import pytest
import torch

from qbw_eval.data.fit import with_data_shape
from qbw_eval.data.sources import load_split
from qbw_eval.experiment import experiment_from_mapping
from qbw_eval.training import epoch_files, train

TINY = {
    "experiment": "tiny",
    "model": {"name": "resnet8", "width": 4},
    "data": {"source": "digits"},
    "training": {"epochs": 3, "batch_size": 50, "learning_rate": 0.01, "configurations_per_batch": 1},
    "quantization": {
        "mine": {
            "bitwidth_options": [2, 4, 8],
            "validation_function": "simple_validation",
            "activation_quantization": "pact",
        }
    },
    "random_bitwidths": {"num_bitwidths": 6, "seed": 5},
}


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three checkpoints of a small network, trained for a second or two; tests must not change it."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoints"
    folder.mkdir()
    experiment = experiment_from_mapping(TINY, "TINY")
    splits = load_split(experiment.data, "train"), load_split(experiment.data, "validation")
    experiment = with_data_shape(experiment, splits[0])
    results = list(
        train(experiment, *splits, epoch_files(folder, experiment), device=torch.device("cpu"), log=lambda _line: None)
    )
    assert results[-1].val_acc > 0.4, "it is to have learned something"
    return folder
