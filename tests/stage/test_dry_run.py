"""`qbw-eval run --dry-run`: it says what would run and what that would take, and writes nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from stage_references import Outcome, contents, qbw_eval

from qbw_eval import forecast as forecast_module
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.data.sources import load_split
from schemas.parts import ANCHOR_NAME


@pytest.fixture
def checkpoint(tiny_checkpoints: Path) -> Path:
    return tiny_checkpoints / "epoch_003.pt"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return tmp_path / "results" / "records"


def run(records: Path, *words: object) -> Outcome:
    outcome = qbw_eval("run", *words, "--records", records)
    assert outcome.code == 0, outcome.stderr
    return outcome


def forecast(records: Path, *words: object) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(run(records, *words, "--dry-run", "--json").stdout)
    return told["forecast"]  # type: ignore[no-any-return]


def test_it_says_what_would_run_and_what_that_would_take(checkpoint: Path, records: Path, tmp_path: Path) -> None:
    outcome = run(records, checkpoint, "--dry-run", "--num-configs", 20, "--memory", "1GB")
    time, disk, memory, last = outcome.stdout.splitlines()[-4:]
    counts = r"\d+ samples? x 20 configurations in [\d.e+]+ s"
    assert re.fullmatch(
        rf"Time: (about .*|under a second), from a probe on this machine: {counts} \(engine \w+\)\.", time
    )
    assert re.fullmatch(r"Disk: up to \d+ kB in 1 part; [\d.]+ [MGT]B are free\.", disk)
    assert re.fullmatch(
        r"Memory: data 2\d\d kB, weights up to \d+ kB, activations .* at batches of 256, reference 32 kB; "
        r"1\.0 GB are allowed \(--memory\)\.",
        memory,
    )
    assert last == f"Dry run: 20 configurations would be evaluated; 0 are in {records}."
    assert list(tmp_path.iterdir()) == [], "not even the folder is made"


def test_what_is_done_is_not_forecast_and_nothing_is_touched(checkpoint: Path, records: Path, tmp_path: Path) -> None:
    run(records, checkpoint, "--num-configs", 5, "--limit", 30)
    before = contents(tmp_path)
    told = forecast(records, checkpoint, "--num-configs", 7, "--limit", 30)
    assert [one["configurations"] for one in told["based_on"]] == [2]
    assert told["parts"] == 1
    assert told["seconds"] > 0
    nothing = forecast(records, checkpoint, "--num-configs", 5, "--limit", 30)
    assert {name: nothing[name] for name in nothing if name != "disk_free_bytes"} == {
        "seconds": 0,
        "based_on": [],
        "disk_bytes": 0,
        "parts": 0,
        "memory": None,
    }
    *_, row, last = run(records, checkpoint, "--num-configs", 5, "--limit", 30, "--dry-run").stdout.splitlines()
    assert row.startswith(checkpoint.name)
    assert last == f"Dry run: 0 configurations would be evaluated; 5 are in {records}."
    assert contents(tmp_path) == before


@pytest.mark.parametrize("words", [("--num-configs", 70), ("--num-configs", 5, "--skip", "mask"), ("--per-class",)])
def test_the_rows_take_no_more_than_it_says_and_not_much_less(
    words: tuple[object, ...], checkpoint: Path, records: Path
) -> None:
    told = forecast(records, checkpoint, *words)
    run(records, checkpoint, *words)
    parts = [path for path in records.iterdir() if path.name != ANCHOR_NAME]
    written = sum(path.stat().st_size for path in parts)
    assert told["parts"] == len(parts)
    assert 0.98 * written < told["disk_bytes"] < 1.4 * written


def test_memory_is_what_data_budget_and_network_say(checkpoint: Path, records: Path) -> None:
    split = load_split(read_checkpoint(checkpoint).experiment.data, "validation")
    memory = forecast(records, checkpoint, "--memory", "40MB", "--batch-size", 100)["memory"]
    assert memory["data_bytes"] == split.inputs.nbytes + split.labels.nbytes
    assert memory["reference_bytes"] == len(split) * 10 * 4, "ten logits a sample"
    assert memory["budget_bytes"] == 40_000_000
    assert memory["batch_size"] == 100
    assert 0 < memory["activation_bytes"] <= 20_000_000
    without = forecast(records, checkpoint, "--skip", "kl,agreement", "--engine", "reference")["memory"]
    assert without["reference_bytes"] == 0
    assert without["activation_bytes"] is None
    classes = forecast(records, checkpoint, "--skip", "kl")["memory"]
    assert classes["reference_bytes"] == len(split) * 8
    tight = forecast(records, checkpoint, "--memory", "60kB")["memory"]
    assert tight["reference_bytes"] <= 15_000
    assert tight["weight_bytes"] <= 15_000
    assert tight["batch_size"] < 256


def test_checkpoints_of_one_plan_share_a_probe(
    tiny_checkpoints: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[str] = []
    probe = forecast_module._probe

    def counting(evaluation: Any, *more: Any) -> Any:
        probed.append(evaluation.checkpoint.path.name)
        return probe(evaluation, *more)

    monkeypatch.setattr(forecast_module, "_probe", counting)
    three = forecast(records, tiny_checkpoints, "--limit", 50)
    assert probed == ["epoch_001.pt"]
    assert (three["parts"], len(three["based_on"])) == (3, 1)
    run(records, tiny_checkpoints / "epoch_001.pt", "--limit", 50, "--num-configs", 4)
    # The first has two configurations missing, the others six: the probe of two rows is enough for all.
    mixed = forecast(records, tiny_checkpoints, "--limit", 50)
    assert mixed["based_on"][0]["configurations"] == 2
    assert mixed["parts"] == 3
    assert mixed["disk_bytes"] < three["disk_bytes"]


def test_a_probe_takes_seconds_and_is_of_at_most_one_batch(checkpoint: Path, records: Path) -> None:
    (based_on,) = forecast(records, checkpoint, "--limit", 30, "--num-configs", 3)["based_on"]
    assert 1 <= based_on["samples"] <= 30
    assert based_on["configurations"] == 3
    assert 0 < based_on["seconds"] < 60
