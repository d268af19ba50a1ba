"""What the stage's tests share: the command line, records made by hand, and slow, obviously right twins."""

import contextlib
import hashlib
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from qbw_eval import cli
from schemas.records import RECORD_SCHEMA


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str


def qbw_eval(*words: object) -> Outcome:
    """Run `qbw-eval` with these words, as its console script does."""
    stdout, stderr = io.StringIO(), io.StringIO()
    code: object = None
    words_of_the_script = mock.patch.object(sys, "argv", ["qbw-eval", *map(str, words)])
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), words_of_the_script:
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int), "the console script did not end with an exit code"
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


CHECKPOINT_ID = "c0ffee" * 10 + "beef"
PLAN_ID = "0123456789abcdef" * 2


def rows_of(first: int, count: int, **shared: Any) -> pa.Table:
    """Return records of consecutive configurations that keep every rule; `shared` replaces a column's values."""
    rows = [
        {
            "record_id": f"record {index}",
            "checkpoint_id": CHECKPOINT_ID,
            "plan_id": PLAN_ID,
            "config_index": index,
            "num_samples": 10,
            "correct": index % 11,
            "accuracy": (index % 11) / 10,
            "bitwidths": [2, 4 + index % 5],
            "evaluated_at": datetime(2026, 1, 2, tzinfo=UTC),
            **shared,
        }
        for index in range(first, first + count)
    ]
    return pa.table([pa.array([row.get(f.name) for row in rows], f.type) for f in RECORD_SCHEMA], schema=RECORD_SCHEMA)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return every file below `folder` with the time it was last written and its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def temporary_files(records: Path) -> list[Path]:
    """Return what unfinished writes have left beside `records`."""
    return [path for path in (records.parent / ".qbw").rglob("*") if path.is_file()]


def costs_by_counting(bits: Sequence[int], layers: Sequence[dict[str, Any]], largest: int) -> dict[str, float]:
    """Return the costs of a configuration, adding up one weight and one multiply-accumulate group at a time."""
    weight_bits, weights, operations, most = 0, 0, 0, 0
    for layer_bits, layer in zip(bits, layers, strict=True):
        for _ in range(layer["weights"]):
            weight_bits += layer_bits
            weights += 1
        operations += layer["macs"] * layer_bits * layer_bits
        most += layer["macs"] * largest * largest
    whole_bytes = -(-weight_bits // 8)
    return {
        "avg_bitwidth": sum(bits) / len(bits),
        "weighted_avg_bitwidth": weight_bits / weights,
        "weight_bytes": whole_bytes,
        "relative_weight_bytes": whole_bytes / -(-weights * largest // 8),
        "bit_ops": operations,
        "relative_bit_ops": operations / most,
    }


def bits_of(mask: bytes, count: int) -> list[bool]:
    """Return the first `count` bits, least significant first; the rest of the last byte must be zero."""
    bits = [bool(byte >> position & 1) for byte in mask for position in range(8)]
    assert not any(bits[count:])
    assert len(mask) == -(-count // 8)
    return bits[:count]


def hash_by_hand(**facts: object) -> str:
    """Return blake2b-128 of the facts as JSON with sorted keys and no spaces."""
    text = (
        "{"
        + ",".join(f"{json.dumps(key)}:{json.dumps(facts[key], separators=(',', ':'))}" for key in sorted(facts))
        + "}"
    )
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def one_thread() -> dict[str, str]:
    """Return an environment in which a subprocess's torch leaves the other cores to others."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def scaled_as_pillow_does(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return (rows, columns, 3) bytes scaled bilinearly with antialiasing: columns first, rounded, then rows.

    A pixel is the mean of what lies under a triangle around its centre, as wide as two pixels of the coarser image.
    Weights are whole multiples of 2**-22, as in Pillow's Resample.c; halves are rounded up. (Of very tall images
    Pillow scales the rows first; they are not for this twin.)
    """

    def scaled_rows(image: np.ndarray, count: int) -> np.ndarray:
        if count == len(image):
            return image
        step = len(image) / count
        reach = max(step, 1.0)
        result = np.empty((count, *image.shape[1:]), np.uint8)
        for row in range(count):
            centre = (row + 0.5) * step
            first, last = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), len(image))
            weights = [max(0.0, 1 - abs((source - centre + 0.5) / reach)) for source in range(first, last)]
            whole = [int(0.5 + weight / sum(weights) * 2**22) for weight in weights]
            total = sum(weight * image[first + index].astype(np.int64) for index, weight in enumerate(whole))
            result[row] = np.clip((total + 2**21) >> 22, 0, 255)
        return result

    columns_first = scaled_rows(pixels.transpose(1, 0, 2), width).transpose(1, 0, 2)
    return scaled_rows(columns_first, height)
