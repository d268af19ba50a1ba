"""What a reader must know before trusting the answers: too few rows, a narrow range, too few samples, mixtures."""

import math
from itertools import combinations

import pandas as pd

from qbw_report.insight.finding import points
from qbw_report.insight.trend import LEAST_CONFIGS
from qbw_report.selection import configurations, typical_rows

COVERED = 0.6
"""Of the range from the smallest to the largest option, so much should be measured, or a trend is not about it."""

_MIXED = {"engine": "engines", "checkpoint_id": "checkpoints", "model_id": "networks", "num_samples": "sample counts"}


def cautions(rows: pd.DataFrame, tolerance: float, noise: float) -> list[str]:
    """Return a sentence for each reason to be careful.

    Args:
        rows: one epoch of one series.
        tolerance: the loss of accuracy that is asked about, as a share.
        noise: half width of the 95% interval of what is compared with it.
    """
    drawn, _ = typical_rows(rows)
    told = []
    if len(drawn) < LEAST_CONFIGS:
        told.append(
            f"{configurations(len(drawn))} measured, fewer than {LEAST_CONFIGS}: evaluate "
            f"{LEAST_CONFIGS - len(drawn)} more before reading anything into them."
        )
    told += [*_range(drawn), *_together(drawn)]
    if noise > tolerance:
        told.append(too_few_samples(noise, tolerance, int(rows["num_samples"].min())))
    for column, plural in _MIXED.items():
        kinds = rows[column].nunique()
        if kinds > 1:
            told.append(f"The rows come from {kinds} {plural}; compare them before trusting what they have in common.")
    return told


def too_few_samples(noise: float, tolerance: float, samples: int) -> str:
    """Return that the noise is larger than what is asked about, and how many samples would make it smaller."""
    needed = math.ceil(samples * (noise / tolerance) ** 2)
    digits = 10 ** max(len(str(needed)) - 2, 0)
    return (
        f"The noise (± {noise * 100:.1f} points) is larger than the {points(tolerance)} asked about; "
        f"evaluate about {math.ceil(needed / digits) * digits:,} samples to be sure."
    )


def _range(drawn: pd.DataFrame) -> list[str]:
    options = _options(drawn)
    if len(drawn) < 2 or len(options) < 2:
        return []
    low, high = drawn["avg_bitwidth"].min(), drawn["avg_bitwidth"].max()
    if high - low >= COVERED * (options[-1] - options[0]):
        return []
    return [
        f"Only {low:.2f} to {high:.2f} of {options[0]} to {options[-1]} bits on average is covered; evaluate with "
        "--sampler stratified, which spreads configurations over the range."
    ]


def _together(drawn: pd.DataFrame) -> list[str]:
    options = _options(drawn)
    used = [set(bits) for bits in drawn["bitwidths"]]
    apart = [pair for pair in combinations(options, 2) if not any(set(pair) <= seen for seen in used)]
    if not apart or len(drawn) < 2:
        return []
    pairs = ", ".join(f"{a} and {b}" for a, b in apart[:5]) + (" and others" if len(apart) > 5 else "")
    return [f"Never seen together in one configuration: {pairs} bits; nothing is known of their mixtures."]


def _options(drawn: pd.DataFrame) -> list[int]:
    return sorted({int(bits) for options in drawn["bitwidth_options"] if options is not None for bits in options})
