"""Statistics of bins -> the same with a 95% interval of each mean accuracy."""

import numpy as np
import pandas as pd
from scipy.stats import t


def with_intervals(bins: pd.DataFrame) -> pd.DataFrame:
    """Return the lines with `accuracy_low` and `accuracy_high`: where the mean of more such configurations would lie.

    Student's t; NaN for a bin of one configuration. The choice of samples is not in it: all configurations are measured
    on the same ones. An end below 0 or above 1, where no accuracy is, is cut to it.

    Args:
        bins: lines with `configs`, `accuracy_mean` and `accuracy_std` (ddof 0): `qbw_report.statistics.per_bin`.
    """
    count = bins["configs"].to_numpy(dtype=float)
    more = np.where(count > 1, count - 1, np.nan)
    # std is the population's: its square times n / (n - 1) is the variance, of which the mean has an nth.
    half = t.ppf(0.975, more) * bins["accuracy_std"].to_numpy() / np.sqrt(more)
    mean = bins["accuracy_mean"].to_numpy()
    return bins.assign(accuracy_low=(mean - half).clip(0.0, 1.0), accuracy_high=(mean + half).clip(0.0, 1.0))
