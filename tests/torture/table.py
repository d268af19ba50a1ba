"""The lines that `make torture` wrote -> the table in docs/reliability.md; what people wrote around it stays.

Usage: python tests/torture/table.py results/torture.jsonl docs/reliability.md
"""

import json
import sys
from pathlib import Path

BEGIN, END = "<!-- make torture-table: begin -->", "<!-- make torture-table: end -->"

ORDER = (
    "kills",
    "a fault at every file operation",
    "control: the same",
    "power cuts",
    "control: power cuts",
    "races",
    "a full disk",
    "damage",
    "readers",
    "identity",
)
"""How the names of tests begin, in the order of the table."""

COMMON = {"test", "trials", "failures", "seed", "unit", "machine", "date", "scale", "seconds", "skipped", "control"}


def render(lines: list[dict[str, object]]) -> str:
    """Return the table; of several lines of one test the last one counts."""
    last = {str(line["test"]): line for line in lines}
    rows = ["| test | trials | failures | seed | details | date |", "|---|---:|---:|---:|---|---|"]
    for line in sorted(last.values(), key=lambda line: _place(str(line["test"]))):
        trials = f"{line['trials']:,} {line.get('unit', '')}".strip()
        failures = f"{line['failures']:,}" + (" (must fail)" if line.get("control") else "")
        details = ", ".join(f"{key.replace('_', ' ')}: {_text(v)}" for key, v in line.items() if key not in COMMON)
        if line.get("skipped"):
            trials, failures, details = "0", "", f"skipped: {line['skipped']}"
        date = str(line["date"])[:10]
        rows.append(f"| {line['test']} | {trials} | {failures} | {line['seed']} | {details} | {date} |")
    machines = sorted({str(line["machine"]) for line in last.values()})
    return "\n".join([*rows, "", f"Machine: {'; '.join(machines)}."])


def _place(test: str) -> tuple[int, str]:
    places = [number for number, beginning in enumerate(ORDER) if test.startswith(beginning)]
    digits = "".join(filter(str.isdigit, test))
    return (places[0] if places else len(ORDER)), digits.zfill(4)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_text(count)}" for key, count in value.items()) or "nothing"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def main(source: Path, target: Path) -> None:
    """Replace the text between the two marks in `target`."""
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    text = target.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    target.write_text(f"{before}{BEGIN}\n\n{render(lines)}\n\n{END}{after}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
