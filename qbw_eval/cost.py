"""What a configuration costs: exact integer sums over the layer table, divided once at the end. Needs no torch.

With w_l weights, m_l multiply-accumulates (one sample) and b_l bits in layer l of L:

    avg_bitwidth          = sum(b_l) / L                          bits; unweighted, the seed document's
    weighted_avg_bitwidth = sum(w_l * b_l) / sum(w_l)             bits
    weight_bytes          = ceil(sum(w_l * b_l) / 8)              bytes; quantized layers only
    relative_weight_bytes = weight_bytes / weight_bytes(every layer at the largest option)
    bit_ops               = sum(m_l * b_l * b_l)                  MACs x weight bits x activation bits
    relative_bit_ops      = bit_ops / bit_ops(every layer at the largest option)
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
    layers = table.layers
    weight_bits = sum(layer.weights * bits for layer, bits in zip(layers, bitwidths, strict=True))
    bit_ops = sum(layer.macs * bits * bits for layer, bits in zip(layers, bitwidths, strict=True))
    weights, macs = sum(layer.weights for layer in layers), sum(layer.macs for layer in layers)
    weight_bytes = _whole_bytes(weight_bits)
    return Costs(
        avg_bitwidth=average_bitwidth(bitwidths),
        weighted_avg_bitwidth=weight_bits / weights,
        weight_bytes=weight_bytes,
        relative_weight_bytes=weight_bytes / _whole_bytes(weights * largest_option),
        bit_ops=bit_ops,
        relative_bit_ops=bit_ops / (macs * largest_option**2),
    )


def _whole_bytes(bits: int) -> int:
    return -(-bits // 8)
