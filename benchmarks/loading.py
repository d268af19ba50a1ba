"""How long a checkpoint with its optimizer's state takes to read, hash and check, and how much memory.

In a process of its own, which has nothing else in memory: `python -m benchmarks.loading FILE` prints what it measured.
"""

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.figures import Figure
from benchmarks.memory import peak_bytes
from benchmarks.timing import seconds
from benchmarks.workloads import WORKLOADS
from qbw_eval.checkpoints.load import load_checkpoint_file

_ROUNDS = 5
_MOST_SECONDS, _MOST_GROWTH = 1.5, 2.0


def loading_figures() -> list[Figure]:
    """What loading a ResNet-18 takes that was saved with Adam's state: seconds, and memory in sizes of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pth"
        torch.save(_content(), path)
        label = f"load a checkpoint of {path.stat().st_size / 1e6:.0f} MB, weights and optimizer state"
        command = [sys.executable, "-m", "benchmarks.loading", str(path)]
        measured = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    figures = [Figure(figure=label, values=measured["seconds"], unit="s", at_most=_MOST_SECONDS)]
    if measured["growth"] is not None:
        figures.append(
            Figure(
                figure=f"{label}, peak growth of the process",
                values=[measured["growth"]],
                unit="sizes of the file",
                at_most=_MOST_GROWTH,
            )
        )
    return figures


def _content() -> dict[str, object]:
    """Return a checkpoint as training loops write them."""
    state = dict(WORKLOADS[0].model().state_dict())
    state["sample_embd_layer.0.weight"] = torch.randn(512, 512)  # which the networks of the seed's loop have besides
    moments = {
        index: {"step": torch.tensor(1.0), "exp_avg": torch.randn(tensor.shape), "exp_avg_sq": torch.rand(tensor.shape)}
        for index, tensor in enumerate(state.values())
    }
    optimizer = {"state": moments, "param_groups": [{"lr": 1e-3, "params": list(moments)}]}
    return {"epoch": 0, "model_state_dict": state, "optimizer_state_dict": optimizer, "val_acc": 0.5, "config": {}}


def main(path: Path) -> None:
    """Print what loading takes in this process: first the memory, then, warm, the seconds."""
    peak = peak_bytes(partial(load_checkpoint_file, path), torch.device("cpu"))
    growth = None if peak is None else peak / path.stat().st_size
    times = [seconds(partial(load_checkpoint_file, path)) for _ in range(_ROUNDS)]
    print(json.dumps({"growth": growth, "seconds": times}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
