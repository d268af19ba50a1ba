"""`avg_bitwidth=3:5`: a range of a cost, in exact fractions."""

import re
from dataclasses import dataclass
from fractions import Fraction

from schemas.costs import COSTS, Cost
from schemas.errors import did_you_mean

# Bounded, because the text may stand in a stranger's checkpoint, and 1e999999999 would fill the memory.
_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True, kw_only=True)
class CostRange:
    """The values that a cost may have, both ends included.

    Attributes:
        cost: one of `schemas.costs.COSTS`.
        low, high: in the cost's unit; None where that side is open.
    """

    cost: str
    low: Fraction | None
    high: Fraction | None

    def __str__(self) -> str:
        return f"{self.cost}={_text(self.low)}:{_text(self.high)}"

    @property
    def facts(self) -> dict[str, str | None]:
        """The range as plain JSON, equal however its numbers were written."""
        ends = {"low": self.low, "high": self.high}
        return {"cost": self.cost, **{side: None if end is None else str(end) for side, end in ends.items()}}

    def totals(self, cost: Cost, lowest: int, highest: int) -> tuple[int, int]:
        """Return the first and the last sum of `cost` in the range, of those that can be at all; see `Cost`."""
        first = lowest if self.low is None else max(lowest, cost.first_total(self.low))
        last = highest if self.high is None else min(highest, cost.last_total(self.high))
        return first, last


def _text(end: Fraction | None) -> str:
    if end is None:
        return ""
    return str(end) if end.denominator == 1 else f"{float(end):.10g}"


def parse_range(text: str) -> CostRange:
    """Return the range that `cost=low:high` says; either number may be left out.

    Raises:
        ValueError: it says none; the message goes behind the name of the option or setting.

    >>> str(parse_range("avg_bitwidth=3:4.50"))
    'avg_bitwidth=3:4.5'
    >>> str(parse_range("weight_bytes=:1e6"))
    'weight_bytes=:1000000'
    """
    name, _, ends = text.partition("=")
    low, colon, high = (part.strip() for part in ends.partition(":"))
    if not (colon and (low or high)) or not all(_NUMBER.fullmatch(end) for end in (low, high) if end):
        raise ValueError(f"expected a cost and its lowest and highest value, such as avg_bitwidth=3:5, found {text!r}")
    name = name.strip()
    if name not in COSTS:
        raise ValueError(f"expected one of the costs {', '.join(COSTS)}, found {name!r}{did_you_mean(name, COSTS)}")
    found = CostRange(cost=name, low=Fraction(low) if low else None, high=Fraction(high) if high else None)
    if found.low is not None and found.high is not None and found.low > found.high:
        raise ValueError(f"expected the lower value first, found {text!r}")
    return found
