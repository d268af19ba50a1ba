"""Every sampler: within options and range, distinct, counted from 0, whole where the space is small, the same for ever.

`stratified` besides: spread evenly at every length, and uniform among the configurations of equal cost.
"""

from collections import Counter
from fractions import Fraction
from itertools import pairwise, product

import pytest
import references
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tables import table_of

from qbw_eval.configurations import BitwidthConfiguration, SamplerSettings, sample
from qbw_eval.cost import costs_of, costs_over
from qbw_eval.layer_table import LayerTable
from qbw_eval.sampling.ranges import CostRange, parse_range
from schemas.costs import COSTS
from schemas.errors import UsageError

unhurried = settings(deadline=None, max_examples=60)
option_lists = st.lists(st.integers(1, 32), min_size=1, max_size=4, unique=True).map(lambda o: tuple(sorted(o)))
seeds = st.integers(-(2**70), 2**70)
tables = st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=12).map(
    lambda sizes: table_of(*sizes)
)

SIZES = table_of((144, 9216), (288, 4608), (576, 9216), (32, 512), (2304, 9216), (90, 90))


def bits_of(configurations: list[BitwidthConfiguration]) -> list[tuple[int, ...]]:
    return [one.bitwidths for one in configurations]


def drawn(sampler: str, table: LayerTable | int, options: tuple[int, ...], **told: object) -> list[tuple[int, ...]]:
    return bits_of(sample(sampler, table, options, 10, 0, SamplerSettings(**told)))  # type: ignore[arg-type]


def within(text: str) -> SamplerSettings:
    return SamplerSettings(range=parse_range(text))


# --- what holds for all of them ---------------------------------------------------------------------------------------


def told_at_random(data: st.DataObject, sampler: str, num_layers: int, options: tuple[int, ...]) -> SamplerSettings:
    """Draw what a sampler can be told, without a range."""
    one = st.tuples(*[st.sampled_from(options)] * num_layers)
    match sampler:
        case "stratified":
            return SamplerSettings(cost=data.draw(st.sampled_from([None, *COSTS])))
        case "one-layer":
            return SamplerSettings(base=data.draw(st.sampled_from([None, *options])))
        case "neighbours":
            return SamplerSettings(given=(data.draw(one),))
        case "file":
            return SamplerSettings(given=tuple(data.draw(st.lists(one, min_size=1, max_size=9, unique=True))))
    return SamplerSettings()


@pytest.mark.parametrize("sampler", ["iid", "uniform", "stratified", "one-layer", "neighbours", "file"])
@unhurried
@given(table=tables, options=option_lists, seed=seeds, few=st.integers(1, 20), more=st.integers(0, 20), data=st.data())
def test_draws_are_within_options_and_range_distinct_counted_and_continued_by_more(
    sampler: str, table: LayerTable, options: tuple[int, ...], seed: int, few: int, more: int, data: st.DataObject
) -> None:
    told = told_at_random(data, sampler, len(table), options)
    free = sample(sampler, table, options, few + more, seed, told)
    assert bits_of(sample(sampler, table, options, few, seed, told)) == bits_of(free)[:few]
    # A range around one of them, so that it holds something.
    cost = told.cost or data.draw(st.sampled_from(COSTS))
    middle = Fraction(vars(costs_of(data.draw(st.sampled_from(bits_of(free))), table, options[-1]))[cost])
    width = data.draw(st.sampled_from([Fraction(0), Fraction(1, 10), Fraction(1)]))
    bounded = CostRange(cost=cost, low=middle * (1 - width), high=middle * (1 + width))
    limited = SamplerSettings(range=bounded, cost=told.cost, base=told.base, given=told.given)
    try:
        inside = sample(sampler, table, options, few + more, seed, limited)
    except UsageError:  # the value is a rounded quotient, beside which no configuration need lie
        assert width == 0
        inside = []
    for configurations in (free, inside):
        assert len(set(bits_of(configurations))) == len(configurations) <= few + more
        assert [one.index for one in configurations] == list(range(len(configurations)))
        for one in configurations:
            assert len(one.bitwidths) == len(table)
            assert set(one.bitwidths) <= set(options)
    for one in inside:
        assert Fraction(vars(costs_of(one.bitwidths, table, options[-1]))[cost]) == pytest.approx(
            float(middle), abs=float(middle * width) + 1e-9 * float(middle)
        )


@pytest.mark.parametrize("sampler", ["iid", "stratified"])
@unhurried
@given(
    sizes=st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), min_size=1, max_size=4),
    options=option_lists,
    seed=seeds,
    cost=st.sampled_from(COSTS),
    ends=st.tuples(st.fractions(0, 1), st.fractions(0, 1)) | st.none(),
)
def test_a_space_smaller_than_asked_for_is_enumerated_whole(
    sampler: str,
    sizes: list[tuple[int, int]],
    options: tuple[int, ...],
    seed: int,
    cost: str,
    ends: tuple[Fraction, Fraction] | None,
) -> None:
    table = table_of(*sizes)
    of = costs_over(table, options[-1])[cost]
    bounded = None
    if ends:
        low, high = (of.total([bits] * len(sizes)) for bits in (options[0], options[-1]))
        values = sorted(Fraction(low + end * (high - low), of.quantum) / (of.denominator or 1) for end in ends)
        bounded = CostRange(cost=cost, low=values[0], high=values[1])
    everything = {
        bits
        for bits in product(options, repeat=len(sizes))
        if bounded is None
        or bounded.low <= Fraction(-(-of.total(bits) // of.quantum), of.denominator or 1) <= bounded.high
    }
    assume(everything)
    found = sample(sampler, table, options, 10_000, seed, SamplerSettings(range=bounded))
    assert len(found) == len(everything)
    assert set(bits_of(found)) == everything


GOLDEN: list[tuple[str, SamplerSettings, str]] = [
    ("iid", SamplerSettings(), "888484 828882 288428 884428 242244 242882"),
    ("iid", within("avg_bitwidth=3:4"), "282282 448224 284222 224244 222448 282224"),
    ("stratified", SamplerSettings(), "222222 444444 888888 488244 242228 888824"),
    ("stratified", SamplerSettings(cost="weight_bytes"), "222222 444444 888888 488444 222248 424882"),
    ("stratified", within("bit_ops=:400000"), "222222 424828 224428 242424 244822 222824"),
    ("one-layer", SamplerSettings(base=4), "444444 244444 844444 424444 484444 442444"),
    ("neighbours", SamplerSettings(given=((2, 4, 8, 8, 4, 2),)), "248842 448842 228842 288842 244842 248442"),
]


@pytest.mark.parametrize(("sampler", "told", "expected"), GOLDEN)
def test_the_first_draws_are_these_for_ever(sampler: str, told: SamplerSettings, expected: str) -> None:
    # What records of earlier versions were drawn as; a change needs a new version of the sampler.
    found = sample(sampler, SIZES, (2, 4, 8), len(expected.split()), 5, told)
    assert " ".join("".join(map(str, bits)) for bits in bits_of(found)) == expected


# --- stratified -------------------------------------------------------------------------------------------------------


def averages(configurations: list[BitwidthConfiguration]) -> list[Fraction]:
    return sorted(Fraction(sum(one.bitwidths), len(one.bitwidths)) for one in configurations)


@pytest.mark.parametrize("seed", range(20))
def test_64_on_20_layers_reach_both_ends_without_gaps(seed: int) -> None:
    found = averages(sample("stratified", 20, (2, 4, 8), 64, seed))
    assert len(found) == 64
    assert found[0] <= 2.25
    assert found[-1] >= 7.75
    assert max(later - earlier for earlier, later in pairwise(found)) <= 3 * Fraction(6, 63)


@settings(deadline=None, max_examples=200)
@given(num_layers=st.integers(1, 40), options=option_lists, count=st.integers(2, 120), seed=seeds)
def test_at_every_length_gaps_are_at_most_twice_the_ideal_ones_and_a_step_between_reachable_averages(
    num_layers: int, options: tuple[int, ...], count: int, seed: int
) -> None:
    assume(count > len(options) > 1)
    found = averages(sample("stratified", num_layers, options, count, seed))
    reachable = sorted(references.reachable_sums(num_layers, options))
    step = max(Fraction(later - earlier, num_layers) for earlier, later in pairwise(reachable))
    ideal = Fraction(options[-1] - options[0], count - len(options) + 1)
    assert max(later - earlier for earlier, later in pairwise(found)) <= 2 * ideal + step


@unhurried
@given(table=tables, options=option_lists, cost=st.sampled_from(COSTS), seed=seeds)
def test_uniform_configurations_come_first_and_the_others_lie_next_to_their_targets(
    table: LayerTable, options: tuple[int, ...], cost: str, seed: int
) -> None:
    found = sample("stratified", table, options, 40, seed, SamplerSettings(cost=cost))
    assert bits_of(found)[: len(options)] == [(bits,) * len(table) for bits in options]
    assert all((one.target, one.target_cost) == (None, None) for one in found[: len(options)])
    values = [vars(costs_of(one.bitwidths, table, options[-1]))[cost] for one in found]
    lowest, highest = min(values), max(values)
    for one in found[len(options) :]:
        assert one.target_cost == cost
        assert one.target is not None
        assert lowest - 1 <= one.target <= highest  # a byte that is not full counts as one


def test_targets_halve_the_range_again_and_again() -> None:
    targets = [one.target for one in sample("stratified", 100, (2, 4, 8), 18, 0)]
    assert targets[3:] == [2 + 6 * n / 16 for n in (8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15)]
    bounded = sample("stratified", 100, (2, 4, 8), 6, 0, within("avg_bitwidth=3:5"))
    assert [one.target for one in bounded] == [None, 3, 5, 4, 3.5, 4.5]
    assert bits_of(bounded)[0] == (4,) * 100
    full = sample("stratified", 100, (2, 4, 8), 6, 0, within("avg_bitwidth=2:8"))
    assert [one.target for one in full] == [None, None, None, 5, 3.5, 6.5], "uniform configurations cover the ends"


def test_the_average_is_the_reachable_one_nearest_to_the_target() -> None:
    for one in sample("stratified", 20, (2, 4, 8), 40, 1)[3:]:
        total = Fraction(one.target) * 20
        nearest = min(references.reachable_sums(20, (2, 4, 8)), key=lambda s: (abs(s - total), s))
        assert sum(one.bitwidths) in (nearest, nearest + 2, nearest - 2)  # beside the ends there are few of a sum


@pytest.mark.parametrize("cost", ["weight_bytes", "bit_ops"])
def test_costs_too_fine_to_count_are_hit_within_a_hundredth_of_the_range(cost: str) -> None:
    primes = (999_983, 89_979, 959_961, 399_959, 959_953, 699_931, 999_917, 99_907, 999_883, 599_863, 7, 400_009)
    table = table_of(*[(size, size + 1) for size in primes])
    found = sample("stratified", table, (2, 4, 8), 60, 0, SamplerSettings(cost=cost))
    ends = [vars(costs_of((bits,) * len(table), table, 8))[cost] for bits in (2, 8)]
    for one in found[3:]:
        assert abs(vars(costs_of(one.bitwidths, table, 8))[cost] - one.target) < 0.01 * (ends[1] - ends[0])
    narrow = within(f"{cost}={int(one.target * 0.999)}:{int(one.target * 1.001)}")
    for sampler in ("stratified", "iid"):
        inside = sample(sampler, table, (2, 4, 8), 12, 0, narrow)
        assert len(set(bits_of(inside))) == 12
        for configuration in inside:
            value = vars(costs_of(configuration.bitwidths, table, 8))[cost]
            assert narrow.range.low <= value <= narrow.range.high


def chi_square(drawn_bits: list[tuple[int, ...]], options: tuple[int, ...]) -> float:
    """Return the statistic of the table layer x option, where draw i is asked about layer i mod L only.

    Layers of one draw depend on each other (their sum is fixed), those of different draws do not.
    """
    num_layers = len(drawn_bits[0])
    table = Counter((i % num_layers, bits[i % num_layers]) for i, bits in enumerate(drawn_bits))
    of_layer = Counter(i % num_layers for i in range(len(drawn_bits)))
    of_option = Counter(bits[i % num_layers] for i, bits in enumerate(drawn_bits))
    expected = {
        (layer, option): of_layer[layer] * of_option[option] / len(drawn_bits)
        for layer in range(num_layers)
        for option in options
    }
    return sum((table[cell] - expected[cell]) ** 2 / expected[cell] for cell in expected)


def test_within_a_stratum_layers_are_exchangeable() -> None:
    """20,000 different configurations of 20 layers that average 5 bits; 38 degrees of freedom, p = 0.001 at 70.7."""
    found = bits_of(sample("stratified", 20, (2, 4, 8), 20_000, 3, within("avg_bitwidth=5:5")))
    assert len(set(found)) == 20_000
    assert {sum(bits) for bits in found} == {100}
    assert chi_square(found, (2, 4, 8)) < 70.7
    assert chi_square(sorted(found)[:2000], (2, 4, 8)) > 200, "or the test would notice nothing"


def test_a_stratum_of_rounded_costs_prefers_no_layer_of_equal_size() -> None:
    # 18 layers of two prime sizes in turn, too fine to count: layers of the same size are exchangeable.
    table = table_of(*[(999_983, 1), (399_989, 1)] * 9)
    found = bits_of(sample("iid", table, (2, 4, 8), 9_000, 3, within("weighted_avg_bitwidth=4.9:5.1")))
    for size in (0, 1):
        # 9 layers: 16 degrees of freedom, p = 0.001 at 39.3.
        assert chi_square([bits[size::2] for bits in found], (2, 4, 8)) < 39.3


# --- the others -------------------------------------------------------------------------------------------------------


def test_iid_within_a_range_is_uniform_over_the_configurations_in_it() -> None:
    everything = [bits for bits in product((2, 4, 8), repeat=4) if 10 <= sum(bits) <= 14]
    counts = Counter(
        sample("iid", 4, (2, 4, 8), 1, seed, within("avg_bitwidth=2.5:3.5"))[0].bitwidths for seed in range(6000)
    )
    assert set(counts) == set(everything)
    expected = 6000 / len(everything)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_one_layer_by_hand() -> None:
    assert drawn("one-layer", 2, (2, 4, 8)) == [(8, 8), (2, 8), (4, 8), (8, 2), (8, 4)]
    assert drawn("one-layer", 2, (2, 4, 8), base=4) == [(4, 4), (2, 4), (8, 4), (4, 2), (4, 8)]
    assert drawn("one-layer", 3, (4,)) == [(4, 4, 4)]


def test_neighbours_by_hand() -> None:
    assert drawn("neighbours", 3, (2, 4, 8), given=((2, 4, 8),)) == [
        (2, 4, 8),
        *[(4, 4, 8), (2, 2, 8), (2, 8, 8), (2, 4, 4)],
    ]


def test_a_file_is_evaluated_as_it_stands() -> None:
    given_bits = ((8, 2), (2, 2), (4, 8))
    assert drawn("file", 2, (2, 4, 8), given=given_bits) == list(given_bits)
    bounded = parse_range("avg_bitwidth=3:")
    assert drawn("file", 2, (2, 4, 8), given=given_bits, range=bounded) == [(8, 2), (4, 8)]


def test_samplers_that_do_not_draw_give_all_they_have_unless_told_how_many() -> None:
    assert len(sample("one-layer", 20, (2, 4, 8), None, 0)) == 41
    assert len(sample("uniform", 20, (2, 4, 8), None, 0)) == 3
    with pytest.raises(ValueError, match=r"^the sampler 'iid' must be told how many$"):
        sample("iid", 20, (2, 4, 8), None, 0)


MISTAKES: list[tuple[str, LayerTable | int, SamplerSettings, str]] = [
    ("iid", 3, SamplerSettings(base=2), "base: goes with the sampler one-layer, not with iid"),
    ("uniform", 3, SamplerSettings(cost="bit_ops"), "cost: goes with the sampler stratified, not with uniform"),
    ("iid", 3, SamplerSettings(given=((2, 2, 2),)), "given: goes with the sampler file or neighbours, not with iid"),
    ("one-layer", 3, SamplerSettings(base=3), "base: expected one of the options [2, 4, 8], found 3"),
    (
        "stratified",
        3,
        SamplerSettings(cost="weight_bytes"),
        "cost weight_bytes: only the number of layers is known here, not their sizes; use avg_bitwidth",
    ),
    (
        "stratified",
        3,
        SamplerSettings(cost="bits"),
        "cost: expected one of avg_bitwidth, weighted_avg_bitwidth, weight_bytes, relative_weight_bytes, bit_ops, "
        "relative_bit_ops, found 'bits'",
    ),
    (
        "stratified",
        SIZES,
        SamplerSettings(cost="bit_ops", range=parse_range("avg_bitwidth=3:5")),
        "cost bit_ops: expected the cost of the range avg_bitwidth=3:5; what is spread is what is bounded",
    ),
    (
        "stratified",
        3,
        within("avg_bitwidth=9:10"),
        "range avg_bitwidth=9:10: there is no configuration; 3 layers at [2, 4, 8] reach 2 to 8",
    ),
    (
        "iid",
        SIZES,
        within("weight_bytes=:800"),
        "range weight_bytes=:800: there is no configuration; 6 layers at [2, 4, 8] reach 859 to 3,434",
    ),
    (
        "iid",
        4,
        within("avg_bitwidth=2.2:2.3"),
        "range avg_bitwidth=2.2:2.3: none of the configurations of the sampler 'iid' lies there; "
        "4 layers at [2, 4, 8] reach 2 to 8",
    ),
    (
        "uniform",
        3,
        within("avg_bitwidth=5:7"),
        "range avg_bitwidth=5:7: none of the configurations of the sampler 'uniform' lies there; "
        "3 layers at [2, 4, 8] reach 2 to 8",
    ),
    ("file", 3, SamplerSettings(), "sampler 'file': expected configurations, found none; name a file of them"),
    (
        "neighbours",
        1,
        SamplerSettings(given=((2,), (4,))),
        "sampler 'neighbours': expected one configuration whose neighbours are wanted, found 2",
    ),
    (
        "file",
        2,
        SamplerSettings(given=((2, 2), (2,)), source="mine.json"),
        "mine.json: configuration 2: expected bits for 2 layers, found 1",
    ),
    (
        "file",
        2,
        SamplerSettings(given=((2, 16),), source="mine.json"),
        "mine.json: configuration 1: expected bits among the options [2, 4, 8], found 16",
    ),
    (
        "file",
        1,
        SamplerSettings(given=((2,), (4,), (2,)), source="mine.json"),
        "mine.json: configuration 3: the same as configuration 1; leave one of them out",
    ),
]


@pytest.mark.parametrize(("sampler", "layers", "told", "sentence"), MISTAKES)
def test_what_a_sampler_cannot_do_is_told_in_a_sentence(
    sampler: str, layers: LayerTable | int, told: SamplerSettings, sentence: str
) -> None:
    with pytest.raises(UsageError) as error:
        sample(sampler, layers, (2, 4, 8), 5, 0, told)
    assert str(error.value) == sentence
