"""Which samples were right, configuration by configuration: differences of accuracies measured on the same samples.

Two configurations that are measured on the same samples err on much the same ones, so their accuracies rise and fall
together, and a difference is known better than either. How much better, only the masks of right samples say.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binom, norm

_Z95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Paired:
    """How two configurations, or two checkpoints, differ on the same samples.

    Attributes:
        difference: accuracy of the first less that of the second.
        low: lower end of its 95% interval.
        high: upper end of it.
        only_first: samples that only the first gets right.
        only_second: samples that only the second gets right.
        p_value: McNemar's mid-p: how often chance alone would split the samples they disagree on at least so unevenly.
    """

    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_value: float


def right_samples(rows: pd.DataFrame) -> np.ndarray | None:
    """Return (rows, samples) booleans; None where a row has no mask, or rows differ in samples.

    A mask must say what `correct` says: one that does not is no mask of this row (old writers left zeros).
    """
    names = ("correct_mask", "correct", "num_samples", "data_id")
    return unpacked(*(rows[name].to_numpy() for name in names))


def unpacked(masks: np.ndarray, correct: np.ndarray, num_samples: np.ndarray, data_id: np.ndarray) -> np.ndarray | None:
    """Return `right_samples` of rows whose columns these are: for many small groups of rows pandas takes longer."""
    if len(set(num_samples)) != 1 or len(set(data_id)) != 1 or not all(isinstance(mask, bytes) for mask in masks):
        return None
    samples = int(num_samples[0])
    if not all(len(mask) == (samples + 7) // 8 for mask in masks):
        return None
    packed = np.frombuffer(b"".join(masks), dtype=np.uint8).reshape(len(masks), -1)
    right = np.unpackbits(packed, axis=1, bitorder="little", count=samples).astype(bool)
    return right if (right.sum(axis=1) == correct).all() else None


def compare_right(first: np.ndarray, second: np.ndarray) -> Paired:
    """Return how two configurations differ on the same samples.

    The interval is Agresti and Min's (2005): Wald's after half a sample is added to each of the four cells, which
    covers also where they disagree on few samples.

    Args:
        first: whether each sample is right: (samples,).
        second: likewise.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    samples = len(first)
    b, c, n = only_first + 0.5, only_second + 0.5, samples + 2
    half = _Z95 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    center = (b - c) / n
    return Paired(
        difference=(only_first - only_second) / samples,
        low=max(center - half, -1.0),
        high=min(center + half, 1.0),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar_mid_p(only_first, only_second),
    )


def mcnemar_mid_p(only_first: int, only_second: int) -> float:
    """Return McNemar's mid-p value: the exact binomial one, in which what was seen counts half (Fagerland 2013).

    >>> mcnemar_mid_p(5, 5)
    0.75390625
    >>> mcnemar_mid_p(0, 0)
    1.0
    """
    disagreements, fewer = only_first + only_second, min(only_first, only_second)
    if disagreements == 0:
        return 1.0
    seen = binom.pmf(fewer, disagreements, 0.5)
    if only_first == only_second:
        return float(1 - seen)
    return float(min(1.0, 2 * binom.cdf(fewer, disagreements, 0.5) - seen))


def mean_difference(per_sample: np.ndarray) -> tuple[float, float, float, float]:
    """Return mean, 95% interval and p value of differences, one a sample; samples are what varies.

    Averaged over configurations first, a sample that all of them get wrong counts once, not once for each: samples are
    the clusters.
    """
    mean, samples = float(per_sample.mean()), len(per_sample)
    error = float(per_sample.std(ddof=1)) / math.sqrt(samples) if samples > 1 else math.nan
    if error == 0:
        return mean, mean, mean, 1.0 if mean == 0 else 0.0
    p_value = float(2 * norm.sf(abs(mean) / error)) if math.isfinite(error) else math.nan
    return mean, mean - _Z95 * error, mean + _Z95 * error, p_value


def noise_variance(right: np.ndarray) -> float:
    """Return how much of the variance of these accuracies (ddof 1) the choice of samples alone makes.

    Two-way analysis of variance, configurations by samples: what is left after both of their means, divided by the
    number of samples. What a sample does to all configurations alike is in neither their spread nor this.

    Args:
        right: (configurations, samples); at least 2 of each.
    """
    configurations, samples = right.shape
    # Of 0s and 1s the squares are themselves, so sums of them are all that is needed.
    of_configurations, of_samples, total = right.sum(axis=1), right.sum(axis=0), int(right.sum())
    grand = total**2 / (configurations * samples)
    residual = (
        total
        - float(of_configurations.astype(float) @ of_configurations) / samples
        - float(of_samples.astype(float) @ of_samples) / configurations
        + grand
    )
    return float(max(residual, 0.0) / ((configurations - 1) * (samples - 1)) / samples)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p values adjusted for how many there are (Holm 1979): below 0.05 with them all in view.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    scaled = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted
