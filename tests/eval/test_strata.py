"""Configurations of equal cost: counted and numbered as a list of all of them says; draws without repeats."""

from collections import Counter
from fractions import Fraction
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from qbw_eval.sampling import strata as strata_module
from qbw_eval.sampling.strata import Strata, Untaken, random_below
from schemas.costs import Cost

unhurried = settings(deadline=None, max_examples=60)
small_costs = st.builds(
    Cost, sizes=st.lists(st.integers(0, 50), min_size=1, max_size=5).map(tuple), power=st.sampled_from([1, 2])
)
few_options = st.lists(st.integers(1, 32), min_size=1, max_size=4, unique=True).map(sorted)


@unhurried
@given(cost=small_costs, options=few_options)
def test_strata_are_the_sums_and_their_members_are_numbered_in_lexicographic_order(
    cost: Cost, options: list[int]
) -> None:
    strata = Strata(cost, options)
    assert strata.exact
    by_sum: dict[int, list[tuple[int, ...]]] = {}
    for bits in product(options, repeat=len(cost.sizes)):
        by_sum.setdefault(cost.total(bits), []).append(bits)
    assert [strata.lowest + stratum * strata.unit for stratum in strata.counts] == sorted(by_sum)
    for stratum, count in strata.counts.items():
        members = by_sum[strata.lowest + stratum * strata.unit]
        assert [strata.configuration(stratum, rank) for rank in range(count)] == members
        assert [strata.place_of(bits) for bits in members] == [(stratum, rank) for rank in range(count)]
        assert strata.position(Fraction(cost.total(members[0]))) == stratum


@unhurried
@given(
    sizes=st.lists(st.integers(1, 10**9), min_size=12, max_size=20).map(tuple),
    options=st.lists(st.integers(1, 32), min_size=3, max_size=4, unique=True).map(sorted),
    data=st.data(),
)
def test_rounded_strata_hold_every_configuration_once_and_are_near_its_cost(
    sizes: tuple[int, ...], options: list[int], data: st.DataObject
) -> None:
    cost = Cost(sizes=sizes)
    strata = Strata(cost, options)
    assert sum(strata.counts.values()) == len(options) ** len(sizes)
    assert len(strata.counts) <= 8192 + len(sizes)
    for _ in range(5):
        bits = tuple(data.draw(st.sampled_from(options)) for _ in sizes)
        stratum, rank = strata.place_of(bits)
        assert 0 <= rank < strata.counts[stratum]
        assert strata.configuration(stratum, rank) == bits
        off = abs(strata.position(Fraction(cost.total(bits))) - stratum)
        assert off <= (0 if strata.exact else Fraction(len(sizes), 2))


def test_what_cannot_be_told_apart_is_rounded_and_says_so() -> None:
    primes = (999_983, 999_979, 999_961, 999_959, 999_953, 999_931, 999_917, 999_907, 999_883, 999_863)
    assert not Strata(Cost(sizes=primes), (2, 4, 8)).exact
    assert Strata(Cost(sizes=primes[:8]), (2, 4, 8)).exact, "6,561 configurations can be told apart, whatever they cost"
    assert Strata(Cost(sizes=tuple(4096 * size for size in range(1, 40))), (2, 4, 8)).exact, "a common divisor"


def test_the_average_bitwidth_of_deep_networks_at_many_options_is_counted_exactly() -> None:
    for num_layers, options in ((161, (2, 4, 8, 16, 32)), (161, range(1, 9)), (60, range(1, 33))):
        assert Strata(Cost(sizes=(1,) * num_layers), tuple(options)).exact


def test_counting_is_bounded_also_where_there_are_very_many_layers() -> None:
    strata = Strata(Cost(sizes=tuple(range(10_001, 12_001))), (2, 4, 8))
    assert not strata.exact
    assert len(strata.counts) <= strata_module._MOST_STEPS // (2000 * 3) + 2000
    assert sum(strata.counts.values()) == 3**2000


@unhurried
@given(count=st.integers(1, 40), seed=st.integers(0, 10**6), taken=st.sets(st.integers(0, 39)))
def test_what_has_been_taken_is_not_drawn_and_everything_else_once(count: int, seed: int, taken: set[int]) -> None:
    untaken = Untaken(count)
    taken = {number for number in taken if number < count}
    for number in taken:
        untaken.take(number)
    assert untaken.left == count - len(taken)
    drawn = [untaken.draw(f"{seed} {draw}") for draw in range(untaken.left)]
    assert untaken.left == 0
    assert sorted([*drawn, *taken]) == list(range(count))


def test_drawing_without_repeats_is_uniform_over_what_is_left() -> None:
    second = Counter()
    for seed in range(6000):
        untaken = Untaken(5)
        untaken.take(2)
        untaken.draw(f"{seed} a")
        second[untaken.draw(f"{seed} b")] += 1
    assert set(second) == {0, 1, 3, 4}
    assert all(abs(times - 1500) < 5 * (6000 * 3 / 16) ** 0.5 for times in second.values())


def test_random_numbers_are_these_for_ever_whatever_their_bound() -> None:
    assert [random_below(10, f"label {n}") for n in range(6)] == [5, 3, 1, 5, 5, 6]
    assert random_below(3**100, "label") == 34324025459545095012924109859971701714397037844
    assert random_below(1, "anything") == 0
