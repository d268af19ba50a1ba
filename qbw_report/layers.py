"""The layer table beside the records: names, weights, multiply-accumulates."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        QBWError: the table is damaged, is another network's, or no layers could be so.
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
    wrong = _what_is_wrong(rows)
    if wrong:
        raise QBWError(f"{path}: {wrong}; move the file away, and evaluate the network again")
    rows.sort(key=lambda row: int(row["layer_index"]))
    return Layers(
        names=tuple(row["layer_name"] for row in rows),
        weights=tuple(row["weights"] for row in rows),
        macs=tuple(row["macs"] for row in rows),
    )


def _what_is_wrong(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return why these cannot be the layers of a network; empty where they can. A hash over nonsense is right, too."""
    found = [row["layer_index"] for row in rows]
    if not rows or set(found) != set(range(len(rows))):
        return f"expected layers that are numbered from 0, each once, found {found[:8]}"
    names = [row["layer_name"] for row in rows]
    if None in names or len(set(names)) < len(names):
        return "expected a name for every layer, another for each"
    for column in ("weights", "macs"):
        counts = [row[column] for row in rows]
        if any(count is None or count < 0 for count in counts) or not any(counts):
            return f"column {column!r}: expected 0 or more in every layer, more in one, found {counts[:8]}"
    return ""
