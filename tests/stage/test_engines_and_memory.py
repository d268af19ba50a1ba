"""`qbw-eval run --engine` and `--memory`: what is told, and rows that do not depend on how they were computed."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stage_references import qbw_eval, without_nan

from qbw_eval.engine import choose
from qbw_eval.engine.packing import why_not_here
from qbw_eval.engine.passes import PLAIN


@pytest.fixture
def checkpoint(tiny_checkpoints: Path) -> Path:
    return tiny_checkpoints / "epoch_003.pt"


def run(checkpoint: Path, records: Path, *words: object) -> tuple[list[dict[str, Any]], list[str]]:
    """Evaluate 5 configurations on 50 samples; return the rows and the lines on stderr."""
    outcome = qbw_eval(
        *("run", checkpoint, "--records", records, "--num-configs", 5, "--limit", 50, "--batch-size", 50, *words)
    )
    assert outcome.code == 0, outcome.stderr
    return without_nan(pd.read_parquet(records).sort_values("config_index")), outcome.stderr.splitlines()


def without(rows: list[dict[str, Any]], *columns: str) -> list[dict[str, Any]]:
    ignored = {"duration_s", "evaluated_at", *columns}
    return [{name: value for name, value in row.items() if name not in ignored} for row in rows]


def test_incremental_rows_are_the_references_rows_and_share_their_names(checkpoint: Path, tmp_path: Path) -> None:
    reference, told = run(checkpoint, tmp_path / "reference", "--engine", "reference")
    assert "engine: reference (as asked)" in told
    incremental, told = run(checkpoint, tmp_path / "incremental", "--engine", "incremental")
    assert "engine: incremental (as asked)" in told
    auto, told = run(checkpoint, tmp_path / "auto")
    why = "equal to the reference in every bit, and there is little to compute"
    assert f"engine: incremental ({why})" in told
    assert without(incremental, "engine") == without(reference, "engine")
    assert without(auto) == without(incremental)
    assert [{row["engine"] for row in rows} for rows in (reference, incremental)] == [{"reference"}, {"incremental"}]


@pytest.mark.skipif(why_not_here() is not None, reason=f"no integer convolutions here: {why_not_here()}")
def test_integer_rows_are_other_rows_that_say_so(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "fastest_passes", lambda: PLAIN)  # compiling takes a second
    reference, _ = run(checkpoint, tmp_path / "reference", "--engine", "reference")
    integer, told = run(checkpoint, tmp_path / "integer", "--engine", "integer")
    (line,) = (line for line in told if line.startswith("engine: "))
    assert line.startswith("engine: integer (exact convolutions of integers at 8 bits or fewer; ")
    assert "what lies between them is plain torch" in line
    assert {row["engine"] for row in integer} == {"integer"}
    assert {row["record_id"] for row in integer}.isdisjoint(row["record_id"] for row in reference)
    for ours, theirs in zip(integer, reference, strict=True):
        assert ours["bitwidths"] == theirs["bitwidths"]
        assert abs(ours["correct"] - theirs["correct"]) <= 1
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
    # Both kinds can lie in one folder: the same command finds its own.
    both, _ = run(checkpoint, tmp_path / "integer", "--engine", "reference")
    assert len(both) == 10
    assert len(run(checkpoint, tmp_path / "integer", "--engine", "integer")[0]) == 10


def test_little_memory_makes_small_batches_that_are_told_of_and_the_same_rows(checkpoint: Path, tmp_path: Path) -> None:
    usual, told = run(checkpoint, tmp_path / "usual", "--memory", "1GiB")
    assert not any("--memory" in line for line in told)
    little, told = run(checkpoint, tmp_path / "little", "--memory", "20kB")
    (line,) = (line for line in told if "--memory" in line)
    size, words = line.split(maxsplit=1)
    assert 1 <= int(size) < 50
    assert words in (
        "samples a batch instead of 50: more do not fit into the memory allowed (--memory)",
        "sample a batch instead of 50: more do not fit into the memory allowed (--memory)",
    )
    assert without(little, "loss", "kl_divergence") == without(usual, "loss", "kl_divergence")
    for ours, theirs in zip(little, usual, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["kl_divergence"] == pytest.approx(theirs["kl_divergence"], rel=1e-4)


@pytest.mark.parametrize("size", ["much", "-1GB", "4GB8"])
def test_what_is_no_size_is_a_mistake_of_usage(checkpoint: Path, tmp_path: Path, size: str) -> None:
    outcome = qbw_eval("run", checkpoint, "--records", tmp_path / "records", f"--memory={size}")
    assert outcome.code == 2
    assert f"expected a size such as 800MB, 4GiB or a number of bytes, found {size!r}" in outcome.stderr
    assert not (tmp_path / "records").exists()


def test_what_is_no_engine_is_a_mistake_of_usage(checkpoint: Path, tmp_path: Path) -> None:
    outcome = qbw_eval("run", checkpoint, "--records", tmp_path / "records", "--engine", "fastest")
    assert outcome.code == 2
    assert "'fastest' is not one of 'auto', 'reference', 'incremental', 'integer'" in outcome.stderr
