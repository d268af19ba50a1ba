"""The layer table: one quantized layer of one network, in the order in which the forward pass meets them.

Content-addressed: `model_id` is the hash of the other columns, so equal tables have equal names and never change.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from schemas.columns import Column, arrow_schema
from schemas.records import hash_of

KIND = "layers"
SCHEMA_VERSION = (1, 0)

LAYER_COLUMNS: tuple[Column, ...] = (
    Column(name="model_id", type=pa.string(), meaning="hash of the table"),
    Column(name="layer_index", type=pa.int32(), meaning="position in the forward pass, from 0"),
    Column(name="layer_name", type=pa.string(), meaning="the module's path in the network"),
    Column(name="kind", type=pa.string(), meaning="conv2d or linear"),
    Column(name="weights", type=pa.int64(), meaning="number of quantized weights", unit="weights"),
    Column(name="macs", type=pa.int64(), meaning="multiply-accumulates for one sample", unit="MACs"),
    Column(name="in_channels", type=pa.int32(), meaning="input channels or features"),
    Column(name="out_channels", type=pa.int32(), meaning="output channels or features"),
    Column(name="kernel", type=pa.string(), meaning="height x width; null for linear layers"),
    Column(name="stride", type=pa.string(), meaning="vertical x horizontal; null for linear layers"),
)

LAYER_SCHEMA: pa.Schema = arrow_schema(LAYER_COLUMNS)


def model_id_of(layers: Sequence[Mapping[str, object]]) -> str:
    """Return the hash of a layer table given as rows without `model_id`."""
    names = [column.name for column in LAYER_COLUMNS if column.name != "model_id"]
    return hash_of({"layers": [[layer[name] for name in names] for layer in layers]})
