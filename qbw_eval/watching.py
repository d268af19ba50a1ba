"""Which files of a folder has training finished? Looks at the folder go in, what to read comes out; no clock, no files.

Nothing tells a reader that a file is finished, and on network file systems nothing even tells that it changed, so the
folder is looked at again and again. A file that is the same in two looks some seconds apart is worth reading; whether
it was finished, only what is read can tell (`private_copy`). One that was not is read again later: after as long again
as it has been waited for, so that a file that stays broken costs less and less.

What is kept is what the last look showed, so a watch of days needs no more memory than one of minutes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SHORTEST_S, _LONGEST_S = 0.1, 30 * 86400.0

STILL_CHANGING = "it is still changing"
"""Why a file is not ready that has not been the same in two looks yet."""

SECOND_READ = "it carries no checksums, so it is read twice, to see whether it stays the same"
"""Why a file is not ready that may well be finished, but does not say so itself."""


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What says without reading a file that it is another one than before."""

    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How patient to be, in seconds.

    Attributes:
        settle_s: how far apart two looks must be that show the same file, for it to be read.
        patience_s: how long a file may be not ready before that is told; and the longest time to the next attempt.
    """

    settle_s: float = 5.0
    patience_s: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A file as the last look showed it.

    Attributes:
        waiting_since: when what is to be read now was first seen, in an earlier state perhaps; None when it was read.
        due: when to read it, if it stays as it is.
        reason: why it is not ready, in words that go on with a sentence.
        told: whether it was told that it is not ready.
    """

    stamp: Stamp
    waiting_since: float | None
    due: float
    reason: str = STILL_CHANGING
    told: bool = False


@dataclass(frozen=True, kw_only=True)
class State:
    """What is known of a folder.

    Attributes:
        files: those that the last look showed.
        last_news: when something new was last seen or read; before that, when the watch began.
    """

    files: Mapping[Path, Watched]
    last_news: float


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a look at the folder brought.

    Attributes:
        ready: the files to read now, in the order of the listing.
        reports: sentences for the user.
    """

    state: State
    ready: tuple[Path, ...]
    reports: tuple[str, ...]


def look(state: State, listing: Mapping[Path, Stamp], now: float, rules: Rules) -> Look:
    """Return what a look at the folder changes.

    Args:
        state: what was known before.
        listing: the checkpoint files that are there.
        now: seconds, by any clock that only goes forward.
        rules: how patient to be.
    """
    files = {path: _seen(state.files.get(path), stamp, now, rules) for path, stamp in listing.items()}
    news = any(file is not state.files.get(path) for path, file in files.items())
    ready = [path for path, file in files.items() if file.waiting_since is not None and now >= file.due]
    reports = []
    for path, file in files.items():
        # One that is read now is not complained of: it may be ready.
        if file.told or file.waiting_since is None or path in ready or now - file.waiting_since < rules.patience_s:
            continue
        reports.append(f"{path}: not ready for {rules.patience_s / 60:g} minutes: {file.reason}; waiting on")
        files[path] = replace(file, told=True)
    known = State(files=files, last_news=now if news else state.last_news)
    return Look(state=known, ready=tuple(ready), reports=tuple(reports))


def _seen(before: Watched | None, stamp: Stamp, now: float, rules: Rules) -> Watched:
    """Return a file as it is known after a look; the very object from before where nothing has changed."""
    if before is not None and before.stamp == stamp:
        return before
    if before is None or before.waiting_since is None:
        return Watched(stamp=stamp, waiting_since=now, due=now + rules.settle_s)
    return replace(before, stamp=stamp, due=now + rules.settle_s, reason=STILL_CHANGING)


def handled(state: State, path: Path, now: float) -> State:
    """Return the state after a file was read, and evaluated or refused: there is nothing to do until it changes."""
    file = replace(state.files[path], waiting_since=None, reason=STILL_CHANGING, told=False)
    return State(files={**state.files, path: file}, last_news=now)


def not_ready(state: State, path: Path, reason: str, now: float, rules: Rules) -> State:
    """Return the state after a file turned out not to be ready; it is read again if it changes, or later.

    Args:
        state: what is known, the file included.
        path: the file.
        reason: why, in words that go on with a sentence; `SECOND_READ` where it may well have been.
        now: seconds.
        rules: how patient to be.
    """
    file = state.files[path]
    waited = 0.0 if file.waiting_since is None or reason == SECOND_READ else now - file.waiting_since
    wait = min(max(waited, rules.settle_s), rules.patience_s)
    known = {**state.files, path: replace(file, due=now + wait, reason=reason)}
    return State(files=known, last_news=now if reason == SECOND_READ else state.last_news)


def waiting(state: State) -> dict[Path, Watched]:
    """Return the files that are to be read and were not ready."""
    return {path: file for path, file in state.files.items() if file.waiting_since is not None}


class Recent:
    """The last so many keys, and a word for each; what is older is forgotten.

    >>> recent = Recent(2)
    >>> for key in ("a", "b", "c"):
    ...     recent.note(key, key.upper())
    >>> recent.get("a"), recent.get("b"), recent.get("c")
    (None, 'B', 'C')
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._words: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        """Return the word for a key; None where there is none (any more)."""
        return self._words.get(key)

    def note(self, key: str, word: str) -> None:
        """Remember a key."""
        self._words[key] = word
        if len(self._words) > self._most:
            del self._words[next(iter(self._words))]


def parse_duration(text: str) -> float:
    """Return the seconds in words such as 5s, 0.5s, 10m, 1h or 2d.

    >>> parse_duration("10m")
    600.0

    Raises:
        ValueError: they are not such words, or it is too short or too long to wait for; says which are.
    """
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([smhd])\s*", text, flags=re.ASCII)
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not _SHORTEST_S <= seconds <= _LONGEST_S:
        raise ValueError(f"expected a time from 0.1s to 30d, such as 5s, 10m or 1h, found {text!r}")
    return seconds


def in_words(seconds: float) -> str:
    """Return seconds as `parse_duration` takes them.

    >>> in_words(600.0), in_words(0.2), in_words(90.0)
    ('10m', '0.2s', '90s')
    """
    for unit in ("d", "h", "m"):
        if seconds >= _UNITS[unit] and seconds % _UNITS[unit] == 0:
            return f"{seconds / _UNITS[unit]:g}{unit}"
    return f"{seconds:g}s"
