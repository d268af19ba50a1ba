"""Checkpoints from strangers: thousands that want to do harm or are broken, and what people really keep in them.

A worker reads them one after the other. Each must end in one sentence or a clean load, within minutes and 1 GB;
nothing may have run, and nothing been imported. A worker that dies is a failure, and another one goes on behind the
file.
"""

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from checkpoint_kinds import KINDS, same, saved
from hostile_files import CORE, OPCODES, targets

from qbw_eval.checkpoints.harmless import is_harmless
from qbw_eval.checkpoints.load import load_checkpoint_file
from qbw_eval.checkpoints.safe_load import CheckpointError

WORKER = Path(__file__).parent / "hostile_worker.py"
HOSTILE = 3_900
MOST_MEMORY, MOST_SECONDS = 10**9, 300  # a worker on a busy machine needs more than a minute to begin


def lines_of(*words: str | int | Path) -> Iterator[dict[str, object]]:
    """Yield what a worker says until it ends; a file that takes too long is its end too."""
    command = [sys.executable, str(WORKER), *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        while True:
            watch = threading.Timer(MOST_SECONDS, process.kill)
            watch.start()
            line = process.stdout.readline()
            watch.cancel()
            if not line:
                break
            yield json.loads(line)
    finally:
        process.kill()
        process.stdout.close()
        if process.wait():
            yield {"outcome": f"wrong: the worker died ({process.returncode})", "name": "", "peak": 0}


def outcomes(which: str, folder: Path, first: int, other: int, *seed: int) -> list[dict[str, object]]:
    """Return a line for every file, from as many workers as it takes."""
    found: list[dict[str, object]] = []
    while True:
        died = False
        for line in lines_of(which, folder, first, other, *seed):
            died = "index" not in line
            found.append({"index": first} | line)
            if not died:
                first = int(str(line["index"])) + (other if which == "hostile" else 1)
                other -= which == "mutated"
        if not died or len(found) > 100_000:
            return found
        first += other if which == "hostile" else 1
        other -= which == "mutated"


def judged(lines: list[dict[str, object]]) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Return what went wrong, and the counts for the report."""
    wrong = [
        line for line in lines
        if line["outcome"] not in ("refused", "loaded") or int(str(line["peak"])) > MOST_MEMORY
    ]  # fmt: skip
    counts = Counter(str(line["outcome"]).partition(":")[0] for line in lines)
    most = max(int(str(line["peak"])) for line in lines)
    return wrong, {"refused": counts["refused"], "loaded": counts["loaded"], "most_memory_MB": most // 10**6}


def test_hostile_checkpoints(tmp_path: Path, full: bool, trials, report) -> None:
    lines = outcomes("hostile", tmp_path, 0, max(1, HOSTILE // trials(200, HOSTILE)))
    wrong, counts = judged(lines)
    report(test="hostile checkpoints", trials=len(lines), failures=len(wrong), unit="files", **counts)
    assert not (tmp_path / "canary").exists()
    assert wrong == []
    called = {str(line["name"]).partition(" by ")[0] for line in lines if line["outcome"] == "loaded"}
    assert [name for name in called & set(targets("")) if not is_harmless(name)] == []
    assert len(lines) >= (1400 if full and trials(1, 1000) == 1000 else 200)


def test_mutated_checkpoints(tmp_path: Path, seed: int, trials, report) -> None:
    lines = outcomes("mutated", tmp_path, 0, trials(250, 20_000), seed)
    wrong, counts = judged(lines)
    report(test="mutated checkpoints", trials=len(lines), failures=len(wrong), unit="files", **counts)
    assert not (tmp_path / "canary").exists()
    assert wrong == []
    assert len(lines) == trials(250, 20_000)


def test_what_hostile_checkpoints_want_is_live(tmp_path: Path, report) -> None:
    """The control: read by pickle, the same bytes do run."""
    ran = 0
    names = [name for name in CORE if name in ("posix.system", "builtins.eval", "subprocess.Popen")]
    for number, name in enumerate(names):
        canary = tmp_path / f"canary{number}"
        pickled = b"\x80\x02" + OPCODES["REDUCE"](name, targets(str(canary))[name]) + b"."
        script = f"import pickle; pickle.loads({pickled!r}).__class__; import time; time.sleep(0.5)"
        subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=False)
        ran += canary.exists()
    report(
        test="control: hostile checkpoints, read by pickle", trials=len(names), failures=ran, unit="files", control=True
    )
    assert ran == len(names) == 3


def test_legitimate_checkpoints(tmp_path: Path, report) -> None:
    path, wrong, tried = tmp_path / "a.pt", [], 0
    for name, kind in KINDS.items():
        for how in ({}, {"pickle_protocol": 4}, {"pickle_protocol": 5}, {"_use_new_zipfile_serialization": False}):
            path.write_bytes(saved(kind.saved(), **how))
            tried += 1
            try:
                if not same(load_checkpoint_file(path).content, kind.expected()):
                    wrong.append((name, how, "other content"))
            except CheckpointError as error:
                wrong.append((name, how, str(error)))
    report(test="legitimate checkpoints", trials=tried, failures=len(wrong), unit="files", kinds=len(KINDS))
    assert wrong == []


def test_a_worker_that_dies_is_a_failure_and_the_next_goes_on(tmp_path: Path, monkeypatch) -> None:
    """The control: a worker that ends itself at its second file, and once more at the fourth."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys\n"
        "for index in range(int(sys.argv[3]), 6, int(sys.argv[4])):\n"
        "    if index in (1, 3): os.abort()\n"
        "    print(json.dumps({'index': index, 'name': 'x', 'outcome': 'refused', 'peak': 5}), flush=True)\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "WORKER", script)
    lines = outcomes("hostile", tmp_path, 0, 1)
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4, 5]
    wrong, counts = judged(lines)
    assert [line["index"] for line in wrong] == [1, 3]
    assert counts == {"refused": 4, "loaded": 0, "most_memory_MB": 0}
