"""One series -> what the page shows of it: the answer, what it rests on, pictures, tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from qbw_report.insight.answers import Answers
from qbw_report.insight.finding import points as in_points
from qbw_report.page.cloud import cloud
from qbw_report.page.pictures import (
    Picture,
    answer_picture,
    cost_picture,
    front_picture,
    metric_picture,
    prediction_picture,
)
from qbw_report.page.shown import Shown, show
from qbw_report.page.tables import View, headings, lines_of, view
from qbw_report.selection import last_epoch
from qbw_report.sensitivity import layer_names

Words = tuple[str | Shown, ...]
"""A sentence with its numbers."""


OVER_EPOCHS = {
    "lowest_bitwidth": ("Fewest bits within the tolerance of the best", "Average bitwidth (bits)", 1),
    "lowest_cost": ("Bits from which a typical configuration is good enough", "Average bitwidth (bits)", 1),
    "pearson": ("Correlation of accuracy and bitwidth", "Pearson's r", 1),
    "spread": ("Spread among configurations of equal bits", "Standard deviation (points)", 100),
}
"""Answers that are drawn over epochs: title, axis, and how many of its units the table's is."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One answer at a glance.

    Attributes:
        question: what is asked.
        answer: the number or word.
        detail: how sure it is, and what it means.
    """

    question: str
    answer: Words
    detail: Words


@dataclass(frozen=True, kw_only=True)
class HeatField:
    """What one layer loses at one option.

    Attributes:
        effect: on accuracy.
        low: lower end of its interval.
        high: upper end of it.
        shade: how strongly the field is coloured, from -10 to 10; 0 for not at all.
        is_base: whether the effect is against this very option.
    """

    effect: Shown
    low: Shown
    high: Shown
    shade: int
    is_base: bool


@dataclass(frozen=True, kw_only=True)
class HeatRow:
    """What one layer loses.

    Attributes:
        layer: its name.
        rank: 1 for the layer that loses most.
        fields: its effect at each option.
    """

    layer: str
    rank: Shown
    fields: tuple[HeatField, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """What the page shows of one series; see the template."""

    anchor: str
    series: str
    epoch: int
    headline: Words
    tiles: tuple[Tile, ...]
    cautions: tuple[str, ...]
    told: tuple[str, ...]
    cost: Picture
    cloud: dict[str, Any]
    bins: View
    heat: tuple[HeatRow, ...]
    options: tuple[int, ...]
    heat_unknown: str
    front: Picture
    shipping: View
    command: str
    fronts: View
    prediction: Picture | None
    over_epochs: tuple[Picture, ...]
    answers: View
    epochs: View
    interactions: View
    provenance: View


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables as they are written to CSV files, by the names of these."""

    answers: pd.DataFrame
    answers_over_epochs: pd.DataFrame
    bins: pd.DataFrame
    comparison: pd.DataFrame
    front: pd.DataFrame
    interactions: pd.DataFrame
    predictions: pd.DataFrame
    provenance: pd.DataFrame
    recommendations: pd.DataFrame
    sensitivity: pd.DataFrame
    statistics: pd.DataFrame

    def of(self, name: str, series: str) -> pd.DataFrame:
        """Return one series' lines of a table."""
        table: pd.DataFrame = getattr(self, name)
        return table[table["series"] == series]

    def lines(self, name: str, series: str, epoch: int | None = None) -> list[int]:
        """Return where one series' lines stand in a table, those of one epoch where one is named."""
        table: pd.DataFrame = getattr(self, name)
        mask = table["series"] == series
        return lines_of(mask if epoch is None else mask & (table["epoch"] == epoch))


def section(
    rows: pd.DataFrame, answers: Answers, told: Sequence[str], tables: Tables, anchor: str, unknown: str
) -> Section:
    """Return what the page shows of one series.

    Args:
        rows: one series; at least one row.
        answers: of it.
        told: of it, a sentence each.
        tables: of all series.
        anchor: its name in addresses.
        unknown: why nothing is known of where bits matter; empty where it is.
    """
    series, epoch = answers.series, answers.epoch
    last = last_epoch(rows)
    bins = tables.of("bins", series)
    sensitivity = tables.of("sensitivity", series)
    names = _names(sensitivity, rows)
    heat, options = _heat(tables, series)
    over_epochs = tables.of("answers_over_epochs", series)
    pictures = [metric_picture(tables.of("statistics", series), metric) for metric in ("accuracy", "loss")]
    pictures += [answer_picture(over_epochs, column, *words) for column, words in OVER_EPOCHS.items()]
    title = f"Accuracy and cost, epoch {epoch + 1}"
    return Section(
        anchor=anchor,
        series=series,
        epoch=epoch,
        headline=_headline(answers, tables),
        tiles=_tiles(answers, tables),
        cautions=answers.cautions,
        told=tuple(sentence for sentence in told if sentence not in answers.cautions),
        cost=cost_picture(last, bins[bins["epoch"] == epoch], over_epochs.iloc[-1], title),
        cloud=cloud(rows, bins, over_epochs, names),
        bins=view(
            tables.bins,
            "bins",
            tables.lines("bins", series, epoch),
            f"Bins of average bitwidth, epoch {epoch + 1}",
            headings(
                ("bitwidth_bin", "Average bits", "decimals"),
                ("configs", "Configurations", "count"),
                ("accuracy_mean", "Mean accuracy", "percent"),
                ("accuracy_low", "95% from", "percent"),
                ("accuracy_high", "to", "percent"),
                ("accuracy_std", "Std (points)", "size"),
                ("accuracy_min", "Smallest", "percent"),
                ("accuracy_max", "Largest", "percent"),
            ),
        ),
        heat=heat,
        options=options,
        heat_unknown=unknown,
        front=front_picture(
            last,
            tables.of("front", series),
            tables.of("recommendations", series),
            f"Best within a budget, epoch {epoch + 1}",
        ),
        shipping=view(
            tables.recommendations,
            "recommendations",
            tables.lines("recommendations", series),
            "The most accurate configuration within a budget: predicted, and what was measured within it",
            headings(
                ("limit", "Budget (bits)", "decimals"),
                ("value", "Uses", "decimals"),
                ("predicted", "Predicted", "percent"),
                ("low", "95% from", "percent"),
                ("high", "to", "percent"),
                ("measured", "Measured", "percent"),
                ("best_measured", "Best measured", "percent"),
                ("best_uniform", "Best uniform", "percent"),
                ("bitwidths", "Bits, layer by layer", "text"),
                ("verdict", "How it stands", "text"),
            ),
        ),
        command=_command(series, tables),
        fronts=view(
            tables.front,
            "front",
            lines_of((tables.front["series"] == series) & (tables.front["cost"] == "avg_bitwidth")),
            "Measured configurations that none beats in both accuracy and average bitwidth",
            headings(
                ("value", "Average bits", "decimals"),
                ("accuracy", "Accuracy", "percent"),
                ("bitwidths", "Bits, layer by layer", "text"),
                ("sampler", "Sampler", "text"),
                ("config_id", "Configuration", "text"),
            ),
        ),
        prediction=prediction_picture(tables.of("predictions", series)),
        over_epochs=tuple(picture for picture in pictures if picture is not None),
        answers=view(
            tables.answers,
            "answers",
            tables.lines("answers", series),
            "Every answer, how it was found and from what",
            headings(
                ("question", "Answer", "text"),
                ("cost", "Against", "text"),
                ("value", "Value", "digits"),
                ("low", "95% from", "digits"),
                ("high", "to", "digits"),
                ("unit", "Unit", "text"),
                ("verdict", "In words", "text"),
                ("unknown", "Why it cannot be told", "text"),
                ("method", "Method", "text"),
                ("source", "Source", "text"),
            ),
        ),
        epochs=view(
            tables.statistics,
            "statistics",
            tables.lines("statistics", series)[::-1],
            "Epochs, the last first",
            headings(
                ("epoch", "Epoch", "epoch"),
                ("configs", "Configurations", "count"),
                ("accuracy_mean", "Mean accuracy", "percent"),
                ("accuracy_std", "Std (points)", "size"),
                ("accuracy_min", "Smallest", "percent"),
                ("accuracy_max", "Largest", "percent"),
                ("loss_mean", "Mean loss (nats)", "digits"),
                ("bitwidth_mean", "Mean bits", "decimals"),
                ("correlation", "Correlation", "decimals"),
            ),
        ),
        interactions=view(
            tables.interactions,
            "interactions",
            tables.lines("interactions", series),
            "Pairs of layers that lose more (or less) together than alone, in points",
            headings(
                ("first_layer", "Layer", "text"),
                ("second_layer", "and layer", "text"),
                ("strength", "Together", "points"),
                ("low", "95% from", "points"),
                ("high", "to", "points"),
                ("p_value", "p (Holm)", "digits"),
            ),
        ),
        provenance=view(
            tables.provenance,
            "provenance",
            tables.lines("provenance", series),
            "Where the rows come from",
            headings(("fact", "What", "text"), ("value", "Found", "text"), ("rows", "Rows", "count")),
        ),
    )


def _headline(answers: Answers, tables: Tables) -> Words:
    line = tables.lines("comparison", answers.series)[0]

    def number(column: str, form: str) -> Shown:
        return show(tables.comparison, "comparison", line, column, form)

    best = (number("best_accuracy", "percent"), " at ", number("best_bitwidth", "decimals"), " bits")
    if answers.lowest is None:
        return ("Cannot tell yet how few bits are enough. Best so far: ", *best, ".")
    if answers.lowest.config_id == answers.best.config_id:
        return (number("best_bitwidth", "decimals"), " bits on average are enough, and best: ",
                number("best_accuracy", "percent"), " accuracy.")  # fmt: skip
    return (
        number("lowest_bitwidth", "decimals"), " bits on average are enough: ",
        number("lowest_accuracy", "percent"), " accuracy, within ",
        in_points(answers.thresholds.tolerance), " of the best (", *best, ").",
    )  # fmt: skip


def _tiles(answers: Answers, tables: Tables) -> tuple[Tile, ...]:
    series = answers.series
    table = tables.answers
    lines = {
        str(table["question"].iloc[line]): line
        for line in tables.lines("answers", series)
        if table["cost"].iloc[line] in ("avg_bitwidth", "")
    }

    def number(question: str, column: str, form: str) -> Shown:
        return show(table, "answers", lines[question], column, form)

    def interval(question: str, form: str) -> Words:
        return "95%: ", number(question, "low", form), " to ", number(question, "high", form)

    tiles = []
    knee = answers.finding("knee")
    if not knee.is_known:
        tiles.append(Tile(question="More bits pay less from", answer=("cannot tell",), detail=(knee.unknown,)))
    elif np.isnan(knee.value):
        tiles.append(
            Tile(question="More bits pay less from", answer=("no knee",), detail=("none that is more than noise",))
        )
    else:
        detail = (*interval("knee", "decimals"), "; ", answers.finding("plateau").verdict.removeprefix("none; "))
        tiles.append(
            Tile(
                question="More bits pay less from", answer=(number("knee", "value", "decimals"), " bits"), detail=detail
            )
        )
    trend = answers.finding("pearson")
    tiles.append(
        Tile(question="Does accuracy follow bits?", answer=("cannot tell",), detail=(trend.unknown,))
        if not trend.is_known
        else Tile(
            question="Does accuracy follow bits?",
            answer=(trend.verdict,),
            detail=("r = ", number("pearson", "value", "decimals"), ", ", *interval("pearson", "decimals")),
        )
    )
    matters = _matters_most(tables, series)
    if matters is not None:
        tiles.append(matters)
    spread = answers.finding("spread")
    tiles.append(
        Tile(question="Spread among equals", answer=("cannot tell",), detail=(spread.unknown,))
        if not spread.is_known
        else Tile(
            question="Spread among equals",
            answer=(number("spread", "value", "size"), " points"),
            detail=(*interval("spread", "size"), "; ", spread.verdict),
        )
    )
    return tuple(tiles)


def _matters_most(tables: Tables, series: str) -> Tile | None:
    table = tables.sensitivity
    mask = (table["series"] == series) & (table["metric"] == "accuracy") & (table["rank"] == 1)
    lines = lines_of(mask & (table["option"] < table["against"]))
    if not lines:
        return None
    line = min(lines, key=lambda line: int(table["option"].iloc[line]))
    effect, low, high = (show(table, "sensitivity", line, name, "points") for name in ("effect", "low", "high"))
    option, against = int(table["option"].iloc[line]), int(table["against"].iloc[line])
    sure: Words = (", 95%: ", low, " to ", high) if low.value else (", no interval",)
    return Tile(
        question="Bits matter most in",
        answer=(str(table["layer_name"].iloc[line]),),
        detail=(effect, f" points at {option} bits instead of {against}", *sure),
    )


def _heat(tables: Tables, series: str) -> tuple[tuple[HeatRow, ...], tuple[int, ...]]:
    table = tables.sensitivity
    lines = lines_of((table["series"] == series) & (table["metric"] == "accuracy"))
    if not lines:
        return (), ()
    ours = table.iloc[lines]
    options = tuple(sorted({int(option) for option in ours["option"]}))
    largest = float(np.nanmax(np.abs(ours["effect"].to_numpy(dtype=float)))) or 1.0
    at: dict[int, dict[int, int]] = {}
    for line in lines:
        at.setdefault(int(table["layer_index"].iloc[line]), {})[int(table["option"].iloc[line])] = line
    heat = []
    for _, places in sorted(at.items()):
        fields = []
        for option in options:
            line = places[option]
            effect, low, high = (show(table, "sensitivity", line, name, "points") for name in ("effect", "low", "high"))
            shade = round(10 * float(effect.value) / largest) if effect.value else 0
            is_base = option == int(table["against"].iloc[line])
            fields.append(HeatField(effect=effect, low=low, high=high, shade=shade, is_base=is_base))
        first = places[options[0]]
        rank = show(table, "sensitivity", first, "rank", "count")
        heat.append(HeatRow(layer=str(table["layer_name"].iloc[first]), rank=rank, fields=tuple(fields)))
    return tuple(heat), options


def _names(sensitivity: pd.DataFrame, rows: pd.DataFrame) -> tuple[str, ...]:
    """Return the layers' names in forward order, as the sensitivity has them."""
    names = sensitivity.drop_duplicates("layer_index").sort_values("layer_index")["layer_name"]
    count = len(last_epoch(rows)["bitwidths"].iloc[0])
    return tuple(str(name) for name in names) if len(names) == count else layer_names(None, count)


def _command(series: str, tables: Tables) -> str:
    """Return how to try a recommendation, ready to be copied."""
    several = len(tables.comparison) > 1
    named = f" SERIES='{series}'" if several and "'" not in series else ""
    return f'make recommend BUDGET="avg_bitwidth<=4.5" CKPT=path/to/checkpoint.pt{named}'
