"""What samples are normalized by: fitted once on the training index, in file order, and kept for later runs.

In file order and over every sample once: a fit on a shuffled or resampled loader gives the network other inputs at
every run. One sample at a time is in memory. A kept fit is taken only for the same index, the same files (by path,
size and times) and the same settings, and only if it makes sense; else the samples are read again.
"""

import hashlib
import json
import math
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from qbw_eval.data.errors import DataError, printable
from qbw_eval.data.samples import Index, SampleReader, fetched
from qbw_eval.data.transforms import Moments, merged, moments_of
from qbw_eval.settings.data import DataSettings

Fit = dict[str, dict[str, Moments]]
"""Moments of the training samples by location and modality."""

_FORMAT: Final = 1
_MAX_BYTES: Final = 2**22


def fitted(settings: DataSettings, index: Index, beside: Path | None) -> Fit:
    """Return the moments of the training samples.

    Args:
        settings: locations, modalities and the method of normalization.
        index: the training index.
        beside: the folder in whose folder `normalization` fits are kept; None to keep none.

    Raises:
        CheckpointError: a file of the index cannot be read.
        DataError: a file of the index is not there or no sample like the others.
    """
    if beside is None:
        return fit(settings, index)
    fingerprint = _fingerprint(settings, index)
    path = beside / "normalization" / f"{fingerprint}.json"
    kept = _read(path, fingerprint, len(index.files))
    if kept is not None:
        return kept
    found = fit(settings, index)
    if _fingerprint(settings, index) == fingerprint:  # else files have changed meanwhile, and it is a fit of neither
        _write(path, fingerprint, settings, index, found)
    return found


def fit(settings: DataSettings, index: Index) -> Fit:
    """Return the moments of the training samples, reading each file once, in order; see `fitted`."""
    reader = SampleReader(settings)
    found: Fit = {}
    for file in fetched(index.files):
        values, _label = reader.read(file)
        for location, tensors in values.items():
            moments = found.setdefault(location, {})
            for modality, tensor in tensors.items():
                one = moments_of(tensor)
                moments[modality] = merged(moments[modality], one) if modality in moments else one
    return found


def _fingerprint(settings: DataSettings, index: Index) -> str:
    """Return the hash of everything that the fit depends on, as far as can be told without reading the samples."""
    assert settings.normalization is not None
    hasher = hashlib.blake2b(digest_size=16)
    facts = [_FORMAT, settings.normalization.method, settings.locations, settings.modalities, len(index.files)]
    hasher.update(json.dumps(facts).encode())
    hasher.update(hashlib.blake2b(index.content).digest())
    for file in index.files:
        try:
            found = file.stat()
        except OSError as error:
            raise DataError(
                f"{printable(file)}: cannot be read ({error.strerror}); the training index lists it"
            ) from None
        # The time of the last change of any kind too: archives give files of two versions the same time of writing.
        hasher.update(f"{os.fsencode(file)!r} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\n".encode())
    return hasher.hexdigest()


# --- kept in a file ---------------------------------------------------------------------------------------------------


def _write(path: Path, fingerprint: str, settings: DataSettings, index: Index, found: Fit) -> None:
    """Keep a fit: written beside, synced, renamed. Where that cannot be, the next run fits again."""
    assert settings.normalization is not None
    content = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "method": settings.normalization.method,
        "index": os.fsencode(index.path).decode(errors="replace"),
        "samples": len(index.files),
        "moments": {
            location: {modality: asdict(moments) for modality, moments in modalities.items()}
            for location, modalities in found.items()
        },
    }
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(content, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _read(path: Path, fingerprint: str, samples: int) -> Fit | None:
    """Return a kept fit; None where there is none or it makes no sense."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_BYTES))
        if (content["format"], content["fingerprint"], content["samples"]) != (_FORMAT, fingerprint, samples):
            return None
        return {
            str(location): {str(modality): _moments(numbers, samples) for modality, numbers in modalities.items()}
            for location, modalities in content["moments"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _moments(numbers: Mapping[str, Any], samples: int) -> Moments:
    """Return moments that a file holds.

    Raises:
        ValueError: no samples have such.
    """
    moments = Moments(**numbers)
    count, others = moments.count, [getattr(moments, field.name) for field in fields(Moments) if field.name != "count"]
    if type(count) is not int or count < 1 or count % samples:
        raise ValueError("not a count of values")
    if not all(type(number) is float and math.isfinite(number) for number in others):
        raise ValueError("not numbers")
    rounding = 1e-9 * max(abs(moments.minimum), abs(moments.maximum))
    if moments.squares < 0 or not moments.minimum - rounding <= moments.mean <= moments.maximum + rounding:
        raise ValueError("not of one set of values")
    return moments
