"""TensorBoard's own server, over HTTP: every tag with the tables' values, images, the table of series, the charts."""

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import pytest
from report_helpers import Report
from simulated_records import row, simulate, write_records
from tensorboard_server import PATIENCE, serving, until

from qbw_report.build import build
from qbw_report.dashboards import SCALAR_TAGS, TAGS
from qbw_report.events import IMAGE_TAG

COMPARED = {
    "Answers/best_accuracy": "best_accuracy",
    "Answers/best_bitwidth": "best_bitwidth",
    "Answers/fewest_bits_within_tolerance": "lowest_bitwidth",
    "Answers/accuracy_at_fewest_bits": "lowest_accuracy",
    "Answers/lowest_cost": "lowest_cost",
    "Answers/knee": "knee",
    "Answers/pearson": "pearson",
    "Answers/spearman": "spearman",
    "Answers/stability": "stability",
    "Answers/spread": "spread",
    "Accuracy/val": "mean_accuracy",
}
"""What the table of series has in common with comparison.csv: tag -> column."""

LAST = ("accuracy_over_epochs", "bitwidth_over_epochs", "loss_over_epochs", "sensitivity")
"""Figures that there are of the last epoch only."""

PICTURES = {
    series: {IMAGE_TAG: epochs, **{f"Bitwidth_Analysis/{figure}": epochs[-1:] for figure in LAST}}
    for series, epochs in (("demo", [4, 5]), ("other run", [0]))
}
"""Series of the fixture's report -> tag -> epochs that have one."""


def get(address: str, plugin: str, **query: object) -> bytes:
    with urlopen(f"{address}/data/plugin/{plugin}?{urlencode(query)}", timeout=PATIENCE) as answer:
        data: bytes = answer.read()
    return data


def ask_hparams(address: str, what: str, **request: object) -> Any:
    body = json.dumps({"experimentName": "", "includeMetrics": True} | request).encode()
    asked = Request(f"{address}/data/plugin/hparams/{what}", data=body, headers={"Content-Type": "application/json"})
    with urlopen(asked, timeout=PATIENCE) as answer:
        return json.loads(answer.read())


def pictures(address: str, run: str) -> dict[tuple[str, int], bytes]:
    """Return tag and step -> the PNG that the server shows."""
    return {
        (tag, image["step"]): get(address, "images/individualImage", blob_key=image["query"].removeprefix("blob_key="))
        for tag in json.loads(get(address, "images/tags")).get(run, {})
        for image in json.loads(get(address, "images/images", run=run, tag=tag, sample=0))
    }


def figures(report: Path, run: str, epochs: Mapping[str, Sequence[int]]) -> dict[tuple[str, int], bytes]:
    """Return tag and step -> the PNG of the report, for steps by tag."""
    stems = {IMAGE_TAG: "bitwidth_vs_accuracy_epoch_{:03d}"}
    return {
        (tag, epoch): (
            report / "figures" / run / f"{stems.get(tag, tag.rpartition('/')[2]).format(epoch + 1)}.png"
        ).read_bytes()
        for tag, steps in epochs.items()
        for epoch in steps
    }


def sessions(address: str) -> dict[str, Any]:
    """Return the lines of the table of series by their name."""
    words = {"allowedStatuses": ["STATUS_UNKNOWN"], "colParams": [], "startIndex": 0, "sliceSize": 100}
    told = ask_hparams(address, "session_groups", **words)
    assert told["totalSize"] == len(told["sessionGroups"])
    return {group["name"]: group for group in told["sessionGroups"]}


def scalars(address: str, run: str, tag: str) -> list[tuple[int, float]]:
    """Return step and value; what is no number comes as the word NaN."""
    return [(step, float(value)) for _, step, value in json.loads(get(address, "scalars/scalars", run=run, tag=tag))]


def numbers_of(report: Path) -> dict[str, pd.DataFrame]:
    """Return what the tables say of each series, a line per epoch."""
    statistics, answers = (pd.read_csv(report / f"{name}.csv") for name in ("statistics", "answers_over_epochs"))
    return {str(series): told for series, told in statistics.merge(answers, on=["series", "epoch"]).groupby("series")}


def has_read(address: str, told: Mapping[str, pd.DataFrame]) -> bool:
    """Return whether the server shows the last number of every series, and so what stands before it in the file."""
    tags, last = json.loads(get(address, "scalars/tags")), list(TAGS)[-1]
    return all(
        last in tags.get(series, {}) and scalars(address, series, last)[-1][0] == numbers["epoch"].max()
        for series, numbers in told.items()
    )


def shown_is_told(address: str, run: str, numbers: pd.DataFrame) -> None:
    for tag, column in TAGS.items():
        expected = np.column_stack([numbers["epoch"], numbers[column].astype(np.float32)])
        np.testing.assert_array_equal(scalars(address, run, tag), expected, tag)  # NaN equals NaN


@pytest.mark.parametrize("fast", [False, True])
def test_the_server_shows_what_the_report_says(report: Report, tmp_path: Path, fast: bool) -> None:
    tensorboard, log = report.out / "tensorboard", tmp_path / "log"
    runs = sorted(path.name for path in tensorboard.iterdir())
    with serving(tensorboard, log, fast=fast) as address:
        for run, (series, numbers) in zip(runs, numbers_of(report.out).items(), strict=True):
            # Pictures are the last thing in a file.
            until(lambda: pictures(address, run) == figures(report.out, run, PICTURES[series]), log)  # noqa: B023 - called at once
            assert set(json.loads(get(address, "scalars/tags"))[run]) == set(TAGS) > set(SCALAR_TAGS)
            shown_is_told(address, run, numbers)
        assert sorted(json.loads(get(address, "scalars/tags"))) == runs
        until(lambda: len(sessions(address)) == len(runs), log)
        compared = pd.read_csv(report.out / "comparison.csv").set_index("series")
        for series, line in sessions(address).items():
            assert (line["hparams"]["options"], line["hparams"]["samples"]) == ("2, 4, 8", 1000)
            assert line["hparams"]["engine"] == compared.loc[series, "engine"]
            told = {value["name"]["tag"]: float(value["value"]) for value in line["metricValues"]}
            assert set(told) == set(TAGS)
            for tag, column in COMPARED.items():
                np.testing.assert_array_equal(told[tag], np.float32(compared.loc[series, column]), tag)
        experiment = ask_hparams(address, "experiment")
        assert {each["name"]["tag"] for each in experiment["metricInfos"]} == set(TAGS)
        assert {each["name"] for each in experiment["hparamInfos"]} == set(line["hparams"])
        categories = json.loads(get(address, "custom_scalars/layout"))["category"]
        charts = [chart for category in categories for chart in category["chart"]]
        assert [len(category["chart"]) for category in categories] == [3, 5]
        for band in (chart["margin"]["series"][0] for chart in charts):
            for tag in band.values():
                shown = json.loads(get(address, "custom_scalars/scalars", run=runs[0], tag=f"({re.escape(tag)})"))
                assert tag in shown["tag_to_events"]


def test_a_running_server_follows_a_rebuilt_report_without_doubling_it(tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    build(write_records(tmp_path / "records", simulate(epochs=2, configs=24)), out, every=5)
    # The reader in Python never leaves a file that was deleted under it: such a server has to be started again.
    with serving(out / "tensorboard", log, fast=True) as address:
        until(lambda: has_read(address, numbers_of(out)), log)
        shown_is_told(address, "demo", numbers_of(out)["demo"])
        assert not np.isnan([value for _, value in scalars(address, "demo", "Answers/knee")]).any()
        shutil.rmtree(tmp_path / "records")
        # Of so few rows hardly anything can be told: what was told before must be gone, in the table of series, too.
        fewer, new = simulate(epochs=3, configs=4), simulate(experiment="new", epochs=1, configs=6, engine="integer")
        one = [row([2, 4], 1, experiment="one", loss=math.nan)]
        build(write_records(tmp_path / "records", fewer, new, one), out, every=5)
        until(lambda: has_read(address, numbers_of(out)), log)
        for series, numbers in numbers_of(out).items():
            shown_is_told(address, series, numbers)
        columns = {each["name"]: each for each in ask_hparams(address, "experiment")["hparamInfos"]}
        assert sorted(columns["engine"]["domainDiscrete"]) == ["integer", "reference"]
        lines = sessions(address)
        assert {series: line["hparams"]["engine"] for series, line in lines.items()} == {
            "demo": "reference",
            "new": "integer",
            "one": "reference",
        }
        told = {value["name"]["tag"]: value["value"] for value in lines["demo"]["metricValues"]}
        assert (told["Answers/knee"], told["Answers/pearson"]) == ("NaN", "NaN")
        drawn = {path.stem for path in (out / "figures" / "demo").iterdir()} & set(LAST)
        assert {"accuracy_over_epochs", "loss_over_epochs"} < drawn
        expected = figures(out, "demo", {IMAGE_TAG: [2], **{f"Bitwidth_Analysis/{figure}": [2] for figure in drawn}})
        until(lambda: expected.items() <= pictures(address, "demo").items(), log)  # beside those of the epoch before
