"""Bootstrap: rows drawn again and again, from a seed that the rows' names give, so that a report repeats."""

import hashlib
import math

import numpy as np
from scipy.special import ndtr, stdtrit

RESAMPLES = 500
"""The ends of a 95% interval are then the 10th or so of the sorted values: they vary by a twentieth of its width."""

MOST_ROWS = 5_000
"""Of more rows a random part is enough: their intervals are narrower than anybody reads."""


def generator(*words: object) -> np.random.Generator:
    """Return a random generator whose numbers follow from `words`."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def resampled_weights(rows: int, random: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """Return how often each of `rows` rows was drawn: (resamples, rows), every line sums to `rows`."""
    return random.multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(float)


def percentile_interval(
    values: np.ndarray, rows: int, parameters: int, *, outside: float = 0.05
) -> tuple[float, float]:
    """Return a 95% interval from resampled values; infinite ones count as beyond every other.

    The percentiles lie a little further out than 2.5 and 97.5 (or whatever is left outside), by what Student's t and
    the degrees of freedom ask for: plain ones are too narrow for few rows (Hesterberg 2015, "What teachers should know
    about the bootstrap", 5.2).

    Args:
        values: one a resample.
        rows: how many rows were drawn from.
        parameters: how many numbers were fitted to them.
        outside: what the interval leaves out at both ends together; 0.1 where one end is to be a 95% bound by itself.
    """
    freedom = max(rows - parameters, 1)
    tail = float(ndtr(-math.sqrt(rows / freedom) * stdtrit(freedom, 1 - outside / 2)))  # normal, and Student's t
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)
