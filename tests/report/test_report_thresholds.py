"""What turns numbers into readings is settable, checked, and the same in every place that reads."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from report_helpers import Outcome, RunCli
from simulated_records import simulate, write_records

from qbw_report.insight.thresholds import DEFAULTS, Thresholds
from qbw_report.insight.trend import read_correlation
from schemas.errors import UsageError


def test_the_defaults_are_the_documented_ones() -> None:
    assert Thresholds(tolerance=0.01, strong=0.7, flat=0.3, noisy_ratio=1.5) == DEFAULTS


@pytest.mark.parametrize(
    ("correlation", "reading"),
    [(0.9, "strong positive"), (0.89, "positive"), (0.1, "positive"), (0.09, "flat"), (-0.1, "negative")],
)
def test_readings_follow_the_thresholds(correlation: float, reading: str) -> None:
    assert read_correlation(correlation, Thresholds(strong=0.9, flat=0.1)) == reading


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Thresholds(tolerance=0), "tolerance: expected more than 0 and at most 100 points, found 0"),
        (lambda: Thresholds(tolerance=1.5), "tolerance: expected more than 0 and at most 100 points, found 150"),
        (lambda: Thresholds(tolerance=NAN), "tolerance: expected more than 0 and at most 100 points, found nan"),
        (lambda: Thresholds(strong=1.01), "strong: expected a correlation above 0, up to 1, found 1.01"),
        (lambda: Thresholds(strong=NAN), "strong: expected a correlation above 0, up to 1, found nan"),
        (
            lambda: Thresholds(strong=0.5, flat=0.5),
            "flat: expected a correlation from 0 to below 0.5, which is called strong, found 0.5",
        ),
        (
            lambda: Thresholds(flat=-0.1),
            "flat: expected a correlation from 0 to below 0.7, which is called strong, found -0.1",
        ),
        (lambda: Thresholds(noisy_ratio=0.9), "noisy ratio: expected a number from 1 on, found 0.9"),
        (lambda: Thresholds(noisy_ratio=float("inf")), "noisy ratio: expected a number from 1 on, found inf"),
    ],
)
def test_wrong_values_are_one_sentence(make: Callable[[], Thresholds], sentence: str) -> None:
    with pytest.raises(UsageError) as raised:
        make()
    assert str(raised.value) == f"threshold {sentence}"


@pytest.mark.parametrize("command", ["build", "summary"])
def test_wrong_options_are_a_usage_error_before_anything_is_read(run_cli: RunCli, tmp_path: Path, command: str) -> None:
    sentence = "threshold flat: expected a correlation from 0 to below 0.6, which is called strong, found 0.8"
    outcome = run_cli(command, tmp_path / "nowhere", "--strong", 0.6, "--flat", 0.8)
    assert outcome == Outcome(2, "", f"qbw-report: error: {sentence}\n")
    outcome = run_cli(command, tmp_path / "nowhere", "--tolerance", "nan")
    assert outcome.code == 2


def test_options_reach_every_reading(run_cli: RunCli, tmp_path: Path) -> None:
    # 24 configurations, rising, r = 0.9 or so, and much noisier below.
    rows = simulate(epochs=1, configs=24, noise=0.002, num_samples=10_000)
    for number, one in enumerate(rows[:12]):
        one["correct"] += 300 * (-1) ** number
        one["accuracy"] = one["correct"] / 10_000
    records = write_records(tmp_path, rows)

    def read(*words: object) -> dict[str, str]:
        (series,) = json.loads(run_cli("summary", records, "--json", *words).stdout)["series"]
        found = {one["question"]: one for one in series["answers"]["findings"] if one["cost"] == "avg_bitwidth"}
        told = {question: found[question]["verdict"] for question in ("pearson", "spearman", "low_bits", "lowest_cost")}
        return told | {"trend": series["answers"]["trend"]["reading"], "first": series["answers"]["sentences"][0]}

    usual = read()
    assert (usual["pearson"], usual["trend"]) == ("strong positive", "strong positive")
    assert usual["low_bits"].startswith("more variable at low bits")
    assert usual["lowest_cost"] == "within 1 point of the top"
    other = read("--strong", 0.999, "--noisy-ratio", 1e6, "--tolerance", 2)
    assert (other["pearson"], other["spearman"], other["trend"]) == ("positive",) * 3
    assert "tends to rise" in other["first"]
    assert other["low_bits"].startswith("no more variable at low bits")
    assert other["lowest_cost"] == "within 2 points of the top"
