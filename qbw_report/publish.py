"""Files -> a report folder that holds exactly them, and whatever others have put there."""

import contextlib
import json
import uuid
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from schemas.errors import QBWError

MANIFEST = ".qbw-report.json"
"""What the previous build wrote. Only what stands there (or bears our suffix) is ever deleted."""


def publish(out: Path, files: Iterable[tuple[str, bytes]], also_ours: Iterable[Path] = ()) -> list[str]:
    """Write `files` under `out`, then delete what an earlier build wrote and this one did not.

    Each file appears whole or not at all: it is written beside the report under a hidden name and moved into place.

    Args:
        out: the report folder; made if missing.
        files: path relative to `out`, with slashes, and content; taken one at a time.
        also_ours: further files under `out` that an earlier build wrote, listed in its manifest or not.

    Returns:
        The paths of `files`, in their order.

    Raises:
        QBWError: a file cannot be written or deleted.
    """
    if out.exists() and not out.is_dir():
        raise QBWError(f"{out}: expected a folder, found a file; choose another folder with --out")
    try:
        before = _read_manifest(out) | {path.relative_to(out).as_posix() for path in also_ours}
        written: list[str] = []
        try:
            for name, data in files:
                _write_whole(out, name, data)
                written.append(name)
        except BaseException:
            # Half a report: remember both halves, so that the next build can clear either.
            with contextlib.suppress(OSError):
                _write_manifest(out, before | set(written))
            raise
        for name in sorted(before - set(written)):
            _delete(out, name)
        _write_manifest(out, set(written))
    except OSError as error:
        where = error.filename or out
        raise QBWError(f"{where}: cannot be written ({error.strerror}); choose another folder with --out") from None
    return written


def _write_whole(out: Path, name: str, data: bytes) -> None:
    path = out / name
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not in the file's own folder: TensorBoard would read an unfinished event file, hidden or not.
    temporary = out / f".qbw-{uuid.uuid4().hex}.tmp"
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _delete(out: Path, name: str) -> None:
    path = out / name
    path.unlink(missing_ok=True)
    for folder in path.relative_to(out).parents:
        if folder != Path():
            # A folder that still holds something, ours or not, stays.
            with contextlib.suppress(OSError):
                (out / folder).rmdir()


def _read_manifest(out: Path) -> set[str]:
    path = out / MANIFEST
    if not path.is_file():
        return set()
    try:
        names = json.loads(path.read_bytes())["files"]
        return {name for name in names if _stays_inside(name)} if isinstance(names, list) else set()
    except (ValueError, KeyError, TypeError):
        # Not what we wrote, so it cannot tell what is ours. Better to leave an old figure than to delete a stranger's.
        return set()


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts


def _write_manifest(out: Path, names: set[str]) -> None:
    text = json.dumps({"made_by": "qbw-report build", "files": sorted(names)}, indent=1)
    _write_whole(out, MANIFEST, text.encode())
