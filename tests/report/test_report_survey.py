"""Very many rows: counting by parts equals counting at once; what is looked at is bounded, and the same everywhere."""

import json
import math
import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_helpers import RunCli
from simulated_records import row, simulate, table_of, write_records

from qbw_report import cells as cells_module
from qbw_report import frame
from qbw_report.build import analyze, csv_bytes, json_text
from qbw_report.cells import Cells, cells_frame, count_cells, groups_frame, merge_cells
from qbw_report.drawing import fewer_figures
from qbw_report.exact import correlation_of, limbs_of, put_together, root_ratio, split_floats, squares_of, units_of
from qbw_report.frame import choose_epochs, look, read_records
from qbw_report.repeats import keys_of, repeated_rows
from qbw_report.series import add_series
from qbw_report.statistics import bin_statistics, epoch_statistics, join_bins
from qbw_report.survey import Counted, count_part, survey
from schemas.errors import QBWError
from schemas.parts import part_paths

unhurried = settings(deadline=None, max_examples=30)  # no deadline: a busy machine is no defect

WHOLE = st.integers(-(2**54) + 1, 2**54 - 1)
LOSSES = st.floats(allow_nan=False, allow_infinity=False) | st.floats(0, 20) | st.sampled_from([0.0, -0.0, 5e-324, 0.1])


@unhurried
@given(st.lists(st.tuples(WHOLE | st.integers(0, 2**20), st.integers(0, 17)), min_size=1, max_size=30))
def test_sums_of_limbs_are_the_sums(shifted: list[tuple[int, int]]) -> None:
    values, shifts = map(np.array, zip(*shifted, strict=True))
    limbs = limbs_of(values, shifts)
    assert all((abs(limb) < 2**18).all() for limb in limbs)
    squares = squares_of(limbs)
    assert all((abs(square) < 3 * 2**36).all() for square in squares)
    whole = [value << shift for value, shift in shifted]
    for found, expected in ((limbs, sum(whole)), (squares, sum(value * value for value in whole))):
        assert put_together(np.array([[limb.sum() for limb in found]])).tolist() == [expected]


@pytest.mark.parametrize(
    ("values", "limbs"), [([0], 1), ([2**18 - 1], 1), ([1, 2**18], 2), ([2**36], 3), ([2**53], 3), ([0, -1], 4)]
)
def test_numbers_have_no_more_limbs_than_the_largest_needs(values: list[int], limbs: int) -> None:
    assert len(limbs_of(np.array(values))) == limbs


@unhurried
@given(st.lists(LOSSES, min_size=1, max_size=20))
def test_a_float_is_its_integer_times_its_power_of_two(values: list[float]) -> None:
    integers, exponents = split_floats(np.array(values))
    found = [Fraction(int(i)) * Fraction(2) ** int(e) for i, e in zip(integers, exponents, strict=True)]
    assert found == [Fraction(value) for value in values]
    assert max(abs(integers)) <= 2**53
    units = units_of(exponents)
    assert ((units + 62) % 18 == 0).all()
    assert ((exponents - units >= 0) & (exponents - units < 18)).all()


def test_floats_of_ordinary_losses_have_one_unit() -> None:
    _, exponents = split_floats(np.array([0.0, 2**-10, 0.1, 0.69, 2.3, 255.9]))
    assert set(units_of(exponents)) == {-62}


@unhurried
@given(st.integers(0, 2**200), st.integers(1, 2**80))
def test_roots_are_as_good_as_a_double_can_be(square: int, divisor: int) -> None:
    found = Fraction(root_ratio(square, divisor))
    true = Fraction(math.isqrt(square << 400), divisor << 200)
    assert abs(found - true) <= true * Fraction(1, 2**52)


def test_correlations_stay_within_one_and_need_spread() -> None:
    assert correlation_of(10**40, 10**40, 10**40) == 1.0
    assert correlation_of(-(10**40), 10**40, 10**40) == -1.0
    assert math.isnan(correlation_of(0, 0, 5))


@st.composite
def spread_records(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[int]]:
    """Records of up to two series and three epochs with losses of any size, and which of four parts each is in."""
    samples = draw(st.lists(st.integers(1, 10**9), min_size=1, max_size=2))
    rows = []
    for index in range(draw(st.integers(1, 20))):
        of = draw(st.sampled_from(samples))
        bits = draw(st.lists(st.sampled_from([2, 3, 4, 8]), min_size=3, max_size=3))
        rows.append(
            row(
                bits,
                draw(st.integers(0, of)),
                experiment=draw(st.sampled_from(["demo", "other"])),
                epoch=draw(st.integers(0, 2)),
                num_samples=of,
                loss=draw(LOSSES | st.sampled_from([None, math.nan, math.inf])),
                engine=draw(st.sampled_from(["reference", None])),
                correct_mask=None,
                config_index=index,
            )
        )
    return rows, draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))


def exactly(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the statistics of one group in fractions, rounded at the end."""
    told: dict[str, float] = {}
    losses = [Fraction(r["loss"]) for r in records if r["loss"] is not None and math.isfinite(r["loss"])]
    accuracies = [Fraction(r["correct"], r["num_samples"]) for r in records]
    for name, values in (
        ("accuracy", accuracies),
        ("loss", losses),
        ("bitwidth", [Fraction(r["avg_bitwidth"]) for r in records]),
    ):
        mean = sum(values, Fraction()) / len(values) if values else None
        told[f"{name}_mean"] = math.nan if mean is None else float(mean)
        variance = None if mean is None else sum(((v - mean) ** 2 for v in values), Fraction()) / len(values)
        told[f"{name}_std"] = math.nan if variance is None else root_of(variance)
        told[f"{name}_min"] = float(min(values)) if values else math.nan
        told[f"{name}_max"] = float(max(values)) if values else math.nan
    return told


def root_of(value: Fraction) -> float:
    """Return the square root of a fraction, by integers of far more digits than a double has."""
    shift = max(0, 200 + value.denominator.bit_length() - value.numerator.bit_length()) // 2
    return float(Fraction(math.isqrt((value.numerator << 2 * shift) // value.denominator), 1 << shift))


def binned_of(cells: Cells) -> pd.DataFrame:
    return join_bins(cells_frame(cells, add_series(groups_frame(cells.names, cells.groups))))


@unhurried
@given(spread_records())
def test_statistics_are_the_exact_ones_however_rows_are_spread(case: tuple[list[dict[str, Any]], list[int]]) -> None:
    records, places = case
    parts = [table_of([r for r, place in zip(records, places, strict=True) if place == part]) for part in range(4)]
    binned = binned_of(merge_cells([count_cells(part) for part in parts]))
    at_once = binned_of(count_cells(table_of(records[::-1])))
    pd.testing.assert_frame_equal(epoch_statistics(binned), epoch_statistics(at_once), check_exact=True)
    pd.testing.assert_frame_equal(bin_statistics(binned), bin_statistics(at_once), check_exact=True)
    assert csv_bytes(bin_statistics(binned)) == csv_bytes(bin_statistics(at_once))  # which tell 0.0 from -0.0
    for found in epoch_statistics(binned).to_dict("records"):
        group = [r for r in records if (r["experiment"], r["epoch"]) == (found["experiment"], found["epoch"])]
        assert found["configs"] == len(group)
        for name, value in exactly(group).items():
            close = math.isclose(found[name], value, rel_tol=3e-16, abs_tol=5e-324) or found[name] == value
            assert close or (math.isnan(found[name]) and math.isnan(value)), name
            if not name.endswith("_std"):
                assert found[name] == value or math.isnan(value), name


def shuffled_parts(rows: list[dict[str, Any]], seed: int) -> list[list[dict[str, Any]]]:
    """Return the rows in a random order, in parts of random lengths."""
    chance = random.Random(seed)
    rows = chance.sample(rows, len(rows))
    cuts = sorted(chance.sample(range(1, len(rows)), 5))
    return [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]


@pytest.mark.parametrize("seed", range(3))
def test_a_folder_says_the_same_however_its_rows_are_spread(tmp_path: Path, seed: int) -> None:
    rows = simulate(epochs=3, configs=12) + simulate(experiment="other", epochs=2, configs=9, seed=1)
    repeated = [
        one | {"evaluated_at": one["evaluated_at"].replace(year=2027), "correct": 0, "accuracy": 0.0}
        for one in rows[:7]
    ]
    expected = analyze(write_records(tmp_path / "whole", rows))
    found = analyze(write_records(tmp_path / "parts", *shuffled_parts(rows + repeated, seed)))
    assert found.notes == ["7 rows repeat a record that is already there; each counts once"]
    assert csv_bytes(found.epochs) == csv_bytes(expected.epochs)
    assert csv_bytes(found.bins) == csv_bytes(expected.bins)
    assert found.times == expected.times
    pd.testing.assert_frame_equal(found.rows, expected.rows)


def test_parts_as_the_store_writes_them_are_counted_by_what_their_footers_say(tmp_path: Path) -> None:
    rows = simulate(epochs=2, configs=8)
    folder = write_records(tmp_path, rows[:4], rows[4:8], rows[8:])
    runs = [part.run for part in map(count_part, part_paths(folder)) if isinstance(part, Counted) and part.rows]
    assert sorted(runs) == sorted(
        [
            (rows[0]["checkpoint_id"], rows[0]["plan_id"], 0, 3),
            (rows[0]["checkpoint_id"], rows[0]["plan_id"], 4, 7),
            (rows[8]["checkpoint_id"], rows[0]["plan_id"], 0, 7),
        ]
    )


@pytest.mark.parametrize("first", [0, 2, 5])
def test_runs_that_overlap_count_each_record_once(tmp_path: Path, first: int) -> None:
    rows = simulate(epochs=1, configs=8)
    other = simulate(experiment="other", epochs=1, configs=8)
    found = survey(write_records(tmp_path, rows[:6], rows[first:], other))
    assert found.cells["rows"].sum() == 16
    assert len(found.notes) == 1
    assert epoch_statistics(join_bins(found.cells))["configs"].tolist() == [8, 8]


def test_keys_tell_ids_apart_and_equal_ids_have_equal_keys() -> None:
    ids = ["00" * 16, "ab" * 16, "AB" * 16, "ab" * 15 + "zz", "", "x" * 500, "00" * 16, "ab" * 16]
    keys = keys_of(pa.chunked_array([ids[:3], ids[3:]]))
    assert len(np.unique(keys, axis=0)) == len(set(ids))
    assert (keys[0] == keys[6]).all()
    assert (keys[1] == keys_of(pa.chunked_array([["ab" * 16]]))[0]).all()  # all at once, or one by one
    assert [rows.tolist() for rows in repeated_rows([keys[:4], keys[4:]])] == [[0, 1], [2, 3]]
    assert keys_of(pa.chunked_array([], pa.string())).shape == (0, 2)


def test_ids_that_begin_alike_are_not_the_same() -> None:
    ids = [f"{1:016x}{n:016x}" for n in range(4)]
    assert [rows.tolist() for rows in repeated_rows([keys_of(pa.chunked_array([ids]))])] == [[]]


def test_a_part_with_a_right_digest_and_wrong_counts_is_refused(tmp_path: Path) -> None:
    rows = simulate(epochs=1, configs=6)
    folder = write_records(tmp_path, rows)
    (path,) = part_paths(folder)[1:]
    for correct, rule in ((1001, "at most num_samples"), (-1, "0 or more")):
        path.write_bytes(sealed([rows[0] | {"correct": correct}, *rows[1:]]))
        with pytest.raises(QBWError) as raised:
            read_records(folder)
        assert str(raised.value).startswith(
            f"{path}: column 'correct', row 0: expected {rule}, found {correct}; to repair"
        )
    path.write_bytes(sealed([one | {"num_samples": 2**60, "accuracy": one["correct"] / 2**60} for one in rows]))
    with pytest.raises(
        QBWError, match="column 'num_samples': expected at most 9007199254740992, found 1152921504606846976"
    ):
        read_records(folder)


def test_what_only_whole_rows_show_is_refused_or_left_out_too(tmp_path: Path) -> None:
    rows = simulate(epochs=2, configs=6)
    folder = write_records(tmp_path, rows[:6])
    path = folder / "z.parquet"
    path.write_bytes(sealed([rows[6] | {"bitwidths": []}, *rows[7:]]))
    sentence = f"{path}: column 'bitwidths', row 0: expected at least one layer, found []"
    assert isinstance(count_part(path), Counted)
    with pytest.raises(QBWError) as raised:
        read_records(folder)
    assert str(raised.value).startswith(f"{sentence}; to repair the folder")
    frame_of_rest, notes = read_records(folder, skip_bad=True)
    assert (len(frame_of_rest), notes) == (6, [f"left out: {sentence}"])


def sealed(rows: list[dict[str, Any]]) -> bytes:
    """Return a part whose digests are right, whatever its rows are."""
    import hashlib

    from schemas.parts import digest_of

    table = table_of(rows)
    of_values, blank = digest_of(table), "0" * 32
    tags = {"kind": "records", "schema_version": "1.1", "rows": str(len(rows)), "digest": f"{of_values}-{blank}"}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({f"qbw.{k}": v for k, v in tags.items()}), sink, write_page_checksum=True
    )
    data: bytes = sink.getvalue().to_pybytes()
    seal = hashlib.blake2b(data, digest_size=16).hexdigest()
    return data.replace(f"{of_values}-{blank}".encode(), f"{of_values}-{seal}".encode())


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if very few rows were very many."""
    monkeypatch.setattr(frame, "MOST_ROWS", 60)
    monkeypatch.setattr(frame, "MOST_OF_THE_LAST", 20)
    monkeypatch.setattr(frame, "MOST_OF_OTHERS", 10)


@pytest.mark.usefixtures("few")
def test_of_very_many_rows_a_bounded_part_is_looked_at_and_statistics_are_of_all(tmp_path: Path) -> None:
    rows = simulate(epochs=12, configs=40)
    folder = write_records(tmp_path / "records", *(rows[n : n + 40] for n in range(0, len(rows), 40)))
    found, looked_at, notes = look(folder)
    assert notes == [
        "480 rows: statistics are of all of them; answers look at the last epoch of each series, at up to 20 "
        "configurations, and pictures also at every 5 epochs, at up to 10"
    ]
    assert epoch_statistics(join_bins(found.cells))["configs"].tolist() == [40] * 12
    assert sorted(looked_at["epoch"].unique()) == [4, 9, 11]
    assert 30 <= len(looked_at) + 15 <= 70
    # Which configurations is decided by their hash: those of one epoch are among those of the last.
    chosen = {epoch: set(group["config_id"]) for epoch, group in looked_at.groupby("epoch")}
    hashed = {config: int(config[:16], 16) / 2**64 for config in (one["config_id"] for one in rows)}
    for epoch, share in ((4, 0.25), (9, 0.25), (11, 0.5)):
        of_epoch = {one["config_id"] for one in rows if one["epoch"] == epoch}
        assert chosen[epoch] == {config for config in of_epoch if hashed[config] < share}
    again, _ = read_records(write_records(tmp_path / "spread", *shuffled_parts(rows, 0)))
    pd.testing.assert_frame_equal(again, looked_at.drop(columns="series"))


@pytest.mark.usefixtures("few")
def test_very_many_rows_make_a_report_recommendations_and_comparisons(tmp_path: Path, run_cli: RunCli) -> None:
    once = simulate(epochs=1, configs=40)
    rows = [
        one | {"epoch": epoch, "checkpoint_id": str(epoch), "record_id": f"{epoch:02d}{one['record_id'][2:]}"}
        for epoch in range(4)
        for one in once
    ]
    folder = write_records(tmp_path / "records", rows)
    analysis = analyze(folder)
    assert analysis.notes[0].startswith("160 rows: statistics are of all of them")
    document = json.loads(json_text(analysis))
    assert [epoch["configs"] for epoch in document["series"][0]["epochs"]] == [40] * 4
    outcome = run_cli("compare", "demo@2", "demo@3", "--records", folder, "--json")
    assert outcome.code == 0, outcome.stderr
    compared = json.loads(outcome.stdout)
    assert compared["first"] == "demo, epoch 2"
    outcome = run_cli("compare", "demo@2", "demo@9", "--records", folder)
    assert (outcome.code, outcome.stderr) == (2, "qbw-report: error: 'demo@9': no epoch 9; there are 1 to 4\n")
    outcome = run_cli("recommend", folder, "--budget", "avg_bitwidth<=4.5", "--series", "demo@3", "--json")
    assert outcome.code == 0, outcome.stderr
    assert json.loads(outcome.stdout)["epoch"] == 2


def test_more_rows_than_can_be_added_exactly_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells_module, "MOST_TERMS", 2)
    with pytest.raises(QBWError) as raised:
        merge_cells([count_cells(table_of([row([2], 1, config_index=index) for index in range(3)]))])
    assert str(raised.value) == (
        "demo: epoch 1 has 3 rows of equal bitwidth, more than the 2 that can be added exactly; report on fewer"
    )


@pytest.mark.usefixtures("few")
def test_more_bins_than_anybody_reads_are_those_of_the_epochs_that_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qbw_report.build.MOST_BINS", 10)
    folder = write_records(tmp_path, simulate(epochs=6, configs=20))
    analysis = analyze(folder)
    assert sorted(analysis.bins["epoch"].unique()) == [4, 5]
    assert len(analysis.epochs) == 6
    assert analysis.notes[1].endswith(
        " bins: bins.csv has those of the epochs that pictures look at; statistics.csv has all epochs"
    )


def test_many_series_share_what_is_looked_at() -> None:
    counts = pd.DataFrame({"series": [f"s{n}" for n in range(500)]}).assign(experiment="e", split="v", data_id="d")
    cells = counts.assign(network_id=[str(n) for n in range(500)], epoch=0, rows=10_000)
    chosen, (note,) = choose_epochs(cells)
    assert len(chosen) == 500
    assert (chosen["share"] * chosen["rows"]).sum() <= frame.MOST_ROWS
    assert note.startswith("5,000,000 rows: ")


def test_too_many_figures_become_fewer_at_equal_steps() -> None:
    assert fewer_figures([list(range(100))] * 10, every=5) == 5
    assert fewer_figures([list(range(100))] * 20, every=5) == 10
    assert fewer_figures([[0]] * 1000, every=5) == 5  # the last of each is always drawn
