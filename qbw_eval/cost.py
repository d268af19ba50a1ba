"""What a configuration costs: exact integer sums over the layer table, divided once at the end. Needs no torch.

With w_l weights, m_l multiply-accumulates (one sample) and b_l bits in layer l of L:

    avg_bitwidth          = sum(b_l) / L                          bits; unweighted, the seed document's
    weighted_avg_bitwidth = sum(w_l * b_l) / sum(w_l)             bits
    weight_bytes          = ceil(sum(w_l * b_l) / 8)              bytes; quantized layers only
    relative_weight_bytes = weight_bytes / weight_bytes(every layer at the largest option)
    bit_ops               = sum(m_l * b_l * b_l)                  MACs x weight bits x activation bits
    relative_bit_ops      = bit_ops / bit_ops(every layer at the largest option)

Every one of them is ceil(total / quantum) / denominator with the whole number total = sum(size_l * b_l ** power), and
grows with every layer's bits. What the network keeps beside its quantized weights costs the same at all configurations
and is in none of them: rows state it as unquantized_weight_bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil, floor

from qbw_eval.layer_table import LayerTable


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of one configuration; units in the module's docstring."""

    avg_bitwidth: float
    weighted_avg_bitwidth: float
    weight_bytes: int
    relative_weight_bytes: float
    bit_ops: int
    relative_bit_ops: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One cost of one network; the formula is in the module's docstring.

    Attributes:
        sizes: what each layer counts with, in forward order.
        power: 1, or 2 where weights and activations both have these bits.
        quantum: 8 where whole bytes are counted, else 1.
        denominator: what the count is divided by; None where it is the count itself.
    """

    sizes: tuple[int, ...]
    power: int = 1
    quantum: int = 1
    denominator: int | None = None

    def total(self, bitwidths: Sequence[int]) -> int:
        """Return the sum over the layers.

        Raises:
            ValueError: the number of bitwidths is not the number of layers.
        """
        return sum(size * bits**self.power for size, bits in zip(self.sizes, bitwidths, strict=True))

    def value(self, total: int) -> float:
        """Return what a sum stands for; an int where the cost counts bytes or operations."""
        count = -(-total // self.quantum)
        return count if self.denominator is None else count / self.denominator

    def first_total(self, value: Fraction) -> int:
        """Return the smallest sum whose value is at least `value`."""
        return (ceil(value * (self.denominator or 1)) - 1) * self.quantum + 1

    def last_total(self, value: Fraction) -> int:
        """Return the largest sum whose value is at most `value`."""
        return floor(value * (self.denominator or 1)) * self.quantum


def costs_over(table: LayerTable, largest_option: int) -> Mapping[str, Cost]:
    """Return the costs by name, in the order of `Costs`; the relative ones are relative to the largest option."""
    return _costs_over(tuple((layer.weights, layer.macs) for layer in table.layers), largest_option)


@lru_cache(maxsize=16)
def _costs_over(sizes: tuple[tuple[int, int], ...], largest_option: int) -> Mapping[str, Cost]:
    weights, macs = zip(*sizes, strict=True)
    largest_bytes = -(-sum(weights) * largest_option // 8)
    return {
        "avg_bitwidth": average_cost(len(sizes)),
        "weighted_avg_bitwidth": Cost(sizes=weights, denominator=sum(weights)),
        "weight_bytes": Cost(sizes=weights, quantum=8),
        "relative_weight_bytes": Cost(sizes=weights, quantum=8, denominator=largest_bytes),
        "bit_ops": Cost(sizes=macs, power=2),
        "relative_bit_ops": Cost(sizes=macs, power=2, denominator=sum(macs) * largest_option**2),
    }


COSTS = tuple(Costs.__dataclass_fields__)
"""The names of the costs."""


def average_cost(num_layers: int) -> Cost:
    """Return `avg_bitwidth`, which needs no layer's size."""
    return Cost(sizes=(1,) * num_layers, denominator=num_layers)


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
    costs = costs_over(table, largest_option)
    return Costs(**{name: cost.value(cost.total(bitwidths)) for name, cost in costs.items()})  # type: ignore[arg-type]  # counts are ints


def costs_per_layer(bitwidths: Sequence[int], table: LayerTable, largest_option: int) -> list[Costs]:
    """Return each layer's own costs, as if it were the whole network.

    Bit operations add up to the network's; whole bytes may add up to more, by less than one a layer.
    """
    pairs = zip(bitwidths, table.layers, strict=True)
    return [costs_of((bits,), LayerTable((layer,)), largest_option) for bits, layer in pairs]
