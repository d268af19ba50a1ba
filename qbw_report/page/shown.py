"""Numbers as people read them, each with the exact one and the CSV field that it stands in."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

NOTHING = "\u2013"
"""What stands for a number that does not exist: a dash."""

_MINUS = "\u2212"  # as long as a plus, where a hyphen is not


def percent(value: float) -> str:
    """Return a share as ``97.9%``."""
    return f"{100 * value:.1f}%"


def points(value: float) -> str:
    """Return a difference of shares in points: ``+1.25``."""
    return f"{100 * value:+.2f}".replace("-", _MINUS)


def size(value: float) -> str:
    """Return a share that has no direction, such as a standard deviation, in points: ``1.14``."""
    return f"{100 * value:.2f}"


def decimals(value: float) -> str:
    """Return ``4.00``."""
    return f"{value:.2f}".replace("-", _MINUS)


def digits(value: float) -> str:
    """Return four digits of a number of any size: ``0.01234``, ``41.2``, ``1,234,000``."""
    if value == 0 or 1e-4 <= abs(value) < 1e15:
        places = 0 if value == 0 else max(3 - math.floor(math.log10(abs(value))), 0)
        text = f"{round(value, places):,.{places}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        text = f"{value:.3g}"
    return text.replace("-", _MINUS)


def count(value: float) -> str:
    """Return ``1,234``."""
    return f"{int(value):,}"


def epoch(value: float) -> str:
    """Return an epoch as people count them, from 1."""
    return str(int(value) + 1)


FORMS: Mapping[str, Callable[[float], str]] = {
    "percent": percent,
    "points": points,
    "size": size,
    "decimals": decimals,
    "digits": digits,
    "count": count,
    "epoch": epoch,
}
"""How a number can be shown, by name."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One field of a table.

    Attributes:
        text: what is read.
        value: the number exactly as the CSV has it; empty where the field is a text, or has no value.
        place: where it stands there: ``answers.csv:12:value``, lines counted from 1 with the heading; empty likewise.
        form: which of `FORMS` made the text; empty likewise.
    """

    text: str
    value: str = ""
    place: str = ""
    form: str = ""


def show(table: pd.DataFrame, name: str, line: int, column: str, form: str) -> Shown:
    """Return a field of a table as it is read.

    Args:
        table: the whole table, as it is written to `name`.csv.
        name: of the file, without its suffix.
        line: position in the table, from 0.
        column: which.
        form: one of `FORMS`, or ``text``.
    """
    value: Any = table[column].iloc[line]
    if value is None or value != value:
        return Shown(text=NOTHING)
    if form == "text":
        return Shown(text=str(value))
    if not math.isfinite(value):
        return Shown(text="∞" if value > 0 else f"{_MINUS}∞")
    exact = str(int(value)) if isinstance(value, int | np.integer) else repr(float(value))
    return Shown(text=FORMS[form](value), value=exact, place=f"{name}.csv:{line + 2}:{column}", form=form)
