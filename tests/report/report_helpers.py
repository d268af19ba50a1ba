"""What the fixtures of the report's tests hand out (in a module of its own name: there may be other conftests)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """How a run of the command line ended."""

    code: int
    stdout: str
    stderr: str


RunCli = Callable[..., Outcome]


@dataclass(frozen=True)
class Report:
    """A built report and the records it was built from."""

    records: Path
    out: Path
    paths: Sequence[str]
