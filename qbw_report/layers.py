"""The layer table beside the records: names, weights, multiply-accumulates."""

import re
from dataclasses import dataclass
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
