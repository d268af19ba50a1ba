"""What configurations of a layer table cost; the formulas are in `schemas.costs`. Needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qbw_eval.layer_table import LayerTable
from schemas import costs
from schemas.costs import Cost


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of one configuration, `schemas.costs.COSTS`; units there."""

    avg_bitwidth: float
    weighted_avg_bitwidth: float
    weight_bytes: int
    relative_weight_bytes: float
    bit_ops: int
    relative_bit_ops: float


def costs_over(table: LayerTable, largest_option: int) -> Mapping[str, Cost]:
    """Return the costs of a layer table by name; the relative ones are relative to the largest option."""
    weights, macs = zip(*((layer.weights, layer.macs) for layer in table.layers), strict=True)
    return costs.costs_over(weights, macs, largest_option)


def average_bitwidth(bitwidths: Sequence[int]) -> float:
    """Return the unweighted mean of at least one layer's bits."""
    return sum(bitwidths) / len(bitwidths)


def costs_of(bitwidths: Sequence[int], table: LayerTable, largest_option: int) -> Costs:
    """Return the costs of a configuration.

    Args:
        bitwidths: bits per layer, in the order of `table`.
        table: the quantized layers, at least one.
        largest_option: what the relative costs are relative to.

    Raises:
        ValueError: the number of bitwidths is not the number of layers.
    """
    found = {name: cost.of(bitwidths) for name, cost in costs_over(table, largest_option).items()}
    return Costs(**found)  # type: ignore[arg-type]  # counts are ints


def costs_per_layer(bitwidths: Sequence[int], table: LayerTable, largest_option: int) -> list[Costs]:
    """Return each layer's own costs, as if it were the whole network.

    Bit operations add up to the network's; whole bytes may add up to more, by less than one a layer.
    """
    pairs = zip(bitwidths, table.layers, strict=True)
    return [costs_of((bits,), LayerTable((layer,)), largest_option) for bits, layer in pairs]
