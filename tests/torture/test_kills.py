"""SIGKILL at random times: four writers on one folder, killed and started again until nothing is missing."""

import random
import signal
import time
from itertools import count
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pandas as pd
from torture_work import (
    acknowledged,
    checkpoint_id_of,
    doubled,
    plan_of,
    rows_in,
    uninterrupted,
    write_until_told,
)

from qbw_eval.verify import verify

WRITERS = 4
PLAN = plan_of(96, chunk_size=8)
CHECKPOINTS = [checkpoint_id_of(number) for number in range(3)]


def read_in_a_loop(folder: Path, stop, outcome) -> None:
    """Be a person with pandas: read until told to stop; send how often, and all that was wrong."""
    reads, problems, before = 0, [], 0
    while not stop.is_set():
        if (folder / "records" / "0-schema.parquet").exists():
            try:
                frame = pd.read_parquet(folder / "records")
                if frame["record_id"].duplicated().any():
                    problems.append("a row twice")
                if len(frame) < before:
                    problems.append(f"{before} rows, then {len(frame)}")
                before, reads = len(frame), reads + 1
            except Exception as error:
                problems.append(repr(error))
        time.sleep(0.01)
    outcome.put((reads, problems))


def run_with_kills(folder: Path, processes: ForkServerContext, draw: random.Random, wanted: int) -> int:
    """Start writers, kill a random one at random times, and start it again; return how many died of it.

    Ends after `wanted` kills, or when all four found nothing left to do.
    """
    logs = (folder / f"{number}.log" for number in count())
    kills, writers = 0, {}
    try:
        while kills < wanted:
            for place in range(WRITERS):
                if place not in writers:
                    order = draw.sample(CHECKPOINTS, len(CHECKPOINTS))
                    writers[place] = processes.Process(
                        target=write_until_told, args=(folder, PLAN, order, next(logs), 0.01)
                    )
                    writers[place].start()
            time.sleep(0.15 * draw.random() ** 2)
            victim = writers.pop(draw.randrange(WRITERS))
            victim.kill()
            victim.join()
            kills += victim.exitcode == -signal.SIGKILL
            if victim.exitcode == 0 and all(writer.exitcode == 0 for writer in writers.values()):
                break
    finally:
        for writer in writers.values():
            writer.kill()
            writer.join()
            kills += writer.exitcode == -signal.SIGKILL
    return kills


def test_kills(tmp_path: Path, processes: ForkServerContext, seed: int, trials, report) -> None:
    draw, wanted = random.Random(seed), trials(25, 2000)
    expected = uninterrupted(PLAN, CHECKPOINTS)
    kills = reads = acknowledgements = lost = twice = invalid = wrong = 0
    for number in count():
        if kills >= wanted:
            break
        folder = tmp_path / str(number)
        folder.mkdir()
        stop, outcome = processes.Event(), processes.Queue()
        reader = processes.Process(target=read_in_a_loop, args=(folder, stop, outcome))
        reader.start()
        kills += run_with_kills(folder, processes, draw, min(25, wanted - kills))
        logs = list(folder.glob("*.log"))
        safe, there = acknowledged(logs, PLAN), rows_in(folder / "records")
        lost += len(safe - set(there["record_id"].to_pylist()))
        twice += doubled(there)
        acknowledgements += len(safe)
        resumed = processes.Process(target=write_until_told, args=(folder, PLAN, CHECKPOINTS, folder / "resumed.log"))
        resumed.start()
        resumed.join()
        stop.set()
        its_reads, problems = outcome.get()
        reader.join()
        reads, invalid = reads + its_reads, invalid + len(problems)
        complete = rows_in(folder / "records").equals(expected)
        wrong += resumed.exitcode != 0 or not complete or bool(verify(folder / "records").problems)
    failures = lost + twice + invalid + wrong
    report(
        test="kills", trials=kills, failures=failures, unit="kills", acknowledged_rows=acknowledgements,
        lost=lost, doubled=twice, datasets=number, wrong_after_resuming=wrong, reads=reads, invalid_reads=invalid,
    )  # fmt: skip
    assert (lost, twice, invalid, wrong) == (0, 0, 0, 0)
    assert kills >= wanted
    assert acknowledgements
    assert reads
