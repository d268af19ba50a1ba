"""What TensorBoard's dashboards are told: read back from the bytes of the summaries."""

from typing import Any

import pandas as pd
from simulated_records import row, simulate, table_of
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata

from qbw_report.dashboards import TAGS, layout, session, settings_of
from qbw_report.insight.over_epochs import OVER_EPOCHS_COLUMNS
from qbw_report.statistics import per_epoch


def frame_of(records: list[dict[str, Any]]) -> pd.DataFrame:
    return table_of(records).to_pandas()


SETTINGS = settings_of(frame_of(simulate(epochs=2, configs=5, sampler="stratified/1")))


def test_every_number_over_epochs_has_a_tag_and_every_tag_a_number() -> None:
    columns = {*per_epoch(frame_of(simulate(epochs=1)).assign(series="demo")).columns, *OVER_EPOCHS_COLUMNS}
    keys = {"series", "experiment", "split", "data_id", "epoch", "configs", "loss_configs"}
    assert set(TAGS.values()) == columns - keys


def test_charts_have_bands_of_tags_that_there_are() -> None:
    value = layout()
    assert value.tag == "custom_scalars__config__"
    assert value.metadata.plugin_data.plugin_name == "custom_scalars"
    (content,) = value.tensor.string_val
    charts = [chart for category in Layout.FromString(content).category for chart in category.chart]
    bands = {chart.title: chart.margin.series[0] for chart in charts}
    assert len(bands) == len(charts) == 8
    assert charts[2].title == "Accuracy"  # TensorBoard shows the last one first
    accuracy, knee = bands["Accuracy"], bands["Knee: from where on more bits pay less (bits)"]
    assert (accuracy.lower, accuracy.value, accuracy.upper) == (
        "Validation/min_acc", "Validation/mean_acc", "Validation/max_acc",
    )  # fmt: skip
    assert (knee.lower, knee.value, knee.upper) == ("Answers_95/knee_low", "Answers/knee", "Answers_95/knee_high")
    assert {tag for band in bands.values() for tag in (band.value, band.lower, band.upper)} <= set(TAGS)


def test_settings_say_how_a_series_was_measured() -> None:
    assert SETTINGS == {
        "model": "2f2590b1",
        "layers": 20.0,
        "options": "2, 4, 8",
        "sampler": "stratified",
        "engine": "reference",
        "dataset": "digits",
        "split": "validation",
        "samples": 1000.0,
    }


def test_settings_of_a_mixture_name_all_of_it() -> None:
    records = [
        row([2, 4], 1, engine="reference", sampler="uniform/1", num_samples=500),
        row([8, 8], 1, engine="integer\x1b[2J", sampler=None, bitwidth_options=[8, 16]),
    ]
    told = settings_of(frame_of(records))
    assert (told["options"], told["engine"], told["sampler"], told["samples"]) == (
        "2, 4, 8, 16", "integer?[2J + reference", "uniform + unknown", 500.0,
    )  # fmt: skip


def test_samplers_are_those_of_the_rows_that_answers_are_about() -> None:
    records = [row([2, 4], 1, sampler="iid/1"), row([4, 4], 1, sampler="file/1"), row([4, 8], 1, sampler="one-layer/1")]
    assert settings_of(frame_of(records))["sampler"] == "iid"


def test_old_rows_that_do_not_say_their_options_show_the_bits_that_were_used() -> None:
    records = [row([2, 4], 1, bitwidth_options=None), row([4, 8], 1, bitwidth_options=None)]
    assert settings_of(frame_of(records))["options"] == "2, 4, 8"


def test_a_session_is_called_like_its_series() -> None:
    value = session("demo [validation 1a2b3c4d]", SETTINGS, 12.5)
    assert value.tag == metadata.SESSION_START_INFO_TAG
    info = metadata.parse_session_start_info_plugin_data(value.metadata.plugin_data.content)
    assert (info.group_name, info.start_time_secs) == ("demo [validation 1a2b3c4d]", 12.5)
    told = {name: each.string_value or each.number_value for name, each in info.hparams.items()}
    assert told == SETTINGS


def test_a_session_has_equal_bytes_in_every_process() -> None:
    value = session("demo", SETTINGS, 12.5)
    content = value.metadata.plugin_data.content
    # The order of a map is that of its hashes, unless it is written sorted.
    places = [content.index(b"\n" + bytes([len(name)]) + name.encode()) for name in sorted(SETTINGS)]
    assert places == sorted(places)
