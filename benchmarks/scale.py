"""Points that docs/scaling.md extrapolates from: what parts weigh, and what it takes to list and to read many of them.

python -m benchmarks.scale [parts...]    processor seconds, which a busy machine does not change
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa

from benchmarks.store import example_rows
from qbw_eval.compact import compact
from qbw_eval.files import Files
from qbw_eval.store import RecordStore
from schemas import records
from schemas.parts import encode_part

_PARTS = (100, 1000, 3000)
_ROWS = 64


def main(counts: list[int]) -> None:
    """Print the points."""
    for rows, samples in ((16, 1000), (64, 1000), (64, 10_000), (64, 0)):
        plan, table = example_rows(rows, samples)
        size = len(encode_part(table, records.KIND, "part"))
        what = f"masks of {samples} samples" if samples else "no masks"
        print(f"a part of {rows} rows, {what}: {size} bytes, {size / rows:.0f} a row", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for count in (1000, 10_000, 100_000):
            place = Path(folder) / str(count)
            place.mkdir()
            for number in range(count):
                os.close(os.open(place / f"{number:012x}-{plan.plan_id[:8]}-000000.parquet", os.O_CREAT | os.O_WRONLY))
            print(f"list {count} names: {_seconds(partial(Files().names, place)):.3f} s", flush=True)
        _, table = example_rows(_ROWS, 1000)
        for count in counts:
            many, one = (Path(folder) / f"{count}-{kind}" / "records" for kind in ("parts", "compact"))
            store = RecordStore(many)
            store.add_layers(plan.table)
            for number in range(count):
                store.append(f"{number:012x}", plan.plan_id, _of_another_checkpoint(table, number))
            read = _seconds(partial(pd.read_parquet, many))
            took = _seconds(partial(compact, many, one))
            again = _seconds(partial(pd.read_parquet, one))
            what = f"{count} parts of {_ROWS} rows"
            print(
                f"{what}: pandas reads them in {read:.2f} s, compact takes {took:.2f} s, then {again:.2f} s", flush=True
            )


def _of_another_checkpoint(table: pa.Table, number: int) -> pa.Table:
    """Return rows under names of their own."""
    for column, values in (
        ("record_id", [f"{number:016x}{row:016x}" for row in range(table.num_rows)]),
        ("checkpoint_id", [f"{number:012x}"] * table.num_rows),
    ):
        table = table.set_column(table.schema.get_field_index(column), table.schema.field(column), [values])
    return table


def _seconds(action: Callable[[], object]) -> float:
    begin = time.process_time()
    action()
    return time.process_time() - begin


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or list(_PARTS))
