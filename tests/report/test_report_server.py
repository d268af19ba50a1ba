"""TensorBoard's own server, over HTTP: the seed document's tags, the values of statistics.csv, the images."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest
from report_helpers import Report
from simulated_records import simulate, write_records

from qbw_report.build import build
from qbw_report.events import IMAGE_TAG, SCALAR_TAGS

PATIENCE = 90  # seconds until a server that says nothing is called broken; it takes 2 to 4


@contextmanager
def serving(logdir: Path, log: Path, *, fast: bool) -> Iterator[str]:
    """Start TensorBoard on a free loopback port and yield its address.

    `fast` is the data server in Rust, which TensorBoard starts where it can; otherwise it reads the files in Python.
    """
    words = ["--host", "127.0.0.1", "--port", "0", "--reload_interval", "1", f"--load_fast={str(fast).lower()}"]
    words += ["--samples_per_plugin", "images=1000,scalars=100000", "--logdir", str(logdir)]
    with log.open("wb") as sink:
        server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *words], stdout=sink, stderr=sink)
    try:
        yield until(lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text(encoding="utf-8")), log)[0]
    finally:
        server.kill()
        server.wait()


def until(ask: Callable[[], Any], log: Path) -> Any:
    """Return the first answer that is not empty."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := ask()):
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.1)
    return answer


def get(address: str, plugin: str, **query: object) -> bytes:
    with urlopen(f"{address}/data/plugin/{plugin}?{urlencode(query)}", timeout=PATIENCE) as answer:
        data: bytes = answer.read()
    return data


def scalars(address: str, run: str, tag: str) -> list[tuple[int, float]]:
    return [(step, value) for _, step, value in json.loads(get(address, "scalars/scalars", run=run, tag=tag))]


@pytest.mark.parametrize("fast", [False, True])
def test_the_server_shows_what_the_report_says(report: Report, tmp_path: Path, fast: bool) -> None:
    rows = list(csv.DictReader((report.out / "statistics.csv").read_text(encoding="utf-8").splitlines()))
    runs = sorted(path.name for path in (report.out / "tensorboard").iterdir())
    log = tmp_path / "log"
    with serving(report.out / "tensorboard", log, fast=fast) as address:
        until(lambda: len(json.loads(get(address, "images/tags"))) == len(runs), log)
        tags = json.loads(get(address, "scalars/tags"))
        images = json.loads(get(address, "images/tags"))
        assert sorted(tags) == runs
        for run, series in zip(runs, ("demo", "other run"), strict=True):
            assert set(tags[run]) == set(SCALAR_TAGS)
            for tag, column in SCALAR_TAGS.items():
                expected = [(int(r["epoch"]), float(np.float32(r[column]))) for r in rows if r["series"] == series]
                assert scalars(address, run, tag) == expected
            assert set(images[run]) == {IMAGE_TAG}
            shown = json.loads(get(address, "images/images", run=run, tag=IMAGE_TAG, sample=0))
            assert [image["step"] for image in shown] == {"demo": [4, 5], "other run": [0]}[series]
            for image in shown:
                figure = report.out / "figures" / run / f"bitwidth_vs_accuracy_epoch_{image['step'] + 1:03d}.png"
                key = image["query"].removeprefix("blob_key=")
                assert get(address, "images/individualImage", blob_key=key) == figure.read_bytes()


def test_a_running_server_follows_a_rebuilt_report_without_doubling_it(tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    build(write_records(tmp_path / "records", simulate(epochs=2, configs=3)), out, every=5)
    # The reader in Python never leaves a file that was deleted under it: such a server has to be started again.
    with serving(out / "tensorboard", log, fast=True) as address:
        until(lambda: len(json.loads(get(address, "scalars/tags")).get("demo", {})) == len(SCALAR_TAGS), log)
        assert [step for step, _ in scalars(address, "demo", "Accuracy/val")] == [0, 1]
        shutil.rmtree(tmp_path / "records")
        analysis, _ = build(write_records(tmp_path / "records", simulate(epochs=3, configs=4)), out, every=5)
        until(lambda: scalars(address, "demo", "Accuracy/val")[-1][0] == 2, log)
        expected = [(epoch, float(np.float32(mean))) for epoch, mean in enumerate(analysis.epochs["accuracy_mean"])]
        assert scalars(address, "demo", "Accuracy/val") == expected
