"""From where on the readings say what they say; why the defaults are what they are, and a check of what is set."""

import math
from dataclasses import dataclass

from schemas.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What turns numbers into readings.

    Attributes:
        tolerance: accuracy that one is willing to lose for fewer bits, as a share: one point unless told.
        strong: from here on a correlation is called strong; bitwidth then explains about half of the variance of
            accuracy (0.7 ** 2).
        flat: below this, up or down, accuracy is said to hardly depend on bitwidth, which explains less than a tenth of
            its variance (0.3 ** 2).
        noisy_ratio: accuracy is more variable at low bits where its standard deviation there is at least so many times
            that at high bits; at 1.5 times the variance is more than double.
    """

    tolerance: float = 0.01
    strong: float = 0.7
    flat: float = 0.3
    noisy_ratio: float = 1.5

    def __post_init__(self) -> None:
        """Check the values; NaN is none.

        Raises:
            UsageError: one of them makes no sense, or none beside another.
        """
        if not 0 < self.tolerance <= 1:
            found = f"{100 * self.tolerance:g}"
            raise UsageError(f"threshold tolerance: expected more than 0 and at most 100 points, found {found}")
        if not 0 < self.strong <= 1:
            raise UsageError(f"threshold strong: expected a correlation above 0, up to 1, found {self.strong:g}")
        if not 0 <= self.flat < self.strong:
            raise UsageError(
                f"threshold flat: expected a correlation from 0 to below {self.strong:g}, which is called strong, "
                f"found {self.flat:g}"
            )
        if not 1 <= self.noisy_ratio < math.inf:
            raise UsageError(f"threshold noisy ratio: expected a number from 1 on, found {self.noisy_ratio:g}")


DEFAULTS = Thresholds()
