"""TensorBoard in a real browser: a report's tags, picture and runs are there to be seen."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser_helpers import Looked, looking
from simulated_records import simulate, write_records
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard_server import PATIENCE, serving

from qbw_report.build import build
from qbw_report.dashboards import TAGS, layout
from qbw_report.events import IMAGE_TAG

LAST_EPOCHS = {"demo": 3, "other": 1}
"""The runs of the report, and how many epochs each has."""

SIZES = """images => Promise.all(
    images.map(image => image.decode().then(() => [image.naturalWidth, image.naturalHeight]))
)"""
"""The sizes of pictures once they are decoded."""

OPEN = """groups => groups.filter(group => !group.opened).forEach(
    group => group.shadowRoot.querySelector("button.heading").click()
)"""
"""Opens every group of tags: TensorBoard itself opens the first few."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two experiments, of 3 epochs and of 1."""
    folder = tmp_path_factory.mktemp("report")
    records = write_records(
        folder / "records",
        *(simulate(experiment=run, epochs=epochs, configs=8) for run, epochs in LAST_EPOCHS.items()),
    )
    build(records, folder / "out", every=5)
    return folder / "out"


@pytest.fixture(scope="module")
def address(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where TensorBoard serves it."""
    with serving(report / "tensorboard", tmp_path_factory.mktemp("log") / "log", fast=True) as address:
        yield address


@contextmanager
def dashboard(browser, address: str, name: str) -> Iterator[Looked]:
    """Open a dashboard in a window that is high enough for all of it; it must not complain and stay with its server."""
    with looking(browser, f"{address}/#{name}", own=address, viewport={"width": 1300, "height": 2600}) as looked:
        looked.page.set_default_timeout(PATIENCE * 1000)
        yield looked
        assert [line for line in looked.said if not line.startswith("warning: ")] == []
        assert looked.asked == []


def wait_for_texts(looked: Looked, *texts: str) -> None:
    """Return when each of these texts stands somewhere on the page and can be seen."""
    for text in texts:
        looked.page.get_by_text(text, exact=True).first.wait_for(state="visible")


def size_of_png(path: Path) -> list[int]:
    """Return width and height, as the header says."""
    return list(struct.unpack(">II", path.read_bytes()[16:24]))


def test_the_first_dashboard_shows_the_runs_and_what_is_drawn_of_them(browser, address: str) -> None:
    with dashboard(browser, address, "") as looked:
        wait_for_texts(looked, *LAST_EPOCHS)
        groups = {tag.split("/")[0] for tag in (*TAGS, IMAGE_TAG)}
        for title in (*sorted(groups), "Accuracy/val"):
            looked.page.locator(f'[title="{title}"]').first.wait_for(state="visible")


def test_scalars_show_every_tag(browser, address: str) -> None:
    with dashboard(browser, address, "scalars") as looked:
        wait_for_texts(looked, *LAST_EPOCHS, "tag: Accuracy/val")
        looked.page.locator("tf-category-paginated-view").evaluate_all(OPEN)
        wait_for_texts(looked, *(f"tag: {tag}" for tag in TAGS))
        looked.shoot("tensorboard_scalars", full=False)


def test_images_show_the_last_picture_of_every_kind_as_it_was_drawn(browser, report: Path, address: str) -> None:
    figures = [
        path
        for run, epochs in LAST_EPOCHS.items()
        for path in (report / "figures" / run).glob("*.png")
        if path.stem == f"bitwidth_vs_accuracy_epoch_{epochs:03d}" or "_epoch_" not in path.stem
    ]
    with dashboard(browser, address, "images") as looked:
        wait_for_texts(looked, *LAST_EPOCHS, f"tag: {IMAGE_TAG}")
        pictures = looked.page.locator("tf-image-loader img")
        pictures.nth(len(figures) - 1).wait_for(state="visible")
        assert sorted(pictures.evaluate_all(SIZES)) == sorted(map(size_of_png, figures))
        looked.shoot("tensorboard_images", full=False)


def test_custom_scalars_show_a_chart_with_a_band_for_each_question(browser, address: str) -> None:
    categories = Layout.FromString(layout().tensor.string_val[0]).category
    with dashboard(browser, address, "custom_scalars") as looked:
        wait_for_texts(looked, *LAST_EPOCHS)
        for category in categories:
            wait_for_texts(looked, category.title, *(chart.title for chart in category.chart))
        assert sum(len(category.chart) for category in categories) == 8
        assert looked.page.get_by_text("No data found", exact=False).count() == 0
        looked.shoot("tensorboard_custom_scalars", full=False)


def test_the_table_of_series_has_a_line_for_each(browser, address: str) -> None:
    with dashboard(browser, address, "hparams") as looked:
        table = looked.page.locator("tf-hparams-table-view vaadin-grid")
        wait_for_texts(looked, *LAST_EPOCHS, "Trial ID", "engine", "reference", "2, 4, 8")
        assert table.count() == 1
        looked.shoot("tensorboard_hparams", full=False)
