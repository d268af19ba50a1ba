"""The samplers: sequences of different configurations that do not depend on how many of them are taken.

Draws come from SHAKE-128 of (sampler, seed, draw), not from a generator whose stream may change between versions of a
library, and every decision is one of whole numbers or exact fractions: the same on every machine.
"""

import hashlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import accumulate, count, product
from typing import NamedTuple

from qbw_eval.sampling.strata import Strata, Untaken
from schemas.costs import Cost

_TRIES = 64
"""Configurations looked at where a stratum's may lie outside the range, before another stratum is tried."""


class Draw(NamedTuple):
    """One configuration, and the value of the cost that was aimed at (None where none was)."""

    bitwidths: tuple[int, ...]
    target: float | None = None


class Within(NamedTuple):
    """The configurations whose sum of a cost (see `Cost`) is from `first` to `last`."""

    cost: Cost
    first: int
    last: int

    def holds(self, bitwidths: Sequence[int]) -> bool:
        """Return whether a configuration is one of them."""
        return self.first <= self.cost.total(bitwidths) <= self.last


def iid(num_layers: int, options: Sequence[int], seed: int) -> Iterator[Draw]:
    """Draw each layer's bits independently and uniformly (the seed document's way), without repeats."""
    total = math.prod([len(options)] * num_layers)
    seen: set[tuple[int, ...]] = set()
    draw = 0
    while len(seen) < total:
        if draw >= 64 * total:  # a small space, nearly used up: finish it in order instead of waiting for luck
            yield from (Draw(bits) for bits in product(options, repeat=num_layers) if bits not in seen)
            return
        stream = hashlib.shake_128(f"qbw iid/1 seed={seed} draw={draw}".encode()).digest(8 * num_layers)
        # 64 bits a layer: the bias of the remainder is below 1e-17.
        bits = tuple(options[int.from_bytes(stream[8 * i : 8 * i + 8]) % len(options)] for i in range(num_layers))
        draw += 1
        if bits not in seen:
            seen.add(bits)
            yield Draw(bits)


def iid_within(within: Within, options: Sequence[int], seed: int) -> Iterator[Draw]:
    """Draw as `iid` does, given that the configuration lies in the range: uniformly among all that do.

    Where counting is not exact, what lies outside is drawn too and left out; the sequence ends where nothing inside has
    come up for long.
    """
    strata = Strata(within.cost, options)
    held = _strata_within(strata, within)
    ends = list(accumulate(strata.counts[stratum] for stratum in held))
    untaken = Untaken(ends[-1] if ends else 0)
    outside = 0
    for draw in count():
        if not untaken.left or outside >= _TRIES * _TRIES:
            return
        number = untaken.draw(f"qbw iid/1 range seed={seed} draw={draw}")
        index = bisect_right(ends, number)
        bits = strata.configuration(held[index], number - (ends[index - 1] if index else 0))
        if within.holds(bits):
            outside = 0
            yield Draw(bits)
        else:
            outside += 1


def uniform(num_layers: int, options: Sequence[int]) -> Iterator[Draw]:
    """Give every layer the same option, each option once."""
    yield from (Draw((bits,) * num_layers) for bits in options)


def one_layer(num_layers: int, options: Sequence[int], base: int) -> Iterator[Draw]:
    """Give every layer the base; then each layer in turn each other option, the rest staying at the base."""
    uniform_base = (base,) * num_layers
    yield Draw(uniform_base)
    for layer in range(num_layers):
        for bits in options:
            if bits != base:
                yield Draw((*uniform_base[:layer], bits, *uniform_base[layer + 1 :]))


def neighbours(given: tuple[int, ...], options: Sequence[int]) -> Iterator[Draw]:
    """Give the configuration itself; then all that differ from it in one layer by one step between options."""
    yield Draw(given)
    for layer, bits in enumerate(given):
        place = options.index(bits)
        for other in (place - 1, place + 1):
            if 0 <= other < len(options):
                yield Draw((*given[:layer], options[other], *given[layer + 1 :]))


def stratified(within: Within, options: Sequence[int], seed: int) -> Iterator[Draw]:
    """Spread targets evenly over the range of a cost, and draw a uniformly random configuration near each.

    The uniform configurations of the range come first. Then follow targets (`_fractions`) such that every beginning of
    the sequence is spread evenly: the ends of the range where no uniform configuration lies there, its middle, its
    quarters, its eighths. For each, the nearest stratum with configurations left is taken (the lower one of two), and
    one of those drawn, all with the same chance.
    """
    strata = Strata(within.cost, options)
    left = {stratum: Untaken(strata.counts[stratum]) for stratum in _strata_within(strata, within)}
    first, last = _reachable_ends(strata, within, list(left))
    covered: list[int] = []
    for bits in options:
        bitwidths = (bits,) * len(within.cost.sizes)
        if within.holds(bitwidths):
            stratum, rank = strata.place_of(bitwidths)
            left[stratum].take(rank)
            covered.append(within.cost.total(bitwidths))
            yield Draw(bitwidths)
    open_strata = [stratum for stratum, untaken in left.items() if untaken.left]
    ends = [Fraction(side) for side, end in enumerate((first, last)) if end not in covered]
    for number, fraction in enumerate(_fractions(ends)):
        target = first + fraction * (last - first)
        label = f"qbw stratified/1 seed={seed} draw={number}"
        drawn = _draw_near(strata.position(target), strata, within, left, open_strata, label)
        if drawn is None:
            return
        yield Draw(drawn, float(target / within.cost.quantum / (within.cost.denominator or 1)))


def _strata_within(strata: Strata, within: Within) -> list[int]:
    """Return the strata, ascending, that may hold configurations of the range; where exact, those that do."""
    # Rounding moves each layer by at most half a unit; the sum of a stratum's configurations by half a unit a layer.
    slack = 0 if strata.exact else Fraction(len(within.cost.sizes), 2)
    lowest, highest = (strata.position(Fraction(end)) for end in (within.first, within.last))
    return [stratum for stratum in strata.counts if lowest - slack <= stratum <= highest + slack]


def _reachable_ends(strata: Strata, within: Within, held: Sequence[int]) -> tuple[int, int]:
    """Return the outermost sums in the range; where counting is exact, of those that configurations have."""
    if not strata.exact or not held:
        return within.first, within.last
    return strata.lowest + held[0] * strata.unit, strata.lowest + held[-1] * strata.unit


def _fractions(ends: Iterable[Fraction]) -> Iterator[Fraction]:
    """Yield the ends, then 1/2, 1/4, 3/4, 1/8, 5/8, 3/8, 7/8, ...: van der Corput's sequence in base 2."""
    yield from ends
    for number in count(1):
        reversed_bits = int(f"{number:b}"[::-1], 2)
        yield Fraction(reversed_bits, 2 ** number.bit_length())


def _draw_near(
    position: Fraction,
    strata: Strata,
    within: Within,
    left: dict[int, Untaken],
    open_strata: list[int],
    label: str,
) -> tuple[int, ...] | None:
    """Take a configuration of the nearest stratum that has one left, or return None where none has.

    A stratum is closed when nothing is left in it, or when (where counting is not exact) nothing inside the range has
    come up for long.
    """
    tries = 0
    while open_strata:
        index = bisect_left(open_strata, position)
        around = open_strata[max(0, index - 1) : index + 1]
        stratum = min(around, key=lambda stratum: (abs(stratum - position), stratum))
        rank = left[stratum].draw(f"{label} try={tries}" if tries else label)
        tries += 1
        bitwidths = strata.configuration(stratum, rank)
        held = within.holds(bitwidths)
        if not left[stratum].left or (not held and tries % _TRIES == 0):
            open_strata.remove(stratum)
        if held:
            return bitwidths
    return None
