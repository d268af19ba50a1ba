"""YAML text -> plain values with their places; whatever a stranger writes."""

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbw_eval.yaml_reader import MAX_BYTES, MAX_DEPTH, MAX_NODES, UNREADABLE, Document, Position, read_yaml

UNTIMED = settings(deadline=None)  # a busy machine is no failure


def values(text: str) -> object:
    document = read_yaml(text.encode())
    assert document.problems == ()
    return document.value


def complaints(data: bytes) -> list[tuple[str, int, int, str]]:
    document = read_yaml(data)
    return [(".".join(map(str, p.path)), *p.position, p.what) for p in document.problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # What YAML 1.1 would have turned into something else.
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("On", "On"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("010", "010"),
        ("0o10", "0o10"),
        ("0x10", "0x10"),
        ("0b1", "0b1"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01 10:00:00", "2024-01-01 10:00:00"),
        ("=", "="),
        ("nan", "nan"),
        ("inf", "inf"),
        # What YAML 1.1 would have left a text.
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        # Numbers.
        ("0", 0),
        ("-17", -17),
        ("+4", 4),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("-.5e+1", -5.0),
        ("1.", 1.0),
        ("0.25", 0.25),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        # Booleans and nothing.
        ("true", True),
        ("True", True),
        ("TRUE", True),
        ("false", False),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("~", None),
        ("null", None),
        ("", None),
        # Quotes and the tags of plain values.
        ("'3'", "3"),
        ('"true"', "true"),
        ("!!str 3", "3"),
        ("!!int 3", 3),
        ("!!float 3", 3.0),
        # Digits of other scripts are no digits here; Python's int() would take them.
        ("٣", "٣"),
    ],
)
def test_a_scalar_means_what_it_says(text: str, expected: object) -> None:
    found = values(f"key: {text}")
    assert found == {"key": expected}
    assert type(found["key"]) is type(expected)


def test_not_a_number() -> None:
    found = values("key: .NaN")
    assert isinstance(found, dict)
    assert math.isnan(found["key"])


def test_values_and_keys_have_places() -> None:
    document = read_yaml("# a comment\nüber: {a: [1, x]}\nb:\n  - c: 2\n".encode())
    assert document.value == {"über": {"a": [1, "x"]}, "b": [{"c": 2}]}
    assert document.positions == {
        (): Position(2, 1),
        ("über",): Position(2, 7),
        ("über", "a"): Position(2, 11),
        ("über", "a", 0): Position(2, 12),
        ("über", "a", 1): Position(2, 15),
        ("b",): Position(4, 3),
        ("b", 0): Position(4, 5),
        ("b", 0, "c"): Position(4, 8),
    }
    assert document.key_positions == {
        ("über",): Position(2, 1),
        ("über", "a"): Position(2, 8),
        ("b",): Position(3, 1),
        ("b", 0, "c"): Position(4, 5),
    }


@pytest.mark.parametrize("data", [b"", b"# only a comment\n", b"--- ~", b"\xef\xbb\xbf"])
def test_an_empty_document_is_nothing(data: bytes) -> None:
    document = read_yaml(data)
    assert (document.value, document.problems) == (None, ())
    assert list(document.positions) == [()]


def test_a_byte_order_mark_moves_nothing() -> None:
    assert read_yaml(b"\xef\xbb\xbfa: 1") == read_yaml(b"a: 1")


def test_aliases_repeat_a_value() -> None:
    assert values("a: &x {bits: [2, 4]}\nb: *x") == {"a": {"bits": [2, 4]}, "b": {"bits": [2, 4]}}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            b"a: !!python/object/apply:os.system [echo]",
            ("a", 1, 4, "the tag !!python/object/apply:os.system is not allowed here: "
                "an experiment file holds plain values only"),
        ),
        (b"a: !mine 3", ("a", 1, 4, "the tag !mine is not allowed here: an experiment file holds plain values only")),
        (b"a: !%0A 3", ("a", 1, 4, r"the tag '!\n' is not allowed here: an experiment file holds plain values only")),
        (b"a: !!set {b}", ("a", 1, 4, "the tag !!set is not allowed here: an experiment file holds plain values only")),
        (b"a: !!str [b]", ("a", 1, 4, "the tag !!str is not allowed here: an experiment file holds plain values only")),
        (b"a: !!int b", ("a", 1, 4, "the tag !!int does not fit 'b'")),
        (b"a: !!bool yes", ("a", 1, 4, "the tag !!bool does not fit 'yes'")),
        (b"a: 1\nb: 2\na: 3", ("a", 3, 1, "this key is given twice (first in line 1); keep one")),
        (b"a: {b: 1, 'b': 2}", ("a.b", 1, 11, "this key is given twice (first in line 1); keep one")),
        (
            b"a: {8: x}",
            ("a", 1, 5, "expected a name as the key, found 8; put it in quotes ('8') if it is meant as a name"),
        ),
        (
            b"true: x",
            ("", 1, 1, "expected a name as the key, found true; put it in quotes ('true') if it is meant as a name"),
        ),
        (b"? [1, 2]\n: x", ("", 1, 3, "expected a name as the key, found a list")),
        (b"? {a: 2}\n: x", ("", 1, 3, "expected a name as the key, found a mapping")),
        (b"a: &x {b: 1}\nc:\n  <<: *x", ("c", 3, 3, "merge keys (<<) are not supported; write the settings out")),
        (b"a: &x [*x]", ("a.0", 1, 4, "an alias cannot contain itself")),
        (b"a: &x {b: *x}", ("a.b", 1, 8, "an alias cannot contain itself")),
        (b'a: "\\uD800"', ("a", 1, 4, r"expected text, found half of a surrogate pair in '\ud800'")),
        (b"a: " + b"7" * 5000, ("a", 1, 4, "a whole number of 5,000 digits is too long")),
        (b"a: " + b"7" * 101, ("a", 1, 4, "a whole number of 101 digits is too long")),
        # The rest of the text cannot be read after these.
        (b"a:\n\t- 3", ("", 2, 1, "not valid YAML: a tab cannot stand here; indent with spaces")),
        (b"a: b: c", ("", 1, 5, "not valid YAML: mapping values are not allowed here")),
        (
            b"a: [1",
            ("", 1, 6, "not valid YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
        ),
        (b"a: *b", ("", 1, 4, "not valid YAML: found undefined alias 'b'")),
        (
            b"a: 1\n--- \nb: 1",
            ("", 2, 1, "not valid YAML: expected a single document in the stream, but found another document"),
        ),
        (b"a: 1\r\nb: \x07", ("", 2, 4, "not valid YAML: the character 0x7 is not allowed")),
        (b'a: "\\UFFFFFFFF"', ("", 1, 7, "not valid YAML: a number is out of range")),
        (b"%YAML " + b"9" * 5000 + b".1\n---\na", ("", 1, 7, "not valid YAML: a number is out of range")),
        (b"\xff\xfea\0", ("", 1, 1, "not UTF-8 text (byte 0xff); save the file as UTF-8")),
        ("a: 1\nb: ä".encode("latin-1"), ("", 2, 4, "not UTF-8 text (byte 0xe4); save the file as UTF-8")),
        (b"#" * (MAX_BYTES + 1), ("", 1, 1, "larger than 1,048,576 bytes, the most that is read")),
        (b"[" * 100_000, ("", 1, 51, "nested more than 50 levels deep")),
        (b"- " * 1000, ("", 1, 101, "nested more than 50 levels deep")),
        (b"? " * 1000, ("", 1, 101, "nested more than 50 levels deep")),
        (b"[" + b"1," * 100_000 + b"]", ("", 1, 200_000, "more than 100,000 values, aliases counted as often as used")),
    ],
)  # fmt: skip
def test_a_problem_has_a_place_and_a_sentence(data: bytes, expected: tuple[str, int, int, str]) -> None:
    assert complaints(data) == [expected]


def test_the_limits_themselves_are_allowed() -> None:
    assert read_yaml(b"#" * MAX_BYTES).problems == ()
    assert read_yaml(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH).problems == ()
    assert read_yaml(b"[" + b"1," * (MAX_NODES - 1) + b"]").problems == ()
    assert values("a: " + "7" * 100) == {"a": int("7" * 100)}


def test_aliases_do_not_explode() -> None:
    levels = [f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in pairwise("abcdefghi")]
    bomb = "\n".join(["a: &a [x, x, x, x, x, x, x, x, x, x]", *levels])  # ten to the ninth values in 400 bytes
    [(_, _, _, what)] = complaints(bomb.encode())
    assert what == "more than 100,000 values, aliases counted as often as used"


def test_aliases_do_not_get_deep() -> None:
    half = "[" * 30 + "{}" + "]" * 30
    text = f"a: &a {half.format('1')}\nb: {half.format('*a')}"
    assert [what for *_, what in complaints(text.encode())] == ["nested more than 50 levels deep"]


def test_all_problems_at_once_and_the_rest_is_readable() -> None:
    document = read_yaml(b"a: !x 1\nb: 2\nb: 3\n4: 5\n<<: {}\nc: [!y 6, 7]")
    assert [(p.position, p.what[:12]) for p in document.problems] == [
        (Position(1, 4), "the tag !x i"),
        (Position(3, 1), "this key is "),
        (Position(4, 1), "expected a n"),
        (Position(5, 1), "merge keys ("),
        (Position(6, 5), "the tag !y i"),
    ]
    assert document.value == {"a": UNREADABLE, "b": 2, "c": [UNREADABLE, 7]}


def test_long_names_do_not_flood_the_message() -> None:
    for data in (b"a: *" + b"n" * 100_000, b"a: !" + b"n" * 100_000 + b" 1", b"? " + b"7" * 100_000 + b"\n: 1"):
        [(_, _, _, what)] = complaints(data)
        assert len(what) < 300


def test_nothing_is_run(tmp_path: Path) -> None:
    read_yaml(f"!!python/object/apply:os.mkdir ['{tmp_path}/made']".encode())
    read_yaml(f"!!python/object/new:os.mkdir ['{tmp_path}/made']".encode())
    assert list(tmp_path.iterdir()) == []


def test_pyyaml_itself_keeps_its_meaning() -> None:
    # Resolvers are a class attribute of PyYAML: ours must not leak into other people's loaders, nor theirs into ours.
    import yaml

    assert yaml.safe_load("[no, 1e-3, 010]") == [False, "1e-3", 8]
    assert values("[no, 1e-3, 010]") == ["no", 0.001, "010"]


YAMLISH = st.text(alphabet="ab01.-+:,?*&!|>%@'\"\\{}[]<~#=_ \n\t\r\x85é\u2028", max_size=60)


@UNTIMED
@given(st.one_of(st.binary(max_size=80), YAMLISH.map(str.encode)))
def test_any_text_gives_a_document(data: bytes) -> None:
    document = read_yaml(data)
    assert isinstance(document, Document)
    assert is_plain(document.value) or document.problems


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    # Not above U+FFFF, which JSON escapes as a pair, and no DEL, which YAML wants escaped and JSON does not.
    | st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet="abc =:'-", max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@UNTIMED
@given(plain)
def test_json_is_read_as_json_reads_it(value: object) -> None:
    # JSON is YAML (but for infinities, which only Python's JSON has); what another parser reads is the oracle.
    text = json.dumps(value)
    document = read_yaml(text.encode())
    assert document.problems == ()
    assert document.value == json.loads(text)


def is_plain(value: object) -> bool:
    if type(value) is dict:
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if type(value) is list:
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


def test_reading_needs_no_torch() -> None:
    script = "import sys, qbw_eval.experiment, qbw_eval.yaml_reader; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
