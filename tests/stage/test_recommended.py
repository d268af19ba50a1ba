"""The round trip: evaluate, recommend within a budget, evaluate the file, and read how it stands."""

from pathlib import Path

import pandas as pd
import pytest
from stage_references import without_nan

from benchmarks.recommendation import BUDGETS, points_better, round_trip
from qbw_report.build import analyze
from qbw_report.recommend import Recommendation, verdict


@pytest.fixture(scope="module")
def trip(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Recommendation]]:
    """The records of the round trip with a small network, and what is recommended after it."""
    records = tmp_path_factory.mktemp("trip") / "records"
    checkpoint = sorted(tiny_checkpoints.iterdir())[-1]
    return records, round_trip(checkpoint, records, configs=40)


def test_what_is_recommended_is_measured_within_its_budget_and_the_verdict_is_there(
    trip: tuple[Path, list[Recommendation]],
) -> None:
    records, found = trip
    measured = {row["config_id"]: row for row in without_nan(pd.read_parquet(records))}
    assert [recommended.budgets for recommended in found] == [(budget,) for budget in BUDGETS]
    for recommended in found:
        best, uniform = recommended.best_predicted, recommended.best_uniform
        row = measured[best.config_id]
        assert row["bitwidths"] == list(best.bitwidths)
        assert row["accuracy"] == best.measured
        cost, limit = recommended.budgets[0].split("<=")
        assert row[cost] == best.costs[cost] <= float(limit)
        assert uniform is not None
        better = points_better(recommended)
        assert better == best.measured - uniform.measured
        word = "at least as good as" if better >= 0 else "worse than"
        told = f"Measured, it is {word} the best uniform configuration within the budget ({100 * better:+.1f} points; "
        assert verdict(recommended).startswith(told + "95%: ")


def test_the_next_report_tells_predicted_and_measured(trip: tuple[Path, list[Recommendation]]) -> None:
    records, found = trip
    told = analyze(records).sentences("tiny")
    # A configuration that was drawn as well, or is best within two budgets, is one of one kind.
    rows = pd.read_parquet(records)
    given = rows[rows["sampler"].str.startswith("file")]
    assert 1 <= len(given) <= len(BUDGETS)
    for recommended in found:
        best = recommended.best_predicted
        if best.config_id in set(given["config_id"]):
            interval = f"{best.predicted:.4f} predicted (95%: {best.low:.4f} to {best.high:.4f})"
            beginning = (
                f"Configuration {best.config_id[:8]} from a file ({best.costs['avg_bitwidth']:.2f} bits on average)"
            )
            (sentence,) = (each for each in told if each.startswith(beginning))
            assert f"{interval}, {best.measured:.4f} measured" in sentence
