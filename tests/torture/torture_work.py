"""The evaluator without its network: the store's real code path, fed with results that follow from the configuration.

Everything that `qbw-eval run` does with records happens here too: Plan, claims, chunks, record_table, RecordStore. Only
the measurement is arithmetic in place of a forward pass, so that a writer starts in milliseconds (no torch), two
writers give equal rows, and an uninterrupted run says exactly what must be in the records.
"""

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

import qbw_eval
from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.files import Files
from qbw_eval.layer_table import Layer, LayerTable
from qbw_eval.plan import Plan
from qbw_eval.rows import Provenance, record_table
from qbw_eval.store import RecordStore
from schemas import records
from schemas.errors import QBWError
from schemas.parts import decode_part, part_paths

REPOSITORY = Path(__file__).parent.parent.parent
assert Path(qbw_eval.__file__).is_relative_to(REPOSITORY), f"{qbw_eval.__file__} is not the code beside these tests"

_CHUNK_MACS, _SMALL_CHUNK_MACS = 200 * 10**9, 10**14  # what Plan.chunk_size divides by a configuration's work


@dataclass(frozen=True, kw_only=True)
class MadeUpMeasurement:
    """What `Measurement` has, computed from the configuration alone."""

    correct: int
    num_samples: int
    loss: float
    correct_mask: bytes
    agreement: float | None
    kl_divergence: float | None
    top5_correct: int | None
    correct_per_class: tuple[int, ...] | None
    samples_per_class: tuple[int, ...] | None

    @property
    def accuracy(self) -> float:
        return self.correct / self.num_samples


def plan_of(count: int, chunk_size: int, *, num_samples: int = 1000, seed: int = 0) -> Plan:
    """Return a plan of `count` configurations of a network of six layers that is evaluated in parts of `chunk_size`."""
    macs = (_CHUNK_MACS if chunk_size >= 16 else _SMALL_CHUNK_MACS) // (chunk_size * num_samples * 6)
    table = LayerTable(
        tuple(
            Layer(
                layer_name=f"layer{index}",
                kind="conv2d",
                weights=36 * (index + 1),
                macs=macs,
                in_channels=2,
                out_channels=2,
                kernel="3x3",
                stride="1x1",
            )
            for index in range(6)
        )
    )
    plan = Plan(
        sampler="iid",
        seed=seed,
        options=(1, 2, 4, 8, 16),
        network={"name": "made up"},
        table=table,
        data_id="d" * 32,
        num_samples=num_samples,
        numerics="made-up/1",
        count=count,
    )
    assert plan.chunk_size == chunk_size
    return plan


def checkpoint_id_of(number: int) -> str:
    """Return what the sha256 of checkpoint `number` would be."""
    return hashlib.sha256(b"checkpoint %d" % number).hexdigest()


def measure(checkpoint_id: str, configuration: BitwidthConfiguration, num_samples: int) -> MadeUpMeasurement:
    """Return the made-up result of a configuration: the same in every process and every run."""
    seed = f"{checkpoint_id} {configuration.index} {configuration.bitwidths}".encode()
    mask = hashlib.shake_128(seed).digest(-(-num_samples // 8))
    mask = mask[:-1] + bytes([mask[-1] & (0xFF >> (-num_samples % 8))])
    correct = int.from_bytes(mask).bit_count()
    return MadeUpMeasurement(
        correct=correct,
        num_samples=num_samples,
        loss=1 + 1 / (correct + 1),
        correct_mask=mask,
        agreement=None if configuration.index % 3 else correct / num_samples,
        kl_divergence=None if configuration.index % 5 else 1 / (correct + 1),
        top5_correct=None if configuration.index % 2 else num_samples,
        correct_per_class=None if configuration.index % 7 else (correct, 0),
        samples_per_class=None if configuration.index % 7 else (num_samples, 0),
    )


def rows_of(plan: Plan, checkpoint_id: str, configurations: list[BitwidthConfiguration]) -> pa.Table:
    """Return the records of these configurations."""
    provenance = Provenance(
        experiment="torture",
        checkpoint=f"{checkpoint_id[:4]}.pt",
        checkpoint_id=checkpoint_id,
        epoch=0,
        dataset="made up",
        split="test",
        engine="made up",
        device="cpu",
        qbw_version="0",
        torch_version="none",
    )
    measurements = [measure(checkpoint_id, c, plan.num_samples) for c in configurations]
    return record_table(
        plan,
        provenance,
        configurations,
        measurements,  # type: ignore[arg-type]
        duration_s=0.25,
        evaluated_at=datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC),
    )


def uninterrupted(plan: Plan, checkpoint_ids: Iterable[str]) -> pa.Table:
    """Return all rows in the order of their ids: what a run that nothing disturbs would have written."""
    return pa.concat_tables([rows_of(plan, c, plan.configurations) for c in checkpoint_ids]).sort_by("record_id")


def evaluate_missing(
    store: RecordStore, plan: Plan, checkpoint_id: str, acknowledge: Callable[[list[int]], None]
) -> None:
    """Evaluate what is missing of one checkpoint, as `commands.run` does, and acknowledge each committed chunk."""
    store.add_layers(plan.table)
    for chunk in plan.chunks(store.done(checkpoint_id, plan.plan_id)):
        with store.claimed(checkpoint_id, plan.plan_id, chunk[0].index, plan.chunk_size) as mine:
            if mine:
                missing = {configuration.index for configuration in chunk}
                missing -= store.done(checkpoint_id, plan.plan_id)
                for piece in plan.chunks({c.index for c in plan.configurations} - missing):
                    store.append(checkpoint_id, plan.plan_id, rows_of(plan, checkpoint_id, piece))
                    acknowledge([c.index for c in piece])


def write_until_told(
    folder: Path, plan: Plan, checkpoint_ids: list[str], log: Path, pause_s: float = 0.0, files: Files | None = None
) -> None:
    """Be a writer process: evaluate the checkpoints, log each acknowledged row; a refusing disk ends it quietly."""
    store = RecordStore(folder / "records", files)
    store.sweep()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for checkpoint_id in checkpoint_ids:

            def acknowledge(indices: list[int], of: str = checkpoint_id) -> None:
                line = f"{of} {plan.plan_id} {indices[0]} {len(indices)}\n".encode()
                assert os.write(descriptor, line) == len(line)
                time.sleep(pause_s)

            evaluate_missing(store, plan, checkpoint_id, acknowledge)
    except (QBWError, OSError) as error:
        os.write(descriptor, f"# stopped: {error}\n".encode())
    finally:
        os.close(descriptor)


def acknowledged(logs: Iterable[Path], plan: Plan) -> set[str]:
    """Return the record_id of every row that a writer was told is safe."""
    ids = set()
    for log in filter(Path.exists, logs):
        for line in log.read_text().splitlines():
            if not line.startswith("#"):
                checkpoint_id, plan_id, first, count = line.split()
                assert plan_id == plan.plan_id
                chunk = plan.configurations[int(first) : int(first) + int(count)]
                ids |= {plan.record_id(checkpoint_id, configuration) for configuration in chunk}
    return ids


def rows_in(folder: Path) -> pa.Table:
    """Return the rows of a records folder in the order of their ids, every part checked."""
    tables = [decode_part(path.read_bytes(), records.KIND, path.name) for path in part_paths(folder)]
    return pa.concat_tables([records.RECORD_SCHEMA.empty_table(), *tables]).sort_by("record_id")


def doubled(rows: pa.Table) -> int:
    """Return how many rows are there more than once."""
    return int(rows.num_rows - len(set(rows["record_id"].to_pylist())))


def delays(seed: int, longest_s: float) -> Iterator[float]:
    """Yield random times in seconds, many of them short."""
    draw = random.Random(seed)
    while True:
        yield longest_s * draw.random() ** 2
