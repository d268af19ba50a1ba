"""`qbw-eval inspect`: what a checkpoint's network consists of and what its configurations can cost."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from qbw_eval.checkpoints.native import Checkpoint
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.commands.console import print_table
from qbw_eval.configurations import number_of_configurations
from qbw_eval.cost import Costs, costs_of
from qbw_eval.data.fit import check_data_fit, layers_on
from qbw_eval.data.sources import load_split
from qbw_eval.data.split import SplitName
from qbw_eval.evaluate import options_of
from qbw_eval.experiment import load_evaluation_file
from qbw_eval.layer_table import Layer, LayerTable
from qbw_eval.networks.build import load_network, with_layer_options
from qbw_eval.quantization.bitwidths import offered_bitwidths, quantized_layers, trace_layers_on_meta, weight_of
from qbw_eval.quantization.protocol import quantizer_words
from qbw_eval.settings.data import DataSettings
from qbw_eval.settings.model import FactoryModel
from qbw_eval.settings.multimodal import MultimodalModel
from schemas.columns import by_name
from schemas.errors import UsageError
from schemas.records import RECORD_COLUMNS

_SPLITS: tuple[SplitName, ...] = ("validation", "train", "test")
_LONG_NAME, _LAYERS_OF_A_GROUP = 24, 8


@dataclass(frozen=True, kw_only=True)
class InspectedLayer:
    """What is shown of one quantized layer.

    Attributes:
        layer: as the layer table has it.
        shape: of its weights, (out, in / groups, ...).
        options: the bitwidths that it offers, ascending.
        quantizer: how it is quantized, in words.
    """

    layer: Layer
    shape: tuple[int, ...]
    options: tuple[int, ...]
    quantizer: str


def inspect_command(path: Path, config: Path | None, *, as_json: bool) -> None:
    """Print the layer table, the options, the number of configurations and the range of each cost."""
    checkpoint = read_checkpoint(path, load_evaluation_file(config) if config else None, needs_data=False)
    for remark in checkpoint.remarks:
        print(remark, file=sys.stderr)
    network = load_network(checkpoint.experiment, checkpoint.state, str(path))
    checkpoint = replace(checkpoint, experiment=with_layer_options(checkpoint.experiment, network))
    table = _table_of(checkpoint, network)
    options = options_of(checkpoint, None)
    # Every cost grows with every layer's bits, so the extremes are the uniform configurations at the ends.
    lowest, highest = (costs_of((bits,) * len(table), table, options[-1]) for bits in (options[0], options[-1]))
    layers = _inspected(table, network, options)
    if as_json:
        print(json.dumps(_as_json(checkpoint, table, layers, options, lowest, highest), indent=2))
    else:
        _print(checkpoint, table, layers, options, lowest, highest)


def _table_of(checkpoint: Checkpoint, network: nn.Module) -> LayerTable:
    """Return the quantized layers as an input meets them: a sample of the data, or what the settings say of inputs."""
    experiment, model = checkpoint.experiment, checkpoint.experiment.model
    if isinstance(model, FactoryModel) or (isinstance(model, MultimodalModel) and model.input_sizes is None):
        split = load_split(experiment.data, _any_split(experiment.data), limit=1)
        check_data_fit(experiment, split, f"the network of {checkpoint.path}")
        return layers_on(experiment, network, split, torch.device("cpu"), f"the network of {checkpoint.path}")
    if isinstance(model, MultimodalModel):
        return trace_layers_on_meta(network, _one_of_each_sensor(model))
    if model.input_size is None or model.in_channels is None:
        raise UsageError("model.input_size and model.in_channels: not known; name them in the experiment file")
    return trace_layers_on_meta(network, torch.zeros((1, model.in_channels, *model.input_size), device="meta"))


def _any_split(data: DataSettings) -> SplitName:
    named: list[SplitName] = [name for name in _SPLITS if getattr(data, name) is not None]
    return named[0] if named else _SPLITS[0]


def _one_of_each_sensor(model: MultimodalModel) -> dict[str, dict[str, Tensor]]:
    """Return a batch of one sample, shapes only."""
    assert model.input_sizes is not None
    return {
        location: {
            modality: torch.zeros((1, channels, *model.input_sizes[location][modality]), device="meta")
            for modality, channels in modalities.items()
        }
        for location, modalities in model.in_channels.items()
    }


def _inspected(table: LayerTable, network: nn.Module, options: tuple[int, ...]) -> list[InspectedLayer]:
    modules = quantized_layers(network)
    return [
        InspectedLayer(
            layer=layer,
            shape=tuple(weight_of(modules[layer.layer_name]).shape),
            options=offered_bitwidths(modules[layer.layer_name]) or options,
            quantizer=quantizer_words(modules[layer.layer_name]),
        )
        for layer in table.layers
    ]


def grouped(names: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """Return what all names begin with, and for each name its group and the rest: long ones make no table.

    A group is what names begin with, as far as there are at least eight layers to a group.

    >>> grouped(["layer1.0.conv1", "layer1.0.conv2"])
    ('', [('', 'layer1.0.conv1'), ('', 'layer1.0.conv2')])
    >>> above, rest = grouped([f"backbones.{way}.stage.block{i}.conv" for way in ("left", "right") for i in range(9)])
    >>> above, rest[0], rest[17]
    ('backbones', ('left.stage', 'block0.conv'), ('right.stage', 'block8.conv'))
    """
    parts = [tuple(name.split(".")) for name in names]
    depth = 0
    if max(map(len, names)) > _LONG_NAME:
        shortest = min(map(len, parts))
        most = max(1, len(names) // _LAYERS_OF_A_GROUP)
        depth = max(d for d in range(shortest) if len({part[:d] for part in parts}) <= most)
    same = max(d for d in range(depth + 1) if len({part[:d] for part in parts}) == 1)
    return ".".join(parts[0][:same]), [(".".join(part[same:depth]), ".".join(part[depth:])) for part in parts]


def _name(checkpoint: Checkpoint) -> str:
    model = checkpoint.experiment.model
    if isinstance(model, FactoryModel):
        return model.factory
    return f"multi-modal {model.name}" if isinstance(model, MultimodalModel) else model.name


def _as_json(
    checkpoint: Checkpoint,
    table: LayerTable,
    layers: list[InspectedLayer],
    options: tuple[int, ...],
    lowest: Costs,
    highest: Costs,
) -> dict[str, object]:
    return {
        "checkpoint": str(checkpoint.path),
        "checkpoint_id": checkpoint.sha256,
        "experiment": checkpoint.experiment.experiment,
        "epoch": checkpoint.epoch,
        "model": _name(checkpoint),
        "model_id": table.model_id,
        "bitwidth_options": list(options),
        "configurations": number_of_configurations(len(table), options),
        "costs": {name: {"min": vars(lowest)[name], "max": vars(highest)[name]} for name in vars(lowest)},
        "layers": [
            {**asdict(shown.layer), "shape": shown.shape, "options": shown.options, "quantizer": shown.quantizer}
            for shown in layers
        ],
    }


def _print(
    checkpoint: Checkpoint,
    table: LayerTable,
    layers: list[InspectedLayer],
    options: tuple[int, ...],
    lowest: Costs,
    highest: Costs,
) -> None:
    print(
        f"{checkpoint.path}: experiment {checkpoint.experiment.experiment}, epoch {checkpoint.epoch + 1}, "
        f"{_name(checkpoint)}"
    )
    above, names = grouped([layer.layer_name for layer in table.layers])
    print(f"Quantized layers{f' of {above}' if above else ''} in forward order; MACs for one sample:")
    weights, macs = sum(layer.weights for layer in table.layers), sum(layer.macs for layer in table.layers)
    rows: list[tuple[str, ...]] = []
    group = ""
    for (its_group, name), shown in zip(names, layers, strict=True):
        if its_group != group:
            rows.append((its_group, "", "", "", "", ""))
            group = its_group
        rows.append(
            (
                f"  {name}" if group else name,
                "x".join(map(str, shown.shape)),
                f"{shown.layer.weights:,}",
                f"{shown.layer.macs:,}",
                ",".join(map(str, shown.options)),
                shown.quantizer,
            )
        )
    print_table(
        ("layer", "shape", "weights", "MACs", "options", "quantizer"),
        rows,
        last=("all of them", "", f"{weights:,}", f"{macs:,}", "", ""),
        words=("layer", "options", "quantizer"),
    )
    count = number_of_configurations(len(table), options)
    print(f"Bitwidth options {list(options)} in {len(table)} layers: {count:,} configurations")
    labels = {name: column.axis_label for name, column in by_name(RECORD_COLUMNS).items()}
    ranges = {name: (vars(lowest)[name], vars(highest)[name]) for name in vars(lowest)}
    print_table(("cost", "lowest", "highest"), [(labels[name], *map(_number, ends)) for name, ends in ranges.items()])


def _number(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
