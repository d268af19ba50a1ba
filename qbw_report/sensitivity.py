"""Where bits matter: what each layer loses at each option, from the drawn rows, checked against single changes."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t

from qbw_report.additive import Additive, fit_additive
from qbw_report.correlation import spearman_interval
from qbw_report.insight.finding import Finding, cannot_tell
from qbw_report.layers import Layers
from qbw_report.masks import compare_right, holm, right_samples
from qbw_report.selection import configurations, last_epoch, typical_rows

METRICS = ("accuracy", "loss", "kl_divergence")
"""What an effect is on."""

SPARE_FOR_PAIRS = 30
"""Rows beyond the number of effects from which on pairs of layers are looked at."""

MOST_PAIRS = 50
"""How many pairs are listed, the strongest first."""

INTERACTION_COLUMNS = [
    "series", "epoch", "first_index", "first_layer", "second_index", "second_layer", "strength", "low", "high",
    "p_value",
]  # fmt: skip

SENSITIVITY_COLUMNS = [
    "series", "epoch", "metric", "layer_index", "layer_name", "option", "against", "effect", "low", "high", "rows",
    "rank", "measured", "measured_low", "measured_high", "method",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Where bits matter, in the last epoch of one series.

    Attributes:
        table: a line per metric, layer and option.
        interactions: a line per pair of layers; empty where there are too few rows.
        model: of accuracy; None where there is none.
        findings: how well it predicts, and whether single changes agree.
        unknown: why there is no model; empty where there is one.
    """

    table: pd.DataFrame
    interactions: pd.DataFrame
    model: Additive | None
    findings: tuple[Finding, ...]
    unknown: str


def find_sensitivity(rows: pd.DataFrame, layers: Layers | None) -> Sensitivity:
    """Return where bits matter.

    Args:
        rows: one series; at least one row.
        layers: the network's layers; their numbers are their names where there is no table.
    """
    last = of_one_network(last_epoch(rows))
    drawn, source = typical_rows(last)
    names = layer_names(layers, len(last["bitwidths"].iloc[0]))
    options = options_of(last)
    tables, accuracy_model, unknown = [], None, ""
    for metric in METRICS:
        usable = drawn[np.isfinite(drawn[metric].astype(float))]
        if usable.empty:
            continue
        model = fit_additive(bits_of(usable), usable[metric].to_numpy(dtype=float), options)
        if isinstance(model, str):
            unknown = unknown or model
            continue
        accuracy_model = model if metric == "accuracy" else accuracy_model
        tables.append(_effects(model, metric, names).merge(_measured(last, metric, options), how="left"))
    if tables:
        table = pd.concat(tables, ignore_index=True)
        table.insert(0, "series", str(last["series"].iloc[0]))
        table.insert(1, "epoch", int(last["epoch"].iloc[0]))
        table = table[SENSITIVITY_COLUMNS]
    else:
        table = pd.DataFrame(columns=SENSITIVITY_COLUMNS)
    return Sensitivity(
        table=table,
        interactions=_interactions(drawn, accuracy_model, names),
        model=accuracy_model,
        findings=() if accuracy_model is None else tuple(_findings(last, drawn, accuracy_model, table, source)),
        unknown=unknown if accuracy_model is None else "",
    )


def of_one_network(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the network that most of them are of: only equal layers can be compared."""
    kinds = rows["model_id"].fillna("").astype(str) + " " + rows["bitwidths"].map(len).astype(str)
    return rows[kinds == kinds.value_counts().sort_index(kind="stable").idxmax()]


def bits_of(rows: pd.DataFrame) -> np.ndarray:
    """Return the bits of every layer: (rows, layers)."""
    return np.array(rows["bitwidths"].tolist(), dtype=int).reshape(len(rows), -1)


def options_of(rows: pd.DataFrame) -> tuple[int, ...]:
    """Return every option that a row names or uses, ascending."""
    named = {int(bits) for options in rows["bitwidth_options"] if options is not None for bits in options}
    return tuple(sorted(named | {int(bits) for bits in np.unique(bits_of(rows))}))


def layer_names(layers: Layers | None, count: int) -> tuple[str, ...]:
    """Return the layers' names, or `layer 0`, `layer 1` and so on where nobody knows them."""
    if layers is not None and len(layers.names) == count:
        return layers.names
    return tuple(f"layer {index}" for index in range(count))


def _effects(model: Additive, metric: str, names: tuple[str, ...]) -> pd.DataFrame:
    lines = [
        {
            "metric": metric,
            "layer_index": layer,
            "layer_name": name,
            "option": option,
            "against": model.against[layer],
            "effect": model.effects[layer, place],
            "low": model.low[layer, place],
            "high": model.high[layer, place],
            "rows": int(model.seen[layer, place]),
            "method": model.method,
        }
        for layer, name in enumerate(names)
        for place, option in enumerate(model.options)
    ]
    table = pd.DataFrame(lines)
    order = rank_layers(model, worse_is_lower=metric == "accuracy")
    return table.assign(rank=table["layer_index"].map({layer: place + 1 for place, layer in enumerate(order)}))


def rank_layers(model: Additive, *, worse_is_lower: bool = True) -> list[int]:
    """Return the layers, the one that loses most at its smallest option first."""
    lost = np.array([row[np.isfinite(row)][0] for row in model.effects])
    return [int(layer) for layer in np.argsort(lost if worse_is_lower else -lost, kind="stable")]


def _measured(rows: pd.DataFrame, metric: str, options: tuple[int, ...]) -> pd.DataFrame:
    """Return what changing one layer alone was measured to change, where all others are at the largest option."""
    bits = bits_of(rows)
    changed = bits != options[-1]
    base = rows[~changed.any(axis=1)]
    lines = []
    if not base.empty:
        start = base.iloc[0]
        for place in np.flatnonzero(changed.sum(axis=1) == 1):
            row, layer = rows.iloc[place], int(changed[place].argmax())
            line = {
                "layer_index": layer,
                "option": int(bits[place, layer]),
                "measured": float(row[metric]) - float(start[metric]),
                "measured_low": np.nan,
                "measured_high": np.nan,
            }
            right = right_samples(rows.loc[[row.name, start.name]]) if metric == "accuracy" else None
            if right is not None:
                paired = compare_right(right[0], right[1])
                line |= {"measured_low": paired.low, "measured_high": paired.high}
            lines.append(line)
    columns = {"layer_index": int, "option": int, "measured": float, "measured_low": float, "measured_high": float}
    return pd.DataFrame(lines, columns=list(columns)).astype(columns).drop_duplicates(["layer_index", "option"])


def _interactions(drawn: pd.DataFrame, model: Additive | None, names: tuple[str, ...]) -> pd.DataFrame:
    """Return pairs of layers that lose more, or less, together than the sum of what each loses.

    Each pair alone: the residuals of the additive model against the product of both layers' effects (Tukey's one degree
    of freedom for a pair), the strongest first. `strength` is the change of accuracy where both are at the option that
    costs them most; p values are adjusted for the number of pairs (Holm).
    """
    empty = pd.DataFrame(columns=INTERACTION_COLUMNS)
    if model is None or model.penalty or model.rows < len(model.fit.pairs) + 1 + SPARE_FOR_PAIRS:
        return empty
    bits = bits_of(drawn)
    places = np.searchsorted(model.options, bits)
    scores = np.take_along_axis(model.effects[None], places[:, :, None], axis=2)[:, :, 0]  # (rows, layers)
    worst = np.nanmin(model.effects, axis=1)
    scores = np.divide(scores, worst, out=np.zeros_like(scores), where=worst < 0)  # 1: the option that costs most
    columns = np.column_stack([np.ones(len(bits)), model.fit.columns(bits)])
    basis, _ = np.linalg.qr(columns)
    results = drawn["accuracy"].to_numpy(dtype=float)
    residuals = results - basis @ (basis.T @ results)
    first, second = np.triu_indices(bits.shape[1], 1)
    products = scores[:, first] * scores[:, second]
    products -= basis @ (basis.T @ products)
    size = (products**2).sum(axis=0)
    usable = size > 1e-6
    first, second, products, size = first[usable], second[usable], products[:, usable], size[usable]
    if not len(size):
        return empty
    strength = products.T @ residuals / size
    freedom = model.rows - columns.shape[1] - 1
    left = np.maximum(residuals @ residuals - strength**2 * size, 0) / freedom
    error = np.sqrt(left / size)
    with np.errstate(divide="ignore", invalid="ignore"):
        p_values = np.nan_to_num(2 * t.sf(np.abs(strength / error), freedom), nan=1.0)
    half = t.ppf(0.975, freedom) * error
    table = pd.DataFrame(
        {
            "series": str(drawn["series"].iloc[0]),
            "epoch": int(drawn["epoch"].iloc[0]),
            "first_index": first,
            "first_layer": [names[layer] for layer in first],
            "second_index": second,
            "second_layer": [names[layer] for layer in second],
            "strength": strength,
            "low": strength - half,
            "high": strength + half,
            "p_value": holm(p_values),
        }
    )
    order = np.lexsort((second, first, p_values))
    return table.iloc[order][:MOST_PAIRS].reset_index(drop=True)[INTERACTION_COLUMNS]


def _findings(
    last: pd.DataFrame, drawn: pd.DataFrame, model: Additive, table: pd.DataFrame, source: str
) -> list[Finding]:
    """Return how well left-out rows are predicted, overall and in the best fifth, and whether single changes agree."""
    measured = drawn["accuracy"].to_numpy(dtype=float)
    method = f"additive model, {model.method}; every row predicted without itself; Spearman's rho"
    best = measured >= np.quantile(measured, 0.8)
    findings = []
    for question, chosen in (("prediction", np.full(len(measured), True)), ("prediction_best_fifth", best)):
        found = spearman_interval(model.left_out[chosen], measured[chosen])
        told = {"cost": "", "configs": int(chosen.sum()), "method": method, "source": source}
        if np.isnan(found.value):
            more = max(5 * (5 - int(chosen.sum())), 0)
            findings.append(cannot_tell(question, why="too few different accuracies", more=more, **told))  # type: ignore[arg-type]  # the types of `told` differ
            continue
        interval = {"value": found.value, "low": found.low, "high": found.high}
        findings.append(Finding(question=question, verdict="rank correlation", **interval, **told))  # type: ignore[arg-type]  # likewise
    singles = table[(table["metric"] == "accuracy") & table["measured"].notna()]
    if len(singles) > 2:
        found = spearman_interval(singles["effect"].to_numpy(), singles["measured"].to_numpy())
        inside = ((singles["low"] <= singles["measured"]) & (singles["measured"] <= singles["high"])).sum()
        findings.append(
            Finding(
                question="single_changes",
                cost="",
                value=found.value,
                low=found.low,
                high=found.high,
                verdict=f"{inside} of {len(singles)} within the effects' intervals",
                configs=len(singles),
                method="effects against rows that differ from the largest options in one layer; Spearman's rho",
                source=configurations(len(last)),
            )
        )
    return findings
