"""`qbw-eval inspect`: what a checkpoint's network consists of and what its configurations can cost."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from qbw_eval.checkpoints.native import Checkpoint
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.commands.console import print_table
from qbw_eval.configurations import number_of_configurations
from qbw_eval.cost import Costs, costs_of
from qbw_eval.evaluate import options_of
from qbw_eval.experiment import load_evaluation_file
from qbw_eval.layer_table import LayerTable
from qbw_eval.networks.build import load_network
from qbw_eval.quantization.bitwidths import trace_layers_on_meta, unquantized_weight_bytes
from schemas.columns import by_name
from schemas.errors import UsageError
from schemas.records import RECORD_COLUMNS


def inspect_command(path: Path, config: Path | None, *, as_json: bool) -> None:
    """Print the layer table, the options, the number of configurations and the range of each cost."""
    checkpoint, table, unquantized = read_layers(path, config)
    options = options_of(checkpoint, None)
    # Every cost grows with every layer's bits, so the extremes are the uniform configurations at the ends.
    lowest, highest = (costs_of((bits,) * len(table), table, options[-1]) for bits in (options[0], options[-1]))
    if as_json:
        print(json.dumps(_as_json(checkpoint, table, options, lowest, highest, unquantized), indent=2))
    else:
        _print(checkpoint, table, options, lowest, highest, unquantized)


def read_layers(path: Path, config: Path | None) -> tuple[Checkpoint, LayerTable, int]:
    """Return a checkpoint, its quantized layers, and the bytes that the network keeps beside their weights.

    Raises:
        UsageError: neither the checkpoint nor the file says what the network's inputs look like.
    """
    checkpoint = read_checkpoint(path, load_evaluation_file(config) if config else None, needs_data=False)
    model = checkpoint.experiment.model
    if model.input_size is None or model.in_channels is None:
        raise UsageError("model.input_size and model.in_channels: not known; name them in the experiment file")
    network = load_network(checkpoint.experiment, checkpoint.state, str(path))
    table = trace_layers_on_meta(network, torch.zeros((1, model.in_channels, *model.input_size), device="meta"))
    return checkpoint, table, unquantized_weight_bytes(network)


def _as_json(
    checkpoint: Checkpoint,
    table: LayerTable,
    options: tuple[int, ...],
    lowest: Costs,
    highest: Costs,
    unquantized: int,
) -> dict[str, object]:
    return {
        "checkpoint": str(checkpoint.path),
        "checkpoint_id": checkpoint.sha256,
        "experiment": checkpoint.experiment.experiment,
        "epoch": checkpoint.epoch,
        "model": checkpoint.experiment.model.name,
        "model_id": table.model_id,
        "bitwidth_options": list(options),
        "configurations": number_of_configurations(len(table), options),
        "costs": {name: {"min": vars(lowest)[name], "max": vars(highest)[name]} for name in vars(lowest)},
        "unquantized_weight_bytes": unquantized,
        "layers": [asdict(layer) for layer in table.layers],
    }


def _print(
    checkpoint: Checkpoint,
    table: LayerTable,
    options: tuple[int, ...],
    lowest: Costs,
    highest: Costs,
    unquantized: int,
) -> None:
    experiment, method = checkpoint.experiment, checkpoint.experiment.method
    quantizers = "not quantized"
    if method is not None:
        quantizers = f"weights {method.weight_quantization}, activations {method.activation_quantization}"
    print(
        f"{checkpoint.path}: experiment {experiment.experiment}, epoch {checkpoint.epoch + 1}, {experiment.model.name}"
    )
    print(f"Quantized layers ({quantizers}), in forward order; MACs for one sample:")
    print_table(
        ("layer", "#", "weights", "MACs", "channels", "kernel", "stride", "kind"),
        [
            (
                layer.layer_name,
                *(index, f"{layer.weights:,}", f"{layer.macs:,}"),
                f"{layer.in_channels} -> {layer.out_channels}",
                *(layer.kernel or "", layer.stride or "", layer.kind),
            )
            for index, layer in enumerate(table.layers)
        ],
    )
    count = number_of_configurations(len(table), options)
    print(f"Bitwidth options {list(options)} in {len(table)} layers: {count:,} configurations")
    labels = {name: column.axis_label for name, column in by_name(RECORD_COLUMNS).items()}
    ranges = {name: (vars(lowest)[name], vars(highest)[name]) for name in vars(lowest)}
    print_table(("cost", "lowest", "highest"), [(labels[name], *map(_number, ends)) for name, ends in ranges.items()])
    print(f"{labels['unquantized_weight_bytes']}: {unquantized:,}, at all configurations")


def _number(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
