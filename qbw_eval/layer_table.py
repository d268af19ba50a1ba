"""The layer table of one network: what costs and configurations are counted over. Needs no torch."""

from dataclasses import asdict, dataclass
from functools import cached_property

import pyarrow as pa

from schemas.layers import LAYER_SCHEMA, model_id_of


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One quantized layer.

    Attributes:
        layer_name: the module's path in the network.
        kind: "conv2d" or "linear" (or the class name of a layer that is neither).
        weights: number of quantized weights.
        macs: multiply-accumulates for one sample, summed over all uses of the layer in a forward pass.
        kernel, stride: "3x3"; None for linear layers.
    """

    layer_name: str
    kind: str
    weights: int
    macs: int
    in_channels: int
    out_channels: int
    kernel: str | None
    stride: str | None


@dataclass(frozen=True)
class LayerTable:
    """Quantized layers in the order in which a forward pass meets them."""

    layers: tuple[Layer, ...]

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def names(self) -> tuple[str, ...]:
        """Layer names in forward order."""
        return tuple(layer.layer_name for layer in self.layers)

    @cached_property
    def model_id(self) -> str:
        """The hash that names this table."""
        return model_id_of(self._rows())

    @classmethod
    def from_arrow(cls, table: pa.Table) -> "LayerTable":
        """Return the table that `to_arrow` wrote."""
        rows = table.drop_columns(["model_id", "layer_index"]).to_pylist()
        return cls(tuple(Layer(**row) for row in rows))

    def to_arrow(self) -> pa.Table:
        """Return the table in the schema of `schemas.layers`."""
        rows = [{"model_id": self.model_id, **row} for row in self._rows()]
        return pa.table({f.name: pa.array([row[f.name] for row in rows], f.type) for f in LAYER_SCHEMA})

    def _rows(self) -> list[dict[str, object]]:
        return [{"layer_index": index, **asdict(layer)} for index, layer in enumerate(self.layers)]
