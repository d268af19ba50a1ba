"""Samplers: within the options, without duplicates, finite, prefix-stable and the same everywhere."""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qbw_eval.configurations import VERSIONED_NAMES, BitwidthConfiguration, number_of_configurations, sample
from schemas.errors import UsageError

unhurried = settings(deadline=None, max_examples=60)  # a busy machine is no defect
option_lists = st.lists(st.integers(1, 32), min_size=1, max_size=5, unique=True)
seeds = st.integers(-(2**70), 2**70)

GOLDEN = {  # what records of earlier versions were drawn as; a change needs a new version of the sampler
    ("iid", 5, (2, 4, 8), 0): [(2, 2, 2, 2, 8), (2, 2, 2, 8, 2), (2, 4, 4, 4, 4), (4, 2, 4, 8, 8)],
    ("iid", 3, (1, 2, 3, 4, 5, 6, 7, 8), 17): [(3, 4, 2), (3, 8, 5), (8, 8, 7)],
    ("uniform", 3, (2, 4, 8), 0): [(2, 2, 2), (4, 4, 4), (8, 8, 8)],
}


def draws(sampler: str, num_layers: int, options: tuple[int, ...], count: int, seed: int) -> list[tuple[int, ...]]:
    return [configuration.bitwidths for configuration in sample(sampler, num_layers, options, count, seed)]


@pytest.mark.parametrize(("asked", "drawn"), GOLDEN.items())
def test_the_first_draws_are_these_for_ever(asked: tuple, drawn: list[tuple[int, ...]]) -> None:
    sampler, num_layers, options, seed = asked
    assert draws(sampler, num_layers, options, len(drawn), seed) == drawn


def test_draws_carry_the_samplers_version() -> None:
    assert {
        name: f"{name}/1" for name in ("iid", "uniform", "stratified", "one-layer", "neighbours", "file")
    } == VERSIONED_NAMES


@unhurried
@given(num_layers=st.integers(1, 60), options=option_lists, count=st.integers(0, 40), seed=seeds)
def test_iid_draws_are_within_the_options_distinct_and_counted_from_0(
    num_layers: int, options: list[int], count: int, seed: int
) -> None:
    drawn = sample("iid", num_layers, options, count, seed)
    assert len(drawn) == min(count, len(options) ** num_layers) == len({one.bitwidths for one in drawn})
    assert all(len(one.bitwidths) == num_layers and set(one.bitwidths) <= set(options) for one in drawn)
    assert [one.index for one in drawn] == list(range(len(drawn)))


@unhurried
@given(
    num_layers=st.integers(1, 4), options=st.lists(st.integers(1, 32), min_size=1, max_size=3, unique=True), seed=seeds
)
def test_a_space_smaller_than_asked_for_is_enumerated_whole(num_layers: int, options: list[int], seed: int) -> None:
    everything = set(product(options, repeat=num_layers))
    assert number_of_configurations(num_layers, options) == len(everything)
    drawn = draws("iid", num_layers, options, 10_000, seed)
    assert len(drawn) == len(everything)
    assert set(drawn) == everything


@unhurried
@given(num_layers=st.integers(1, 5), options=option_lists, few=st.integers(0, 30), more=st.integers(0, 30), seed=seeds)
def test_asking_for_more_continues_where_fewer_ended(
    num_layers: int, options: list[int], few: int, more: int, seed: int
) -> None:
    longer = sample("iid", num_layers, options, few + more, seed)
    assert sample("iid", num_layers, options, few, seed) == longer[:few]


@unhurried
@given(options=st.permutations([2, 4, 8, 16]), seed=seeds)
def test_neither_order_nor_repetition_of_the_options_matters(options: list[int], seed: int) -> None:
    expected = sample("iid", 6, (2, 4, 8, 16), 8, seed)
    assert sample("iid", 6, [*options, options[0]], 8, seed) == expected


@unhurried
@given(num_layers=st.integers(1, 40), options=option_lists, seed=seeds, count=st.integers(0, 8))
def test_uniform_gives_every_layer_the_same_option_each_once_in_ascending_order(
    num_layers: int, options: list[int], seed: int, count: int
) -> None:
    expected = [(bits,) * num_layers for bits in sorted(options)]
    assert draws("uniform", num_layers, options, count, seed) == expected[:count]


def test_iid_layers_are_drawn_uniformly_and_independently() -> None:
    drawn = draws("iid", 12, (2, 4, 8), 6000, 3)
    for layer in range(12):  # 5 standard deviations of a binomial count
        counts = Counter(bits[layer] for bits in drawn)
        assert all(abs(counts[option] - 2000) < 5 * (6000 * 2 / 9) ** 0.5 for option in (2, 4, 8))
    for first in range(11):
        pairs = Counter((bits[first], bits[first + 1]) for bits in drawn)
        assert all(abs(pairs[pair] - 6000 / 9) < 5 * (6000 * 8 / 81) ** 0.5 for pair in product((2, 4, 8), repeat=2))


def test_an_unknown_sampler_is_a_usage_error() -> None:
    with pytest.raises(UsageError) as error:
        sample("lhs", 3, (2, 4), 1, 0)
    assert str(error.value) == (
        "sampler: expected one of iid, uniform, stratified, one-layer, neighbours, file, found 'lhs'"
    )


def test_another_seed_draws_others() -> None:
    assert len({tuple(draws("iid", 20, (2, 4, 8), 4, seed)) for seed in range(50)}) == 50


def test_another_process_with_another_hash_seed_draws_the_same() -> None:
    program = (
        "import json, sys; from qbw_eval.configurations import sample; "
        "print(json.dumps([[c.bitwidths, c.index, c.config_id] for c in sample('iid', 20, {8, 2, 4, 16}, 50, 5)])); "
        "assert 'torch' not in sys.modules"
    )
    expected = [[list(c.bitwidths), c.index, c.config_id] for c in sample("iid", 20, (2, 4, 8, 16), 50, 5)]
    for hash_seed in ("0", "12345"):
        finished = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(finished.stdout) == expected


def test_torchs_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), sample("iid", 10, (2, 4), 20, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert sample("iid", 10, (2, 4), 20, 0) == first


def test_a_configurations_id_depends_on_its_bits_alone() -> None:
    ids = {BitwidthConfiguration(bitwidths=bits, index=0).config_id for bits in product((2, 4, 8), repeat=3)}
    assert len(ids) == 27
    first, later = (BitwidthConfiguration(bitwidths=(2, 4), index=index) for index in (0, 9))
    assert first.config_id == later.config_id
    # The concatenated digits are no identity.
    assert (
        BitwidthConfiguration(bitwidths=(1, 6), index=0).config_id
        != BitwidthConfiguration(bitwidths=(16,), index=0).config_id
    )
