"""From values to places on an axis: limits with some air, round ticks, places as percentages of the axis."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MOST_TICKS = 6
"""More would touch on a telephone."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear axis.

    Attributes:
        low: value at its beginning.
        high: value at its end; larger than `low`.
        ticks: place and text of each tick, in order.
        label: what it shows, with its unit.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    label: str

    def at(self, value: float) -> float:
        """Return the place of a value, in percent of the axis."""
        return place((value - self.low) / (self.high - self.low))


def place(share: float) -> float:
    """Return a share as a percentage with the digits that a screen can show."""
    return round(100 * share, 3) + 0.0  # no negative zero


def axis(
    values: Sequence[float] | np.ndarray,
    label: str,
    form: Callable[[float], str],
    *,
    least: float,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    air: float = 0.04,
) -> Axis:
    """Return an axis on which all finite values lie, with some air at both ends.

    Args:
        values: what is to be seen; those that are not finite are passed over.
        label: what they are.
        form: a tick's value -> its text.
        least: the range that is shown at least, so that noise looks small.
        bounds: beyond which there is nothing.
        air: of the range, at each end.
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    missing = max(least - (high - low), 0.0)
    low, high = low - missing / 2, high + missing / 2
    spare = air * (high - low)
    # A sliver beyond a bound keeps a point that lies exactly there whole.
    low, high = max(low - spare, bounds[0] - spare / 2), min(high + spare, bounds[1] + spare / 2)
    step = tick_step(high - low)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [index * step for index in range(first, last + 1)]
    places = tuple((place((tick - low) / (high - low)), form(round(tick, 12))) for tick in ticks)
    return Axis(low=low, high=high, ticks=places, label=label)


def tick_step(span: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that gives at most `MOST_TICKS` ticks.

    >>> tick_step(6.4)
    2.0
    """
    power = 10.0 ** math.floor(math.log10(span / MOST_TICKS))
    return next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= MOST_TICKS)
