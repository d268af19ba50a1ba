"""Simulated records: real schema, real parts, invented accuracies (monotone in bits, with noise)."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.parts import ANCHOR_NAME, encode_part
from schemas.records import KIND, RECORD_COLUMNS, RECORD_SCHEMA, hash_of

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LAYERS = 20


def digest(*words: object) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()


def row(
    bitwidths: Sequence[int],
    correct: int,
    *,
    experiment: str = "demo",
    epoch: int = 0,
    num_samples: int = 1000,
    loss: float | None = 0.5,
    seconds: float = 0.0,
    config_index: int = 0,
    **others: Any,
) -> dict[str, Any]:
    """Return one record as a mapping; `seconds` after START it was evaluated."""
    made = {
        "experiment": experiment,
        "checkpoint": f"epoch_{epoch + 1:03d}.pt",
        "checkpoint_id": digest(experiment, epoch),
        "epoch": epoch,
        "dataset": "digits",
        "split": "validation",
        "data_id": digest("digits"),
        "num_samples": num_samples,
        "model_id": digest("model")[:32],
        "network_id": digest("network")[:32],
        "config_id": hash_of({"bitwidths": list(bitwidths)}),
        "plan_id": digest("plan")[:32],
        "sampler": "iid/1",
        "seed": 0,
        "config_index": config_index,
        "bitwidths": list(bitwidths),
        "bitwidth_options": sorted(set(bitwidths)),
        "avg_bitwidth": sum(bitwidths) / len(bitwidths),
        "weighted_avg_bitwidth": sum(bitwidths) / len(bitwidths),
        "weight_bytes": 100 * sum(bitwidths),
        "bit_ops": sum(bits**2 for bits in bitwidths),
        "relative_weight_bytes": 0.5,
        "unquantized_weight_bytes": 1000,
        "relative_bit_ops": 0.5,
        "target_cost": None,
        "target": None,
        "accuracy": correct / num_samples,
        "loss": loss,
        "correct": correct,
        "correct_mask": bytes((num_samples + 7) // 8),
        "agreement": 1.0,
        "kl_divergence": None,
        "top5_correct": None,
        "correct_per_class": None,
        "samples_per_class": None,
        "engine": "reference",
        "device": "cpu",
        "duration_s": 0.25,
        "evaluated_at": START + timedelta(seconds=seconds),
        "qbw_version": "0.1.0",
        "torch_version": "2.13.0",
        "extras_json": None,
    }
    unknown = set(others) - set(RECORD_SCHEMA.names)
    assert not unknown, f"not columns: {unknown}"
    made |= others
    identity = ("checkpoint_id", "data_id", "config_id", "engine", "config_index")
    return {"record_id": hash_of({name: made[name] for name in identity})} | made


def simulate(
    *,
    experiment: str = "demo",
    epochs: int = 3,
    configs: int = 16,
    options: Sequence[int] = (2, 4, 8),
    layers: int = LAYERS,
    ceiling: float = 0.98,
    noise: float = 0.01,
    num_samples: int = 1000,
    seed: int = 0,
    **others: Any,
) -> list[dict[str, Any]]:
    """Return the rows of an experiment whose accuracy grows with bits and epochs; the range of bits is stratified."""
    rng = np.random.default_rng(seed)
    rows = []
    for epoch in range(epochs):
        for index in range(configs):
            lean = (index + 0.5) / configs  # from few bits to many
            weights = np.exp(4 * (lean - 0.5) * np.linspace(-1, 1, len(options)))
            bits = [int(b) for b in rng.choice(options, size=layers, p=weights / weights.sum())]
            average = sum(bits) / layers
            learned = ceiling * (1 - 0.5 * 0.6**epoch)
            accuracy = learned * (1 - 0.6 * np.exp(-0.9 * (average - 1.5))) + rng.normal(0, noise)
            correct = int(np.clip(round(accuracy * num_samples), 0, num_samples))
            rows.append(
                row(
                    bits,
                    correct,
                    experiment=experiment,
                    epoch=epoch,
                    num_samples=num_samples,
                    loss=float(-np.log(max(correct / num_samples, 1e-3))),
                    seconds=60.0 * epoch + index,
                    config_index=index,
                    **others,
                )
            )
    return rows


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return the Arrow table of `rows`, column by column, so that no value is dropped or cut."""
    columns = [pa.array([row[column.name] for row in rows], type=column.type) for column in RECORD_COLUMNS]
    return pa.Table.from_arrays(columns, schema=RECORD_SCHEMA)


def write_records(folder: Path, *parts: Sequence[Mapping[str, Any]]) -> Path:
    """Write the anchor and a part for each sequence of rows, as the store does, and return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ANCHOR_NAME).write_bytes(encode_part(table_of([]), KIND, "anchor"))
    for rows in parts:
        data = encode_part(table_of(rows), KIND, "part")
        name = hashlib.blake2b(data, digest_size=6).hexdigest()
        (folder / f"{name}-0-{len(rows)}.parquet").write_bytes(data)
    return folder
