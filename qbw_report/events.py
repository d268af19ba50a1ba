"""Statistics and figures -> the bytes of a TensorBoard event file, without torch or TensorFlow.

TensorBoard asks for care: it reads every file whose name contains "tfevents", wants one of them per run folder, and
does not notice a file that is replaced under its old name. So there is one file per series, whole, and its name ends
with a digest of its content. A server with TensorBoard's data server (the default on Linux and macOS) then follows a
rebuilt report; one that reads in Python clings to the deleted file and has to be started again.
"""

import hashlib
import io
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from qbw_report.dashboards import TAGS, Setting, layout, session

IMAGE_TAG = "Bitwidth_Analysis/bitwidth_vs_accuracy"
"""The seed document's."""

OVER_EPOCHS_TAG = "Bitwidth_Analysis/{}_over_epochs"
"""Of the figures of accuracy, loss and bitwidth over epochs."""

SENSITIVITY_TAG = "Bitwidth_Analysis/sensitivity"
"""Of the figure of where bits matter."""

_PREFIX, _SUFFIX = "events.out.tfevents.", ".qbw"


def wall_times(rows: pd.DataFrame) -> dict[int, float]:
    """Return for each epoch of one series when its last row was evaluated, in seconds since 1970."""
    latest = rows.groupby("epoch")["evaluated_at"].max()
    seconds = latest.dt.as_unit("us").astype("int64") / 1e6
    return {int(epoch): float(value) for epoch, value in seconds.items()}


def event_file(
    numbers: pd.DataFrame,
    images: Mapping[str, Mapping[int, bytes]],
    times: Mapping[int, float],
    settings: Mapping[str, Setting],
) -> bytes:
    """Return the bytes of the event file of one series; equal arguments give equal bytes.

    Scalars are single precision, as in every event file. What does not exist or cannot be told is written as NaN, not
    left out: a running TensorBoard would keep what an earlier report said of that epoch, its table of series would show
    an earlier epoch, and a chart with a band wants value and both ends at the same steps. (It does keep the picture of
    an epoch that was the last one then, and has none now.)

    Args:
        numbers: rows of one series, sorted by epoch: the columns of `qbw_report.statistics.per_epoch` and
            `qbw_report.insight.over_epochs.answers_over_epochs`.
        images: tag -> epoch -> PNG of the figure; epochs without one are left out.
        times: epoch -> wall time, in seconds since 1970.
        settings: how the series was measured; see `qbw_report.dashboards.settings_of`.
    """
    start = min(times.values())
    series = str(numbers["series"].iloc[0])
    events = [
        Event(wall_time=start, file_version="brain.Event:2"),
        # A running TensorBoard that reads in Python and had read the previous file forgets what it knew from step 0 on.
        Event(wall_time=start, step=0, session_log=SessionLog(status=SessionLog.START)),
        _event(start, 0, [layout(), session(series, settings, start)]),
    ]
    for row in numbers.to_dict("records"):
        epoch = int(row["epoch"])
        values = [Summary.Value(tag=tag, simple_value=row[column]) for tag, column in TAGS.items()]
        values += [Summary.Value(tag=tag, image=_image(pngs[epoch])) for tag, pngs in images.items() if epoch in pngs]
        events.append(_event(times[epoch], epoch, values))
    return _encode(events)


def event_file_name(data: bytes, times: Mapping[int, float]) -> str:
    """Return the name of an event file: the latest wall time (TensorBoard reads in the order of names), then a digest.

    The digits of the wall time are padded, so that names sort by it.
    """
    return f"{_PREFIX}{int(max(times.values())):010d}.{hashlib.blake2b(data, digest_size=8).hexdigest()}{_SUFFIX}"


def our_event_files(tensorboard: Path) -> list[Path]:
    """Return the event files in the run folders of `tensorboard` that bear our suffix, so that only we wrote them."""
    return sorted(tensorboard.glob(f"*/{_PREFIX}*{_SUFFIX}"))


def _event(wall_time: float, step: int, values: Iterable[Summary.Value]) -> Event:
    return Event(wall_time=wall_time, step=step, summary=Summary(value=values))


def _image(png: bytes) -> Summary.Image:
    width, height = struct.unpack(">II", png[16:24])  # PNG: 8 bytes signature, then the header chunk
    return Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)  # 4: RGBA


def _encode(events: Iterable[Event]) -> bytes:
    sink = io.BytesIO()
    writer = RecordWriter(sink)
    for event in events:
        writer.write(event.SerializeToString(deterministic=True))
    return sink.getvalue()
