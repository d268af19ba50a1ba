"""Rows and statistics -> matplotlib figures, returned, not saved (`qbw_report.style` renders them)."""

import re
import textwrap

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from qbw_report.bins import add_bins
from qbw_report.correlation import pearson
from qbw_report.insight.trend import find_trend, trend_in_words
from qbw_report.statistics import METRICS, drawable
from qbw_report.style import BOX_EDGE, FAINT_INK, MEAN, POINTS, RANGE, new_figure, theme
from schemas.columns import by_name
from schemas.records import RECORD_COLUMNS

_COLUMNS = by_name(RECORD_COLUMNS)

RASTER_FROM = 2000
"""From so many points on, an SVG holds the cloud as a picture: as shapes it would be megabytes."""

MARKERS_UP_TO = 40
"""With more epochs the markers of a line would touch."""

_MOST_DIGITS = 1e9
"""From it on a number is told by its first digits and its power of ten: one of 300 digits leaves no room for axes."""

_TITLE_CHARACTERS = 66  # what fits over the axes on one line


def plot_bitwidth_vs_accuracy(
    bitwidths: ArrayLike, accuracies: ArrayLike, epoch: int, title: str, answer: str | None = None
) -> Figure:
    """Draw accuracy against average bitwidth, one point a configuration.

    Several bitwidth bins (average bitwidth rounded to one decimal): a red line through the mean of each bin, its
    standard deviation as error bars, its extremes as thin vertical lines. One bin: the cluster, and a horizontal line
    at its mean with a band of one standard deviation. Standard deviations are of the population (ddof 0).

    Args:
        bitwidths: average bitwidth of each configuration, in bits.
        accuracies: accuracy of each configuration, as shares from 0 to 1, in the same order.
        epoch: 0-based; the title shows `epoch + 1`.
        title: what the figure is about; plain text.
        answer: what to say under the title; whether accuracy follows bitwidth in these configurations, if None.

    Raises:
        ValueError: no configuration, two lengths, a value that is not finite, an accuracy outside 0 to 1.
    """
    rows = _checked_rows(bitwidths, accuracies)
    x, y = rows["avg_bitwidth"], rows["accuracy"]
    bins = rows.groupby("bitwidth_bin")["accuracy"].agg(["size", "mean", "min", "max"]).reset_index()
    bins["std"] = rows.groupby("bitwidth_bin")["accuracy"].std(ddof=0).to_numpy()

    with theme():
        figure, axes, aside = new_figure()
        # Large and see-through, under a thin mean line without markers: neither hides the other.
        sns.scatterplot(
            x=x,
            y=y,
            ax=axes,
            color=POINTS,
            alpha=0.6,
            s=48,
            linewidth=0.6,
            edgecolor="white",
            zorder=3,
            label="One configuration",
            legend=False,
            rasterized=len(rows) >= RASTER_FROM,
        )
        if len(bins) == 1:
            _draw_single_bin(axes, bins.iloc[0])
        else:
            _draw_bins(axes, bins)
        _set_limits(axes, "accuracy", np.concatenate([y, bins["mean"] - bins["std"], bins["mean"] + bins["std"]]))
        answer = trend_in_words(find_trend(rows)) if answer is None else answer
        _label(axes, "avg_bitwidth", "accuracy", f"{title}, epoch {epoch + 1}", answer)
        _explain(axes, aside, _overall(x.to_numpy(), y.to_numpy()))
    return figure


def plot_metric_over_epochs(statistics: pd.DataFrame, metric: str, title: str) -> Figure:
    """Draw the mean of a metric over epochs, with a band of one standard deviation and thin min-max lines.

    Epochs are counted from 1. A single epoch gets an error bar in place of the band.

    Args:
        statistics: rows of one series from `qbw_report.statistics.per_epoch`.
        metric: `accuracy`, `loss` or `bitwidth`.
        title: what the figure is about; plain text.

    Raises:
        ValueError: an unknown metric, or no epoch with a value of it.
    """
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, found {metric!r}")
    known = statistics[statistics[f"{metric}_mean"].notna()]
    if known.empty:
        raise ValueError(f"statistics: expected at least one epoch with a value of {metric}, found none")
    epochs = known["epoch"].to_numpy() + 1
    mean, std, low, high = drawable(known, metric)

    with theme():
        figure, axes, aside = new_figure()
        axes.vlines(epochs, low, high, color=RANGE, linewidth=1.0, zorder=2, label="Min to max")
        if len(epochs) == 1:
            axes.errorbar(epochs, mean, std, fmt="none", ecolor=MEAN, capsize=4, zorder=4, label="± 1 std")
        else:
            axes.fill_between(epochs, mean - std, mean + std, color=MEAN, alpha=0.18, linewidth=0, label="± 1 std")
        sns.lineplot(
            x=epochs,
            y=mean,
            ax=axes,
            color=MEAN,
            linewidth=2,
            marker="o" if len(epochs) <= MARKERS_UP_TO else None,
            markersize=6,
            zorder=5,
            label="Mean of configurations",
            legend=False,
            errorbar=None,
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(epochs[0] - 0.6, epochs[-1] + 0.6)  # narrow enough that no tick says epoch 0
        _set_limits(axes, metric, np.concatenate([low, high, mean - std, mean + std]))
        _label(axes, "epoch", METRICS[metric], title)
        _explain(axes, aside, _last_epoch(known.iloc[-1], metric))
    return figure


def caution_left_out(figure: Figure, parts: int) -> None:
    """Say in a figure how many damaged parts it was drawn without; it may be looked at far from the report's words."""
    if parts:
        words = "1 damaged part of the records is" if parts == 1 else f"{parts} damaged parts of the records are"
        # supxlabel, since the layout makes room for it.
        figure.supxlabel(f"Incomplete: {words} left out", x=0.01, ha="left", color=MEAN, fontsize=10.5)


def _checked_rows(bitwidths: ArrayLike, accuracies: ArrayLike) -> pd.DataFrame:
    x, y = np.asarray(bitwidths, dtype=float), np.asarray(accuracies, dtype=float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"bitwidths and accuracies: expected two equally long flat sequences, found shapes {x.shape} and {y.shape}"
        )
    if not len(x):
        raise ValueError("bitwidths and accuracies: expected at least one configuration, found none")
    for name, values in (("bitwidths", x), ("accuracies", y)):
        if not np.isfinite(values).all():
            at = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"{name}: expected finite numbers, found {values[at]} at position {at}")
    if y.min() < 0 or y.max() > 1:
        worst = y.max() if y.max() > 1 else y.min()
        raise ValueError(f"accuracies: expected shares from 0 to 1, found {worst:g}; divide percentages by 100")
    return add_bins(pd.DataFrame({"avg_bitwidth": x, "accuracy": y}))


def _draw_bins(axes: Axes, bins: pd.DataFrame) -> None:
    sns.lineplot(
        x=bins["bitwidth_bin"],
        y=bins["mean"],
        ax=axes,
        color=MEAN,
        linewidth=1.8,
        zorder=5,
        label="Mean of bin (0.1 bits wide)",
        legend=False,
        errorbar=None,
    )
    # A bin of one configuration has neither spread nor range; drawing them would only add clutter.
    spread = bins[bins["size"] > 1]
    if spread.empty:
        return
    axes.errorbar(
        spread["bitwidth_bin"],
        spread["mean"],
        spread["std"],
        fmt="none",
        ecolor=MEAN,
        elinewidth=1.3,
        capsize=3.5,
        zorder=4,
        label="± 1 std of bin",
    )
    axes.vlines(
        spread["bitwidth_bin"],
        spread["min"],
        spread["max"],
        color=RANGE,
        linewidth=1.0,
        zorder=2,
        label="Min to max of bin",
    )


def _draw_single_bin(axes: Axes, only: pd.Series) -> None:
    center = float(only["bitwidth_bin"])
    axes.axhline(only["mean"], color=MEAN, linewidth=1.8, zorder=2.5, label="Mean")
    if only["size"] > 1:
        low, high = only["mean"] - only["std"], only["mean"] + only["std"]
        axes.axhspan(low, high, color=MEAN, alpha=0.15, linewidth=0, zorder=1, label="± 1 std")
        axes.vlines([center], only["min"], only["max"], color=RANGE, linewidth=1.0, zorder=2, label="Min to max")
    axes.set_xlim(center - 1, center + 1)
    axes.set_xticks([center])


def _set_limits(axes: Axes, metric: str, values: np.ndarray) -> None:
    """Show all `values` with some air around them, and at least a hundredth of accuracy, so that noise looks small."""
    low, high = float(values.min()), float(values.max())
    least = 0.02 if metric == "accuracy" else max(0.02 * abs(high), 1e-6)
    air = 0.06 * max(high - low, least) + max(0.0, least - (high - low)) / 2
    low, high = low - air, high + air
    if metric == "accuracy":
        # There is no accuracy beyond 0 and 1; the sliver keeps points that lie exactly there whole.
        sliver = 0.03 * (high - low)
        low, high = max(low, -sliver), min(high, 1 + sliver)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))


def _label(axes: Axes, x: str, y: str, title: str, answer: str = "") -> None:
    axes.set_xlabel(_COLUMNS[x].axis_label)
    axes.set_ylabel(_COLUMNS[y].axis_label)
    # parse_math: a name with two dollar signs is a name, not a formula.
    axes.set_title(wrap_title(title), parse_math=False, pad=28 if answer else 10)
    if answer:
        axes.annotate(
            answer[0].upper() + answer[1:],
            xy=(0, 1),
            xycoords="axes fraction",
            xytext=(0, 10),
            textcoords="offset points",
            color=FAINT_INK,
            fontsize=10.5,
            in_layout=False,  # else the axes are narrowed until this line fits over them; the title's pad is its room
        )


def wrap_title(title: str) -> str:
    """Return `title` in lines that fit over the axes, broken at spaces and, in long names, after underscores."""
    wrapper = textwrap.TextWrapper(_TITLE_CHARACTERS)
    wrapper.wordsep_re = re.compile(r"(\s+|[^\s_]*_)")
    return "\n".join(wrapper.wrap(title))


def _explain(axes: Axes, aside: Axes, statistics: str) -> None:
    """Put the legend of `axes` at the top of the column beside it, and the statistics box at its bottom."""
    handles, labels = axes.get_legend_handles_labels()
    aside.legend(handles, labels, loc="upper left", bbox_to_anchor=(0, 1), borderaxespad=0, borderpad=0)
    aside.text(
        0.03,
        0.03,
        statistics,
        transform=aside.transAxes,
        va="bottom",
        ha="left",
        fontsize=9.5,
        linespacing=1.5,
        color=FAINT_INK,
        bbox={"boxstyle": "round,pad=0.6", "facecolor": "white", "edgecolor": BOX_EDGE},
    )


def _overall(x: np.ndarray, y: np.ndarray) -> str:
    correlation = pearson(x, y)
    lines = [
        f"{len(x)} configuration{'' if len(x) == 1 else 's'}, mean ± std",
        f"Accuracy: {y.mean():.4f} ± {y.std():.4f}",
        f"Bitwidth: {x.mean():.2f} ± {x.std():.2f} bits",
    ]
    return "\n".join([*lines, f"Correlation: {correlation:.2f}"] if np.isfinite(correlation) else lines)


def _last_epoch(last: pd.Series, metric: str) -> str:
    digits = 2 if metric == "bitwidth" else 4
    mean, std, low, high = (_told(last[f"{metric}_{part}"], digits) for part in ("mean", "std", "min", "max"))
    return f"Epoch {int(last['epoch']) + 1}, mean ± std\n{mean} ± {std}\nMin {low}, max {high}"


def _told(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if abs(value) < _MOST_DIGITS else f"{value:.{digits}e}"
