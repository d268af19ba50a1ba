"""The answers of every epoch, so that one sees how they settle while a network learns."""

from collections.abc import Iterator

import pandas as pd

from qbw_report.insight.answers import best_and_lowest
from qbw_report.insight.curve import curve_of
from qbw_report.insight.stability import spread_findings
from qbw_report.insight.thresholds import DEFAULTS
from qbw_report.insight.trend import correlation_findings
from qbw_report.selection import typical_rows

COST = "avg_bitwidth"
"""What accuracy is set against here; the other costs are told of the last epoch only."""

WITH_INTERVAL = ("pearson", "spearman", "knee", "lowest_cost", "spread")
"""Answers that have `<answer>_low` and `<answer>_high` beside them."""

OVER_EPOCHS_COLUMNS = [
    "series", "epoch", "configs",
    "pearson", "pearson_low", "pearson_high", "spearman", "spearman_low", "spearman_high",
    "knee", "knee_low", "knee_high", "lowest_cost", "lowest_cost_low", "lowest_cost_high",
    "stability", "spread", "spread_low", "spread_high",
    "best_accuracy", "best_bitwidth", "lowest_accuracy", "lowest_bitwidth",
]  # fmt: skip

_READ = [
    "series", "epoch", "avg_bitwidth", "bitwidth_bin", "accuracy", "config_id", "sampler", "target_cost", "target",
    "num_samples", "correct", "correct_mask", "data_id",
]  # fmt: skip


def answers_over_epochs(rows: pd.DataFrame, tolerance: float = DEFAULTS.tolerance) -> pd.DataFrame:
    """Return one line per series and epoch, sorted: what `qbw_report.insight.answers.answer` would say of it.

    Every number is NaN where it cannot be told, and where there is none (a knee). `configs` counts all rows, of which
    `best_*` is the most accurate one and `lowest_*` the one with the fewest bits within the tolerance of it; the other
    answers are about those that were drawn. Bitwidths, `knee` and `lowest_cost` in bits on average.

    Args:
        rows: with `series` and `bitwidth_bin`; at least one.
        tolerance: accepted loss of accuracy, as a share.
    """
    # A record has many columns, and each of them takes its time to be cut into epochs.
    groups = rows[_READ].groupby(["series", "epoch"])
    lines = [
        {"series": series, "epoch": epoch, "configs": len(group), **dict(_answers(group, tolerance))}
        for (series, epoch), group in groups
    ]
    table = pd.DataFrame(lines, columns=OVER_EPOCHS_COLUMNS)
    return table.astype(dict.fromkeys(OVER_EPOCHS_COLUMNS[3:], float))


def _answers(rows: pd.DataFrame, tolerance: float) -> Iterator[tuple[str, float | None]]:
    """Yield name and value of the answers of one epoch of one series."""
    drawn, source = typical_rows(rows)
    curve = curve_of(drawn, source, COST, tolerance)
    found = [*correlation_findings(drawn, source, COST), curve.knee, curve.enough, *spread_findings(drawn, source)]
    for finding in found:
        yield finding.question, finding.value
        if finding.question in WITH_INTERVAL:
            yield f"{finding.question}_low", finding.low
            yield f"{finding.question}_high", finding.high
    best, lowest = best_and_lowest(rows, tolerance)
    for name, row in (("best", best), ("lowest", lowest)):
        yield f"{name}_accuracy", None if row is None else row["accuracy"]
        yield f"{name}_bitwidth", None if row is None else row["avg_bitwidth"]
