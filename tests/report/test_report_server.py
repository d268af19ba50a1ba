"""TensorBoard's own server, over HTTP: the seed document's tags, the values of statistics.csv, the images."""

import csv
import json
import shutil
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest
from report_helpers import Report
from simulated_records import simulate, write_records
from tensorboard_server import PATIENCE, serving, until

from qbw_report.build import build
from qbw_report.events import IMAGE_TAG, SCALAR_TAGS


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
