"""Columns are declared once; Arrow schema, README table and axis labels say the same."""

import re

import pyarrow as pa
import pytest

from schemas.columns import Column, arrow_schema, by_name, markdown_table
from schemas.layers import LAYER_COLUMNS, LAYER_SCHEMA, model_id_of
from schemas.records import RECORD_COLUMNS, RECORD_SCHEMA, hash_of

TABLES = pytest.mark.parametrize(
    ("columns", "schema"),
    [(RECORD_COLUMNS, RECORD_SCHEMA), (LAYER_COLUMNS, LAYER_SCHEMA)],
    ids=["records", "layers"],
)

# As the design lists them, with the types it promises; a change here is a change of the schema's version.
DESIGNED = """
record_id string, experiment string, checkpoint string, checkpoint_id string, epoch int32, dataset string, split string,
data_id string, num_samples int64, model_id string, network_id string, config_id string, plan_id string, sampler string,
seed int64,
config_index int64, bitwidths list<element: int8>, bitwidth_options list<element: int8>, avg_bitwidth double,
weighted_avg_bitwidth double, weight_bytes int64, relative_weight_bytes double, unquantized_weight_bytes int64,
bit_ops int64, relative_bit_ops double, target_cost string, target double, accuracy double, loss double,
correct int64, correct_mask binary, agreement double, kl_divergence double, top5_correct int64,
correct_per_class list<element: int64>, samples_per_class list<element: int64>, engine string, device string,
duration_s double,
evaluated_at timestamp[us, tz=UTC], qbw_version string, torch_version string, extras_json string
"""


def test_the_record_has_the_designed_columns_in_order_with_their_types() -> None:
    found = ", ".join(f"{field.name} {field.type}" for field in RECORD_SCHEMA)
    assert found == " ".join(DESIGNED.split())


@TABLES
def test_the_arrow_schema_is_made_from_the_columns_and_everything_is_nullable(
    columns: tuple[Column, ...], schema: pa.Schema
) -> None:
    assert [(field.name, field.type, field.nullable) for field in schema] == [(c.name, c.type, True) for c in columns]
    assert schema.metadata is None


@TABLES
def test_no_column_has_a_type_that_readers_turn_into_something_else(
    columns: tuple[Column, ...], schema: pa.Schema
) -> None:
    assert len(columns) == len(schema)
    for column in columns:
        kind = column.type.value_type if pa.types.is_list(column.type) else column.type
        assert not pa.types.is_dictionary(kind), column
        assert not pa.types.is_nested(kind), column


@TABLES
def test_every_column_has_a_snake_case_name_and_a_meaning(columns: tuple[Column, ...], schema: pa.Schema) -> None:
    assert len(schema) > 0
    for column in columns:
        assert re.fullmatch(r"[a-z]+[0-9]?(_[a-z]+)*", column.name), column
        assert column.meaning, column
        assert "|" not in column.meaning + column.unit, f"{column}: would break the README's table"


@TABLES
def test_the_markdown_table_has_one_line_per_column_with_all_it_says(
    columns: tuple[Column, ...], schema: pa.Schema
) -> None:
    header, rule, *lines = markdown_table(columns).splitlines()
    assert header == "| group | column | type | unit | meaning |"
    assert rule == "|---|---|---|---|---|"
    assert len(lines) == len(schema)
    for column, line in zip(columns, lines, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells == [column.group, f"`{column.name}`", f"`{column.type}`", column.unit, column.meaning]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("avg_bitwidth", "Average bitwidth (bits)"),
        ("weighted_avg_bitwidth", "Weighted average bitwidth (bits)"),
        ("weight_bytes", "Weight size (bytes)"),
        ("bit_ops", "Bit operations"),
        ("relative_bit_ops", "Relative bit operations"),
        ("accuracy", "Accuracy"),
        ("loss", "Loss (nats)"),
        ("duration_s", "Duration s (s)"),
    ],
)
def test_axis_labels_carry_the_unit(name: str, label: str) -> None:
    assert by_name(RECORD_COLUMNS)[name].axis_label == label


def test_groups_are_the_designs_and_stand_together() -> None:
    groups = [column.group for column in RECORD_COLUMNS]
    assert list(dict.fromkeys(groups)) == ["identity", "configuration", "result", "provenance"]
    assert sorted(groups, key=["identity", "configuration", "result", "provenance"].index) == groups


def test_two_columns_of_one_name_are_refused() -> None:
    column = Column(name="loss", type=pa.float64(), meaning="mean cross-entropy")
    assert by_name([column]) == {"loss": column}
    with pytest.raises(ValueError, match=r"^two columns share a name$"):
        by_name([column, column])


def test_arrow_schema_of_no_columns_is_empty() -> None:
    assert arrow_schema([]) == pa.schema([])


def test_hash_of_is_blake2b_of_canonical_json() -> None:
    # Literal: a change would make every stored identity unfindable.
    assert hash_of({"b": [2, 4], "a": "ü", "c": None, "d": 0.1}) == "15e266221f4acd8bcfba0154e91b2056"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_hash_of_refuses_numbers_that_json_cannot_say(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        hash_of({"a": value})


def test_model_id_depends_on_every_column_and_on_the_order_of_layers() -> None:
    layer = {
        "layer_index": 0,
        "layer_name": "conv1",
        "kind": "conv2d",
        "weights": 144,
        "macs": 9216,
        "in_channels": 4,
        "out_channels": 5,
        "kernel": "3x3",
        "stride": "1x1",
    }
    assert {"model_id", *layer} == set(LAYER_SCHEMA.names)
    ids = {model_id_of([layer]), model_id_of([layer, layer]), model_id_of([])}
    for name, value in layer.items():
        ids.add(model_id_of([{**layer, name: value + 1 if isinstance(value, int) else value + "x"}]))
    assert len(ids) == 3 + len(layer)
    other = {**layer, "layer_name": "conv2"}
    assert model_id_of([layer, other]) != model_id_of([other, layer])
