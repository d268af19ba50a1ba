"""What a configuration costs: exact integer sums over the layers, divided once at the end.

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

COSTS = (
    "avg_bitwidth",
    "weighted_avg_bitwidth",
    "weight_bytes",
    "relative_weight_bytes",
    "bit_ops",
    "relative_bit_ops",
)
"""The names of the costs: columns of the record."""


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

    def of(self, bitwidths: Sequence[int]) -> float:
        """Return what a configuration costs, in the record's unit.

        Raises:
            ValueError: the number of bitwidths is not the number of layers.
        """
        return self.value(self.total(bitwidths))

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


@lru_cache(maxsize=16)
def costs_over(weights: tuple[int, ...], macs: tuple[int, ...], largest_option: int) -> Mapping[str, Cost]:
    """Return the costs by name, in the order of `COSTS`; the relative ones are relative to the largest option.

    Args:
        weights: quantized weights of each layer, in forward order; at least one layer.
        macs: multiply-accumulates of each, for one sample.
        largest_option: bits.
    """
    largest_bytes = -(-sum(weights) * largest_option // 8)
    return {
        "avg_bitwidth": average_cost(len(weights)),
        "weighted_avg_bitwidth": Cost(sizes=weights, denominator=sum(weights)),
        "weight_bytes": Cost(sizes=weights, quantum=8),
        "relative_weight_bytes": Cost(sizes=weights, quantum=8, denominator=largest_bytes),
        "bit_ops": Cost(sizes=macs, power=2),
        "relative_bit_ops": Cost(sizes=macs, power=2, denominator=sum(macs) * largest_option**2),
    }


def average_cost(num_layers: int) -> Cost:
    """Return `avg_bitwidth`, which needs no layer's size."""
    return Cost(sizes=(1,) * num_layers, denominator=num_layers)
