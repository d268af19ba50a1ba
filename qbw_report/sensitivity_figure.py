"""Where bits matter, as a picture: a heatmap in network order, and the largest loss of each layer with its interval."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from qbw_report.figures import wrap_title
from qbw_report.style import BOX_EDGE, FAINT_INK, INK, MEAN, POINTS, RANGE, theme

_ROW_INCHES = 0.27
_MOST_INCHES = 60.0
_NAME_CHARACTERS = 34

_LOSS = LinearSegmentedColormap.from_list("loss", ["#FFFFFF", "#F6C8BA", MEAN, "#7A1E0F"])
"""From white to dark red: darker is worse also in grey."""


def plot_sensitivity(table: pd.DataFrame, title: str) -> Figure:
    """Draw what each layer loses in accuracy at each option, in points, and an interval for the smallest option.

    Layers stand in network order, the first at the top. A cell is pale where its interval includes no loss at all.

    Args:
        table: lines of one series with the metric accuracy from `qbw_report.sensitivity.find_sensitivity`.
        title: what the figure is about; plain text.

    Raises:
        ValueError: there is no line, or no option below the largest.
    """
    table = table[(table["metric"] == "accuracy") & (table["option"] < table["against"])]
    if table.empty:
        raise ValueError("table: expected at least one layer below its largest option, found none")
    layers = table.drop_duplicates("layer_index").sort_values("layer_index")
    options = sorted(table["option"].unique())
    grid = {
        name: table.pivot(index="layer_index", columns="option", values=name).reindex(columns=options).to_numpy()
        for name in ("effect", "low", "high")
    }
    points = {name: 100 * values for name, values in grid.items()}
    count = len(layers)
    with theme():
        height = min(1.9 + _ROW_INCHES * max(count, 4), _MOST_INCHES)
        figure = Figure(figsize=(9.0, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr,call-arg] # constrained, see above
        widths = figure.add_gridspec(1, 2, width_ratios=[min(0.5 + 0.32 * len(options), 2.4), 1.6])
        cells = figure.add_subplot(widths[0])
        strip = figure.add_subplot(widths[1])
        _draw_cells(cells, points, options, [shorten(name) for name in layers["layer_name"]])
        _draw_strip(strip, points, options[0])
        against = sorted({int(bits) for bits in table["against"]})
        cells.set_xlabel(f"Bits, against {' or '.join(map(str, against))}")
        figure.suptitle(
            wrap_title(title), x=0.01, ha="left", fontsize=12.5, fontweight="bold", color=INK, parse_math=False
        )
    return figure


def shorten(name: str) -> str:
    """Return a layer's name, its middle as an ellipsis where it is too long to stand beside a row."""
    if len(name) <= _NAME_CHARACTERS:
        return name
    half = (_NAME_CHARACTERS - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _draw_cells(axes: Axes, points: dict[str, np.ndarray], options: list[int], names: list[str]) -> None:
    lost = np.maximum(-points["effect"], 0.0)
    most = max(float(np.nanmax(lost, initial=0.0)), 0.1)
    axes.imshow(np.ma.masked_invalid(lost), cmap=_LOSS, vmin=0, vmax=most, aspect="auto", interpolation="nearest")
    # Lines between cells, drawn as the minor grid.
    axes.set_xticks(np.arange(len(options) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(visible=False, which="major")
    axes.grid(visible=True, which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.set_xticks(range(len(options)), [str(bits) for bits in options])
    axes.set_yticks(range(len(names)), names, parse_math=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for (layer, place), effect in np.ndenumerate(points["effect"]):
        if np.isnan(effect):
            text, color = "\N{EN DASH}", FAINT_INK  # never measured
        else:
            sure = points["high"][layer, place] < 0 or points["low"][layer, place] > 0
            dark = lost[layer, place] > 0.55 * most
            # The minus sign of the axis beside it, not a hyphen.
            text = f"{effect:+.1f}".replace("-", "\N{MINUS SIGN}") if round(effect, 1) else "0.0"
            color = "white" if dark else INK if sure else "#767676"
        axes.text(place, layer, text, ha="center", va="center", fontsize=9, color=color)
    axes.set_title("Change in points (grey: may be chance)", fontsize=10.5, fontweight="normal", color=FAINT_INK)


def _draw_strip(axes: Axes, points: dict[str, np.ndarray], smallest: int) -> None:
    effect, low, high = (points[name][:, 0] for name in ("effect", "low", "high"))
    rows = np.arange(len(effect))
    known = np.isfinite(low)
    axes.axvline(0, color=BOX_EDGE, linewidth=1.0, zorder=1)
    axes.hlines(rows[known], low[known], high[known], color=RANGE, linewidth=1.6, zorder=2)
    axes.scatter(effect, rows, s=34, color=POINTS, zorder=3, linewidth=0.6, edgecolor="white")
    axes.set_ylim(len(effect) - 0.5, -0.5)
    axes.set_yticks(rows, [""] * len(rows))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=True, axis="y", color="#F2F2F2", linewidth=0.8)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("Accuracy (points)")
    what = "with 95% interval" if known.any() else "shrunk (ridge), no interval"
    axes.set_title(f"At {smallest} bits, {what}", fontsize=10.5, fontweight="normal", color=FAINT_INK)
