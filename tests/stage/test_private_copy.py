"""A copy of a file that somebody may be writing: exactly its bytes, whole, or none; and nothing is left behind."""

import errno
import fcntl
import hashlib
import io
import multiprocessing
import os
import random
import re
import zipfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from qbw_eval import private_copy as private_copy_module
from qbw_eval.private_copy import NotReadyError, check_archive, private_copy, stamp_of, sweep
from qbw_eval.store import StoreError
from qbw_eval.watching import Stamp

HALF = "it is half written, or a damaged zip archive"
CHANGING = "it is still changing"


def saved(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weights": torch.randn(50, generator=torch.Generator().manual_seed(seed))}, buffer)
    return buffer.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "last.pth.tar"
    path.write_bytes(saved())
    return path


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    return tmp_path / "results" / ".qbw" / "watch"


def stamp(path: Path) -> Stamp:
    found = stamp_of(path)
    assert found is not None
    return found


def refusal(path: Path, of: Stamp, copies: Path) -> str:
    """Return why a file cannot be read; no copy is left."""
    with pytest.raises(NotReadyError) as error, private_copy(path, of, copies):
        raise AssertionError("it was ready")
    assert list(copies.iterdir()) == []
    return str(error.value)


def test_a_copy_holds_the_bytes_and_is_gone_afterwards(path: Path, copies: Path) -> None:
    with private_copy(path, stamp(path), copies) as copy:
        assert copy.path.read_bytes() == path.read_bytes()
        assert copy.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert copy.checked
        assert copy.path.parent == copies
        assert copy.path.name.startswith("."), "no search for checkpoints is to find it"
        assert copy.path.name.endswith(".pth.tar"), "the suffix says what it holds"
        assert copy.path.stat().st_mode & 0o777 == 0o600
    assert list(copies.iterdir()) == []
    assert path.read_bytes() == saved()


def test_a_copy_is_gone_also_when_what_it_was_for_failed(path: Path, copies: Path) -> None:
    with pytest.raises(ZeroDivisionError), private_copy(path, stamp(path), copies):
        raise ZeroDivisionError
    assert list(copies.iterdir()) == []


def test_a_large_file_is_copied_whole(path: Path, copies: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(3 * 2**20 + 17))
    with private_copy(path, stamp(path), copies) as copy:
        assert copy.path.read_bytes() == path.read_bytes()
        assert not copy.checked


def test_a_file_that_changed_since_the_look_is_not_ready(path: Path, copies: Path) -> None:
    before = stamp(path)
    path.write_bytes(saved(1)[:-1])
    assert refusal(path, before, copies) == CHANGING


@pytest.mark.parametrize("how", ["grows", "is renamed over", "is gone", "is touched"])
def test_a_file_that_changes_while_it_is_copied_is_not_ready(
    path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    before, write = stamp(path), os.write

    def write_and_change(descriptor: int, data: Any) -> int:
        match how:
            case "grows":
                with path.open("ab") as file:
                    file.write(b"more")
            case "is renamed over":
                other = path.with_name("other")
                other.write_bytes(saved(1))
                other.replace(path)
            case "is gone":
                path.unlink()
            case "is touched":
                os.utime(path, ns=(0, 1))
        monkeypatch.setattr(private_copy_module.os, "write", write)
        return write(descriptor, data)

    monkeypatch.setattr(private_copy_module.os, "write", write_and_change)
    assert refusal(path, before, copies) == CHANGING
    monkeypatch.undo()


def test_a_file_that_is_gone_or_became_something_else_is_not_ready(path: Path, copies: Path) -> None:
    before = stamp(path)
    path.unlink()
    assert refusal(path, before, copies) == "it cannot be read (No such file or directory)"
    assert stamp_of(path) is None
    os.mkfifo(path)  # nobody writes into it, so who opens it as a file waits for ever
    assert refusal(path, before, copies) == CHANGING
    assert stamp_of(path) is None
    path.unlink()
    path.mkdir()
    assert stamp_of(path) is None


# --- what only the bytes can tell -------------------------------------------------------------------------------------


def test_a_file_that_is_cut_anywhere_is_not_ready_though_its_stamp_has_stayed_the_same(
    path: Path, copies: Path
) -> None:
    whole = saved()
    for length in [*range(2, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert refusal(path, stamp(path), copies) == HALF
    path.write_bytes(b"")
    assert refusal(path, stamp(path), copies) == "it is empty"


def test_half_old_half_new_is_never_ready_wherever_the_halves_meet(path: Path, copies: Path) -> None:
    """Bytes written over those of the version before, of the same size: whole, but for the weights in it."""
    old, new = saved(1), saved(2)
    assert len(old) == len(new)
    torn = 0
    for cut in range(1, len(new), 5):
        mixed = new[:cut] + old[cut:]
        path.write_bytes(mixed)
        if mixed in (old, new):  # the cut lies where both say the same
            with private_copy(path, stamp(path), copies) as copy:
                assert copy.checked
        else:
            torn += 1
            assert re.fullmatch(
                r"its record 'archive/\S+' fails its checksum: it is half written, or damaged",
                refusal(path, stamp(path), copies),
            )
    assert torn > 20


@pytest.mark.parametrize("content", [b"P", b"text", b"\x80\x02.", b"\x00" * 100], ids=["P", "text", "pickle", "zeros"])
def test_what_is_no_zip_is_left_to_the_loader_unchecked(path: Path, copies: Path, content: bytes) -> None:
    path.write_bytes(content)
    with private_copy(path, stamp(path), copies) as copy:
        assert (copy.checked, copy.path.read_bytes()) == (False, content)


def test_what_torch_never_makes_is_not_unpacked(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(100_000))
    assert check_archive(path) is False
    with zipfile.ZipFile(path, "w") as archive:  # stored, and claiming more than is there
        archive.writestr("a/data.pkl", b"1234")
    data = path.read_bytes()
    assert check_archive(path) is True
    directory = data.index(b"PK\x01\x02")
    claimed = (10**6).to_bytes(4, "little") * 2
    path.write_bytes(data[: directory + 20] + claimed + data[directory + 28 :])
    assert check_archive(path) is False


# --- what is left of dead processes -----------------------------------------------------------------------------------


def hold_a_copy(path: Path, copies: Path, pipe: Connection) -> None:
    with private_copy(path, stamp(path), copies) as copy:
        pipe.send(copy.path)
        pipe.recv()


def test_a_sweep_removes_what_killed_processes_left_and_nothing_else(path: Path, copies: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes, held = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=hold_a_copy, args=(path, copies, theirs))
        process.start()
        processes.append((process, ours))
        held.append(ours.recv())
    (dead, _), (living, pipe) = processes
    dead.kill()
    dead.join()
    assert sweep(copies) == 1
    assert list(copies.iterdir()) == [held[1]]
    pipe.send("go on")
    living.join()
    assert living.exitcode == 0
    assert list(copies.iterdir()) == []


def test_a_sweep_of_nothing_is_fine(copies: Path) -> None:
    assert sweep(copies) == 0
    assert not copies.exists()


def test_without_locks_only_old_copies_are_swept(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(private_copy_module.fcntl, "flock", refuse)
    copies.mkdir(parents=True)
    for name in ("old", "new"):
        (copies / name).write_text("")
    os.utime(copies / "old", (0, 0))
    assert sweep(copies) == 1
    assert [path.name for path in copies.iterdir()] == ["new"]


def test_a_copy_that_a_sweep_took_in_the_moment_it_was_made_is_not_used(
    path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def swept_just_before(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(private_copy_module.fcntl, "flock", flock)
        assert sweep(copies) == 1
        flock(descriptor, operation)

    monkeypatch.setattr(private_copy_module.fcntl, "flock", swept_just_before)
    assert refusal(path, stamp(path), copies) == "a watch that started just now took its copy for a dead one's"


def test_where_locks_do_not_work_copies_still_do(path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(private_copy_module.fcntl, "flock", refuse)
    with private_copy(path, stamp(path), copies) as copy:
        assert copy.path.read_bytes() == path.read_bytes()


# --- a disk that refuses ----------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_leaves_nothing(path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(private_copy_module.os, "write", full)
    with pytest.raises(StoreError) as error, private_copy(path, stamp(path), copies):
        raise AssertionError("it was written")
    monkeypatch.undo()
    assert str(error.value) == (
        f"{copies}: a copy of a checkpoint cannot be written there (No space left on device); "
        "free some space or name another folder with --records, and run the same command again"
    )
    assert list(copies.iterdir()) == []


def test_a_place_that_is_no_folder_is_told(path: Path, copies: Path) -> None:
    copies.parent.parent.mkdir()
    copies.parent.write_text("mine")
    with pytest.raises(StoreError) as error, private_copy(path, stamp(path), copies):
        raise AssertionError("it was written")
    assert str(error.value).startswith(f"{copies}: a copy of a checkpoint cannot be written there (Not a directory); ")
