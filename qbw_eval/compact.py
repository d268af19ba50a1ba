"""Many small parts -> a new dataset of few large ones; the source is not touched.

Never in place: a reader that runs while visible parts are replaced is silently wrong, even with an atomic exchange.
"""

from dataclasses import dataclass
from pathlib import Path

from qbw_eval.dataset import DatasetError, order_free_digest, read_dataset, read_layer_table
from qbw_eval.layer_table import LayerTable
from qbw_eval.store import RecordStore

ROWS_PER_PART = 100_000

_ORDER = ("experiment", "epoch", "checkpoint_id", "plan_id", "config_index")


@dataclass(frozen=True, kw_only=True)
class Compaction:
    """What was written; the digests are of all rows, whatever their order and parts."""

    rows: int
    parts: int
    source_digest: str
    target_digest: str


def compact(source: Path, target: Path, rows_per_part: int = ROWS_PER_PART) -> Compaction:
    """Write the rows of `source` and their layer tables into the new records folder `target`.

    Raises:
        UsageError: there is no such source.
        DatasetError: the source is not whole, or the target is not new.
        StoreError: the target cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DatasetError(f"{target}: is there already; compact into a new folder")
    if target.resolve().is_relative_to(source.resolve()):
        raise DatasetError(f"{target}: lies in {source}, which is not to be touched; compact into another folder")
    rows = read_dataset(source)
    # All is read before anything is written, so that a bad source leaves no half of a target.
    model_ids = sorted(set(rows["model_id"].to_pylist()))
    tables = [LayerTable.from_arrow(read_layer_table(source, model_id)) for model_id in model_ids]
    store = RecordStore(target)
    for table in tables:
        store.add_layers(table)
    ordered = rows.sort_by([(name, "ascending") for name in _ORDER])
    starts = range(0, ordered.num_rows, rows_per_part)
    for number, first in enumerate(starts):
        store.add_compact(number, ordered.slice(first, rows_per_part))
    return Compaction(
        rows=rows.num_rows,
        parts=len(starts),
        source_digest=order_free_digest(rows),
        target_digest=order_free_digest(read_dataset(target)),
    )
