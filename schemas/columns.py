"""What a column is: name, Arrow type, unit, meaning. Arrow schema, README table and axis labels come from it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table.

    Attributes:
        name: snake_case, the field's own term.
        type: a plain Arrow type (no dictionary), so that every reader yields plain dtypes.
        meaning: one phrase for a person.
        unit: what one step of the value is ("bits", "bytes", "s"); empty where there is none.
        label: the words on an axis; the name with spaces where not given.
        group: the heading in the README's table.
    """

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""
    label: str = ""
    group: str = ""

    @property
    def axis_label(self) -> str:
        """Words for an axis, with the unit: ``Average bitwidth (bits)``."""
        words = self.label or self.name.replace("_", " ").capitalize()
        return f"{words} ({self.unit})" if self.unit else words


def arrow_schema(columns: Iterable[Column]) -> pa.Schema:
    """Return the Arrow schema of `columns`; every column is nullable, so that a later version can leave one out."""
    return pa.schema([pa.field(column.name, column.type) for column in columns])


def by_name(columns: Sequence[Column]) -> dict[str, Column]:
    """Return name -> column.

    Raises:
        ValueError: two columns share a name.
    """
    named = {column.name: column for column in columns}
    if len(named) != len(columns):
        raise ValueError("two columns share a name")
    return named


def markdown_table(columns: Iterable[Column]) -> str:
    """Return the README's table of `columns`, one line each."""
    lines = ["| group | column | type | unit | meaning |", "|---|---|---|---|---|"]
    lines += [f"| {c.group} | `{c.name}` | `{c.type}` | {c.unit} | {c.meaning} |" for c in columns]
    return "\n".join(lines)
