"""One answer: a number with its interval, how it was found, from what; or why it cannot be told."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One answer.

    Attributes:
        question: its name, such as `knee`; one line in `answers.csv` for each question and cost.
        cost: the record's column that accuracy is set against; empty where none is.
        value: the answer; NaN where it cannot be told, or there is none.
        low: lower end of its 95% interval; NaN where there is no interval.
        high: upper end of it.
        unit: of the three.
        verdict: the answer in a few words, "none" and "cannot tell" included.
        unknown: why it cannot be told; empty where it can.
        more: about how many more configurations it would take; 0 where none, or where nobody knows.
        configs: how many configurations say so.
        method: how it was found.
        source: from which rows.
    """

    question: str
    cost: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    unit: str = ""
    verdict: str = ""
    unknown: str = ""
    more: int = 0
    configs: int
    method: str
    source: str

    @property
    def is_known(self) -> bool:
        """Whether there is an answer, be it "none"."""
        return not self.unknown


def cannot_tell(question: str, cost: str, why: str, *, more: int, configs: int, method: str, source: str) -> Finding:
    """Return the answer that there is none yet, with how many more configurations would give one."""
    return Finding(
        question=question,
        cost=cost,
        verdict="cannot tell",
        unknown=why + (f"; evaluate about {more} more" if more else ""),
        more=more,
        configs=configs,
        method=method,
        source=source,
    )


def points(share: float) -> str:
    """Return ``1 point`` or ``0.5 points``."""
    percent = f"{share * 100:g}"
    return "1 point" if percent == "1" else f"{percent} points"
