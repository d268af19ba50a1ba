"""From what a user types to checkpoint files: folders, globs and files, each once, in the order of their numbers."""

from pathlib import Path

import pytest

from qbw_eval.checkpoints.find import find_checkpoints
from schemas.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "epoch_10.pt",
        "epoch_2.pt",
        "b/epoch_1.pth",
        "b/model_best.pth.tar",
        ".epoch_3.pt.tmp",
        ".hidden.pt",
        "notes.txt",
        "x.pt/a.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*words: str) -> list[str]:
    return [str(path) for path in find_checkpoints(words)]


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["."], ["b/epoch_1.pth", "b/model_best.pth.tar", "epoch_2.pt", "epoch_10.pt"]),
        (["b"], ["b/epoch_1.pth", "b/model_best.pth.tar"]),
        (["epoch_*.pt"], ["epoch_2.pt", "epoch_10.pt"]),
        (["**/*.pt*"], ["b/epoch_1.pth", "b/model_best.pth.tar", "epoch_2.pt", "epoch_10.pt"]),
        (["epoch_10.pt", "epoch_2.pt"], ["epoch_10.pt", "epoch_2.pt"]),
        (["epoch_10.pt", "."], ["epoch_10.pt", "b/epoch_1.pth", "b/model_best.pth.tar", "epoch_2.pt"]),
        (["notes.txt"], ["notes.txt"]),
        ([".hidden.pt"], [".hidden.pt"]),
    ],
)
def test_words_become_files_each_once_by_number(words: list[str], files: list[str], folder: Path) -> None:
    assert folder.is_dir()
    assert found(*words) == files


def test_absolute_words_find_the_same_files(folder: Path) -> None:
    assert found(str(folder)) == found(f"{folder}/**/*.pt*") == [str(folder / name) for name in found(".")]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder: Path) -> None:
    (folder / "run[1].pt").write_text("")
    assert found("run[1].pt") == ["run[1].pt"]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("nowhere", "nowhere: no such file or folder; name a checkpoint, a folder of checkpoints or a glob"),
        ("*.onnx", "*.onnx: no file matches the pattern; name a checkpoint, a folder of checkpoints or a glob"),
        ("x.pt", "x.pt: a folder without checkpoints; expected files that end in .pt, .pth, .pth.tar or .safetensors"),
        ("x.*t", "x.*t: no file matches the pattern; name a checkpoint, a folder of checkpoints or a glob"),
    ],
)
def test_a_word_that_names_nothing_is_an_error_even_beside_others(word: str, sentence: str, folder: Path) -> None:
    assert folder.is_dir()
    with pytest.raises(UsageError) as error:
        find_checkpoints(["epoch_2.pt", word])
    assert str(error.value) == sentence
