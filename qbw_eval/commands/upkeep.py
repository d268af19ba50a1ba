"""`qbw-eval verify`, `compact` and `export`: what keeps a records folder in order."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from qbw_eval.compact import compact
from qbw_eval.dataset import DatasetError
from qbw_eval.export import export
from qbw_eval.store import RecordStore
from qbw_eval.verify import verify


def verify_command(records: Path, *, quarantine: bool, as_json: bool) -> None:
    """Print every bad file and how many parts and rows are good; move the bad ones away if asked to.

    Raises:
        DatasetError: there are bad files that were not moved.
    """
    found = verify(records)
    moved = {}
    if quarantine:
        store = RecordStore(records)
        moved = {p.path: store.quarantine(p.path) for p in found.problems if p.movable and p.path.exists()}
    if as_json:
        problems = [{"path": str(p.path), "what": p.what, "moved_to": _text(moved.get(p.path))} for p in found.problems]
        print(json.dumps({"parts": found.parts, "rows": found.rows, "problems": problems}, indent=2))
    else:
        for problem in found.problems:
            print(problem.what)
        for path, to in moved.items():
            print(f"{path.name}: moved to {to}")
        print(f"{found.parts} parts with {found.rows} rows are good; {len(found.problems)} problems")
    if found.problems and not quarantine:
        raise DatasetError(f"{records}: {len(found.problems)} problems; move bad files away with --quarantine")
    if moved:
        print("The next run evaluates again what was moved away.", file=sys.stderr)
    left = [problem for problem in found.problems if not problem.movable]
    if left:
        raise DatasetError(f"{records}: {len(left)} problems are left, which moving files away does not mend")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def compact_command(records: Path, new: Path) -> None:
    """Write the new dataset and print both digests.

    Raises:
        DatasetError: they differ, which would be a defect of ours.
    """
    result = compact(records, new)
    print(json.dumps(asdict(result), indent=2))
    if result.source_digest != result.target_digest:
        raise DatasetError(f"{new}: holds other rows than {records}; do not use it, and report this")


def export_command(records: Path, file: Path, *, wide: bool, overwrite: bool) -> None:
    """Write the file and say how many rows it holds."""
    rows = export(records, file, wide=wide, overwrite=overwrite)
    print(f"{file}: {rows} rows")
