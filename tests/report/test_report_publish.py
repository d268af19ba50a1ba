"""Writing a report folder: whole files, nothing stale, nothing foreign touched."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from qbw_report.publish import MANIFEST, publish
from schemas.errors import QBWError


def contents(out: Path) -> dict[str, bytes]:
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name != MANIFEST}


def test_files_are_written_and_listed(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert publish(out, [("b.txt", b"b"), ("a/c.txt", b"c")]) == ["b.txt", "a/c.txt"]
    assert contents(out) == {"b.txt": b"b", "a/c.txt": b"c"}


def test_what_an_earlier_build_wrote_and_this_one_did_not_is_gone(tmp_path: Path) -> None:
    publish(tmp_path, [("a/old.txt", b"1"), ("b/c/old.txt", b"2"), ("same.txt", b"3")])
    publish(tmp_path, [("same.txt", b"4")])
    assert contents(tmp_path) == {"same.txt": b"4"}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_foreign_files_stay_and_keep_their_folders(tmp_path: Path) -> None:
    publish(tmp_path, [("a/ours.txt", b"1")])
    (tmp_path / "a" / "theirs.txt").write_bytes(b"2")
    publish(tmp_path, [("b.txt", b"3")])
    assert contents(tmp_path) == {"a/theirs.txt": b"2", "b.txt": b"3"}


def test_files_that_are_ours_without_standing_in_the_manifest_go_too(tmp_path: Path) -> None:
    stray = tmp_path / "run" / "stray.qbw"
    stray.parent.mkdir()
    stray.write_bytes(b"1")
    publish(tmp_path, [("b.txt", b"3")], also_ours=[stray])
    assert contents(tmp_path) == {"b.txt": b"3"}


@pytest.mark.parametrize(
    "manifest",
    [
        '{"files": ["../precious.txt", "/etc/precious.txt", "", 5, null, "a/../../precious.txt"]}',
        '{"files": "precious.txt"}',
        '{"files": 5}',
        "[]",
        "not json",
        "\xff",
    ],
)
def test_a_manifest_that_we_did_not_write_deletes_nothing(tmp_path: Path, manifest: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "precious.txt").write_bytes(b"1")
    for letter in "precious.txt":
        (out / letter).write_bytes(b"1") if letter != "." else None
    (out / MANIFEST).write_text(manifest, encoding="latin-1")
    before = contents(tmp_path)
    publish(out, [("new.txt", b"2")])
    assert contents(tmp_path) == before | {"out/new.txt": b"2"} | {f"out/{MANIFEST}": (out / MANIFEST).read_bytes()}


def test_a_build_that_fails_midway_leaves_whole_files_and_the_next_one_clears_them(tmp_path: Path) -> None:
    publish(tmp_path, [("old.txt", b"1")])

    def failing() -> Iterator[tuple[str, bytes]]:
        yield "half.txt", b"2"
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        publish(tmp_path, failing())
    assert contents(tmp_path) == {"old.txt": b"1", "half.txt": b"2"}
    publish(tmp_path, [("new.txt", b"3")])
    assert contents(tmp_path) == {"new.txt": b"3"}


def test_a_file_that_is_the_same_is_not_written_again(tmp_path: Path) -> None:
    publish(tmp_path, [("a.txt", b"1")])
    before = (tmp_path / "a.txt").stat().st_ino
    publish(tmp_path, [("a.txt", b"1")])
    assert (tmp_path / "a.txt").stat().st_ino == before


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    publish(tmp_path, [("a.txt", b"1")])
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "a.txt").stat().st_mode == plain.stat().st_mode


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(QBWError) as raised:
        publish(tmp_path / "file" / "out", [("a.txt", b"1")])
    assert str(raised.value) == (
        f"{tmp_path / 'file' / 'out'}: cannot be written (Not a directory); choose another folder with --out"
    )
