"""Shares: every chunk is in exactly one of them, they are about equal, and a job array is understood or refused."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbw_eval import shares as shares_module
from qbw_eval.shares import WHOLE, Share, parse_share
from schemas.errors import UsageError

NUMBERS = st.integers(1, 12)


@given(of=NUMBERS, chunks=st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_every_chunk_is_in_exactly_one_share(of: int, chunks: list[int]) -> None:
    everyone = [Share(number, of) for number in range(1, of + 1)]
    for checkpoint, count in enumerate(chunks):
        for chunk in range(count):
            owners = [share for share in everyone if share.holds(checkpoint, len(chunks), chunk, count)]
            assert len(owners) == 1
            assert owners[0].holds_some(checkpoint, len(chunks))


@given(of=NUMBERS, checkpoints=st.integers(1, 40))
def test_shares_of_equal_checkpoints_differ_by_little_and_open_few(of: int, checkpoints: int) -> None:
    chunks = 60
    sizes, opened = Counter[int](), Counter[int]()
    for number in range(1, of + 1):
        share = Share(number, of)
        for checkpoint in range(checkpoints):
            sizes[number] += sum(share.holds(checkpoint, checkpoints, chunk, chunks) for chunk in range(chunks))
            opened[number] += share.holds_some(checkpoint, checkpoints)
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert max(opened.values()) <= checkpoints // of + 2


def test_shares_as_they_are_shown() -> None:
    """Seven checkpoints of four chunks each, three shares: six go round, the seventh is cut."""
    owners = [
        "".join(
            str(number) for chunk in range(4) for number in (1, 2, 3) if Share(number, 3).holds(checkpoint, 7, chunk, 4)
        )
        for checkpoint in range(7)
    ]
    assert owners == ["1111", "2222", "3333", "1111", "2222", "3333", "1223"]


def test_the_whole_holds_all() -> None:
    assert all(WHOLE.holds(checkpoint, 3, chunk, 2) for checkpoint in range(3) for chunk in range(2))


SLURM = {
    "SLURM_ARRAY_TASK_ID": "5",
    "SLURM_ARRAY_TASK_MIN": "1",
    "SLURM_ARRAY_TASK_MAX": "9",
    "SLURM_ARRAY_TASK_COUNT": "5",
    "SLURM_ARRAY_TASK_STEP": "2",
}


@pytest.mark.parametrize(
    ("text", "environment", "share"),
    [
        ("2/3", {}, Share(2, 3)),
        (" 3/3 ", {}, Share(3, 3)),
        ("1/3", SLURM, Share(1, 3)),
        ("auto", SLURM, Share(3, 5)),
        ("auto/5", SLURM, Share(3, 5)),
        ("auto", SLURM | {"JOB_COMPLETION_INDEX": "0"}, Share(3, 5)),
        ("auto/8", {"JOB_COMPLETION_INDEX": "0"}, Share(1, 8)),
        ("auto/8", {"JOB_COMPLETION_INDEX": "7"}, Share(8, 8)),
    ],
)
def test_a_share_is_said_or_follows_from_the_job(text: str, environment: dict[str, str], share: Share) -> None:
    assert parse_share(text, environment) == share


def test_an_array_without_a_step_has_steps_of_one() -> None:
    environment = {name: value for name, value in SLURM.items() if not name.endswith("STEP")}
    environment |= {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "4"}
    assert parse_share("auto", environment) == Share(1, 5)


@pytest.mark.parametrize(
    ("text", "environment", "sentence"),
    [
        ("2", {}, "--shard: expected a share such as 2/3, or auto, or auto/8, found '2'"),
        ("a/b", {}, "--shard: expected a share such as 2/3, or auto, or auto/8, found 'a/b'"),
        ("-1/3", {}, "--shard: expected a share such as 2/3, or auto, or auto/8, found '-1/3'"),
        ("0/3", {}, "--shard: expected a number from 1 to the number of shares, found 0/3"),
        ("4/3", {}, "--shard: expected a number from 1 to the number of shares, found 4/3"),
        (
            "auto",
            {},
            "--shard auto: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set, so this is no job of an array; "
            "say which share: --shard 2/3",
        ),
        (
            "auto",
            {"JOB_COMPLETION_INDEX": "2"},
            "--shard auto: JOB_COMPLETION_INDEX=2 says which index this is, but not of how many; say how many "
            "completions the job has: --shard auto/8",
        ),
        (
            "auto/2",
            {"JOB_COMPLETION_INDEX": "2"},
            "--shard auto/2: expected JOB_COMPLETION_INDEX from 0 to 1, found 2",
        ),
        (
            "auto/8",
            {"JOB_COMPLETION_INDEX": "two"},
            "--shard auto: expected JOB_COMPLETION_INDEX to be a whole number, found 'two'; say which: --shard 2/3",
        ),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "3"},
            "--shard auto: expected SLURM_ARRAY_TASK_MIN to be a whole number, found None; say which: --shard 2/3",
        ),
        (
            "auto",
            SLURM | {"SLURM_ARRAY_TASK_COUNT": "3"},
            "--shard auto: job 5 of an array from 1 to 9 in steps of 2 that has 3 jobs: no share follows from that; "
            "number the jobs without gaps, or say which share: --shard 2/3",
        ),
        (
            "auto",
            SLURM | {"SLURM_ARRAY_TASK_ID": "4"},
            "--shard auto: job 4 of an array from 1 to 9 in steps of 2 that has 5 jobs: no share follows from that; "
            "number the jobs without gaps, or say which share: --shard 2/3",
        ),
        (
            "auto/8",
            SLURM,
            "--shard auto/8: the array has 5 jobs; to repeat some of 8 say which share: --shard 5/8",
        ),
    ],
)
def test_what_is_no_share_is_one_sentence(text: str, environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        parse_share(text, environment)


def test_the_examples_run() -> None:
    import doctest

    assert doctest.testmod(shares_module).failed == 0
