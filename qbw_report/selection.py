"""Which rows can answer a question: those of the last epoch, and of these the ones that nobody picked."""

import numpy as np
import pandas as pd

PICKED = ("one-layer", "neighbours", "file")
"""Samplers whose configurations somebody chose for their place or their promise: they say nothing of a typical one."""

COSTS = ("avg_bitwidth", "weighted_avg_bitwidth", "weight_bytes", "bit_ops")
"""What accuracy is set against."""


def last_epoch(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the last epoch."""
    last: pd.DataFrame = rows[rows["epoch"] == rows["epoch"].max()]
    return last


def sampler_names(rows: pd.DataFrame) -> pd.Series:
    """Return each row's sampler without its version; empty text where the row does not say."""
    samplers = rows["sampler"].fillna("").astype(object)
    return samplers.map({name: name.partition("/")[0] for name in samplers.unique()})


def typical_rows(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the rows that were drawn and not picked, and where they come from, in words.

    Where none was drawn, all rows are returned.
    """
    names = sampler_names(rows)
    drawn = rows[~names.isin(PICKED)]
    if drawn.empty:
        return rows, f"{configurations(len(rows))}, all picked by hand"
    counts = names[drawn.index].value_counts().sort_index()
    kinds = ", ".join(f"{count} {name or 'unknown'}" for name, count in counts.items())
    left = len(rows) - len(drawn)
    without = f"; {configurations(left)} picked by hand left out" if left else ""
    return drawn, f"{configurations(len(drawn))} ({kinds}){without}"


def cost_missing(rows: pd.DataFrame, cost: str) -> str:
    """Return why accuracy cannot be set against a cost; empty where every row says what it costs.

    A correlation with a gap does not exist, as that of a constant accuracy does not; only the latter is flat.
    """
    missing = int((~np.isfinite(rows[cost].to_numpy(dtype=float))).sum())
    return f"{cost} is missing in {missing:,} of {configurations(len(rows))}" if missing else ""


def strata_of(rows: pd.DataFrame, cost: str) -> np.ndarray | None:
    """Return the costs that the sampler spread evenly; None where it drew rows independently of their cost."""
    aimed = rows["target_cost"] == cost
    # The uniform configurations that come with a stratified sample have no target of their own, but lie among them.
    if not aimed.any() or not (aimed | (sampler_names(rows) == "stratified")).all():
        return None
    return rows["target"].fillna(rows[cost]).to_numpy(dtype=float)


def configurations(count: int) -> str:
    """Return ``1 configuration`` or ``64 configurations``."""
    return f"{count:,} configuration{'' if count == 1 else 's'}"
