"""Plans: what is in the hashes and what is not, and how missing configurations are cut into chunks."""

from dataclasses import replace
from typing import Any

import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import table_of

from qbw_eval.configurations import BitwidthConfiguration, SamplerSettings
from qbw_eval.layer_table import LayerTable
from qbw_eval.plan import Plan
from qbw_eval.sampling.ranges import parse_range

PLAN = Plan(
    sampler="iid",
    seed=0,
    options=(2, 4, 8),
    network={"weight": "dorefa", "model": {"width": 8}},
    table=table_of((9, 100), (3, 10)),
    data_id="data",
    num_samples=10,
    numerics="fp32/1",
    count=5,
)
CONFIGURATION = BitwidthConfiguration(bitwidths=(2, 4), index=3)

OTHERS: dict[str, Any] = {
    "sampler": "uniform",
    "seed": 1,
    "options": (2, 4),
    "network": {"weight": "dorefa", "model": {"width": 16}},
    "table": table_of((9, 100), (3, 11)),
    "data_id": "other data",
    "numerics": "fp32/1+tf32",
}


def with_macs(macs: int) -> LayerTable:
    return table_of((1, macs))


@pytest.mark.parametrize("field", OTHERS)
def test_whatever_could_change_a_result_changes_both_ids(field: str) -> None:
    other = replace(PLAN, **{field: OTHERS[field]})
    assert other.plan_id != PLAN.plan_id
    assert other.record_id("checkpoint", CONFIGURATION) != PLAN.record_id("checkpoint", CONFIGURATION)


@pytest.mark.parametrize("field", ["weights", "macs", "layer_name", "kind", "in_channels", "kernel", "stride"])
def test_every_fact_of_a_layer_changes_both_ids(field: str) -> None:
    first, second = PLAN.table.layers
    value = {"weights": 10, "macs": 11, "in_channels": 2}.get(field, "another")
    other = replace(PLAN, table=LayerTable((replace(first, **{field: value}), second)))
    swapped = replace(PLAN, table=LayerTable((second, first)))
    assert len({PLAN.plan_id, other.plan_id, swapped.plan_id}) == 3
    assert len({one.record_id("checkpoint", CONFIGURATION) for one in (PLAN, other, swapped)}) == 3


def test_checkpoint_bits_and_index_change_the_record_id() -> None:
    ids = {
        PLAN.record_id("checkpoint", CONFIGURATION),
        PLAN.record_id("another checkpoint", CONFIGURATION),
        PLAN.record_id("checkpoint", replace(CONFIGURATION, bitwidths=(4, 2))),
        PLAN.record_id("checkpoint", replace(CONFIGURATION, index=4)),
    }
    assert len(ids) == 4


def test_how_many_were_asked_for_changes_neither_id() -> None:
    more = replace(PLAN, count=9)
    assert more.plan_id == PLAN.plan_id
    assert more.record_id("checkpoint", CONFIGURATION) == PLAN.record_id("checkpoint", CONFIGURATION)
    assert more.configurations[:5] == PLAN.configurations


def test_no_two_records_of_a_plan_share_an_id() -> None:
    ids = [PLAN.record_id("checkpoint", one) for one in [*replace(PLAN, count=9).configurations, PLAN.reference]]
    assert len(set(ids)) == 10


def test_ids_are_these_for_ever() -> None:
    """Records that exist are found again by these; another value is another identity for everything there is."""
    assert PLAN.plan_id == "2a1af2a9dcf2c16b689050e9ff67b554"
    assert PLAN.record_id("checkpoint", CONFIGURATION) == "15166a13e2b73dae7f38916504b28e1d"
    assert replace(PLAN, sampler="uniform").plan_id == "bfef727862d1fda843b21a1999997fcd"
    assert replace(PLAN, sampler="stratified").plan_id == "da5afb4f46ad731edbb220b7a30125cf"
    bounded = replace(PLAN, sampler="stratified", settings=SamplerSettings(range=parse_range("bit_ops=1e3:")))
    assert bounded.plan_id == "d07d7ad60bed19638fef25b8d24eb56d"


def test_whatever_a_sampler_is_told_changes_the_id_and_spelling_does_not() -> None:
    settings_of: dict[str, list[SamplerSettings]] = {
        "stratified": [
            SamplerSettings(),
            SamplerSettings(cost="bit_ops"),
            SamplerSettings(range=parse_range("avg_bitwidth=2:3")),
            SamplerSettings(range=parse_range("avg_bitwidth=2:")),
            SamplerSettings(range=parse_range("weight_bytes=2:3")),
        ],
        "one-layer": [SamplerSettings(), SamplerSettings(base=4)],
        "file": [SamplerSettings(given=((2, 4),)), SamplerSettings(given=((4, 2),))],
        "neighbours": [SamplerSettings(given=((2, 4),))],
    }
    plans = [replace(PLAN, sampler=name, settings=told) for name, several in settings_of.items() for told in several]
    assert len({plan.plan_id for plan in [PLAN, *plans]}) == 1 + len(plans)
    for same, as_another in (
        (("stratified", SamplerSettings()), SamplerSettings(cost="avg_bitwidth")),
        (
            ("stratified", SamplerSettings(range=parse_range("avg_bitwidth=2:3"))),
            SamplerSettings(range=parse_range("avg_bitwidth=2.0:30e-1"), cost="avg_bitwidth"),
        ),
        (("one-layer", SamplerSettings()), SamplerSettings(base=8)),
        (("file", SamplerSettings(given=((2, 4),), source="a")), SamplerSettings(given=((2, 4),), source="b")),
    ):
        name, told = same
        plan = replace(PLAN, sampler=name, settings=told)
        assert replace(plan, settings=as_another).plan_id == plan.plan_id


def test_the_seed_is_in_the_id_of_samplers_that_draw_only() -> None:
    for name in ("iid", "stratified"):
        assert replace(PLAN, sampler=name, seed=1).plan_id != replace(PLAN, sampler=name).plan_id
    for name in ("uniform", "one-layer"):
        assert replace(PLAN, sampler=name, seed=1).plan_id == replace(PLAN, sampler=name).plan_id


def test_the_reference_has_every_layer_at_the_largest_option_and_no_index_of_the_sampler() -> None:
    assert PLAN.reference == BitwidthConfiguration(bitwidths=(8, 8), index=-1)


def test_rows_name_the_samplers_version() -> None:
    assert (PLAN.versioned_sampler, replace(PLAN, sampler="uniform").versioned_sampler) == ("iid/1", "uniform/1")


@pytest.mark.parametrize(
    ("macs", "samples", "size"),
    [
        (1, 1, 64),
        (0, 0, 64),
        (10**9, 3, 64),
        (10**9, 4, 50),
        (2 * 10**9, 10, 16),
        (10**9, 6250, 16),
        (10**9, 6251, 15),
        (10**9, 60_000, 1),
        (10**9, 10**6, 1),
    ],
)
def test_a_chunk_is_200_billion_macs_but_at_most_64_configurations_and_16_where_they_take_at_most_100_trillion(
    macs: int, samples: int, size: int
) -> None:
    assert replace(PLAN, table=with_macs(macs), num_samples=samples).chunk_size == size


def planned(count: int, chunk_size: int) -> Plan:
    table = table_of((1, 1), (1, 0), (1, 0), (1, 0), (1, 0))
    work = 200 * 10**9 if chunk_size >= 16 else 10**14
    plan = replace(PLAN, table=table, num_samples=work // chunk_size, count=count)
    assert plan.chunk_size == chunk_size
    assert len(plan.configurations) == count
    return plan


@settings(deadline=None)
@given(count=st.integers(0, 200), chunk_size=st.sampled_from([1, 2, 3, 7, 16, 50, 64]), data=st.data())
def test_chunks_are_exactly_the_missing_configurations_in_runs_within_the_grid(
    count: int, chunk_size: int, data: st.DataObject
) -> None:
    plan = planned(count, chunk_size)
    done = data.draw(st.sets(st.integers(0, max(0, count + 10))))
    chunks = list(plan.chunks(done))
    indices = [[configuration.index for configuration in chunk] for chunk in chunks]
    assert indices == references.runs_of_missing(count, chunk_size, done)
    assert all(configuration in plan.configurations for chunk in chunks for configuration in chunk)


def test_chunks_by_hand() -> None:
    indices = [[one.index for one in chunk] for chunk in planned(12, 4 - 1).chunks({0, 4, 9, 10, 11, 40})]
    assert indices == [[1, 2], [3], [5], [6, 7, 8]]


def test_asking_for_more_leaves_finished_chunks_where_they_were() -> None:
    done = {configuration.index for chunk in planned(7, 3).chunks(set()) for configuration in chunk}
    indices = [[one.index for one in chunk] for chunk in planned(11, 3).chunks(done)]
    assert indices == [[7, 8], [9, 10]]


def test_where_everything_is_done_there_is_no_chunk() -> None:
    assert list(planned(7, 3).chunks(set(range(7)))) == []
