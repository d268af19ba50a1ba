"""`avg_bitwidth=3:5`: what is a range, what is none, and which configurations lie in it, in exact fractions."""

import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import table_of

from qbw_eval.cost import costs_over
from qbw_eval.sampling.ranges import CostRange, parse_range
from schemas.costs import COSTS

unhurried = settings(deadline=None, max_examples=100)


@pytest.mark.parametrize(
    ("text", "low", "high", "shown"),
    [
        ("avg_bitwidth=3:5", 3, 5, "avg_bitwidth=3:5"),
        (" avg_bitwidth = 3.50 : 5 ", Fraction(7, 2), 5, "avg_bitwidth=3.5:5"),
        ("weight_bytes=:1.5e6", None, 1_500_000, "weight_bytes=:1500000"),
        ("relative_bit_ops=0.1:", Fraction(1, 10), None, "relative_bit_ops=0.1:"),
        ("bit_ops=7:7", 7, 7, "bit_ops=7:7"),
    ],
)
def test_a_range_is_read_exactly(text: str, low: Fraction | None, high: Fraction | None, shown: str) -> None:
    found = parse_range(text)
    assert (found.low, found.high, str(found)) == (low, high, shown)
    assert parse_range(shown) == found


def test_a_range_has_the_same_facts_however_it_is_written() -> None:
    assert parse_range("avg_bitwidth=3.50:5").facts == parse_range("avg_bitwidth=35e-1:5.0").facts
    assert parse_range("avg_bitwidth=3.5:").facts == {"cost": "avg_bitwidth", "low": "7/2", "high": None}


@pytest.mark.parametrize(
    "text",
    [
        *("", "3:5", "avg_bitwidth", "avg_bitwidth=", "avg_bitwidth=:", "avg_bitwidth=3", "avg_bitwidth=3:x"),
        *("avg_bitwidth=-1:2", "avg_bitwidth=1/3:2", "avg_bitwidth=nan:2", "avg_bitwidth=1:1e999999999"),
        "avg_bitwidth=1:2:3",
    ],
)
def test_what_is_no_range_is_told_with_an_example(text: str) -> None:
    sentence = f"expected a cost and its lowest and highest value, such as avg_bitwidth=3:5, found {text!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        parse_range(text)


def test_an_unknown_cost_and_a_range_the_wrong_way_round_are_told() -> None:
    with pytest.raises(ValueError, match=r"^expected one of the costs avg_bitwidth, .+, found 'avg_bits'"):
        parse_range("avg_bits=3:5")
    with pytest.raises(ValueError, match=r"^expected the lower value first, found 'avg_bitwidth=5:3'$"):
        parse_range("avg_bitwidth=5:3")


@unhurried
@given(
    name=st.sampled_from(COSTS),
    layers=st.lists(
        st.tuples(st.integers(1, 99), st.integers(1, 99), st.sampled_from([2, 4, 8])), min_size=1, max_size=5
    ),
    low=st.fractions(0, 5000, max_denominator=50) | st.none(),
    width=st.fractions(0, 5000, max_denominator=50) | st.none(),
)
def test_the_sums_of_a_range_are_those_whose_value_lies_in_it(
    name: str, layers: list[tuple[int, int, int]], low: Fraction | None, width: Fraction | None
) -> None:
    weights, macs, bits = zip(*layers, strict=True)
    high = None if width is None else (low or Fraction(0)) + width
    cost = costs_over(table_of(*zip(weights, macs, strict=True)), 8)[name]
    total = cost.total(bits)
    first, last = CostRange(cost=name, low=low, high=high).totals(cost, 0, 10**9)
    for near in range(max(0, total - 9), total + 10):
        value = Fraction(-(-near // cost.quantum), cost.denominator or 1)
        assert (first <= near <= last) is ((low is None or low <= value) and (high is None or value <= high))
