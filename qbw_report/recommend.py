"""What to ship: the best predicted configuration within budgets, beside the best measured and the best uniform one."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from qbw_report.budget import Budget, costs_for, is_within
from qbw_report.layers import Layers
from qbw_report.masks import Paired, compare_right, right_samples
from qbw_report.optimum import best_within
from qbw_report.selection import last_epoch
from qbw_report.sensitivity import Sensitivity, bits_of, layer_names, of_one_network, options_of
from schemas.costs import Cost
from schemas.errors import QBWError


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One configuration within the budgets.

    Attributes:
        bitwidths: bits of every layer.
        costs: by name, in the record's units.
        predicted: accuracy by the additive model; NaN where it knows nothing of these bits.
        low: lower end of the 95% interval of what it would be measured at.
        high: upper end of it.
        measured: accuracy; NaN where it was not measured.
        config_id: of the record; empty where it was not measured.
    """

    bitwidths: tuple[int, ...]
    costs: Mapping[str, float]
    predicted: float
    low: float
    high: float
    measured: float
    config_id: str


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to evaluate next, and what to compare it with.

    Attributes:
        series: name of the series.
        epoch: 0-based.
        budgets: as they were written.
        layer_names: in forward order.
        best_predicted: the recommended configuration.
        best_measured: of those measured within the budgets the most accurate; None where there is none.
        best_uniform: the one with all layers at the same bits that is measured to be best, else the largest within the
            budgets; None where there is none.
        against_uniform: the recommended one against it on the same samples; None where either is not measured, or there
            are no masks.
        method: of the predictions.
    """

    series: str
    epoch: int
    budgets: tuple[str, ...]
    layer_names: tuple[str, ...]
    best_predicted: Candidate
    best_measured: Candidate | None
    best_uniform: Candidate | None
    against_uniform: Paired | None
    method: str


def recommend(
    rows: pd.DataFrame, layers: Layers | None, sensitivity: Sensitivity, budgets: tuple[Budget, ...]
) -> Recommendation:
    """Return the best configurations within the budgets.

    Args:
        rows: one series; at least one row.
        layers: the network's layers; None where there is no table.
        sensitivity: `qbw_report.sensitivity.find_sensitivity` of the rows.
        budgets: at least one.

    Raises:
        UsageError: a budget needs sizes that nobody knows.
        QBWError: there is no model of accuracy yet, or no configuration is within the budgets.
    """
    last = of_one_network(last_epoch(rows))
    series, model = str(last["series"].iloc[0]), sensitivity.model
    if model is None:
        raise QBWError(f"{series}: cannot tell which layers need their bits ({sensitivity.unknown})")
    options, num_layers = options_of(last), len(last["bitwidths"].iloc[0])
    costs = costs_for(budgets, layers, num_layers, options[-1])
    bits = best_within(model.effects, model.options, budgets, costs)
    written = ", ".join(budget.text for budget in budgets)
    if bits is None:
        lowest = ", ".join(f"{b.cost} {costs[b.cost].of((options[0],) * num_layers):.6g}" for b in budgets)
        raise QBWError(
            f"{series}: no configuration keeps {written}; with every layer at {options[0]} bits it is {lowest}; "
            "allow more"
        )
    measured = _measured_by_bits(last)
    within = {key: row for key, row in measured.items() if is_within(key, budgets, costs)}

    def candidate(bitwidths: tuple[int, ...]) -> Candidate:
        predicted, half = (float(values[0]) for values in model.predict(np.array([bitwidths])))
        row = measured.get(bitwidths)
        return Candidate(
            bitwidths=bitwidths,
            costs={name: cost.of(bitwidths) for name, cost in costs.items()},
            # Effects are added up without end; accuracies are shares.
            predicted=_share(predicted),
            low=_share(predicted - half),
            high=_share(predicted + half),
            measured=np.nan if row is None else row[0],
            config_id="" if row is None else row[1],
        )

    best = max(within, key=lambda key: (within[key][0], [-b for b in key]), default=None)
    uniform = _best_uniform(within, options, num_layers, budgets, costs)
    return Recommendation(
        series=series,
        epoch=int(last["epoch"].iloc[0]),
        budgets=tuple(budget.text for budget in budgets),
        layer_names=layer_names(layers, num_layers),
        best_predicted=candidate(bits),
        best_measured=None if best is None else candidate(best),
        best_uniform=None if uniform is None else candidate(uniform),
        against_uniform=None if uniform is None else _paired(last, measured.get(bits), measured.get(uniform)),
        method=f"additive model of accuracy ({model.method}), integer programming",
    )


def _share(value: float) -> float:
    return value if np.isnan(value) else min(max(value, 0.0), 1.0)


def _measured_by_bits(rows: pd.DataFrame) -> dict[tuple[int, ...], tuple[float, str]]:
    """Return bits -> accuracy and config_id; of repetitions the mean accuracy."""
    mean = rows.groupby("config_id")["accuracy"].mean()
    bits = bits_of(rows)
    return {
        tuple(int(b) for b in bits[place]): (float(mean[config]), str(config))
        for place, config in enumerate(rows["config_id"])
    }


def _paired(rows: pd.DataFrame, one: tuple[float, str] | None, other: tuple[float, str] | None) -> Paired | None:
    """Return how two measured configurations (accuracy and config_id) differ on the same samples."""
    if one is None or other is None:
        return None
    once = rows.drop_duplicates("config_id").set_index("config_id", drop=False)
    right = right_samples(once.loc[[one[1], other[1]]])
    return None if right is None else compare_right(right[0], right[1])


def _best_uniform(
    within: Mapping[tuple[int, ...], tuple[float, str]],
    options: tuple[int, ...],
    num_layers: int,
    budgets: tuple[Budget, ...],
    costs: Mapping[str, Cost],
) -> tuple[int, ...] | None:
    uniform = [(option,) * num_layers for option in options]
    known = [bits for bits in uniform if bits in within]
    if known:
        return max(known, key=lambda bits: within[bits][0])
    allowed = [bits for bits in uniform if is_within(bits, budgets, costs)]
    return allowed[-1] if allowed else None


def file_text(found: Recommendation) -> str:
    """Return the recommended configuration as the JSON file that `qbw-eval run --configurations` evaluates."""
    best = found.best_predicted
    document = {
        "made_by": "qbw-report recommend",
        "series": found.series,
        "epoch": found.epoch,
        "budgets": list(found.budgets),
        "method": found.method,
        "configurations": [
            {
                "predicted_accuracy": best.predicted,
                "predicted_low": best.low,
                "predicted_high": best.high,
                **best.costs,
                "bitwidths": dict(zip(found.layer_names, best.bitwidths, strict=True)),
            }
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def verdict(found: Recommendation) -> str:
    """Return in a sentence how the recommended configuration stands against the best uniform one, as measured."""
    best, uniform = found.best_predicted, found.best_uniform
    if np.isnan(best.measured):
        return "The recommended configuration is not measured yet: evaluate it, then ask again."
    if uniform is None or np.isnan(uniform.measured):
        return "The recommended configuration is measured; no uniform one within the budget is."
    more, paired = 100 * (best.measured - uniform.measured), found.against_uniform
    word = "at least as good as" if more >= 0 else "worse than"
    sure = "" if paired is None else f"; 95%: {100 * paired.low:+.1f} to {100 * paired.high:+.1f} on the same samples"
    told = f"Measured, it is {word} the best uniform configuration within the budget ({more:+.1f} points{sure})."
    return told if more >= 0 else f"{told} The best measured one is the one to ship."


def as_json(found: Recommendation) -> dict[str, Any]:
    """Return the recommendation as plain values; NaN is None."""

    def plain(candidate: Candidate | None) -> dict[str, Any] | None:
        if candidate is None:
            return None
        numbers = {"predicted": candidate.predicted, "low": candidate.low, "high": candidate.high}
        numbers["measured"] = candidate.measured
        return {
            "bitwidths": dict(zip(found.layer_names, candidate.bitwidths, strict=True)),
            "costs": dict(candidate.costs),
            **{name: None if np.isnan(value) else value for name, value in numbers.items()},
            "config_id": candidate.config_id or None,
        }

    return {
        "series": found.series,
        "epoch": found.epoch,
        "budgets": list(found.budgets),
        "method": found.method,
        "best_predicted": plain(found.best_predicted),
        "best_measured": plain(found.best_measured),
        "best_uniform": plain(found.best_uniform),
        "against_uniform": None if found.against_uniform is None else asdict(found.against_uniform),
        "verdict": verdict(found),
    }
