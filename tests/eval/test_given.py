"""Files of configurations: what is read from JSON, YAML and CSV, and what is refused with which sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbw_eval.sampling.given import Given, given_text, read_given
from schemas.errors import UsageError

NAMES = ("conv1", "layer1.0.conv2", "head, 'last'")
TWO = ((2, 4, 8), (8, 8, 2))


def read(folder: Path, name: str, text: str | bytes) -> tuple[tuple[int, ...], ...]:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_given(path).in_order(NAMES)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lists.json", "[[2, 4, 8], [8, 8, 2]]"),
        ("names.json", json.dumps([dict(zip(NAMES, bits, strict=True)) for bits in TWO])),
        ("report.json", json.dumps({"why": "x", "configurations": [{"bitwidths": bits, "n": 1} for bits in TWO]})),
        ("lists.yaml", "- [2, 4, 8]\n- [8, 8, 2]\n"),
        (
            "names.yml",
            "configurations:\n"
            "  - {conv1: 2, layer1.0.conv2: 4, \"head, 'last'\": 8}\n"
            "  - bitwidths: {\"head, 'last'\": 2, conv1: 8, layer1.0.conv2: 8}\n"
            "    accuracy: 0.9\n",
        ),
        ("any order.csv", "layer1.0.conv2,conv1,\"head, 'last'\",avg_bitwidth\n4,2,8,4.67\n8,8,2,6\n"),
        ("from excel.csv", "\ufeffconv1,layer1.0.conv2,\"head, 'last'\"\r\n2,4,8\r\n8,8,2\r\n\r\n"),
    ],
)
def test_every_way_to_write_two_configurations(name: str, text: str, tmp_path: Path) -> None:
    assert read(tmp_path, name, text) == TWO


@pytest.mark.parametrize(
    "text", ["[2, 4, 8]", json.dumps(dict(zip(NAMES, TWO[0], strict=True))), '{"bitwidths": [2,4,8]}']
)
def test_one_configuration_needs_no_list_around_it(text: str, tmp_path: Path) -> None:
    assert read(tmp_path, "one.json", text) == (TWO[0],)


@settings(deadline=None, max_examples=30)
@given(
    configurations=st.lists(st.tuples(*[st.integers(1, 32)] * 3), min_size=1, max_size=6),
    kind=st.sampled_from([".json", ".yaml", ".yml", ".csv"]),
    named=st.booleans(),
)
def test_what_is_written_is_read_back(
    configurations: list[tuple[int, ...]], kind: str, named: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [
        {"config_index": index, "target": None, "avg_bitwidth": 1e-7 * index, "bitwidths": list(bits)}
        for index, bits in enumerate(configurations)
    ]
    text = given_text(kind, rows, NAMES if named or kind == ".csv" else None)
    assert read(tmp_path_factory.mktemp("written"), f"x{kind}", text) == tuple(configurations)


def test_unknown_and_missing_layers_list_both_sides() -> None:
    mine = Given("mine.json", ((2, 4, 8), {"conv1": 2, "layer1.0.conv": 4, "x": 8}))
    with pytest.raises(UsageError) as error:
        mine.in_order(NAMES)
    assert str(error.value) == (
        "mine.json: configuration 2 does not fit the network: unknown layer 'layer1.0.conv'; did you mean "
        "'layer1.0.conv2'?; unknown layer 'x'; no bits for layer 'layer1.0.conv2'; no bits for layer \"head, 'last'\""
    )


WRONG: list[tuple[str, Any, str]] = [
    ("x.txt", "", "expected a file of configurations ending in .json, .yaml, .yml, .csv"),
    ("x.json", "[[2, 4]", "not readable as JSON (Expecting ',' delimiter: line 1 column 8 (char 7))"),
    ("x.json", "[" * 100_000, "not readable as JSON (nested too deeply)"),
    ("x.json", b"\xff", None),
    ("x.json", "[]", "expected configurations, found none"),
    ("x.json", '{"configurations": []}', "expected configurations, found none"),
    ("x.json", "7", "configuration 1: expected bits by layer name, or a list of bits in forward order, found 7"),
    ("x.json", "[[2, true]]", "configuration 1: layer 1: expected a whole number of bits from 1 to 32, found True"),
    ("x.json", "[[2], [33]]", "configuration 2: layer 0: expected a whole number of bits from 1 to 32, found 33"),
    (
        "x.json",
        '{"conv1": 4.0}',
        "configuration 1: layer 'conv1': expected a whole number of bits from 1 to 32, found 4.0",
    ),
    ("x.yaml", "- [2, 4\n", None),
    ("x.yaml", "", "configuration 1: expected bits by layer name, or a list of bits in forward order, found None"),
    ("x.csv", "", "expected a header of layer names, found an empty file"),
    ("x.csv", "a,b\n", "expected configurations, found none"),
    ("x.csv", "a,b\n2\n", "configuration 1: expected 2 values, as the header has, found 1"),
    ("x.csv", "a,b\n2,x\n", "configuration 1: b: expected a whole number of bits from 1 to 32, found 'x'"),
    ("x.csv", "a,b,a\n2,4,8\n", "expected every column once, found a more than once"),
    ("x.csv", b"\xff,b\n", None),
]


@pytest.mark.parametrize(("name", "text", "sentence"), WRONG)
def test_what_is_no_file_of_configurations_is_told_in_a_sentence(
    name: str, text: str | bytes, sentence: str | None, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as error:
        read(tmp_path, name, text)
    told = str(error.value)
    assert told.startswith(f"{tmp_path / name}:")
    assert "\n" not in told
    assert len(told) < 400
    assert sentence is None or told == f"{tmp_path / name}: {sentence}"


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json: cannot be read \(No such file or directory\)$"):
        read_given(tmp_path / "none.json")


def test_a_huge_file_is_refused_before_it_is_all_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # a terabyte, in no blocks
    with pytest.raises(UsageError, match=r"huge\.json: expected at most 64 MiB of configurations$"):
        read_given(path)
