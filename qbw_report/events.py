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

IMAGE_TAG = "Bitwidth_Analysis/bitwidth_vs_accuracy"

SCALAR_TAGS = {
    "Bitwidth/mean_bitwidth": "bitwidth_mean",
    "Bitwidth/std_bitwidth": "bitwidth_std",
    "Bitwidth/min_bitwidth": "bitwidth_min",
    "Bitwidth/max_bitwidth": "bitwidth_max",
    "Validation/mean_acc": "accuracy_mean",
    "Validation/std_acc": "accuracy_std",
    "Validation/min_acc": "accuracy_min",
    "Validation/max_acc": "accuracy_max",
    "Loss/val": "loss_mean",
    "Accuracy/val": "accuracy_mean",
}
"""The seed document's tag -> column of `qbw_report.statistics.per_epoch`."""

_PREFIX, _SUFFIX = "events.out.tfevents.", ".qbw"


def wall_times(rows: pd.DataFrame) -> dict[int, float]:
    """Return for each epoch of one series when its last row was evaluated, in seconds since 1970."""
    latest = rows.groupby("epoch")["evaluated_at"].max()
    seconds = latest.dt.as_unit("us").astype("int64") / 1e6
    return {int(epoch): float(value) for epoch, value in seconds.items()}


def event_file(statistics: pd.DataFrame, images: Mapping[int, bytes], times: Mapping[int, float]) -> bytes:
    """Return the bytes of the event file of one series; equal arguments give equal bytes.

    Scalars are single precision, as in every event file. A loss that does not exist is written as NaN.

    Args:
        statistics: rows of one series from `qbw_report.statistics.per_epoch`, sorted by epoch.
        images: epoch -> PNG of the figure; epochs without one are left out.
        times: epoch -> wall time, in seconds since 1970.
    """
    start = min(times.values())
    events = [
        Event(wall_time=start, file_version="brain.Event:2"),
        # A running TensorBoard that had read the previous file forgets what it knew from step 0 on.
        Event(wall_time=start, step=0, session_log=SessionLog(status=SessionLog.START)),
    ]
    for row in statistics.to_dict("records"):
        epoch = int(row["epoch"])
        values = [Summary.Value(tag=tag, simple_value=row[column]) for tag, column in SCALAR_TAGS.items()]
        if epoch in images:
            values.append(Summary.Value(tag=IMAGE_TAG, image=_image(images[epoch])))
        events.append(Event(wall_time=times[epoch], step=epoch, summary=Summary(value=values)))
    return _encode(events)


def event_file_name(data: bytes, times: Mapping[int, float]) -> str:
    """Return the name of an event file: the latest wall time (TensorBoard reads in the order of names), then a digest.

    The digits of the wall time are padded, so that names sort by it.
    """
    return f"{_PREFIX}{int(max(times.values())):010d}.{hashlib.blake2b(data, digest_size=8).hexdigest()}{_SUFFIX}"


def our_event_files(tensorboard: Path) -> list[Path]:
    """Return the event files in the run folders of `tensorboard` that bear our suffix, so that only we wrote them."""
    return sorted(tensorboard.glob(f"*/{_PREFIX}*{_SUFFIX}"))


def _image(png: bytes) -> Summary.Image:
    width, height = struct.unpack(">II", png[16:24])  # PNG: 8 bytes signature, then the header chunk
    return Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)  # 4: RGBA


def _encode(events: Iterable[Event]) -> bytes:
    sink = io.BytesIO()
    writer = RecordWriter(sink)
    for event in events:
        writer.write(event.SerializeToString(deterministic=True))
    return sink.getvalue()
