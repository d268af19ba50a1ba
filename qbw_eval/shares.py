"""Which chunks are whose, where several jobs evaluate the same checkpoints and nobody hands out work. Needs no torch.

The jobs of an array all see the same list of checkpoints, and each takes a share that follows from its number alone. Of
m checkpoints and n shares, the first m // n * n go round, whole: a job reads as few checkpoints as can be, and those
that training adds at the end of the list spread over all jobs. The m % n that are left lie on a line, cut into n equal
pieces: a chunk belongs to the piece that its middle lies in.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.errors import UsageError

_SLURM, _KUBERNETES = "SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"


@dataclass(frozen=True)
class Share:
    """One of `of` shares that together are all the work, each chunk once.

    Attributes:
        number: from 1 to `of`.
        of: how many shares there are.
    """

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def holds_some(self, checkpoint: int, checkpoints: int) -> bool:
        """Return whether a chunk of a checkpoint may be in this share, however many chunks it has.

        Args:
            checkpoint: its place in the list, from 0.
            checkpoints: how long the list is.
        """
        whole = checkpoints // self.of * self.of
        if checkpoint < whole:
            return checkpoint % self.of == self.number - 1
        # Its stretch of the line and this share's piece of it have a length in common.
        start, left = (checkpoint - whole) * self.of, checkpoints - whole
        return (self.number - 1) * left < start + self.of and start < self.number * left

    def holds(self, checkpoint: int, checkpoints: int, chunk: int, chunks: int) -> bool:
        """Return whether a chunk is in this share.

        Args:
            checkpoint: the place of its checkpoint in the list, from 0.
            checkpoints: how long the list is.
            chunk: its number, from 0.
            chunks: how many the checkpoint has.
        """
        whole = checkpoints // self.of * self.of
        if checkpoint < whole:
            return checkpoint % self.of == self.number - 1
        # The middle of the chunk is at (checkpoint - whole) + (2 chunk + 1) / (2 chunks); the line is as long as there
        # are checkpoints left.
        middle = 2 * (checkpoint - whole) * chunks + 2 * chunk + 1
        return middle * self.of // (2 * chunks * (checkpoints - whole)) == self.number - 1


WHOLE = Share(1, 1)
"""All of it."""


def parse_share(text: str, environment: Mapping[str, str]) -> Share:
    """Return the share in words such as 2/3, or what a job array says of itself: auto, auto/8.

    >>> parse_share("2/3", {})
    Share(number=2, of=3)
    >>> slurm = {"SLURM_ARRAY_TASK_ID": "10", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "5"}
    >>> parse_share("auto", slurm | {"SLURM_ARRAY_TASK_MAX": "12", "SLURM_ARRAY_TASK_STEP": "2"})
    Share(number=4, of=5)
    >>> parse_share("auto/8", {"JOB_COMPLETION_INDEX": "0"})
    Share(number=1, of=8)

    Raises:
        UsageError: they are no such words, or the environment does not say enough.
    """
    match = re.fullmatch(r"(auto|\d{1,9})(?:/(\d{1,9}))?", text.strip())
    if match is None or (match[1] != "auto" and match[2] is None):
        raise UsageError(f"--shard: expected a share such as 2/3, or auto, or auto/8, found {text!r}")
    of = None if match[2] is None else int(match[2])
    share = _own_share(of, environment) if match[1] == "auto" else Share(int(match[1]), int(match[2]))
    if not 1 <= share.number <= share.of:
        raise UsageError(f"--shard: expected a number from 1 to the number of shares, found {share}")
    return share


def _own_share(of: int | None, environment: Mapping[str, str]) -> Share:
    """Return what SLURM or Kubernetes says of this job.

    Raises:
        UsageError: it says nothing, not enough, or something else than it was told.
    """
    if _SLURM in environment:
        return _slurm_share(of, environment)
    if _KUBERNETES in environment:
        index = _number(environment, _KUBERNETES)
        if of is None:
            raise UsageError(
                f"--shard auto: {_KUBERNETES}={index} says which index this is, but not of how many; say how many "
                f"completions the job has: --shard auto/8"
            )
        if index >= of:
            raise UsageError(f"--shard auto/{of}: expected {_KUBERNETES} from 0 to {of - 1}, found {index}")
        return Share(index + 1, of)
    raise UsageError(
        f"--shard auto: neither {_SLURM} nor {_KUBERNETES} is set, so this is no job of an array; say which share: "
        "--shard 2/3"
    )


def _slurm_share(of: int | None, environment: Mapping[str, str]) -> Share:
    names = {name: f"SLURM_ARRAY_TASK_{name}" for name in ("MIN", "MAX", "COUNT", "STEP")}
    number = _number(environment, _SLURM)
    first, last, count = (_number(environment, names[name]) for name in ("MIN", "MAX", "COUNT"))
    step = _number(environment, names["STEP"]) if names["STEP"] in environment else 1
    if step < 1 or (last - first) // step + 1 != count or (number - first) % step or not first <= number <= last:
        raise UsageError(
            f"--shard auto: job {number} of an array from {first} to {last} in steps of {step} that has {count} jobs: "
            "no share follows from that; number the jobs without gaps, or say which share: --shard 2/3"
        )
    if of not in (None, count):
        raise UsageError(
            f"--shard auto/{of}: the array has {count} jobs; to repeat some of {of} say which share: "
            f"--shard {number}/{of}"
        )
    return Share((number - first) // step + 1, count)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name)
    if text is None or not re.fullmatch(r"\d{1,9}", text):
        raise UsageError(f"--shard auto: expected {name} to be a whole number, found {text!r}; say which: --shard 2/3")
    return int(text)
