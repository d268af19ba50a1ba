"""Statistics -> tables for a terminal; plain text with aligned columns where there is none."""

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

LAST_EPOCHS = 10
"""How many epochs a table shows; files and JSON have all of them."""

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
