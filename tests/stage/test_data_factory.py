"""Batches from a function of the user's own: joined as they come, and every mistake in one sentence."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from stage_references import qbw_eval

from qbw_eval.data import room
from qbw_eval.data.sources import load_split
from qbw_eval.data.split import Split
from qbw_eval.experiment import load_evaluation_file
from qbw_eval.settings.data import DataSettings
from schemas.errors import QBWError

NAME = "batches_of_test"

BATCHES = """
import torch

def make(split, count=3, size=4, classes=5):
    source = torch.Generator().manual_seed({"train": 1, "validation": 2, "test": 3}[split])
    for number in range(count):
        labels = torch.arange(size) % classes
        yield torch.rand(size, 1, 8, 8, generator=source), labels, {"anything": "else"}
"""


@pytest.fixture(autouse=True)
def modules_are_forgotten() -> Iterator[None]:
    yield
    sys.modules.pop(NAME, None)


def written(folder: Path, text: str) -> Path:
    path = folder / f"{NAME}.py"
    path.write_text(text)
    return path


def settings(folder: Path, **arguments: Any) -> DataSettings:
    data = {"source": "factory", "factory": f"{NAME}:make", "arguments": arguments or None}
    return DataSettings.model_validate(data).in_folder(folder)


def load(folder: Path, text: str, limit: int | None = None, **arguments: Any) -> Split:
    written(folder, text)
    return load_split(settings(folder, **arguments), "validation", limit=limit)


def refusal(folder: Path, text: str, **arguments: Any) -> str:
    with pytest.raises(QBWError) as error:
        load(folder, text, **arguments)
    assert "\n" not in str(error.value)
    start = f"data.factory: {NAME}:make: "
    assert str(error.value).startswith(start)
    return str(error.value).removeprefix(start)


def test_batches_are_joined_in_their_order(tmp_path: Path) -> None:
    split = load(tmp_path, BATCHES, count=3, size=4)
    source = torch.Generator().manual_seed(2)
    expected = torch.cat([torch.rand(4, 1, 8, 8, generator=source) for _ in range(3)])
    assert torch.equal(split.inputs, expected)
    assert (split.labels.dtype, split.labels.tolist()) == (torch.int64, [0, 1, 2, 3] * 3)
    assert (split.dataset, split.name, split.image_shape) == (f"{NAME}:make", "validation", (1, 8, 8))


def test_every_split_is_asked_for_by_its_name(tmp_path: Path) -> None:
    load(tmp_path, BATCHES)
    found = {load_split(settings(tmp_path), name).data_id() for name in ("train", "validation", "test")}
    assert len(found) == 3
    assert load_split(settings(tmp_path), "train").data_id() in found


@pytest.mark.parametrize("limit", [1, 4, 5, 12, 13])
def test_limit_asks_for_no_more_batches_than_it_needs(limit: int, tmp_path: Path) -> None:
    whole = load(tmp_path, BATCHES)
    text = BATCHES.replace("        labels =", f"        assert number < {-(-limit // 4)}\n        labels =")
    if limit > 12:
        text = BATCHES
    sys.modules.pop(NAME)
    split = load(tmp_path, text, limit=limit)
    assert split.data_id() == whole.limited(limit).data_id()


def test_a_data_loader_may_shuffle_and_gives_the_same_samples_every_time(tmp_path: Path) -> None:
    text = """
import torch
from torch.utils.data import DataLoader, TensorDataset

def make(split):
    data = TensorDataset(torch.arange(60.0).reshape(10, 1, 2, 3), torch.arange(10))
    return DataLoader(data, batch_size=4, shuffle=True)
"""
    state = torch.get_rng_state()
    first, again = load(tmp_path, text), load(tmp_path, text)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.data_id() == again.data_id()
    assert sorted(first.labels.tolist()) == list(range(10))
    assert first.labels.tolist() != list(range(10))
    assert [int(image[0, 0, 0]) // 6 for image in first.inputs] == first.labels.tolist()


def test_inputs_may_be_nested_arrays_bytes_and_have_histories(tmp_path: Path) -> None:
    text = """
import numpy as np
import torch

def make(split):
    yield [{"a": np.arange(6.0).reshape(2, 3), "b": (torch.ones(2, 1),)}, np.array([1, 0])]
    yield ({"b": (torch.full((1, 1), 2.0, requires_grad=True),), "a": torch.zeros(1, 3).double()}, torch.tensor([4]))
"""
    split = load(tmp_path, text)
    assert list(split.inputs) == ["a", "b"]
    assert split.inputs["a"].tolist() == [[0, 1, 2], [3, 4, 5], [0, 0, 0]]
    assert split.inputs["b"][0].tolist() == [[1], [1], [2]]
    assert all(t.dtype == torch.float32 and not t.requires_grad for t in (split.inputs["a"], split.inputs["b"][0]))
    assert split.labels.tolist() == [1, 0, 4]


def test_labels_may_be_one_hot_and_inputs_bytes(tmp_path: Path) -> None:
    text = """
import torch

def make(split):
    yield torch.tensor([[0], [255]], dtype=torch.uint8), torch.eye(3)[[2, 0]]
"""
    split = load(tmp_path, text)
    assert split.inputs.tolist() == [[0.0], [1.0]]
    assert split.labels.tolist() == [2, 0]


def test_a_loader_may_fill_the_same_tensor_again(tmp_path: Path) -> None:
    text = """
import torch

def make(split):
    inputs, labels = torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)
    for number in range(3):
        inputs.fill_(number)
        labels.fill_(number)
        yield inputs, labels
"""
    split = load(tmp_path, text)
    assert split.inputs.flatten().tolist() == split.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_arguments_cannot_be_changed_for_the_next_call(tmp_path: Path) -> None:
    text = """
import torch

def make(split, numbers):
    numbers.append(1)
    yield torch.tensor([[float(len(numbers))]]), torch.tensor([0])
"""
    written(tmp_path, text)
    data = settings(tmp_path, numbers=[1])
    assert [load_split(data, "train").inputs.item() for _ in range(2)] == [2, 2]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return None", "returned nothing; expected an iterable of batches (inputs, labels)"),
        ("return 3", "returned 3; expected an iterable of batches (inputs, labels)"),
        ("return []", "gave no batches for the split 'validation'; expected an iterable of batches (inputs, labels)"),
        (
            "return [torch.ones(2, 1)]",
            "batch 0 is torch.float32 of shape (2, 1); expected an iterable of batches (inputs, labels)",
        ),
        ("return [(ONE,)]", "batch 0 is a tuple of 1; expected an iterable of batches (inputs, labels)"),
        ("return [({'x': ONE}, None)]", "batch 0: labels are nothing; expected a tensor"),
        ("return [(ONE, [0])]", "batch 0: labels are a list of 1; expected a tensor"),
        ("return [('words', ZERO)]", "batch 0: inputs are 'words'; expected a tensor"),
        ("return [({}, ZERO)]", "batch 0: inputs hold no tensors"),
        ("return [({'a': None}, ZERO)]", "batch 0: inputs a are nothing; expected a tensor"),
        (
            "return [(ONE.long(), ZERO)]",
            "batch 0: inputs are torch.int64; expected floating point, or uint8 (which is divided by 255)",
        ),
        ("return [(ONE[0], ZERO)]", "batch 0: inputs have shape (1,); expected (samples, ...)"),
        ("return [(ONE[:0], ZERO[:0])]", "batch 0: inputs have shape (0, 1); expected (samples, ...)"),
        (
            "return [({'a': ONE, 'b': torch.ones(2, 1)}, ZERO)]",
            "batch 0: inputs b hold 2 samples, a holds 1; expected as many",
        ),
        ("return [(ONE, ZERO), (ONE / 0, ZERO)]", "batch 1: 1 input values are NaN or infinite; remove those samples"),
        (
            "return [({'a': ONE / 0}, ZERO)]",
            "batch 0: 1 input a values are NaN or infinite; remove those samples",
        ),
        (
            "return [(ONE, torch.zeros(2))]",
            "batch 0: labels are torch.float32 of shape (2,); expected one whole number, or one one-hot row, for each "
            "of the 1 inputs",
        ),
        ("return [(ONE, ZERO - 1)]", "batch 0: the smallest label is -1; classes count from 0"),
        (
            "return [(ONE, ZERO), (torch.ones(1, 2), ZERO)]",
            "batch 1: inputs have samples of shape (2,); expected (1,), as in the first batch",
        ),
        (
            "return [({'a': ONE}, ZERO), ({'a': torch.ones(1, 2)}, ZERO)]",
            "batch 1: inputs a have samples of shape (2,); expected (1,), as in the first batch",
        ),
        (
            "return [({'a': ONE}, ZERO), ({'b': ONE}, ZERO)]",
            "batch 1: inputs have b; expected a, as in the first batch",
        ),
        ("return [((ONE,), ZERO), (ONE, ZERO)]", "batch 1: inputs have one tensor; expected 0, as in the first batch"),
    ],
)
def test_what_are_no_batches_is_told(body: str, sentence: str, tmp_path: Path) -> None:
    text = (
        f"import torch\nONE, ZERO = torch.ones(1, 1), torch.zeros(1, dtype=torch.int64)\ndef make(split):\n    {body}\n"
    )
    with pytest.raises(QBWError) as error:
        load(tmp_path, text)
    assert str(error.value) == f"data.factory: {NAME}:make: {sentence}"


def test_errors_of_the_users_function_have_their_line(tmp_path: Path) -> None:
    path = tmp_path / f"{NAME}.py"
    assert refusal(tmp_path, "def make(split):\n    raise FileNotFoundError('no data')\n") == (
        f"FileNotFoundError: no data ({path}:2)"
    )
    sys.modules.pop(NAME)
    assert refusal(tmp_path, "def make(split):\n    x = 1\n    yield x / 0\n") == (
        f"ZeroDivisionError: division by zero ({path}:3)"
    )
    sys.modules.pop(NAME)
    # What it is not made for, it says itself.
    found = refusal(tmp_path, "def make(split):\n    return []\n", number=3)
    assert found.startswith("TypeError: make() got an unexpected keyword argument 'number'")


def test_what_does_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_memory", lambda _device: 6 * 4 * 64 * 4)
    assert load(tmp_path, BATCHES, count=4).labels.shape == (16,)
    assert refusal(tmp_path, BATCHES, count=1000) == (
        "20 samples need 0.0 MiB of memory, more than 0.0 MiB (three quarters of what is free); use fewer (--limit)"
    )


def test_a_checkpoint_is_evaluated_on_them_with_a_file_beside_the_module(
    tiny_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, BATCHES)
    config = tmp_path / "data.yaml"
    config.write_text(f"data: {{source: factory, factory: '{NAME}:make', arguments: {{count: 2, classes: 10}}}}\n")
    monkeypatch.chdir("/")  # modules are looked for beside the file, not where the command runs
    records = tmp_path / "results/records"
    words = ("--config", config, "--num-configs", 2, "--records", records, "--quiet")
    outcome = qbw_eval("run", tiny_checkpoints / "epoch_003.pt", *words)
    assert outcome.code == 0, outcome.stderr
    rows = pd.read_parquet(records)
    data = load_evaluation_file(config).data
    assert set(rows.dataset) == {f"{NAME}:make"}
    assert set(rows.data_id) == {load_split(data, "validation").data_id()}
    assert set(rows.num_samples) == {8}


def test_a_checkpoint_trained_on_them_needs_them_named_again(tmp_path: Path) -> None:
    path = written(tmp_path, BATCHES)
    data = f"data: {{source: factory, factory: '{NAME}:make'}}\n"
    (tmp_path / "exp.yaml").write_text(
        "model: {name: resnet8, width: 1}\n"
        "training: {epochs: 1, configurations_per_batch: 1}\n"
        "quantization: {mine: {bitwidth_options: [2, 4], validation_function: simple_validation}}\n" + data
    )
    (tmp_path / "data.yaml").write_text(data)
    trained = qbw_eval("train", tmp_path / "exp.yaml", "--out", tmp_path / "runs", "--quiet")
    assert trained.code == 0, trained.stderr
    (checkpoint,) = (tmp_path / "runs/exp/checkpoints").iterdir()
    # Alone it runs nothing, though the module is at hand and would be found.
    words = ("run", checkpoint, "--records", tmp_path / "results/records", "--num-configs", 1, "--quiet")
    path.write_text(f"raise SystemExit('run all the same')\n{BATCHES}")
    sys.modules.pop(NAME)
    refused = qbw_eval(*words)
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"qbw-eval: error: {checkpoint}: config: data.source: 'factory' runs a function of somebody's own, which no "
        "checkpoint may ask for; if you trust it, name the data in a file of yours, with --config\n"
    )
    assert NAME not in sys.modules
    path.write_text(f"print('imported')\n{BATCHES}".replace("    for", "    print(split)\n    for"))
    for config in ("data.yaml", "exp.yaml"):
        outcome = qbw_eval(*words, "--json", "--config", tmp_path / config)
        assert outcome.code == 0, outcome.stderr
        assert json.loads(outcome.stdout)["checkpoints"][0]["samples"] == 12
        assert "validation" in outcome.stderr.splitlines()
