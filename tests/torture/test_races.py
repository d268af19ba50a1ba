"""The same chunks at the same moment from many processes, half of which were asked for fewer configurations."""

import random
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from torture_work import checkpoint_id_of, doubled, plan_of, rows_in, rows_of, uninterrupted

from qbw_eval.store import RecordStore
from qbw_eval.verify import verify

PLAN = plan_of(64, chunk_size=64)
SHORT_PLAN = plan_of(20, chunk_size=64)
PER_FOLDER = 200


def append_when_all_are_ready(folder: Path, races: range, plan, together, outcome) -> None:
    """Be one of those who race: send how many rows were new, of each race; -1 where it ended in an error."""
    new = [-1] * len(races)
    try:
        store = RecordStore(folder / "records")
        store.add_layers(plan.table)
        for number, race in enumerate(races):
            rows = rows_of(plan, checkpoint_id_of(race), plan.configurations)
            together.wait()  # however long the machine was paused: nothing here depends on time
            new[number] = store.append(checkpoint_id_of(race), plan.plan_id, rows)
    finally:
        if -1 in new:
            together.abort()
        outcome.put(new)


def test_the_plans_overlap_in_chunks_of_different_length() -> None:
    assert PLAN.plan_id == SHORT_PLAN.plan_id
    (long,), (short,) = PLAN.chunks(set()), SHORT_PLAN.chunks(set())
    assert (len(long), len(short)) == (64, 20)
    assert long[:20] == short


@pytest.mark.parametrize(("runners", "everything"), [(2, 2000), (4, 1500), (8, 1000), (16, 500)])
def test_races(
    tmp_path: Path, processes: ForkServerContext, seed: int, trials, report, runners: int, everything: int
) -> None:
    wanted, draw = trials(12, everything), random.Random(seed)
    failures = twice = wrong = short_won = 0
    for begin in range(0, wanted, PER_FOLDER):
        folder, races = tmp_path / str(begin), range(begin, min(wanted, begin + PER_FOLDER))
        folder.mkdir()
        together, outcome = processes.Barrier(runners), processes.Queue()
        plans = [PLAN, SHORT_PLAN] * (runners // 2)
        draw.shuffle(plans)
        everyone = [
            processes.Process(target=append_when_all_are_ready, args=(folder, races, plan, together, outcome))
            for plan in plans
        ]
        for runner in everyone:
            runner.start()
        new = [outcome.get() for _ in everyone]
        for runner in everyone:
            runner.join()
        # One winner each: of every row exactly one process was told that it is the one who wrote it.
        failures += sum(-1 in of_race or sum(of_race) != len(PLAN.configurations) for of_race in zip(*new, strict=True))
        there = rows_in(folder / "records")
        twice += doubled(there)
        wrong += not there.equals(uninterrupted(PLAN, map(checkpoint_id_of, races)))
        wrong += bool(verify(folder / "records").problems)
        short_won += sum(20 in of_race for of_race in zip(*new, strict=True))
    report(
        test=f"races of {runners} processes", trials=wanted, failures=failures + twice + wrong, unit="races",
        doubled=twice, wrong_folders=wrong, won_by_the_shorter=short_won,
    )  # fmt: skip
    assert (failures, twice, wrong) == (0, 0, 0)
