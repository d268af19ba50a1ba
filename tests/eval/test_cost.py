"""What configurations cost, against counting bit by bit."""

from typing import get_args

import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import table_of

from qbw_eval import cli
from qbw_eval.cost import Costs, costs_of, costs_per_layer
from qbw_eval.settings.quantization import CostName
from schemas.costs import COSTS
from schemas.records import RECORD_SCHEMA

layers = st.lists(
    st.tuples(st.integers(1, 400), st.integers(1, 10**15), st.sampled_from([1, 2, 3, 4, 8, 16, 32])),
    min_size=1,
    max_size=30,
)


@settings(deadline=None)
@given(layers=layers)
def test_costs_equal_exact_fractions_over_every_single_weight(layers: list[tuple[int, int, int]]) -> None:
    weights, macs, bits = zip(*layers, strict=True)
    costs = costs_of(bits, table_of(*zip(weights, macs, strict=True)), max(bits))
    assert vars(costs) == references.costs(bits, weights, macs, max(bits))


def test_costs_by_hand() -> None:
    costs = costs_of((2, 8, 4), table_of((9, 100), (3, 10), (1, 1)), 8)
    assert vars(costs) == {
        "avg_bitwidth": 14 / 3,
        "weighted_avg_bitwidth": 46 / 13,
        "weight_bytes": 6,  # 46 bits: the last byte is not full
        "relative_weight_bytes": 6 / 13,  # 104 bits
        "bit_ops": 1056,
        "relative_bit_ops": 1056 / (111 * 64),
    }


@pytest.mark.parametrize("bits", [1, 2, 8, 32])
def test_a_uniform_configuration_has_its_bits_as_both_averages(bits: int) -> None:
    costs = costs_of([bits] * 3, table_of((9, 100), (3, 10), (1, 1)), 8)
    assert costs.avg_bitwidth == costs.weighted_avg_bitwidth == bits
    assert costs.relative_bit_ops == bits * bits / 64


def test_each_layers_costs_by_hand() -> None:
    first, second = costs_per_layer((2, 8), table_of((9, 100), (3, 10)), 8)
    assert vars(first) == {
        "avg_bitwidth": 2,
        "weighted_avg_bitwidth": 2,
        "weight_bytes": 3,  # 18 bits
        "relative_weight_bytes": 3 / 9,
        "bit_ops": 400,
        "relative_bit_ops": 4 / 64,
    }
    assert (second.weight_bytes, second.bit_ops, second.relative_bit_ops) == (3, 640, 1.0)


@settings(deadline=None)
@given(layers=layers)
def test_layers_add_up_to_the_network_but_for_bytes_that_are_not_full(layers: list[tuple[int, int, int]]) -> None:
    weights, macs, bits = zip(*layers, strict=True)
    table = table_of(*zip(weights, macs, strict=True))
    whole, each = costs_of(bits, table, 32), costs_per_layer(bits, table, 32)
    assert sum(costs.bit_ops for costs in each) == whole.bit_ops
    assert 0 <= sum(costs.weight_bytes for costs in each) - whole.weight_bytes < len(layers)


def test_costs_have_the_names_that_settings_and_options_know() -> None:
    assert COSTS == get_args(CostName) == cli._COSTS == tuple(Costs.__dataclass_fields__)
    assert set(COSTS) <= set(RECORD_SCHEMA.names)


def test_sums_beyond_2_to_the_53_are_exact() -> None:
    huge = 2**61 + 1
    costs = costs_of((3, 1), table_of((huge, huge), (1, 1)), 8)
    assert costs.bit_ops == 9 * huge + 1
    assert costs.weight_bytes == (3 * huge + 1 + 7) // 8


@pytest.mark.parametrize("bits", [(2,), (2, 4, 8)])
def test_as_many_bitwidths_as_layers_or_an_error(bits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="zip"):
        costs_of(bits, table_of((1, 1), (1, 1)), 8)
