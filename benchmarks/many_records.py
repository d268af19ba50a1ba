"""Records as a long campaign leaves them, made fast: real schema, real parts, invented accuracies."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from schemas.parts import ANCHOR_NAME, encode_part
from schemas.records import KIND, RECORD_SCHEMA

_LAYERS, _OPTIONS, _SAMPLES = 20, (2, 4, 8), 1000
_START_US = 1_767_323_045_000_000  # 2 January 2026


def write_campaign(folder: Path, *, experiments: int, epochs: int, configs: int, rows_a_part: int = 10_000) -> int:
    """Write the anchor and parts for each epoch of each experiment, and return their number of rows.

    A network of 20 layers at 2, 4 or 8 bits, 1,000 validation samples with their masks; every epoch of an experiment
    has the same configurations, whose average bitwidth is spread evenly.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ANCHOR_NAME).write_bytes(encode_part(RECORD_SCHEMA.empty_table(), KIND, ANCHOR_NAME))
    rng = np.random.default_rng(0)
    for experiment in range(experiments):
        bits = _stratified_bits(rng, configs)
        config_ids = _hex_text(rng, configs, 16)
        for epoch in range(epochs):
            for first in range(0, configs, rows_a_part):
                chosen = slice(first, first + rows_a_part)
                table = _part(rng, f"campaign-{experiment:02d}", epoch, first, bits[chosen], config_ids[chosen])
                name = f"{_digest(experiment, epoch)[:12]}-{_digest('plan')[:8]}-{first:06d}.parquet"
                (folder / name).write_bytes(encode_part(table, KIND, name))
    return experiments * epochs * configs


def _part(
    rng: np.random.Generator, experiment: str, epoch: int, first: int, bits: np.ndarray, config_ids: pa.Array
) -> pa.Table:
    count = len(bits)
    average = bits.sum(axis=1) / _LAYERS
    share = 0.98 * (1 - 0.5 * 0.9**epoch) * (1 - 0.6 * np.exp(-0.9 * (average - 1.5)))
    share = np.clip(share + rng.normal(0, 0.01, count), 0, 1)
    right = rng.integers(0, 256, (count, _SAMPLES), dtype=np.uint8) < (256 * share[:, None]).astype(np.int64)
    correct = right.sum(axis=1)
    weights = np.linspace(1, 2, _LAYERS)
    mask_bytes = (_SAMPLES + 7) // 8
    same = {
        "experiment": experiment,
        "checkpoint": f"epoch_{epoch + 1:03d}.pt",
        "checkpoint_id": _digest(experiment, epoch),
        "epoch": epoch,
        "dataset": "digits",
        "split": "validation",
        "data_id": _digest("data"),
        "num_samples": _SAMPLES,
        "model_id": _digest("model")[:32],
        "network_id": _digest("network")[:32],
        "plan_id": _digest("plan")[:32],
        "sampler": "stratified/2",
        "seed": 0,
        "bitwidth_options": list(_OPTIONS),
        "unquantized_weight_bytes": 12_345,
        "target_cost": "avg_bitwidth",
        "engine": "incremental",
        "device": "cpu",
        "duration_s": 0.25,
        "qbw_version": "0.1.0",
        "torch_version": "2.13.0",
        "extras_json": "{}",
    }
    own = {
        "record_id": _hex_text(rng, count, 16),
        "config_id": config_ids,
        "config_index": first + np.arange(count),
        "bitwidths": _lists(bits),
        "avg_bitwidth": average,
        "weighted_avg_bitwidth": bits @ weights / weights.sum(),
        "weight_bytes": 100 * bits.sum(axis=1),
        "relative_weight_bytes": average / _OPTIONS[-1],
        "bit_ops": (bits.astype(np.int64) ** 2).sum(axis=1),
        "relative_bit_ops": (bits.astype(np.int64) ** 2).mean(axis=1) / _OPTIONS[-1] ** 2,
        "target": average,
        "accuracy": correct / _SAMPLES,
        "loss": -np.log(np.maximum(correct / _SAMPLES, 1e-3)) + rng.random(count) / 100,
        "correct": correct,
        "correct_mask": _binary(np.packbits(right, axis=1, bitorder="little"), mask_bytes),
        "agreement": rng.integers(0, _SAMPLES, count) / _SAMPLES,
        "kl_divergence": rng.random(count),
        "evaluated_at": _START_US + 60_000_000 * epoch + rng.integers(0, 50_000_000, count),
    }
    columns = []
    for field in RECORD_SCHEMA:
        if field.name in own:
            value = own[field.name]
            columns.append(value if isinstance(value, pa.Array) else pa.array(value).cast(field.type))
        elif field.name in same:
            columns.append(pa.repeat(pa.scalar(same[field.name], field.type), count))
        else:
            columns.append(pa.nulls(count, field.type))
    return pa.table(columns, schema=RECORD_SCHEMA)


def _stratified_bits(rng: np.random.Generator, configs: int) -> np.ndarray:
    """Return bits of configurations whose average is spread over the range: (configs, layers)."""
    lean = (np.arange(configs) + 0.5) / configs
    weights = np.exp(6 * (lean[:, None] - 0.5) * np.linspace(-1, 1, len(_OPTIONS)))
    edges = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)  # (configs, options)
    drawn = rng.random((configs, _LAYERS, 1))
    place = (drawn > edges[:, None, :-1]).sum(axis=2)
    return np.asarray(np.array(_OPTIONS, dtype=np.int8)[place])


def _hex_text(rng: np.random.Generator, count: int, size: int) -> pa.Array:
    """Return `count` texts of the hex digits of `size` random bytes."""
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)[rng.integers(0, 16, (count, 2 * size))]
    return _binary(np.ascontiguousarray(digits), 2 * size).cast(pa.string())


def _binary(values: np.ndarray, size: int) -> pa.Array:
    return pa.Array.from_buffers(pa.binary(size), len(values), [None, pa.py_buffer(values)]).cast(pa.binary())


def _lists(bits: np.ndarray) -> pa.Array:
    offsets = pa.array(np.arange(0, bits.size + 1, bits.shape[1]), pa.int32())
    values = pa.array(bits.reshape(-1), pa.int8())
    return pa.ListArray.from_arrays(offsets, values, type=RECORD_SCHEMA.field("bitwidths").type)


def _digest(*words: object) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()
