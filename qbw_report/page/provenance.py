"""Rows -> where they come from: a line per series and fact."""

import pandas as pd

PROVENANCE_COLUMNS = ["series", "fact", "value", "rows"]

_FACTS = {
    "checkpoint": "checkpoint",
    "dataset": "dataset",
    "split": "split",
    "data_id": "data id",
    "num_samples": "samples",
    "model_id": "layer table",
    "network_id": "network id",
    "sampler": "sampler",
    "seed": "seed",
    "engine": "engine",
    "device": "device",
    "qbw_version": "QBW",
    "torch_version": "torch",
}

MOST_VALUES = 20
"""Values of one fact that are listed; fifty checkpoints need no list."""


def provenance(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what the rows of each series say of their origin, and how many say so.

    Args:
        rows: with `series`.
    """
    lines: list[dict[str, object]] = []
    for series, group in rows.groupby("series"):
        lines += [{"series": series, **line} for line in _of_one(group)]
    return pd.DataFrame(lines, columns=PROVENANCE_COLUMNS)


def _of_one(rows: pd.DataFrame) -> list[dict[str, object]]:
    seconds = rows["evaluated_at"].dt.strftime("%Y-%m-%d %H:%M:%S UTC")
    lines: list[dict[str, object]] = [
        {"fact": "rows", "value": f"{rows['epoch'].nunique()} epochs", "rows": len(rows)},
        {"fact": "evaluated", "value": f"{seconds.min()} to {seconds.max()}", "rows": len(rows)},
    ]
    for column, fact in _FACTS.items():
        known = rows[column].dropna()
        counts = known.astype(str).value_counts().sort_index()
        if len(counts) > MOST_VALUES:
            lines.append({"fact": fact, "value": f"{len(counts)} different ones", "rows": len(known)})
        else:
            lines += [{"fact": fact, "value": value, "rows": int(number)} for value, number in counts.items()]
    return lines
