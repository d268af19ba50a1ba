"""The answers of every epoch are the answers: each epoch alone, by the function that answers for the last one."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_helpers import Report
from simulated_records import row, simulate, table_of

from qbw_report.bins import add_bins
from qbw_report.insight.answers import answer, best_and_lowest
from qbw_report.insight.over_epochs import OVER_EPOCHS_COLUMNS, WITH_INTERVAL, answers_over_epochs
from qbw_report.insight.thresholds import Thresholds
from qbw_report.series import add_series
from schemas.records import hash_of


def rows_of(records: list[dict[str, Any]]) -> pd.DataFrame:
    return add_bins(add_series(table_of(records).to_pandas()))


def slow_line(rows: pd.DataFrame, tolerance: float) -> dict[str, Any]:
    """Return the line of one epoch of one series, from everything that is asked of it."""
    told = answer(rows, Thresholds(tolerance=tolerance))
    line: dict[str, Any] = {"series": told.series, "epoch": told.epoch, "configs": len(rows)}
    for question in ("pearson", "spearman", "knee", "lowest_cost", "stability", "spread"):
        found = told.finding(question)
        line[question] = found.value
        if question in WITH_INTERVAL:
            line |= {f"{question}_low": found.low, f"{question}_high": found.high}
    lowest = told.lowest or replace(told.best, accuracy=math.nan, avg_bitwidth=math.nan)
    for name, measured in (("best", told.best), ("lowest", lowest)):
        line |= {f"{name}_accuracy": measured.accuracy, f"{name}_bitwidth": measured.avg_bitwidth}
    return line


def test_every_line_is_the_answers_of_its_epoch_alone_digit_for_digit() -> None:
    shuffled = np.random.default_rng(5).permutation
    rows = rows_of(
        [
            *shuffled(simulate(epochs=3, configs=40)),
            *shuffled(simulate(experiment="few", epochs=2, configs=4, seed=1)),
            *simulate(experiment="some", epochs=2, configs=9, seed=2, sampler="one-layer/1"),
        ]
    )
    expected = [slow_line(group, 0.02) for _, group in rows.groupby(["series", "epoch"])]
    pd.testing.assert_frame_equal(
        answers_over_epochs(rows, 0.02), pd.DataFrame(expected, columns=OVER_EPOCHS_COLUMNS), check_exact=True
    )


def test_one_row_has_a_best_configuration_and_nothing_else() -> None:
    (line,) = answers_over_epochs(rows_of([row([2, 4], 900)])).to_dict("records")
    told = {name: value for name, value in line.items() if value == value}
    assert told == {"series": "demo", "epoch": 0, "configs": 1, "best_accuracy": 0.9, "best_bitwidth": 3.0}


@pytest.mark.parametrize("seed", range(20))
def test_best_and_lowest_are_the_first_of_the_sorted_rows(seed: int) -> None:
    random = np.random.default_rng(seed)
    bits = random.choice([2, 4, 8], size=(12, 2)).tolist()
    records = [
        row(pair, int(random.integers(900, 906)), config_id=hash_of({"bits": pair, "at": index}))
        for index, pair in enumerate(bits)
    ]
    rows = rows_of(records)
    best, lowest = best_and_lowest(rows, 0.002)
    expected = rows.sort_values(["accuracy", "avg_bitwidth", "config_id"], ascending=[False, True, True]).iloc[0]
    enough = rows[rows["correct"] >= expected["correct"] - 2]
    first = enough.sort_values(["avg_bitwidth", "accuracy", "config_id"], ascending=[True, False, True]).iloc[0]
    assert lowest is not None
    assert (best["config_id"], lowest["config_id"]) == (expected["config_id"], first["config_id"])


def test_the_report_has_them_as_a_table_that_ends_with_its_comparison(report: Report) -> None:
    table = pd.read_csv(report.out / "answers_over_epochs.csv")
    assert list(table.columns) == OVER_EPOCHS_COLUMNS
    assert table.groupby("series").size().to_dict() == {"demo": 6, "other run": 1}
    last = table.groupby("series").tail(1).set_index("series")
    compared = pd.read_csv(report.out / "comparison.csv").set_index("series")
    shared = [name for name in compared.columns if name in last.columns]
    assert {"epoch", "pearson", "knee", "lowest_cost", "best_accuracy", "lowest_bitwidth"} <= set(shared)
    pd.testing.assert_frame_equal(last[shared], compared[shared], check_exact=True, check_dtype=False)
