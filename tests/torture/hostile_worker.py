"""A process that reads one hostile file after the other, and says a line of JSON about each.

Usage: python hostile_worker.py hostile FOLDER FIRST STEP
       python hostile_worker.py mutated FOLDER FIRST COUNT SEED

Every file is made here, written to FOLDER, and read as `qbw-eval inspect` reads it. Afterwards nothing may be at the
canary's path, no module may have been imported, and what was loaded must lie in its storages.
"""

import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # where pytest would find what tests share

from checkpoint_kinds import saved
from hostile_files import HostileFile, hostile_files, mutated_files

from qbw_eval.checkpoints.load import load_checkpoint_file
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.checkpoints.safe_load import CheckpointError
from schemas.errors import QBWError

MAX_SENTENCE = 600


def peak_memory() -> int:
    """Return the most bytes that this process had in memory since it began, or since it last said so."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def outcome_of(path: Path) -> str:
    """Return "refused" or "loaded", or what is wrong with how it ended."""
    try:
        content = load_checkpoint_file(path).content
    except CheckpointError as error:
        sentence = error.format_message()
        if not sentence.startswith(f"{path}: ") or not sentence.isprintable() or len(sentence) >= MAX_SENTENCE:
            return f"wrong sentence: {sentence[:1000]!r}"
        return "refused"
    except BaseException as error:  # whatever else it is, it should not have come this far
        return f"wrong: {type(error).__name__}: {str(error)[:300]!r}"
    for tensor in tensors_in(content):
        reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        end = (tensor.storage_offset() + reach) * tensor.element_size() if tensor.numel() else 0
        if max(end, tensor.nbytes) > tensor.untyped_storage().nbytes():
            return f"wrong: a tensor of {tuple(tensor.shape)} outside of its storage"
    try:
        read_checkpoint(path, needs_data=False)
    except QBWError:
        pass
    except BaseException as error:
        return f"wrong: read_checkpoint: {type(error).__name__}: {str(error)[:300]!r}"
    return "loaded"


def tensors_in(content: object) -> list[torch.Tensor]:
    found, seen, stack = [], set(), [content]
    while stack:
        value = stack.pop()
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            stack.extend(value.values() if isinstance(value, dict) else value)
    return found


def files_of(which: str, canary: str, *numbers: int) -> Iterator[tuple[int, HostileFile]]:
    """Yield what the words on the command line ask for, with its number."""
    if which == "mutated":
        first, count, seed = numbers
        yield from enumerate(mutated_files(canary, seed, first, count), first)
    else:
        first, step = numbers
        yield from itertools.islice(enumerate(hostile_files(canary)), first, None, step)


def main(which: str, folder: Path, *numbers: int) -> None:
    canary, path = folder / "canary", folder / "checkpoint.pt"
    path.write_bytes(saved({}))
    outcome_of(path)  # whatever is imported for this is none of the files' doing
    for index, file in files_of(which, str(canary), *numbers):
        path.write_bytes(file.data)
        modules = set(sys.modules)
        Path("/proc/self/clear_refs").write_text("5")  # begin to count the peak anew
        outcome = outcome_of(path)
        if canary.exists():
            outcome = "wrong: it ran something"
        if set(sys.modules) != modules:
            outcome = f"wrong: it imported {sorted(set(sys.modules) - modules)[:3]}"
        line = {"index": index, "name": file.name[:100], "outcome": outcome, "peak": peak_memory()}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
