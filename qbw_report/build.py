"""The story of a report: frame, statistics, answers, figures, then events and tables; written whole."""

import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from qbw_report.bins import add_bins
from qbw_report.compare import all_pairs
from qbw_report.dashboards import settings_of
from qbw_report.events import (
    IMAGE_TAG,
    OVER_EPOCHS_TAG,
    SENSITIVITY_TAG,
    event_file,
    event_file_name,
    our_event_files,
    wall_times,
)
from qbw_report.figures import caution_left_out, plot_bitwidth_vs_accuracy, plot_metric_over_epochs
from qbw_report.frame import checked_part_paths, read_records
from qbw_report.frontier import front, predictions, predictions_in_words
from qbw_report.insight.answers import Answers, answer, sentences
from qbw_report.insight.over_epochs import answers_over_epochs
from qbw_report.insight.thresholds import DEFAULTS, Thresholds
from qbw_report.insight.trend import find_trend, trend_in_words
from qbw_report.intervals import with_intervals
from qbw_report.layers import Layers, read_layers
from qbw_report.levels import recommendations
from qbw_report.overview import findings_table, overview
from qbw_report.page.provenance import provenance
from qbw_report.page.story import page_bytes
from qbw_report.publish import publish
from qbw_report.selection import strata_of, typical_rows
from qbw_report.sensitivity import Sensitivity, find_sensitivity, of_one_network
from qbw_report.sensitivity_figure import plot_sensitivity
from qbw_report.series import add_series, folder_names, notes_on
from qbw_report.statistics import METRICS, SERIES_KEYS, per_bin, per_epoch
from qbw_report.style import png_bytes, svg_bytes
from schemas.errors import QBWError, UsageError
from schemas.parts import ANCHOR_NAME

FIGURES = "figures"
"""Folder of the figures in the report folder, with a folder per series."""

PAGE = "index.html"
"""The page, in the report folder."""

TENSORBOARD = "tensorboard"
"""Folder of the event files in the report folder: what `tensorboard --logdir` is given."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that is shown, as numbers.

    Attributes:
        rows: the records, with `series` and `bitwidth_bin`.
        epochs: `qbw_report.statistics.per_epoch` of them.
        bins: `qbw_report.statistics.per_bin` of them, with intervals.
        answers: one per series, in the order of their names.
        layers: each series' layer table; None where there is none beside the records.
        sensitivity: each series' effects of layers.
        findings: a line per answer: `qbw_report.overview.findings_table`.
        comparison: a line per series: `qbw_report.overview.overview`.
        predictions: of each series, beside what was measured: `qbw_report.frontier.predictions`.
        recommendations: what to ship at a few budgets: `qbw_report.levels.recommendations`.
        thresholds: what readings are made with.
        notes: sentences about what is odd in the records.
        parts: how many Parquet files the rows come from.
        left_out: how many damaged parts nothing here is made from.
    """

    rows: pd.DataFrame
    epochs: pd.DataFrame
    bins: pd.DataFrame
    answers: list[Answers]
    layers: Mapping[str, Layers | None]
    sensitivity: Mapping[str, Sensitivity]
    findings: pd.DataFrame
    comparison: pd.DataFrame
    predictions: Mapping[str, pd.DataFrame]
    recommendations: pd.DataFrame
    thresholds: Thresholds
    notes: list[str]
    parts: int
    left_out: int

    @cached_property
    def over_epochs(self) -> pd.DataFrame:
        """A line per series and epoch: `qbw_report.insight.over_epochs`; made when asked for, as it takes longest."""
        return answers_over_epochs(self.rows, self.thresholds.tolerance)

    def sentences(self, series: str) -> list[str]:
        """Return what is told of a series, a sentence each: its answers, then predictions against measurements."""
        answers = next(each for each in self.answers if each.series == series)
        rows = self.rows[self.rows["series"] == series]
        return [
            *sentences(answers),
            *predictions_in_words(rows, self.predictions[series], self.sensitivity[series]),
        ]


def analyze(records: Path, *, skip_bad: bool = False, thresholds: Thresholds = DEFAULTS) -> Analysis:
    """Return the statistics and answers of a records folder.

    Args:
        records: the records folder.
        skip_bad: leave bad parts out, and say so in the notes, instead of refusing.
        thresholds: what readings are made with.

    Raises:
        QBWError: as `qbw_report.frame.read_records`.
    """
    frame, left_out = read_records(records, skip_bad=skip_bad)
    rows = add_bins(add_series(frame))
    epochs = per_epoch(rows)
    groups = {str(series): group for series, group in rows.groupby("series")}
    layers, bad_tables = _layers_of(records, groups)
    answers = [answer(group, thresholds) for group in groups.values()]
    sensitivity = {series: find_sensitivity(group, layers[series]) for series, group in groups.items()}
    findings = findings_table(answers, {series: found.findings for series, found in sensitivity.items()})
    return Analysis(
        rows=rows,
        epochs=epochs,
        bins=with_intervals(per_bin(rows)),
        answers=answers,
        layers=layers,
        sensitivity=sensitivity,
        findings=findings,
        comparison=overview(answers, findings, epochs, rows),
        predictions={series: predictions(group, sensitivity[series].model) for series, group in groups.items()},
        recommendations=_stacked(
            [recommendations(group, layers[series], sensitivity[series]) for series, group in groups.items()]
        ),
        thresholds=thresholds,
        notes=[*left_out, *notes_on(rows), *bad_tables],
        parts=sum(path.name != ANCHOR_NAME for path in checked_part_paths(records)),
        left_out=len(left_out),
    )


def build(
    records: Path,
    out: Path,
    every: int,
    say: Callable[[str], None] = lambda _: None,
    *,
    skip_bad: bool = False,
    thresholds: Thresholds = DEFAULTS,
) -> tuple[Analysis, list[str]]:
    """Build the whole report and return its numbers and the paths written, relative to `out`.

    Equal records give equal bytes; what an earlier build wrote and this one does not is deleted.

    Args:
        records: the records folder.
        out: the report folder; not inside `records`.
        every: draw the figure of every so many epochs, and of the last.
        say: told what happens, a phrase at a time.
        skip_bad: leave bad parts out, and say so, instead of refusing.
        thresholds: what readings are made with.

    Raises:
        UsageError: `out` lies inside `records`, or there is no such records folder.
        QBWError: the records cannot be read, or the report cannot be written.
    """
    if out.resolve().is_relative_to(records.resolve()):
        raise UsageError(f"{out}: the report must not lie in the records folder {records}; choose another --out")
    say(f"reading {records}")
    analysis = analyze(records, skip_bad=skip_bad, thresholds=thresholds)
    return analysis, publish(out, report_files(analysis, every, say), our_event_files(out / TENSORBOARD))


def report_files(analysis: Analysis, every: int, say: Callable[[str], None]) -> Iterator[tuple[str, bytes]]:
    """Yield every file of the report: path relative to the report folder, and content."""
    folders = folder_names(analysis.epochs["series"])
    for series, folder in folders.items():
        say(f"drawing {series}")
        rows = analysis.rows[analysis.rows["series"] == series]
        images: dict[str, dict[int, bytes]] = {}
        for tag, epoch, stem, figure in figures_of(analysis, series, every):
            caution_left_out(figure, analysis.left_out)
            png = images.setdefault(tag, {})[epoch] = png_bytes(figure)
            yield f"{FIGURES}/{folder}/{stem}.png", png
            yield f"{FIGURES}/{folder}/{stem}.svg", svg_bytes(figure)
        times = wall_times(rows)
        events = event_file(_numbers(analysis, series), images, times, settings_of(rows))
        yield f"{TENSORBOARD}/{folder}/{event_file_name(events, times)}", events
    tables = all_tables(analysis)
    for name, table in tables.items():
        yield f"{name}.csv", csv_bytes(table)
    yield "statistics.json", json_text(analysis).encode()
    say("writing the page")
    told = {answers.series: analysis.sentences(answers.series) for answers in analysis.answers}
    yield (
        PAGE,
        page_bytes(analysis.rows, analysis.answers, told, analysis.sensitivity, tables, analysis.notes, analysis.parts),
    )


def _numbers(analysis: Analysis, series: str) -> pd.DataFrame:
    """Return a line per epoch of a series: its statistics, and what they answer."""
    keys = ["series", "epoch", "configs"]
    numbers = analysis.epochs.merge(analysis.over_epochs, on=keys, validate="one_to_one")
    return numbers[numbers["series"] == series]


def _layers_of(records: Path, groups: Mapping[str, pd.DataFrame]) -> tuple[dict[str, Layers | None], list[str]]:
    """Return each series' layer table, and a sentence for each that cannot be read."""
    tables: dict[str, Layers | None] = {}
    notes = []
    for series, rows in groups.items():
        last = of_one_network(rows[rows["epoch"] == rows["epoch"].max()])
        try:
            tables[series] = read_layers(records, str(last["model_id"].iloc[0]))
        except QBWError as error:
            tables[series] = None
            notes.append(f"{series}: layers are numbered, not named: {error.format_message()}")
    return tables, notes


def _has_effects(table: pd.DataFrame) -> bool:
    return bool(((table["metric"] == "accuracy") & (table["option"] < table["against"])).any())


def all_tables(analysis: Analysis) -> dict[str, pd.DataFrame]:
    """Return every table of the report by its name; one that has no line has its columns."""
    series = {str(name): rows for name, rows in analysis.rows.groupby("series")}
    found = analysis.sensitivity
    return {
        "statistics": analysis.epochs,
        "bins": analysis.bins,
        "answers": analysis.findings,
        "answers_over_epochs": analysis.over_epochs,
        "comparison": analysis.comparison,
        "pairs": all_pairs(analysis.rows),
        "sensitivity": _stacked([found[name].table for name in series]),
        "interactions": _stacked([found[name].interactions for name in series]),
        "front": _stacked([front(rows) for rows in series.values()]),
        "predictions": _stacked([analysis.predictions[name] for name in series]),
        "recommendations": analysis.recommendations,
        "provenance": provenance(analysis.rows),
    }


def _stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return tables of equal columns as one. Empty ones are left out: their columns have no type to agree on."""
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else tables[0]


def figures_of(analysis: Analysis, series: str, every: int) -> Iterator[tuple[str, int, str, Figure]]:
    """Yield every figure of a series: its tag in TensorBoard, its epoch (0-based), its file's name, and itself."""
    rows = analysis.rows[analysis.rows["series"] == series]
    last = int(rows["epoch"].max())
    for epoch, figure in bitwidth_figures(rows, every, analysis.thresholds):
        yield IMAGE_TAG, epoch, f"bitwidth_vs_accuracy_epoch_{epoch + 1:03d}", figure
    for metric, figure in metric_figures(analysis.epochs[analysis.epochs["series"] == series]):
        yield OVER_EPOCHS_TAG.format(metric), last, f"{metric}_over_epochs", figure
    effects = analysis.sensitivity[series].table
    if _has_effects(effects):
        epoch = int(effects["epoch"].iloc[0])
        yield (
            SENSITIVITY_TAG,
            epoch,
            "sensitivity",
            plot_sensitivity(effects, f"{series}: where bits matter, epoch {epoch + 1}"),
        )


def bitwidth_figures(rows: pd.DataFrame, every: int, thresholds: Thresholds = DEFAULTS) -> Iterator[tuple[int, Figure]]:
    """Yield epoch (0-based) and figure of one series, for each epoch that gets one."""
    for epoch in figure_epochs(sorted(rows["epoch"].unique().tolist()), every):
        of_epoch = rows[rows["epoch"] == epoch]
        title = f"{of_epoch['series'].iloc[0]}: bitwidth and accuracy"
        drawn, _ = typical_rows(of_epoch)
        trend = trend_in_words(find_trend(drawn, strata_of(drawn, "avg_bitwidth"), thresholds))
        yield epoch, plot_bitwidth_vs_accuracy(of_epoch["avg_bitwidth"], of_epoch["accuracy"], epoch, title, trend)


def metric_figures(statistics: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Yield metric and figure over the epochs of one series, for each metric that has a value in any epoch."""
    for metric in METRICS:
        if statistics[f"{metric}_mean"].notna().any():
            title = f"{statistics['series'].iloc[0]}: {metric} over epochs"
            yield metric, plot_metric_over_epochs(statistics, metric, title)


def figure_epochs(epochs: Sequence[int], every: int) -> list[int]:
    """Return the epochs (0-based, sorted) that get a figure: every so many as people count them, and the last.

    >>> figure_epochs([0, 1, 2, 3, 4, 5, 6], every=5)
    [4, 6]
    """
    return [epoch for epoch in epochs if (epoch + 1) % every == 0 or epoch == epochs[-1]]


def csv_bytes(frame: pd.DataFrame) -> bytes:
    """Return a CSV in which every float reads back as the same float; an empty field is a value that does not exist."""
    return frame.to_csv(index=False, lineterminator="\n").encode()


def json_text(analysis: Analysis) -> str:
    """Return statistics, answers and notes as strict JSON; null is a value that does not exist. Epochs are 0-based."""
    document = {
        "series": [
            {
                **_identity(analysis.epochs, answers.series),
                "answers": {
                    **asdict(answers),
                    "findings": _records(analysis.findings, answers.series, ["series", "epoch"]),
                    "sentences": analysis.sentences(answers.series),
                },
                "epochs": _records(analysis.epochs, answers.series),
                "bins": _records(analysis.bins, answers.series),
            }
            for answers in analysis.answers
        ],
        "comparison": analysis.comparison.to_dict("records"),
        "notes": analysis.notes,
    }
    return json.dumps(_without_nan(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _identity(statistics: pd.DataFrame, series: str) -> dict[Hashable, Any]:
    return statistics.loc[statistics["series"] == series, SERIES_KEYS].iloc[0].to_dict()


def _records(
    statistics: pd.DataFrame, series: str, keys: Sequence[str] = tuple(SERIES_KEYS)
) -> list[dict[Hashable, Any]]:
    return statistics[statistics["series"] == series].drop(columns=list(keys)).to_dict("records")


def _without_nan(value: Any) -> Any:
    """Return nested dicts, lists and numbers with None for every NaN and infinity: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
