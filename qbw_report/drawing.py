"""Which figures there are, as descriptions that can be drawn anywhere: by this process or by several at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from qbw_report.events import IMAGE_TAG, OVER_EPOCHS_TAG, SENSITIVITY_TAG
from qbw_report.figures import caution_left_out, plot_bitwidth_vs_accuracy, plot_metric_over_epochs
from qbw_report.insight.thresholds import DEFAULTS, Thresholds
from qbw_report.insight.trend import find_trend, trend_in_words
from qbw_report.selection import strata_of, typical_rows
from qbw_report.sensitivity_figure import plot_sensitivity
from qbw_report.statistics import METRICS
from qbw_report.style import png_bytes, svg_bytes
from qbw_report.workers import each_in_order

MOST_FIGURES = 200
"""Of bitwidth against accuracy, in all; with more epochs, fewer of them get one."""

_LOOKED_AT = ["avg_bitwidth", "accuracy", "bitwidth_bin", "sampler", "target", "target_cost"]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure that is to be drawn.

    Attributes:
        name: of its files, without what they end in.
        tag: in TensorBoard.
        epoch: which one it shows, 0-based; the last one for a figure over epochs.
        plot: what draws it.
        arguments: of `plot`.
    """

    name: str
    tag: str
    epoch: int
    plot: Callable[..., Figure]
    arguments: tuple[Any, ...]


def drawings_of(
    series: str,
    rows: pd.DataFrame,
    statistics: pd.DataFrame,
    effects: pd.DataFrame,
    epochs: Sequence[int],
    thresholds: Thresholds = DEFAULTS,
) -> list[Drawing]:
    """Return the figures of one series.

    Args:
        series: its name.
        rows: of it, with `bitwidth_bin`.
        statistics: of it: `qbw_report.statistics.epoch_statistics`.
        effects: `qbw_report.sensitivity.find_sensitivity` of it, the table.
        epochs: 0-based: those that get a figure of their own.
        thresholds: what readings are made with.
    """
    drawings = []
    for epoch, group in rows[rows["epoch"].isin(epochs)].groupby("epoch"):
        number = int(str(epoch))
        of_epoch = (group[_LOOKED_AT], number, f"{series}: bitwidth and accuracy", thresholds)
        name = f"bitwidth_vs_accuracy_epoch_{number + 1:03d}"
        drawings.append(Drawing(name=name, tag=IMAGE_TAG, epoch=number, plot=plot_epoch, arguments=of_epoch))
    last = int(rows["epoch"].max())
    for metric in METRICS:
        if statistics[f"{metric}_mean"].notna().any():
            name, tag = f"{metric}_over_epochs", OVER_EPOCHS_TAG.format(metric)
            over = (statistics, metric, f"{series}: {metric} over epochs")
            drawings.append(Drawing(name=name, tag=tag, epoch=last, plot=plot_metric_over_epochs, arguments=over))
    if ((effects["metric"] == "accuracy") & (effects["option"] < effects["against"])).any():
        number = int(effects["epoch"].iloc[0])
        what = (effects, f"{series}: where bits matter, epoch {number + 1}")
        tag = SENSITIVITY_TAG
        drawings.append(Drawing(name="sensitivity", tag=tag, epoch=number, plot=plot_sensitivity, arguments=what))
    return drawings


def plot_epoch(rows: pd.DataFrame, epoch: int, title: str, thresholds: Thresholds) -> Figure:
    """Draw one epoch of one series; its trend is that of the configurations that nobody picked."""
    drawn, _ = typical_rows(rows)
    trend = trend_in_words(find_trend(drawn, strata_of(drawn, "avg_bitwidth"), thresholds))
    return plot_bitwidth_vs_accuracy(rows["avg_bitwidth"], rows["accuracy"], epoch, title, trend)


def rendered(drawings: Sequence[Drawing], left_out: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield each figure as PNG and SVG; the bytes are the same whoever draws them.

    Args:
        drawings: any number.
        left_out: how many damaged parts they are drawn without.
    """
    yield from each_in_order(partial(_render, left_out), drawings)


def _render(left_out: int, drawing: Drawing) -> tuple[bytes, bytes]:
    figure = drawing.plot(*drawing.arguments)
    caution_left_out(figure, left_out)
    return png_bytes(figure), svg_bytes(figure)


def figure_epochs(epochs: Sequence[int], every: int) -> list[int]:
    """Return the epochs (0-based, sorted) that get a figure: every so many as people count them, and the last.

    >>> figure_epochs([0, 1, 2, 3, 4, 5, 6], every=5)
    [4, 6]
    """
    return [epoch for epoch in epochs if (epoch + 1) % every == 0 or epoch == epochs[-1]]


def fewer_figures(epochs: Sequence[Sequence[int]], every: int, most: int = MOST_FIGURES) -> int:
    """Return the smallest multiple of `every` with which all series together get at most so many figures.

    Each series gets at least the figure of its last epoch.

    >>> fewer_figures([list(range(100))], every=5)
    5
    >>> fewer_figures([list(range(100))], every=1, most=30)
    4
    """
    step = every
    while sum(len(figure_epochs(each, step)) for each in epochs) > max(most, len(epochs)):
        step += every
    return step
