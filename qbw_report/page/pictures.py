"""Statistics -> pictures as plain geometry, which the template draws; every place is a percentage of its axis.

Percentages, so that a picture fits any screen while its words keep their size: lines and bands are drawn in a stretched
coordinate system, dots and words in an unstretched one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from qbw_report.page.axes import Axis, axis, place
from qbw_report.page.cloud import LEAST_FOR_INTERVAL, accuracy_axis, cost_axis, kinds_of, shown_epochs, spread_evenly
from qbw_report.page.shown import digits, percent
from qbw_report.statistics import METRICS, drawable
from schemas.columns import by_name
from schemas.records import RECORD_COLUMNS

Kind = Literal["line", "band", "rods", "dots", "rule"]

MOST_DOTS = 800
"""A picture that is drawn as shapes holds no more of them; the cloud of accuracy against cost is a canvas."""

_COLUMNS = by_name(RECORD_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Shapes of one meaning.

    Attributes:
        kind: ``line`` through (x, y), ``band`` around (x, y), ``rods`` from (x, y) to (x, z), ``dots`` at (x, y), or a
            ``rule`` from (x, y) down to the axis, its words beside it.
        look: the class that colours them.
        words: of the legend; empty for none.
        places: numbers of each: two, or three for rods.
        titles: of each dot; empty for none.
    """

    kind: Kind
    look: str
    words: str
    places: tuple[tuple[float, ...], ...]
    titles: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture.

    Attributes:
        name: of its kind, such as ``front``.
        title: above it.
        about: what is to be seen, for those who cannot see it.
        x: the horizontal axis.
        y: the vertical axis.
        marks: in the order they are drawn in.
    """

    name: str
    title: str
    about: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]


def cost_picture(rows: pd.DataFrame, bins: pd.DataFrame, answers: pd.Series, title: str) -> Picture:
    """Return accuracy against average bitwidth of one epoch, as it is seen before (or without) any script.

    Args:
        rows: one epoch of one series.
        bins: its lines of bins.csv.
        answers: its line of answers_over_epochs.csv.
        title: above it.
    """
    x, y = cost_axis(rows["avg_bitwidth"].to_numpy(), "avg_bitwidth"), accuracy_axis(rows["accuracy"].to_numpy())
    centers, mean = bins["bitwidth_bin"].to_numpy(), bins["accuracy_mean"].to_numpy()
    wide = bins[bins["configs"] > 1]
    known = bins[bins["configs"] >= LEAST_FOR_INTERVAL]
    # A bar for each bin, not a band: between far bins that have an interval there may be some that have none.
    sure = _rods(x, y, known["bitwidth_bin"], known["accuracy_low"], known["accuracy_high"])
    spread = _rods(
        x,
        y,
        wide["bitwidth_bin"],
        wide["accuracy_mean"] - wide["accuracy_std"],
        wide["accuracy_mean"] + wide["accuracy_std"],
    )
    enough = answers["lowest_bitwidth"], answers["lowest_accuracy"]
    return Picture(
        name="cost",
        title=title,
        about=f"{title}: {len(rows)} configurations, and mean, spread and range of each bin of bitwidth.",
        x=x,
        y=y,
        marks=(
            Mark(kind="rods", look="sure", words="95% interval of the mean", places=sure),
            Mark(
                kind="rods",
                look="range",
                words="Smallest to largest of a bin",
                places=_rods(x, y, wide["bitwidth_bin"], wide["accuracy_min"], wide["accuracy_max"]),
            ),
            Mark(kind="rods", look="mean", words="± 1 standard deviation", places=spread),
            *_dots(spread_evenly(rows, MOST_DOTS), "avg_bitwidth", x, y),
            Mark(kind="line", look="mean", words="Mean of bins 0.1 bits wide", places=_along(x, y, centers, mean)),
            Mark(kind="rule", look="enough", words="Enough", places=_along(x, y, *([value] for value in enough))),
        ),
    )


def metric_picture(statistics: pd.DataFrame, metric: str) -> Picture | None:
    """Return the mean of a metric over epochs, with its spread and range; None where no epoch has a value."""
    known = statistics[statistics[f"{metric}_mean"].notna()]
    if known.empty:
        return None
    known = known[known["epoch"].isin(shown_epochs([int(epoch) for epoch in known["epoch"]]))]
    mean, std, low, high = drawable(known, metric)
    x = epoch_axis(known["epoch"])
    every = np.concatenate([low, high, mean - std, mean + std])
    if metric == "accuracy":
        y = accuracy_axis(every)
    else:
        y = axis(every, _COLUMNS[METRICS[metric]].axis_label, digits, least=max(0.02 * abs(float(high.max())), 1e-6))
    epochs = known["epoch"].to_numpy() + 1.0
    words = metric.capitalize()
    return Picture(
        name=f"{metric}-over-epochs",
        title=f"{words} over epochs",
        about=f"{words} of every epoch's configurations: mean, standard deviation, smallest and largest.",
        x=x,
        y=y,
        marks=(
            Mark(kind="rods", look="range", words="Smallest to largest", places=_rods(x, y, epochs, low, high)),
            Mark(
                kind="band",
                look="mean",
                words="± 1 standard deviation",
                places=_band(x, y, epochs, mean - std, mean + std),
            ),
            Mark(kind="line", look="mean", words="Mean of configurations", places=_along(x, y, epochs, mean)),
            *_few(x, y, epochs, mean),
        ),
    )


def answer_picture(over_epochs: pd.DataFrame, column: str, title: str, label: str, size: int) -> Picture | None:
    """Return an answer over epochs, with its interval; None where fewer than two epochs have it.

    Args:
        over_epochs: one series' lines of `qbw_report.insight.over_epochs`.
        column: the answer; `<column>_low` and `<column>_high` hold its interval, where there is one.
        title: above the picture.
        label: of the vertical axis.
        size: how many units of this axis one of the table's is.
    """
    known = over_epochs[np.isfinite(over_epochs[column].astype(float))]
    if len(known) < 2:
        return None
    known = known[known["epoch"].isin(shown_epochs([int(epoch) for epoch in known["epoch"]]))]
    epochs = known["epoch"].to_numpy() + 1.0
    # A column that is not there has NaN for every epoch.
    numbers = size * known.reindex(columns=[column, f"{column}_low", f"{column}_high"]).to_numpy(dtype=float)
    value, low, high = numbers.T
    x = epoch_axis(known["epoch"])
    y = axis(numbers.ravel(), label, digits, least=max(0.05 * float(np.abs(value).max()), 1e-6))
    sure = np.isfinite(low) & np.isfinite(high)
    return Picture(
        name=f"{column.replace('_', '-')}-over-epochs",
        title=title,
        about=f"{title}, epoch by epoch, with its 95% interval where there is one.",
        x=x,
        y=y,
        marks=(
            Mark(
                kind="rods", look="range", words="95% interval", places=_rods(x, y, epochs[sure], low[sure], high[sure])
            ),
            Mark(kind="line", look="points", words="", places=_along(x, y, epochs, value)),
            *_few(x, y, epochs, value, "point"),
        ),
    )


def front_picture(rows: pd.DataFrame, front: pd.DataFrame, recommended: pd.DataFrame, title: str) -> Picture:
    """Return what is best at an average bitwidth: measured, and recommended.

    Args:
        rows: one epoch of one series.
        front: its lines of front.csv, of every cost.
        recommended: its lines of recommendations.csv.
        title: above it.
    """
    best = front[front["cost"] == "avg_bitwidth"]
    predicted = recommended[["predicted", "low", "high"]]
    x = cost_axis(rows["avg_bitwidth"].to_numpy(), "avg_bitwidth")
    y = accuracy_axis(np.concatenate([rows["accuracy"].to_numpy(), *predicted.to_numpy(dtype=float).T]))
    titles = tuple(
        f"{budget}: predicted {percent(value)} ({percent(low)} to {percent(high)}), bits {bits}"
        for budget, bits, (value, low, high) in zip(
            recommended["budget"], recommended["bitwidths"], predicted.to_numpy(dtype=float), strict=True
        )
    )
    return Picture(
        name="front",
        title=title,
        about=f"{title}: {len(best)} measured configurations that none beats in both, and what is recommended.",
        x=x,
        y=y,
        marks=(
            *_dots(spread_evenly(rows, MOST_DOTS), "avg_bitwidth", x, y),
            Mark(
                kind="line", look="front", words="Measured front",
                places=_along(x, y, *_steps(best[["value", "accuracy"]].to_numpy(dtype=float))),
            ),
            Mark(
                kind="rods", look="recommended", words="95% interval of the prediction",
                places=_rods(x, y, recommended["value"], predicted["low"], predicted["high"]),
            ),
            Mark(
                kind="dots", look="recommended", words="Recommended within a budget, predicted",
                places=_along(x, y, recommended["value"], predicted["predicted"]), titles=titles,
            ),
        ),
    )  # fmt: skip


def prediction_picture(predictions: pd.DataFrame) -> Picture | None:
    """Return predictions against measurements; None where there is none.

    Args:
        predictions: one series' lines of predictions.csv.
    """
    if predictions.empty:
        return None
    drawn = predictions
    if len(drawn) > MOST_DOTS:
        order = drawn.sort_values(["measured", "predicted"], kind="stable")
        drawn = order.iloc[np.linspace(0, len(order) - 1, MOST_DOTS).round().astype(int)]
    measured, predicted = (drawn[name].to_numpy(dtype=float) for name in ("measured", "predicted"))
    # One axis for both, so that the line of equality is the diagonal.
    both = accuracy_axis(np.concatenate([measured, predicted.clip(0, 1)]))
    x, y = replace(both, label="Measured accuracy"), replace(both, label="Predicted accuracy")
    ends = (both.low, both.high)
    marks = [Mark(kind="line", look="range", words="Equal", places=_along(x, y, ends, ends))]
    for fitted, look, words in ((True, "point", "Predicted without itself"), (False, "recommended", "Picked by hand")):
        chosen = drawn["fitted"].to_numpy(dtype=bool) == fitted
        if chosen.any():
            places = _along(x, y, measured[chosen], predicted[chosen].clip(0, 1))
            marks.append(Mark(kind="dots", look=look, words=words, places=places))
    return Picture(
        name="prediction",
        title="Predicted and measured",
        about=f"Predicted against measured accuracy of {len(drawn)} configurations; on the line both are equal.",
        x=x,
        y=y,
        marks=tuple(marks),
    )


def epoch_axis(epochs: Iterable[int]) -> Axis:
    """Return the axis of epochs, counted from 1: whole numbers only."""
    numbers = [int(epoch) + 1 for epoch in epochs]
    low, high = min(numbers) - 0.6, max(numbers) + 0.6
    ticks = MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]).tick_values(min(numbers), max(numbers))
    shown = [int(tick) for tick in ticks if low <= tick <= high and tick == int(tick) and tick >= 1]
    places = tuple((place((tick - low) / (high - low)), str(tick)) for tick in shown)
    return Axis(low=low, high=high, ticks=places, label="Epoch")


_KINDS = (("point", "One configuration"), ("uniform", "Every layer at the same bits"), ("picked", "Picked by hand"))


def _dots(rows: pd.DataFrame, cost: str, x: Axis, y: Axis) -> list[Mark]:
    kinds = np.array(kinds_of(rows))
    marks = []
    for kind, (look, words) in enumerate(_KINDS):
        chosen = rows[kinds == kind]
        if len(chosen):
            marks.append(
                Mark(kind="dots", look=look, words=words, places=_along(x, y, chosen[cost], chosen["accuracy"]))
            )
    return marks


def _along(x: Axis, y: Axis, xs: Iterable[float], ys: Iterable[float]) -> tuple[tuple[float, ...], ...]:
    return tuple((x.at(a), _down(y, b)) for a, b in zip(xs, ys, strict=True) if np.isfinite(b))


def _band(
    x: Axis, y: Axis, xs: Iterable[float], low: Iterable[float], high: Iterable[float]
) -> tuple[tuple[float, ...], ...]:
    upper, lower = _along(x, y, xs, high), _along(x, y, xs, low)
    return (*upper, *reversed(lower)) if len(upper) > 1 else ()


def _rods(
    x: Axis, y: Axis, xs: Iterable[float], low: Iterable[float], high: Iterable[float]
) -> tuple[tuple[float, ...], ...]:
    return tuple(
        (x.at(a), *(min(max(_down(y, end), 0.0), 100.0) for end in (b, c)))  # what goes on beyond the axis ends there
        for a, b, c in zip(xs, low, high, strict=True)
        if np.isfinite(b) and np.isfinite(c)
    )


def _down(y: Axis, value: float) -> float:
    """Return a place from the top: that is how screens count."""
    return round(100 - y.at(value), 3)


def _few(
    x: Axis, y: Axis, xs: Sequence[float] | np.ndarray, ys: Sequence[float] | np.ndarray, look: str = "mean"
) -> list[Mark]:
    """Return dots where a line has so few places that they can be told apart."""
    few = len(xs) <= 40
    return [Mark(kind="dots", look=look, words="", places=_along(x, y, xs, ys))] if few else []


def _steps(best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of a line that rises only where a better configuration begins; `best` is (n, 2)."""
    return np.repeat(best[:, 0], 2)[1:], np.repeat(best[:, 1], 2)[:-1]
