"""`qbw-eval sample`: the configurations that would be evaluated, with their costs; evaluates nothing."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbw_eval.commands.console import print_table
from qbw_eval.commands.inspect import read_layers
from qbw_eval.commands.sampler_options import SamplerOptions, read_configurations, resolve
from qbw_eval.configurations import BitwidthConfiguration, SamplerSettings, number_of_configurations, sample
from qbw_eval.cost import average_bitwidth, costs_of
from qbw_eval.evaluate import options_of
from qbw_eval.layer_table import LayerTable
from qbw_eval.sampling.given import given_text
from qbw_eval.settings.quantization import RandomBitwidths
from schemas.columns import by_name
from schemas.errors import QBWError, UsageError
from schemas.records import RECORD_COLUMNS


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """The options of `qbw-eval sample`, as its help describes them."""

    checkpoint: Path | None
    layers: int | None
    bitwidths: tuple[int, ...] | None
    sampling: SamplerOptions
    config: Path | None
    out: Path | None
    overwrite: bool


def sample_command(options: SampleOptions) -> None:
    """Print the configurations and their costs, or write them to a file.

    Raises:
        UsageError: there is neither a checkpoint nor a number of layers, or both; the sampler cannot do what is asked.
        QBWError: the file cannot be written.
    """
    given = read_configurations(options.sampling)
    layers, bit_options, experiment = _network(options)
    drawn = resolve(options.sampling, given, experiment)
    if isinstance(layers, int) and given is not None and any(isinstance(entry, Mapping) for entry in given.entries):
        raise UsageError(f"{given.source}: gives bits by layer name, which --layers does not know; name a checkpoint")
    names = layers.names if isinstance(layers, LayerTable) else ()
    settings = SamplerSettings(
        range=drawn.range,
        cost=drawn.cost,
        base=drawn.base,
        given=given.in_order(names) if given else (),
        source=given.source if given else "",
    )
    configurations = sample(drawn.sampler, layers, bit_options, drawn.count, drawn.seed, settings)
    _tell_what_there_is(len(configurations), drawn.count, layers, bit_options)
    rows = [_row(configuration, layers, bit_options[-1]) for configuration in configurations]
    if options.out is None:
        _print(rows)
    else:
        _write(options.out, rows, names, overwrite=options.overwrite)
        print(f"{options.out}: {len(rows)} configurations; next: qbw-eval run CKPT --configurations {options.out}")


def _network(options: SampleOptions) -> tuple[LayerTable | int, tuple[int, ...], RandomBitwidths]:
    """Return the layers (or how many), the bitwidth options, and what the experiment says of configurations."""
    if (options.checkpoint is None) == (options.layers is None):
        found = "neither" if options.checkpoint is None else "both"
        raise UsageError(f"sample: expected a checkpoint or --layers, found {found}")
    if options.checkpoint is not None:
        checkpoint, table, _ = read_layers(options.checkpoint, options.config)
        return table, options_of(checkpoint, options.bitwidths), checkpoint.experiment.random_bitwidths
    if options.layers is None or options.bitwidths is None:
        raise UsageError("sample --layers: say with --options which bitwidths there are, such as 2,4,8")
    return options.layers, options.bitwidths, RandomBitwidths()


def _tell_what_there_is(found: int, asked: int | None, layers: LayerTable | int, bit_options: tuple[int, ...]) -> None:
    num_layers = layers if isinstance(layers, int) else len(layers)
    of = f"of {number_of_configurations(num_layers, bit_options):,}"
    only = f", all there are of the {asked} asked for" if asked is not None and found < asked else ""
    print(f"{found} configurations {of} ({num_layers} layers at {list(bit_options)}){only}", file=sys.stderr)


def _row(configuration: BitwidthConfiguration, layers: LayerTable | int, largest_option: int) -> dict[str, Any]:
    """Return what there is to say of a configuration, by names of the record's columns."""
    bits = configuration.bitwidths
    if isinstance(layers, LayerTable):
        costs: dict[str, Any] = vars(costs_of(bits, layers, largest_option))
    else:
        costs = {"avg_bitwidth": average_bitwidth(bits)}
    targets = {"target_cost": configuration.target_cost, "target": configuration.target}
    return {"config_index": configuration.index, **targets, **costs, "bitwidths": list(bits)}


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    labels = {name: column.axis_label for name, column in by_name(RECORD_COLUMNS).items()}
    names = [name for name in rows[0] if name != "target_cost"]
    headers = ["#" if name == "config_index" else labels[name].lower() for name in names]
    print_table(headers, [[_text(row[name]) for name in names] for row in rows])


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _write(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str], *, overwrite: bool) -> None:
    """Write a file of configurations that `run --configurations` reads."""
    kind = path.suffix.lower()
    if kind not in (".json", ".yaml", ".yml", ".csv"):
        raise UsageError(f"{path}: expected a name that ends in .json, .yaml or .csv; found {path.suffix or 'none'!r}")
    if kind == ".csv" and not names:
        raise UsageError(f"{path}: CSV has a column for every layer's name; name a checkpoint, or write .json or .yaml")
    try:
        with path.open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(given_text(kind, rows, names or None))
    except FileExistsError:
        raise UsageError(f"{path}: is there already; name another file or say --overwrite") from None
    except OSError as error:
        raise QBWError(f"{path}: cannot be written ({error.strerror}); name another file") from None
