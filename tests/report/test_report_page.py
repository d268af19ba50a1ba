"""The page without a browser: every number is a field of a CSV, names stay text, nothing is asked of anybody."""

import base64
import csv
import hashlib
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_helpers import Report
from simulated_records import row, simulate, write_records

from qbw_report.build import analyze, build
from qbw_report.page.axes import MOST_TICKS, axis
from qbw_report.page.cloud import MOST_EPOCHS, shown_epochs, spread_evenly
from qbw_report.page.shown import digits

# Written again, so that a wrong form is noticed.
FORMS = {
    "percent": lambda value: f"{value:.1%}",
    "points": lambda value: f"{value * 100:+.2f}",
    "size": lambda value: f"{value * 100:.2f}",
    "decimals": lambda value: f"{value:.2f}",
    "count": lambda value: f"{value:,.0f}",
    "epoch": lambda value: f"{value + 1:.0f}",
}


@dataclass
class Read(HTMLParser):
    """A page as a parser sees it."""

    numbers: list[tuple[dict[str, str], str]] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "data":
            self.numbers.append(({name: value or "" for name, value in attrs}, ""))
        if tag not in {"meta", "input", "circle", "polyline", "polygon", "line", "rect"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        self.texts.append((inside, data))
        if inside == "data":
            facts, text = self.numbers[-1]
            self.numbers[-1] = (facts, text + data)


def read(out: Path) -> Read:
    page = Read()
    page.feed((out / "index.html").read_text(encoding="utf-8"))
    return page


def clouds(out: Path) -> list[dict[str, Any]]:
    text = (out / "index.html").read_text(encoding="utf-8")
    return [
        json.loads(each) for each in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    ]


def test_every_number_is_its_field_of_a_csv(report: Report) -> None:
    tables = {
        path.name: list(csv.reader(path.read_text(encoding="utf-8").splitlines())) for path in report.out.glob("*.csv")
    }
    seen: dict[str, int] = {}
    for facts, text in read(report.out).numbers:
        name, line, column = facts["data-from"].split(":")
        table = tables[name]
        assert table[int(line) - 1][table[0].index(column)] == facts["value"], facts
        form = FORMS.get(facts["data-form"], digits)
        assert text.replace("\u2212", "-") == form(float(facts["value"])).replace("\u2212", "-"), facts
        seen[name] = seen.get(name, 0) + 1
    least = {"statistics.csv": 40, "bins.csv": 10, "answers.csv": 40, "comparison.csv": 10, "sensitivity.csv": 20,
             "front.csv": 2, "recommendations.csv": 10, "provenance.csv": 10}  # fmt: skip
    assert all(seen[name] >= count for name, count in least.items()), seen


def test_outside_these_fields_and_sentences_there_are_no_numbers(report: Report) -> None:
    analysis = analyze(report.records)
    text_cells = [text for inside, text in read(report.out).texts if inside == "td"]
    known = {str(value) for table in (analysis.findings, analysis.comparison, analysis.recommendations, analysis.rows)
             for column in table for value in table[column]}  # fmt: skip
    strange = [text for text in text_cells if re.search(r"\d", text) and text not in known]
    # What is left are texts of tables that are made when the files are: bits of the front, facts of provenance.
    tables = "".join(
        (report.out / f"{name}.csv").read_text(encoding="utf-8") for name in ("front", "provenance", "pairs")
    )
    assert [text for text in strange if text not in tables] == []


def test_its_sentences_are_those_of_the_json(report: Report) -> None:
    document = json.loads((report.out / "statistics.json").read_text(encoding="utf-8"))
    shown = [text for inside, text in read(report.out).texts if inside == "li"]
    for series in document["series"]:
        for sentence in series["answers"]["sentences"]:
            assert sentence.replace(" -", " \u2212") in shown
    for note in document["notes"]:
        assert note in shown


def test_the_clouds_are_the_rows_and_bins(report: Report) -> None:
    analysis = analyze(report.records)
    assert [cloud["series"] for cloud in clouds(report.out)] == [each.series for each in analysis.answers]
    for cloud in clouds(report.out):
        rows = analysis.rows[analysis.rows["series"] == cloud["series"]]
        bins = analysis.bins[analysis.bins["series"] == cloud["series"]]
        configs = cloud["configs"]
        assert [epoch["epoch"] for epoch in cloud["epochs"]] == sorted(set(rows["epoch"]))
        for epoch in cloud["epochs"]:
            of_epoch = rows[rows["epoch"] == epoch["epoch"]]
            shown = sorted(
                (
                    configs["id"][index],
                    configs["bits"][index],
                    *(configs[cost][index] for cost in cloud["costs"]),
                    accuracy,
                )
                for index, accuracy in epoch["points"]
            )
            assert shown == sorted(
                (each["config_id"][:8], " ".join(map(str, each["bitwidths"])), *(each[cost] for cost in cloud["costs"]),
                 each["accuracy"])
                for each in of_epoch.to_dict("records")
            )  # fmt: skip
            expected = bins[bins["epoch"] == epoch["epoch"]]
            for place, column in ((0, "bitwidth_bin"), (1, "accuracy_mean"), (4, "accuracy_std"), (7, "configs")):
                assert [line[place] for line in epoch["bins"]] == expected[column].tolist()


def test_it_runs_its_own_script_and_asks_for_nothing(report: Report) -> None:
    page = read(report.out)
    text = (report.out / "index.html").read_text(encoding="utf-8")
    (policy,) = (
        a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    (script,), (style,) = (re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("script", "style"))
    for inline in (script, style):
        assert base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode() in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    attributes = [(tag, name, value or "") for tag, each in page.tags for name, value in each.items()]
    assert not [each for each in attributes if each[1].startswith("on") or each[1] in ("style", "src", "srcset")]
    links = {value for tag, name, value in attributes if name == "href"}
    assert {link for link in links if not link.startswith("#")} == {path.name for path in report.out.glob("*.csv")}
    ids = [each["id"] for _, each in page.tags if "id" in each]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{7*7}}"


def test_names_from_strangers_are_shown_and_not_run(tmp_path: Path) -> None:
    build(
        write_records(tmp_path / "records", simulate(experiment=EVIL, epochs=2, configs=8)), tmp_path / "out", every=5
    )
    page = read(tmp_path / "out")
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert any(EVIL in text for inside, text in page.texts if inside == "h2")


def test_a_page_repeats_in_every_byte(report: Report, tmp_path: Path) -> None:
    build(report.records, tmp_path / "again", every=5)
    assert (tmp_path / "again" / "index.html").read_bytes() == (report.out / "index.html").read_bytes()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([row([2, 4], 900)], "Cannot tell yet how few bits are enough"),
        ([row([4, 4], 900, config_index=index, epoch=index) for index in range(3)], "Cannot tell yet"),
        (
            [row([4, 4], 900 + index, config_index=index, record_id=str(index) * 32) for index in range(8)],
            "Cannot tell yet",
        ),
        ([row([2, 4], 900, loss=float("nan")), row([4, 4], 910, config_index=1, loss=None)], "Cannot tell yet"),
        ([row([bits, 4], 900, config_index=bits) for bits in range(2, 9)], "3.00 bits on average are enough"),
    ],
    ids=["one row", "one row an epoch", "one bitwidth", "losses that are no numbers", "all equally accurate"],
)
def test_records_that_say_little_give_a_page_that_says_so(
    tmp_path: Path, rows: list[dict[str, Any]], told: str
) -> None:
    build(write_records(tmp_path / "records", rows), tmp_path / "out", every=5)
    text = "".join(text for _, text in read(tmp_path / "out").texts)
    assert told in text
    assert not re.search(r"\b(nan|inf|NaN|None)\b", re.sub(r"\{.*\}|\"use strict\".*", "", text, flags=re.DOTALL))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(1e-3, 10))
def test_everything_lies_on_its_axis(values: list[float], least: float) -> None:
    found = axis(values, "x", str, least=least)
    assert found.high - found.low >= least
    assert all(0 <= found.at(value) <= 100 for value in values)
    assert 1 <= len(found.ticks) <= MOST_TICKS + 1
    assert all(-1e-6 <= place <= 100 + 1e-6 for place, _ in found.ticks)
    assert [place for place, _ in found.ticks] == sorted(place for place, _ in found.ticks)


def test_an_axis_passes_over_what_is_not_finite() -> None:
    assert axis([np.nan, 1, np.inf, 3], "x", str, least=1).at(3) < 100


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"),
    (1234567, "1,234,567"), (0.012345, "0.01235"), (41.25, "41.25"), (-2.5, "\u22122.5"), (1e-9, "1e\u221209"),
    (0.99999, "1"), (100, "100"),
])  # fmt: skip
def test_four_digits(value: float, text: str) -> None:
    assert digits(value) == text


def test_many_epochs_and_points_are_thinned_evenly(tmp_path: Path) -> None:
    assert shown_epochs(range(10)) == list(range(10))
    thinned = shown_epochs(range(1000))
    assert len(thinned) == MOST_EPOCHS
    assert (thinned[0], thinned[-1]) == (0, 999)
    frame = analyze(write_records(tmp_path / "records", simulate(epochs=1, configs=50))).rows
    some = spread_evenly(frame, 7)
    assert len(some) == 7
    assert some["avg_bitwidth"].min() == frame["avg_bitwidth"].min()
    assert some["avg_bitwidth"].max() == frame["avg_bitwidth"].max()
    assert not some["record_id"].duplicated().any()
    assert spread_evenly(frame, 50) is frame
