"""Records at the edge: every command gives a sensible report or one clear sentence, never a warning or a traceback."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from report_helpers import Outcome, RunCli
from simulated_records import digest, row, simulate, table_of, write_records
from test_report_sensitivity import layer_rows

from qbw_report.frontier import front
from qbw_report.series import add_series
from schemas import layers as layer_table
from schemas.parts import encode_part

Rows = list[dict[str, Any]]

ADDED_IN_1_1 = (
    "target_cost", "target", "relative_weight_bytes", "unquantized_weight_bytes", "kl_divergence", "top5_correct",
    "correct_per_class", "samples_per_class",
)  # fmt: skip


def few(configs: int = 16, **others: Any) -> Rows:
    return simulate(epochs=1, configs=configs, layers=4, **others)


def changed(rows: Rows, **others: Any) -> Rows:
    return [one | others for one in rows]


def renamed(rows: Rows, **others: Any) -> Rows:
    """Return rows changed, with identities of their own."""
    return [one | others | {"record_id": f"{others} {number}"} for number, one in enumerate(rows)]


MAY_BE_MISSING = ("sampler", "engine", "device", "model_id", "network_id", "bitwidth_options", "checkpoint")

FLAT = "accuracy hardly depends on bitwidth (flat, every accuracy is equal, 16 configurations)."
RISES = "demo, epoch 1: accuracy rises with bitwidth (strong positive correlation, r = 0.87, 16 configurations)."
NO_MODEL = "demo: cannot tell which layers need their bits"
LARGEST = sys.float_info.max
ONE_ROW = "1 configuration measured, at least 5 needed"
NAN_LOSS = "note: demo: 16 of 16 rows without a finite loss; loss statistics leave them out"
DATA = digest("digits")[:8]
TWO_DATA = ("demo [validation 00000000]", f"demo [validation {DATA}]")
TWO_WAYS = (f"demo [validation {DATA}, integer]", f"demo [validation {DATA}, reference]")

CASES: Mapping[str, tuple[Rows, Sequence[str], Sequence[str]]] = {
    # name: rows; what `summary` says on either stream; how `recommend` ends
    "one row": (
        [row([2, 4], 700)],
        [f"cannot tell whether accuracy follows bitwidth ({ONE_ROW})."], [NO_MODEL, ONE_ROW],
    ),
    "one configuration an epoch": (
        simulate(epochs=3, configs=1, layers=4),
        [f"demo, epoch 3: cannot tell whether accuracy follows bitwidth ({ONE_ROW})."], [NO_MODEL, ONE_ROW],
    ),
    "one bitwidth": (
        [row([4] * 4, 700 + number, config_index=number) for number in range(16)],
        ["cannot tell whether accuracy follows bitwidth (every configuration averages 4.0 bits)."],
        [NO_MODEL, "every configuration has the same bits"],
    ),
    "one layer": (
        [row([bits], 500 + 50 * bits + number, config_index=number) for number, bits in enumerate((2, 4, 8) * 6)],
        ["strong positive correlation"], ["recommended"],
    ),
    "1 to 32 bits": (
        [row([bits] * 3, 500 + 10 * bits + number, config_index=number) for number, bits in enumerate((1, 16, 32) * 6)],
        ["strong positive correlation"], ["recommended"],
    ),
    "one sample": (
        [row([2, 4], number % 2, num_samples=1, config_index=number) for number in range(8)],
        ["every configuration averages 3.0 bits"], [NO_MODEL],
    ),
    "NaN loss": (changed(few(), loss=math.nan), [RISES, NAN_LOSS], ["recommended"]),
    "infinite loss": (changed(few(), loss=math.inf, kl_divergence=math.inf), [RISES, NAN_LOSS], ["recommended"]),
    "huge loss": (
        [one | {"loss": one["loss"] * 1e300, "kl_divergence": one["loss"] * 1e200} for one in few()],
        [RISES], ["recommended"],
    ),
    "largest loss": (
        [one | {"loss": LARGEST if number % 3 else 0.5, "kl_divergence": LARGEST} for number, one in enumerate(few())],
        [RISES], ["recommended"],
    ),
    "no loss": (changed(few(), loss=None), [RISES, NAN_LOSS], ["recommended"]),
    "equal accuracies": (changed(few(), accuracy=0.9, correct=900), [FLAT], ["recommended"]),
    "all wrong": (changed(few(), accuracy=0.0, correct=0), [FLAT], ["recommended"]),
    "all right": (changed(few(), accuracy=1.0, correct=1000), [FLAT], ["recommended"]),
    "two experiments": (
        few() + few(experiment="other", seed=1),
        [RISES, "other, epoch 1: ", "All series, by series:"],
        ["holds 2 series; name one with --series: demo, other"],
    ),
    "two data sets": (
        few() + renamed(few(seed=1), data_id="0" * 64),
        ["note: demo was evaluated on 2 data sets; each has a series", *TWO_DATA],
        [f"holds 2 series; name one with --series: {', '.join(TWO_DATA)}"],
    ),
    "two engines": (
        few() + renamed(few(seed=1), network_id="0" * 32, engine="integer"),
        ["note: demo was evaluated in 2 ways", *TWO_WAYS],
        [f"holds 2 series; name one with --series: {', '.join(TWO_WAYS)}"],
    ),
    "two engines in one series": (
        few(8) + renamed(few(8, seed=1), engine="integer"),
        ["note: demo: epoch 1 has rows from 2 engines", "The rows come from 2 engines; compare them before trusting"],
        ["recommended"],
    ),
    "two networks in one epoch": (
        few() + renamed(simulate(epochs=1, configs=8, layers=6, seed=1), model_id="0" * 32),
        ["note: demo: epoch 1 has rows from 2 networks", "The rows come from 2 networks; compare them before trusting"],
        ["recommended"],
    ),
    "no masks": (changed(few(), correct_mask=None), [RISES], ["recommended"]),
    "masks of another length": (changed(few(), correct_mask=b"x"), [RISES], ["recommended"]),
    "schema 1.0": (changed(few(), **dict.fromkeys(ADDED_IN_1_1)), [RISES], ["recommended"]),
    "little said": (changed(few(), **dict.fromkeys(MAY_BE_MISSING)), [RISES], ["recommended"]),
    "all from a file": (changed(few(), sampler="file/1"), [RISES], ["recommended"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_summary_and_recommend(run_cli: RunCli, tmp_path: Path, name: str) -> None:
    rows, said, recommended = CASES[name]
    records = write_records(tmp_path, rows)
    outcome = run_cli("summary", records)
    assert outcome.code == 0
    told = outcome.stdout + outcome.stderr
    assert [words for words in said if words not in told] == []
    assert "nan" not in told.lower().replace("nan loss", "")
    outcome = run_cli("recommend", records, "--budget", "avg_bitwidth<=4", *(["--budget", "avg_bitwidth<=30"] * 2))
    told = outcome.stdout + outcome.stderr
    assert [words for words in recommended if words not in told] == []
    if outcome.code:
        assert (outcome.stdout, outcome.stderr.count("\n")) == ("", 1)


@pytest.mark.parametrize("name", ["one row", "two networks in one epoch", "little said", "largest loss"])
def test_build(run_cli: RunCli, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    outcome = run_cli("build", write_records(tmp_path / "records", CASES[name][0]), "--out", out)
    assert outcome.code == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads((out / "statistics.json").read_text(encoding="utf-8"), parse_constant=refuse)
    tables = {path.stem: path.read_text(encoding="utf-8") for path in out.glob("*.csv")}
    assert {"statistics", "bins", "answers", "comparison", "sensitivity", "front", "predictions"} < set(tables)
    assert all("," in table.partition("\n")[0] for table in tables.values())
    assert list(out.rglob("bitwidth_vs_accuracy*.png"))
    assert (out / "index.html").stat().st_size > 10_000


@pytest.mark.parametrize("command", [["build"], ["summary"], ["recommend", "--budget", "avg_bitwidth<=4"]])
def test_an_empty_folder_is_one_sentence(run_cli: RunCli, tmp_path: Path, command: list[str]) -> None:
    records = tmp_path / "records"
    records.mkdir()
    outcome = run_cli(*command, records)
    assert (outcome.code, outcome.stdout) == (1, "")
    sentence = f"{records}: expected Parquet parts, found none; run `make eval CKPT=...` first"
    assert outcome.stderr.splitlines()[-1] == f"qbw-report: error: {sentence}"
    write_records(records)
    outcome = run_cli(*command, records)
    assert outcome.stderr.splitlines()[-1] == (
        f"qbw-report: error: {records}: holds no rows yet; run `make eval CKPT=...` first"
    )


def test_comparing_what_cannot_be_compared(run_cli: RunCli, tmp_path: Path) -> None:
    rows = [
        *few(),
        *renamed(few(), data_id="0" * 64, experiment="other"),
        *renamed(few(1, seed=5), experiment="third"),
        *renamed(few(), correct_mask=None, experiment="same"),
    ]
    records = write_records(tmp_path / "records", rows)
    sentence = "demo, epoch 1 and other, epoch 1: measured on other samples; evaluate both on the same data"
    outcome = run_cli("compare", "demo", "other", "--records", records)
    assert outcome == Outcome(1, "", f"qbw-report: error: {sentence}\n")
    outcome = run_cli("compare", "demo", "third", "--records", records)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "demo, epoch 1 and third, epoch 1: no configuration in common" in outcome.stderr
    equal = run_cli("compare", "demo", "same", "--records", records)
    assert (equal.code, equal.stderr) == (0, "")
    assert "demo, epoch 1 and same, epoch 1 are not distinguishable: +0.00 points" in equal.stdout
    assert "rows have no usable masks" in equal.stdout


@pytest.mark.parametrize("some", [False, True])
def test_a_cost_that_rows_do_not_say_is_no_flat_one(run_cli: RunCli, tmp_path: Path, some: bool) -> None:
    rows = few()
    for one in rows[1:] if some else rows:
        one["bit_ops"] = None
    (series,) = json.loads(run_cli("summary", write_records(tmp_path, rows), "--json").stdout)["series"]
    found = {one["question"]: one for one in series["answers"]["findings"] if one["cost"] == "bit_ops"}
    assert len(found) == 5
    for finding in found.values():
        assert (finding["value"], finding["verdict"], finding["more"]) == (None, "cannot tell", 0)
        assert finding["unknown"] == f"bit_ops is missing in {15 if some else 16} of 16 configurations"


def test_rows_without_a_cost_are_on_no_front_of_it() -> None:
    rows = changed(few(), bit_ops=None)
    best = max(rows, key=lambda one: one["accuracy"])
    best["weight_bytes"] = None
    table = front(add_series(table_of(rows).to_pandas()))
    assert best["accuracy"] in set(table["accuracy"][table["cost"] == "avg_bitwidth"])
    assert table["value"].notna().all()
    rest = {one["accuracy"] for one in rows if one is not best}
    assert table["accuracy"][table["cost"] == "weight_bytes"].max() == max(rest)
    assert set(table["cost"]) == {"avg_bitwidth", "weighted_avg_bitwidth", "weight_bytes"}


def test_infinitely_many_bits_are_one_sentence(run_cli: RunCli, tmp_path: Path) -> None:
    rows = few()
    rows[3]["avg_bitwidth"] = math.inf
    sentence = (
        f"{tmp_path}: column 'avg_bitwidth': expected a finite number of bits in every row, found infinity in 1 of 16 "
        f"rows (first: record {rows[3]['record_id']}); evaluate those checkpoints again"
    )
    outcome = run_cli("summary", write_records(tmp_path, rows))
    assert outcome == Outcome(1, "", f"qbw-report: error: {sentence}\n")


BASE = layer_rows("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("layers", "what"),
    [
        (
            [one | {"macs": None} for one in BASE],
            "column 'macs': expected 0 or more in every layer, more in one, found",
        ),
        ([one | {"macs": 0} for one in BASE], "column 'macs': expected 0 or more in every layer, more in one, found"),
        ([one | {"weights": -5} for one in BASE], "column 'weights': expected 0 or more in every layer, more in one"),
        ([one | {"layer_name": None} for one in BASE], "expected a name for every layer, another for each"),
        ([one | {"layer_name": "same"} for one in BASE], "expected a name for every layer, another for each"),
        (
            [one | {"layer_index": 0} for one in BASE],
            "expected layers that are numbered from 0, each once, found [0, 0",
        ),
        ([], "expected layers that are numbered from 0, each once, found []"),
    ],
)
def test_a_layer_table_of_no_network_is_told_and_not_used(
    run_cli: RunCli, tmp_path: Path, layers: list[dict[str, Any]], what: str
) -> None:
    records = write_records(tmp_path / "records", changed(few(6), model_id=write_table(tmp_path / "layers", layers)))
    outcome = run_cli("summary", records)
    assert outcome.code == 0
    assert f"note: demo: layers are numbered, not named: {tmp_path / 'layers'}" in outcome.stderr
    assert f".parquet: {what}" in outcome.stderr
    outcome = run_cli("recommend", records, "--budget", "bit_ops<=1k")
    assert (outcome.code, outcome.stdout, outcome.stderr.count("\n")) == (1, "", 1)
    assert f".parquet: {what}" in outcome.stderr


def test_a_layer_table_of_another_number_of_layers_bounds_nothing(run_cli: RunCli, tmp_path: Path) -> None:
    records = write_records(tmp_path / "records", changed(few(6), model_id=write_table(tmp_path / "layers", BASE[:3])))
    assert run_cli("recommend", records, "--budget", "avg_bitwidth<=4").code == 0
    outcome = run_cli("recommend", records, "--budget", "bit_ops<=1k")
    assert outcome.code == 2
    assert "needs the layers' sizes, which stand in layers/ beside the records" in outcome.stderr


def write_table(folder: Path, rows: list[dict[str, Any]]) -> str:
    """Write a layer table, of whatever sense, as the store does, and return its name."""
    name = layer_table.model_id_of(rows)
    columns = {column: [row.get(column, name) for row in rows] for column in layer_table.LAYER_SCHEMA.names}
    folder.mkdir(parents=True)
    data = encode_part(pa.table(columns, schema=layer_table.LAYER_SCHEMA), layer_table.KIND, "layers")
    (folder / f"{name}.parquet").write_bytes(data)
    return name
