"""The whole report: what it holds, that it repeats, and that it follows the records."""

import csv
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_helpers import Report
from simulated_records import row, simulate, write_records

from qbw_report.build import Analysis, analyze, build
from qbw_report.drawing import figure_epochs
from schemas.errors import UsageError


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def built(folder: Path, *parts: list[dict[str, Any]]) -> dict[str, bytes]:
    """Build the report of `parts` in `folder`, over whatever is there."""
    shutil.rmtree(folder / "records", ignore_errors=True)
    build(write_records(folder / "records", *parts), folder / "out", every=5)
    return contents(folder / "out")


def names(files: dict[str, bytes]) -> set[str]:
    """Return the paths of a report, event files without their digits."""
    return {name.partition("events.out.")[0] + "events" if "tfevents" in name else name for name in files}


def figures_of(series: str, *numbers: int) -> set[str]:
    stems = {f"bitwidth_vs_accuracy_epoch_{number:03d}" for number in numbers}
    stems |= {f"{metric}_over_epochs" for metric in ("accuracy", "loss", "bitwidth")}
    return {f"figures/{series}/{stem}.{kind}" for stem in stems for kind in ("png", "svg")}


ANSWERS = {
    "answers", "answers_over_epochs", "comparison", "pairs", "sensitivity", "interactions", "front", "predictions",
    "recommendations", "provenance",
}  # fmt: skip
TABLES = {"index.html", "statistics.csv", "bins.csv", "statistics.json", ".qbw-report.json"} | {
    f"{name}.csv" for name in ANSWERS
}


def sensitivity_of(series: str) -> set[str]:
    return {f"figures/{series}/sensitivity.{kind}" for kind in ("png", "svg")}


def test_a_report_holds_what_it_should_and_nothing_else(report: Report) -> None:
    (other,) = (path.name for path in (report.out / "figures").iterdir() if path.name != "demo")
    assert other.startswith("other-run-")
    expected = figures_of("demo", 5, 6) | figures_of(other, 1)
    expected |= sensitivity_of("demo") | sensitivity_of(other)
    expected |= {"tensorboard/demo/events", f"tensorboard/{other}/events"} | TABLES
    assert names(contents(report.out)) == expected
    assert set(report.paths) == set(contents(report.out)) - {".qbw-report.json"}


def test_further_results_in_some_rows_all_or_none_change_no_statistics(tmp_path: Path) -> None:
    rows = simulate(epochs=2, configs=6)
    further = {
        "kl_divergence": 0.125,
        "top5_correct": 1000,
        "correct_per_class": [400, 300],
        "samples_per_class": [500, 500],
    }
    skipped = dict.fromkeys([*further, "agreement", "correct_mask"])
    some = [one | (further if one["config_index"] % 2 else skipped) for one in rows]
    # Answers may know less or more with them; what the seed document promises is made from every row all the same.
    expected, *others = (
        {file: content for file, content in built(tmp_path / name, those).items() if _of_the_seed_document(file)}
        for name, those in (
            ("none", rows),
            ("all", [one | further for one in rows]),
            ("skipped", [one | skipped for one in rows]),
            ("some", some),
        )
    )
    assert {"statistics.csv", "bins.csv"} < set(expected)
    assert others == [expected] * 3


def _of_the_seed_document(file: str) -> bool:
    return file in ("statistics.csv", "bins.csv") or "over_epochs" in file or file.startswith("tensorboard/")


def test_building_over_what_a_broken_build_left_gives_identical_bytes(report: Report, tmp_path: Path) -> None:
    # A second build, in place, without a manifest: it must heal, clear the old event file and change nothing else.
    out = shutil.copytree(report.out, tmp_path / "out")
    (out / "bins.csv").unlink()
    (out / ".qbw-report.json").unlink()
    (out / "tensorboard" / "demo" / "events.out.tfevents.1767323045.0123456789abcdef.qbw").write_bytes(b"")
    build(report.records, out, every=5)
    assert contents(out) == contents(report.out)


@pytest.mark.parametrize(
    ("epochs", "every", "expected"),
    [
        ([0], 5, [0]),
        (list(range(12)), 5, [4, 9, 11]),
        (list(range(10)), 5, [4, 9]),
        (list(range(3)), 1, [0, 1, 2]),
        ([2, 7, 9], 5, [9]),
        ([4, 14, 99], 5, [4, 14, 99]),
    ],
)
def test_epochs_that_get_a_figure(epochs: list[int], every: int, expected: list[int]) -> None:
    assert figure_epochs(epochs, every) == expected


def test_csv_reads_back_to_the_last_digit(report: Report) -> None:
    analysis = analyze(report.records)
    for name, frame in (("statistics.csv", analysis.epochs), ("bins.csv", analysis.bins)):
        rows = list(csv.DictReader(io.StringIO((report.out / name).read_text(encoding="utf-8"))))
        assert list(rows[0]) == list(frame.columns)
        for found, expected in zip(rows, frame.to_dict("records"), strict=True):
            for column, value in expected.items():
                text = found[str(column)]
                assert (math.nan if text == "" else type(value)(text)) == pytest.approx(value, abs=0, nan_ok=True)


def test_json_is_strict_and_holds_the_same_numbers(report: Report) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    document = json.loads((report.out / "statistics.json").read_text(encoding="utf-8"), parse_constant=refuse)
    analysis = analyze(report.records)
    assert [series["series"] for series in document["series"]] == ["demo", "other run"]
    found = [{"series": series["series"], **epoch} for series in document["series"] for epoch in series["epochs"]]
    columns = list(found[0])
    assert found == analysis.epochs[columns].to_dict("records")
    bins = [bitwidth_bin for series in document["series"] for bitwidth_bin in series["bins"]]
    expected = analysis.bins[list(bins[0])].to_dict("records")
    assert bins == [{name: None if value != value else value for name, value in each.items()} for each in expected]
    answers = document["series"][0]["answers"]
    assert answers["best"]["accuracy"] == analysis.answers[0].best.accuracy
    assert answers["best"]["bitwidths"] == list(analysis.answers[0].best.bitwidths)
    assert document["notes"] == []


def test_more_rows_replace_the_event_file_and_foreign_files_stay(tmp_path: Path) -> None:
    rows = simulate(epochs=2, configs=5)
    first = built(tmp_path, rows[:5])
    foreign = tmp_path / "out" / "tensorboard" / "demo" / "events.out.tfevents.1.laptop"
    foreign.write_bytes(b"")
    second = built(tmp_path, rows[:5], rows[5:])
    (old,) = (name for name in first if "tfevents" in name)
    events = [name for name in second if "tfevents" in name and not name.endswith("laptop")]
    assert len(events) == 1
    assert events != [old]
    assert foreign.is_file()
    figures = figures_of("demo", 2) | sensitivity_of("demo")
    assert names(second) == figures | {"tensorboard/demo/events"} | TABLES  # epoch 1 is not the last now


def test_an_experiment_that_is_gone_leaves_nothing(report: Report, tmp_path: Path) -> None:
    shutil.copytree(report.out, tmp_path / "out")
    files = built(tmp_path, simulate(epochs=1, configs=5, experiment="new"))
    assert names(files) == figures_of("new", 1) | sensitivity_of("new") | {"tensorboard/new/events"} | TABLES
    folders = {path.name for path in (tmp_path / "out").rglob("*") if path.is_dir()}
    assert folders == {"figures", "tensorboard", "new"}


def test_one_row(tmp_path: Path) -> None:
    files = built(tmp_path, [row([2, 4], 700)])
    assert names(files) == figures_of("demo", 1) | {"tensorboard/demo/events"} | TABLES
    (series,) = json.loads(files["statistics.json"])["series"]
    (epoch,) = series["epochs"]
    assert (epoch["configs"], epoch["accuracy_mean"], epoch["accuracy_std"], epoch["correlation"]) == (1, 0.7, 0, None)
    assert series["answers"]["trend"] == {
        "configs": 1,
        "correlation": None,
        "low": None,
        "high": None,
        "reading": "cannot tell",
        "unknown": "1 configuration measured, at least 5 needed",
        "more": 4,
    }
    assert series["answers"]["lowest"] is None


def test_no_loss_at_all_gives_no_loss_figure_and_nulls(tmp_path: Path) -> None:
    files = built(tmp_path, [row([2, 4], 700, loss=math.nan), row([4, 4], 700, loss=None, config_index=1)])
    assert not any("loss" in name for name in files)
    document = json.loads(files["statistics.json"])
    assert document["series"][0]["epochs"][0]["loss_mean"] is None
    assert document["notes"] == ["demo: 2 of 2 rows without a finite loss; loss statistics leave them out"]


@pytest.mark.parametrize("inside", [lambda records: records, lambda records: records / "report"])
def test_a_report_does_not_go_into_the_records(report: Report, inside: Callable[[Path], Path]) -> None:
    out = inside(report.records)
    before = contents(report.records)
    with pytest.raises(UsageError) as raised:
        build(report.records, out, every=5)
    expected = f"{out}: the report must not lie in the records folder {report.records}; choose another --out"
    assert str(raised.value) == expected
    assert contents(report.records) == before


def test_an_analysis_reads_and_writes_nothing_else(report: Report) -> None:
    before = contents(report.records.parent)
    assert isinstance(analyze(report.records), Analysis)
    assert contents(report.records.parent) == before
