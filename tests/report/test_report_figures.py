"""Figures, by what is on them: artists, labels, legend, limits; not by pixels."""

import math
import struct
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from simulated_records import simulate, table_of

import qbw_report
from qbw_report.figures import plot_bitwidth_vs_accuracy, plot_metric_over_epochs, wrap_title
from qbw_report.series import add_series
from qbw_report.statistics import per_epoch
from qbw_report.style import MEAN, png_bytes, svg_bytes, theme

BITS = [2.0, 3.0, 3.04, 2.96, 8.0, 8.0]
ACCURACIES = [0.5, 0.7, 0.8, 0.9, 0.9, 0.95]
SINGLE = [0.7, 0.8, 0.75, 0.75]


def axes_of(figure: Figure) -> Axes:
    return figure.axes[0]


def legend_of(figure: Figure) -> list[str]:
    legend = figure.axes[1].get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def box_of(figure: Figure) -> str:
    (text,) = figure.axes[1].texts
    return text.get_text()


def title_of(figure: Figure) -> str:
    return axes_of(figure).get_title(loc="left")


def line_called(figure: Figure, label: str) -> Line2D:
    (line,) = (line for line in axes_of(figure).lines if line.get_label() == label)
    return line


def lines_called(figure: Figure, label: str) -> list[Any]:
    """Return the segments of the vertical lines with this label, as (x, lowest y, highest y)."""
    found = [c for c in axes_of(figure).collections if isinstance(c, LineCollection) and c.get_label() == label]
    return [(s[0][0], s[:, 1].min(), s[:, 1].max()) for c in found for s in c.get_segments()]


def points_of(figure: Figure) -> np.ndarray:
    (points,) = (c for c in axes_of(figure).collections if isinstance(c, PathCollection))
    return np.asarray(points.get_offsets())


def over_epochs(metric: str, epochs: int = 6, **others: Any) -> tuple[Figure, pd.DataFrame]:
    statistics = per_epoch(add_series(table_of(simulate(epochs=epochs, **others)).to_pandas()))
    return plot_metric_over_epochs(statistics, metric, f"demo: {metric} over epochs"), statistics


def test_every_configuration_is_a_point() -> None:
    figure = plot_bitwidth_vs_accuracy(BITS, ACCURACIES, 4, "demo")
    assert points_of(figure).tolist() == [list(pair) for pair in zip(BITS, ACCURACIES, strict=True)]


def test_a_red_line_joins_the_means_of_the_bins() -> None:
    mean = line_called(plot_bitwidth_vs_accuracy(BITS, ACCURACIES, 4, "demo"), "Mean of bin (0.1 bits wide)")
    assert to_hex(str(mean.get_color())) == MEAN.lower()
    assert list(mean.get_xdata()) == [2.0, 3.0, 8.0]  # type: ignore[arg-type] # pandas gives an array
    assert list(mean.get_ydata()) == pytest.approx([0.5, 0.8, 0.925])  # type: ignore[arg-type] # as above


def test_spread_and_range_are_drawn_for_bins_that_have_them() -> None:
    figure = plot_bitwidth_vs_accuracy(BITS, ACCURACIES, 4, "demo")
    assert lines_called(figure, "Min to max of bin") == [(3.0, 0.7, 0.9), (8.0, 0.9, 0.95)]
    (container,) = axes_of(figure).containers
    assert container.get_label() == "± 1 std of bin"
    (bars,) = container[2]  # the data line (none), the caps, the bars
    std = math.sqrt(0.02 / 3)
    expected = [(3.0, 0.8 - std, 0.8 + std), (8.0, 0.9, 0.95)]
    found = [(s[0][0], s[:, 1].min(), s[:, 1].max()) for s in bars.get_segments()]
    assert [x for segment in found for x in segment] == pytest.approx([x for segment in expected for x in segment])


def test_legend_labels_title_and_statistics_box() -> None:
    figure = plot_bitwidth_vs_accuracy(BITS, ACCURACIES, 4, "demo: bitwidth and accuracy")
    assert legend_of(figure) == [
        "One configuration",
        "Mean of bin (0.1 bits wide)",
        "Min to max of bin",
        "± 1 std of bin",
    ]
    assert title_of(figure) == "demo: bitwidth and accuracy, epoch 5"
    assert axes_of(figure).get_xlabel() == "Average bitwidth (bits)"
    assert axes_of(figure).get_ylabel() == "Accuracy"
    assert box_of(figure) == (
        "6 configurations, mean ± std\nAccuracy: 0.7917 ± 0.1539\nBitwidth: 4.50 ± 2.50 bits\nCorrelation: 0.70"
    )
    (answer,) = axes_of(figure).texts
    assert answer.get_text() == (
        "Cannot tell whether accuracy follows bitwidth (r = 0.70, 95% interval -0.33 to 0.97; evaluate about 7 more)"
    )


def test_bins_of_one_configuration_each_have_no_bars() -> None:
    figure = plot_bitwidth_vs_accuracy([2.0, 4.0, 8.0], [0.5, 0.7, 0.9], 0, "demo")
    assert legend_of(figure) == ["One configuration", "Mean of bin (0.1 bits wide)"]


def test_a_single_bitwidth_is_a_cluster_with_a_mean_line_and_its_band() -> None:
    figure = plot_bitwidth_vs_accuracy([4.0] * 4, SINGLE, 0, "demo")
    assert legend_of(figure) == ["One configuration", "Mean", "± 1 std", "Min to max"]
    mean = line_called(figure, "Mean")
    assert list(mean.get_ydata()) == pytest.approx([0.75, 0.75])  # type: ignore[arg-type] # a list
    (band,) = axes_of(figure).patches
    std = math.sqrt(0.005 / 4)
    assert band.get_extents().transformed(axes_of(figure).transData.inverted()).intervaly == pytest.approx(
        [0.75 - std, 0.75 + std]
    )
    assert lines_called(figure, "Min to max") == [(4.0, 0.7, 0.8)]
    assert [label.get_text() for label in axes_of(figure).get_xticklabels()] == ["4"]


def test_one_configuration() -> None:
    figure = plot_bitwidth_vs_accuracy([4.2], [0.75], 0, "demo")
    assert legend_of(figure) == ["One configuration", "Mean"]
    assert box_of(figure) == "1 configuration, mean ± std\nAccuracy: 0.7500 ± 0.0000\nBitwidth: 4.20 ± 0.00 bits"


def test_a_large_cloud_is_a_picture_inside_the_svg() -> None:
    rng = np.random.default_rng(0)
    large = plot_bitwidth_vs_accuracy(rng.uniform(2, 8, 4000), rng.uniform(0, 1, 4000), 0, "demo")
    assert b"<image" in svg_bytes(large)
    assert b"<image" not in svg_bytes(plot_bitwidth_vs_accuracy(BITS, ACCURACIES, 0, "demo"))


@pytest.mark.parametrize("accuracies", [[1.0] * 6, [0.0] * 6, [0.1] * 6, [0.0, 1.0, 0.5, 0.2, 0.1, 1.0]])
def test_every_point_is_inside_the_frame_and_no_tick_is_an_impossible_accuracy(accuracies: list[float]) -> None:
    figure = plot_bitwidth_vs_accuracy(BITS, accuracies, 0, "demo")
    low, high = axes_of(figure).get_ylim()
    assert low < min(accuracies) <= max(accuracies) < high
    ticks = [tick for tick in axes_of(figure).get_yticks() if low <= tick <= high]
    assert min(ticks) >= -1e-9
    assert max(ticks) <= 1 + 1e-9
    assert len(ticks) >= 3


LONG = "20251103_142233_MultimodalResNet_resnet18_parkland_acoustic_seismic_joint_quantization_switchable_clipping"


@pytest.mark.parametrize(
    "figure",
    [
        plot_bitwidth_vs_accuracy(BITS, ACCURACIES, 4, "demo: bitwidth and accuracy"),
        plot_bitwidth_vs_accuracy(BITS, ACCURACIES, 4, f"{LONG}: bitwidth and accuracy"),
        plot_bitwidth_vs_accuracy([4.0] * 4, SINGLE, 99, "demo: bitwidth and accuracy"),
        plot_bitwidth_vs_accuracy([4.0], [0.123456], 99, "x" * 300),
        over_epochs("accuracy")[0],
        over_epochs("loss", epochs=100, configs=3)[0],
        over_epochs("bitwidth", epochs=1)[0],
    ],
    ids=["several", "long name", "single bitwidth", "one", "accuracy", "loss", "bitwidth"],
)
def test_nothing_overlaps_and_nothing_is_cut_off(figure: Figure) -> None:
    with theme():
        figure.draw_without_rendering()  # makes the layout
    main, aside = figure.axes
    legend = aside.get_legend()
    assert legend is not None
    (box,) = aside.texts
    patch = box.get_bbox_patch()
    assert patch is not None
    texts = [main.title, main._left_title, *main.texts]  # type: ignore[attr-defined] # no public way to a left title
    titles = [text.get_window_extent() for text in texts if text.get_text()]
    parts = [main.bbox, legend.get_window_extent(), patch.get_window_extent(), *titles]
    for i, one in enumerate(parts):
        assert figure.bbox.x0 <= one.x0 < one.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= one.y0 < one.y1 <= figure.bbox.y1
        assert not any(one.overlaps(other) for other in parts[i + 1 :])
    assert main.bbox.width > 0.55 * figure.bbox.width


def test_a_name_is_never_a_formula() -> None:
    figure = plot_bitwidth_vs_accuracy(BITS, ACCURACIES, 0, r"a $\nonsense{ b$ _c_")
    assert title_of(figure) == r"a $\nonsense{ b$ _c_, epoch 1"
    assert png_bytes(figure)


def test_a_name_in_another_script_is_drawn_without_a_warning() -> None:
    assert png_bytes(plot_bitwidth_vs_accuracy(BITS, ACCURACIES, 0, "実験"))


def test_long_titles_break_at_spaces_and_underscores_and_lose_nothing() -> None:
    lines = wrap_title(f"{LONG}: bitwidth and accuracy").split("\n")
    assert max(map(len, lines)) <= 66
    assert lines[0].endswith("_")
    assert "".join(lines).replace(" ", "") == f"{LONG}:bitwidthandaccuracy"


@pytest.mark.parametrize(
    ("bitwidths", "accuracies", "message"),
    [
        (
            [2.0, 4.0],
            [0.5],
            "bitwidths and accuracies: expected two equally long flat sequences, found shapes (2,) and (1,)",
        ),
        (
            [[2.0]],
            [[0.5]],
            "bitwidths and accuracies: expected two equally long flat sequences, found shapes (1, 1) and (1, 1)",
        ),
        ([], [], "bitwidths and accuracies: expected at least one configuration, found none"),
        ([2.0, math.nan], [0.5, 0.5], "bitwidths: expected finite numbers, found nan at position 1"),
        ([2.0, 2.0], [math.inf, 0.5], "accuracies: expected finite numbers, found inf at position 0"),
        ([2.0], [91.2], "accuracies: expected shares from 0 to 1, found 91.2; divide percentages by 100"),
        ([2.0], [-0.1], "accuracies: expected shares from 0 to 1, found -0.1; divide percentages by 100"),
    ],
)
def test_wrong_input_is_refused(bitwidths: Sequence[float], accuracies: Sequence[float], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as raised:
        plot_bitwidth_vs_accuracy(bitwidths, accuracies, 0, "demo")
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("metric", "label"), [("accuracy", "Accuracy"), ("loss", "Loss (nats)"), ("bitwidth", "Average bitwidth (bits)")]
)
def test_a_metric_over_epochs(metric: str, label: str) -> None:
    figure, statistics = over_epochs(metric)
    assert legend_of(figure) == ["Min to max", "± 1 std", "Mean of configurations"]
    assert (axes_of(figure).get_xlabel(), axes_of(figure).get_ylabel()) == ("Epoch", label)
    assert title_of(figure) == f"demo: {metric} over epochs"
    mean = line_called(figure, "Mean of configurations")
    assert list(mean.get_xdata()) == [1, 2, 3, 4, 5, 6]  # type: ignore[arg-type] # pandas gives an array
    assert list(mean.get_ydata()) == statistics[f"{metric}_mean"].tolist()  # type: ignore[arg-type] # as above
    low, high = statistics[f"{metric}_min"], statistics[f"{metric}_max"]
    assert lines_called(figure, "Min to max") == list(zip(range(1, 7), low, high, strict=True))
    bottom, top = axes_of(figure).get_ylim()
    assert bottom < low.min() < high.max() < top


def test_the_band_of_a_metric_is_one_standard_deviation() -> None:
    figure, statistics = over_epochs("loss")
    (band,) = (c for c in axes_of(figure).collections if c.get_label() == "± 1 std")
    heights = band.get_paths()[0].vertices
    assert isinstance(heights, np.ndarray)
    assert heights[:, 1].max() == pytest.approx((statistics["loss_mean"] + statistics["loss_std"]).max())
    assert heights[:, 1].min() == pytest.approx((statistics["loss_mean"] - statistics["loss_std"]).min())


def test_one_epoch_has_an_error_bar_and_one_whole_tick() -> None:
    figure, _ = over_epochs("accuracy", epochs=1)
    (container,) = axes_of(figure).containers
    assert container.get_label() == "± 1 std"
    low, high = axes_of(figure).get_xlim()
    assert [tick for tick in axes_of(figure).get_xticks() if low <= tick <= high] == [1]


def test_epochs_without_a_loss_are_left_out_and_none_at_all_is_refused() -> None:
    _, statistics = over_epochs("loss")
    statistics.loc[2, "loss_mean"] = math.nan
    mean = line_called(plot_metric_over_epochs(statistics, "loss", "demo"), "Mean of configurations")
    assert list(mean.get_xdata()) == [1, 2, 4, 5, 6]  # type: ignore[arg-type] # pandas gives an array
    with pytest.raises(ValueError, match="expected at least one epoch with a value of loss, found none"):
        plot_metric_over_epochs(statistics.assign(loss_mean=math.nan), "loss", "demo")


def test_an_unknown_metric_is_refused() -> None:
    _, statistics = over_epochs("loss", epochs=1)
    with pytest.raises(ValueError, match="metric: expected one of accuracy, loss, bitwidth, found 'speed'"):
        plot_metric_over_epochs(statistics, "speed", "demo")


def test_bytes_repeat_and_do_not_depend_on_the_users_settings() -> None:
    def rendered() -> tuple[bytes, bytes]:
        figure = plot_bitwidth_vs_accuracy(BITS, ACCURACIES, 0, "demo")
        return png_bytes(figure), svg_bytes(figure)

    first = rendered()
    with mpl.rc_context({"font.family": "DejaVu Serif", "savefig.dpi": 30, "axes.titlesize": 40, "svg.hashsalt": "x"}):
        assert rendered() == first
    assert struct.unpack(">II", first[0][16:24]) == (1296, 720)


def test_the_users_settings_stay() -> None:
    before = dict(mpl.rcParams)
    png_bytes(plot_bitwidth_vs_accuracy(BITS, ACCURACIES, 0, "demo"))
    assert dict(mpl.rcParams) == before


def test_the_seeds_function_is_importable_from_the_package() -> None:
    assert qbw_report.plot_bitwidth_vs_accuracy is plot_bitwidth_vs_accuracy
