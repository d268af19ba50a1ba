"""A table <-> the bytes of a part: what goes in comes out, and whatever has been damaged or is not ours is refused."""

import json
import random
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_examples import GOLDEN_ROW, golden, golden_rows, table_of, valid_tables

from schemas import layers, records
from schemas.check import SchemaError
from schemas.layers import LAYER_SCHEMA
from schemas.parts import PartError, decode_part, digest_of, encode_part
from schemas.records import RECORD_SCHEMA

DATA = Path(__file__).parent.parent / "data"


def encoded(table: pa.Table, compression: str = "none", **metadata: str) -> bytes:
    """Return a part as a careless or future writer would make it: nothing is checked, any tag can be other."""
    tags = {
        "qbw.kind": records.KIND,
        "qbw.schema_version": "1.0",
        "qbw.rows": str(table.num_rows),
        "qbw.digest": digest_of(table),
    }
    tags |= {f"qbw.{key}": value for key, value in metadata.items()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(tags), sink, compression=compression, write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def values_of(table: pa.Table) -> list[str]:
    """Return the rows as text, where NaN equals NaN and -0.0 differs from 0.0."""
    return [repr(row) for row in table.to_pylist()]


# --- there and back -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(valid_tables)
def test_what_goes_in_comes_out(table: pa.Table) -> None:
    back = decode_part(encode_part(table, records.KIND, "here"), records.KIND, "here")
    assert back.schema == RECORD_SCHEMA
    assert back.schema.metadata is None
    assert values_of(back) == values_of(table)


def test_the_golden_row_comes_back_with_every_value_in_its_column() -> None:
    values = list(GOLDEN_ROW.values())
    assert all(values.count(value) == 1 for value in values), "two columns share a value: a swap would go unseen"
    (back,) = decode_part(encode_part(table_of([GOLDEN_ROW]), records.KIND, "here"), records.KIND, "here").to_pylist()
    assert back == GOLDEN_ROW
    assert list(back) == list(GOLDEN_ROW) == RECORD_SCHEMA.names


def test_a_table_without_rows_makes_a_part() -> None:
    for kind, schema in ((records.KIND, RECORD_SCHEMA), (layers.KIND, LAYER_SCHEMA)):
        back = decode_part(encode_part(schema.empty_table(), kind, "here"), kind, "here")
        assert (back.num_rows, back.schema) == (0, schema)


def test_a_part_says_what_it_is_in_its_metadata() -> None:
    table = table_of(golden_rows(3))
    file = pq.ParquetFile(pa.BufferReader(encode_part(table, records.KIND, "here")))
    tags = {key.decode(): value.decode() for key, value in file.schema_arrow.metadata.items()}
    assert tags == {
        "qbw.kind": "records",
        "qbw.schema_version": "1.0",
        "qbw.rows": "3",
        "qbw.digest": digest_of(table),
    }


def test_a_part_of_schema_version_1_0_stays_readable() -> None:
    # Written once (tests/data/README.md) and never again: the file stands for all the records people have.
    table = decode_part((DATA / "records-1.0.parquet").read_bytes(), records.KIND, "records-1.0.parquet")
    assert table.schema.names == RECORD_SCHEMA.names
    full, bare = table.to_pylist()
    assert full == GOLDEN_ROW
    given_values = {"record_id": "second", "num_samples": 3, "correct": 1, "accuracy": 1 / 3, "bitwidths": [32, 1]}
    assert bare == dict.fromkeys(RECORD_SCHEMA.names) | given_values


# --- the digest -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(valid_tables, st.lists(st.integers(0, 6), max_size=4))
def test_slices_and_chunks_have_the_digest_of_the_whole(table: pa.Table, cuts: list[int]) -> None:
    ends = sorted({0, table.num_rows, *(min(cut, table.num_rows) for cut in cuts)})
    chunks = [table.slice(first, last - first) for first, last in pairwise(ends)]
    # Other rows before and after, so that no buffer starts or ends where its values do.
    around = pa.concat_tables([table_of(golden_rows(3)), *chunks, table_of(golden_rows(2))])
    sliced = around.slice(3, table.num_rows)
    expected = digest_of(table)
    assert digest_of(sliced) == expected
    assert digest_of(around.combine_chunks().slice(3, table.num_rows)) == expected
    assert digest_of(pa.table({name: sliced[name] for name in sliced.column_names})) == expected


def test_the_digest_of_the_golden_row_is_this() -> None:
    # Literal: parts that people have would all count as damaged if it changed.
    assert digest_of(table_of([GOLDEN_ROW])) == "08a490145ba8415bca11e9f6f7e6cb0b"


def other_values(value: Any) -> list[Any]:
    """Return values that differ from `value` in one place, of its own type."""
    if isinstance(value, str):
        return [value + "x", value[:-1], "", value.swapcase()]
    if isinstance(value, bytes):
        return [value + b"\0", value[:-1], b"", bytes([value[0] ^ 1]) + value[1:]]
    if isinstance(value, list):
        return [[*value, 1], value[:-1], [], [value[0] + 1, *value[1:]], value[::-1], [None, *value[1:]]]
    if isinstance(value, float):
        return [value + 2**-40, -value, float("nan"), float("inf")]
    if isinstance(value, datetime):
        return [value + timedelta(microseconds=1), datetime(1970, 1, 1, tzinfo=UTC)]
    assert isinstance(value, int)
    return [value + 1, -value, 0]


def test_the_digest_changes_with_any_value_any_null_and_the_order_of_rows() -> None:
    first, second = golden_rows(2)
    tables = [[first, second], [second, first], [first], [first, second, second], []]
    tables += [[first, {**second, name: other}] for name in second for other in [None, *other_values(second[name])]]
    different = {repr(rows): rows for rows in tables}
    assert len(different) > 4 * len(second)
    assert len({digest_of(table_of(rows)) for rows in different.values()}) == len(different)


def test_the_digest_tells_where_one_value_ends_and_the_next_begins() -> None:
    def digest(*values: Any, kind: pa.DataType) -> str:
        return digest_of(pa.table({"a": pa.array(values, kind)}))

    assert digest("ab", "c", kind=pa.string()) != digest("a", "bc", kind=pa.string())
    assert digest("", None, kind=pa.string()) != digest(None, "", kind=pa.string())
    assert digest([1, 2], [3], kind=pa.list_(pa.int8())) != digest([1], [2, 3], kind=pa.list_(pa.int8()))
    assert digest([], None, kind=pa.list_(pa.int8())) != digest(None, [], kind=pa.list_(pa.int8()))
    assert digest([None], kind=pa.list_(pa.int8())) != digest(None, kind=pa.list_(pa.int8()))
    assert digest(0, None, kind=pa.int64()) != digest(None, 0, kind=pa.int64())
    assert digest(0.0, kind=pa.float64()) != digest(-0.0, kind=pa.float64())


def test_the_digest_changes_with_a_columns_name_its_type_and_the_order_of_columns() -> None:
    column = pa.array([1, 2], pa.int32())
    tables = [
        pa.table({"a": column, "b": column}),
        pa.table({"b": column, "a": column}),
        pa.table({"a": column, "c": column}),
        pa.table({"a": column, "b": column.cast(pa.int64())}),
        pa.table({"a": column, "b": column.cast(pa.uint32())}),
        pa.table({"a": column}),
    ]
    assert len({digest_of(table) for table in tables}) == len(tables)


# --- damage ---------------------------------------------------------------------------------------------------------


def test_no_damaged_byte_ever_gives_other_values() -> None:
    """Flip sampled bytes of a part with three masks each: refused, or (padding, statistics) the very same values."""
    table = table_of(golden_rows(3))
    data = encode_part(table, records.KIND, "here")
    expected = values_of(table)
    outcomes: Counter[str] = Counter()
    sentences: list[str] = []
    for position in random.Random(0).sample(range(len(data)), 300):
        for mask in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= mask
            try:
                back = decode_part(bytes(damaged), records.KIND, "here")
            except (PartError, SchemaError) as error:
                sentences.append(str(error))
                outcomes["refused"] += 1
            else:
                assert values_of(back) == expected, f"byte {position} of {len(data)}, mask {mask:#x}"
                outcomes["harmless: the same values"] += 1
    print(f"{outcomes.total()} flipped bytes of a part: {dict(outcomes)}")
    assert outcomes["refused"] > 500
    assert [sentence for sentence in sentences if not re.fullmatch("here: .+", sentence)] == []


def test_every_truncation_is_refused() -> None:
    data = encode_part(table_of(golden_rows(3)), records.KIND, "here")
    lengths = [*range(12), *random.Random(0).sample(range(12, len(data)), 200), len(data) - 1]
    for length in lengths:
        with pytest.raises(PartError, match=r"^here: not a readable Parquet file \(.*\); move it away$"):
            decode_part(data[:length], records.KIND, "here")
    assert len(lengths) > 200


def test_a_value_that_was_changed_with_right_page_checksums_is_caught_by_the_digest() -> None:
    data = encoded(table_of([golden(loss=0.5)]), digest=digest_of(table_of([golden(loss=0.25)])))
    with pytest.raises(PartError) as error:
        decode_part(data, records.KIND, "part.parquet")
    assert str(error.value) == (
        "part.parquet: damaged (its values do not match its digest); move it away and evaluate again"
    )


def test_a_row_count_that_is_not_the_tables_is_caught() -> None:
    with pytest.raises(PartError, match=r"^here: damaged \(its values do not match its digest\)"):
        decode_part(encoded(table_of(golden_rows(2)), rows="3"), records.KIND, "here")


def test_a_file_that_claims_more_rows_than_it_has_bytes_is_not_read() -> None:
    rows = 2**17
    constant = {f.name: pa.array([GOLDEN_ROW[f.name]], f.type).take(pa.array([0] * rows)) for f in RECORD_SCHEMA}
    data = encoded(pa.table(constant, schema=RECORD_SCHEMA), compression="zstd")
    assert len(data) < rows
    with pytest.raises(PartError) as error:
        decode_part(data, records.KIND, "part.parquet")
    assert str(error.value) == f"part.parquet: claims {rows} rows in {len(data)} bytes; the file is damaged"


# --- files that are not ours, or not for us -------------------------------------------------------------------------


def test_a_foreign_parquet_file_is_refused() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), sink)
    with pytest.raises(PartError) as error:
        decode_part(sink.getvalue().to_pybytes(), records.KIND, "sales.parquet")
    assert str(error.value) == (
        "sales.parquet: expected a QBW part of kind 'records', found a Parquet file that QBW did not write; "
        "move it away"
    )


def test_a_part_of_another_kind_is_refused() -> None:
    data = encode_part(LAYER_SCHEMA.empty_table(), layers.KIND, "here")
    with pytest.raises(PartError) as error:
        decode_part(data, records.KIND, "x.parquet")
    assert str(error.value) == (
        "x.parquet: expected a QBW part of kind 'records', found a part of kind 'layers'; move it away"
    )


@pytest.mark.parametrize("data", [b"", b"PAR1", b"hello, world", b"PAR1" * 100, b"\0" * 1000])
def test_what_is_no_parquet_is_refused(data: bytes) -> None:
    with pytest.raises(PartError, match=r"^x: not a readable Parquet file \(.+\); move it away$"):
        decode_part(data, records.KIND, "x")


@pytest.mark.parametrize("version", ["2.0", "10.3", "", "one.0", "-1.0"])
def test_a_newer_major_version_is_refused(version: str) -> None:
    with pytest.raises(PartError) as error:
        decode_part(encoded(table_of(golden_rows(1)), schema_version=version), records.KIND, "x.parquet")
    assert str(error.value) == (
        f"x.parquet: schema version {version!r} is newer than 1.0, which this QBW reads; upgrade qbw"
    )


def test_of_a_newer_minor_version_the_known_columns_are_read() -> None:
    table = table_of(golden_rows(2))
    newer = table.append_column("top5_accuracy", pa.array([0.5, 1.0])).append_column("labels", pa.array(["a", None]))
    back = decode_part(encoded(newer, schema_version="1.7"), records.KIND, "here")
    assert back.schema == RECORD_SCHEMA
    assert back.to_pylist() == table.to_pylist()


def test_damage_to_a_part_of_a_newer_minor_version_is_caught_by_its_page_checksums() -> None:
    """Its digest is of columns that this version cannot name, so the pages' own checksums are all there is."""
    table = table_of([golden(device="unmistakable")])
    data = encoded(table.append_column("top5_accuracy", pa.array([0.5])), schema_version="1.7")
    at = data.index(b"unmistakable")
    damaged = data[:at] + b"U" + data[at + 1 :]
    with pytest.raises(PartError, match=r"^here: damaged \(.*CRC.*\); move it away and evaluate again$"):
        decode_part(damaged, records.KIND, "here")


def test_a_part_without_a_column_names_it() -> None:
    data = encoded(table_of(golden_rows(1)).drop_columns(["agreement"]))
    with pytest.raises(SchemaError, match=r"^here: column 'agreement' is missing; expected type double$"):
        decode_part(data, records.KIND, "here")


def test_rows_that_break_a_rule_are_neither_written_nor_read() -> None:
    bad = table_of([golden(correct=41)])
    sentence = r"^here: column 'correct', row 0: expected at most num_samples, found 41$"
    with pytest.raises(SchemaError, match=sentence):
        encode_part(bad, records.KIND, "here")
    with pytest.raises(SchemaError, match=sentence):
        decode_part(encoded(bad), records.KIND, "here")


def test_a_table_of_another_schema_is_not_written() -> None:
    with pytest.raises(SchemaError, match=r"^here: column 'record_id' is missing; expected type string$"):
        encode_part(pa.table({"a": [1]}), records.KIND, "here")


def test_the_extras_of_the_golden_row_are_json() -> None:
    assert json.loads(GOLDEN_ROW["extras_json"]) == {"note": "ü"}
