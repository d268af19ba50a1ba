"""What to ship at a few budgets of average bitwidth, from small to large: a line each."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from qbw_report.budget import parse_budget
from qbw_report.frontier import bits_in_words
from qbw_report.layers import Layers
from qbw_report.recommend import recommend, verdict
from qbw_report.selection import last_epoch
from qbw_report.sensitivity import Sensitivity, of_one_network, options_of

LEVELS = 5
"""How many budgets between the smallest and the largest option are looked at."""

RECOMMENDATION_COLUMNS = [
    "series", "epoch", "budget", "cost", "limit", "value", "predicted", "low", "high", "measured", "config_id",
    "bitwidths", "best_measured_value", "best_measured", "best_measured_config_id", "best_uniform_value",
    "best_uniform", "method", "verdict",
]  # fmt: skip


def recommendations(rows: pd.DataFrame, layers: Layers | None, sensitivity: Sensitivity) -> pd.DataFrame:
    """Return what `qbw_report.recommend` says at each budget; no line where it can say nothing.

    Args:
        rows: one series; at least one row.
        layers: its layer table; None where there is none.
        sensitivity: of these rows.
    """
    last = of_one_network(last_epoch(rows))
    lines = []
    if sensitivity.model is not None:
        for text in budget_levels(options_of(last)):
            budget = parse_budget(text)
            found = recommend(last, layers, sensitivity, (budget,))
            best, measured, uniform = found.best_predicted, found.best_measured, found.best_uniform
            lines.append(
                {
                    "series": found.series,
                    "epoch": found.epoch,
                    "budget": text,
                    "cost": budget.cost,
                    "limit": float(budget.limit),
                    "value": best.costs[budget.cost],
                    "predicted": best.predicted,
                    "low": best.low,
                    "high": best.high,
                    "measured": best.measured,
                    "config_id": best.config_id,
                    "bitwidths": bits_in_words(best.bitwidths),
                    "best_measured_value": np.nan if measured is None else measured.costs[budget.cost],
                    "best_measured": np.nan if measured is None else measured.measured,
                    "best_measured_config_id": "" if measured is None else measured.config_id,
                    "best_uniform_value": np.nan if uniform is None else uniform.costs[budget.cost],
                    "best_uniform": np.nan if uniform is None else uniform.measured,
                    "method": found.method,
                    "verdict": verdict(found),
                }
            )
    return pd.DataFrame(lines, columns=RECOMMENDATION_COLUMNS)


def budget_levels(options: tuple[int, ...]) -> Iterator[str]:
    """Yield budgets evenly between the smallest and the largest option, to a tenth of a bit.

    >>> list(budget_levels((2, 4, 8)))[:2]
    ['avg_bitwidth<=3', 'avg_bitwidth<=4']
    """
    limits = np.linspace(options[0], options[-1], LEVELS + 2)[1:-1].round(1) if len(options) > 1 else ()
    for limit in limits:
        yield f"avg_bitwidth<={limit:g}"
