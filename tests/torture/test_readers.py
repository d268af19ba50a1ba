"""Plain pandas, duckdb and polars read in a loop while writers append; they know nothing of how parts come about."""

import time
from collections.abc import Callable
from itertools import count
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from torture_work import checkpoint_id_of, plan_of, uninterrupted, write_until_told

from qbw_eval.store import RecordStore

PLAN = plan_of(128, chunk_size=2, num_samples=100)
CHECKPOINTS = [checkpoint_id_of(number) for number in range(2)]


def with_pandas(folder: Path) -> list[str]:
    import pandas as pd

    return pd.read_parquet(folder)["record_id"].tolist()


def with_duckdb(folder: Path) -> list[str]:
    import duckdb

    return [row[0] for row in duckdb.sql(f"select * from '{folder}/*.parquet'").project("record_id").fetchall()]


def with_polars(folder: Path) -> list[str]:
    import polars as pl

    return pl.read_parquet(folder)["record_id"].to_list()


def read_while_they_write(read: Callable[[Path], list[str]], folder: Path, stop, outcome) -> None:
    """Be a reader: send how often the folder was read, how often it had grown, and all that was wrong."""
    reads, grown, problems, before = 0, 0, [], 0
    while not stop.is_set():
        try:
            ids = read(folder)
        except Exception as error:
            problems.append(repr(error))
            continue
        if len(set(ids)) != len(ids):
            problems.append("a row twice")
        if len(ids) < before:
            problems.append(f"{before} rows, then {len(ids)}")
        reads, grown, before = reads + 1, grown + (len(ids) > before), len(ids)
    outcome.put((reads, grown, problems))


@pytest.mark.parametrize("read", [with_pandas, with_duckdb, with_polars])
def test_readers(tmp_path: Path, processes: ForkServerContext, full: bool, trials, report, read) -> None:
    checkpoints = CHECKPOINTS if full else CHECKPOINTS[:1]
    wanted = trials(34, 1667)
    reads = grown = 0
    problems: list[str] = []
    for number in count():
        if reads >= wanted:
            break
        folder = tmp_path / str(number)
        folder.mkdir()
        RecordStore(folder / "records").add_layers(PLAN.table)
        stop, outcome = processes.Event(), processes.Queue()
        reader = processes.Process(target=read_while_they_write, args=(read, folder / "records", stop, outcome))
        writers = [
            processes.Process(
                target=write_until_told, args=(folder, PLAN, checkpoints[::order], folder / f"{order}.log", 0.02)
            )
            for order in (1, -1)
        ]
        reader.start()
        time.sleep(0.3)  # importing takes a moment; correctness does not depend on it
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        stop.set()
        its_reads, its_growth, its_problems = outcome.get()
        reader.join()
        reads, grown, problems = reads + its_reads, grown + its_growth, problems + its_problems
        everything = uninterrupted(PLAN, checkpoints)["record_id"].to_pylist()
        if sorted(read(folder / "records")) != everything:
            problems.append("other rows in the end than an uninterrupted run")
    engine = read.__name__.removeprefix("with_")
    report(
        test=f"readers: {engine}", trials=reads, failures=len(problems), unit="reads", saw_it_grow=grown,
        datasets=number, problems=problems[:3],
    )  # fmt: skip
    assert problems == []
