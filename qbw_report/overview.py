"""All answers as tables: a line per answer, and a line per series to sort by any of them."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict

import pandas as pd

from qbw_report.insight.answers import Answers
from qbw_report.insight.finding import Finding
from schemas.errors import UsageError, did_you_mean

OVERVIEW_COLUMNS = [
    "series", "engine", "epoch", "configs", "samples", "mean_accuracy", "best_accuracy", "best_bitwidth",
    "lowest_accuracy", "lowest_bitwidth", "pearson", "spearman", "knee", "lowest_cost", "stability", "spread",
    "prediction",
]  # fmt: skip

_FROM_FINDINGS = ("pearson", "spearman", "knee", "lowest_cost", "stability", "spread")

_DESCENDING = {"mean_accuracy", "best_accuracy", "lowest_accuracy", "pearson", "spearman", "prediction"}
"""Where more is better; of the others the smallest comes first."""

FINDING_COLUMNS = [
    "series", "epoch", "question", "cost", "value", "low", "high", "unit", "verdict", "unknown", "more", "configs",
    "method", "source",
]  # fmt: skip


def findings_table(answers: Iterable[Answers], further: Mapping[str, tuple[Finding, ...]]) -> pd.DataFrame:
    """Return a line for each answer of each series; `further` are answers by series."""
    lines = [
        {"series": each.series, "epoch": each.epoch, **asdict(finding)}
        for each in answers
        for finding in (*each.findings, *further[each.series])
    ]
    return pd.DataFrame(lines, columns=FINDING_COLUMNS)


def overview(
    answers: Iterable[Answers], findings: pd.DataFrame, epochs: pd.DataFrame, cells: pd.DataFrame
) -> pd.DataFrame:
    """Return a line for each series: what its last epoch says; NaN where it cannot be told.

    Args:
        answers: of every series.
        findings: `findings_table` of them.
        epochs: `qbw_report.statistics.epoch_statistics`.
        cells: of all rows, with `series`.
    """
    lines = []
    for each in answers:
        found = findings[(findings["series"] == each.series) & findings["cost"].isin(["avg_bitwidth", ""])]
        value = dict(zip(found["question"], found["value"], strict=True))
        statistics = epochs[(epochs["series"] == each.series) & (epochs["epoch"] == each.epoch)].iloc[0]
        engines = cells.loc[cells["series"] == each.series, "engine"].fillna("unknown").astype(str)
        lines.append(
            {
                "series": each.series,
                "engine": " + ".join(sorted(engines.unique())),
                "epoch": each.epoch,
                "configs": int(statistics["configs"]),
                "samples": each.num_samples,
                "mean_accuracy": statistics["accuracy_mean"],
                "best_accuracy": each.best.accuracy,
                "best_bitwidth": each.best.avg_bitwidth,
                "lowest_accuracy": None if each.lowest is None else each.lowest.accuracy,
                "lowest_bitwidth": None if each.lowest is None else each.lowest.avg_bitwidth,
                **{question: value.get(question) for question in _FROM_FINDINGS},
                "prediction": value.get("prediction"),
            }
        )
    table = pd.DataFrame(lines, columns=OVERVIEW_COLUMNS)
    numbers = OVERVIEW_COLUMNS[5:]
    return table.astype(dict.fromkeys(numbers, float))


def sort_overview(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return the lines sorted by a column, the best first; what cannot be told comes last.

    Raises:
        UsageError: there is no such column.
    """
    if by not in OVERVIEW_COLUMNS:
        known = ", ".join(OVERVIEW_COLUMNS)
        raise UsageError(f"--sort: expected one of {known}, found {by!r}{did_you_mean(by, OVERVIEW_COLUMNS)}")
    return table.sort_values([by, "series"], ascending=[by not in _DESCENDING, True], ignore_index=True)
