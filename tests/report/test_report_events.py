"""Event files: read back record by record and with TensorBoard's own reader."""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_helpers import Report
from simulated_records import START, row, simulate, table_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from qbw_report.bins import add_bins
from qbw_report.dashboards import SCALAR_TAGS, TAGS, settings_of
from qbw_report.events import IMAGE_TAG, event_file, event_file_name, our_event_files, wall_times
from qbw_report.figures import plot_bitwidth_vs_accuracy
from qbw_report.insight.over_epochs import answers_over_epochs
from qbw_report.series import add_series
from qbw_report.statistics import per_epoch
from qbw_report.style import png_bytes

SEED_TAGS = {
    *(f"Bitwidth/{part}_bitwidth" for part in ("mean", "std", "min", "max")),
    *(f"Validation/{part}_acc" for part in ("mean", "std", "min", "max")),
    "Loss/val",
    "Accuracy/val",
}
"""What the seed document promises (facts.md, section 3)."""


def frame_of(records: list[dict[str, Any]]) -> pd.DataFrame:
    return add_bins(add_series(table_of(records).to_pandas()))


def numbers_of(frame: pd.DataFrame) -> pd.DataFrame:
    return per_epoch(frame).merge(answers_over_epochs(frame), on=["series", "epoch", "configs"])


def file_of(frame: pd.DataFrame, images: dict[str, dict[int, bytes]] | None = None) -> bytes:
    return event_file(numbers_of(frame), images or {}, wall_times(frame), settings_of(frame))


def events_in(data: bytes) -> list[Event]:
    """Return every event of a file: an independent reading of the record format, checksums included."""
    events = []
    while data:
        header, (length,) = data[:8], struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(header)
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked_crc32c(body)
        events.append(Event.FromString(body))
        data = data[16 + length :]
    return events


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def scalars_of(accumulator: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A run folder with the event file of three epochs."""
    run = tmp_path / "tensorboard" / "demo"
    run.mkdir(parents=True)
    write(run, simulate(epochs=3, configs=5))
    return run


def write(folder: Path, records: list[dict[str, Any]]) -> Path:
    """Put the event file of `records` into a run folder."""
    frame = frame_of(records)
    times = wall_times(frame)
    data = file_of(frame)
    path = folder / event_file_name(data, times)
    path.write_bytes(data)
    return path


def test_the_tags_are_the_seeds() -> None:
    assert set(SCALAR_TAGS) == SEED_TAGS
    assert SCALAR_TAGS.items() <= TAGS.items()
    assert IMAGE_TAG == "Bitwidth_Analysis/bitwidth_vs_accuracy"


def test_one_event_an_epoch_with_every_tag_at_the_time_of_its_last_row() -> None:
    frame = frame_of(simulate(epochs=3, configs=5))  # epoch e ends 60 * e + 4 seconds after START
    version, start, session, *epochs = events_in(file_of(frame))
    assert (version.file_version, version.wall_time) == ("brain.Event:2", START.timestamp() + 4)
    assert (start.session_log.status, start.step) == (1, 0)  # START
    assert (session.step, session.wall_time) == (0, START.timestamp() + 4)
    assert [value.tag for value in session.summary.value] == [
        "custom_scalars__config__",
        "_hparams_/session_start_info",
    ]
    assert [event.step for event in epochs] == [0, 1, 2]
    assert [event.wall_time for event in epochs] == [START.timestamp() + 60 * epoch + 4 for epoch in range(3)]
    for event in epochs:
        assert [value.tag for value in event.summary.value] == list(TAGS)


def test_every_scalar_is_its_statistic(written: Path) -> None:
    numbers = numbers_of(frame_of(simulate(epochs=3, configs=5)))
    accumulator = read(written)
    for tag, column in TAGS.items():
        expected = [(epoch, float(np.float32(value))) for epoch, value in enumerate(numbers[column])]
        np.testing.assert_array_equal(scalars_of(accumulator, tag), expected)  # NaN equals NaN


def test_images_are_the_png_and_only_where_there_is_one() -> None:
    frame = frame_of(simulate(epochs=3, configs=5))
    png = png_bytes(plot_bitwidth_vs_accuracy([2.0, 4.0], [0.5, 0.6], 1, "demo"))
    events = events_in(file_of(frame, {IMAGE_TAG: {1: png}, "Other/figure": {1: png, 7: png}}))
    images = [(e.step, v) for e in events for v in e.summary.value if v.HasField("image")]
    assert [(step, value.tag) for step, value in images] == [(1, IMAGE_TAG), (1, "Other/figure")]
    image = images[0][1].image
    assert image.encoded_image_string == png
    assert (image.width, image.height, image.colorspace) == (1296, 720, 4)


def test_what_does_not_exist_or_cannot_be_told_is_nan_in_every_epoch() -> None:
    event = events_in(file_of(frame_of([row([2], 1, loss=math.nan)])))[-1]
    told = {value.tag: value.simple_value for value in event.summary.value}
    assert list(told) == list(TAGS)
    known = {tag for tag, value in told.items() if not math.isnan(value)}
    assert known == {
        *(f"Bitwidth/{part}_bitwidth" for part in ("mean", "std", "min", "max")),
        *(f"Validation/{part}_acc" for part in ("mean", "std", "min", "max")),
        "Accuracy/val",
        "Answers/best_accuracy",
        "Answers/best_bitwidth",
    }


def test_equal_rows_give_equal_bytes_and_name(tmp_path: Path) -> None:
    one = write(tmp_path, simulate(epochs=2))
    before = one.read_bytes()
    again = write(tmp_path, simulate(epochs=2))
    assert (again, again.read_bytes()) == (one, before)


def test_the_name_changes_with_the_rows_and_sorts_by_time(tmp_path: Path) -> None:
    assert START.timestamp() == 1767323045
    first = write(tmp_path, [row([2], 1)]).name
    other = write(tmp_path, [row([2], 2)]).name
    later = write(tmp_path, [row([2], 1), row([2], 1, epoch=1, seconds=60)]).name
    prefix, wall, digest, suffix = first.rsplit(".", 3)
    assert (prefix, wall, len(digest), suffix) == ("events.out.tfevents", "1767323045", 16, "qbw")
    assert other != first
    assert other.startswith("events.out.tfevents.1767323045.")
    assert max(first, other) < later


def test_a_reader_that_meets_the_old_file_and_then_the_new_one_does_not_double_the_series(written: Path) -> None:
    accumulator = read(written)
    assert [event.step for event in accumulator.Scalars("Accuracy/val")] == [0, 1, 2]
    write(written, simulate(epochs=5, configs=6))
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("Accuracy/val")] == [0, 1, 2, 3, 4]


def test_only_our_event_files_are_ours(written: Path) -> None:
    (ours,) = written.iterdir()
    for name in ("events.out.tfevents.1767323045.laptop", "notes.qbw", "events.out.tfevents.1.host.qbw.bak"):
        (written / name).write_bytes(b"")
    assert our_event_files(written.parent) == [ours]


def test_the_built_report_has_one_event_file_a_series_and_every_image(report: Report) -> None:
    for run in (report.out / "tensorboard").iterdir():
        assert len(list(run.iterdir())) == 1
    (data,) = (path.read_bytes() for path in (report.out / "tensorboard" / "demo").iterdir())
    values = [(event.step, value) for event in events_in(data) for value in event.summary.value]
    images = [(value.tag, step, value.image.encoded_image_string) for step, value in values if value.HasField("image")]
    figures = report.out / "figures" / "demo"
    expected = [
        (IMAGE_TAG, 4, "bitwidth_vs_accuracy_epoch_005"),
        (IMAGE_TAG, 5, "bitwidth_vs_accuracy_epoch_006"),
        *(
            (f"Bitwidth_Analysis/{name}_over_epochs", 5, f"{name}_over_epochs")
            for name in ("accuracy", "loss", "bitwidth")
        ),
        ("Bitwidth_Analysis/sensitivity", 5, "sensitivity"),
    ]
    assert images == [(tag, step, (figures / f"{stem}.png").read_bytes()) for tag, step, stem in expected]
    assert {path.stem for path in figures.iterdir()} == {stem for _, _, stem in expected}
