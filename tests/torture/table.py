"""The lines that `make torture` wrote -> the table in docs/reliability.md; what people wrote around it stays.

Usage: python tests/torture/table.py results/torture.jsonl docs/reliability.md
"""

import json
import sys
from pathlib import Path

BEGIN, END = "<!-- make torture-table: begin -->", "<!-- make torture-table: end -->"

EXPECTED = (
    "kills",
    "a fault at every file operation",
    "control: the same without sync and sync_folder",
    "control: the same without sync",
    "control: the same without sync_folder",
    "power cuts on ext4",
    "power cuts on xfs",
    "control: power cuts on ext4 without sync",
    "control: power cuts on xfs without sync",
    "races of 2 processes",
    "races of 4 processes",
    "races of 8 processes",
    "races of 16 processes",
    "a full disk",
    "damage to a part",
    "damage to the anchor",
    "damage to a layer table",
    "damage, through verify",
    "readers: pandas",
    "readers: duckdb",
    "readers: polars",
    "identity",
    "legitimate checkpoints",
    "hostile checkpoints",
    "control: hostile checkpoints, read by pickle",
    "mutated checkpoints",
    "killed workers",
    "killed schedulers",
    "watch beside a training, in place",
    "watch beside a training, renaming",
)
"""The tests in the order of the table; one without a line is shown as not run."""

COMMON = {"test", "trials", "failures", "seed", "unit", "machine", "date", "scale", "seconds", "skipped", "control"}


def render(lines: list[dict[str, object]]) -> str:
    """Return the table; of several lines of one test the last one counts."""
    last = {str(line["test"]): line for line in lines}
    rows = ["| test | trials | failures | seed | details | date |", "|---|---:|---:|---:|---|---|"]
    for test in dict.fromkeys((*EXPECTED, *last)):
        if test not in last:
            rows.append(f"| {test} | 0 | | | not run | |")
            continue
        line = last[test]
        trials = f"{line['trials']:,} {line.get('unit', '')}".strip()
        failures = f"{line['failures']:,}" + (" (must fail)" if line.get("control") else "")
        details = ", ".join(f"{key.replace('_', ' ')}: {_text(v)}" for key, v in line.items() if key not in COMMON)
        if line.get("skipped"):
            trials, failures, details = "0", "", f"skipped: {line['skipped']}"
        date = str(line["date"])[:10]
        rows.append(f"| {test} | {trials} | {failures} | {line['seed']} | {details} | {date} |")
    machines = sorted({str(line["machine"]) for line in last.values()})
    return "\n".join([*rows, "", f"Machine: {'; '.join(machines)}."])


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
