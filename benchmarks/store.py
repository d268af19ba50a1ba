"""What it costs to make rows durable."""

import random
import tempfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pyarrow as pa

from benchmarks.figures import Figure
from benchmarks.timing import seconds
from qbw_eval.engine.tally import Measurement
from qbw_eval.layer_table import Layer, LayerTable
from qbw_eval.plan import Plan
from qbw_eval.rows import Provenance, record_table
from qbw_eval.store import RecordStore

_PARTS = 56


def example_rows(count: int, samples: int) -> tuple[Plan, pa.Table]:
    """Return `count` rows of a network of 20 layers, and their plan; without masks where there are no samples."""
    layer = Layer(
        layer_name="layer",
        kind="conv2d",
        weights=576,
        macs=36864,
        in_channels=8,
        out_channels=8,
        kernel="3x3",
        stride="1x1",
    )
    plan = Plan(
        sampler="iid",
        seed=0,
        options=(2, 4, 8),
        network={},
        table=LayerTable((layer,) * 20),
        data_id="0" * 32,
        num_samples=samples or 1000,
        numerics="benchmark",
        count=count,
    )
    provenance = Provenance(
        experiment="benchmark",
        checkpoint="benchmark.pt",
        checkpoint_id="0" * 64,
        epoch=0,
        dataset="benchmark",
        split="validation",
        engine="reference",
        device="cpu",
        qbw_version="0",
        torch_version="0",
    )
    draw = random.Random(0)
    results = [
        Measurement(
            correct=(samples or 1000) * 9 // 10,
            num_samples=samples or 1000,
            loss=draw.random(),
            correct_mask=draw.randbytes(samples // 8) if samples else None,
            agreement=draw.random(),
        )
        for _ in range(count)
    ]
    rows = record_table(
        plan,
        provenance,
        plan.configurations,
        results,
        duration_s=1.0,
        evaluated_at=datetime.now(UTC),
    )
    return plan, rows


def append_time() -> list[Figure]:
    """How long it takes to commit a part of 16 rows durably (encode, read back, fsync, link, fsync)."""
    plan, rows = example_rows(16, 1000)
    with tempfile.TemporaryDirectory() as folder:
        store = RecordStore(Path(folder) / "records")
        # A checkpoint of its own for every part: the first 12 digits of its id are in the part's name.
        times = [seconds(partial(store.append, f"{n:012x}", plan.plan_id, rows)) for n in range(_PARTS)]
    return [Figure(figure="commit a part of 16 rows", values=[1000 * t for t in times], unit="ms")]
