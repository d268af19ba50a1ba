"""Measure the product's figures, one line each; ratios are measured interleaved within one run (machines are noisy).

make bench [JSON=file]    the file gets an array of {figure, value, unit, at_least | at_most, spread}
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click
import torch

from qbw_eval.configurations import BitwidthConfiguration, sample
from qbw_eval.data.batches import Batch
from qbw_eval.engine.reference import ReferenceEngine
from qbw_eval.engine.tally import Measurement
from qbw_eval.evaluate import measure
from qbw_eval.layer_table import Layer, LayerTable
from qbw_eval.networks.resnet import SHAPES, ResNet
from qbw_eval.plan import Plan
from qbw_eval.quantization.bitwidths import quantized_layers, set_bitwidths
from qbw_eval.quantization.layers import Quantizers
from qbw_eval.rows import Provenance, record_table
from qbw_eval.store import RecordStore

ROUNDS = 7
_IMAGES = 128


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number: the median of its rounds, with their interquartile range as `spread`."""

    figure: str
    values: Sequence[float]
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the figure as `make bench JSON=` writes it."""
        quartiles = statistics.quantiles(self.values, n=4)
        bounds = {"at_most": self.at_most, "at_least": self.at_least}
        return {
            "figure": self.figure,
            "value": statistics.median(self.values),
            "unit": self.unit,
            **{name: bound for name, bound in bounds.items() if bound is not None},
            "spread": quartiles[2] - quartiles[0],
        }

    def line(self) -> str:
        """Return the figure as a person reads it."""
        facts = self.as_dict()
        bounds = [f"{name.replace('_', ' ')} {facts[name]:g}" for name in ("at_most", "at_least") if name in facts]
        value = f"{facts['value']:.4g} {self.unit} (spread {facts['spread']:.2g})"
        return ", ".join([f"{self.figure}: {value}", *bounds])


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def help_times() -> list[Figure]:
    """How long `--help` takes from a cold interpreter, both scripts and a bare interpreter in turn."""
    folder = Path(sys.executable).parent
    commands = {
        "qbw-eval --help": [str(folder / "qbw-eval"), "--help"],
        "qbw-report --help": [str(folder / "qbw-report"), "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            times[name].append(seconds(partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)))
    limits = {"qbw-eval --help": 0.3, "qbw-report --help": 0.3}
    return [Figure(figure=name, values=times[name], unit="s", at_most=limits.get(name)) for name in commands]


def reference_cost() -> list[Figure]:
    """What a configuration costs the reference engine, in plain forwards and against the loop people write."""
    torch.manual_seed(0)
    quantizers = Quantizers(options=(2, 4, 8), weight="dorefa", activation="dorefa")
    model = ResNet(SHAPES["resnet20"], quantizers, width=16, in_channels=3, num_classes=10).eval()
    names = list(quantized_layers(model))
    configurations = sample("iid", len(names), (2, 4, 8), 4, seed=0)
    plain = ResNet(
        SHAPES["resnet20"],
        Quantizers(options=(32,), weight="none", activation="none"),
        width=16,
        in_channels=3,
        num_classes=10,
    ).eval()
    data = torch.utils.data.TensorDataset(torch.randn(_IMAGES, 3, 32, 32), torch.randint(10, (_IMAGES,)))
    loader = torch.utils.data.DataLoader(data, batch_size=64)
    batches = [Batch(*batch) for batch in loader]
    engine = ReferenceEngine(model, names)
    times: dict[str, list[float]] = {"reference": [], "loop": [], "plain": []}
    for _ in range(ROUNDS):
        times["reference"].append(seconds(lambda: measure(engine, batches, configurations)) / len(configurations))
        times["loop"].append(seconds(lambda: _peoples_loop(model, loader, names, configurations)) / len(configurations))
        times["plain"].append(seconds(lambda: _plain_forward(plain, batches)))
    label = f"ResNet-20, {_IMAGES} x 3x32x32, {{2,4,8}}, {len(configurations)} configurations"
    return [
        Figure(figure=f"reference engine, {label}", values=times["reference"], unit="s/configuration"),
        _ratio(f"reference / plain fp32 forward, {label}", times["reference"], times["plain"]),
        _ratio(f"people's loop / reference, {label}", times["loop"], times["reference"]),
    ]


def _ratio(figure: str, above: Sequence[float], below: Sequence[float]) -> Figure:
    return Figure(figure=figure, values=[a / b for a, b in zip(above, below, strict=True)], unit="x")


def _peoples_loop(
    model: ResNet,
    loader: torch.utils.data.DataLoader[tuple[torch.Tensor, ...]],
    names: Sequence[str],
    configurations: Sequence[BitwidthConfiguration],
) -> list[float]:
    """Read the data again for every configuration, and wait for the device once a batch."""
    accuracies = []
    for configuration in configurations:
        set_bitwidths(model, dict(zip(names, configuration.bitwidths, strict=True)))
        correct = 0
        with torch.no_grad():
            for inputs, labels in loader:
                correct += (model(inputs).argmax(1) == labels).sum().item()
        accuracies.append(correct / _IMAGES)
    return accuracies


def _plain_forward(model: ResNet, batches: Sequence[Batch]) -> None:
    with torch.inference_mode():
        for batch in batches:
            model(batch.inputs)


def append_time() -> list[Figure]:
    """How long it takes to commit a part of 16 rows durably (encode, read back, fsync, link, fsync)."""
    layer = Layer(
        layer_name="layer",
        kind="conv2d",
        weights=576,
        macs=36864,
        in_channels=8,
        out_channels=8,
        kernel="3x3",
        stride="1x1",
    )
    plan = Plan(
        sampler="iid",
        seed=0,
        options=(2, 4, 8),
        network={},
        table=LayerTable((layer,) * 20),
        data_id="0" * 32,
        num_samples=1000,
        numerics="benchmark",
        count=16,
    )
    provenance = Provenance(
        experiment="benchmark",
        checkpoint="benchmark.pt",
        checkpoint_id="0" * 64,
        epoch=0,
        dataset="benchmark",
        split="validation",
        engine="reference",
        device="cpu",
        qbw_version="0",
        torch_version="0",
    )
    result = Measurement(correct=900, num_samples=1000, loss=0.3, correct_mask=bytes(125), agreement=0.95)
    rows = record_table(
        plan,
        provenance,
        plan.configurations,
        [result] * 16,
        duration_s=1.0,
        evaluated_at=datetime.now(UTC),
    )
    with tempfile.TemporaryDirectory() as folder:
        store = RecordStore(Path(folder) / "records")
        # A checkpoint of its own for every part: the first 12 digits of its id are in the part's name.
        times = [seconds(partial(store.append, f"{n:012x}", plan.plan_id, rows)) for n in range(8 * ROUNDS)]
    return [Figure(figure="commit a part of 16 rows", values=[1000 * t for t in times], unit="ms")]


@click.command()
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to this file.")
def main(json_path: Path | None) -> None:
    """Measure and print every figure."""
    figures: list[dict[str, object]] = []
    for group in (help_times, reference_cost, append_time):
        for figure in group():
            print(figure.line(), flush=True)
            figures.append(figure.as_dict())
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
