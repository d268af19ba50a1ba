"""Where bits matter: the additive model against plain least squares, single changes, pairs, and what is unknown."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.stats import t
from simulated_records import row, table_of

from qbw_report.additive import Additive, fit_additive
from qbw_report.bins import add_bins
from qbw_report.frontier import front, predictions
from qbw_report.layers import Layers, read_layers
from qbw_report.sensitivity import find_sensitivity
from qbw_report.sensitivity_figure import plot_sensitivity, shorten
from qbw_report.series import add_series
from qbw_report.style import png_bytes
from schemas import layers as layer_table
from schemas.errors import QBWError
from schemas.parts import encode_part

OPTIONS = (2, 4, 8)
NAMES = Layers(names=("stem", "body", "head"), weights=(10, 20, 30), macs=(5, 5, 5))


def drawn(configs: int, seed: int = 0, layers: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return bits and accuracies: the first layer loses most, 4 and 8 bits hardly differ."""
    random = np.random.default_rng(seed)
    bits = random.choice(OPTIONS, size=(configs, layers))
    lost = np.where(bits == 2, 1.0, np.where(bits == 4, 0.1, 0.0)) * np.linspace(0.1, 0.01, layers)
    return bits, 0.95 - lost.sum(axis=1) + random.normal(0, 0.003, configs)


def frame_of(bits: np.ndarray, accuracies: np.ndarray, **others: Any) -> pd.DataFrame:
    records = [
        row(
            [int(b) for b in each],
            round(10_000 * a),
            num_samples=10_000,
            config_index=i,
            bitwidth_options=list(OPTIONS),
        )
        | others
        for i, (each, a) in enumerate(zip(bits, accuracies, strict=True))
    ]
    return add_bins(add_series(table_of(records).to_pandas()))


def test_effects_are_those_of_plain_least_squares() -> None:
    bits, accuracy = drawn(60)
    model = fit_additive(bits, accuracy, OPTIONS)
    assert isinstance(model, Additive)
    columns = [np.ones(60)] + [(bits[:, layer] == option).astype(float) for layer in range(3) for option in (2, 4)]
    design = np.column_stack(columns)
    solved, residual, _, _ = np.linalg.lstsq(design, accuracy, rcond=None)
    assert model.base == pytest.approx(solved[0])
    assert model.effects[:, :2].ravel() == pytest.approx(solved[1:])
    assert model.effects[:, 2].tolist() == [0, 0, 0]
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * residual[0] / (60 - 7))
    assert (model.high - model.low)[:, :2].ravel() == pytest.approx(2 * t.ppf(0.975, 53) * errors[1:])
    assert model.method == "least squares, 60 rows"
    # Every row predicted by a model of the others, and the interval that this one would give it.
    for place in (0, 17):
        others = np.delete(np.arange(60), place)
        without = fit_additive(bits[others], accuracy[others], OPTIONS)
        assert isinstance(without, Additive)
        assert model.left_out[place] == pytest.approx(without.predict(bits[[place]])[0][0])


@pytest.mark.parametrize("configs", [10, 60])  # ridge, least squares
@pytest.mark.parametrize("power", [-1000, -300, 0, 300, 980])
def test_results_of_any_magnitude_have_the_same_digits(configs: int, power: int) -> None:
    bits, accuracy = drawn(configs)
    plain, other = (fit_additive(bits, accuracy * factor, OPTIONS) for factor in (1.0, 2.0**power))
    assert isinstance(plain, Additive)
    assert isinstance(other, Additive)
    assert (other.base, other.fit.error) == (plain.base * 2.0**power, plain.fit.error * 2.0**power)
    for name in ("effects", "low", "high", "left_out", "left_out_half"):
        np.testing.assert_array_equal(getattr(other, name), getattr(plain, name) * 2.0**power)
    for found, expected in zip(other.predict(bits), plain.predict(bits), strict=True):
        np.testing.assert_array_equal(found, expected * 2.0**power)
    assert other.method == plain.method


def test_no_model_whose_numbers_float64_cannot_hold() -> None:
    bits, accuracy = drawn(60)
    largest = np.where(accuracy > np.median(accuracy), 1.0, -1.0) * np.finfo(float).max
    assert fit_additive(bits, largest, OPTIONS) == "effects are larger than float64 holds, 1.8e+308"
    zeros = fit_additive(bits, np.zeros(60), OPTIONS)
    assert isinstance(zeros, Additive)
    assert not zeros.effects.any()


def test_ridge_steps_in_where_rows_are_few_and_says_so() -> None:
    bits, accuracy = drawn(10)
    model = fit_additive(bits, accuracy, OPTIONS)
    assert isinstance(model, Additive)
    assert model.penalty > 0
    assert model.method.startswith("ridge (penalty ")
    assert np.isnan(model.low[:, :2]).all()
    centered = np.column_stack([(bits[:, layer] == option) for layer in range(3) for option in (2, 4)]).astype(float)
    centered -= centered.mean(axis=0)
    solved = np.linalg.solve(
        centered.T @ centered + model.penalty * np.eye(6), centered.T @ (accuracy - accuracy.mean())
    )
    assert model.effects[:, :2].ravel() == pytest.approx(solved)


@pytest.mark.parametrize(
    ("configs", "why"),
    [(3, "3 configurations measured, at least 5 needed; evaluate about 2 more")],
)
def test_no_model_of_hardly_any_rows(configs: int, why: str) -> None:
    assert fit_additive(*drawn(configs), OPTIONS) == why


def test_no_model_of_one_configuration() -> None:
    assert fit_additive(np.full((9, 3), 4), np.linspace(0, 1, 9), OPTIONS) == "every configuration has the same bits"


def test_an_option_that_a_layer_never_had_is_unknown() -> None:
    bits, accuracy = drawn(80)
    bits[bits[:, 1] == 2, 1] = 4
    model = fit_additive(bits, accuracy, OPTIONS)
    assert isinstance(model, Additive)
    assert np.isnan(model.effects[1, 0])
    predicted, half = model.predict(np.array([[2, 2, 2], [2, 4, 2], [2, 3, 2]]))
    assert np.isnan(predicted).tolist() == [True, False, True]
    assert np.isnan(half).tolist() == [True, False, True]


def test_the_table_has_a_line_per_metric_layer_and_option() -> None:
    bits, accuracy = drawn(60)
    found = find_sensitivity(frame_of(bits, accuracy), NAMES)
    assert list(found.table["metric"].unique()) == ["accuracy", "loss"]  # no divergence was recorded
    lines = found.table[found.table["metric"] == "accuracy"]
    assert lines[["layer_name", "option"]].to_numpy().tolist() == [
        [name, option] for name in NAMES.names for option in OPTIONS
    ]
    assert lines.drop_duplicates("layer_name")["rank"].tolist() == [1, 2, 3]
    assert lines["rows"].sum() == 3 * 60
    assert {finding.question for finding in found.findings} >= {"prediction", "prediction_best_fifth"}
    assert found.findings[0].value > 0.9


def test_single_changes_are_put_beside_the_effects() -> None:
    bits, accuracy = drawn(60)
    mixed = (bits != 8).sum(axis=1) > 1
    rows = frame_of(bits[mixed], accuracy[mixed])
    singles = np.array([[8, 8, 8], [2, 8, 8], [4, 8, 8], [8, 2, 8], [8, 4, 8], [8, 8, 2], [8, 8, 4]])
    picked = frame_of(singles, np.array([0.95, 0.85, 0.94, 0.9, 0.945, 0.94, 0.949]), sampler="one-layer/1")
    picked["series"] = rows["series"].iloc[0]
    found = find_sensitivity(pd.concat([rows, picked], ignore_index=True), NAMES)
    lines = found.table[found.table["metric"] == "accuracy"].set_index(["layer_name", "option"])
    assert lines.loc[("stem", 2), "measured"] == pytest.approx(-0.1)
    assert lines.loc[("head", 4), "measured"] == pytest.approx(-0.001)
    assert math.isnan(lines.loc[("stem", 8), "measured"])
    assert int(lines["rows"].sum()) == 3 * mixed.sum()  # picked rows are checked against, not fitted to
    (check,) = (finding for finding in found.findings if finding.question == "single_changes")
    assert check.configs == 6
    assert check.value > 0.9


def test_a_pair_that_loses_more_together_is_found_first() -> None:
    bits, accuracy = drawn(400, layers=6)
    together = (bits[:, 1] == 2) & (bits[:, 4] == 2)
    found = find_sensitivity(frame_of(bits, accuracy - 0.05 * together), None)
    first = found.interactions.iloc[0]
    assert (first["first_layer"], first["second_layer"]) == ("layer 1", "layer 4")
    assert first["p_value"] < 0.001
    assert first["high"] < 0
    assert found.interactions["p_value"].iloc[1] > 0.05


def test_losses_that_are_no_numbers_are_left_out() -> None:
    bits, accuracy = drawn(60)
    found = find_sensitivity(frame_of(bits, accuracy, loss=math.nan), NAMES)
    assert list(found.table["metric"].unique()) == ["accuracy"]


def test_few_rows_have_no_table() -> None:
    found = find_sensitivity(frame_of(*drawn(2)), None)
    assert found.table.empty
    assert found.model is None
    assert found.unknown == "2 configurations measured, at least 5 needed; evaluate about 3 more"


def test_the_front_has_what_nothing_beats() -> None:
    rows = frame_of(np.array([[2, 2, 2], [2, 2, 4], [4, 4, 4], [8, 8, 8]]), np.array([0.5, 0.4, 0.9, 0.9]))
    found = front(rows)
    assert found[found["cost"] == "avg_bitwidth"]["bitwidths"].tolist() == ["2 2 2", "4 4 4"]
    assert set(found["cost"]) == {"avg_bitwidth", "weighted_avg_bitwidth", "weight_bytes", "bit_ops"}


@pytest.mark.parametrize("seed", range(5))
def test_no_row_beats_one_of_the_front(seed: int) -> None:
    random = np.random.default_rng(seed)
    bits = np.unique(random.choice(OPTIONS, size=(30, 3)), axis=0)
    rows = frame_of(bits, random.random(len(bits)).round(1))
    best = front(rows)
    on_front = best[best["cost"] == "bit_ops"]["config_id"].tolist()
    for config, cost, accuracy in zip(rows["config_id"], rows["bit_ops"], rows["accuracy"], strict=True):
        beaten = ((rows["bit_ops"] <= cost) & (rows["accuracy"] >= accuracy)) & (
            (rows["bit_ops"] < cost) | (rows["accuracy"] > accuracy)
        )
        assert (config in on_front) <= (not beaten.any())


def test_predictions_are_of_rows_the_model_has_not_seen() -> None:
    bits, accuracy = drawn(60)
    rows = frame_of(bits, accuracy)
    picked = frame_of(np.array([[8, 4, 4]]), np.array([0.94]), sampler="file/1")
    rows = pd.concat([rows, picked.assign(series=rows["series"].iloc[0])], ignore_index=True)
    model = find_sensitivity(rows, NAMES).model
    assert model is not None
    table = predictions(rows, model)
    assert table["fitted"].tolist() == [True] * 60 + [False]
    assert table["predicted"][:60].to_numpy() == pytest.approx(model.left_out)
    assert table["predicted"][60] == pytest.approx(model.predict(np.array([[8, 4, 4]]))[0][0])
    assert table["inside"].mean() > 0.8
    assert predictions(rows, None).empty


def test_the_picture_has_every_layer_in_network_order() -> None:
    bits, accuracy = drawn(60)
    figure = plot_sensitivity(find_sensitivity(frame_of(bits, accuracy), NAMES).table, "demo: $where$ bits matter")
    cells, strip = figure.axes
    assert [label.get_text() for label in cells.get_yticklabels()] == ["stem", "body", "head"]
    assert [label.get_text() for label in cells.get_xticklabels()] == ["2", "4"]
    assert cells.get_xlabel() == "Bits, against 8"
    texts = [text.get_text() for text in cells.texts]
    assert len(texts) == 6
    assert texts[0].startswith("\N{MINUS SIGN}")
    assert strip.get_xlabel() == "Accuracy (points)"
    assert png_bytes(figure) == png_bytes(figure)


def test_a_picture_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one layer below its largest option, found none"):
        plot_sensitivity(find_sensitivity(frame_of(*drawn(2)), None).table, "x")


def test_long_names_are_cut_in_the_middle() -> None:
    assert shorten("conv1") == "conv1"
    assert shorten("a" * 30 + "." + "b" * 30) == "a" * 16 + "…" + "b" * 16


def layer_rows(*names: str) -> list[dict[str, object]]:
    return [
        {
            "layer_index": index,
            "layer_name": name,
            "kind": "conv2d",
            "weights": 100 * (index + 1),
            "macs": 1000,
            "in_channels": 1,
            "out_channels": 1,
            "kernel": "3x3",
            "stride": "1x1",
        }
        for index, name in enumerate(names)
    ]


def write_layers(folder: Path, *names: str) -> str:
    rows = layer_rows(*names)
    model_id = layer_table.model_id_of(rows)
    columns = {
        name: [model_id if name == "model_id" else each[name] for each in rows]
        for name in layer_table.LAYER_SCHEMA.names
    }
    table = pa.table(columns, schema=layer_table.LAYER_SCHEMA)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{model_id}.parquet").write_bytes(encode_part(table, layer_table.KIND, "layers"))
    return model_id


def test_layers_are_read_from_beside_the_records(tmp_path: Path) -> None:
    model_id = write_layers(tmp_path / "layers", "stem", "head")
    found = read_layers(tmp_path / "records", model_id)
    assert found == Layers(names=("stem", "head"), weights=(100, 200), macs=(1000, 1000))
    assert read_layers(tmp_path / "records", "0" * 32) is None
    assert read_layers(tmp_path / "records", "../layers/" + model_id) is None


def test_a_layer_table_under_another_name_is_refused(tmp_path: Path) -> None:
    model_id = write_layers(tmp_path / "layers", "stem")
    path = tmp_path / "layers" / f"{model_id}.parquet"
    path.rename(path.with_name("0" * 32 + ".parquet"))
    with pytest.raises(QBWError, match=f"expected the layer table {'0' * 32}, found {model_id}; move the file away"):
        read_layers(tmp_path / "records", "0" * 32)
