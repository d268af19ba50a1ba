"""Writing the seed's layout: the folder of an experiment, with its checkpoints and what lies beside them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import torch
import yaml
from torch import Tensor

from qbw_eval.checkpoints.native import Trained, save_whole
from qbw_eval.checkpoints.seed import SCALES
from qbw_eval.seed_experiment import SeedExperiment

_EVERY = 10
"""Epochs between the checkpoints that are kept."""


def experiment_folder(parent: Path, seed: SeedExperiment, started: datetime) -> Path:
    """Return where an experiment goes: its name is the time, the model and the variant."""
    words = (f"{started:%Y%m%d_%H%M%S}", seed.config["model"], seed.config.get("model_variant"))
    return parent / "_".join(str(word) for word in words if word is not None)


class SeedFiles:
    """Writes `models/last_epoch.pth`, `best_model.pth` and every tenth `checkpoint_epoch_N.pth` (N = epoch + 1).

    Args:
        folder: the experiment's; it and `models` and `logs` in it are created.
        seed: the experiment; its configuration goes into `config.yaml` and into every checkpoint.

    Attributes:
        models: where the checkpoints go.
    """

    def __init__(self, folder: Path, seed: SeedExperiment) -> None:
        self.models, self._seed, self._folder = folder / "models", seed, folder
        self._best_accuracy, self._best_epoch = -1.0, 0
        for inside in (self.models, folder / "logs"):
            inside.mkdir(parents=True, exist_ok=True)
        self._dump("config.yaml", dict(seed.config))

    @property
    def log(self) -> Path:
        """Where the lines of every validation go."""
        return self._folder / "logs" / "train.log"

    def write(self, trained: Trained) -> Path:
        """Write what an epoch has brought; return the file that always holds the last one."""
        method = self._seed.experiment.method_name
        content = {
            "epoch": trained.epoch,
            "model_state_dict": theirs(trained.model.state_dict(), self._seed.options),
            "optimizer_state_dict": trained.optimizer.state_dict(),
            "val_acc": trained.val_acc,
            "val_loss": trained.val_loss,
            "config": dict(self._seed.config),
            "quantization_method": method,
        }
        names = ["last_epoch.pth"]
        if trained.val_acc > self._best_accuracy:
            self._best_accuracy, self._best_epoch = trained.val_acc, trained.epoch
            names.append("best_model.pth")
        if (trained.epoch + 1) % _EVERY == 0:
            names.append(f"checkpoint_epoch_{trained.epoch + 1}.pth")
        for name in names:
            save_whole(content, self.models / name)
        return self.models / names[0]

    def summarize(self, *, epochs: int, val_acc: float) -> None:
        """Write `experiment_summary.yaml`, which the seed's comparison of experiments reads.

        Args:
            epochs: how many are finished.
            val_acc: of the last one.
        """
        experiment, method = self._seed.experiment, self._seed.experiment.method
        self._dump(
            "experiment_summary.yaml",
            {
                "experiment_id": self._folder.name,
                "model": self._seed.config["model"],
                "model_variant": self._seed.config.get("model_variant"),
                "quantization_enabled": str(experiment.quantization.enable),
                "quantization_method": experiment.method_name or "None",
                "bitwidth_options": str(list(self._seed.options)) if method else "N/A",
                "num_epochs": epochs,
                "batch_size": experiment.training.batch_size,
                "learning_rate": experiment.training.learning_rate,
                "final_val_accuracy": val_acc,
                "best_val_accuracy": self._best_accuracy,
                "best_epoch": self._best_epoch,
                "training_status": "completed",
            },
        )

    def _dump(self, name: str, values: Mapping[str, object]) -> None:
        (self._folder / name).write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def theirs(state: Mapping[str, Tensor], options: Sequence[int]) -> dict[str, Tensor]:
    """Return a state dict as the seed has it: scales in the order of `options`, clipping values with 4 dimensions."""
    place = {bits: position for position, bits in enumerate(sorted(options))}
    order = torch.tensor([place[bits] for bits in options])

    def as_theirs(name: str, tensor: Tensor) -> Tensor:
        if not name.endswith(SCALES):
            return tensor
        values = tensor[order.to(tensor.device)] if len(tensor) == len(options) else tensor
        return values.view(-1, 1, 1, 1) if name.endswith(".alpha") else values

    return {name: as_theirs(name, tensor) for name, tensor in state.items()}
