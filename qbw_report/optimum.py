"""The configuration of the highest predicted accuracy within budgets: integer programming, checked in whole numbers."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from qbw_report.budget import Budget, is_within
from qbw_report.quiet import silent_stdout
from schemas.costs import Cost

_TRIES = 5
_SECONDS = 20.0


def best_within(
    effects: np.ndarray, options: Sequence[int], budgets: tuple[Budget, ...], costs: Mapping[str, Cost]
) -> tuple[int, ...] | None:
    """Return the bits per layer with the largest sum of effects that keep every budget; None if no bits do.

    One variable per layer and option, exactly one of them 1 in each layer; every budget is one linear bound. HiGHS
    works in floats, has called infeasible points optimal, and may print: so its answer is recomputed in whole numbers,
    and a bound that it overstepped is drawn in by that much.

    Args:
        effects: (layers, options); NaN where an option is not to be used.
        options: bits, ascending.
        budgets: upper bounds.
        costs: those that the budgets name.
    """
    num_layers, num_options = effects.shape
    usable = np.isfinite(effects)
    # Every cost grows with every layer's bits, so what the smallest bits do not keep, nothing keeps.
    smallest = tuple(options[int(row.argmax())] for row in usable)
    if not is_within(smallest, budgets, costs):
        return None
    totals = [
        np.array(
            [[size * bits ** costs[b.cost].power for bits in options] for size in costs[b.cost].sizes], dtype=float
        )
        for b in budgets
    ]
    limits = [float(costs[b.cost].last_total(b.limit)) for b in budgets]
    one_each = LinearConstraint(csr_matrix(np.kron(np.eye(num_layers), np.ones((1, num_options)))), 1, 1)
    value = np.where(usable, effects, 0.0).ravel()
    scale = max(float(np.abs(value).max()), 1e-12)
    for _ in range(_TRIES):
        bounds = [
            LinearConstraint(total.reshape(1, -1) / max(limit, 1.0), -np.inf, limit / max(limit, 1.0))
            for total, limit in zip(totals, limits, strict=True)
        ]
        with silent_stdout():
            found = milp(
                -value / scale,
                constraints=[one_each, *bounds],
                integrality=np.ones(value.size),
                bounds=Bounds(0, usable.ravel().astype(float)),
                options={"mip_rel_gap": 0.0, "time_limit": _SECONDS, "disp": False},
            )
        if found.x is None:
            break
        chosen = np.where(usable, found.x.reshape(num_layers, num_options), -1.0).argmax(axis=1)
        bits = tuple(int(options[place]) for place in chosen)
        if is_within(bits, budgets, costs):
            return bits
        for place, (budget, limit) in enumerate(zip(budgets, limits, strict=True)):
            over = costs[budget.cost].total(bits) - costs[budget.cost].last_total(budget.limit)
            limits[place] = limit - max(over, 0)
    return by_steps(np.where(usable, effects, -np.inf), options, smallest, budgets, costs)


def by_steps(
    effects: np.ndarray,
    options: Sequence[int],
    start: tuple[int, ...],
    budgets: tuple[Budget, ...],
    costs: Mapping[str, Cost],
) -> tuple[int, ...]:
    """Return a good configuration within the budgets: from `start`, which keeps them, the best single change at a time.

    For when the solver gave up; not always the best, always within.
    """
    place_of = {bits: place for place, bits in enumerate(options)}
    current = start
    while True:
        better: tuple[float, tuple[int, ...]] | None = None
        for layer, bits in enumerate(current):
            for place, option in enumerate(options):
                gain = float(effects[layer, place] - effects[layer, place_of[bits]])
                if gain <= 0 or (better is not None and gain <= better[0]):
                    continue
                changed = (*current[:layer], option, *current[layer + 1 :])
                if is_within(changed, budgets, costs):
                    better = gain, changed
        if better is None:
            return current
        current = better[1]
