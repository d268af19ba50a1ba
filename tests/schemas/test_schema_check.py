"""A table that breaks its schema or a rule: the whole sentence, with place, column, expected, found, first bad row."""

from typing import Any

import pyarrow as pa
import pytest
from record_examples import golden, golden_rows, table_of

from schemas.check import SchemaError, check_columns, check_records
from schemas.records import RECORD_SCHEMA

TWO_COLUMNS = pa.schema([pa.field("epoch", pa.int32()), pa.field("loss", pa.float64())])


def test_a_table_of_the_schema_passes() -> None:
    check_columns(TWO_COLUMNS.empty_table(), TWO_COLUMNS, "here")
    check_columns(table_of(golden_rows(3)), RECORD_SCHEMA, "here")
    check_records(table_of(golden_rows(3)), "here")
    check_records(RECORD_SCHEMA.empty_table(), "here")


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"epoch": pa.array([1], pa.int32())}, "here: column 'loss' is missing; expected type double"),
        (
            {"epoch": pa.array([1], pa.int32()), "loss": [0.5], "los": [0.5]},
            "here: column 'los' is not in the schema; did you mean 'loss'?",
        ),
        (
            {"epoch": pa.array([1], pa.int32()), "loss": [0.5], "zzz": [0.5]},
            "here: column 'zzz' is not in the schema",
        ),
        ({"epoch": pa.array([1], pa.int64()), "loss": [0.5]}, "here: column 'epoch' has type int64; expected int32"),
        (
            {"loss": [0.5], "epoch": pa.array([1], pa.int32())},
            "here: columns stand in the order ['loss', 'epoch']; expected ['epoch', 'loss']",
        ),
    ],
    ids=["missing", "unknown, close", "unknown", "type", "order"],
)
def test_check_columns_names_place_column_expected_and_found(columns: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SchemaError) as error:
        check_columns(pa.table(columns), TWO_COLUMNS, "here")
    assert str(error.value) == sentence


def test_check_columns_refuses_a_column_that_is_there_twice() -> None:
    table = TWO_COLUMNS.empty_table()
    twice = table.append_column(table.schema.field("loss"), table["loss"])
    with pytest.raises(SchemaError) as error:
        check_columns(twice, TWO_COLUMNS, "here")
    assert str(error.value) == "here: column 'loss' is there more than once; expected it once"


def test_one_sample_and_one_layer_of_one_bit_are_enough() -> None:
    for correct, top5 in ((0, 0), (1, 1), (0, None)):
        check_records(
            table_of(
                [golden(num_samples=1, correct=correct, accuracy=float(correct), bitwidths=[1], top5_correct=top5)]
            ),
            "here",
        )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"num_samples": 0, "correct": 0, "accuracy": 0.0},
            "here: column 'num_samples', row 2: expected a positive number, found 0",
        ),
        ({"num_samples": None}, "here: column 'num_samples', row 2: expected a positive number, found None"),
        ({"correct": -1}, "here: column 'correct', row 2: expected 0 or more, found -1"),
        ({"correct": None}, "here: column 'correct', row 2: expected 0 or more, found None"),
        ({"correct": 41}, "here: column 'correct', row 2: expected at most num_samples, found 41"),
        ({"accuracy": 0.5}, "here: column 'accuracy', row 2: expected correct / num_samples, found 0.5"),
        ({"accuracy": float("nan")}, "here: column 'accuracy', row 2: expected correct / num_samples, found nan"),
        ({"accuracy": None}, "here: column 'accuracy', row 2: expected correct / num_samples, found None"),
        ({"top5_correct": -1}, "here: column 'top5_correct', row 2: expected 0 or more, found -1"),
        ({"top5_correct": 41}, "here: column 'top5_correct', row 2: expected at most num_samples, found 41"),
        ({"bitwidths": []}, "here: column 'bitwidths', row 2: expected at least one layer, found []"),
        ({"bitwidths": None}, "here: column 'bitwidths', row 2: expected at least one layer, found None"),
        ({"record_id": None}, "here: column 'record_id', row 2: expected a value, found None"),
        ({"bitwidths": [0, 8]}, "here: column 'bitwidths', row 2: expected 1 to 32 bits in every layer, found [0, 8]"),
        (
            {"bitwidths": [8, 33]},
            "here: column 'bitwidths', row 2: expected 1 to 32 bits in every layer, found [8, 33]",
        ),
        (
            {"bitwidths": [8, None, 4]},
            "here: column 'bitwidths', row 2: expected 1 to 32 bits in every layer, found [8, None, 4]",
        ),
    ],
)
def test_check_records_names_the_rule_and_the_first_row_that_breaks_it(changes: dict[str, Any], sentence: str) -> None:
    good = golden_rows(2)
    table = table_of([*good, golden(**changes), good[0], golden(**changes)])
    halves = pa.concat_tables([table.slice(0, 1), table.slice(1)])  # in chunks: rows count through
    for bad in (table, halves):
        with pytest.raises(SchemaError) as error:
            check_records(bad, "here")
        assert str(error.value) == sentence
