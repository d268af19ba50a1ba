"""The story of a report: frame, statistics, answers, figures, then events and tables; written whole."""

import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from qbw_report.bins import add_bins
from qbw_report.compare import all_pairs
from qbw_report.events import event_file, event_file_name, our_event_files, wall_times
from qbw_report.figures import caution_left_out, plot_bitwidth_vs_accuracy, plot_metric_over_epochs
from qbw_report.frame import look
from qbw_report.frontier import front, predictions
from qbw_report.insight.answers import Answers, answer, sentences
from qbw_report.insight.curve import TOLERANCE
from qbw_report.insight.trend import find_trend, trend_in_words
from qbw_report.layers import Layers, read_layers
from qbw_report.overview import findings_table, overview
from qbw_report.publish import publish
from qbw_report.selection import strata_of, typical_rows
from qbw_report.sensitivity import Sensitivity, find_sensitivity, of_one_network
from qbw_report.sensitivity_figure import plot_sensitivity
from qbw_report.series import folder_names, notes_on
from qbw_report.statistics import METRICS, SERIES_KEYS, bin_statistics, epoch_statistics, join_bins
from qbw_report.style import png_bytes, svg_bytes
from schemas.errors import QBWError, UsageError

FIGURES = "figures"
"""Folder of the figures in the report folder, with a folder per series."""

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
        bins: `qbw_report.statistics.bin_statistics` of all records; of very many, of the epochs of `rows`.
        times: series -> epoch -> when its last row was evaluated, in seconds since 1970.
        answers: one per series, in the order of their names.
        layers: each series' layer table; None where there is none beside the records.
        sensitivity: each series' effects of layers.
        findings: a line per answer: `qbw_report.overview.findings_table`.
        comparison: a line per series: `qbw_report.overview.overview`.
        notes: sentences about what is odd in the records.
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
    notes: list[str]
    left_out: int


def analyze(records: Path, *, skip_bad: bool = False, tolerance: float = TOLERANCE) -> Analysis:
    """Return the statistics and answers of a records folder.

    Args:
        records: the records folder.
        skip_bad: leave bad parts out, and say so in the notes, instead of refusing.
        tolerance: the loss of accuracy that is acceptable, as a share.

    Raises:
        QBWError: as `qbw_report.frame.read_records`.
    """
    found, looked_at, some = look(records, skip_bad=skip_bad)
    rows, cells = add_bins(looked_at), found.cells
    binned = join_bins(cells)
    epochs = epoch_statistics(binned)
    shown, few = _shown_bins(binned, rows)
    groups = {str(series): group for series, group in rows.groupby("series")}
    layers, bad_tables = _layers_of(records, groups)
    answers = [answer(group, tolerance) for group in groups.values()]
    sensitivity = {series: find_sensitivity(group, layers[series]) for series, group in groups.items()}
    findings = findings_table(answers, {series: found.findings for series, found in sensitivity.items()})
    return Analysis(
        rows=rows,
        epochs=epochs,
        bins=bin_statistics(shown),
        times={str(series): wall_times(lines) for series, lines in cells.groupby("series")},
        answers=answers,
        layers=layers,
        sensitivity=sensitivity,
        findings=findings,
        comparison=overview(answers, findings, epochs, cells),
        notes=[*found.left_out, *found.notes, *some, *few, *notes_on(cells), *bad_tables],
        left_out=len(found.left_out),
    )


def build(
    records: Path,
    out: Path,
    every: int,
    say: Callable[[str], None] = lambda _: None,
    *,
    skip_bad: bool = False,
    tolerance: float = TOLERANCE,
) -> tuple[Analysis, list[str]]:
    """Build the whole report and return its numbers and the paths written, relative to `out`.

    Equal records give equal bytes; what an earlier build wrote and this one does not is deleted.

    Args:
        records: the records folder.
        out: the report folder; not inside `records`.
        every: draw the figure of every so many epochs, and of the last.
        say: told what happens, a phrase at a time.
        skip_bad: leave bad parts out, and say so, instead of refusing.
        tolerance: the loss of accuracy that is acceptable, as a share.

    Raises:
        UsageError: `out` lies inside `records`, or there is no such records folder.
        QBWError: the records cannot be read, or the report cannot be written.
    """
    if out.resolve().is_relative_to(records.resolve()):
        raise UsageError(f"{out}: the report must not lie in the records folder {records}; choose another --out")
    say(f"reading {records}")
    analysis = analyze(records, skip_bad=skip_bad, tolerance=tolerance)
    return analysis, publish(out, report_files(analysis, every, say), our_event_files(out / TENSORBOARD))


def report_files(analysis: Analysis, every: int, say: Callable[[str], None]) -> Iterator[tuple[str, bytes]]:
    """Yield every file of the report: path relative to the report folder, and content."""
    folders = folder_names(analysis.epochs["series"])
    for series, folder in folders.items():
        say(f"drawing {series}")
        rows = analysis.rows[analysis.rows["series"] == series]
        statistics = analysis.epochs[analysis.epochs["series"] == series]
        images: dict[int, bytes] = {}
        for epoch, figure in bitwidth_figures(rows, every):
            caution_left_out(figure, analysis.left_out)
            stem = f"{FIGURES}/{folder}/bitwidth_vs_accuracy_epoch_{epoch + 1:03d}"
            images[epoch] = png_bytes(figure)
            yield f"{stem}.png", images[epoch]
            yield f"{stem}.svg", svg_bytes(figure)
        for metric, figure in metric_figures(statistics):
            caution_left_out(figure, analysis.left_out)
            stem = f"{FIGURES}/{folder}/{metric}_over_epochs"
            yield f"{stem}.png", png_bytes(figure)
            yield f"{stem}.svg", svg_bytes(figure)
        effects = analysis.sensitivity[series].table
        if _has_effects(effects):
            figure = plot_sensitivity(effects, f"{series}: where bits matter, epoch {effects['epoch'].iloc[0] + 1}")
            caution_left_out(figure, analysis.left_out)
            yield f"{FIGURES}/{folder}/sensitivity.png", png_bytes(figure)
            yield f"{FIGURES}/{folder}/sensitivity.svg", svg_bytes(figure)
        times = analysis.times[series]
        events = event_file(statistics, images, times)
        yield f"{TENSORBOARD}/{folder}/{event_file_name(events, times)}", events
    yield "statistics.csv", csv_bytes(analysis.epochs)
    yield "bins.csv", csv_bytes(analysis.bins)
    for name, table in answer_tables(analysis).items():
        yield f"{name}.csv", csv_bytes(table)
    yield "statistics.json", json_text(analysis).encode()


def _shown_bins(binned: pd.DataFrame, rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the bins that are described, and a sentence if those are not all."""
    if len(binned) <= MOST_BINS:
        return binned, []
    note = f"{len(binned):,} bins: bins.csv has those of the epochs that pictures look at; statistics.csv has all epochs"
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


def _has_effects(table: pd.DataFrame) -> bool:
    return bool(((table["metric"] == "accuracy") & (table["option"] < table["against"])).any())


def answer_tables(analysis: Analysis) -> dict[str, pd.DataFrame]:
    """Return every table of answers by its name; one that has no line has its columns."""
    series = {str(name): rows for name, rows in analysis.rows.groupby("series")}
    found = analysis.sensitivity
    return {
        "answers": analysis.findings,
        "comparison": analysis.comparison,
        "pairs": all_pairs(analysis.rows),
        "sensitivity": _stacked([found[name].table for name in series]),
        "interactions": _stacked([found[name].interactions for name in series]),
        "front": _stacked([front(rows) for rows in series.values()]),
        "predictions": _stacked([predictions(rows, found[name].model) for name, rows in series.items()]),
    }


def _stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return tables of equal columns as one. Empty ones are left out: their columns have no type to agree on."""
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else tables[0]


def bitwidth_figures(rows: pd.DataFrame, every: int) -> Iterator[tuple[int, Figure]]:
    """Yield epoch (0-based) and figure of one series, for each epoch that gets one."""
    for epoch in figure_epochs(sorted(rows["epoch"].unique().tolist()), every):
        of_epoch = rows[rows["epoch"] == epoch]
        title = f"{of_epoch['series'].iloc[0]}: bitwidth and accuracy"
        drawn, _ = typical_rows(of_epoch)
        trend = trend_in_words(find_trend(drawn, strata_of(drawn, "avg_bitwidth")))
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
                    "sentences": sentences(answers),
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
