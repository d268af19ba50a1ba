"""What is best at a cost: the measured front, and predictions beside everything that was measured, in words too."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from qbw_report.additive import Additive
from qbw_report.insight.finding import Finding
from qbw_report.masks import compare_right, right_samples
from qbw_report.selection import COSTS, configurations, last_epoch, sampler_names, typical_rows
from qbw_report.sensitivity import Sensitivity, bits_of, of_one_network

FRONT_COLUMNS = ["series", "epoch", "cost", "value", "accuracy", "config_id", "sampler", "bitwidths"]

PREDICTION_COLUMNS = [
    "series", "epoch", "config_id", "sampler", "avg_bitwidth", "measured", "predicted", "low", "high", "inside",
    "fitted",
]  # fmt: skip

MOST_TOLD = 3
"""Of so many configurations from files each gets a sentence, those that promised most."""


def front(rows: pd.DataFrame) -> pd.DataFrame:
    """Return, for each cost, the configurations of the last epoch that no other one beats in cost and accuracy.

    Of configurations that are equal in both, the one whose `config_id` is first stays. Rows that do not say what they
    cost are on no front of that cost.
    """
    last = last_epoch(rows)
    kept = ["series", "epoch", "accuracy", "config_id", "sampler", "bitwidths"]
    fronts = []
    for cost in COSTS:
        best = last.loc[_front_of(last[np.isfinite(last[cost].astype(float))], cost)]
        if best.empty:
            continue
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


def possible(table: pd.DataFrame) -> pd.DataFrame:
    """Return `predictions` as predictions.csv has them: cut to 0 to 1, beyond which there is no accuracy.

    `inside` stays: an interval that lay beyond as a whole did not hold what was measured.
    """
    return table.assign(**{name: table[name].clip(0.0, 1.0) for name in ("predicted", "low", "high")})


def predictions_in_words(rows: pd.DataFrame, table: pd.DataFrame, sensitivity: Sensitivity) -> list[str]:
    """Return how predictions stand against measurements, a sentence each.

    First everything that was drawn, each row predicted without itself; then what was evaluated from a file, such as the
    one that `qbw-report recommend` writes, which no prediction was fitted to.

    Args:
        rows: one series; at least one row.
        table: `predictions` of it.
        sensitivity: `qbw_report.sensitivity.find_sensitivity` of it.
    """
    if sensitivity.model is None:
        return [f"What a configuration would reach that nobody measured cannot be told: {sensitivity.unknown}."]
    fitted = table[table["fitted"]]
    told = [
        _order_in_words({finding.question: finding for finding in sensitivity.findings}),
        f"Their 95% intervals hold {int(fitted['inside'].sum())} of {len(fitted)} measured accuracies.",
    ]
    given = table[sampler_names(table) == "file"].drop_duplicates("config_id")
    foretold = given[given["predicted"].notna()].sort_values(["predicted", "config_id"], ascending=[False, True])
    if len(foretold) > 1:
        told.append(
            f"Measured inside the 95% intervals of their predictions: {int(foretold['inside'].sum())} of "
            f"{configurations(len(foretold))} from files."
        )
    last = of_one_network(last_epoch(rows)).drop_duplicates("config_id").set_index("config_id", drop=False)
    told += [_one_in_words(one, last) for _, one in foretold.iloc[:MOST_TOLD].iterrows()]
    if len(foretold) < len(given):
        strange = configurations(len(given) - len(foretold))
        told.append(f"Nothing is predicted for {strange} from files, with bits that no drawn one had in that layer.")
    return told


def _order_in_words(findings: Mapping[str, Finding]) -> str:
    """Return whether predictions put configurations in the order that was measured: all of them, and the best."""
    whole, best = findings["prediction"], findings["prediction_best_fifth"]
    if not whole.low > 0:  # NaN, too: there is no interval
        return f"Whether predictions tell good configurations from bad ones cannot be told: {_correlation(whole)}."
    told = f"Predicted without themselves, configurations rank as measured with {_correlation(whole)}"
    if not best.low > 0:
        return f"{told}; which of the best fifth is better they cannot tell: {_correlation(best)}."
    return f"{told}, those in the best fifth with {_correlation(best)}."


def _correlation(finding: Finding) -> str:
    if not finding.is_known:
        return finding.unknown
    if np.isnan(finding.low):
        return f"correlation {finding.value:.2f} of only {configurations(finding.configs)}"
    return f"correlation {finding.value:.2f} (95%: {finding.low:.2f} to {finding.high:.2f})"


def _one_in_words(one: pd.Series, last: pd.DataFrame) -> str:
    """Return what was predicted and measured, and how that stands against the best uniform one of no more bits.

    Args:
        one: a line of `predictions`.
        last: rows of the same network and epoch by `config_id`, each once.
    """
    predicted, low, high = (min(max(float(one[name]), 0.0), 1.0) for name in ("predicted", "low", "high"))
    told = (
        f"Configuration {one['config_id'][:8]} from a file ({one['avg_bitwidth']:.2f} bits on average): "
        f"{predicted:.4f} predicted (95%: {low:.4f} to {high:.4f}), {one['measured']:.4f} measured, "
        f"{'inside' if one['inside'] else 'outside'}"
    )
    uniform = last[(np.ptp(bits_of(last), axis=1) == 0) & (last["avg_bitwidth"] <= one["avg_bitwidth"])]
    if uniform.empty or one["config_id"] in uniform.index:
        return f"{told}."
    best = uniform.loc[uniform["accuracy"].idxmax()]
    more = 100 * (one["measured"] - best["accuracy"])
    against = f"{abs(more):.1f} points {'worse' if more < 0 else 'better'} than" if more else "as good as"
    right = right_samples(last.loc[[one["config_id"], best["config_id"]]])
    paired = None if right is None else compare_right(right[0], right[1])
    sure = "" if paired is None else f" (95%: {100 * paired.low:+.1f} to {100 * paired.high:+.1f})"
    same = f"{best['avg_bitwidth']:g} bits in every layer"
    return f"{told}; {against} {same}{sure}, the best uniform one of no more bits."


def bits_in_words(bitwidths: Iterable[int]) -> str:
    """Return ``2 4 8``."""
    return " ".join(str(int(bits)) for bits in bitwidths)
