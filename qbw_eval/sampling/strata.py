"""All configurations of a network in strata of (nearly) equal cost: counted, and any of them found by its number.

Counting is exact dynamic programming over the layers in whole numbers (`ways[l][s]`: in how many ways the layers from l
on can cost s together), so a uniformly random number below a stratum's count is a uniformly random configuration of it.

A stratum holds the configurations of one sum where those are few enough: for the average bitwidth practically always,
for weights and MACs where they have a large common divisor, as in most networks. Else each layer's cost is rounded to
whole units first, of which the whole range has thousands: configurations of one stratum then differ from it by at most
half a unit a layer, and who needs an exact bound must look at each (`exact` says which it is).
"""

import hashlib
from bisect import bisect_right, insort
from collections.abc import Sequence
from fractions import Fraction
from math import gcd

from schemas.costs import Cost

_MOST_STRATA, _FEWEST_STRATA = 8192, 256
_MOST_STEPS = 2**22
"""Counting takes layers x options x strata steps: some seconds at most."""


class Strata:
    """The configurations of a network by their sums of a cost.

    Args:
        cost: what is summed.
        options: ascending.

    Attributes:
        counts: stratum -> number of its configurations, ascending; a stratum is a number of units above `lowest`.
        lowest: the sum with every layer at the smallest option.
        unit: what one step between strata is, as a sum.
        exact: whether all configurations of a stratum have the sum `lowest + stratum * unit`.
    """

    def __init__(self, cost: Cost, options: Sequence[int]) -> None:
        self._options = tuple(options)
        num_layers = len(cost.sizes)
        above = [[size * (bits**cost.power - options[0] ** cost.power) for bits in options] for size in cost.sizes]
        divisor = max(1, gcd(*(increment for increments in above for increment in increments)))
        span = sum(increments[-1] for increments in above) // divisor
        most = min(_MOST_STRATA, max(_FEWEST_STRATA, _MOST_STEPS // (num_layers * len(options))))
        self.exact = min(span, len(options) ** num_layers) <= most
        self.lowest = cost.total([options[0]] * num_layers)
        self.unit = divisor if self.exact else divisor * -(-span // most)
        # Rounded half up; where exact, there is nothing to round.
        self._steps = [[(2 * i + self.unit) // (2 * self.unit) for i in increments] for increments in above]
        self._ways: list[dict[int, int]] = [{0: 1}]
        for steps in reversed(self._steps):
            self._ways.append(_with_layer(self._ways[-1], steps))
        self._ways.reverse()
        self.counts = dict(sorted(self._ways[0].items()))

    def configuration(self, stratum: int, rank: int) -> tuple[int, ...]:
        """Return the configuration of this rank, 0 to count - 1, in lexicographic order within its stratum."""
        bits = []
        for layer, steps in enumerate(self._steps):
            for option, step in zip(self._options, steps, strict=True):
                ways = self._ways[layer + 1].get(stratum - step, 0)
                if rank < ways:
                    bits.append(option)
                    stratum -= step
                    break
                rank -= ways
        return tuple(bits)

    def place_of(self, bitwidths: Sequence[int]) -> tuple[int, int]:
        """Return (stratum, rank) of a configuration: the inverse of `configuration`."""
        chosen = [self._options.index(bits) for bits in bitwidths]
        stratum = rest = sum(steps[index] for steps, index in zip(self._steps, chosen, strict=True))
        rank = 0
        for layer, (steps, index) in enumerate(zip(self._steps, chosen, strict=True)):
            rank += sum(self._ways[layer + 1].get(rest - step, 0) for step in steps[:index])
            rest -= steps[index]
        return stratum, rank

    def position(self, total: Fraction) -> Fraction:
        """Return where a sum lies among the strata."""
        return (total - self.lowest) / self.unit


def _with_layer(ways: dict[int, int], steps: Sequence[int]) -> dict[int, int]:
    """Return in how many ways one layer more can cost what."""
    after: dict[int, int] = {}
    for step in steps:
        for stratum, count in ways.items():
            after[stratum + step] = after.get(stratum + step, 0) + count
    return after


class Untaken:
    """The whole numbers from 0 to count - 1 that have not been taken, in order."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._taken: list[int] = []

    @property
    def left(self) -> int:
        """How many there are."""
        return self._count - len(self._taken)

    def take(self, number: int) -> None:
        """Take a number that has not been taken."""
        insort(self._taken, number)

    def draw(self, label: str) -> int:
        """Take a uniformly random one, which `label` decides, and return it; there must be one."""
        position = random_below(self.left, label)
        # Before the i-th taken number lie taken[i] - i others: skip those that come before the wanted one.
        skipped = bisect_right(range(len(self._taken)), position, key=lambda i: self._taken[i] - i)
        self.take(position + skipped)
        return position + skipped


def random_below(bound: int, label: str) -> int:
    """Return a whole number from 0 to bound - 1, uniform but for a bias below 2**-64, from SHAKE-128 of the label."""
    length = (bound.bit_length() + 64 + 7) // 8
    return int.from_bytes(hashlib.shake_128(label.encode()).digest(length)) % bound
