"""`qbw-eval inspect`: what a checkpoint's network consists of and what its configurations can cost."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from qbw_eval.checkpoints.native import Checkpoint
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.commands.console import print_table
from qbw_eval.commands.sampler_options import bits_or_file
from qbw_eval.configurations import SamplerSettings, number_of_configurations, sample
from qbw_eval.cost import Costs, costs_of, costs_per_layer
from qbw_eval.evaluate import options_of
from qbw_eval.experiment import load_evaluation_file
from qbw_eval.layer_table import LayerTable
from qbw_eval.networks.build import load_network
from qbw_eval.quantization.bitwidths import trace_layers_on_meta, unquantized_weight_bytes
from schemas.columns import by_name
from schemas.errors import UsageError
from schemas.records import RECORD_COLUMNS


def inspect_command(path: Path, config: Path | None, bits: str | None, *, as_json: bool) -> None:
    """Print the layer table, the options, the number of configurations and the range of each cost.

    Args:
        path: the checkpoint.
        config: the experiment file to use instead of its own, or what that lacks.
        bits: a configuration, or a file with one, whose costs are shown layer by layer too.
        as_json: print JSON.
    """
    checkpoint, table, unquantized = read_layers(path, config)
    options = options_of(checkpoint, None)
    # Every cost grows with every layer's bits, so the extremes are the uniform configurations at the ends.
    lowest, highest = (costs_of((bits,) * len(table), table, options[-1]) for bits in (options[0], options[-1]))
    chosen = None if bits is None else _configuration(bits, table, options)
    if as_json:
        shown = _as_json(checkpoint, table, options, lowest, highest, unquantized)
        if chosen is not None:
            each = costs_per_layer(chosen, table, options[-1])
            shown["configuration"] = vars(costs_of(chosen, table, options[-1])) | {"layers": [vars(c) for c in each]}
        print(json.dumps(shown, indent=2))
        return
    _print(checkpoint, table, options, lowest, highest, unquantized)
    if chosen is not None:
        _print_configuration(chosen, table, options[-1])


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


def _configuration(text: str, table: LayerTable, options: tuple[int, ...]) -> tuple[int, ...]:
    given = bits_or_file(text, "--bits")
    settings = SamplerSettings(given=given.in_order(table.names), source=given.source)
    if len(settings.given) != 1:
        raise UsageError(f"{given.source}: expected one configuration, found {len(settings.given)}")
    (found,) = sample("file", table, options, None, 0, settings)
    return found.bitwidths


def _print_configuration(bitwidths: tuple[int, ...], table: LayerTable, largest_option: int) -> None:
    """Print each layer's costs, and its share of the whole network's at these bits."""
    whole, each = costs_of(bitwidths, table, largest_option), costs_per_layer(bitwidths, table, largest_option)
    weight_bits = sum(layer.weights * bits for layer, bits in zip(table.layers, bitwidths, strict=True))
    rows = [
        (
            layer.layer_name,
            *(bits, f"{costs.weight_bytes:,}", f"{layer.weights * bits / weight_bits:.1%}"),
            *(f"{costs.bit_ops:,}", f"{costs.bit_ops / whole.bit_ops:.1%}"),
        )
        for layer, bits, costs in zip(table.layers, bitwidths, each, strict=True)
    ]
    total = ("all", f"{whole.avg_bitwidth:.4g}", f"{whole.weight_bytes:,}", "100.0%", f"{whole.bit_ops:,}", "100.0%")
    print_table(("layer", "bits", "weight bytes", "share", "bit operations", "share"), [*rows, total])


def _number(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
