"""The benchmark's own arithmetic: figures, the table, and that what it compares computes the same."""

import doctest
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from bench_workloads import CPU, prepared, tiny

import benchmarks.figures
from benchmarks import table
from benchmarks.engines import share_of_macs
from benchmarks.figures import Figure, ratio
from benchmarks.memory import activation_bytes
from benchmarks.peoples_loop import peoples_loop
from benchmarks.timing import Timed, interleaved
from benchmarks.workloads import WORKLOADS
from qbw_eval.data.batches import Batch
from qbw_eval.engine.reference import ReferenceEngine
from qbw_eval.evaluate import measure

REPOSITORY = Path(__file__).parent.parent


def test_a_figure_is_the_median_of_its_rounds_and_their_interquartile_range():
    figure = Figure(figure="a", values=[1.0, 5.0, 3.0, 2.0, 4.0], unit="ms", at_most=2.5)
    assert figure.as_dict() == {"figure": "a", "value": 3.0, "unit": "ms", "at_most": 2.5, "spread": 2.0}
    assert figure.line() == "a: 3 ms (spread 2), at most 2.5: MISSED"


def test_a_single_round_has_no_spread():
    assert Figure(figure="a", values=[7.0], unit="x", at_least=7.0).line() == "a: 7 x (spread 0), at least 7"


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_a_figure_of_nothing_or_of_no_number_is_refused(values: list[float]):
    with pytest.raises(ValueError, match="figure 'a': expected finite values, at least one, found"):
        Figure(figure="a", values=values, unit="x")


def test_ratios_are_taken_round_by_round():
    # The medians' own ratio would be 2.
    assert ratio("a / b", [2.0, 4.0, 12.0], [2.0, 1.0, 4.0]).value == 3.0


def test_examples_in_docstrings_run():
    results = doctest.testmod(benchmarks.figures)
    assert (results.failed, results.attempted) == (0, 1)


def test_rounds_are_interleaved_and_the_warm_up_is_not_timed():
    order: list[str] = []
    times = interleaved(
        {
            "a": Timed(action=lambda: order.append("a"), warm_up=lambda: order.append("warm")),
            "b": Timed(action=lambda: order.append("b")),
        },
        2,
    )
    assert order == ["warm", "b", "a", "b", "b", "a"]
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_no_round_begins_that_would_end_after_the_limit_but_the_first_always_runs():
    runs: list[None] = []
    # The warm-up and one round: another would take the limit's whole time again.
    interleaved({"a": Timed(action=lambda: (runs.append(None), time.sleep(0.02)))}, 5, limit_s=0.03)
    assert len(runs) == 2
    interleaved({"a": Timed(action=lambda: runs.append(None))}, 5, limit_s=0)
    assert len(runs) == 4


def test_seconds_are_divided_by_units(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.timing.seconds", lambda _action, _device: 12.0)
    assert interleaved({"a": Timed(action=lambda: None, units=4)}, 1) == {"a": [3.0]}


FIGURES = [
    {"figure": "a / b", "value": 12.345, "unit": "x", "at_least": 12, "spread": 0.25, "machine": "one"},
    {"figure": "b / a", "value": 2.0, "unit": "x", "at_most": 1.8, "spread": 0.5, "machine": "one"},
    {"figure": "a", "value": 31.0, "unit": "ms", "spread": 2.0, "machine": "one"},
]
TABLE = """\
| figure | median | spread | unit | bound | kept |
|---|---:|---:|---|---|---|
| a / b | 12.3 | 0.25 | x | ≥ 12 | yes |
| b / a | 2 | 0.5 | x | ≤ 1.8 | **no** |
| a | 31 | 2 | ms |  |  |

Machine: one."""


def test_the_table_has_a_row_per_figure_and_says_which_bounds_are_kept():
    assert table.render(FIGURES) == TABLE


def test_the_table_replaces_what_stands_between_the_marks_and_nothing_else(tmp_path: Path):
    source, target = tmp_path / "bench.json", tmp_path / "performance.md"
    source.write_text(json.dumps(FIGURES))
    target.write_text(f"before\n\n{table.BEGIN}\nold\n{table.END}\n\nafter\n")
    table.main(source, target)
    assert target.read_text() == f"before\n\n{table.BEGIN}\n\n{TABLE}\n\n{table.END}\n\nafter\n"
    table.main(source, target)
    assert target.read_text().count("a / b") == 1


def test_a_text_without_marks_is_refused():
    with pytest.raises(ValueError, match="expected the marks"):
        table.insert("table", "no marks")


def test_the_document_has_the_marks():
    assert "table" in table.insert("table", (REPOSITORY / "docs" / "performance.md").read_text())


def test_the_peoples_loop_gets_the_same_samples_right_as_the_reference_engine():
    workload = tiny(images=30)
    model, names, configurations = workload.model(), workload.table.names, workload.random_configurations()
    inputs, labels = workload.batch
    halves = [Batch(inputs[:15], labels[:15]), Batch(inputs[15:], labels[15:])]
    expected = measure(ReferenceEngine(model, names), halves, configurations)
    data = torch.utils.data.TensorDataset(inputs, labels)
    loader = torch.utils.data.DataLoader(data, batch_size=15)
    found = peoples_loop(model, loader, names, configurations, CPU)
    assert found == [measurement.correct for measurement in expected]
    assert 0 < sum(found) < 30 * len(configurations)


def test_the_plain_network_is_the_quantized_one_at_32_bits_without_quantizers():
    workload = tiny(options=(32,))
    plain, quantized = workload.plain_model(), workload.model()
    assert not any(hasattr(module, "curr_bitwidth") for module in plain.modules())
    for module in quantized.modules():
        if hasattr(module, "quantizers"):
            module.quantize_weight, module.quantize_activation = (lambda m=module: m.weight), (lambda x: x)
    with torch.inference_mode():
        torch.testing.assert_close(plain(workload.batch.inputs), quantized(workload.batch.inputs))


def test_one_at_a_time_is_the_base_and_each_layer_at_each_other_option():
    workload = tiny()
    layers = len(workload.table)
    bits = [configuration.bitwidths for configuration in workload.one_at_a_time]
    assert bits[0] == (8,) * layers
    assert len(bits) == len(set(bits)) == 1 + 2 * layers
    assert all(sum(value != 8 for value in row) == 1 for row in bits[1:])


def test_a_sweep_shares_work_and_one_configuration_does_all_of_it():
    ready = prepared(tiny())
    assert share_of_macs(ready, ready.workload.random_configurations(1)) == 1.0
    assert 0 < share_of_macs(ready, ready.workload.one_at_a_time) < 0.7


def test_activations_are_counted_once_each():
    workload = tiny()
    # The stem's convolution, batch norm and ReLU alone make 3 tensors of (10, 4, 8, 8) floats; ResNet-8 makes 19 times
    # such or smaller ones.
    stem = 10 * 4 * 8 * 8 * 4
    assert 3 * stem < activation_bytes(prepared(workload), workload.random_configurations(1)[0]) < 30 * stem


def test_the_first_workload_is_the_one_that_bounds_are_for():
    assert WORKLOADS[0].label == "ResNet-18, 64 x 3x32x32, {2,4,8}"
    assert len(WORKLOADS[0].table) == 19


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_bench_table_asks_for_figures():
    # -o: nothing is installed here.
    run = subprocess.run(
        ["make", "-o", ".venv/.test-ready", "bench-table"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "make: say which figures: make bench-table JSON=results/bench.json" in run.stderr
