"""Series, bins and statistics: against their plain twins on random records, and on golden rows."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import report_references as references
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_records import row, table_of

from qbw_report.bins import add_bins
from qbw_report.cells import READ, cells_frame, count_cells, groups_frame
from qbw_report.correlation import pearson
from qbw_report.intervals import with_intervals
from qbw_report.series import add_series, folder_names, notes_on, printable
from qbw_report.statistics import per_bin, per_epoch
from schemas.records import RECORD_SCHEMA

unhurried = settings(deadline=None, max_examples=60)  # no deadline: a busy machine is no defect


@st.composite
def record_lists(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Records of up to two experiments and three epochs, of networks with 1 to 40 layers."""
    layers = draw(st.integers(1, 40))
    samples = draw(st.integers(1, 500))
    bits = st.lists(st.sampled_from([1, 2, 3, 4, 6, 8, 16, 32]), min_size=layers, max_size=layers)
    losses = st.floats(0, 20) | st.sampled_from([None, math.nan, math.inf])
    return [
        row(
            draw(bits),
            draw(st.integers(0, samples)),
            experiment=draw(st.sampled_from(["demo", "other"])),
            epoch=draw(st.integers(0, 2)),
            num_samples=samples,
            loss=draw(losses),
            config_index=index,
        )
        for index in range(draw(st.integers(1, 15)))
    ]


def frame_of(records: list[dict[str, Any]]) -> pd.DataFrame:
    return add_bins(add_series(table_of(records).to_pandas()))


def cells_of(rows: pd.DataFrame) -> pd.DataFrame:
    table = pa.Table.from_pandas(rows[list(READ)], schema=pa.schema([RECORD_SCHEMA.field(name) for name in READ]))
    cells = count_cells(table)
    return cells_frame(cells, add_series(groups_frame(cells.names, cells.groups)))


def assert_same(found: pd.DataFrame, expected: dict[Any, dict[str, float]], keys: list[str]) -> None:
    assert sorted(expected) == [tuple(key) for key in found[keys].itertuples(index=False)]
    for record in found.to_dict("records"):
        for name, value in expected[tuple(record[key] for key in keys)].items():
            assert record[name] == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), name


@unhurried
@given(record_lists())
def test_statistics_equal_the_plain_computation(records: list[dict[str, Any]]) -> None:
    frame = frame_of(records)
    assert_same(per_epoch(frame), references.per_epoch(records), ["experiment", "epoch"])
    assert_same(per_bin(frame), references.per_bin(records), ["experiment", "epoch", "bitwidth_bin"])


@unhurried
@given(st.lists(st.floats(1, 32), min_size=1, max_size=50))
def test_every_row_falls_in_exactly_one_bin_and_near_it(averages: list[float]) -> None:
    binned = add_bins(pd.DataFrame({"avg_bitwidth": averages}))
    assert binned["avg_bitwidth"].tolist() == averages
    assert (abs(binned["bitwidth_bin"] - binned["avg_bitwidth"]) <= 0.05 + 1e-12).all()
    assert binned.groupby("bitwidth_bin").size().sum() == len(averages)
    tenths = binned["bitwidth_bin"] * 10
    assert np.allclose(tenths, tenths.round(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("bitwidths", "expected"),
    [
        ([2, 2, 2, 4], 2.5),
        ([4] * 13 + [8] * 7, 5.4),
        ([4] * 27 + [6] * 13, 4.6),  # 4.65, a tie: to even
        ([4] * 25 + [6] * 15, 4.8),  # 4.75, a tie: to even
        ([2, 2, 2, 2, 2, 2, 2, 4], 2.2),  # 2.25, a tie: to even
        ([32], 32.0),
    ],
)
def test_bins_round_to_one_decimal_ties_to_even(bitwidths: list[int], expected: float) -> None:
    assert frame_of([row(bitwidths, 1)])["bitwidth_bin"].tolist() == [expected]
    assert references.bin_of(bitwidths) == expected


def test_golden_rows() -> None:
    records = [
        row([2, 2], 50, num_samples=100, loss=1.0, config_index=0),
        row([2, 4], 70, num_samples=100, loss=0.5, config_index=1),
        row([4, 2], 90, num_samples=100, loss=0.3, config_index=2),
        row([8, 8], 90, num_samples=100, loss=0.2, config_index=3),
    ]
    (epoch,) = per_epoch(frame_of(records)).to_dict("records")
    assert epoch == pytest.approx(
        {
            "series": "demo",
            "experiment": "demo",
            "split": "validation",
            "data_id": records[0]["data_id"],
            "epoch": 0,
            "configs": 4,
            "loss_configs": 4,
            "accuracy_mean": 0.75,
            "accuracy_std": 0.16583123951776998,  # sqrt((0.25**2 + 0.05**2 + 0.15**2 + 0.15**2) / 4)
            "accuracy_min": 0.5,
            "accuracy_max": 0.9,
            "loss_mean": 0.5,
            "loss_std": 0.30822070014844883,  # sqrt((0.5**2 + 0 + 0.2**2 + 0.3**2) / 4)
            "loss_min": 0.2,
            "loss_max": 1.0,
            "bitwidth_mean": 4.0,
            "bitwidth_std": 2.345207879911715,  # sqrt((2**2 + 1 + 1 + 4**2) / 4)
            "bitwidth_min": 2.0,
            "bitwidth_max": 8.0,
            "correlation": 0.642824346533225,  # 0.25 / (sqrt(5.5) * sqrt(0.0275)), covariance over standard deviations
        }
    )
    bins = per_bin(frame_of(records))
    assert bins[["bitwidth_bin", "configs", "accuracy_min", "accuracy_max"]].to_numpy().tolist() == [
        [2.0, 1, 0.5, 0.5],
        [3.0, 2, 0.7, 0.9],
        [8.0, 1, 0.9, 0.9],
    ]
    assert bins["accuracy_mean"].tolist() == pytest.approx([0.5, 0.8, 0.9])
    assert bins["accuracy_std"].tolist() == pytest.approx([0, 0.1, 0])


def test_intervals_of_means_are_students_and_end_where_accuracies_do() -> None:
    accuracies = {2: [100, 98], 4: [80, 90, 85], 6: [0, 1, 3], 8: [50]}
    rows = [
        row([bits], right, num_samples=100, config_index=index)
        for bits, each in accuracies.items()
        for index, right in enumerate(each)
    ]
    table = with_intervals(per_bin(add_series(table_of(rows).to_pandas())))
    for (low, high), each in zip(table[["accuracy_low", "accuracy_high"]].to_numpy(), accuracies.values(), strict=True):
        if len(each) == 1:
            assert np.isnan([low, high]).all()
            continue
        mean, error = np.mean(each) / 100, np.std(each, ddof=1) / 100 / math.sqrt(len(each))
        ends = [mean + sign * {2: 12.706, 3: 4.3027}[len(each)] * error for sign in (-1, 1)]
        assert [low, high] == pytest.approx([min(max(end, 0.0), 1.0) for end in ends], rel=1e-4)
    assert (table["accuracy_high"][0], table["accuracy_low"][2]) == (1.0, 0.0)


def test_losses_that_are_not_finite_are_left_out_and_counted() -> None:
    records = [row([2], 1, loss=loss, config_index=i) for i, loss in enumerate([None, math.nan, math.inf, 2.0, 4.0])]
    frame = frame_of(records)
    (epoch,) = per_epoch(frame).to_dict("records")
    assert (epoch["configs"], epoch["loss_configs"], epoch["loss_mean"], epoch["loss_std"]) == (5, 2, 3.0, 1.0)
    assert notes_on(cells_of(frame)) == ["demo: 3 of 5 rows without a finite loss; loss statistics leave them out"]


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1, 2, 3], [2, 4, 6], 1.0),
        ([1, 2, 3], [6, 4, 2], -1.0),
        ([1, 2, 3, 4], [1, -1, -1, 1], 0.0),
        ([1, 2], [1, 2], math.nan),  # two points always lie on a line
        ([1, 1, 1], [1, 2, 3], math.nan),
        ([1, 2, 3], [0.1, 0.1, 0.1], math.nan),
        ([], [], math.nan),
    ],
)
def test_pearson(x: list[float], y: list[float], expected: float) -> None:
    assert pearson(np.array(x, float), np.array(y, float)) == pytest.approx(expected, abs=1e-15, nan_ok=True)


def test_an_experiment_on_two_data_sets_is_two_series() -> None:
    records = [
        row([2], 100, data_id="aaaaaaaa11", config_index=0),
        row([2], 900, data_id="bbbbbbbb22", config_index=0),
        row([2], 300, data_id="aaaaaaaa11", split="test", config_index=0),
        row([2], 500, experiment="other", config_index=0),
    ]
    frame = frame_of(records)
    means = per_epoch(frame).set_index("series")["accuracy_mean"].to_dict()
    assert means == {
        "demo [validation aaaaaaaa]": 0.1,
        "demo [validation bbbbbbbb]": 0.9,
        "demo [test aaaaaaaa]": 0.3,
        "other": 0.5,
    }
    assert notes_on(cells_of(frame)) == ["demo was evaluated on 3 data sets; each has a series"]


def test_series_stay_apart_whatever_they_are_called() -> None:
    records = [
        row([2], 100, data_id="aaaaaaaa11", config_index=0),
        row([2], 900, data_id="aaaaaaaa22", config_index=0),
        row([2], 500, experiment="demo [validation aaaaaaaa]", config_index=0),
        row([2], 500, experiment="a\nb", config_index=0),
        row([2], 700, experiment="a\tb", config_index=0),
    ]
    assert frame_of(records)["series"].nunique() == 5


def test_rows_of_several_checkpoints_networks_or_engines_in_one_epoch_are_said() -> None:
    records = [
        row([2], 1, config_index=0, checkpoint_id="x", engine="reference"),
        row([2], 1, config_index=1, checkpoint_id="y", engine="reference"),
        row([2], 1, config_index=2, epoch=4, engine="reference"),
        row([2], 1, config_index=3, epoch=4, engine="integer"),
        row([2], 1, config_index=4, epoch=5, model_id="m"),
        row([2], 1, config_index=5, epoch=5, model_id="n"),
        *(row([2], 1, config_index=i, epoch=10 + i % 6, engine=f"e{i % 5}") for i in range(30)),
    ]
    assert notes_on(cells_of(frame_of(records))) == [
        "demo: epoch 1 has rows from 2 checkpoints; the statistics cover all rows",
        "demo: epoch 6 has rows from 2 networks; the statistics cover all rows",
        "demo: 7 epochs have rows from 5 engines; the statistics cover all rows",
    ]


def test_nothing_odd_is_nothing_said() -> None:
    assert notes_on(cells_of(frame_of([row([2], 1), row([4], 2, config_index=1)]))) == []


def test_folder_names_are_portable_and_different() -> None:
    names = ["demo", "Demo", "plain_1.0", "a/b", "a b", "..", ".hidden", "x" * 300, "日本", "demo [test 1a2b3c4d]"]
    folders = folder_names(names)
    assert folders["plain_1.0"] == "plain_1.0"
    assert len({folder.casefold() for folder in folders.values()}) == len(names)
    for folder in folders.values():
        assert len(folder) <= 89
        assert set(folder) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        assert not folder.startswith((".", "-"))


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert printable("a\x1b[31m\nb é 日") == "a?[31m?b é 日"
