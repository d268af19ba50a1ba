"""The story of a report: frame, statistics, answers, figures, then events and tables; written whole."""

import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from qbw_report.bins import add_bins
from qbw_report.compare import all_pairs
from qbw_report.drawing import drawings_of, fewer_figures, figure_epochs, rendered
from qbw_report.events import event_file, event_file_name, our_event_files, wall_times
from qbw_report.frame import look
from qbw_report.frontier import front, predictions
from qbw_report.insight.answers import Answers, answer, sentences
from qbw_report.insight.curve import TOLERANCE
from qbw_report.layers import Layers, read_layers
from qbw_report.overview import findings_table, overview
from qbw_report.publish import publish
from qbw_report.sensitivity import Sensitivity, find_sensitivity, of_one_network
from qbw_report.series import folder_names, notes_on
from qbw_report.statistics import SERIES_KEYS, bin_statistics, epoch_statistics, join_bins
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
        )
        for series in folders
    }
    pictures = rendered([drawing for each in drawings.values() for drawing in each], analysis.left_out)
    for series, folder in folders.items():
        say(f"drawing {series}")
        images: dict[int, bytes] = {}
        for drawing in drawings[series]:
            png, svg = next(pictures)
            yield f"{FIGURES}/{folder}/{drawing.name}.png", png
            yield f"{FIGURES}/{folder}/{drawing.name}.svg", svg
            if drawing.epoch is not None:
                images[drawing.epoch] = png
        statistics, times = analysis.epochs[analysis.epochs["series"] == series], analysis.times[series]
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
