"""Large files of tensors are used where they lie: with the same results, little memory, and never past a change."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stage_references import one_thread, qbw_eval
from test_safetensors import file_of

from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.data import inputs, mapped, npz_file, tensor_file
from qbw_eval.data.batches import batches_on
from qbw_eval.data.errors import DataError
from qbw_eval.data.mapped import MappedFile
from qbw_eval.data.sources import load_split
from qbw_eval.data.split import Split
from qbw_eval.evaluate import EvaluationSettings, evaluate, prepare
from qbw_eval.nested import tensors_in
from qbw_eval.settings.data import DataSettings
from schemas.errors import QBWError

IMAGES = np.random.Generator(np.random.PCG64(3)).standard_normal((40, 1, 8, 8)).astype(np.float32)
LABELS = np.arange(40) % 10


@pytest.fixture
def small_files_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "WORTHWHILE", 1)


def settled(path: Path) -> Path:
    """Return the file, last written two minutes ago."""
    before = time.time() - 120
    os.utime(path, (before, before))
    return path


def safetensors(path: Path, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS) -> Path:
    """Write a file whose tensors begin at multiples of 8, as the format's own library does."""
    path.write_bytes(file_of({"inputs": ("F32", images), "labels": ("I64", labels)}, align=8))
    return settled(path)


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **(arrays or {"inputs": IMAGES, "labels": LABELS}))
    return settled(path)


def load(path: Path) -> Split:
    return load_split(DataSettings(source="tensors", validation=path), "validation")


def pt(path: Path, inputs: object, labels: object) -> Path:
    torch.save({"inputs": inputs, "labels": labels}, path)
    return settled(path)


WAYS: dict[str, Callable[[Path], Path]] = {
    "pt": lambda folder: pt(folder / "d.pt", torch.from_numpy(IMAGES), torch.from_numpy(LABELS)),
    "safetensors": lambda folder: safetensors(folder / "d.safetensors"),
    "npz": lambda folder: npz(folder / "d.npz"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("piece", [1, 100, 2**24])
@pytest.mark.usefixtures("small_files_are_mapped")
def test_mapped_and_read_are_the_same_data(
    way: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = WAYS[way](tmp_path)
    monkeypatch.setattr(inputs, "_PIECE", piece)
    monkeypatch.setattr(npz_file, "_PIECE", piece)
    there = load(path)
    assert there.file is not None
    monkeypatch.setattr(mapped, "WORTHWHILE", 2**40)
    read = load(path)
    assert read.file is None
    assert np.array_equal(there.inputs.numpy(), IMAGES)
    assert there.labels.tolist() == read.labels.tolist() == LABELS.tolist()
    assert there.data_id() == read.data_id()
    assert there.limited(7).data_id() == read.limited(7).data_id()
    assert there.limited(7).file is there.file


@pytest.mark.usefixtures("small_files_are_mapped")
def test_a_file_is_narrowed_on_its_way_to_a_device_and_nowhere_else(tmp_path: Path) -> None:
    pictures = (np.arange(40 * 64).reshape(IMAGES.shape) % 256 / 255).astype(np.float32)
    split, cpu = load(safetensors(tmp_path / "d.safetensors", pictures)), torch.device("cpu")
    assert split.file is not None
    sent = batches_on(split, 16, cpu, resident=False, narrow=True)
    assert all(split.file.holds(inputs.values) for inputs, _ in sent.parts), "sent from where it lies, in float32"
    kept = batches_on(split, 16, cpu, resident=True, narrow=True)
    assert [inputs.values.dtype for inputs, _ in kept.parts] == [torch.uint8] * 3
    for batches in (sent, kept):
        assert np.array_equal(torch.cat([batch.inputs for batch in batches]).numpy(), pictures)
    assert split.narrow_copy is None


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(10, dtype=np.float32)[labels]


def unaligned(path: Path) -> Path:
    tensors = {"a": ("U8", np.zeros(1, np.uint8)), "x": ("F32", IMAGES), "y": ("I64", LABELS)}
    path.write_bytes(file_of(tensors, align=8))
    return settled(path)


@pytest.mark.parametrize(
    ("make", "is_there"),
    [
        (lambda folder: npz(folder / "d.npz", x=IMAGES, y=LABELS), False),  # NumPy puts x.npy at an odd byte
        (lambda folder: npz(folder / "d.npz", inputs=np.asfortranarray(IMAGES), labels=LABELS), False),
        (lambda folder: npz(folder / "d.npz", inputs=IMAGES.astype(np.float64), labels=LABELS), False),
        (lambda folder: npz(folder / "d.npz", inputs=IMAGES.astype(">f4"), labels=LABELS), False),
        (lambda folder: npz(folder / "d.npz", inputs=IMAGES, labels=one_hot(LABELS)), True),
        (lambda folder: unaligned(folder / "d.safetensors"), False),
        (lambda folder: safetensors(folder / "d.safetensors"), True),
    ],
)
@pytest.mark.usefixtures("small_files_are_mapped")
def test_what_cannot_be_used_where_it_lies_is_copied(
    make: Callable[[Path], Path], is_there: bool, tmp_path: Path
) -> None:
    split = load(make(tmp_path))
    assert np.array_equal(split.inputs.numpy(), IMAGES)
    assert split.labels.tolist() == LABELS.tolist()
    assert (split.file is not None) == is_there
    if split.file is not None:
        assert split.file.holds(split.inputs)
        assert split.file.holds(split.inputs[39, 0, 7, 7])
        assert not split.file.holds(split.inputs.clone())
        assert not split.file.holds(split.labels)


@pytest.mark.usefixtures("small_files_are_mapped")
def test_nested_inputs_are_used_where_they_lie(tmp_path: Path) -> None:
    inputs = {"front": {"audio": torch.rand(4, 3)}, "back": [torch.rand(4, 1, 2, 2), torch.rand(4, 3).double()]}
    split = load(pt(tmp_path / "d.pt", inputs, torch.arange(4)))
    assert split.file is not None
    assert [split.file.holds(tensor) for tensor in tensors_in(split.inputs)] == [True, True, False]
    assert torch.equal(split.inputs["front"]["audio"], inputs["front"]["audio"])


@pytest.mark.usefixtures("small_files_are_mapped")
def test_a_compressed_file_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", inputs=IMAGES, labels=LABELS)
    split = load(settled(tmp_path / "d.npz"))
    assert split.file is None
    assert np.array_equal(split.inputs.numpy(), IMAGES)


@pytest.mark.usefixtures("small_files_are_mapped")
def test_bytes_are_converted_in_memory(tmp_path: Path) -> None:
    pixels = np.arange(40 * 64, dtype=np.int64).reshape(40, 1, 8, 8).astype(np.uint8)
    split = load(npz(tmp_path / "d.npz", inputs=pixels, labels=LABELS))
    assert split.file is None
    assert np.array_equal(split.inputs.numpy(), pixels.astype(np.float32) / np.float32(255))


@pytest.mark.usefixtures("small_files_are_mapped")
def test_what_may_still_be_written_is_read(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "d.safetensors")
    assert load(path).file is not None
    for age in (30, -1000):
        os.utime(path, (time.time() - age, time.time() - age))
        assert load(path).file is None


def test_small_files_and_what_is_no_file_are_not_mapped(tmp_path: Path) -> None:
    assert MappedFile.of(safetensors(tmp_path / "d.safetensors")) is None
    assert MappedFile.of(tmp_path) is None
    assert MappedFile.of(tmp_path / "nowhere") is None
    os.mkfifo(tmp_path / "pipe")
    assert MappedFile.of(tmp_path / "pipe") is None
    (tmp_path / "empty").touch()
    assert MappedFile.of(settled(tmp_path / "empty")) is None


@pytest.mark.usefixtures("small_files_are_mapped")
def test_writing_into_the_inputs_does_not_reach_the_file(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "d.safetensors")
    before = path.read_bytes()
    split = load(path)
    split.inputs.zero_()
    assert path.read_bytes() == before
    split.check_unchanged()


@pytest.mark.skipif(sys.platform != "linux", reason="how maps are accounted for is Linux's")
def test_a_file_larger_than_memory_can_be_mapped(tmp_path: Path) -> None:
    size = 4 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with (tmp_path / "big").open("wb") as file:
        file.truncate(size)
        file.seek(size - 4)
        file.write(np.float32(7).tobytes())
    big = MappedFile.of(settled(tmp_path / "big"))
    assert big is not None
    values = big.tensor(torch.float32, (size // 4,), 0)
    assert (len(values), values[0].item(), values[-1].item()) == (size // 4, 0, 7)


# --- changes ----------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Path], object]] = {
    "written into": lambda path: path.open("r+b").write(b"\0"),
    "longer": lambda path: path.open("ab").write(b"\0"),
    "another file": lambda path: (path.rename(path.with_suffix(".old")), path.write_bytes(b"")),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:unclosed file")  # the changes are one-liners
@pytest.mark.usefixtures("small_files_are_mapped")
def test_a_change_is_noticed(change: str, tmp_path: Path) -> None:
    path = safetensors(tmp_path / "d.safetensors")
    split = load(path)
    split.check_unchanged()
    CHANGES[change](path)
    with pytest.raises(DataError) as error:
        split.limited(3).check_unchanged()
    assert str(error.value) == (
        f"{path}: changed while it was used, so these results are not kept; run again when it is complete"
    )


@pytest.mark.usefixtures("small_files_are_mapped")
def test_a_file_that_changes_while_it_is_checked_is_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = safetensors(tmp_path / "d.safetensors")
    real = tensor_file.checked_inputs

    def checked(*arguments: Any) -> Any:
        found = real(*arguments)
        monkeypatch.undo()
        safetensors(path, images=IMAGES + 1)
        return found

    monkeypatch.setattr(tensor_file, "checked_inputs", checked)
    split = load(path)
    assert split.file is None
    assert np.array_equal(split.inputs.numpy(), IMAGES + 1)


@pytest.fixture
def evaluation_settings() -> EvaluationSettings:
    return EvaluationSettings(
        sampler="iid",
        num_configs=4,
        seed=0,
        bitwidths=None,
        batch_size=16,
        device=torch.device("cpu"),
        engine="reference",
    )


@pytest.mark.usefixtures("small_files_are_mapped")
def test_no_row_of_data_that_changed_is_given_out(
    tiny_checkpoints: Path, tmp_path: Path, evaluation_settings: EvaluationSettings
) -> None:
    path = safetensors(tmp_path / "d.safetensors")
    evaluation = prepare(read_checkpoint(tiny_checkpoints / "epoch_003.pt"), load(path), evaluation_settings)
    configurations = evaluation.plan.configurations

    def chunks() -> Iterator[Any]:
        yield configurations[:1]
        os.utime(path)
        yield configurations[1:]

    rows = evaluate(evaluation, chunks())
    assert next(rows).num_rows == 1
    with pytest.raises(DataError, match=r"d\.safetensors: changed while it was used"):
        next(rows)


def test_rows_on_a_mapped_file_are_those_on_a_read_one(
    tiny_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    path = safetensors(tmp_path / "d.safetensors")
    (tmp_path / "data.yaml").write_text(f"data: {{source: tensors, validation: {path}, batch_size: 7}}\n")
    found = []
    for worthwhile in (1, 2**40):
        monkeypatch.setattr(mapped, "WORTHWHILE", worthwhile)
        records = tmp_path / f"{worthwhile}/records"
        words = ("--config", tmp_path / "data.yaml", "--num-configs", 3, "--records", records, "--quiet")
        outcome = qbw_eval("run", tiny_checkpoints / "epoch_003.pt", *words)
        assert outcome.code == 0, outcome.stderr
        rows = pd.read_parquet(records).sort_values("config_index")
        found.append(rows[["record_id", "data_id", "correct", "loss"]].values.tolist())
    assert found[0] == found[1]


# --- damage -----------------------------------------------------------------------------------------------------------


def outcome_of(path: Path) -> str:
    try:
        return load(path).data_id()
    except QBWError as error:
        return "refused" if "\n" not in str(error) else "refused in several lines"


@pytest.mark.parametrize("way", WAYS)
def test_damage_of_a_mapped_file_ends_as_that_of_a_read_one(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = WAYS[way](tmp_path)
    whole = path.read_bytes()
    drawn = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        if drawn.random() < 0.2:
            del damaged[drawn.randrange(len(damaged)) :]
        else:
            # Mostly where the structure is: at both ends.
            near = drawn.choice([200, 400, len(whole)])
            position = drawn.randrange(near) if drawn.random() < 0.5 else len(whole) - 1 - drawn.randrange(near)
            damaged[position] ^= 1 << drawn.randrange(8)
        path.write_bytes(damaged)
        settled(path)
        outcomes: list[str] = []
        for worthwhile in (1, 2**40):
            monkeypatch.setattr(mapped, "WORTHWHILE", worthwhile)
            outcomes.append(outcome_of(path))
        assert outcomes[0] == outcomes[1]
        refused += outcomes[0] == "refused"
    assert refused > 30


# --- memory -----------------------------------------------------------------------------------------------------------

MEASURE = """
import re, sys, threading
from pathlib import Path
import torch
from qbw_eval.data.batches import batches_on
from qbw_eval.data.sources import load_split
from qbw_eval.settings.data import DataSettings

def anonymous():  # pages that are this process's own, not those of a mapped file
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def watch(peak, done):
    while not done.wait(0.002):
        peak[0] = max(peak[0], anonymous())

for path in sys.argv[1:]:
    before, peak, done = anonymous(), [0], threading.Event()
    watcher = threading.Thread(target=watch, args=(peak, done))
    watcher.start()
    split = load_split(DataSettings(source="tensors", validation=Path(path)), "validation")
    split.data_id()
    for batch in batches_on(split, 100, torch.device("cpu"), resident=False, narrow=True):
        batch.inputs.sum()
    done.set()
    watcher.join()
    print(split.file is not None, max(peak[0], anonymous()) - before)
    del split
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    count = 24_000
    images, labels = np.zeros((count, 3, 32, 32), np.float32), np.arange(count) % 10
    paths = [npz(tmp_path / "d.npz", inputs=images, labels=labels)]
    paths.append(safetensors(tmp_path / "d.safetensors", images, labels))
    paths.append(pt(tmp_path / "d.pt", torch.from_numpy(images), torch.from_numpy(labels)))
    size = images.nbytes  # 295 MB
    del images

    def measured(*paths: Path) -> list[tuple[bool, int]]:
        words = [sys.executable, "-c", MEASURE, *map(str, paths)]
        told = subprocess.run(words, env=one_thread(), capture_output=True, text=True, check=True).stdout
        return [(line.split()[0] == "True", int(line.split()[1])) for line in told.splitlines()]

    for is_mapped, growth in measured(*paths):
        assert is_mapped
        assert growth < size / 4
    os.utime(paths[1])  # the control: read, it takes what it holds
    ((is_mapped, growth),) = measured(paths[1])
    assert not is_mapped
    assert growth > 0.95 * size
    for path in paths:
        path.unlink()
