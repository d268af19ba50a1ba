"""Points that docs/scaling.md extrapolates from: what parts weigh, and what it takes to list and to read many of them.

python -m benchmarks.scale [parts...]    processor seconds, which a busy machine does not change
"""

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa

from benchmarks.store import example_rows
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
            many, one = (Path(folder) / f"{count}-{kind}" for kind in ("parts", "compact"))
            RecordStore(many / "records").append("c" * 64, plan.plan_id, table)
            (part,) = (many / "records").glob("*-000000.parquet")
            for number in range(1, count):  # the same bytes under many names are read as often
                os.link(part, part.with_name(f"{number:012x}-{plan.plan_id[:8]}-000000.parquet"))
            RecordStore(one / "records").add_compact(0, _with_other_masks(pa.concat_tables([table] * count)))
            read, again = (_seconds(partial(pd.read_parquet, place / "records")) for place in (many, one))
            what = f"{count} parts of {_ROWS} rows"
            print(f"{what}: pandas reads them in {read:.2f} s, compacted in {again:.2f} s", flush=True)


def _with_other_masks(table: pa.Table) -> pa.Table:
    """Return rows that do not compress to nothing for being the same over and over."""
    masks = pa.array([random.randbytes(125) for _ in range(table.num_rows)], pa.binary())
    return table.set_column(table.schema.get_field_index("correct_mask"), table.schema.field("correct_mask"), masks)


def _seconds(action: Callable[[], object]) -> float:
    begin = time.process_time()
    action()
    return time.process_time() - begin


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or list(_PARTS))
