"""Predictions against measurements, in words: all of them, and what was evaluated from a file."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_helpers import RunCli
from simulated_records import row, write_records
from test_report_sensitivity import NAMES, OPTIONS, drawn, frame_of

from qbw_report.bins import add_bins
from qbw_report.build import all_tables, analyze
from qbw_report.frontier import possible, predictions, predictions_in_words
from qbw_report.masks import compare_right
from qbw_report.sensitivity import find_sensitivity
from qbw_report.series import add_series
from schemas.records import hash_of

SAMPLES = 10_000


def in_words(*frames: pd.DataFrame) -> list[str]:
    rows = pd.concat(frames, ignore_index=True).drop(columns=["series", "bitwidth_bin"])
    rows = add_bins(add_series(rows))
    sensitivity = find_sensitivity(rows, NAMES)
    return predictions_in_words(rows, predictions(rows, sensitivity.model), sensitivity)


def from_file(*measured: tuple[Sequence[int], float]) -> pd.DataFrame:
    bits, accuracies = zip(*measured, strict=True)
    return frame_of(np.array(bits), np.array(accuracies), sampler="file/1")


def name_of(*bits: int) -> str:
    return hash_of({"bitwidths": list(bits)})[:8]


@pytest.mark.parametrize(("configs", "layers", "told_apart"), [(60, 3, False), (100, 12, True)])
def test_what_was_drawn_is_told_in_two_sentences(configs: int, layers: int, told_apart: bool) -> None:
    rows = frame_of(*drawn(configs, layers=layers))
    sensitivity = find_sensitivity(rows, None)
    whole, best = sensitivity.findings[:2]
    assert (best.low > 0) is told_apart
    inside = int(predictions(rows, sensitivity.model)["inside"].sum())
    assert 0.85 * configs < inside <= configs
    word = ", those in the best fifth with" if told_apart else "; which of the best fifth is better they cannot tell:"
    assert in_words(rows) == [
        f"Predicted without themselves, configurations rank as measured with correlation {whole.value:.2f} "
        f"(95%: {whole.low:.2f} to {whole.high:.2f}){word} correlation {best.value:.2f} "
        f"(95%: {best.low:.2f} to {best.high:.2f}).",
        f"Their 95% intervals hold {inside} of {configs} measured accuracies.",
    ]


def test_one_from_a_file_is_told_with_its_interval_and_against_the_best_uniform_one_of_no_more_bits() -> None:
    bits, accuracy = drawn(60)
    bits[:3] = [[2] * 3, [4] * 3, [8] * 3]
    accuracy[:3] = 0.8, 0.93, 0.949
    first = frame_of(bits, accuracy)
    model = find_sensitivity(first, NAMES).model
    assert model is not None
    (predicted,), (half,) = model.predict(np.array([[8, 4, 2]]))
    beginning = (
        f"Configuration {name_of(8, 4, 2)} from a file (4.67 bits on average): {predicted:.4f} predicted "
        f"(95%: {predicted - half:.4f} to {predicted + half:.4f})"
    )
    uniform = "4 bits in every layer, the best uniform one of no more bits."
    assert in_words(first, from_file(([8, 4, 2], round(predicted, 4))))[2:] == [
        f"{beginning}, {predicted:.4f} measured, inside; {100 * (round(predicted, 4) - 0.93):.1f} points better than "
        f"{uniform}"
    ]
    assert in_words(first, from_file(([8, 4, 2], 0.9)))[2:] == [
        f"{beginning}, 0.9000 measured, outside; 3.0 points worse than {uniform}"
    ]
    assert in_words(first, from_file(([8, 4, 2], 0.93)))[2].endswith(f" as good as {uniform}")


def test_nothing_is_said_of_uniform_ones_where_none_has_so_few_bits() -> None:
    bits, accuracy = drawn(60)
    kept = np.ptp(bits, axis=1) > 0
    told = in_words(frame_of(bits[kept], accuracy[kept]), from_file(([2, 2, 4], 0.83)))
    assert told[2].endswith(("inside.", "outside."))


def test_the_difference_on_the_same_samples_has_an_interval() -> None:
    random = np.random.default_rng(0)
    bits, accuracy = drawn(60)
    bits[0] = 4
    drawn_rows, given = frame_of(bits, accuracy), from_file(([8, 4, 2], 0.9))
    right = random.random(SAMPLES) < 0.93
    other = right ^ (random.random(SAMPLES) < 0.02)
    for rows, index, mask in ((drawn_rows, 0, right), (given, 0, other)):
        rows.at[index, "correct_mask"] = np.packbits(mask, bitorder="little").tobytes()
        rows.loc[index, ["correct", "accuracy"]] = [int(mask.sum()), mask.mean()]
    drawn_rows = drawn_rows[(np.ptp(drawn_rows["bitwidths"].tolist(), axis=1) > 0) | (drawn_rows.index == 0)]
    paired = compare_right(other, right)
    (told,) = in_words(drawn_rows, given)[2:]
    assert f"4 bits in every layer (95%: {100 * paired.low:+.1f} to {100 * paired.high:+.1f}), the best" in told


def test_of_many_from_files_the_most_promising_are_told_and_all_are_counted() -> None:
    chosen = [([8, 4, 8], 0.94), ([8, 8, 4], 0.94), ([2, 2, 2], 0.5), ([4, 8, 8], 0.93)]
    told = in_words(frame_of(*drawn(60)), from_file(*chosen))
    assert told[2].startswith("Measured inside the 95% intervals of their predictions: ")
    assert told[2].endswith(" of 4 configurations from files.")
    assert int(told[2].split(": ")[1].split()[0]) == sum("inside" in sentence for sentence in told[3:])
    assert len(told) == 6
    assert not any(name_of(2, 2, 2) in sentence for sentence in told)


def test_bits_that_were_never_drawn_promise_nothing() -> None:
    bits, accuracy = drawn(60)
    bits[:, 2] = np.where(bits[:, 2] == 2, 4, bits[:, 2])
    told = in_words(frame_of(bits, accuracy), from_file(([8, 8, 2], 0.93)))
    assert told[2:] == [
        "Nothing is predicted for 1 configuration from files, with bits that no drawn one had in that layer."
    ]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            frame_of(*drawn(3)),
            "What a configuration would reach that nobody measured cannot be told: 3 configurations measured, at least "
            "5 needed; evaluate about 2 more.",
        ),
        (
            frame_of(drawn(20)[0], np.random.default_rng(1).normal(0.9, 0.01, 20)),
            "Whether predictions tell good configurations from bad ones cannot be told: correlation ",
        ),
        (
            frame_of(drawn(20)[0], np.full(20, 0.9)),
            "Whether predictions tell good configurations from bad ones cannot be told: too few different accuracies.",
        ),
    ],
)
def test_cannot_tell(rows: pd.DataFrame, sentence: str) -> None:
    assert in_words(rows)[0].startswith(sentence)


@pytest.mark.parametrize("near", [0, 1])
def test_the_table_ends_where_accuracies_do_and_the_computation_does_not(near: int, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    rows = [
        row([int(b) for b in bits], abs(20 * near - int(random.binomial(20, 0.03))), num_samples=20, config_index=index)
        for index, bits in enumerate(random.choice(OPTIONS, size=(60, 3)))
    ]
    analysis = analyze(write_records(tmp_path, rows))
    computed, table = analysis.predictions["demo"], all_tables(analysis)["predictions"]
    beyond = (computed[["predicted", "low", "high"]] - 0.5).abs() > 0.5
    assert beyond["predicted"].any()
    assert beyond["high" if near else "low"].all()
    for name in ("predicted", "low", "high"):
        assert table[name].tolist() == [min(max(value, 0.0), 1.0) for value in computed[name]]
    others = ["config_id", "measured", "inside", "fitted"]
    pd.testing.assert_frame_equal(table[others], computed[others])
    assert 50 < table["inside"].sum() <= 60


def test_a_prediction_that_nobody_makes_stays_none() -> None:
    table = predictions(frame_of(*drawn(60)), None)
    pd.testing.assert_frame_equal(possible(table), table)
    unknown = pd.DataFrame({"predicted": [np.nan], "low": [np.nan], "high": [np.nan]})
    pd.testing.assert_frame_equal(possible(unknown), unknown)


def test_summary_and_json_tell_them_after_the_answers(run_cli: RunCli, tmp_path: Path) -> None:
    bits, accuracy = drawn(30)
    rows = [
        row([int(b) for b in each], round(SAMPLES * a), num_samples=SAMPLES, config_index=i, sampler=sampler)
        | {"bitwidth_options": list(OPTIONS)}
        for i, (each, a, sampler) in enumerate(zip(bits, accuracy, ["iid/1"] * 29 + ["file/1"], strict=True))
    ]
    records = write_records(tmp_path, rows)
    (series,) = json.loads(run_cli("summary", records, "--json").stdout)["series"]
    told = series["answers"]["sentences"]
    assert told[-1].startswith(f"Configuration {name_of(*map(int, bits[-1]))} from a file (")
    said = run_cli("summary", records).stdout
    assert said.endswith("\n" + "\n".join(told) + "\n\n")
