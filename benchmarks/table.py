"""The array that `make bench JSON=file` wrote -> the table in docs/performance.md; what people wrote around it stays.

Usage: python -m benchmarks.table results/bench.json docs/performance.md
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import is_met

BEGIN, END = "<!-- make bench-table: begin -->", "<!-- make bench-table: end -->"


def render(figures: Sequence[Mapping[str, Any]]) -> str:
    """Return the table, a figure a row in the order of the file, and the machine behind it."""
    rows = ["| figure | median | spread | unit | bound | kept |", "|---|---:|---:|---|---|---|"]
    for figure in figures:
        at_least, at_most = figure.get("at_least"), figure.get("at_most")
        bounds = [f"{words} {bound:g}" for words, bound in (("≥", at_least), ("≤", at_most)) if bound is not None]
        kept = "" if not bounds else "yes" if is_met(figure["value"], at_least, at_most) else "**no**"
        numbers = f"{figure['value']:.3g} | {figure['spread']:.2g}"
        rows.append(f"| {figure['figure']} | {numbers} | {figure['unit']} | {', '.join(bounds)} | {kept} |")
    machines = sorted({str(figure["machine"]) for figure in figures})
    return "\n".join([*rows, "", f"Machine: {'; '.join(machines)}."])


def insert(table: str, text: str) -> str:
    """Return `text` with the table between its two marks.

    Raises:
        ValueError: it has not each mark once, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected the marks {BEGIN} and {END} once each, in this order")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def main(source: Path, target: Path) -> None:
    """Replace the text between the two marks in `target`."""
    target.write_text(insert(render(json.loads(source.read_text())), target.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
