"""From what a user types (files, folders, globs) to a list of checkpoint files. Opens none of them."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from schemas.errors import UsageError

SUFFIXES = (".pt", ".pth", ".pth.tar", ".safetensors")


def find_checkpoints(words: Sequence[str]) -> list[Path]:
    """Return the files that the words name, each once, `epoch_2` before `epoch_10`.

    Args:
        words: a file (any suffix), a folder (searched for files with `SUFFIXES`, folders inside included) or a glob.

    Raises:
        UsageError: a word names nothing.
    """
    found: dict[Path, None] = {}
    for word in words:
        for path in _matches(word):
            found.setdefault(path)
    return list(found)


def trusted_among(paths: Sequence[Path], trusted: Sequence[Path]) -> set[Path]:
    """Return those of the paths that name the same file as one of `trusted`, however it is written.

    Raises:
        UsageError: one of `trusted` is none of the files: who trusts a file should know which.
    """
    wanted = {path.resolve(): path for path in trusted}
    found = {path for path in paths if path.resolve() in wanted}
    for file, path in wanted.items():
        if file not in {path.resolve() for path in found}:
            raise UsageError(f"--trust-pickle {path}: is none of the checkpoints named; name the very file")
    return found


def checkpoints_below(folder: Path) -> list[Path]:
    """Return the files with `SUFFIXES` in a folder and in those inside, in order; hidden ones are nobody's business."""
    inside = [file for suffix in SUFFIXES for file in folder.rglob(f"*{suffix}")]
    return sorted((file for file in inside if file.is_file() and not file.name.startswith(".")), key=_natural)


def _matches(word: str) -> list[Path]:
    path = Path(word)
    if path.is_file():
        return [path]
    if path.is_dir():
        visible = checkpoints_below(path)
        if not visible:
            raise UsageError(
                f"{word}: a folder without checkpoints; expected files that end in "
                f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
            )
        return visible
    matches = [Path(match) for match in glob.glob(word, recursive=True)]  # noqa: PTH207 - Path.glob refuses absolute ones
    matches = [match for match in matches if match.is_file()]
    if not matches:
        what = "no file matches the pattern" if glob.has_magic(word) else "no such file or folder"
        raise UsageError(f"{word}: {what}; name a checkpoint, a folder of checkpoints or a glob")
    return sorted(matches, key=_natural)


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Sort numbers inside names by value."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", str(path)) if part]
