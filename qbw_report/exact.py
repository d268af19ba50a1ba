"""Sums, means and spreads that are exact until the last step, so that no order of the numbers can change a digit.

A double is an integer times a power of two. The integers are cut into limbs, small enough that sums of limbs and of
their products fit 64 bits; such sums can be added in any order, by one process or by twenty. Python's own integers,
which have no limit, put them together again, and one division or root at the end rounds once.
"""

import math
from collections.abc import Sequence

import numpy as np

MOST_TERMS = 2**25
"""So many numbers can be added: the largest sum of products of limbs is below 3 * 2**36 in size, so that the sum of all
stays below 2**63."""

LIMBS = 4
"""Of a number: it is below 2**71 in size."""

SQUARE_LIMBS = 2 * LIMBS - 1
"""Of its square."""

_LIMB = 18
_MASK = 2**_LIMB - 1
_TWO_LIMBS = 2 ** (2 * _LIMB) - 1
_PACKED = 3
_UNIT = -62


def limbs_of(values: np.ndarray, shifts: np.ndarray | int = 0) -> list[np.ndarray]:
    """Return the limbs of values * 2**shifts, the lowest first: no more than the largest needs, at least one.

    Args:
        values: int64, each below 2**54 in size: (n,).
        shifts: each from 0 to 17.
    """
    low = (values & _TWO_LIMBS) << shifts
    high = ((values >> 2 * _LIMB) << shifts) + (low >> 2 * _LIMB)
    limbs = [low & _MASK, (low >> _LIMB) & _MASK, high & _MASK, high >> _LIMB]  # the last keeps the sign
    while len(limbs) > 1 and not limbs[-1].any():
        limbs.pop()
    return limbs


def squares_of(limbs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the limbs of the squares of numbers, each a sum of products that is not carried yet, from their limbs."""
    count = len(limbs)
    return [
        sum(
            (2 - (i == place - i)) * limbs[i] * limbs[place - i]
            for i in range(max(0, place - count + 1), place // 2 + 1)
        )
        for place in range(2 * count - 1)
    ]


def put_together(limbs: np.ndarray) -> np.ndarray:
    """Return numbers, as Python's integers, from sums of their limbs: (n, limbs) -> (n,)."""
    total, carry = np.zeros(len(limbs), dtype=object), np.zeros(len(limbs), dtype=np.int64)
    count = limbs.shape[1]
    for first in range(0, count, _PACKED):  # Python's integers take long to make, so one of several limbs
        packed = np.zeros(len(limbs), dtype=np.int64)
        for place in range(first, min(first + _PACKED, count)):
            carry = carry + limbs[:, place]
            packed |= (carry & _MASK) << (place - first) * _LIMB
            carry >>= _LIMB
        if packed.any():
            total = total + (packed.astype(object) << first * _LIMB)
    return total + (carry.astype(object) << count * _LIMB) if carry.any() else total


def split_floats(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return integers of at most 53 bits and exponents: a finite value is the integer times two to the exponent."""
    shares, exponents = np.frexp(values)
    return np.ldexp(shares, 53).astype(np.int64), exponents.astype(np.int64) - 53


def units_of(exponents: np.ndarray) -> np.ndarray:
    """Return for each exponent of `split_floats` the largest of ..., -80, -62, -44, ... that is not above it.

    Floats of one unit are whole numbers of the same power of two, of at most 71 bits, so that their limbs can be added.
    Those from 2**-10 to 2**8 have the same, as have most losses.
    """
    return _UNIT + (exponents - _UNIT) // _LIMB * _LIMB


def spread_of(count: int, total: int, squares: int) -> int:
    """Return count**2 times the variance of numbers (ddof 0), from their count, sum and sum of squares; exact."""
    return count * squares - total * total


def root_ratio(square: int, divisor: int) -> float:
    """Return the square root of an integer, divided by another one."""
    if not square:  # as of average bitwidths in most bins
        return 0.0
    shift = max(0, 65 - square.bit_length() // 2)  # so that the root has more digits than a double
    return math.isqrt(square << 2 * shift) / (divisor << shift)


def correlation_of(together: int, of_x: int, of_y: int) -> float:
    """Return a covariance by the root of two variances, all of them times the same; NaN where one of these is 0."""
    if not of_x or not of_y:
        return math.nan
    square = of_x * of_y
    shift = max(0, 65 - square.bit_length() // 2)
    value = (together << shift) / math.isqrt(square << 2 * shift)
    return max(-1.0, min(value, 1.0))
