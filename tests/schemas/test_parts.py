"""A table <-> the bytes of a part: what goes in comes out, and whatever has been damaged or is not ours is refused."""

import hashlib
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
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from record_examples import GOLDEN_ROW, golden, golden_rows, table_of, valid_tables

from schemas import layers, records
from schemas import parts as parts_module
from schemas.check import SchemaError
from schemas.layers import LAYER_SCHEMA
from schemas.parts import (
    NewerPartError,
    PartError,
    decode_part,
    digest_of,
    encode_part,
    lacks_columns,
    open_part,
    part_paths,
)
from schemas.records import RECORD_SCHEMA

DATA = Path(__file__).parent.parent / "data"


def encoded(table: pa.Table, compression: str = "none", **metadata: str) -> bytes:
    """Return a part as a careless or future writer would make it: nothing is checked, any tag can be other."""
    tags = {
        "qbw.kind": records.KIND,
        "qbw.schema_version": "1.1",
        "qbw.rows": str(table.num_rows),
        "qbw.digest": metadata.get("digest") or digest_of(table),
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
    data = encode_part(table, records.KIND, "here")
    metadata = pq.read_metadata(pa.BufferReader(data)).metadata
    tags = {key.decode(): value.decode() for key, value in metadata.items() if key.startswith(b"qbw.")}
    of_values, of_bytes = tags.pop("qbw.digest").split("-xxh3_128:")
    assert tags == {"qbw.kind": "records", "qbw.schema_version": "1.1", "qbw.rows": "3"}
    assert of_values == digest_of(table)
    assert data.count(of_bytes.encode()) == 1
    blank = data.replace(of_bytes.encode(), b"0" * 32)
    assert of_bytes == xxhash.xxh3_128_hexdigest(blank)


def test_a_part_is_compressed_and_its_pages_carry_checksums_for_readers_that_know_nothing_of_us() -> None:
    data = encode_part(table_of(golden_rows(3)), records.KIND, "here")
    column = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(RECORD_SCHEMA.get_field_index("device"))
    assert column.compression == "ZSTD"
    end = column.dictionary_page_offset + column.total_compressed_size
    damaged = pa.BufferReader(data[: end - 1] + bytes([data[end - 1] ^ 1]) + data[end:])
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.ParquetFile(damaged, page_checksum_verification=True).read(["device"])


def test_a_part_that_does_not_read_back_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    write = pq.write_table

    def write_wrong(table: pa.Table, *arguments: Any, **keywords: Any) -> None:
        wrong = table_of([golden(loss=0.25)]).replace_schema_metadata(table.schema.metadata)
        write(wrong, *arguments, **keywords)

    monkeypatch.setattr(parts_module.pq, "write_table", write_wrong)
    with pytest.raises(PartError) as error:
        encode_part(table_of([golden(loss=0.5)]), records.KIND, "here")
    assert str(error.value) == "here: damaged (its values do not match its digest); move it away and evaluate again"


ADDED_IN_1_1 = (
    "relative_weight_bytes",
    "unquantized_weight_bytes",
    "target_cost",
    "target",
    "kl_divergence",
    "top5_correct",
    "correct_per_class",
    "samples_per_class",
)


@pytest.mark.parametrize(("version", "lacking"), [("1.0", ADDED_IN_1_1), ("1.1", ())])
def test_a_part_of_every_schema_version_stays_readable(version: str, lacking: tuple[str, ...]) -> None:
    # Written once (tests/data/README.md) and never again: the files stand for all the records people have.
    name = f"records-{version}.parquet"
    table = decode_part((DATA / name).read_bytes(), records.KIND, name)
    assert table.schema.names == RECORD_SCHEMA.names
    full, bare = table.to_pylist()
    assert full == {**GOLDEN_ROW, **dict.fromkeys(lacking)}
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


def test_a_table_in_two_chunks_has_the_digest_of_the_whole() -> None:
    table = table_of(golden_rows(3))
    halves = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert halves["loss"].num_chunks == 2
    assert digest_of(halves) == digest_of(table)


def test_the_digest_of_the_golden_row_is_this() -> None:
    # Literal: parts that people have would all count as damaged if it changed.
    table = table_of([GOLDEN_ROW])
    assert digest_of(table.drop_columns(list(ADDED_IN_1_1))) == "08a490145ba8415bca11e9f6f7e6cb0b"
    assert digest_of(table) == "93e55b00bf975c5a0271f5a42f428218"


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


@pytest.mark.parametrize("texts", [0, 2])
def test_the_digest_of_texts_without_a_byte_is_of_their_number_and_lengths(texts: int) -> None:
    plainly = f"a:string:{texts};".encode() + bytes(texts) + bytes(8 * texts)  # none is null, each has length 0
    expected = hashlib.blake2b(plainly, digest_size=16).hexdigest()
    for array in (pa.array([""] * texts, pa.string()), pa.array(["x", *[""] * texts])[1:]):
        assert digest_of(pa.table({"a": array})) == expected


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


def test_every_damaged_byte_is_found() -> None:
    """Flip sampled bytes of a part with three masks each, and every byte of its digests."""
    data = encode_part(table_of(golden_rows(3)), records.KIND, "here")
    tag = data.index(b"-", data.index(b"qbw.digest"))
    sentences: Counter[str] = Counter()
    for position in [*random.Random(0).sample(range(len(data)), 300), *range(tag - 50, tag + 50)]:
        for mask in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= mask
            with pytest.raises(PartError, match=r"^here: .+") as error:
                decode_part(bytes(damaged), records.KIND, "here")
            sentences[str(error.value)] += 1
    assert sentences.total() == 3 * 400
    assert sentences["here: damaged (its bytes do not match their digest); move it away and evaluate again"] > 500


def test_damage_of_a_part_that_has_no_digest_of_its_bytes_never_gives_other_values() -> None:
    """Parts from before there was one: refused, or (padding, statistics) the very same values."""
    table = table_of(golden_rows(3))
    data = encoded(table)
    expected = values_of(table)
    outcomes: Counter[str] = Counter()
    for position in random.Random(0).sample(range(len(data)), 200):
        for mask in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= mask
            try:
                back = decode_part(bytes(damaged), records.KIND, "here")
            except (PartError, SchemaError) as error:
                outcomes["refused" if str(error).startswith("here: ") else "a sentence about nothing"] += 1
            else:
                assert values_of(back) == expected, f"byte {position} of {len(data)}, mask {mask:#x}"
                outcomes["harmless: the same values"] += 1
    assert outcomes["refused"] > 300
    assert outcomes["a sentence about nothing"] == 0
    assert outcomes["harmless: the same values"] > 0, "or the other digest would be for nothing"


@pytest.mark.parametrize(
    "of_bytes", ["", "0" * 32, "0" * 31, "f" * 32, "-", "xxh3_128:", f"xxh3_128:{'0' * 32}", f"xxh3_64:{'0' * 16}"]
)
def test_a_digest_of_other_bytes_is_caught(of_bytes: str) -> None:
    table = table_of(golden_rows(1))
    with pytest.raises(PartError) as error:
        decode_part(encoded(table, digest=f"{digest_of(table)}-{of_bytes}"), records.KIND, "here")
    assert str(error.value) == ("here: damaged (its bytes do not match their digest); move it away and evaluate again")


def test_every_truncation_is_refused() -> None:
    data = encode_part(table_of(golden_rows(3)), records.KIND, "here")
    lengths = [*range(12), *random.Random(0).sample(range(12, len(data)), 200), len(data) - 1]
    for length in lengths:
        with pytest.raises(PartError, match=r"^here: not a readable Parquet file \(.*\); move it away$"):
            decode_part(data[:length], records.KIND, "here")
    assert len(lengths) > 200


# --- a part of which not everything is read -------------------------------------------------------------------------


def resealed(data: bytes) -> bytes:
    """Return a part with a right digest of its bytes, whatever they have become."""
    place = data.index(b"-", data.index(b"qbw.digest")) + 1
    blank = data[:place] + b"0" * 32 + data[place + 32 :]
    seal = hashlib.blake2b(blank, digest_size=16).hexdigest().encode()
    return data[:place] + seal + data[place + 32 :]


def test_a_digest_of_bytes_by_blake2b_holds_as_well_and_by_no_other_name() -> None:
    """Parts from before there was XXH3."""
    table = table_of(golden_rows(3))
    data = resealed(encoded(table, digest=f"{digest_of(table)}-{'0' * 32}"))
    assert decode_part(data, records.KIND, "here").equals(table)
    assert open_part(data, records.KIND, "here").ranges(["epoch"]) != {}
    for position in random.Random(2).sample(range(len(data)), 100):
        damaged = bytearray(data)
        damaged[position] ^= 0x04
        with pytest.raises(PartError, match=r"^here: .+"):
            open_part(bytes(damaged), records.KIND, "here")
    seal = xxhash.xxh3_128_hexdigest(encoded(table, digest=f"{digest_of(table)}-{'0' * 32}"))
    with pytest.raises(PartError, match=r"^here: damaged \(its bytes do not match their digest\)"):
        open_part(encoded(table, digest=f"{digest_of(table)}-{seal}"), records.KIND, "here")


def test_columns_that_are_read_alone_are_those_of_the_whole() -> None:
    data = encode_part(table_of(golden_rows(3)), records.KIND, "here")
    part = open_part(data, records.KIND, "here")
    assert part.num_rows == 3
    columns = ["loss", "record_id", "bitwidths"]
    assert part.read(columns).equals(decode_part(data, records.KIND, "here").select(columns))


def test_ranges_are_those_of_the_values_and_of_columns_that_all_have_one_or_none() -> None:
    rows = [golden(loss=0.25, epoch=3, network_id=None, model_id=None), golden(loss=0.5, epoch=3, network_id=None)]
    part = open_part(encode_part(table_of(rows), records.KIND, "here"), records.KIND, "here")
    assert part.ranges(["loss", "epoch", "network_id", "model_id", "evaluated_at"]) == {
        "loss": (0.25, 0.5),
        "epoch": (3, 3),
        "network_id": (None, None),
        "evaluated_at": (GOLDEN_ROW["evaluated_at"],) * 2,
    }


def test_of_a_part_in_several_groups_of_rows_no_range_is_told() -> None:
    table = table_of(golden_rows(3))
    tags = {"kind": records.KIND, "schema_version": "1.1", "rows": "3", "digest": f"{digest_of(table)}-{'0' * 32}"}
    sink = pa.BufferOutputStream()
    tagged = table.replace_schema_metadata({f"qbw.{key}": value for key, value in tags.items()})
    pq.write_table(tagged, sink, row_group_size=1, write_page_checksum=True)
    part = open_part(resealed(sink.getvalue().to_pybytes()), records.KIND, "here")
    assert part.ranges(["epoch"]) == {}
    assert part.read(["loss"]).equals(table.select(["loss"]))


def test_every_damaged_byte_is_found_without_reading_it() -> None:
    data = encode_part(table_of(golden_rows(3)), records.KIND, "here")
    for position in random.Random(1).sample(range(len(data)), 200):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(PartError, match=r"^here: .+"):
            open_part(bytes(damaged), records.KIND, "here")


@pytest.mark.parametrize("how", ["without a digest of its bytes", "of a newer minor version", "with another row count"])
def test_a_part_that_nobody_vouches_for_is_decoded_whole(how: str) -> None:
    table = table_of(golden_rows(2))
    seal, newer = f"{digest_of(table)}-{'0' * 32}", table.append_column("more", pa.array([1, 2]))
    data = {
        "without a digest of its bytes": lambda: encoded(table),
        "of a newer minor version": lambda: resealed(
            encoded(newer, schema_version="1.9", digest=f"{digest_of(newer)}-{'0' * 32}")
        ),
        "with another row count": lambda: resealed(encoded(table, digest=seal, rows="3")),
    }[how]()
    if how == "with another row count":
        with pytest.raises(PartError, match=r"^here: damaged \(its values do not match its digest\)"):
            open_part(data, records.KIND, "here")
        return
    part = open_part(data, records.KIND, "here")
    assert (part.num_rows, part.ranges(["epoch"])) == (2, {})
    assert part.read(["loss"]).equals(table.select(["loss"]))


def test_a_page_that_lies_under_a_right_digest_of_bytes_is_a_sentence() -> None:
    table = table_of([golden(record_id="q" * 32)])
    data = encoded(table, digest=f"{digest_of(table)}-{'0' * 32}")
    page = data.index(b"q" * 32)
    lying = resealed(data[:page] + b"r" + data[page + 1 :])
    with pytest.raises(PartError, match=r"^here: damaged \(.*CRC checksum.*\); move it away and evaluate again$"):
        open_part(lying, records.KIND, "here").read(["record_id"])


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


def same_row(times: int) -> bytes:
    """Return a part that holds the golden row so many times, in few bytes."""
    constant = {f.name: pa.array([GOLDEN_ROW[f.name]], f.type).take(pa.array([0] * times)) for f in RECORD_SCHEMA}
    return encoded(pa.table(constant, schema=RECORD_SCHEMA), compression="zstd")


def test_a_file_that_claims_more_rows_than_it_has_bytes_is_not_read() -> None:
    rows = 2**17
    data = same_row(rows)
    assert len(data) < rows
    with pytest.raises(PartError) as error:
        decode_part(data, records.KIND, "part.parquet")
    assert str(error.value) == f"part.parquet: claims {rows} rows in {len(data)} bytes; the file is damaged"


def test_a_file_of_one_byte_a_row_is_read() -> None:
    rows = 2**15
    data = same_row(rows)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    filled = data[:footer] + bytes(rows - len(data)) + data[footer:]  # where no column's bytes lie
    assert len(filled) == rows
    assert decode_part(filled, records.KIND, "part.parquet").num_rows == rows


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


@pytest.mark.parametrize(
    ("said", "told"), [("", "OSError"), ("one line\nand another", "one line"), ("long " * 100, "long " * 40)]
)
def test_of_what_arrow_says_the_beginning_of_the_first_line_is_told(
    said: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_keywords: object) -> None:
        raise OSError(said)

    monkeypatch.setattr(parts_module.pq, "ParquetFile", refuse)
    with pytest.raises(PartError) as error:
        decode_part(b"", records.KIND, "here")
    assert str(error.value) == f"here: not a readable Parquet file ({told}); move it away"


@pytest.mark.parametrize("version", ["2.0", "10.3", "", "one.0", "-1.0"])
def test_a_newer_major_version_is_refused(version: str) -> None:
    with pytest.raises(PartError) as error:
        decode_part(encoded(table_of(golden_rows(1)), schema_version=version), records.KIND, "x.parquet")
    assert str(error.value) == (
        f"x.parquet: schema version {version!r} is newer than 1.1, which this QBW reads; upgrade qbw"
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


# --- other schema versions ------------------------------------------------------------------------------------------


@pytest.fixture
def version_1_3(monkeypatch: pytest.MonkeyPatch) -> pa.Schema:
    """This QBW, some versions later: two columns were added to the record, one of them in the middle."""
    fields = list(RECORD_SCHEMA)
    fields.insert(5, pa.field("top5_accuracy", pa.float64()))
    schema = pa.schema([*fields, pa.field("layer_bits", pa.list_(pa.field("element", pa.int8())))])
    monkeypatch.setitem(parts_module._SCHEMAS, records.KIND, (schema, (1, 3)))
    return schema


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_earlier_part_lacks_columns_and_one_of_this_version_or_a_later_one_does_not(version: str) -> None:
    data = (DATA / f"records-{version}.parquet").read_bytes()
    assert lacks_columns(data, records.KIND) is (version == "1.0")
    assert lacks_columns(data, layers.KIND) is True
    later = table_of(golden_rows(1)).append_column("energy", pa.array([0.5]))
    assert lacks_columns(encoded(later, schema_version="1.7"), records.KIND) is False
    assert lacks_columns(data[:-9], records.KIND) is False, "who cannot read it cannot tell"


def test_a_later_version_reads_the_golden_file_of_1_0_with_nulls_for_what_it_lacks(version_1_3: pa.Schema) -> None:
    table = decode_part((DATA / "records-1.0.parquet").read_bytes(), records.KIND, "records-1.0.parquet")
    assert table.schema == version_1_3
    full, bare = table.to_pylist()
    assert list(full) == version_1_3.names
    assert full == {**GOLDEN_ROW, **dict.fromkeys(ADDED_IN_1_1), "top5_accuracy": None, "layer_bits": None}
    assert bare["record_id"] == "second"


def test_a_later_version_reads_parts_of_all_versions_as_one_table(version_1_3: pa.Schema) -> None:
    now = table_of([{**GOLDEN_ROW, "top5_accuracy": 0.5, "layer_bits": [1]}], version_1_3)
    assert decode_part(encode_part(now, records.KIND, "here"), records.KIND, "here").equals(now)
    older = decode_part(encoded(table_of(golden_rows(2)), schema_version="1.0"), records.KIND, "here")
    between = now.drop_columns(["layer_bits"])
    parts = [now, older, decode_part(encoded(between, schema_version="1.2"), records.KIND, "here")]
    assert pa.concat_tables(parts)["top5_accuracy"].to_pylist() == [0.5, None, None, 0.5]
    assert pa.concat_tables(parts)["layer_bits"].to_pylist() == [[1], None, None, None]


def test_an_older_part_whose_columns_stand_elsewhere_comes_back_in_order(version_1_3: pa.Schema) -> None:
    table = table_of(golden_rows(2))
    reordered = table.select(table.column_names[::-1])
    back = decode_part(encoded(reordered, schema_version="1.1"), records.KIND, "here")
    assert back.schema == version_1_3
    assert back.select(table.column_names).to_pylist() == table.to_pylist()


def test_a_part_of_this_very_version_has_every_column(version_1_3: pa.Schema) -> None:
    assert len(version_1_3) == len(RECORD_SCHEMA) + 2
    with pytest.raises(SchemaError, match=r"^here: column 'top5_accuracy' is missing; expected type double$"):
        decode_part(encoded(table_of(golden_rows(1)), schema_version="1.3"), records.KIND, "here")


@pytest.mark.parametrize("column", ["num_samples", "correct", "accuracy", "bitwidths", "record_id"])
def test_an_older_part_without_a_column_that_rules_are_about_breaks_them(column: str, version_1_3: pa.Schema) -> None:
    table = table_of(golden_rows(1)).drop_columns([column])
    assert column in version_1_3.names
    with pytest.raises(SchemaError, match=rf"^here: column '{column}', row 0: expected .+, found None$"):
        decode_part(encoded(table, schema_version="1.0"), records.KIND, "here")


def test_a_known_column_of_another_type_is_refused_whatever_the_version() -> None:
    position = RECORD_SCHEMA.get_field_index("epoch")
    table = table_of(golden_rows(1)).set_column(position, "epoch", pa.array([6], pa.int64()))
    for version in ("1.0", "1.4", "0.9"):
        with pytest.raises(SchemaError, match=r"^here: column 'epoch' has type int64; expected int32$"):
            decode_part(encoded(table, schema_version=version), records.KIND, "here")


@pytest.mark.parametrize("version", ["1.0", "1.7"])
def test_a_column_that_is_there_twice_is_refused_whatever_the_version(version: str) -> None:
    table = table_of(golden_rows(1))
    twice = table.append_column(table.schema.field("loss"), table["loss"])
    with pytest.raises(SchemaError, match=r"^here: column 'loss' is there more than once; expected it once$"):
        decode_part(encoded(twice, schema_version=version), records.KIND, "here")


MORE: dict[str, pa.Array] = {
    "top5_accuracy": pa.array([0.5, 1.0]),
    "labels": pa.array(["a", None]),
    "seen": pa.array([True, None]),
    "day": pa.array([1, 2], pa.date32()),
    "names": pa.array([["a", "bc"], None], pa.list_(pa.field("element", pa.string()))),
}


@pytest.mark.parametrize("name", MORE)
def test_of_a_newer_minor_version_the_digest_holds_for_the_columns_we_do_not_know(name: str) -> None:
    newer = table_of(golden_rows(2)).append_column(name, MORE[name])
    digest = digest_of(newer)
    back = decode_part(encoded(newer, schema_version="1.7"), records.KIND, "here")
    assert back.schema == RECORD_SCHEMA
    assert back.to_pylist() == golden_rows(2)
    position = len(RECORD_SCHEMA)
    for other in (MORE[name].take(pa.array([1, 0])), pa.nulls(2, MORE[name].type)):
        changed = newer.set_column(position, name, other)
        with pytest.raises(PartError, match=r"^here: damaged \(its values do not match its digest\); move it away and"):
            decode_part(encoded(changed, schema_version="1.7", digest=digest), records.KIND, "here")


@pytest.mark.parametrize(
    "values",
    [
        pa.array([{"a": 1}, None]),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([1, 2], pa.decimal128(5, 2)),
        pa.array([[{"a": 1}], None]),
    ],
    ids=["struct", "dictionary", "decimal", "list of struct"],
)
def test_a_column_whose_values_have_no_digest_is_refused(values: pa.Array) -> None:
    newer = table_of(golden_rows(2)).append_column("odd", values)
    data = encoded(newer, schema_version="1.7", digest=digest_of(table_of(golden_rows(2))))
    with pytest.raises(
        PartError, match=r"^here: damaged \(no digest for values of type .+\); move it away and evaluate again$"
    ):
        decode_part(data, records.KIND, "here")


@pytest.mark.parametrize("version", ["1.0", "1.7", "1.999999999", "0.9"])
def test_versions_of_this_major_and_older_ones_are_read(version: str) -> None:
    back = decode_part(encoded(table_of(golden_rows(2)), schema_version=version), records.KIND, "here")
    assert back.to_pylist() == golden_rows(2)


@pytest.mark.parametrize("version", ["2.0", "1", "1.", ".1", "1.0.0", "1.0 ", "1.x", "one.0", "", "1.9999999999"])
def test_what_is_no_version_of_this_major_is_called_newer(version: str) -> None:
    with pytest.raises(NewerPartError, match=rf"^x: schema version '{re.escape(version)}' is newer than 1\.1, which"):
        decode_part(encoded(table_of(golden_rows(1)), schema_version=version), records.KIND, "x")


GOLDEN_LAYERS: list[dict[str, Any]] = [
    {
        "model_id": "7704f98d2000b4983915c05901f1d4c5",
        "layer_index": 0,
        "layer_name": "conv1",
        "kind": "conv2d",
        "weights": 144,
        "macs": 9216,
        "in_channels": 1,
        "out_channels": 16,
        "kernel": "3x3",
        "stride": "2x1",
    },
    {
        "model_id": "7704f98d2000b4983915c05901f1d4c5",
        "layer_index": 1,
        "layer_name": "fc",
        "kind": "linear",
        "weights": 1_234_567_890_123,
        "macs": 987_654_321_098,
        "in_channels": 64,
        "out_channels": 10,
        "kernel": None,
        "stride": None,
    },
]


def test_a_layer_table_of_schema_version_1_0_stays_readable() -> None:
    table = decode_part((DATA / "layers-1.0.parquet").read_bytes(), layers.KIND, "layers-1.0.parquet")
    assert table.schema == LAYER_SCHEMA
    assert table.to_pylist() == GOLDEN_LAYERS
    without_id = [{name: value for name, value in row.items() if name != "model_id"} for row in GOLDEN_LAYERS]
    assert layers.model_id_of(without_id) == GOLDEN_LAYERS[0]["model_id"], "and it is still called what it was"


@pytest.mark.parametrize(
    ("array", "same"),
    [
        (pa.Array.from_buffers(pa.int8(), 0, [None, None]), pa.array([], pa.int8())),
        (pa.chunked_array([], pa.string()), pa.array([], pa.string())),
        (pa.chunked_array([[1], [], [2, None]]), pa.array([1, 2, None])),
    ],
    ids=["no buffer", "no chunk", "three chunks"],
)
def test_the_digest_is_of_values_however_they_lie_in_memory(array: Any, same: pa.Array) -> None:
    assert digest_of(pa.table({"a": array})) == digest_of(pa.table({"a": same}))


def test_parts_are_sorted_and_hidden_names_and_other_endings_are_no_parts(tmp_path: Path) -> None:
    for name in ("b.parquet", "0-a.parquet", ".c.parquet", "_d.parquet", "e.txt", "f.parquet.tmp", "g_.parquet"):
        (tmp_path / name).touch()
    assert [path.name for path in part_paths(tmp_path)] == ["0-a.parquet", "b.parquet", "g_.parquet"]
