"""Sums, means and spreads that are exact until the last step, so that no order of the numbers can change a digit.

A double is an integer times a power of two. The integers are cut into limbs, small enough that sums of limbs and of
their products fit 64 bits; such sums can be added in any order, by one process or by twenty. Python's own integers,
which have no limit, put them together again, and one division or root at the end rounds once.
"""

import math
from collections.abc import Sequence

import numpy as np

MOST_BITS = 54
"""Integers of up to so many bits, and a sign, have three limbs."""

MOST_TERMS = 2**25
"""So many numbers can be added: the largest column is below 3 * 2**36 in size, so that the sum stays below 2**63."""

COLUMNS = 8
"""Three for the sum of numbers, five for the sum of their squares."""

_LIMB = 18
_MASK = 2**_LIMB - 1


def limb_columns(values: np.ndarray) -> list[np.ndarray]:
    """Return the columns whose sums give the sum of the values, and of their squares.

    Args:
        values: int64, each below 2**54 in size: (n,).
    """
    low, middle, high = values & _MASK, (values >> _LIMB) & _MASK, values >> 2 * _LIMB  # high keeps the sign
    squares = [low * low, 2 * low * middle, 2 * low * high + middle * middle, 2 * middle * high, high * high]
    return [low, middle, high, *squares]


def sums_of(columns: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return sums of numbers and of their squares, as Python's integers, from sums of `limb_columns`."""
    return _put_together(columns[:3]), _put_together(columns[3:])


def _put_together(limbs: Sequence[np.ndarray]) -> np.ndarray:
    total = np.zeros(len(limbs[0]), dtype=object)
    for place, limb in enumerate(limbs):
        if limb.any():
            total = total + (limb.astype(object) << place * _LIMB)
    return total


def split_floats(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return integers of at most 53 bits and exponents: a finite value is the integer times two to the exponent."""
    shares, exponents = np.frexp(values)
    return np.ldexp(shares, 53).astype(np.int64), exponents.astype(np.int32) - 53


def spread_of(count: int, total: int, squares: int) -> int:
    """Return count**2 times the variance of numbers (ddof 0), from their count, sum and sum of squares; exact."""
    return count * squares - total * total


def root_ratio(square: int, divisor: int) -> float:
    """Return the square root of an integer, divided by another one."""
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
