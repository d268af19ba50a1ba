"""The story of a report: frame, statistics, answers, figures, then events and tables; written whole."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from qbw_report.bins import add_bins
from qbw_report.compare import all_pairs
from qbw_report.dashboards import settings_of
from qbw_report.drawing import drawings_of, fewer_figures, figure_epochs, rendered
from qbw_report.events import event_file, event_file_name, our_event_files, wall_times
from qbw_report.frame import look
from qbw_report.frontier import front, possible, predictions, predictions_in_words
from qbw_report.insight.answers import Answers, answer, sentences
from qbw_report.insight.over_epochs import answers_over_epochs
from qbw_report.insight.thresholds import DEFAULTS, Thresholds
from qbw_report.intervals import with_intervals
from qbw_report.layers import Layers, read_layers
from qbw_report.levels import recommendations
from qbw_report.overview import findings_table, overview
from qbw_report.page.provenance import provenance
from qbw_report.page.story import page_bytes
from qbw_report.publish import publish
from qbw_report.sensitivity import Sensitivity, find_sensitivity, of_one_network
from qbw_report.series import folder_names, notes_on
from qbw_report.statistics import SERIES_KEYS, bin_statistics, epoch_statistics, join_bins
from qbw_report.strict_json import strict_json
from qbw_report.workers import Each, each_in_order
from schemas.errors import QBWError, UsageError
from schemas.parts import ANCHOR_NAME

FIGURES = "figures"
"""Folder of the figures in the report folder, with a folder per series."""

PAGE = "index.html"
"""The page, in the report folder."""

TENSORBOARD = "tensorboard"
"""Folder of the event files in the report folder: what `tensorboard --logdir` is given."""

MOST_BINS = 100_000
"""With more, `bins.csv` would be tens of megabytes of bins of one configuration each."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that is shown, as numbers.

    Attributes:
        rows: the records that are looked at (`qbw_report.frame`), with `series` and `bitwidth_bin`.
        epochs: `qbw_report.statistics.epoch_statistics` of all records.
        bins: `qbw_report.statistics.bin_statistics` of all records, with intervals; of very many, of the epochs of
            `rows`.
        times: series -> epoch -> when its last row was evaluated, in seconds since 1970.
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
    times: Mapping[str, Mapping[int, float]]
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


def analyze(
    records: Path, *, skip_bad: bool = False, thresholds: Thresholds = DEFAULTS, each: Each = each_in_order
) -> Analysis:
    """Return the statistics and answers of a records folder.

    Args:
        records: the records folder.
        skip_bad: leave bad parts out, and say so in the notes, instead of refusing.
        thresholds: what readings are made with.
        each: who reads the parts.

    Raises:
        QBWError: as `qbw_report.frame.read_records`.
    """
    found, looked_at, some = look(records, skip_bad=skip_bad, each=each)
    rows, cells = add_bins(looked_at), found.cells
    binned = join_bins(cells)
    epochs = epoch_statistics(binned)
    shown, few = _shown_bins(binned, rows)
    groups = {str(series): group for series, group in rows.groupby("series")}
    layers, bad_tables = _layers_of(records, groups)
    answers = [answer(group, thresholds) for group in groups.values()]
    sensitivity = {series: find_sensitivity(group, layers[series]) for series, group in groups.items()}
    findings = findings_table(answers, {series: found.findings for series, found in sensitivity.items()})
    return Analysis(
        rows=rows,
        epochs=epochs,
        bins=with_intervals(bin_statistics(shown)),
        times={str(series): wall_times(lines) for series, lines in cells.groupby("series")},
        answers=answers,
        layers=layers,
        sensitivity=sensitivity,
        findings=findings,
        comparison=overview(answers, findings, epochs, cells),
        predictions={series: predictions(group, sensitivity[series].model) for series, group in groups.items()},
        recommendations=_stacked(
            [recommendations(group, layers[series], sensitivity[series]) for series, group in groups.items()]
        ),
        thresholds=thresholds,
        notes=[*found.left_out, *found.notes, *some, *few, *notes_on(cells), *bad_tables],
        parts=sum(path.name != ANCHOR_NAME for path in found.parts) + len(found.left_out),
        left_out=len(found.left_out),
    )


def build(
    records: Path,
    out: Path,
    every: int,
    say: Callable[[str], None] = lambda _: None,
    *,
    skip_bad: bool = False,
    thresholds: Thresholds = DEFAULTS,
    each: Each = each_in_order,
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
        each: who reads the parts.

    Raises:
        UsageError: `out` lies inside `records`, or there is no such records folder.
        QBWError: the records cannot be read, or the report cannot be written.
    """
    if out.resolve().is_relative_to(records.resolve()):
        raise UsageError(f"{out}: the report must not lie in the records folder {records}; choose another --out")
    say(f"reading {records}")
    analysis = analyze(records, skip_bad=skip_bad, thresholds=thresholds, each=each)
    analysis = replace(analysis, notes=[*analysis.notes, *figure_notes(analysis, every)])
    return analysis, publish(out, report_files(analysis, every, say), our_event_files(out / TENSORBOARD))


def report_files(analysis: Analysis, every: int, say: Callable[[str], None]) -> Iterator[tuple[str, bytes]]:
    """Yield every file of the report: path relative to the report folder, and content."""
    folders = folder_names(analysis.epochs["series"])
    shown = _epochs_with_figures(analysis, every)
    drawings = {
        series: drawings_of(
            series,
            analysis.rows[analysis.rows["series"] == series],
            analysis.epochs[analysis.epochs["series"] == series],
            analysis.sensitivity[series].table,
            shown[series],
            analysis.thresholds,
        )
        for series in folders
    }
    pictures = rendered([drawing for each in drawings.values() for drawing in each], analysis.left_out)
    for series, folder in folders.items():
        say(f"drawing {series}")
        images: dict[str, dict[int, bytes]] = {}
        for drawing in drawings[series]:
            png, svg = next(pictures)
            yield f"{FIGURES}/{folder}/{drawing.name}.png", png
            yield f"{FIGURES}/{folder}/{drawing.name}.svg", svg
            images.setdefault(drawing.tag, {})[drawing.epoch] = png
        times = analysis.times[series]
        settings = settings_of(analysis.rows[analysis.rows["series"] == series])
        events = event_file(_numbers(analysis, series), images, times, settings)
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
    answers = analysis.over_epochs.drop(columns="configs")  # which are those that were looked at
    numbers = analysis.epochs.merge(answers, on=["series", "epoch"], how="left", validate="one_to_one")
    return numbers[numbers["series"] == series]


def _shown_bins(binned: pd.DataFrame, rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the bins that are described, and a sentence if those are not all."""
    if len(binned) <= MOST_BINS:
        return binned, []
    note = (
        f"{len(binned):,} bins: bins.csv has those of the epochs that pictures look at; statistics.csv has all epochs"
    )
    epochs = ["series", "epoch"]
    return binned.merge(rows[epochs].drop_duplicates(), on=epochs), [note]


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


def _epochs_with_figures(analysis: Analysis, every: int) -> dict[str, list[int]]:
    """Return for each series the epochs (0-based) that get a figure of their own."""
    epochs = {
        str(series): sorted(group.unique().tolist()) for series, group in analysis.rows.groupby("series")["epoch"]
    }
    step = fewer_figures(list(epochs.values()), every)
    return {series: figure_epochs(numbers, step) for series, numbers in epochs.items()}


def figure_notes(analysis: Analysis, every: int) -> list[str]:
    """Return a sentence if fewer epochs get a figure than was asked for."""
    asked = {
        series: figure_epochs(sorted(group.unique().tolist()), every)
        for series, group in analysis.rows.groupby("series")["epoch"]
    }
    wanted, given = (sum(map(len, each.values())) for each in (asked, _epochs_with_figures(analysis, every)))
    if wanted == given:
        return []
    return [f"{wanted:,} epochs were to get a figure; {given:,} have one, at equal steps and the last of each series"]


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
        "predictions": possible(_stacked([analysis.predictions[name] for name in series])),
        "recommendations": analysis.recommendations,
        "provenance": provenance(analysis.rows),
    }


def _stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return tables of equal columns as one. Empty ones are left out: their columns have no type to agree on."""
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else tables[0]


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
    return strict_json(document)


def _identity(statistics: pd.DataFrame, series: str) -> dict[Hashable, Any]:
    return statistics.loc[statistics["series"] == series, SERIES_KEYS].iloc[0].to_dict()


def _records(
    statistics: pd.DataFrame, series: str, keys: Sequence[str] = tuple(SERIES_KEYS)
) -> list[dict[Hashable, Any]]:
    return statistics[statistics["series"] == series].drop(columns=list(keys)).to_dict("records")
