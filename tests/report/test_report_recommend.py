"""What to ship: budgets, the integer program against every configuration, and the file that is evaluated."""

import json
from fractions import Fraction
from itertools import product
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_helpers import RunCli
from simulated_records import row, write_records
from test_report_sensitivity import OPTIONS, drawn, frame_of, write_layers

from qbw_report.budget import Budget, costs_for, is_within, parse_budget
from qbw_report.layers import Layers
from qbw_report.optimum import best_within, by_steps
from qbw_report.recommend import as_json, file_text, recommend, verdict
from qbw_report.sensitivity import find_sensitivity
from schemas.costs import average_cost, costs_over
from schemas.errors import QBWError, UsageError

LAYERS = Layers(names=("stem", "body", "head"), weights=(11, 200, 31), macs=(900, 500, 3))


@pytest.mark.parametrize(
    ("text", "cost", "limit"),
    [
        ("avg_bitwidth<=4.5", "avg_bitwidth", Fraction(9, 2)),
        (" weight_bytes <= 300 kB ", "weight_bytes", Fraction(300_000)),
        ("weight_bytes<=1.5KiB", "weight_bytes", Fraction(1536)),
        ("bit_ops<=2.5G", "bit_ops", Fraction(2_500_000_000)),
        ("relative_bit_ops<=0.2", "relative_bit_ops", Fraction(1, 5)),
    ],
)
def test_budgets_are_exact(text: str, cost: str, limit: Fraction) -> None:
    assert parse_budget(text) == Budget(cost=cost, limit=limit, text=text.strip())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("4.5", "expected cost<=value, such as avg_bitwidth<=4.5 or weight_bytes<=300kB"),
        ("avg_bitwidth<4", "expected cost<=value, such as avg_bitwidth<=4.5 or weight_bytes<=300kB"),
        ("avg_bitwidth<=4kB", "expected no unit, found 'kB'"),
        ("weight_bytes<=3G", "expected one of B, kB, MB, GB, KiB, MiB, GiB, found 'G'"),
        (
            "avgbitwidth<=4",
            "expected cost<=value, such as avg_bitwidth<=4.5 or weight_bytes<=300kB",
        ),
    ],
)
def test_what_is_no_budget(text: str, sentence: str) -> None:
    if text == "avgbitwidth<=4":
        sentence = (
            "expected one of avg_bitwidth, weighted_avg_bitwidth, weight_bytes, relative_weight_bytes, bit_ops, "
            "relative_bit_ops, found 'avgbitwidth'; did you mean 'avg_bitwidth'?"
        )
    with pytest.raises(UsageError) as raised:
        parse_budget(text)
    assert str(raised.value) == f"budget {text!r}: {sentence}"


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_is_kept_to_the_last_digit(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 8))
    weights, macs = (tuple(int(n) for n in random.integers(1, 10_000, count)) for _ in range(2))
    bits = tuple(int(b) for b in random.choice(OPTIONS, count))
    stored = sum(w * b for w, b in zip(weights, bits, strict=True))
    operations = sum(m * b * b for m, b in zip(macs, bits, strict=True))
    expected = {
        "avg_bitwidth": Fraction(sum(bits), count),
        "weighted_avg_bitwidth": Fraction(stored, sum(weights)),
        "weight_bytes": Fraction(ceil(stored / 8)),
        "relative_weight_bytes": Fraction(ceil(stored / 8), sum(weights)),  # 8 bits are a byte
        "bit_ops": Fraction(operations),
        "relative_bit_ops": Fraction(operations, 64 * sum(macs)),
    }
    layers = Layers(names=tuple(f"l{i}" for i in range(count)), weights=weights, macs=macs)
    for name, value in expected.items():
        for limit, kept in ((value, True), (value - Fraction(1, 10**12), False)):
            budget = Budget(cost=name, limit=limit, text=name)
            assert is_within(bits, (budget,), costs_for((budget,), layers, count, 8)) is kept


@pytest.mark.parametrize("seed", range(30))
def test_the_program_finds_what_trying_everything_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 6))
    layers = Layers(
        names=tuple(map(str, range(count))),
        weights=tuple(int(n) for n in random.integers(1, 10**6, count)),
        macs=tuple(int(n) for n in random.integers(1, 10**9, count)),
    )
    costs = costs_over(layers.weights, layers.macs, 8)
    effects = -np.sort(random.random((count, 3)) * 0.05, axis=1)[:, ::-1]
    effects[:, 2] = 0
    chosen = random.choice(list(costs), size=int(random.integers(1, 4)), replace=False)
    budgets = []
    for name in chosen:
        middle = costs[name].of(tuple(int(b) for b in random.choice(OPTIONS, count)))  # a bound that is exactly met
        budgets.append(Budget(cost=name, limit=Fraction(middle), text=f"{name}<={middle}"))
    within = [bits for bits in product(OPTIONS, repeat=count) if is_within(bits, tuple(budgets), costs)]
    found = best_within(effects, OPTIONS, tuple(budgets), costs)

    def value(bits: tuple[int, ...]) -> float:
        return float(sum(effects[layer, OPTIONS.index(b)] for layer, b in enumerate(bits)))

    if not within:
        assert found is None
        return
    assert found in within
    assert value(found) == pytest.approx(max(map(value, within)), abs=1e-9)
    steps = by_steps(effects, OPTIONS, (2,) * count, tuple(budgets), costs)
    assert steps in within


def test_an_option_that_is_unknown_is_not_chosen() -> None:
    effects = np.array([[-0.1, np.nan, 0.0], [np.nan, -0.1, 0.0]])
    budget = parse_budget("avg_bitwidth<=3")
    costs = {"avg_bitwidth": average_cost(2)}
    assert best_within(effects, OPTIONS, (budget,), costs) == (2, 4)
    assert best_within(effects, OPTIONS, (parse_budget("avg_bitwidth<=2.9"),), costs) is None


def test_nothing_reaches_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    best_within(np.zeros((30, 3)), OPTIONS, (parse_budget("avg_bitwidth<=4.5"),), {"avg_bitwidth": average_cost(30)})
    assert capfd.readouterr().out == ""


def test_a_recommendation_stands_beside_the_best_measured_and_uniform_ones() -> None:
    bits, accuracy = drawn(80)
    bits[0], bits[1], bits[2] = 2, 4, 8
    rows = frame_of(bits, accuracy)
    found = recommend(rows, LAYERS, find_sensitivity(rows, LAYERS), (parse_budget("weight_bytes<=90"),))
    assert found.best_predicted.costs["weight_bytes"] <= 90
    assert found.best_predicted.bitwidths[0] == 8  # few weights, much to lose
    assert found.best_measured is not None
    assert found.best_measured.costs["weight_bytes"] <= 90
    assert found.best_uniform is not None
    assert found.best_uniform.bitwidths == (2, 2, 2)
    repeated = rows["accuracy"][rows["avg_bitwidth"] == 2]
    assert found.best_uniform.measured == pytest.approx(repeated.mean())
    assert found.best_predicted.low < found.best_predicted.predicted < found.best_predicted.high
    (written,) = json.loads(file_text(found))["configurations"]
    assert written["bitwidths"] == dict(zip(LAYERS.names, found.best_predicted.bitwidths, strict=True))
    assert written["weight_bytes"] == found.best_predicted.costs["weight_bytes"]


@pytest.mark.parametrize(("accuracy", "word"), [(0.97, "at least as good as"), (0.5, "worse than")])
@pytest.mark.parametrize("masks", [False, True])
def test_the_verdict_is_what_was_measured(accuracy: float, word: str, masks: bool) -> None:
    bits, accuracies = drawn(80)
    mixed = np.ptp(bits, axis=1) > 0
    bits, accuracies = np.vstack([[[2] * 3], bits[mixed]]), np.append(0.78, accuracies[mixed])
    rows, budgets = frame_of(bits, accuracies), (parse_budget("weight_bytes<=90"),)
    sensitivity = find_sensitivity(rows, LAYERS)
    first = recommend(rows, LAYERS, sensitivity, budgets)
    assert first.best_uniform is not None
    # As if it were evaluated from the file: the model that is fitted to what was drawn does not change.
    drawn_rows = rows[[tuple(each) != first.best_predicted.bitwidths for each in bits.tolist()]]
    assert verdict(recommend(drawn_rows, LAYERS, find_sensitivity(drawn_rows, LAYERS), budgets)).startswith(
        "The recommended configuration is not measured yet"
    )
    given = frame_of(np.array([first.best_predicted.bitwidths]), np.array([accuracy]), sampler="file/1")
    rows = pd.concat([drawn_rows, given], ignore_index=True)
    if masks:
        rows["correct_mask"] = [
            np.packbits(np.arange(10_000) < right, bitorder="little").tobytes() for right in rows["correct"]
        ]
    found = recommend(rows, LAYERS, find_sensitivity(rows, LAYERS), budgets)
    assert found.best_uniform is not None
    assert found.best_predicted.measured == pytest.approx(accuracy)
    more = 100 * (accuracy - found.best_uniform.measured)
    assert (found.against_uniform is not None) is masks
    sure = ""
    if found.against_uniform is not None:
        assert found.against_uniform.difference == pytest.approx(more / 100)
        low, high = 100 * found.against_uniform.low, 100 * found.against_uniform.high
        sure = f"; 95%: {low:+.1f} to {high:+.1f} on the same samples"
    told = f"Measured, it is {word} the best uniform configuration within the budget ({more:+.1f} points{sure})."
    end = "" if more >= 0 else " The best measured one is the one to ship."
    assert verdict(found) == told + end
    assert as_json(found)["verdict"] == told + end


@pytest.fixture
def records(tmp_path: Path) -> Path:
    model_id = write_layers(tmp_path / "layers", "stem", "body", "head")
    bits, accuracy = drawn(60)
    rows = [
        row(
            [int(b) for b in each],
            round(10_000 * a),
            num_samples=10_000,
            config_index=i,
            bitwidth_options=list(OPTIONS),
            model_id=model_id,
        )
        for i, (each, a) in enumerate(zip(bits, accuracy, strict=True))
    ]
    return write_records(tmp_path / "records", rows)


def test_the_command_writes_what_it_says(run_cli: RunCli, records: Path, tmp_path: Path) -> None:
    out = tmp_path / "best.json"
    outcome = run_cli(
        "recommend", records, "--budget", "avg_bitwidth<=4", "--budget", "weight_bytes<=1kB", "--out", out
    )
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout.splitlines()[0] == "demo, epoch 1, avg_bitwidth<=4, weight_bytes<=1kB"
    (written,) = json.loads(out.read_text())["configurations"]
    assert list(written["bitwidths"]) == ["stem", "body", "head"]
    assert sum(written["bitwidths"].values()) <= 12
    as_json = json.loads(run_cli("recommend", records, "--budget", "avg_bitwidth<=4", "--json").stdout)
    assert as_json["best_predicted"]["bitwidths"] == written["bitwidths"]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (
            ["--budget", "avg_bitwidth<=1"], 1,
            "demo: no configuration keeps avg_bitwidth<=1; with every layer at 2 bits it is avg_bitwidth 2; allow more",
        ),
        (
            ["--budget", "avg_bitwidth<=4", "--series", "dmo"], 2,
            "'dmo': no such series, experiment or checkpoint; did you mean 'demo'?; known: demo, epoch_001.pt",
        ),
        (["--budget", "avg_bitwidth<=4", "--series", "demo@7"], 2, "'demo@7': no epoch 7; there are 1 to 1"),
        (["--budget", "avg_bitwidth<=4", "--out", "x.txt"], 2, "--out x.txt: expected a name that ends in .json"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(run_cli: RunCli, records: Path, words: list[str], code: int, sentence: str) -> None:
    outcome = run_cli("recommend", records, *words)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert outcome.stderr == f"qbw-report: error: {sentence}\n"


def test_without_layer_table_only_the_average_can_be_bounded(run_cli: RunCli, records: Path) -> None:
    for path in (records.parent / "layers").iterdir():
        path.unlink()
    assert run_cli("recommend", records, "--budget", "avg_bitwidth<=4").code == 0
    outcome = run_cli("recommend", records, "--budget", "bit_ops<=1k")
    assert outcome.code == 2
    assert "needs the layers' sizes, which stand in layers/ beside the records" in outcome.stderr


def test_a_few_rows_recommend_nothing() -> None:
    rows = frame_of(*drawn(3))
    with pytest.raises(
        QBWError, match=r"cannot tell which layers need their bits \(3 configurations measured, at least 5"
    ):
        recommend(rows, None, find_sensitivity(rows, None), (parse_budget("avg_bitwidth<=4"),))
