"""Statistics -> tables for a terminal; plain text with aligned columns where there is none."""

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

LAST_EPOCHS = 10
"""How many epochs a table shows; files and JSON have all of them."""

MOST_DIFFERENCES = 20
"""How many configurations a comparison shows; JSON has all of them."""

PLAIN_WIDTH = 120
"""Columns assumed where the output is not a terminal, so that a pipe sees whole numbers."""


def print_epochs(console: Console, statistics: pd.DataFrame) -> None:
    """Print a line for each of the last epochs of one series; epochs are counted from 1.

    Args:
        console: where to.
        statistics: rows of one series from `qbw_report.statistics.per_epoch`.
    """
    table = _table(console, "epoch", "configs", "mean acc.", "std", "min", "max", "avg. bits", "correlation")
    for row in statistics.tail(LAST_EPOCHS).to_dict("records"):
        table.add_row(
            str(row["epoch"] + 1),
            str(row["configs"]),
            *_accuracy(row),
            f"{row['bitwidth_min']:.2f}-{row['bitwidth_max']:.2f}",
            "-" if pd.isna(row["correlation"]) else f"{row['correlation']:.2f}",
        )
    console.print(table)
    hidden = len(statistics) - LAST_EPOCHS
    if hidden > 0:
        console.print(f"({hidden} earlier epochs: statistics.csv, or qbw-report summary --json)", soft_wrap=True)


def print_bins(console: Console, bins: pd.DataFrame) -> None:
    """Print a line for each bitwidth bin of one epoch.

    Args:
        console: where to.
        bins: rows of one series and epoch from `qbw_report.statistics.per_bin`.
    """
    table = _table(console, "bitwidth bin", "configs", "mean acc.", "std", "min", "max")
    for row in bins.to_dict("records"):
        table.add_row(
            f"{row['bitwidth_bin']:.1f}",
            str(row["configs"]),
            *_accuracy(row),
        )
    console.print(table)


_QUESTIONS = {
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "knee": "knee",
    "plateau": "plateau from",
    "lowest_cost": "enough from",
    "stability": "spread within bins",
    "noise": "noise of the samples",
    "spread": "spread beyond noise",
    "low_bits": "spread at low bits, ratio",
    "prediction": "prediction, rank corr.",
    "prediction_best_fifth": "the same, best fifth",
    "single_changes": "single layers, rank corr.",
}

_VERDICT_CHARACTERS = 52


def print_findings(console: Console, findings: pd.DataFrame) -> None:
    """Print a line for each answer of one series about average bitwidth, or about no cost.

    Args:
        console: where to.
        findings: lines of one series from `qbw_report.overview.findings_table`.
    """
    table = _table(console, "answer", "value", "95% interval")
    table.add_column("", justify="left", no_wrap=True)
    table.columns[0].justify = "left"
    for row in findings[findings["cost"].isin(["avg_bitwidth", ""])].to_dict("records"):
        interval = "-" if pd.isna(row["low"]) else f"{_number(row['low'])} to {_number(row['high'])}"
        ask = f"cannot tell: evaluate about {row['more']} more" if row["more"] else row["unknown"]
        verdict = ask or row["verdict"]
        verdict = verdict if len(verdict) <= _VERDICT_CHARACTERS else verdict[: _VERDICT_CHARACTERS - 1] + "…"
        value = "-" if pd.isna(row["value"]) else _number(row["value"])
        table.add_row(_QUESTIONS.get(row["question"], row["question"]), value, interval, verdict)
    console.print(table)


def print_overview(console: Console, table: pd.DataFrame) -> None:
    """Print a line for each series: `qbw_report.overview.overview`, sorted."""
    headings = ("mean acc.", "best acc.", "bits", "enough acc.", "bits", "r", "knee", "stability")
    columns = (
        "mean_accuracy", "best_accuracy", "best_bitwidth", "lowest_accuracy", "lowest_bitwidth", "pearson", "knee",
        "stability",
    )  # fmt: skip
    shown = _table(console, "series", "epoch", *headings)
    shown.columns[0].justify = "left"
    for row in table.to_dict("records"):
        digits = [2 if column.endswith("bitwidth") or column in {"pearson", "knee"} else 4 for column in columns]
        cells = ["-" if pd.isna(row[c]) else f"{row[c]:.{d}f}" for c, d in zip(columns, digits, strict=True)]
        shown.add_row(str(row["series"]), str(row["epoch"] + 1), *cells)
    console.print(shown)


def print_candidates(console: Console, budgets: list[str], rows: list[tuple[str, Mapping[str, Any]]]) -> None:
    """Print a line for each candidate: which, its bounded costs, predicted and measured accuracy.

    Args:
        console: where to.
        budgets: names of the costs that are bounded, and of the average bitwidth.
        rows: what the candidate is called, and it as plain values: `qbw_report.recommend.as_json`.
    """
    table = _table(console, "", *budgets, "predicted", "95% interval", "measured")
    table.columns[0].justify = "left"
    for name, row in rows:
        table.add_row(
            name,
            *(f"{row['costs'][budget]:,.6g}" for budget in budgets),
            "-" if row["predicted"] is None else f"{row['predicted']:.4f}",
            "-" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}",
            "-" if row["measured"] is None else f"{row['measured']:.4f}",
        )
    console.print(table)


def print_bits(console: Console, bits: Mapping[str, int]) -> None:
    """Print the bits of each layer, a line for each."""
    table = _table(console, "layer", "bits")
    table.columns[0].justify = "left"
    for name, value in bits.items():
        table.add_row(name, str(value))
    console.print(table)


def print_differences(console: Console, table: pd.DataFrame) -> None:
    """Print a line for each configuration of a comparison, the first of them: `Comparison.table`."""
    shown = _table(console, "bits", "config", "first", "second", "difference", "95% interval", "p (Holm)")
    for row in table.head(MOST_DIFFERENCES).to_dict("records"):
        shown.add_row(
            f"{row['avg_bitwidth']:.2f}",
            str(row["config_id"])[:8],
            f"{row['first_accuracy']:.4f}",
            f"{row['second_accuracy']:.4f}",
            f"{row['difference']:+.4f}",
            f"{row['low']:+.4f} to {row['high']:+.4f}",
            "-" if pd.isna(row["p_value"]) else f"{row['p_value']:.3f}",
        )
    console.print(shown)
    hidden = len(table) - MOST_DIFFERENCES
    if hidden > 0:
        console.print(f"({hidden} more configurations: --json)", soft_wrap=True)


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def stdout_console() -> Console:
    """Return a console on stdout that takes every text literally: names may hold brackets and colons."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def _accuracy(row: Mapping[Hashable, Any]) -> list[str]:
    """Return mean, std, min and max of accuracy. One configuration has no spread: 0.0000 would call it a stable one."""
    mean, std, low, high = (f"{row[f'accuracy_{part}']:.4f}" for part in ("mean", "std", "min", "max"))
    return [mean, std if row["configs"] > 1 else "-", low, high]


def _table(console: Console, *headings: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        show_edge=False,
        pad_edge=False,
        collapse_padding=console.is_terminal,
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
