"""Comparing on the same configurations and samples: who is better, how sure, and when it cannot be said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_helpers import RunCli
from simulated_records import digest, row, simulate, table_of, write_records

from qbw_report.bins import add_bins
from qbw_report.build import analyze
from qbw_report.compare import all_pairs, choose, compare, comparison_in_words
from qbw_report.overview import sort_overview
from qbw_report.series import add_series
from schemas.errors import QBWError, UsageError

SAMPLES = 400
BITS = ([2, 2], [2, 4], [4, 2], [4, 4], [8, 8])


def rows_with(experiment: str, right: np.ndarray, **others: Any) -> list[dict[str, Any]]:
    return [
        row(
            bits,
            int(mask.sum()),
            experiment=experiment,
            num_samples=SAMPLES,
            config_index=index,
            correct_mask=np.packbits(mask, bitorder="little").tobytes(),
            **others,
        )
        for index, (bits, mask) in enumerate(zip(BITS, right, strict=True))
    ]


def masks(accuracy: float, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """Return masks of configurations that find the same samples hard."""
    hardness = np.random.default_rng(seed).random(SAMPLES) + np.random.default_rng(1).normal(0, 0.03, (5, SAMPLES))
    return np.asarray(hardness < accuracy + shift)


def frame(*records: list[dict[str, Any]]) -> pd.DataFrame:
    return add_bins(add_series(table_of([one for part in records for one in part]).to_pandas()))


def test_a_better_experiment_is_told_with_an_interval_that_samples_alone_decide() -> None:
    rows = frame(rows_with("new", masks(0.9)), rows_with("old", masks(0.8)))
    found = compare(choose(rows, "new"), choose(rows, "old"))
    per_sample = masks(0.9).mean(axis=0) - masks(0.8).mean(axis=0)
    assert found.difference == pytest.approx(per_sample.mean())
    half = 1.959964 * per_sample.std(ddof=1) / np.sqrt(SAMPLES)
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half))
    assert found.verdict == "first is more accurate"
    assert (found.table["verdict"] == "first is more accurate").all()
    assert comparison_in_words(found).startswith("new, epoch 1 is more accurate than old, epoch 1: +")
    back = compare(choose(rows, "old"), choose(rows, "new"))
    assert back.verdict == "second is more accurate"
    assert back.difference == -found.difference
    assert comparison_in_words(back).startswith("new, epoch 1 is more accurate than old, epoch 1: -")


def test_a_hair_is_not_distinguishable() -> None:
    other = masks(0.9)
    other[:, :2] = ~other[:, :2]
    rows = frame(rows_with("a", masks(0.9)), rows_with("b", other))
    found = compare(choose(rows, "a"), choose(rows, "b"))
    assert found.verdict == "not distinguishable"
    assert set(found.table["verdict"]) == {"not distinguishable"}
    assert comparison_in_words(found).startswith("a, epoch 1 and b, epoch 1 are not distinguishable: ")


def test_pooling_masks_would_be_surer_than_it_may() -> None:
    rows = frame(rows_with("new", masks(0.9)), rows_with("old", masks(0.8)))
    found = compare(choose(rows, "new"), choose(rows, "old"))
    pooled = (masks(0.9).astype(float) - masks(0.8)).ravel()
    assert found.high - found.low > 1.5 * 2 * 1.96 * pooled.std() / np.sqrt(len(pooled))


def test_without_masks_intervals_are_wider_and_it_is_said() -> None:
    parts = [
        [one | {"correct_mask": None} for one in rows_with(name, masks(p))] for name, p in (("a", 0.9), ("b", 0.8))
    ]
    rows = frame(*parts)
    found = compare(choose(rows, "a"), choose(rows, "b"))
    assert found.method.startswith("binomial")
    with_masks = frame(rows_with("a", masks(0.9)), rows_with("b", masks(0.8)))
    paired = compare(choose(with_masks, "a"), choose(with_masks, "b"))
    assert found.difference == pytest.approx(paired.difference)
    assert found.high - found.low > paired.high - paired.low


def test_only_shared_configurations_are_compared() -> None:
    rows = frame(rows_with("a", masks(0.9))[:3], rows_with("b", masks(0.8))[1:])
    assert len(compare(choose(rows, "a"), choose(rows, "b")).table) == 2
    apart = frame(rows_with("a", masks(0.9))[:2], rows_with("b", masks(0.8))[2:])
    with pytest.raises(QBWError, match="no configuration in common; evaluate both with the same sampler, seed and opt"):
        compare(choose(apart, "a"), choose(apart, "b"))
    assert all_pairs(apart).empty


def test_other_samples_are_not_compared() -> None:
    rows = frame(rows_with("a", masks(0.9)), rows_with("b", masks(0.8), data_id=digest("other")))
    with pytest.raises(QBWError, match="measured on other samples; evaluate both on the same data"):
        compare(choose(rows, "a"), choose(rows, "b"))


def test_epochs_and_checkpoints_can_be_named() -> None:
    rows = frame(simulate(epochs=3, configs=5))
    assert choose(rows, "demo")[0] == "demo, epoch 3"
    assert choose(rows, "demo@2")[0] == "demo, epoch 2"
    assert choose(rows, "epoch_001.pt")[0] == "demo, epoch 1"
    with pytest.raises(UsageError, match="'demo@9': no epoch 9; there are 1 to 3"):
        choose(rows, "demo@9")


def test_a_name_of_several_series_is_asked_about() -> None:
    rows = frame(
        rows_with("a", masks(0.9), network_id="x", engine="reference"),
        rows_with("a", masks(0.9), network_id="y", engine="integer"),
    )
    data = digest("digits")[:8]
    assert sorted(rows["series"].unique()) == [f"a [validation {data}, integer]", f"a [validation {data}, reference]"]
    with pytest.raises(UsageError, match="'a': means 2 series; name one of: a "):
        choose(rows, "a")


def test_all_pairs_are_lines() -> None:
    rows = frame(rows_with("a", masks(0.9)), rows_with("b", masks(0.8)), rows_with("c", masks(0.9)))
    table = all_pairs(rows)
    assert table[["first", "second", "verdict"]].to_numpy().tolist() == [
        ["a", "b", "first is more accurate"],
        ["a", "c", "not distinguishable"],
        ["b", "c", "second is more accurate"],
    ]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return write_records(tmp_path / "records", rows_with("new", masks(0.9)), rows_with("old", masks(0.8)))


def test_the_command(run_cli: RunCli, records: Path) -> None:
    outcome = run_cli("compare", "new", "old", "--records", records)
    assert (outcome.code, outcome.stderr) == (0, "")
    lines = outcome.stdout.splitlines()
    assert lines[0] == "new, epoch 1 (first) and old, epoch 1 (second)"
    assert "Configurations that differ by more than chance: 5 of 5." in lines
    document = json.loads(run_cli("compare", "new", "old", "--records", records, "--json").stdout)
    assert document["verdict"] == "first is more accurate"
    assert len(document["configurations"]) == 5


def test_comparing_with_itself_is_a_mistake(run_cli: RunCli, records: Path) -> None:
    outcome = run_cli("compare", "new", "new@1", "--records", records)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "both are new, epoch 1; name two" in outcome.stderr


def test_all_series_in_one_table_sorted_by_any_answer(run_cli: RunCli, records: Path) -> None:
    table = analyze(records).comparison
    assert sort_overview(table, "best_accuracy")["series"].tolist() == ["new", "old"]
    assert sort_overview(table, "series")["series"].tolist() == ["new", "old"]
    assert sort_overview(table.iloc[::-1], "stability")["series"].isin(["new", "old"]).all()
    with pytest.raises(UsageError, match=r"--sort: expected one of series, engine, .*, found 'acc'"):
        sort_overview(table, "acc")
    outcome = run_cli("summary", records, "--sort", "mean_accuracy")
    assert "All series, by mean_accuracy:" in outcome.stdout.splitlines()
    assert run_cli("summary", records, "--sort", "knees").code == 2
