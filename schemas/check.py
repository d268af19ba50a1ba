"""A table against its schema and its invariants: the error names column, expected, found and the first bad row."""

import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import QBWError, did_you_mean


class SchemaError(QBWError):
    """A table is not what the schema says."""


def check_columns(table: pa.Table, schema: pa.Schema, where: str) -> None:
    """Check that `table` has exactly the columns of `schema`, in order, with their types.

    Raises:
        SchemaError: naming the place, the column, what was expected and what was found.
    """
    for name in schema.names:
        if name not in table.column_names:
            raise SchemaError(f"{where}: column {name!r} is missing; expected type {schema.field(name).type}")
    for position, name in enumerate(table.column_names):
        if name not in schema.names:
            raise SchemaError(f"{where}: column {name!r} is not in the schema{did_you_mean(name, schema.names)}")
        if name in table.column_names[:position]:
            raise SchemaError(f"{where}: column {name!r} is there more than once; expected it once")
    for field in schema:
        found = table.schema.field(field.name).type
        if found != field.type:
            raise SchemaError(f"{where}: column {field.name!r} has type {found}; expected {field.type}")
    if table.column_names != schema.names:
        raise SchemaError(f"{where}: columns stand in the order {table.column_names}; expected {schema.names}")


def check_records(table: pa.Table, where: str) -> None:
    """Check the invariants of a table of records (see `schemas.records`), vectorized.

    Raises:
        SchemaError: naming the place, the column, the rule and the first row that breaks it.
    """
    check_counts(table, where)
    count, correct = table["num_samples"], table["correct"]
    ratio = pc.divide(correct.cast(pa.float64()), count.cast(pa.float64()))
    _require(pc.equal(table["accuracy"], ratio), "accuracy", "correct / num_samples", table, where)
    top5 = table["top5_correct"]
    _require(pc.or_kleene(pc.is_null(top5), pc.less_equal(0, top5)), "top5_correct", "0 or more", table, where)
    within = pc.or_kleene(pc.is_null(top5), pc.less_equal(top5, count))
    _require(within, "top5_correct", "at most num_samples", table, where)
    _require(pc.greater(pc.list_value_length(table["bitwidths"]), 0), "bitwidths", "at least one layer", table, where)
    _require(pc.is_valid(table["record_id"]), "record_id", "a value", table, where)
    bits, rows = pc.list_flatten(table["bitwidths"]), pc.list_parent_indices(table["bitwidths"])
    allowed = pc.and_(pc.less_equal(1, bits), pc.less_equal(bits, 32))
    _require(allowed, "bitwidths", "1 to 32 bits in every layer", table, where, rows)


def check_counts(table: pa.Table, where: str) -> None:
    """Check those invariants of records that counting needs: `num_samples` and `correct`.

    Raises:
        SchemaError: as `check_records`.
    """
    count, correct = table["num_samples"], table["correct"]
    _require(pc.greater(count, 0), "num_samples", "a positive number", table, where)
    _require(pc.less_equal(0, correct), "correct", "0 or more", table, where)
    _require(pc.less_equal(correct, count), "correct", "at most num_samples", table, where)


def _require(
    holds: pa.ChunkedArray,
    column: str,
    rule: str,
    table: pa.Table,
    where: str,
    rows: pa.ChunkedArray | None = None,
) -> None:
    """Raise where `holds` is False or null; `rows` says which row each of its values is about, its own if None."""
    first_bad = pc.index(pc.fill_null(holds, False), False).as_py()
    if first_bad >= 0:
        row = first_bad if rows is None else rows[first_bad].as_py()
        found = table[column][row].as_py()
        raise SchemaError(f"{where}: column {column!r}, row {row}: expected {rule}, found {found!r}")
