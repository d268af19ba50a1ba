"""TensorBoard in a real browser: a report's tags, picture and runs are there to be seen."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser_helpers import Looked, looking
from simulated_records import simulate, write_records
from tensorboard_server import PATIENCE, serving

from qbw_report.build import build
from qbw_report.events import IMAGE_TAG, SCALAR_TAGS

LAST_EPOCHS = {"demo": 6, "other": 1}
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
    """The report of two experiments, of 6 epochs and of 1."""
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
        groups = {tag.split("/")[0] for tag in (*SCALAR_TAGS, IMAGE_TAG)}
        for title in (*sorted(groups), "Accuracy/val", "Bitwidth/mean_bitwidth"):
            looked.page.locator(f'[title="{title}"]').first.wait_for(state="visible")


def test_scalars_show_every_tag_of_the_seed_document_as_a_line(browser, address: str) -> None:
    with dashboard(browser, address, "scalars") as looked:
        wait_for_texts(looked, *LAST_EPOCHS, "tag: Accuracy/val")
        looked.page.locator("tf-category-paginated-view").evaluate_all(OPEN)
        wait_for_texts(looked, *(f"tag: {tag}" for tag in SCALAR_TAGS))
        looked.shoot("tensorboard_scalars", full=False)


def test_images_show_the_last_picture_of_every_run_as_it_was_drawn(browser, report: Path, address: str) -> None:
    with dashboard(browser, address, "images") as looked:
        wait_for_texts(looked, *LAST_EPOCHS, f"tag: {IMAGE_TAG}")
        pictures = looked.page.locator("tf-image-loader img")
        for place in range(len(LAST_EPOCHS)):
            pictures.nth(place).wait_for(state="visible")
        shown = pictures.evaluate_all(SIZES)
        figures = [
            report / "figures" / run / f"bitwidth_vs_accuracy_epoch_{epochs:03d}.png"
            for run, epochs in LAST_EPOCHS.items()
        ]
        assert sorted(shown) == sorted(map(size_of_png, figures))
        looked.shoot("tensorboard_images", full=False)
