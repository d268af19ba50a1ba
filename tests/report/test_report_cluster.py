"""A report whose records are read by a Dask cluster: the same bytes, and one sentence where it cannot be."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_helpers import Report, RunCli
from simulated_records import simulate, write_records

from qbw_report.build import analyze, json_text
from qbw_report.cluster import on_cluster

distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a cluster of two workers."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", memory_limit=0
    ) as cluster:
        yield cluster.scheduler_address


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_it_has_the_bytes_of_the_local_one(run_cli: RunCli, report: Report, tmp_path: Path, scheduler: str) -> None:
    outcome = run_cli("build", report.records, "--out", tmp_path, "--executor", "dask", "--scheduler", scheduler)
    assert outcome.code == 0, outcome.stderr
    assert contents(tmp_path) == contents(report.out)


def test_many_parts_and_repeated_rows_give_the_same_numbers(tmp_path: Path, scheduler: str) -> None:
    parts = [simulate(experiment="demo", epochs=1, configs=6, seed=seed) for seed in range(40)]
    # Among these, a few configurations are drawn again: rows which repeat are looked for, too.
    records = write_records(tmp_path / "records", *parts)
    local = analyze(records)
    with on_cluster(scheduler) as each:
        assert json_text(analyze(records, each=each)) == json_text(local)
    assert [note for note in local.notes if "already there; each counts once" in note]


def test_a_cluster_of_its_own() -> None:
    with on_cluster(None) as each:
        assert list(each(abs, range(-100, 0))) == list(range(100, 0, -1))


def test_nobody_at_the_address(run_cli: RunCli, report: Report, tmp_path: Path) -> None:
    outcome = run_cli(
        "build", report.records, "--out", tmp_path, "--executor", "dask", "--scheduler", "tcp://127.0.0.1:9"
    )
    assert outcome.code == 1
    assert outcome.stderr.startswith(
        "qbw-report: error: --scheduler tcp://127.0.0.1:9: no Dask scheduler answers there ("
    )
    assert outcome.stderr.endswith("start one with: dask scheduler\n")


def test_a_scheduler_without_dask_is_a_mistake(run_cli: RunCli, report: Report) -> None:
    outcome = run_cli("build", report.records, "--scheduler", "tcp://127.0.0.1:9")
    assert (outcome.code, outcome.stderr.splitlines()[-1]) == (
        2, "qbw-report: error: --scheduler: only --executor dask has one",
    )  # fmt: skip


def test_without_dask_the_sentence_names_the_extra(report: Report, tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['distributed'] = None; from qbw_report.cli import main; main()"
    words = ["build", str(report.records), "--out", str(tmp_path / "out")]
    ended = subprocess.run(
        [sys.executable, "-c", hidden, *words, "--executor", "dask"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        "qbw-report: error: --executor dask: distributed is not installed: pip install 'qbw[dask]'; --executor local "
        "does without\n"
    )
