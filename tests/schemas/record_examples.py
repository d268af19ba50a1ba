"""Records to test with: a golden row, tables from rows, and a hypothesis strategy for valid ones."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from schemas.records import RECORD_SCHEMA

GOLDEN_ROW: Mapping[str, Any] = {
    "record_id": "0123456789abcdef0123456789abcdef",
    "experiment": "golden experiment",
    "checkpoint": "epoch_007.pt",
    "checkpoint_id": "fedcba9876543210" * 4,
    "epoch": 6,
    "dataset": "golden data",
    "split": "validation",
    "data_id": "11112222333344445555666677778888",
    "num_samples": 40,
    "model_id": "9999aaaabbbbccccddddeeeeffff0000",
    "network_id": "8888aaaabbbbccccddddeeeeffff0000",
    "config_id": "12121212343434345656565678787878",
    "plan_id": "abababab00000000cdcdcdcd11111111",
    "sampler": "iid/1",
    "seed": 9_007_199_254_740_993,  # 2**53 + 1, which no float can hold
    "config_index": 11,
    "bitwidths": [2, 4, 8, 32],
    "bitwidth_options": [2, 4, 8, 16],
    "avg_bitwidth": 11.5,
    "weighted_avg_bitwidth": 7.25,
    "weight_bytes": 1_234_567_890_123,
    "relative_weight_bytes": 0.40625,
    "unquantized_weight_bytes": 76_543_210,
    "bit_ops": 987_654_321_098_765,
    "relative_bit_ops": 0.3125,
    "target_cost": "avg_bitwidth",
    "target": 11.375,
    "accuracy": 0.775,
    "loss": 0.625,
    "correct": 31,
    "correct_mask": b"\xfe\xff\x7f\xf1\x0f",
    "agreement": 0.9375,
    "kl_divergence": 0.015625,
    "top5_correct": 39,
    "correct_per_class": [1, 30],
    "samples_per_class": [9, 31],
    "engine": "reference",
    "device": "cpu",
    "duration_s": 1.5,
    "evaluated_at": datetime(2026, 2, 3, 4, 5, 6, 789_012, tzinfo=UTC),
    "qbw_version": "0.1.0",
    "torch_version": "2.13.0",
    "extras_json": '{"note": "ü"}',
}
"""One record with another value in every column."""


def golden(**changes: object) -> dict[str, Any]:
    """Return the golden row with some of its values replaced."""
    assert changes.keys() <= GOLDEN_ROW.keys()
    return {**GOLDEN_ROW, **changes}


def table_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema = RECORD_SCHEMA) -> pa.Table:
    """Return the rows as a table, column by column, so that nothing is left out or rounded in silence."""
    return pa.table([pa.array([row[f.name] for row in rows], f.type) for f in schema], schema=schema)


def golden_rows(count: int) -> list[dict[str, Any]]:
    """Return rows that differ as the rows of one part do."""
    return [
        golden(
            record_id=f"{index:032x}",
            config_index=index,
            bitwidths=[2 + (index + layer) % 7 for layer in range(4)],
            correct=index % 41,
            accuracy=(index % 41) / 40,
            loss=1 / (index + 1),
            correct_mask=bytes([index % 256, 1, 2, 3, 4]),
        )
        for index in range(count)
    ]


# The values that rules of `schemas.check` tie together or that must be there; everything else may be null.
_TIED = ("record_id", "num_samples", "correct", "accuracy", "bitwidths", "top5_correct")
_text = st.text(st.characters(codec="utf-8"), max_size=8)
_bits = st.lists(st.integers(1, 32), min_size=1, max_size=5)


def _values_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_string(kind):
        return _text
    if pa.types.is_binary(kind):
        return st.binary(max_size=5)
    if pa.types.is_floating(kind):
        return st.floats()
    if pa.types.is_timestamp(kind):
        return st.datetimes(min_value=datetime(1900, 1, 1), timezones=st.just(UTC))
    if pa.types.is_list(kind):
        return _bits
    assert pa.types.is_integer(kind)
    return st.integers(-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1)


@st.composite
def valid_rows(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a record that keeps every rule, with nulls, NaN, infinities and extremes where they are allowed."""
    row = {f.name: draw(st.none() | _values_of(f.type)) for f in RECORD_SCHEMA if f.name not in _TIED}
    samples = draw(st.integers(1, 2**53))
    correct = draw(st.integers(0, samples))
    row |= {"num_samples": samples, "correct": correct, "accuracy": correct / samples}
    row["top5_correct"] = draw(st.none() | st.integers(0, samples))
    return row | {"record_id": draw(_text), "bitwidths": draw(_bits)}


valid_tables = st.lists(valid_rows(), max_size=6).map(table_of)
