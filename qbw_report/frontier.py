"""What is best at a cost: the measured front, and predictions of everything that was measured."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from qbw_report.additive import Additive
from qbw_report.selection import COSTS, last_epoch, typical_rows
from qbw_report.sensitivity import bits_of, of_one_network

FRONT_COLUMNS = ["series", "epoch", "cost", "value", "accuracy", "config_id", "sampler", "bitwidths"]

PREDICTION_COLUMNS = [
    "series", "epoch", "config_id", "sampler", "avg_bitwidth", "measured", "predicted", "low", "high", "inside",
    "fitted",
]  # fmt: skip


def front(rows: pd.DataFrame) -> pd.DataFrame:
    """Return, for each cost, the configurations of the last epoch that no other one beats in cost and accuracy.

    Of configurations that are equal in both, the one whose `config_id` is first stays.
    """
    last = last_epoch(rows)
    kept = ["series", "epoch", "accuracy", "config_id", "sampler", "bitwidths"]
    fronts = []
    for cost in COSTS:
        best = last.loc[_front_of(last, cost)]
        fronts.append(best[kept].assign(cost=cost, value=best[cost].astype(float)))
    table = pd.concat(fronts, ignore_index=True)[FRONT_COLUMNS]
    return table.assign(bitwidths=table["bitwidths"].map(bits_in_words))


def _front_of(rows: pd.DataFrame, cost: str) -> pd.Index:
    ordered = rows.sort_values([cost, "accuracy", "config_id"], ascending=[True, False, True])
    accuracy = ordered["accuracy"].to_numpy()
    before = np.concatenate([[-np.inf], np.maximum.accumulate(accuracy)[:-1]])
    return ordered.index[accuracy > before]


def predictions(rows: pd.DataFrame, model: Additive | None) -> pd.DataFrame:
    """Return what the additive model predicts for each configuration of the last epoch, beside what was measured.

    A row that the model was fitted to is predicted by the model without it (`fitted`); others are new to it anyhow.
    """
    if model is None:
        return pd.DataFrame(columns=PREDICTION_COLUMNS)
    last = of_one_network(last_epoch(rows))
    drawn, _ = typical_rows(last)
    predicted, half = (pd.Series(values, index=last.index) for values in model.predict(bits_of(last)))
    predicted[drawn.index], half[drawn.index] = model.left_out, model.left_out_half
    table = last[["series", "epoch", "config_id", "sampler", "avg_bitwidth"]].assign(
        measured=last["accuracy"],
        predicted=predicted,
        low=predicted - half,
        high=predicted + half,
        fitted=last.index.isin(drawn.index),
    )
    table["inside"] = (table["low"] <= table["measured"]) & (table["measured"] <= table["high"])
    return table[PREDICTION_COLUMNS].reset_index(drop=True)


def bits_in_words(bitwidths: Iterable[int]) -> str:
    """Return ``2 4 8``."""
    return " ".join(str(int(bits)) for bits in bitwidths)
