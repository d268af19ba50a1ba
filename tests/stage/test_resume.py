"""The same command finishes what is missing, and nothing that could change a row is ever taken for the same."""

import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from shares import ONLY_IN_FULL
from stage_references import contents, one_thread, qbw_eval, without_nan
from store_helpers import TABLE

from qbw_eval import configurations as configurations_module
from qbw_eval import evaluate as evaluate_module
from qbw_eval import plan as plan_module
from qbw_eval.commands import evaluating as evaluating_module
from qbw_eval.configurations import BitwidthConfiguration, SamplerSettings
from qbw_eval.evaluate import EvaluationSettings
from qbw_eval.plan import Plan
from qbw_eval.sampling.ranges import parse_range
from qbw_eval.store import RecordStore
from qbw_eval.verify import verify

TINY_CONFIG = """\
model: {name: resnet8, width: 4}
data: {source: digits}
quantization: {mine: {bitwidth_options: [2, 4, 8], activation_quantization: pact}}
random_bitwidths: {num_bitwidths: 6, seed: 5}
"""
"""What the tiny checkpoints themselves say."""


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return tmp_path / "results" / "records"


@pytest.fixture
def checkpoint(tiny_checkpoints: Path) -> Path:
    return tiny_checkpoints / "epoch_003.pt"


def run(records: Path, *words: object) -> tuple[int, int]:
    """Run `qbw-eval run` for one checkpoint and return how many rows were done before, and evaluated now."""
    outcome = qbw_eval("run", *words, "--records", records, "--json")
    assert outcome.code == 0, outcome.stderr
    (told,) = json.loads(outcome.stdout)["checkpoints"]
    return told["done_before"], told["evaluated_now"]


def results(records: Path) -> list[dict[str, Any]]:
    """Return the rows in the order of configurations, without when and how fast they were computed."""
    frame = pd.read_parquet(records).sort_values(["plan_id", "config_index"])
    return without_nan(frame.drop(columns=["duration_s", "evaluated_at"]))


# --- what is done is not done again ---------------------------------------------------------------------------------


def test_the_same_command_finishes_what_is_missing_and_says_so(checkpoint: Path, records: Path, tmp_path: Path) -> None:
    words = (checkpoint, "--limit", 10, "--num-configs")
    assert run(records, *words, 5) == (0, 5)
    before = contents(tmp_path)
    assert run(records, *words, 5) == (5, 0)
    assert run(records, *words, 3) == (3, 0)
    assert contents(tmp_path) == before
    assert run(records, *words, 8) == (5, 3)
    assert run(records, *words, 70) == (8, 62)
    missing = sorted(records.iterdir())[1]  # configurations 0 to 4
    missing.unlink()
    assert run(records, *words, 70) == (65, 5)
    assert before.keys() - contents(tmp_path).keys() == set()
    undisturbed = tmp_path / "undisturbed" / "records"
    assert run(undisturbed, *words, 70) == (0, 70)
    assert results(records) == results(undisturbed)
    assert len(list(undisturbed.iterdir())) < len(list(records.iterdir()))
    assert verify(records).problems == verify(undisturbed).problems == ()


def test_what_changes_no_row_is_a_hit(checkpoint: Path, records: Path, tmp_path: Path) -> None:
    words = (checkpoint, "--limit", 10, "--num-configs", 3)
    assert run(records, *words) == (0, 3)
    config = tmp_path / "same.yaml"
    config.write_text(TINY_CONFIG.replace("model:", "experiment: called otherwise\nmodel:"))
    copy = tmp_path / "best.pt"
    shutil.copy(checkpoint, copy)
    for same in (
        ("--batch-size", 3),
        ("--engine", "reference"),
        ("--seed", 5),
        ("--bitwidths", "8,4,2"),
        ("--split", "validation"),
        ("--sampler", "stratified"),
        ("--cost", "avg_bitwidth"),
        ("--config", config),
        ("--skip", "kl,mask"),
        ("--per-class",),
        ("--memory", "1GB"),
    ):
        assert run(records, *words, *same) == (3, 0), same
    assert run(records, copy, *words[1:]) == (3, 0), "the bytes count, not the name"


# One thing that could change a row: how to say it on the command line.
OTHERS: dict[str, tuple[object, ...]] = {
    "samples": ("--limit", 11),
    "split": ("--split", "train"),
    "bitwidths": ("--bitwidths", "2,4"),
    "more bitwidths": ("--bitwidths", "2,4,8,32"),
    "seed": ("--seed", 6),
    "sampler": ("--sampler", "iid"),
    "cost": ("--cost", "bit_ops"),
    "range": ("--range", "avg_bitwidth=2:7"),
    **{
        f"config: {name}": ("--config", TINY_CONFIG.replace(before, after))
        for name, before, after in (
            ("weight quantizer", "quantization: pact", "quantization: pact, weight_quantization: dorefa_scaled"),
            ("weight normalization", "quantization: pact", "quantization: pact, sat_weight_normalization: true"),
            ("options of the training", "[2, 4, 8]", "[2, 3, 4, 8]"),
            ("seed", "seed: 5", "seed: 7"),
        )
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_command_is_another_evaluation(name: str, checkpoint: Path, records: Path, tmp_path: Path) -> None:
    words = (checkpoint, "--limit", 10, "--num-configs", 3)
    assert run(records, *words) == (0, 3)
    option, value = OTHERS[name]
    if option == "--config":
        (tmp_path / "other.yaml").write_text(str(value))
        value = tmp_path / "other.yaml"
    assert run(records, *words, option, value) == (0, 3)
    frame = pd.read_parquet(records)
    assert (len(frame), frame["record_id"].nunique(), frame["plan_id"].nunique()) == (6, 6, 2)
    assert verify(records).problems == ()
    assert run(records, *words) == (3, 0), "and the first one is still done"


def test_another_byte_of_the_checkpoint_is_another_checkpoint(checkpoint: Path, records: Path, tmp_path: Path) -> None:
    words = ("--limit", 10, "--num-configs", 3)
    assert run(records, checkpoint, *words) == (0, 3)
    other = tmp_path / checkpoint.name
    content = torch.load(checkpoint, weights_only=True)
    content["epoch"] += 1  # a byte or two; the weights are the same
    torch.save(content, other)
    assert run(records, other, *words) == (0, 3)
    frame = pd.read_parquet(records)
    assert (frame["record_id"].nunique(), frame["checkpoint_id"].nunique(), frame["plan_id"].nunique()) == (6, 2, 1)


def write_tensors(path: Path, change: float) -> None:
    inputs = torch.linspace(-1, 1, 20 * 64).reshape(20, 1, 8, 8)
    inputs[7, 0, 3, 3] += change
    torch.save({"inputs": inputs, "labels": torch.arange(20) % 10}, path)


def test_another_value_in_the_data_is_another_evaluation(checkpoint: Path, records: Path, tmp_path: Path) -> None:
    data, config = tmp_path / "data.pt", tmp_path / "e.yaml"
    config.write_text(TINY_CONFIG.replace("{source: digits}", f"{{source: tensors, validation: {data}}}"))
    words = (checkpoint, "--config", config, "--num-configs", 2)
    write_tensors(data, 0.0)
    assert run(records, *words) == (0, 2)
    assert run(records, *words) == (2, 0)
    write_tensors(data, 2**-20)
    assert run(records, *words) == (0, 2)
    frame = pd.read_parquet(records)
    assert (frame["record_id"].nunique(), frame["data_id"].nunique()) == (4, 2)


def test_another_version_of_the_sampler_is_another_evaluation(
    checkpoint: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (checkpoint, "--limit", 10, "--num-configs", 2, "--sampler", "iid")
    assert run(records, *words) == (0, 2)
    assert plan_module.VERSIONED_NAMES is configurations_module.VERSIONED_NAMES
    monkeypatch.setitem(plan_module.VERSIONED_NAMES, "iid", "iid/2")
    assert run(records, *words) == (0, 2)
    assert sorted(pd.read_parquet(records)["sampler"]) == ["iid/1", "iid/1", "iid/2", "iid/2"]


def test_other_numerics_are_another_evaluation(
    checkpoint: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorFloat-32 exists on a GPU only; its part in the identity does not need one."""
    words = (checkpoint, "--limit", 10, "--num-configs", 2)
    assert run(records, *words) == (0, 2)
    settings = evaluating_module._settings

    def with_tf32(*arguments: Any) -> EvaluationSettings:
        return dataclasses.replace(settings(*arguments), tf32=True)

    with monkeypatch.context() as patch:
        patch.setattr(evaluating_module, "_settings", with_tf32)
        assert run(records, *words) == (0, 2)
    choose = evaluate_module.choose_engine

    def of_another_version(*arguments: Any, **more: Any) -> Any:
        choice = choose(*arguments, **more)
        monkeypatch.setattr(type(choice.engine), "numerics", "reference/99")
        return choice

    monkeypatch.setattr(evaluate_module, "choose_engine", of_another_version)
    assert run(records, *words) == (0, 2)
    frame = pd.read_parquet(records)
    assert (frame["record_id"].nunique(), frame["plan_id"].nunique()) == (6, 3)


def test_every_fact_of_a_plan_is_in_its_name_and_the_number_asked_for_is_not() -> None:
    plan = Plan(
        sampler="iid",
        seed=0,
        options=(2, 4),
        network={"model": {"width": 4}},
        table=TABLE,
        data_id="data",
        num_samples=10,
        numerics="reference/1",
        count=5,
    )
    changes: dict[str, object] = {
        "sampler": "uniform",
        "seed": 1,
        "options": (2, 8),
        "network": {"model": {"width": 5}},
        "table": dataclasses.replace(TABLE, layers=TABLE.layers[:1]),
        "data_id": "other data",
        "numerics": "reference/2",
        "settings": SamplerSettings(range=parse_range("avg_bitwidth=2:3")),
        "repeat": 1,
    }
    # The data say how many samples there are, the network what it keeps unquantized.
    untold = {"count": 6, "num_samples": 11, "unquantized_weight_bytes": 12}
    assert {*changes, *untold} == {field.name for field in dataclasses.fields(Plan)}
    others = [dataclasses.replace(plan, **{name: value}) for name, value in changes.items()]  # type: ignore[arg-type]
    assert len({plan.plan_id, *(other.plan_id for other in others)}) == 1 + len(changes)
    assert {dataclasses.replace(plan, **{n: v}).plan_id for n, v in untold.items()} == {plan.plan_id}  # type: ignore[arg-type]
    configuration = BitwidthConfiguration(bitwidths=(2, 4), index=3)
    ids = {
        plan.record_id("checkpoint", configuration),
        plan.record_id("another", configuration),
        plan.record_id("checkpoint", BitwidthConfiguration(bitwidths=(4, 2), index=3)),
        plan.record_id("checkpoint", BitwidthConfiguration(bitwidths=(2, 4), index=4)),
        *(other.record_id("checkpoint", configuration) for other in others),
    }
    assert len(ids) == 4 + len(others)


# --- again, on request ----------------------------------------------------------------------------------------------


def test_no_resume_evaluates_again_into_a_new_plan_each_time(checkpoint: Path, records: Path) -> None:
    words = (checkpoint, "--limit", 10, "--num-configs", 4)
    for times in (1, 2, 3):
        assert run(records, *words, "--no-resume") == (0, 4)
        frame = pd.read_parquet(records)
        assert (len(frame), frame["record_id"].nunique(), frame["plan_id"].nunique()) == (4 * times,) * 2 + (times,)
    first, second, third = (group for _, group in frame.groupby("plan_id"))
    for again in (second, third):
        assert list(map(list, again["bitwidths"])) == list(map(list, first["bitwidths"]))
        assert list(again["correct_mask"]) == list(first["correct_mask"])
    assert run(records, *words) == (4, 0), "the first one is what is resumed"
    assert verify(records).problems == ()


def test_no_resume_before_anything_else_is_what_a_later_run_resumes(checkpoint: Path, records: Path) -> None:
    words = (checkpoint, "--limit", 10, "--num-configs")
    assert run(records, *words, 2, "--no-resume") == (0, 2)
    assert run(records, *words, 3) == (2, 1)


# --- the end of a process -------------------------------------------------------------------------------------------

# A background shell starts its children with Ctrl-C ignored; this is the console script without that.
CONSOLE_SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from qbw_eval import evaluate
from qbw_eval.cli import main
measure, chunks = evaluate.measure, 0
def measure_two_chunks(*arguments):
    global chunks
    chunks += 1
    if chunks == 3:
        Path(WAITING).touch()
        time.sleep(100)
    return measure(*arguments)
if WAITING:
    evaluate.measure = measure_two_chunks
main()
"""
COUNT = 200  # four chunks, the last of eight configurations


def evaluator(records: Path, *words: object, waiting: Path | None = None) -> "subprocess.Popen[str]":
    """Return a real evaluator, started and left alone; with `waiting`, it makes that file in the midst of chunk 3."""
    script = f"WAITING = {str(waiting) if waiting else None!r}{CONSOLE_SCRIPT}"
    command = [sys.executable, "-c", script, "run", *map(str, words), "--records", str(records), "--quiet"]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=one_thread())


@pytest.fixture(scope="module")
def undisturbed(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of a run that nobody interrupted."""
    records = tmp_path_factory.mktemp("undisturbed") / "records"
    words = (tiny_checkpoints / "epoch_003.pt", "--limit", 20, "--num-configs", COUNT)
    assert run(records, *words) == (0, COUNT)
    return results(records)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "terminated"), pytest.param(signal.SIGINT, 130, "interrupted", marks=ONLY_IN_FULL)],
)
def test_a_stopped_run_keeps_its_rows_and_the_same_command_completes_them(
    checkpoint: Path,
    records: Path,
    tmp_path: Path,
    undisturbed: list[dict[str, Any]],
    number: signal.Signals,
    code: int,
    word: str,
) -> None:
    words = (checkpoint, "--limit", 20, "--num-configs", COUNT)
    process = evaluator(records, *words, waiting=tmp_path / "waiting")
    while process.poll() is None and not (tmp_path / "waiting").exists():
        time.sleep(0.005)
    process.send_signal(number)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (code, "")
    assert stderr == (
        f"qbw-eval: error: {word}; 128 new rows are kept in {records} (0 of 1 checkpoints are finished); "
        "the same command continues\n"
    )
    assert sorted(pd.read_parquet(records)["config_index"]) == list(range(128))
    assert verify(records).problems == ()
    assert [path.name for path in (records.parent / ".qbw").rglob("*") if path.is_file()] == []
    finished = contents(records)
    assert run(records, *words) == (128, COUNT - 128)
    assert finished.items() <= contents(records).items()
    assert results(records) == undisturbed


@pytest.mark.parametrize(("number", "word"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")])
def test_a_stopped_repetition_does_not_promise_to_be_continued(
    tiny_checkpoints: Path, records: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, word: str
) -> None:
    """`--no-resume` begins a new plan each time, so the same command would not finish this one."""
    measure, chunks = evaluate_module.measure, 0

    def stopped(*arguments: Any) -> Any:
        nonlocal chunks
        chunks += 1
        if chunks == 4:
            signal.raise_signal(number)
        return measure(*arguments)

    monkeypatch.setattr(evaluate_module, "measure", stopped)
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        words = (tiny_checkpoints, "--limit", 5, "--num-configs", 70, "--no-resume")
        outcome = qbw_eval("run", *words, "--records", records, "--quiet")
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert (outcome.code, outcome.stdout) == (128 + number, "")
    assert outcome.stderr == (
        f"qbw-eval: error: {word}; 134 new rows are kept in {records} (1 of 3 checkpoints are finished); "
        "the same command evaluates all of it once more\n"
    )
    assert len(pd.read_parquet(records)) == 134


def test_a_run_gives_the_signal_back_when_it_is_done(checkpoint: Path, records: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run(records, checkpoint, "--limit", 5, "--num-configs", 1) == (0, 1)
    assert signal.getsignal(signal.SIGTERM) == before


def test_two_evaluators_at_once_make_each_row_once_and_little_double_work(
    checkpoint: Path, records: Path, undisturbed: list[dict[str, Any]]
) -> None:
    words = (checkpoint, "--limit", 20, "--num-configs", COUNT, "--json")
    both = [evaluator(records, *words), evaluator(records, *words)]
    said = [(*process.communicate(), process.returncode) for process in both]
    assert [code for _, _, code in said] == [0, 0], said
    frame = pd.read_parquet(records)
    assert frame["record_id"].is_unique
    assert verify(records).problems == ()
    told = [json.loads(stdout)["checkpoints"][0] for stdout, _, _ in said]
    assert sum(one["evaluated_now"] for one in told) == len(frame), "claims hold here: nothing was evaluated twice"
    # Each leaves to the other what the other holds at that moment, and each ends what it has begun.
    assert len(frame) == COUNT
    assert results(records) == undisturbed


def test_a_chunk_that_another_evaluator_works_on_is_left_to_it(checkpoint: Path, records: Path) -> None:
    words = (checkpoint, "--limit", 10, "--num-configs")
    assert run(records, *words, 1) == (0, 1)
    (row,) = pd.read_parquet(records).to_dict("records")
    store = RecordStore(records)
    with store.claimed(row["checkpoint_id"], row["plan_id"], 64, 64) as held:
        assert held
        outcome = qbw_eval("run", *words, 200, "--records", records, "--quiet")
    assert outcome.code == 0
    assert outcome.stderr == f"{checkpoint}: 64 configurations were done or are being done by another evaluator\n"
    assert outcome.stdout.splitlines()[-1].startswith("Done before: 1. Evaluated now: 135.")
    assert run(records, *words, 200) == (136, 64)


def test_rows_that_somebody_finished_since_the_run_began_are_not_evaluated_again(
    checkpoint: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (checkpoint, "--limit", 10, "--num-configs")
    assert run(records, *words, 1) == (0, 1)
    done, asked = RecordStore.done, 0

    def before_and_after(store: RecordStore, *identity: str) -> set[int]:
        nonlocal asked
        asked += 1
        if asked == 2:  # the claim is held; meanwhile somebody else has finished configurations 1 to 4
            monkeypatch.setattr(RecordStore, "claimed", lambda *_arguments: contextlib.nullcontext(True))
            assert run(records, *words, 5) == (1, 4)
            monkeypatch.undo()
        return done(store, *identity)

    monkeypatch.setattr(RecordStore, "done", before_and_after)
    outcome = qbw_eval("run", *words, 8, "--records", records, "--quiet")
    assert outcome.stdout.splitlines()[-1].startswith("Done before: 1. Evaluated now: 3.")
    assert outcome.stderr == f"{checkpoint}: 4 configurations were done or are being done by another evaluator\n"
    assert sorted(pd.read_parquet(records)["config_index"]) == list(range(8))
