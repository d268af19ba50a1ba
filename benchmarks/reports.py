"""How long statistics of very many rows take, against DuckDB on the same files, and how long a report.

Each in a process of its own, which has nothing else in memory: `python -m benchmarks.reports statistics FOLDER` prints
its seconds and the largest memory of the process and of those it started.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.figures import Figure, ratio
from benchmarks.many_records import write_campaign
from benchmarks.timing import seconds

_ROUNDS = 3
_TIMES_DUCKDB, _MOST_GIB, _REPORT_SECONDS = 2.0, 2.0, 15.0

_THREADS = 2
"""Of DuckDB, where there are more cores: as many as its bound was set for."""


def report_figures() -> list[Figure]:
    """Statistics of 10 million rows in 1,000 parts, and a report of 100 epochs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_campaign(folder / "many", experiments=10, epochs=100, configs=10_000)
        write_campaign(folder / "few" / "records", experiments=1, epochs=100, configs=64)
        return [*_statistics_figures(folder / "many", rows, _ROUNDS), *_report_figures(folder / "few", _ROUNDS)]


def _statistics_figures(folder: Path, rows: int, rounds: int) -> list[Figure]:
    label = f"{rows:,} rows in {rows // 10_000:,} parts"
    ours: list[dict[str, float]] = []
    duckdb: dict[str, list[dict[str, float]]] = {"two statements": [], "one statement, grouping sets": []}
    for _ in range(rounds):
        ours.append(_in_a_process("statistics", folder))
        for kind, measured in duckdb.items():
            measured.append(_in_a_process(kind, folder))
    taken = [each["seconds"] for each in ours]
    figures = [Figure(figure=f"statistics of {label}", values=taken, unit="s")]
    for kind, measured in duckdb.items():
        theirs = [each["seconds"] for each in measured]
        figures.append(Figure(figure=f"DuckDB, the same grouping of {label}, {kind}", values=theirs, unit="s"))
        bound = _TIMES_DUCKDB if kind == "two statements" else None
        figures.append(ratio(f"statistics / DuckDB, {label}, {kind}", taken, theirs, at_most=bound))
    peaks = [each["bytes"] / 2**30 for each in ours]
    figures.append(
        Figure(figure=f"statistics of {label}, peak resident set", values=peaks, unit="GiB", at_most=_MOST_GIB)
    )
    return figures


def _report_figures(folder: Path, rounds: int) -> list[Figure]:
    command = [str(Path(sys.executable).parent / "qbw-report"), "build", str(folder / "records")]
    run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    times = [seconds(partial(run, [*command, "--out", str(folder / f"report-{n}")])) for n in range(rounds)]
    label = "qbw-report build, 100 epochs x 64 configurations"
    return [Figure(figure=label, values=times, unit="s", at_most=_REPORT_SECONDS)]


def _in_a_process(what: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.reports", what, str(folder)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def our_statistics(folder: Path) -> int:
    """Make the tables of epochs and bins, and return how many lines they have."""
    from qbw_report.statistics import bin_statistics, epoch_statistics, join_bins
    from qbw_report.survey import survey

    binned = join_bins(survey(folder).cells)
    return len(epoch_statistics(binned)) + len(bin_statistics(binned))


def duckdb_statistics(folder: Path, *, grouping_sets: bool) -> int:
    """Make the same tables with DuckDB: groups, means, deviations, extremes, correlation."""
    import duckdb

    keys = "experiment, split, data_id, network_id, epoch"
    numbers = ", ".join(
        f"avg({c}), stddev_pop({c}), min({c}), max({c})"
        for c in ("accuracy", "CASE WHEN isfinite(loss) THEN loss END", "avg_bitwidth")
    )
    numbers = f"count(*), count(CASE WHEN isfinite(loss) THEN 1 END), {numbers}"
    rows = f"(SELECT *, round_even(avg_bitwidth, 1) AS bin FROM read_parquet('{folder}/*.parquet'))"
    correlation = "corr(avg_bitwidth, accuracy)"
    if grouping_sets:
        sets = f"GROUPING SETS (({keys}), ({keys}, bin))"
        statements = [f"SELECT {keys}, bin, {numbers}, {correlation} FROM {rows} GROUP BY {sets}"]
    else:
        statements = [
            f"SELECT {keys}, {numbers}, {correlation} FROM {rows} GROUP BY {keys}",
            f"SELECT {keys}, bin, {numbers} FROM {rows} GROUP BY {keys}, bin",
        ]
    connection = duckdb.connect(config={"threads": min(_THREADS, os.cpu_count() or 1)})
    return sum(len(connection.execute(statement).fetchall()) for statement in statements)


def main(what: str, folder: Path) -> None:
    """Print what one way takes in this process; imports are not counted."""
    actions: dict[str, Callable[[Path], int]] = {
        "statistics": our_statistics,
        "two statements": partial(duckdb_statistics, grouping_sets=False),
        "one statement, grouping sets": partial(duckdb_statistics, grouping_sets=True),
    }
    import duckdb  # noqa: F401 # neither is charged for its imports

    import qbw_report.statistics
    import qbw_report.survey  # noqa: F401 # likewise

    start = time.perf_counter()
    lines = actions[what](folder)
    taken = time.perf_counter() - start
    # Of this process and the largest of its children, in KiB on Linux: more than all of them have at once.
    own, children = (resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peak = 1024 * (own + children * min(_THREADS, os.cpu_count() or 1))
    print(json.dumps({"seconds": taken, "bytes": peak, "lines": lines}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
