"""The evaluator end to end: checkpoints go in, rows come out, and the same command again changes nothing."""

import hashlib
import importlib.metadata
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from stage_references import (
    Outcome,
    bits_of,
    contents,
    costs_by_counting,
    hash_by_hand,
    one_thread,
    qbw_eval,
    temporary_files,
    without_nan,
)

from qbw_eval import evaluate as evaluate_module
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.commands import evaluating as evaluating_module
from qbw_eval.commands import train as train_module
from qbw_eval.cost import costs_of
from qbw_eval.data.sources import load_split
from qbw_eval.data.split import Split
from qbw_eval.networks.build import load_network
from qbw_eval.quantization.bitwidths import (
    get_average_bitwidth,
    get_bitwidths,
    quantized_layers,
    set_bitwidths,
    trace_layers_on_meta,
)
from qbw_eval.settings.data import DataSettings
from qbw_eval.training import EpochResult
from schemas.parts import ANCHOR_NAME
from schemas.records import RECORD_SCHEMA

DIGITS = DataSettings(source="digits")

ENGINE = "engine: incremental (equal to the reference in every bit, and there is little to compute)"


def run(*words: object, records: Path) -> Outcome:
    """Run `qbw-eval run`, which must succeed."""
    outcome = qbw_eval("run", *words, "--records", records)
    assert outcome.code == 0, outcome.stderr
    return outcome


def rows_in(records: Path) -> list[dict[str, Any]]:
    """Return the records, as pandas reads them, in the order of checkpoint and configuration; no number is None."""
    frame = pd.read_parquet(records).sort_values(["checkpoint", "config_index"])
    return without_nan(frame)


def without_provenance(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows without what may differ between two evaluations of the same thing."""
    return [{k: v for k, v in row.items() if k not in ("duration_s", "evaluated_at")} for row in rows]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return tmp_path / "results" / "records"


# --- every column of the demo's rows --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo_run(
    demo_training: tuple[list[EpochResult], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Path], datetime, datetime]:
    """The demo's first and last checkpoint, evaluated: records, checkpoints, and when it began and ended."""
    records = tmp_path_factory.mktemp("demo_run") / "records"
    checkpoints = [demo_training[0][0].checkpoint, demo_training[0][-1].checkpoint]
    began = datetime.now(UTC)
    run(*checkpoints, "--num-configs", 6, "--seed", 3, records=records)
    return records, checkpoints, began, datetime.now(UTC)


def test_every_column_is_what_an_independent_computation_says(
    demo_run: tuple[Path, list[Path], datetime, datetime],
) -> None:
    records, checkpoints, began, ended = demo_run
    rows = rows_in(records)
    assert len(rows) == 2 * 6
    assert all(list(row) == RECORD_SCHEMA.names for row in rows)
    split = load_split(DIGITS, "validation")
    for row in rows:
        path = checkpoints[0] if row["checkpoint"] == checkpoints[0].name else checkpoints[1]
        content = torch.load(path, weights_only=True)
        layers = pd.read_parquet(records.parent / "layers" / f"{row['model_id']}.parquet").to_dict("records")
        # identity
        assert row["experiment"] == "digits"
        assert row["checkpoint"] == path.name
        assert row["checkpoint_id"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert row["epoch"] == content["epoch"]
        assert (row["dataset"], row["split"], row["num_samples"]) == ("digits", "validation", 797)
        assert row["data_id"] == split.data_id()
        assert (row["sampler"], row["seed"]) == ("stratified/1", 3)
        assert row["config_id"] == hash_by_hand(bitwidths=row["bitwidths"])
        assert row["record_id"] == hash_by_hand(
            bitwidths=row["bitwidths"],
            checkpoint_id=row["checkpoint_id"],
            config_index=row["config_index"],
            plan_id=row["plan_id"],
        )
        assert re.fullmatch("[0-9a-f]{32}", row["plan_id"])
        # configuration
        assert row["bitwidth_options"] == [2, 4, 8]
        assert len(row["bitwidths"]) == len(layers)
        assert set(row["bitwidths"]) <= {2, 4, 8}
        costs = costs_by_counting(row["bitwidths"], layers, 8)
        assert {name: row[name] for name in costs} == costs
        floats = sum(t.numel() for t in content["model_state_dict"].values() if t.is_floating_point())
        assert row["unquantized_weight_bytes"] == 4 * (floats - sum(layer["weights"] for layer in layers))
        number = row["config_index"]  # the three uniform ones, then the middle, a quarter, three quarters
        assert row["target"] == (None, None, None, 5.0, 3.5, 6.5)[number]
        assert row["target_cost"] == (None if number < 3 else "avg_bitwidth")
        assert number >= 3 or set(row["bitwidths"]) == {(2, 4, 8)[number]}
        assert number < 3 or abs(row["avg_bitwidth"] - row["target"]) <= 1 / len(layers)
        # result: the network itself, one forward a batch of the experiment's size
        model = load_network(read_checkpoint(path).experiment, content["model_state_dict"], "here")
        hits, losses, agreements, divergences = [], [], [], []
        for inputs, labels in zip(split.inputs.split(256), split.labels.split(256), strict=True):
            with torch.no_grad():
                set_bitwidths(model, {layer["layer_name"]: 8 for layer in layers})
                reference = model(inputs).double()
                names = [layer["layer_name"] for layer in layers]
                set_bitwidths(model, dict(zip(names, row["bitwidths"], strict=True)))
                logits = model(inputs).double()
            hits += (logits.argmax(1) == labels).tolist()
            agreements += (logits.argmax(1) == reference.argmax(1)).tolist()
            logarithms, expected = (x - x.logsumexp(1, keepdim=True) for x in (logits, reference))
            divergences += (expected.exp() * (expected - logarithms)).sum(1).tolist()
            losses += (logits.logsumexp(1) - logits[torch.arange(len(labels)), labels]).tolist()
        assert bits_of(row["correct_mask"], 797) == hits
        assert row["correct"] == sum(hits)
        assert row["accuracy"] == row["correct"] / 797
        assert row["agreement"] == sum(agreements) / 797
        assert row["loss"] == pytest.approx(statistics.fmean(losses), rel=1e-9)
        assert row["kl_divergence"] == pytest.approx(statistics.fmean(divergences), rel=1e-9)
        assert [row[name] for name in ("top5_correct", "correct_per_class", "samples_per_class")] == [None] * 3
        # provenance
        assert (row["engine"], row["device"]) == (
            "incremental",
            "cpu" if not torch.cuda.is_available() else row["device"],
        )
        assert 0 < row["duration_s"] < (ended - began).total_seconds()
        assert row["evaluated_at"].utcoffset() == timedelta(0)
        assert began <= row["evaluated_at"] <= ended
        assert row["qbw_version"] == importlib.metadata.version("qbw")
        assert row["torch_version"] == torch.__version__
        assert json.loads(row["extras_json"]) == {
            "val_acc": content["val_acc"],
            "sampler_settings": {"cost": "avg_bitwidth"},
        }
    assert len({row["record_id"] for row in rows}) == len(rows)
    assert len({row["model_id"] for row in rows}) == len({row["plan_id"] for row in rows}) == 1


def test_the_layer_table_lists_the_networks_quantized_layers(
    demo_run: tuple[Path, list[Path], datetime, datetime],
) -> None:
    records, checkpoints, _, _ = demo_run
    (path,) = (records.parent / "layers").iterdir()
    layers = pd.read_parquet(path)
    checkpoint = read_checkpoint(checkpoints[0])
    modules = quantized_layers(load_network(checkpoint.experiment, checkpoint.state, "here"))
    assert list(layers["layer_index"]) == list(range(len(modules)))
    assert dict(zip(layers["layer_name"], layers["weights"], strict=True)) == {
        name: module.weight.numel() for name, module in modules.items()
    }
    assert set(layers["model_id"]) == {path.stem}


def test_the_demo_learned_and_bits_cost_accuracy(demo_run: tuple[Path, list[Path], datetime, datetime]) -> None:
    frame = pd.read_parquet(demo_run[0])
    last = frame[frame["epoch"] == frame["epoch"].max()]
    assert last["accuracy"].max() > 0.9
    assert last["accuracy"].max() > frame[frame["epoch"] == 0]["accuracy"].max()


# --- again, and more ------------------------------------------------------------------------------------------------


def test_all_checkpoints_get_the_same_configurations_and_the_folder_reads_in_order(
    tiny_checkpoints: Path, records: Path
) -> None:
    outcome = run(tiny_checkpoints, "--limit", 40, records=records)
    rows = rows_in(records)
    by_checkpoint = {
        name: [row["bitwidths"] for row in rows if row["checkpoint"] == name]
        for name in ("epoch_001.pt", "epoch_002.pt", "epoch_003.pt")
    }
    configurations = by_checkpoint["epoch_001.pt"]
    assert len(configurations) == 6, "as the experiment says"
    assert all(other == configurations for other in by_checkpoint.values())
    assert [row["config_index"] for row in rows] == 3 * list(range(6))
    assert {row["seed"] for row in rows} == {5}, "as the experiment says"
    lines = outcome.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("epoch_")] == list(by_checkpoint)
    assert lines[-1] == f"Done before: 0. Evaluated now: 18. Rows: {records}. Next: make report"


def test_the_same_command_again_adds_nothing_and_says_so(tiny_checkpoints: Path, records: Path, tmp_path: Path) -> None:
    command = (tiny_checkpoints, "--limit", 40)
    run(*command, records=records)
    before = contents(tmp_path)
    again = run(*command, records=records)
    assert contents(tmp_path) == before
    assert again.stdout.splitlines()[-1] == f"Nothing to do: all 18 rows are in {records}."
    # What changes at most the rounding of a last place, or nothing on a CPU, is the same evaluation.
    for option in (("--batch-size", 7), ("--tf32",), ("--engine", "reference")):
        assert "Nothing to do" in run(*command, *option, records=records).stdout
    assert contents(tmp_path) == before


def test_asking_for_more_continues_where_fewer_ended(tiny_checkpoints: Path, records: Path, tmp_path: Path) -> None:
    command = (tiny_checkpoints / "epoch_003.pt", "--limit", 40, "--num-configs")
    run(*command, 6, records=records)
    before = contents(tmp_path)
    more = run(*command, 10, records=records)
    assert more.stdout.splitlines()[-1].startswith("Done before: 6. Evaluated now: 4.")
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before, "no file that was there has been touched"
    assert [re.search(r"-(\d+)\.parquet$", name)[1] for name in after.keys() - before.keys()] == ["000006"]  # type: ignore[index]  # None would fail the test
    at_once = tmp_path / "at once" / "records"
    run(*command, 10, records=at_once)
    assert without_provenance(rows_in(records)) == without_provenance(rows_in(at_once))


def test_a_part_that_is_gone_is_evaluated_again_and_no_other(
    tiny_checkpoints: Path, records: Path, tmp_path: Path
) -> None:
    command = (tiny_checkpoints / "epoch_003.pt", "--limit", 10, "--num-configs", 150)
    run(*command, records=records)
    expected = without_provenance(rows_in(records))
    parts = sorted(path for path in records.iterdir() if path.name != ANCHOR_NAME)
    assert sorted(path.name.split("-", 2)[2] for path in parts) == [
        "000000.parquet",
        "000064.parquet",
        "000128.parquet",
    ]
    parts[0].unlink()
    before = contents(tmp_path)
    outcome = run(*command, records=records)
    assert outcome.stdout.splitlines()[-1].startswith("Done before: 86. Evaluated now: 64.")
    assert contents(tmp_path).keys() - before.keys() == {str(parts[0].relative_to(tmp_path))}
    assert without_provenance(rows_in(records)) == expected


def test_files_with_the_same_bytes_are_evaluated_once(tiny_checkpoints: Path, records: Path, tmp_path: Path) -> None:
    copy = tmp_path / "best.pt"
    shutil.copy(tiny_checkpoints / "epoch_002.pt", copy)
    outcome = run(tiny_checkpoints / "epoch_002.pt", copy, "--limit", 8, "--num-configs", 2, records=records)
    assert (
        f"{copy}: the same weights and epoch as {tiny_checkpoints / 'epoch_002.pt'}; evaluated once"
        in outcome.stderr.splitlines()
    )
    assert [row["checkpoint"] for row in rows_in(records)] == ["epoch_002.pt"] * 2


def test_a_name_of_weights_that_is_no_text_has_a_fingerprint_too(tiny_checkpoints: Path) -> None:
    ours = read_checkpoint(tiny_checkpoints / "epoch_002.pt")
    one, other = (replace(ours, state={name: torch.ones(1)}) for name in ("\ud800", "\ud801"))
    assert one.same_network() != other.same_network()


def test_weights_whose_sign_torch_put_off_changing_are_weights_all_the_same(
    tiny_checkpoints: Path, tmp_path: Path
) -> None:
    content = torch.load(tiny_checkpoints / "epoch_002.pt", weights_only=True)
    state = content["model_state_dict"]
    content["model_state_dict"] = {
        name: torch._neg_view(-tensor) if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }
    torch.save(content, tmp_path / "negative.pt")
    theirs, ours = read_checkpoint(tmp_path / "negative.pt"), read_checkpoint(tiny_checkpoints / "epoch_002.pt")
    assert any(tensor.is_neg() for tensor in theirs.state.values())
    assert theirs.same_network() == ours.same_network()


def test_data_are_read_once_for_several_checkpoints_and_moved_once_for_each(
    tiny_checkpoints: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, moves = [], []

    def read(settings: DataSettings, name: Any, **more: Any) -> Split:
        reads.append(name)
        return load_split(settings, name, **more)

    batches_on = evaluate_module.batches_on

    def move(*arguments: Any, **more: Any) -> Any:
        moves.append(arguments[0].name)
        return batches_on(*arguments, **more)

    monkeypatch.setattr(evaluating_module, "load_split", read)
    monkeypatch.setattr(evaluate_module, "batches_on", move)
    run(tiny_checkpoints, "--limit", 8, "--num-configs", 70, records=records)  # two chunks each
    assert reads == ["validation"]
    assert moves == ["validation"] * 3


# --- options --------------------------------------------------------------------------------------------------------


def test_another_seed_is_another_sequence_beside_the_first(tiny_checkpoints: Path, records: Path) -> None:
    command = (tiny_checkpoints / "epoch_003.pt", "--limit", 8, "--num-configs", 5)
    run(*command, records=records)
    run(*command, "--seed", 6, records=records)
    rows = rows_in(records)
    first, second = ([row["bitwidths"] for row in rows if row["seed"] == seed] for seed in (5, 6))
    assert len(first) == len(second) == 5
    assert first != second
    assert len({row["plan_id"] for row in rows}) == 2


@pytest.mark.parametrize(("asked", "options"), [("2,8", [2, 8]), ("8, 4,8", [4, 8]), ("32", [32]), ("4,32", [4, 32])])
def test_bitwidths_narrows_the_options(asked: str, options: list[int], tiny_checkpoints: Path, records: Path) -> None:
    run(tiny_checkpoints / "epoch_003.pt", "--limit", 8, "--bitwidths", asked, records=records)
    rows = rows_in(records)
    assert {bits for row in rows for bits in row["bitwidths"]} == set(options)
    assert all(row["bitwidth_options"] == options for row in rows)
    assert all(row["relative_bit_ops"] <= 1 for row in rows)


def test_uniform_gives_every_layer_the_same_bits_and_says_that_no_more_exist(
    tiny_checkpoints: Path, records: Path
) -> None:
    path = tiny_checkpoints / "epoch_003.pt"
    outcome = run(path, "--sampler", "uniform", "--limit", 8, "--num-configs", 6, records=records)
    rows = rows_in(records)
    assert [row["bitwidths"] for row in rows] == [[bits] * 8 for bits in (2, 4, 8)]
    assert [row["relative_bit_ops"] for row in rows] == [4 / 64, 16 / 64, 1.0]
    assert rows[-1]["agreement"] == 1.0, "every layer at the largest option is what agreement is measured against"
    assert rows[-1]["kl_divergence"] == 0.0 < rows[0]["kl_divergence"]
    assert {row["sampler"] for row in rows} == {"uniform/1"}
    assert outcome.stderr == (
        f"{path}: 6 configurations of [2, 4, 8] asked for, only 3 exist\n"
        f"{ENGINE}\n{path.name} (incremental): 3 configurations\n"
    )


def test_limit_and_split_choose_the_samples(tiny_checkpoints: Path, records: Path) -> None:
    command = (tiny_checkpoints / "epoch_003.pt", "--num-configs", 1)
    run(*command, "--limit", 50, records=records)
    run(*command, "--limit", 51, "--split", "train", records=records)
    run(*command, "--limit", 100_000, records=records)
    found = {(row["split"], row["num_samples"], row["data_id"]) for row in rows_in(records)}
    train, validation = load_split(DIGITS, "train"), load_split(DIGITS, "validation")
    assert found == {
        ("validation", 50, validation.limited(50).data_id()),
        ("train", 51, train.limited(51).data_id()),
        ("validation", 797, validation.data_id()),
    }


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    tiny_checkpoints: Path, records: Path, tmp_path: Path
) -> None:
    command = (tiny_checkpoints / "epoch_003.pt", "--limit", 8)
    outcome = run(*command, "--dry-run", records=records)
    assert outcome.stdout.splitlines()[-1] == (f"Dry run: 6 configurations would be evaluated; 0 are in {records}.")
    assert list(tmp_path.iterdir()) == []
    run(*command, "--num-configs", 2, records=records)
    before = contents(tmp_path)
    outcome = run(*command, "--dry-run", records=records)
    assert outcome.stdout.splitlines()[-1] == f"Dry run: 4 configurations would be evaluated; 2 are in {records}."
    assert contents(tmp_path) == before


def test_json_says_the_same_as_the_rows(tiny_checkpoints: Path, records: Path) -> None:
    outcome = run(tiny_checkpoints, "--limit", 40, "--json", records=records)
    told = json.loads(outcome.stdout)
    rows = rows_in(records)
    expected = []
    for epoch, name in enumerate(("epoch_001.pt", "epoch_002.pt", "epoch_003.pt")):
        accuracies = [row["accuracy"] for row in rows if row["checkpoint"] == name]
        expected.append(
            {
                "checkpoint": str(tiny_checkpoints / name),
                "experiment": "tiny",
                "epoch": epoch,
                "samples": 40,
                "configurations": 6,
                "done_before": 0,
                "evaluated_now": 6,
                "mean_accuracy": pytest.approx(statistics.fmean(accuracies)),
                "min_accuracy": min(accuracies),
                "max_accuracy": max(accuracies),
                "val_acc": torch.load(tiny_checkpoints / name, weights_only=True)["val_acc"],
            }
        )
    assert told == {"records": str(records), "checkpoints": expected}
    again = json.loads(run(tiny_checkpoints, "--limit", 40, "--json", records=records).stdout)
    assert [(o["done_before"], o["evaluated_now"], o["mean_accuracy"]) for o in again["checkpoints"]] == [
        (6, 0, None)
    ] * 3


def test_verbose_prints_the_seed_documents_line_for_every_row_and_quiet_nothing(
    tiny_checkpoints: Path, records: Path
) -> None:
    command = (tiny_checkpoints / "epoch_003.pt", "--limit", 40, "--num-configs")
    assert run(*command, 2, "--quiet", records=records).stderr == ""
    outcome = run(*command, 5, "--verbose", records=records)
    lines = [
        f"Config {number}/5: Acc={row['accuracy']:.4f}, Loss={row['loss']:.4f}, Avg Bitwidth={row['avg_bitwidth']:.2f}"
        for number, row in enumerate(rows_in(records), start=1)
    ]
    engine, begun, *told = outcome.stderr.splitlines()
    assert engine == ENGINE
    assert (begun, told) == ("epoch_003.pt (incremental): 3 configurations", lines[2:]), "those evaluated now"
    accuracies = [row["accuracy"] for row in rows_in(records)][2:]
    table = [line.split() for line in outcome.stdout.splitlines() if line.startswith("epoch_003.pt")]
    mean, low, high = f"{statistics.fmean(accuracies):.4f}", f"{min(accuracies):.4f}", f"{max(accuracies):.4f}"
    said = f"{read_checkpoint(tiny_checkpoints / 'epoch_003.pt').val_acc:.4f}"
    assert table == [["epoch_003.pt", "3", "40", "5", "2", "3", mean, f"{low}-{high}", said]]


def test_an_experiment_file_that_leaves_shapes_to_the_data_names_the_same_evaluation(
    tiny_checkpoints: Path, records: Path, tmp_path: Path
) -> None:
    """What `qbw-eval train` was given fits `qbw-eval run` too, and gives the rows that the checkpoint alone gives."""
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "model: {name: resnet8, width: 4}\n"
        "data: {source: digits}\n"
        "quantization: {mine: {bitwidth_options: [2, 4, 8], activation_quantization: pact}}\n"
        "random_bitwidths: {num_bitwidths: 6, seed: 5}\n"
    )
    run(tiny_checkpoints / "epoch_003.pt", "--limit", 8, records=records)
    outcome = run(tiny_checkpoints / "epoch_003.pt", "--limit", 8, "--config", config, records=records)
    assert "Nothing to do: all 6 rows" in outcome.stdout


def test_another_reading_of_the_same_weights_is_another_evaluation(
    tiny_checkpoints: Path, records: Path, tmp_path: Path
) -> None:
    """The bytes fix the weights, but --config says what is made of them: rows of one must not pass for the other's."""
    config = tmp_path / "other.yaml"
    config.write_text(
        "model: {name: resnet8, width: 4}\n"
        "data: {source: digits}\n"
        "quantization:\n"
        "  mine: {bitwidth_options: [2, 4, 8], activation_quantization: pact, weight_quantization: dorefa_scaled}\n"
        "random_bitwidths: {num_bitwidths: 6, seed: 5}\n"
    )
    command = (tiny_checkpoints / "epoch_003.pt", "--limit", 40)
    run(*command, records=records)
    run(*command, "--config", config, records=records)
    rows = rows_in(records)
    assert len(rows) == len({row["record_id"] for row in rows}) == 12
    assert len({row["plan_id"] for row in rows}) == 2


# --- reading changes nothing ----------------------------------------------------------------------------------------


def test_reading_costs_and_averages_changes_no_bit(tiny_checkpoints: Path) -> None:
    checkpoint = read_checkpoint(tiny_checkpoints / "epoch_003.pt")
    model = load_network(checkpoint.experiment, checkpoint.state, "here")
    bits = dict(zip(quantized_layers(model), [2, 8, 4, 32, 8, 2, 2, 4], strict=True))
    set_bitwidths(model, bits)
    table = trace_layers_on_meta(model, torch.zeros(1, 1, 8, 8))
    assert get_average_bitwidth(model) == 62 / 8
    assert costs_of([bits[name] for name in table.names], table, 8).avg_bitwidth == 62 / 8
    assert get_bitwidths(model) == bits
    assert not model.training


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------

# A background shell starts its children with Ctrl-C ignored; this is the console script without that.
CONSOLE_SCRIPT = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from qbw_eval.cli import main; main()"
)


def test_ctrl_c_keeps_finished_parts_and_the_same_command_completes_them(
    tiny_checkpoints: Path, records: Path, tmp_path: Path
) -> None:
    words = ["run", str(tiny_checkpoints / "epoch_003.pt"), "--limit", "100", "--num-configs", "640"]
    process = subprocess.Popen(
        [sys.executable, "-c", CONSOLE_SCRIPT, *words, "--records", str(records)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=one_thread(),
    )
    while process.poll() is None and not list(records.glob("*-000000.parquet")):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (130, ""), stderr
    kept = re.fullmatch(
        rf"{re.escape(ENGINE)}\nepoch_003.pt \(incremental\): \d+ configurations\n"
        rf"qbw-eval: error: interrupted; (\d+) new rows are kept in {re.escape(str(records))} "
        r"\(0 of 1 checkpoints are finished\); the same command continues\n",
        stderr,
    )
    assert kept, stderr
    frame = pd.read_parquet(records)
    assert 64 <= len(frame) < 640
    assert len(frame) - int(kept[1]) in (0, 64), "a part that was committed just then may not be counted yet"
    assert sorted(frame["config_index"]) == list(range(len(frame)))
    assert temporary_files(records) == []
    finished = contents(records)

    outcome = run(*words[1:], records=records)
    assert outcome.stdout.splitlines()[-1].startswith(f"Done before: {len(frame)}. Evaluated now: {640 - len(frame)}.")
    assert finished.items() <= contents(records).items()
    undisturbed = tmp_path / "undisturbed" / "records"
    run(*words[1:], records=undisturbed)
    interrupted, expected = rows_in(records), rows_in(undisturbed)
    assert len(interrupted) == 640
    assert without_provenance(interrupted) == without_provenance(expected)


def test_ctrl_c_while_training_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = train_module.train

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        yield next(real(*arguments, **keywords))
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "train", interrupted)
    config = tmp_path / "e.yaml"
    config.write_text(TRAINING)
    outcome = qbw_eval("train", config, "--out", tmp_path / "runs")
    folder = tmp_path / "runs" / "e" / "checkpoints"
    assert outcome.code == 130
    assert outcome.stderr.splitlines()[-1] == (
        f"qbw-eval: error: interrupted after 1 finished epochs; their checkpoints are kept in {folder}"
    )
    assert [path.name for path in folder.iterdir()] == ["epoch_001.pt"]


# --- the other words ------------------------------------------------------------------------------------------------


def test_schema_prints_the_json_schema_of_the_experiment_file() -> None:
    outcome = qbw_eval("schema")
    assert (outcome.code, outcome.stderr) == (0, "")
    schema = json.loads(outcome.stdout)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert {"experiment", "model", "data", "training", "quantization", "random_bitwidths"} <= schema[
        "properties"
    ].keys()


def test_inspect_prints_layers_options_and_costs(tiny_checkpoints: Path) -> None:
    path = tiny_checkpoints / "epoch_003.pt"
    outcome = qbw_eval("inspect", path)
    assert (outcome.code, outcome.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in outcome.stdout.splitlines()]
    assert lines[0] == f"{path}: experiment tiny, epoch 3, resnet8"
    assert lines[1] == "Quantized layers in forward order; MACs for one sample:"
    # 3x3 convolutions of 4, 8 and 16 channels on 8x8, 4x4 and 2x2 pixels, by hand
    assert "layer1.0.conv1 4x4x3x3 144 9,216 2,4,8 dorefa/pact, 1 clipping value" in lines
    assert "layer2.0.conv1 8x4x3x3 288 4,608 2,4,8 dorefa/pact, 1 clipping value" in lines
    assert "layer3.0.shortcut.0 16x8x1x1 128 512 2,4,8 dorefa/pact, 1 clipping value" in lines
    assert "Bitwidth options [2, 4, 8] in 8 layers: 6,561 configurations" in lines
    assert "Average bitwidth (bits) 2 8" in lines
    assert "Weight size (bytes) 1,192 4,768" in lines
    assert "Relative bit operations 0.0625 1" in lines


def test_inspect_as_json_says_the_same_as_the_rows(tiny_checkpoints: Path, records: Path) -> None:
    path = tiny_checkpoints / "epoch_003.pt"
    told = json.loads(qbw_eval("inspect", path, "--json").stdout)
    run(path, "--sampler", "uniform", "--limit", 8, records=records)
    lowest, _, highest = rows_in(records)
    layers = pd.read_parquet(records.parent / "layers")
    assert told["checkpoint_id"] == lowest["checkpoint_id"]
    assert (told["model_id"], told["epoch"]) == (lowest["model_id"], 2)
    assert (told["configurations"], told["bitwidth_options"]) == (3**8, [2, 4, 8])
    assert told["costs"] == {name: {"min": lowest[name], "max": highest[name]} for name in told["costs"]}
    assert told["costs"].keys() == costs_by_counting([2], [{"weights": 1, "macs": 1}], 8).keys()
    assert [layer["layer_name"] for layer in told["layers"]] == list(layers["layer_name"])
    assert [layer["macs"] for layer in told["layers"]] == list(layers["macs"])


TRAINING = """\
model: {name: resnet8, width: 2}
data: {source: digits}
training: {epochs: 2, batch_size: 500, configurations_per_batch: 1}
quantization:
  mine: {bitwidth_options: [2, 4]}
random_bitwidths: {num_bitwidths: 2}
"""


def test_train_writes_checkpoints_refuses_to_replace_them_and_replaces_them_when_told(tmp_path: Path) -> None:
    config, out = tmp_path / "small.yaml", tmp_path / "runs"
    config.write_text(TRAINING)
    folder = out / "small" / "checkpoints"
    outcome = qbw_eval("train", config, "--out", out)
    assert outcome.code == 0, outcome.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["epoch_001.pt", "epoch_002.pt"]
    assert (
        len(re.findall(r"^Config \d/2: Acc=\d\.\d{4}, Loss=\d+\.\d{4}, Avg Bitwidth=\d\.\d\d$", outcome.stdout, re.M))
        == 4
    )
    assert outcome.stdout.count("Random Bitwidths Validation Statistics:") == 2
    assert outcome.stderr.splitlines()[-1] == f"Next: make eval CKPT={folder}"
    before = contents(folder)

    refused = qbw_eval("train", config, "--out", out)
    assert (refused.code, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"qbw-eval: error: {folder}: holds 2 checkpoints of an earlier training; "
        "name another --out, change 'experiment' in the file, or say --overwrite\n"
    )
    assert contents(folder) == before

    config.write_text(TRAINING.replace("epochs: 2", "epochs: 1").replace("2, 4", "2, 8"))
    (folder / "notes.txt").write_text("mine")
    assert qbw_eval("train", config, "--out", out, "--overwrite").code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["epoch_001.pt", "notes.txt"]
    assert read_checkpoint(folder / "epoch_001.pt").experiment.layer_options == (2, 8)
