"""Tables of the report -> tables of the page: which columns are shown, and how."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from qbw_report.page.shown import Shown, show


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A column as it is shown.

    Attributes:
        column: of the table.
        words: above it.
        form: one of `qbw_report.page.shown.FORMS`, or ``text``.
    """

    column: str
    words: str
    form: str


@dataclass(frozen=True, kw_only=True)
class View:
    """A table as it is shown.

    Attributes:
        file: the CSV that holds all of it.
        caption: what it is.
        headings: words above each column, and whether they stand over text.
        rows: fields of each line.
        hidden: how many more lines the CSV has.
    """

    file: str
    caption: str
    headings: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[Shown, ...], ...]
    hidden: int = 0


MOST_LINES = 200
"""A page shows no more lines of a table; its CSV has all."""


def view(table: pd.DataFrame, name: str, lines: Sequence[int], caption: str, headings: Sequence[Heading]) -> View:
    """Return lines of a table as they are shown.

    Args:
        table: the whole table, as it is written to `name`.csv.
        name: of the file, without its suffix.
        lines: which, from 0.
        caption: what it is.
        headings: the columns shown.
    """
    return View(
        file=f"{name}.csv",
        caption=caption,
        headings=tuple((heading.words, heading.form == "text") for heading in headings),
        rows=tuple(
            tuple(show(table, name, line, heading.column, heading.form) for heading in headings)
            for line in lines[:MOST_LINES]
        ),
        hidden=max(len(lines) - MOST_LINES, 0),
    )


def lines_of(mask: pd.Series) -> list[int]:
    """Return the positions, from 0, of the lines of a table that a mask names."""
    return [int(place) for place in mask.to_numpy(dtype=bool).nonzero()[0]]


def headings(*columns: tuple[str, str, str]) -> tuple[Heading, ...]:
    """Return headings from (column, words, form)."""
    return tuple(Heading(column=column, words=words, form=form) for column, words, form in columns)
