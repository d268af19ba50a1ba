"""Which files has training finished? Looks at a folder that was never there, at times that never were."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qbw_eval.watching import (
    SECOND_READ,
    STILL_CHANGING,
    Recent,
    Rules,
    Stamp,
    State,
    handled,
    in_words,
    look,
    not_ready,
    parse_duration,
    waiting,
)

RULES = Rules(settle_s=5.0, patience_s=600.0)
A, B = Path("a.pt"), Path("b.pt")


def stamp(number: int) -> Stamp:
    return Stamp(inode=1, size=100, mtime_ns=number)


@dataclass
class Folder:
    """A watch as the command leads it: every look and every outcome changes the state."""

    state: State = field(default_factory=lambda: State(files={}, last_news=0.0))

    def look(self, now: float, **files: int) -> tuple[list[str], list[str]]:
        """Return what is ready, and the reports, after a look at files with these stamps (a for a.pt)."""
        listing = {Path(f"{name}.pt"): stamp(number) for name, number in files.items()}
        seen = look(self.state, listing, now, RULES)
        self.state = seen.state
        return [path.stem for path in seen.ready], list(seen.reports)

    def handled(self, now: float, path: Path = A) -> None:
        self.state = handled(self.state, path, now)

    def not_ready(self, now: float, reason: str = "it is half written", path: Path = A) -> None:
        self.state = not_ready(self.state, path, reason, now, RULES)


# --- what is ready ----------------------------------------------------------------------------------------------------


def test_a_file_is_ready_when_two_looks_that_show_the_same_are_far_enough_apart() -> None:
    folder = Folder()
    assert folder.look(0, a=1) == ([], [])
    assert folder.look(4.9, a=1) == ([], [])
    assert folder.look(5, a=1) == (["a"], [])


@pytest.mark.parametrize(
    "other",
    [Stamp(inode=2, size=100, mtime_ns=1), Stamp(inode=1, size=99, mtime_ns=1), Stamp(inode=1, size=100, mtime_ns=2)],
)
def test_another_inode_size_or_time_begins_anew(other: Stamp) -> None:
    state = look(State(files={}, last_news=0.0), {A: stamp(1)}, 0, RULES).state
    changed = look(state, {A: other}, 5, RULES)
    assert changed.ready == ()
    assert look(changed.state, {A: other}, 9.9, RULES).ready == ()
    assert look(changed.state, {A: other}, 10, RULES).ready == (A,)


def test_one_look_is_not_enough_however_late_it_is() -> None:
    folder = Folder()
    folder.look(0)
    assert folder.look(1000, a=1) == ([], [])


def test_a_file_that_comes_back_as_it_was_is_a_new_one() -> None:
    folder = Folder()
    folder.look(0, a=1)
    folder.look(4)
    assert folder.look(8, a=1) == ([], [])
    assert folder.look(13, a=1) == (["a"], [])


def test_several_are_ready_in_the_order_of_the_listing() -> None:
    folder = Folder()
    folder.look(0, b=1, a=1)
    assert folder.look(5, b=1, a=1) == (["b", "a"], [])


def test_what_was_handled_is_not_ready_again_until_it_changes() -> None:
    folder = Folder()
    folder.look(0, a=1)
    folder.look(5, a=1)
    folder.handled(7)
    assert [folder.look(now, a=1) for now in (8, 100, 10_000)] == [([], [])] * 3
    assert folder.look(10_001, a=2) == ([], [])
    assert folder.look(10_006, a=2) == (["a"], [])


def test_what_was_not_ready_is_read_again_after_as_long_as_it_was_waited_for_and_at_once_when_it_changed() -> None:
    folder = Folder()
    folder.look(0, a=1)
    times = []
    for now in range(1, 3000):
        ready, _ = folder.look(now, a=1)
        if ready:
            times.append(now)
            folder.not_ready(now)
    assert times == [5, 10, 20, 40, 80, 160, 320, 640, 1240, 1840, 2440]
    folder.look(3000, a=2)
    assert folder.look(3005, a=2) == (["a"], [])


def test_a_second_read_comes_as_soon_as_it_may() -> None:
    folder = Folder()
    folder.look(0, a=1)
    assert folder.look(100, a=1) == (["a"], [])
    folder.not_ready(130, SECOND_READ)
    assert folder.state.last_news == 130, "it may well be ready, so it counts as news"
    assert folder.look(134.9, a=1) == ([], [])
    assert folder.look(135, a=1) == (["a"], [])


# --- what is told -----------------------------------------------------------------------------------------------------


def test_a_file_that_never_stays_the_same_is_told_once_after_ten_minutes() -> None:
    folder = Folder()
    reports = {now: folder.look(now, a=now)[1] for now in range(0, 3000, 3)}
    assert {now: said for now, said in reports.items() if said} == {
        600: ["a.pt: not ready for 10 minutes: it is still changing; waiting on"]
    }


def test_a_file_that_stays_broken_is_told_once_with_the_reason() -> None:
    folder = Folder()
    reports = []
    for now in range(0, 3000, 5):
        ready, said = folder.look(now, a=1)
        reports += [(now, sentence) for sentence in said]
        if ready:
            folder.not_ready(now, "its end is missing")
    assert reports == [(600, "a.pt: not ready for 10 minutes: its end is missing; waiting on")]


def test_a_file_that_was_ready_in_between_may_be_told_of_again() -> None:
    folder = Folder()
    assert sum(len(folder.look(now, a=now)[1]) for now in range(0, 1000)) == 1
    folder.look(1000, a=999)
    assert folder.look(1004, a=999) == (["a"], [])
    folder.handled(1004)
    assert [now for now in range(1005, 3000) if folder.look(now, a=now)[1]] == [1605]


def test_what_waits_is_known_with_its_reason() -> None:
    folder = Folder()
    folder.look(0, a=1, b=1)
    folder.look(5, a=1, b=1)
    folder.handled(6, A)
    folder.not_ready(6, "it is empty", B)
    assert {path: file.reason for path, file in waiting(folder.state).items()} == {B: "it is empty"}
    folder.look(7, a=1, b=2)
    assert {path: file.reason for path, file in waiting(folder.state).items()} == {B: STILL_CHANGING}


def test_news_is_what_is_new_or_was_read_and_not_what_is_gone() -> None:
    folder = Folder()
    times = []
    for now, files in [(1, {}), (2, {"a": 1}), (3, {"a": 1}), (4, {"a": 2}), (5, {}), (9, {"b": 1}), (14, {"b": 1})]:
        folder.look(now, **files)
        times.append(folder.state.last_news)
    assert times == [0, 2, 2, 4, 4, 9, 9]
    folder.not_ready(15, "it is empty", B)
    assert folder.state.last_news == 9
    folder.handled(16, B)
    assert folder.state.last_news == 16


# --- days -------------------------------------------------------------------------------------------------------------


def test_days_need_no_more_memory_than_what_is_in_the_folder() -> None:
    folder = Folder()
    for now in range(20_000):
        folder.look(now, **{f"epoch_{number}": now for number in range(now // 10, now // 10 + 3)})
    assert len(folder.state.files) == 3
    recent = Recent(3)
    for number in range(20_000):
        recent.note(str(number % 7), str(number))
    assert [recent.get(str(number % 7)) for number in range(19_993, 20_000)] == [None] * 4 + ["19997", "19998", "19999"]


# --- against a twin ---------------------------------------------------------------------------------------------------


class Remembering:
    """The slow twin: it keeps every look and every outcome, and finds each answer from all of them."""

    def __init__(self) -> None:
        self.looks: list[tuple[int, Mapping[Path, Stamp]]] = []
        self.outcomes: list[tuple[int, int, Path, str | None]] = []  # after which look, when, of what, why not
        self.told: list[tuple[int, Path]] = []  # at which look, of what

    def same_since(self, path: Path) -> int:
        """Return the first of the last looks that show this file as the last one does."""
        index = len(self.looks) - 1
        now = self.looks[index][1][path]
        while index and self.looks[index - 1][1].get(path) == now:
            index -= 1
        return index

    def waiting_since(self, path: Path) -> int | None:
        """Return the first look of those since the file was handled or was not there; None where it is handled."""
        index = len(self.looks) - 1
        for earlier in range(index, -1, -1):
            done = any(after == earlier and of == path and why is None for after, _, of, why in self.outcomes)
            if done:
                changed = self.looks[earlier][1].get(path) != self.looks[earlier + 1][1].get(path)
                same = earlier + 1
                while not changed and same + 1 < len(self.looks):
                    same += 1
                    changed = self.looks[earlier][1].get(path) != self.looks[same][1].get(path)
                return same if changed else None
            if earlier == 0 or path not in self.looks[earlier - 1][1]:
                return earlier
        raise AssertionError

    def ready(self) -> list[Path]:
        now, listing = self.looks[-1]
        found = []
        for path in listing:
            since, first = self.waiting_since(path), self.same_since(path)
            if since is None:
                continue
            tried = [(when, why) for after, when, of, why in self.outcomes if of == path and after >= first]
            if not tried:
                due = self.looks[first][0] + RULES.settle_s
            else:
                when, why = tried[-1]
                waited = 0 if why == SECOND_READ else when - self.looks[since][0]
                due = when + sorted([RULES.settle_s, waited, RULES.patience_s])[1]
            if now >= due:
                found.append(path)
        return found

    def to_tell(self) -> list[Path]:
        now, listing = self.looks[-1]
        told = []
        for path in listing:
            since = self.waiting_since(path)
            if since is None or path in self.ready() or now - self.looks[since][0] < RULES.patience_s:
                continue
            if not any(of == path and at >= since for at, of in self.told):
                told.append(path)
        self.told += [(len(self.looks) - 1, path) for path in told]
        return told

    def last_news(self) -> float:
        times = [0.0]
        for index, (now, listing) in enumerate(self.looks):
            before = self.looks[index - 1][1] if index else {}
            times += [now for path in listing if listing[path] != before.get(path)]
        times += [when for _, when, _, why in self.outcomes if why in (None, SECOND_READ)]
        return max(times)


@pytest.mark.parametrize("seed", range(60))
def test_everything_is_what_all_that_ever_happened_says(seed: int) -> None:
    draw = random.Random(seed)
    state, twin, now = State(files={}, last_news=0.0), Remembering(), 0
    listing: dict[Path, Stamp] = {}
    seen_ready = seen_told = 0
    for _ in range(80):
        now += draw.choice([0, 1, 2, 5, 5, 7, 40, 300])
        for path in (A, B):
            if draw.random() < 0.25:
                listing = {**listing, path: stamp(draw.randrange(3))}
            elif draw.random() < 0.05:
                listing = {other: its for other, its in listing.items() if other != path}
        seen = look(state, listing, now, RULES)
        state = seen.state
        twin.looks.append((now, listing))
        assert list(seen.ready) == twin.ready()
        assert [report.partition(":")[0] for report in seen.reports] == [str(path) for path in twin.to_tell()]
        for path in seen.ready:
            now += draw.choice([0, 1, 10])
            why = draw.choice([None, SECOND_READ, "it is half written", "it is half written", "it is empty"])
            state = handled(state, path, now) if why is None else not_ready(state, path, why, now, RULES)
            twin.outcomes.append((len(twin.looks) - 1, now, path, why))
        assert state.last_news == twin.last_news()
        seen_ready, seen_told = seen_ready + len(seen.ready), seen_told + len(seen.reports)
    assert seen_ready, "these looks have shown nothing"


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("5s", 5),
        ("0.2s", 0.2),
        (" 10 m ", 600),
        ("1h", 3600),
        ("2d", 172_800),
        ("1.5m", 90),
        ("0.1s", 0.1),
        ("30d", 2_592_000),
    ],
)
def test_times_in_words(words: str, seconds: float) -> None:
    assert parse_duration(words) == seconds
    assert parse_duration(in_words(seconds)) == seconds


@pytest.mark.parametrize(
    "words",
    ["", "5", "s", "-5s", "5 sec", "5M", "1e3s", "0s", "0.09s", "31d", "nan", "inf", "5s5s", "٥s", "9" * 400 + "s"],
)
def test_times_that_are_none(words: str) -> None:
    with pytest.raises(ValueError, match="expected a time") as error:
        parse_duration(words)
    assert str(error.value) == f"expected a time from 0.1s to 30d, such as 5s, 10m or 1h, found {words!r}"
