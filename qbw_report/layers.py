"""The layer table beside the records: names, weights, multiply-accumulates; what a configuration costs, exactly."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path

from schemas import layers
from schemas.errors import QBWError
from schemas.parts import decode_part

LAYERS_FOLDER = "layers"
"""Beside the records folder."""


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The quantized layers of one network, in forward order.

    Attributes:
        names: paths in the network.
        weights: quantized weights of each.
        macs: multiply-accumulates of each, for one sample.
    """

    names: tuple[str, ...]
    weights: tuple[int, ...]
    macs: tuple[int, ...]


def read_layers(records: Path, model_id: str) -> Layers | None:
    """Return the layer table that stands beside a records folder; None where there is none.

    Raises:
        QBWError: the table is damaged, or is another network's.
    """
    if not re.fullmatch(r"[0-9a-f]{1,64}", model_id):  # a name from a file must not lead anywhere else
        return None
    path = records.resolve().parent / LAYERS_FOLDER / f"{model_id}.parquet"
    if not path.is_file():
        return None
    rows = decode_part(path.read_bytes(), layers.KIND, str(path)).to_pylist()
    found = layers.model_id_of(rows)
    if found != model_id:
        raise QBWError(f"{path}: expected the layer table {model_id}, found {found}; move the file away")
    rows.sort(key=lambda row: int(row["layer_index"]))
    return Layers(
        names=tuple(row["layer_name"] for row in rows),
        weights=tuple(row["weights"] for row in rows),
        macs=tuple(row["macs"] for row in rows),
    )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One cost of a network as a whole number per layer and option: what a budget bounds.

    A configuration's cost is `ceil(sum(sizes[l] * bits[l] ** power) / quantum) / denominator`, the formulas that the
    record's columns are made by.

    Attributes:
        sizes: of each layer.
        power: 1, or 2 where both weights and activations have these bits.
        quantum: 8 where bits become whole bytes, else 1.
        denominator: what the count is divided by; 1 where it is the cost itself.
    """

    sizes: tuple[int, ...]
    power: int = 1
    quantum: int = 1
    denominator: int = 1

    def total(self, bitwidths: Sequence[int]) -> int:
        """Return the sum over layers."""
        return sum(size * bits**self.power for size, bits in zip(self.sizes, bitwidths, strict=True))

    def value(self, bitwidths: Sequence[int]) -> float:
        """Return the cost, in the record's unit."""
        count = -(-self.total(bitwidths) // self.quantum)
        return count if self.denominator == 1 else count / self.denominator

    def largest_total(self, limit: Fraction) -> int:
        """Return the largest sum over layers whose cost is at most `limit`."""
        return floor(limit * self.denominator) * self.quantum


def costs_of(layers: Layers, largest_option: int) -> Mapping[str, Cost]:
    """Return the costs by the name of the record's column; relative ones are relative to the largest option."""
    weights, macs = layers.weights, layers.macs
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
