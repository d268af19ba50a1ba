"""How figures look: one theme, one palette, and bytes that repeat."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.style
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Paul Tol's "vibrant" scheme: told apart with every common colour blindness, and in grey.
POINTS = "#0077BB"  # blue: what was measured
MEAN = "#CC3311"  # red: the mean and its spread
RANGE = "#8C8C8C"  # grey: extremes, in the background
INK = "#222222"
FAINT_INK = "#595959"  # 7:1 on white, so still easy to read
BOX_EDGE = "#BBBBBB"

FIGURE_INCHES = (9.0, 5.0)
DOTS_PER_INCH = 144

_OURS = {
    # matplotlib ships this font, so that text has the same size on every machine.
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": BOX_EDGE,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "axes.formatter.useoffset": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "grid.color": "#EAEAEA",
    "grid.linewidth": 0.8,
    "axes.linewidth": 1.0,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "savefig.dpi": DOTS_PER_INCH,
    # Without a fixed salt, the ids inside an SVG are random.
    "svg.hashsalt": "qbw",
}


@contextmanager
def theme() -> Iterator[None]:
    """Draw and render in QBW's theme, whatever the user's own matplotlib settings are."""
    ours = {**sns.axes_style("whitegrid"), **sns.plotting_context("notebook"), **_OURS}
    with matplotlib.style.context(["default", ours]), warnings.catch_warnings():
        # An experiment's name may have characters that the font lacks; a box in the title is no reason to alarm.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure() -> tuple[Figure, Axes, Axes]:
    """Return a figure, the axes to draw on, and the empty column beside them for legend and statistics.

    Nothing that explains the data can cover the data that way.
    """
    figure = Figure(figsize=FIGURE_INCHES, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr,call-arg] # constrained, see above
    grid = figure.add_gridspec(1, 2, width_ratios=[3.3, 1.0])
    axes, aside = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    aside.set_axis_off()
    return figure, axes, aside


def png_bytes(figure: Figure) -> bytes:
    """Return `figure` as a PNG; the same figure gives the same bytes."""
    sink = io.BytesIO()
    with theme():
        _lay_out(figure)
        FigureCanvasAgg(figure).print_png(sink, metadata={"Software": None})  # type: ignore[no-untyped-call] # matplotlib's own hints end here
    return sink.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """Return `figure` as an SVG; the same figure gives the same bytes."""
    sink = io.StringIO()
    with theme():
        _lay_out(figure)
        FigureCanvasSVG(figure).print_svg(sink, metadata={"Date": None})  # type: ignore[no-untyped-call] # likewise
    return sink.getvalue().encode()


def _lay_out(figure: Figure) -> None:
    """Find places for everything, once.

    `savefig` does it for each format anew and draws everything an extra time to do so: half of what a figure takes.
    """
    figure.set_dpi(DOTS_PER_INCH)
    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
