"""What a configuration may cost: `avg_bitwidth<=4.5`, `weight_bytes<=300kB`, `bit_ops<=2.5G` -> an exact bound."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from qbw_report.layers import Layers
from schemas.costs import COSTS, Cost, average_cost, costs_over
from schemas.errors import UsageError, did_you_mean

_BYTES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_COUNTS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS = {"weight_bytes": _BYTES, "bit_ops": _COUNTS}

_FORM = re.compile(r"\s*([a-z_]+)\s*<=\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """An upper bound of one cost.

    Attributes:
        cost: which, one of `schemas.costs.COSTS`.
        limit: in the record's unit, exactly as written.
        text: how it was written.
    """

    cost: str
    limit: Fraction
    text: str


def parse_budget(text: str) -> Budget:
    """Return the budget that is written as `cost<=value`, with a unit where the cost has larger ones.

    Raises:
        UsageError: it is written otherwise, or there is no such cost or unit.
    """
    form = _FORM.fullmatch(text)
    if form is None:
        raise UsageError(f"budget {text!r}: expected cost<=value, such as avg_bitwidth<=4.5 or weight_bytes<=300kB")
    cost, value, unit = form.groups()
    if cost not in COSTS:
        raise UsageError(
            f"budget {text!r}: expected one of {', '.join(COSTS)}, found {cost!r}{did_you_mean(cost, COSTS)}"
        )
    units = _UNITS.get(cost, {"": 1})
    if unit not in units:
        known = ", ".join(name for name in units if name)
        raise UsageError(f"budget {text!r}: expected {f'one of {known}' if known else 'no unit'}, found {unit!r}")
    return Budget(cost=cost, limit=Fraction(value) * units[unit], text=text.strip())


def costs_for(budgets: tuple[Budget, ...], layers: Layers | None, num_layers: int, largest: int) -> Mapping[str, Cost]:
    """Return the costs that can be computed, by name.

    Raises:
        UsageError: a budget bounds one that needs the layer table, which is missing or has another number of layers.
    """
    if layers is not None and len(layers.names) == num_layers:
        return costs_over(layers.weights, layers.macs, largest)
    for budget in budgets:
        if budget.cost != "avg_bitwidth":
            raise UsageError(
                f"budget {budget.text!r}: needs the layers' sizes, which stand in layers/ beside the records; found no "
                "table of this network there; evaluate it again, or bound avg_bitwidth"
            )
    return {"avg_bitwidth": average_cost(num_layers)}


def is_within(bitwidths: tuple[int, ...], budgets: tuple[Budget, ...], costs: Mapping[str, Cost]) -> bool:
    """Return whether a configuration keeps every budget, in whole numbers."""
    return all(costs[b.cost].total(bitwidths) <= costs[b.cost].last_total(b.limit) for b in budgets)
