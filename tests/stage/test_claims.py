"""Claims: who holds one, and that no dead process, odd file system or read-only folder ever stops the work."""

import contextlib
import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from stage_references import CHECKPOINT_ID, PLAN_ID, one_thread
from store_helpers import PREFIX, refusing

from qbw_eval import claims as claims_module
from qbw_eval.claims import claim
from qbw_eval.store import RecordStore

HOLDER = """
import sys
from pathlib import Path
from qbw_eval.claims import claim
with claim(Path(sys.argv[1])) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "claims" / "chunk.lock"


def holder(path: Path) -> "subprocess.Popen[str]":
    """Return a process that asks for the claim, has said whether it holds it, and keeps it until its input ends."""
    words = [sys.executable, "-c", HOLDER, str(path)]
    return subprocess.Popen(words, stdin=-1, stdout=-1, text=True, env=one_thread())


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_of_two_processes_the_second_is_refused_until_the_first_is_done(path: Path) -> None:
    with holder(path) as first:
        assert said(first) == "True\n"
        with claim(path) as held:
            assert not held
        assert path.exists(), "it is not ours to remove"
        with holder(path) as second:
            assert said(second) == "False\n"
            second.communicate("")
        first.communicate("")
    assert not path.exists()
    with claim(path) as held:
        assert held


def test_the_claim_of_a_killed_process_is_free_at_once(path: Path) -> None:
    with holder(path) as process:
        assert said(process) == "True\n"
        process.kill()
        process.wait()
        assert path.exists(), "only the file is left"
        with claim(path) as held:
            assert held
    assert not path.exists()


def test_a_claim_is_given_back_and_its_file_removed_also_after_an_error(path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), claim(path) as held:
        assert held
        assert path.exists()
        raise KeyboardInterrupt
    assert not path.exists()


def test_a_refused_claim_is_still_refused_after_an_error(path: Path) -> None:
    with claim(path):
        with contextlib.suppress(KeyboardInterrupt), claim(path) as held:
            assert not held
            raise KeyboardInterrupt
        assert path.exists()
        with claim(path) as held:
            assert not held


def test_a_claim_whose_file_is_gone_already_ends_without_an_error(path: Path) -> None:
    with claim(path) as held:
        assert held
        path.unlink()
    assert not path.exists()


def test_a_claim_leaves_no_descriptor_open_and_is_not_inherited(path: Path) -> None:
    def descriptors() -> dict[str, str]:
        found = {}
        for link in Path("/proc/self/fd").iterdir():
            try:
                found[link.name] = str(link.readlink())
            except FileNotFoundError:
                continue  # the one that listed them
        return found

    before = descriptors()
    with claim(path):
        (mine,) = [int(name) for name, target in descriptors().items() if target == str(path)]
        assert fcntl.fcntl(mine, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        with claim(path) as held:
            assert not held
    assert str(path) not in descriptors().values()
    assert len(descriptors()) == len(before)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_where_the_file_system_knows_no_locks_everybody_may_work(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(claims_module.fcntl, "flock", refusing(number))
    with claim(path) as first, claim(path) as second:
        assert first
        assert second


def test_where_no_file_can_be_made_everybody_may_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with claim(tmp_path / "file" / "claims" / "chunk.lock") as held:
        assert held
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(claims_module.os, "open", refusing(errno.EROFS))
    with claim(tmp_path / "folder" / "chunk.lock") as held:
        assert held
    assert (tmp_path / "file").read_text() == "mine"
    assert list((tmp_path / "folder").iterdir()) == []


def test_the_file_of_a_claim_is_no_program(path: Path) -> None:
    mask = os.umask(0o022)
    try:
        with claim(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o644
    finally:
        os.umask(mask)


def test_the_store_claims_chunks(tmp_path: Path) -> None:
    """Whatever configuration of a chunk is asked for, its claim is one; another chunk's or plan's is another."""
    store, other = RecordStore(tmp_path / "records"), RecordStore(tmp_path / "records")
    with store.claimed(CHECKPOINT_ID, PLAN_ID, 130, 64) as held:
        assert held
        folder = tmp_path / ".qbw" / "claims"
        assert [path.name for path in folder.iterdir()] == [f"{PREFIX}000128.lock"]
        for first, free in ((128, False), (191, False), (192, True), (127, True)):
            with other.claimed(CHECKPOINT_ID, PLAN_ID, first, 64) as held:
                assert held == free, first
        with other.claimed(CHECKPOINT_ID, "f" + PLAN_ID[1:], 130, 64) as held:
            assert held
        with other.claimed("d" + CHECKPOINT_ID[1:], PLAN_ID, 130, 64) as held:
            assert held
    assert list(folder.iterdir()) == []
