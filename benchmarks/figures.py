"""A figure: a name, what every round measured, and the bound that somebody set for it."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number: the median of its rounds, with their interquartile range as `spread`.

    Attributes:
        figure: its name.
        values: one a round, at least one; all finite.
        unit: of the values; "x" for ratios.
        at_most: the largest median that is good enough, or None.
        at_least: the smallest, or None.
    """

    figure: str
    values: Sequence[float]
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        if not self.values or not all(map(math.isfinite, self.values)):
            raise ValueError(f"figure {self.figure!r}: expected finite values, at least one, found {self.values}")

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """The third quartile less the first; 0 for a single value."""
        if len(self.values) == 1:
            return 0.0
        quartiles = statistics.quantiles(self.values, n=4, method="inclusive")
        return quartiles[2] - quartiles[0]

    @property
    def is_met(self) -> bool:
        """Whether the median keeps its bounds; True where there are none."""
        return is_met(self.value, self.at_least, self.at_most)

    def as_dict(self) -> dict[str, object]:
        """Return the figure as `make bench JSON=` writes it."""
        bounds = {"at_most": self.at_most, "at_least": self.at_least}
        return {
            "figure": self.figure,
            "value": self.value,
            "unit": self.unit,
            **{name: bound for name, bound in bounds.items() if bound is not None},
            "spread": self.spread,
        }

    def line(self) -> str:
        """Return the figure as a person reads it.

        >>> Figure(figure="a / b", values=[2.0, 3.0, 4.0], unit="x", at_least=3.5).line()
        'a / b: 3 x (spread 1), at least 3.5: MISSED'
        """
        facts = self.as_dict()
        text = f"{self.figure}: {self.value:.4g} {self.unit} (spread {self.spread:.2g})"
        bounds = [f"{name.replace('_', ' ')} {facts[name]:g}" for name in ("at_most", "at_least") if name in facts]
        return ", ".join([text, *bounds]) + (": MISSED" if not self.is_met else "")


def is_met(value: float, at_least: float | None, at_most: float | None) -> bool:
    """Return whether a value keeps its bounds, each of which may be missing."""
    return (at_least is None or value >= at_least) and (at_most is None or value <= at_most)


def ratio(
    figure: str,
    above: Sequence[float],
    below: Sequence[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Figure:
    """Return above / below, divided round by round: what disturbs the machine for a while disturbs both."""
    values = [a / b for a, b in zip(above, below, strict=True)]
    return Figure(figure=figure, values=values, unit="x", at_least=at_least, at_most=at_most)
