"""Data: the digits, tensor files in every shape people save them, and files that are something else."""

import copy
import doctest
import hashlib
import io
import pickle
import random
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from qbw_eval.checkpoints.safe_load import CheckpointError
from qbw_eval.data import errors, labels, room
from qbw_eval.data import split as split_module
from qbw_eval.data.batches import Batches, SentBatches, batches_on
from qbw_eval.data.errors import DataError
from qbw_eval.data.sources import load_split
from qbw_eval.data.split import Split, SplitName
from qbw_eval.nested import places, samples
from qbw_eval.settings.data import DataSettings
from schemas.errors import UsageError

DIGITS = DataSettings(source="digits")

IMAGES = np.linspace(-1, 1, 4 * 2 * 3 * 5, dtype=np.float32).reshape(4, 2, 3, 5)
LABELS = np.array([0, 2, 1, 2])


def load(path: Path, name: SplitName = "validation") -> Split:
    return load_split(DataSettings(source="tensors", train=path, validation=path), name)


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def refusal(path: Path) -> str:
    """Return what is said about a file that must be refused, without the path it begins with."""
    with pytest.raises(DataError) as error:
        load(path)
    sentence = str(error.value)
    assert sentence.startswith(f"{path}: ")
    assert "\n" not in sentence
    return sentence.removeprefix(f"{path}: ")


# --- digits ---------------------------------------------------------------------------------------------------------


def test_the_digits_come_in_two_splits_of_one_channel_8x8_images_of_ten_classes() -> None:
    for name, count in (("train", 1000), ("validation", 797)):
        split = load_split(DIGITS, name)  # type: ignore[arg-type]  # a literal, to mypy a text
        assert (split.dataset, split.name, len(split)) == ("digits", name, count)
        assert split.inputs.shape == (count, 1, 8, 8)
        assert split.inputs.dtype == torch.float32
        assert split.inputs.is_contiguous()
        assert (split.labels.shape, split.labels.dtype) == ((count,), torch.int64)
        assert sorted(set(split.labels.tolist())) == list(range(10))
        assert (split.image_shape, split.num_classes) == ((1, 8, 8), 10)


def test_the_two_splits_hold_every_digit_once() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    train, validation = load_split(DIGITS, "train"), load_split(DIGITS, "validation")
    images = torch.cat([train.inputs, validation.inputs]).flatten(1).double()
    labels = torch.cat([train.labels, validation.labels])
    # Pixels are whole numbers from 0 to 16: undo the standardization and compare exactly, as multisets.
    lowest, highest = images.min(), images.max()
    pixels = ((images - lowest) / (highest - lowest) * 16).round().int()
    ours = sorted([*row, label] for row, label in zip(pixels.tolist(), labels.tolist(), strict=True))
    theirs = sorted(
        [*row, label] for row, label in zip(digits.data.astype(int).tolist(), digits.target.tolist(), strict=True)
    )
    assert ours == theirs


def test_only_the_training_split_decides_the_standardization() -> None:
    train, validation = load_split(DIGITS, "train"), load_split(DIGITS, "validation")
    assert train.inputs.double().mean().item() == pytest.approx(0, abs=1e-6)
    assert train.inputs.double().std().item() == pytest.approx(1, abs=1e-6)
    assert abs(validation.inputs.double().mean().item()) > 1e-4


def test_the_digits_never_change() -> None:
    # Literal: another shuffle or standardization would silently make all earlier rows incomparable. The labels alone
    # say whether it was the shuffle; pixels may differ in the last place on a machine that sums in another order.
    train, validation = load_split(DIGITS, "train"), load_split(DIGITS, "validation")
    assert validation.labels[:20].tolist() == [1, 7, 8, 7, 4, 6, 6, 0, 7, 6, 4, 5, 3, 9, 3, 4, 9, 8, 6, 3]
    assert train.data_id() == load_split(DIGITS, "train").data_id()
    assert (train.data_id(), validation.data_id()) == (
        "0a59270e39aba31f53d31f5bd28cba26",
        "54bd752ce71bc4a5d76348a0ad60d109",
    )


def test_the_digits_have_no_test_split() -> None:
    with pytest.raises(UsageError) as error:
        load_split(DIGITS, "test")
    assert str(error.value) == "--split: 'digits' has the splits ['train', 'validation'], not 'test'"


def test_without_scikit_learn_the_digits_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # importing it fails, as if it were not there
    with pytest.raises(DataError) as error:
        load_split(DIGITS, "train")
    assert str(error.value) == "data.source: 'digits' needs scikit-learn; install it with: pip install 'qbw[demo]'"


# --- the fingerprint ------------------------------------------------------------------------------------------------


def a_split() -> Split:
    return Split(dataset="d", name="validation", inputs=torch.from_numpy(IMAGES), labels=torch.from_numpy(LABELS))


def test_the_fingerprint_is_of_shapes_and_bytes() -> None:
    expected = hashlib.blake2b(
        b"torch.float32(4, 2, 3, 5)" + IMAGES.tobytes() + b"torch.int64(4,)" + LABELS.tobytes(), digest_size=16
    ).hexdigest()
    assert a_split().data_id() == expected


def test_the_fingerprint_changes_with_any_pixel_label_shape_or_order_and_with_nothing_else() -> None:
    split = a_split()
    variants: dict[str, Split] = {"itself": split, "fewer": split.limited(3)}
    for index in range(4):
        inputs, labels = split.inputs.clone(), split.labels.clone()
        inputs[index, 1, 2, 3] = torch.nextafter(inputs[index, 1, 2, 3], torch.tensor(2.0))
        labels[index] += 1
        variants |= {f"pixel {index}": replace(split, inputs=inputs), f"label {index}": replace(split, labels=labels)}
    variants["reordered"] = replace(split, inputs=split.inputs.flip(0), labels=split.labels.flip(0))
    variants["labels reordered"] = replace(split, labels=split.labels.flip(0))
    variants["reshaped"] = replace(split, inputs=split.inputs.reshape(4, 2, 5, 3))
    assert len({variant.data_id() for variant in variants.values()}) == len(variants)
    # Names and memory layout are no data.
    transposed = split.inputs.transpose(2, 3).contiguous().transpose(2, 3)
    assert not transposed.is_contiguous()
    same = [
        replace(split, dataset="e", name="test"),
        replace(split, inputs=transposed),
        split.limited(None),
        split.limited(9),
    ]
    assert {variant.data_id() for variant in same} == {split.data_id()}


def test_limited_takes_the_first_samples() -> None:
    split = a_split().limited(3)
    assert len(split) == 3
    assert torch.equal(split.inputs, torch.from_numpy(IMAGES[:3]))
    assert split.labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_batches_are_the_split_in_order(batch_size: int) -> None:
    batches = list(batches_on(a_split(), batch_size, torch.device("cpu")))
    assert [len(batch.labels) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), torch.from_numpy(IMAGES))
    assert torch.cat([batch.labels for batch in batches]).tolist() == LABELS.tolist()


def a_split_of_pictures() -> Split:
    """Pictures that were bytes, 7 of them, channels last."""
    pictures = torch.randint(0, 256, (7, 3, 16, 16), generator=torch.Generator().manual_seed(1)) / 255
    return replace(
        a_split(),
        inputs={"front": pictures.contiguous(memory_format=torch.channels_last), "back": [torch.randn(7, 5)]},
        labels=torch.tensor([0, 2, 1, 2, 0, 1, 1]),
    )


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("scarce", [True, False])
def test_batches_have_the_splits_bits_and_layout_however_they_are_kept(
    resident: bool, narrow: bool, scarce: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if scarce:
        monkeypatch.setattr(split_module, "free_memory", lambda _device: 4 * split.narrow_bytes - 1)
    split = a_split_of_pictures()
    batches = batches_on(split, 3, torch.device("cpu"), resident=resident, narrow=narrow)
    assert isinstance(batches, Batches if resident else SentBatches)
    pictures = batches.parts[0][0]["front"].values
    assert pictures.dtype == (torch.uint8 if narrow and (resident or not scarce) else torch.float32)
    assert (split.narrow_copy is None) == scarce
    for _ in range(2):
        first = 0
        for batch in batches:
            part = slice(first, first + 3)
            first += 3
            assert torch.equal(batch.inputs["front"], split.inputs["front"][part])
            assert batch.inputs["front"].stride() == split.inputs["front"].stride()
            assert torch.equal(batch.inputs["back"][0], split.inputs["back"][0][part])
            assert torch.equal(batch.labels, split.labels[part])
            assert batch.labels.dtype == torch.int64
        assert first == 9


def test_a_split_knows_how_little_it_takes() -> None:
    split = a_split_of_pictures()
    values, labels = 3 * 256, 7
    assert split.narrow_bytes == 7 * values + 3 * 4 * 256 + split.inputs["back"][0].nbytes + labels
    assert split.narrow_copy is split.narrow_copy, "it is made once"
    assert split.narrow_copy is not None
    assert split.narrow_copy[0]["back"][0].values is split.inputs["back"][0], "and only of what becomes smaller"


# --- splits of nested inputs ------------------------------------------------------------------------------------------


def nested(count: int = 6, seed: int = 0) -> dict[str, Any]:
    """Return inputs in every kind of container."""
    source = torch.Generator().manual_seed(seed)
    return {
        "front": {
            "audio": torch.randn(count, 2, 3, 4, generator=source),
            "seismic": torch.randn(count, 5, generator=source),
        },
        "back": [torch.randn(count, 1, generator=source), (torch.randn(count, 2, 2, generator=source),)],
    }


def a_nested_split() -> Split:
    return Split(dataset="d", name="validation", inputs=nested(), labels=torch.tensor([0, 2, 1, 2, 0, 1]))


def with_leaf(split: Split, change: Callable[[dict[str, Any]], object]) -> Split:
    """Return the split with its inputs changed in place, in containers of their own."""
    copied = copy.deepcopy(split.inputs)
    change(copied)
    return replace(split, inputs=copied)


def test_the_fingerprint_of_nested_inputs_changes_with_every_value_place_and_container() -> None:
    split = a_nested_split()
    front, back = split.inputs["front"], split.inputs["back"]
    variants = {
        "itself": split,
        "fewer": split.limited(5),
        "a label": replace(split, labels=split.labels.flip(0)),
        "a value": with_leaf(split, lambda inputs: inputs["front"]["audio"][5, 1, 2, 3].add_(1)),
        "a value deep inside": with_leaf(split, lambda inputs: inputs["back"][1][0][0, 0, 0].add_(1)),
        "another key": replace(split, inputs={"front": front, "rear": back}),
        "another inner key": with_leaf(split, lambda i: i["front"].update(sonic=i["front"].pop("seismic"))),
        "another order": replace(split, inputs={"back": back, "front": front}),
        "another inner order": replace(split, inputs={"front": dict(reversed(front.items())), "back": back}),
        "one key less": replace(split, inputs={"front": front}),
        "swapped samples": replace(split, inputs=samples(split.inputs, torch.tensor([1, 0, 2, 3, 4, 5]))),
        "a level less": replace(split, inputs={"front": front, "back": [back[0], back[1][0]]}),
    }
    assert len({variant.data_id() for variant in variants.values()}) == len(variants)
    assert a_nested_split().data_id() == split.data_id()
    assert replace(split, dataset="e", inputs=copy.deepcopy(split.inputs)).data_id() == split.data_id()


def test_nested_inputs_are_limited_everywhere() -> None:
    split = a_nested_split()
    fewer = split.limited(4)
    assert (len(fewer), [len(tensor) for _, tensor in places(fewer.inputs)]) == (4, [4, 4, 4, 4])
    assert torch.equal(fewer.inputs["back"][1][0], split.inputs["back"][1][0][:4])
    for limit in (None, 6, 100):
        assert split.limited(limit).data_id() == split.data_id()
    assert split.image_shape is None
    assert [tuple(tensor.shape) for _, tensor in places(split.first)] == [(1, 2, 3, 4), (1, 5), (1, 1), (1, 2, 2)]


@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("narrow", [True, False])
def test_batches_of_nested_inputs_are_the_split_in_order(batch_size: int, resident: bool, narrow: bool) -> None:
    split = a_nested_split()
    batches = batches_on(split, batch_size, torch.device("cpu"), resident=resident, narrow=narrow)
    assert len(batches) == -(-6 // batch_size)
    for _ in range(2):  # any number of times
        position = 0
        for batch in batches:
            assert list(batch.inputs) == ["front", "back"]
            assert isinstance(batch.inputs["back"][1], tuple)
            for row in range(len(batch.labels)):
                assert batch.labels[row] == split.labels[position]
                for (_, tensor), (_, whole) in zip(places(batch.inputs), places(split.inputs), strict=True):
                    assert torch.equal(tensor[row], whole[position])
                position += 1
        assert position == 6


# --- tensor files that can be used ----------------------------------------------------------------------------------


def as_pt(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


WAYS: dict[str, Callable[[Path], Path]] = {
    "pt": lambda f: as_pt(f / "d.pt", {"inputs": torch.from_numpy(IMAGES), "labels": torch.from_numpy(LABELS)}),
    "pt, x and y": lambda f: as_pt(f / "d.pt", {"x": torch.from_numpy(IMAGES), "y": torch.from_numpy(LABELS), "n": 4}),
    "pt, images and targets": lambda f: as_pt(
        f / "d.pt", {"images": torch.from_numpy(IMAGES), "targets": torch.from_numpy(LABELS)}
    ),
    "pt, data and target": lambda f: as_pt(
        f / "d.pt", {"data": torch.from_numpy(IMAGES), "target": torch.from_numpy(LABELS)}
    ),
    "pt, tuple": lambda f: as_pt(f / "d.pt", (torch.from_numpy(IMAGES), torch.from_numpy(LABELS))),
    "pt, list": lambda f: as_pt(f / "d.pt", [torch.from_numpy(IMAGES), torch.from_numpy(LABELS)]),
    "pt, float64 and int32": lambda f: as_pt(
        f / "d.pt", {"inputs": torch.from_numpy(IMAGES).double(), "labels": torch.from_numpy(LABELS).int()}
    ),
    "npz": lambda f: npz(f / "d.npz", inputs=IMAGES, labels=LABELS),
    "npz, other names": lambda f: npz(f / "d.npz", images=IMAGES, target=LABELS, extra=np.zeros(3)),
    "npz, Fortran order": lambda f: npz(f / "d.npz", inputs=np.asfortranarray(IMAGES), labels=LABELS),
    "npz, big-endian": lambda f: npz(f / "d.npz", inputs=IMAGES.astype(">f4"), labels=LABELS.astype(">i2")),
    "npz, uint8 labels": lambda f: npz(f / "d.npz", inputs=IMAGES, labels=LABELS.astype(np.uint8)),
    "npz, compressed": lambda f: np.savez_compressed(f / "d.npz", inputs=IMAGES, labels=LABELS) or f / "d.npz",  # type: ignore[func-returns-value]  # None, so the path
}


@pytest.mark.parametrize("way", WAYS)
def test_every_usual_way_to_save_tensors_gives_the_same_split(way: str, tmp_path: Path) -> None:
    split = load(WAYS[way](tmp_path))
    assert (split.dataset, split.name) == ("d", "validation")
    assert split.inputs.dtype == torch.float32
    assert torch.equal(split.inputs, torch.from_numpy(IMAGES))
    assert (split.labels.dtype, split.labels.tolist()) == (torch.int64, LABELS.tolist())
    assert split.data_id() == a_split().data_id()


def test_tensors_that_were_saved_wanting_a_gradient_are_data_all_the_same(tmp_path: Path) -> None:
    inputs, one_hot = torch.from_numpy(IMAGES.copy()), torch.eye(3)[LABELS]
    before = load(as_pt(tmp_path / "negative.pt", (torch._neg_view(-inputs), one_hot)))
    split = load(as_pt(tmp_path / "d.pt", (inputs.requires_grad_(), one_hot.requires_grad_())))
    assert split.data_id() == before.data_id()
    assert not split.inputs.requires_grad
    assert split.data_id() == a_split().data_id()


@pytest.mark.parametrize("name", ["inputs", "data"])
def test_a_torch_file_may_hold_nested_inputs(name: str, tmp_path: Path) -> None:
    split = a_nested_split()
    loaded = load(as_pt(tmp_path / "d.pt", {name: split.inputs, "labels": split.labels}))
    assert loaded.data_id() == split.data_id()
    assert type(loaded.inputs["back"][1]) is tuple
    pair = load(as_pt(tmp_path / "d.pt", (split.inputs, split.labels)))
    assert pair.data_id() == split.data_id()


def test_nested_inputs_may_be_bytes_doubles_and_out_of_order(tmp_path: Path) -> None:
    pixels, columns = torch.arange(12, dtype=torch.uint8).reshape(4, 3), torch.arange(8.0).double().reshape(2, 4).t()
    split = load(as_pt(tmp_path / "d.pt", {"inputs": {"a": pixels, "b": columns}, "labels": torch.tensor(LABELS)}))
    assert torch.equal(split.inputs["a"], pixels.float() / 255)
    assert split.inputs["b"].tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for _, tensor in places(split.inputs))


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"a": torch.ones(4, 2), "b": torch.ones(3, 2)}, "inputs b hold 3 samples, a holds 4; expected as many"),
        ({"a": {"b": torch.ones(4)}}, "inputs a.b have shape (4,); expected (samples, ...)"),
        ({"a": [1]}, "inputs a.0 are 1; expected a tensor"),
        ({"a": {}}, "inputs hold no tensors"),
        ({"a": torch.ones(4, 2).long()}, "inputs a are torch.int64; expected floating point, or uint8 (which is "),
        ({"a": torch.ones(4, 2) / 0}, "8 input a values are NaN or infinite; remove those samples"),
        ({"a": torch.ones(3, 2)}, "labels are torch.int64 of shape (4,); expected one whole number, or one one-hot "),
        ({}, "holds ['inputs', 'labels'], but no tensor named inputs, x, images or data"),
    ],
)
def test_nested_inputs_that_are_none_say_where(inputs: object, sentence: str, tmp_path: Path) -> None:
    found = refusal(as_pt(tmp_path / "d.pt", {"inputs": inputs, "labels": torch.tensor(LABELS)}))
    assert found.startswith(sentence)


def test_labels_are_one_tensor(tmp_path: Path) -> None:
    path = as_pt(tmp_path / "d.pt", (torch.from_numpy(IMAGES), {"vehicle": torch.tensor(LABELS)}))
    assert refusal(path) == "labels are in a dict; expected one tensor"


@pytest.mark.parametrize("ending", ["pt", "npz"])
def test_bytes_become_numbers_from_0_to_1(ending: str, tmp_path: Path) -> None:
    pixels = np.array([0, 1, 51, 128, 254, 255, 7, 9], dtype=np.uint8).reshape(2, 1, 2, 2)
    path = tmp_path / f"d.{ending}"
    if ending == "pt":
        as_pt(path, (torch.from_numpy(pixels), torch.tensor([0, 1])))
    else:
        npz(path, inputs=pixels, labels=np.array([0, 1]))
    assert load(path).inputs.flatten().tolist() == (pixels.flatten().astype(np.float32) / np.float32(255)).tolist()


def test_a_split_that_the_experiment_does_not_name_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        load(npz(tmp_path / "d.npz", inputs=IMAGES, labels=LABELS), "test")
    assert str(error.value) == "data.test: the experiment names no file for the split 'test'; add it, or use --split"


@pytest.mark.parametrize(("module", "count"), [(labels, 3), (errors, 1), (room, 1)])
def test_the_examples_in_docstrings_run(module: ModuleType, count: int) -> None:
    assert doctest.testmod(module) == (0, count)


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "i2", "i4", "i8", "u8", "f2", "f4", "f8"])
@pytest.mark.parametrize("ending", ["pt", "npz"])
def test_one_hot_labels_are_the_same_data_as_class_numbers(ending: str, dtype: str, tmp_path: Path) -> None:
    path = tmp_path / f"d.{ending}"
    one_hot = np.array([[label == number for number in range(5)] for label in LABELS]).astype(dtype)
    if ending == "pt":
        as_pt(path, {"inputs": torch.from_numpy(IMAGES), "labels": torch.from_numpy(one_hot)})
    else:
        npz(path, inputs=IMAGES, labels=one_hot)
    split = load(path)
    assert (split.labels.dtype, split.labels.tolist()) == (torch.int64, LABELS.tolist())
    assert split.labels.is_contiguous()
    assert split.data_id() == a_split().data_id()


# --- tensor files that cannot ---------------------------------------------------------------------------------------


NOT_ONE_HOT = (
    "labels of shape (4, 3) are read as one-hot, but row {} has {}; "
    "expected a single 1 in every row and zeros else; save class numbers (N,) instead"
)


def one_hot_but_for(row: int, values: list[float]) -> np.ndarray:
    """Return one-hot rows of three classes, all right but one."""
    rows = np.eye(3, dtype=np.float32)[LABELS]
    rows[row] = values
    return rows


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"inputs": IMAGES}, "holds ['inputs'], but no tensor named labels, y, targets or target"),
        ({"labels": LABELS, "a": LABELS}, "holds ['a', 'labels'], but no tensor named inputs, x, images or data"),
        (
            {"inputs": IMAGES.astype(np.int32), "labels": LABELS},
            "inputs are torch.int32; expected floating point, or uint8 (which is divided by 255)",
        ),
        (
            {"inputs": IMAGES.astype(np.complex64), "labels": LABELS},
            "inputs are torch.complex64; expected floating point, or uint8 (which is divided by 255)",
        ),
        (
            {"inputs": IMAGES[0], "labels": LABELS},
            "inputs have shape (2, 3, 5); expected (samples, channels, height, width)",
        ),
        (
            {"inputs": IMAGES[:0], "labels": LABELS[:0]},
            "inputs have shape (0, 2, 3, 5); expected (samples, channels, height, width)",
        ),
        (
            {"inputs": IMAGES[:, :, :0], "labels": LABELS},
            "inputs have shape (4, 2, 0, 5); expected (samples, channels, height, width)",
        ),
        (
            {"inputs": IMAGES, "labels": LABELS[:3]},
            "labels are torch.int64 of shape (3,); "
            "expected one whole number, or one one-hot row, for each of the 4 inputs",
        ),
        (
            {"inputs": IMAGES, "labels": np.eye(3, dtype=np.int64)},
            "labels are torch.int64 of shape (3, 3); "
            "expected one whole number, or one one-hot row, for each of the 4 inputs",
        ),
        (
            {"inputs": IMAGES, "labels": LABELS.astype(np.float32)},
            "labels are torch.float32 of shape (4,); "
            "expected one whole number, or one one-hot row, for each of the 4 inputs",
        ),
        (
            {"inputs": IMAGES, "labels": np.ones((4, 1), dtype=np.int64)},
            "labels have shape (4, 1); expected class numbers (N,) or one-hot rows (N, classes) "
            "of two classes or more; save a column of class numbers as labels[:, 0]",
        ),
        ({"inputs": IMAGES, "labels": one_hot_but_for(2, [1, 0, 1])}, NOT_ONE_HOT.format(2, "2 ones")),
        ({"inputs": IMAGES, "labels": one_hot_but_for(1, [0, 0, 0])}, NOT_ONE_HOT.format(1, "no 1")),
        ({"inputs": IMAGES, "labels": one_hot_but_for(3, [-1, 1, 1])}, NOT_ONE_HOT.format(3, "the value -1")),
        (
            {"inputs": IMAGES, "labels": one_hot_but_for(0, [0.9, 0.1, 0]).astype(np.float64)},
            NOT_ONE_HOT.format(0, "the value 0.9"),
        ),
        (
            {"inputs": IMAGES, "labels": one_hot_but_for(3, [0, np.nan, 1])},
            NOT_ONE_HOT.format(3, "the value nan"),
        ),
        ({"inputs": IMAGES, "labels": LABELS - 1}, "the smallest label is -1; classes count from 0"),
    ],
)
@pytest.mark.parametrize("ending", ["pt", "npz"])
def test_content_that_is_no_split_says_what_is_wrong(
    content: Mapping[str, np.ndarray], sentence: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"d.{ending}"
    if ending == "pt":
        as_pt(path, {name: torch.from_numpy(array.copy()) for name, array in content.items()})
    else:
        npz(path, **content)
    assert refusal(path) == sentence


@pytest.mark.parametrize(
    ("content", "found"), [([1, 2, 3], "list"), ("words", "str"), (torch.ones(2), "Tensor"), (None, "NoneType")]
)
def test_a_torch_file_of_something_else_says_what_it_holds(content: object, found: str, tmp_path: Path) -> None:
    assert refusal(as_pt(tmp_path / "d.pt", content)) == f"expected a dict with 'inputs' and 'labels', found {found}"


def test_a_torch_file_that_wants_to_run_something_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = as_pt(tmp_path / "d.pt", {"inputs": Runs(f"touch {canary}")})
    with pytest.raises(CheckpointError, match=r"d\.pt: wants to run .*system.* while loading"):
        load(path)
    assert not canary.exists()


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    for name in ("nowhere.npz", "folder.npz"):
        assert refusal(tmp_path / name) == (
            "no such file; data.validation must name a .pt, .npz or .safetensors file with inputs and labels"
        )


# --- .npz files that lie --------------------------------------------------------------------------------------------


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npy_claiming(header: str, data: bytes = b"") -> bytes:
    """Return a .npy file with a header of one's own."""
    words = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(words)) + words + data


def archive(path: Path, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return path


class Runs:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, (self.command,)


def test_a_pickled_object_array_is_refused_and_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    hostile = np.array([Runs(f"touch {canary}"), None], dtype=object)
    path = archive(tmp_path / "d.npz", inputs=npy(hostile), labels=npy(LABELS))
    assert refusal(path) == "inputs.npy: its header says object of shape (2,), which does not fit its size; refused"
    assert not canary.exists()
    pickle.loads(pickle.dumps(hostile))  # the control: it is live
    assert canary.exists()


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 3, 224, 224)}",
            "inputs.npy: its header says float32 of shape (1000000, 3, 224, 224), which does not fit its size; refused",
        ),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}",
            "inputs.npy: its header says float32 of shape (3,), which does not fit its size; refused",
        ),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -2, 1, 1)}",
            "inputs.npy: not a readable array (can only specify one unknown dimension)",
        ),
        ("", "inputs.npy: not a readable array (Cannot parse header: '\\n')"),
        ("(" * 8000, None),
        ("-" * 9000 + "1", None),
        ("__import__('os').abort()", None),
        ("{'descr': 'nonsense', 'fortran_order': False, 'shape': (4,)}", None),
        ("{'descr': '|S16', 'fortran_order': False, 'shape': (1,)}", None),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,)}", None),
    ],
)
def test_a_header_that_lies_is_refused(header: str, sentence: str | None, tmp_path: Path) -> None:
    path = archive(tmp_path / "d.npz", inputs=npy_claiming(header, bytes(16)), labels=npy(LABELS))
    found = refusal(path)
    assert found == sentence or (sentence is None and found.startswith("inputs.npy: not a readable array ("))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "d.npz", zipfile.ZIP_DEFLATED, inputs=npy(np.zeros((4, 1, 1500, 1500), np.uint8)), labels=npy(LABELS)
    )
    size = path.stat().st_size
    assert re.fullmatch(rf"claims 9000\d+ bytes in a file of {size}; refused", refusal(path))


@pytest.mark.parametrize("data", [b"", b"words", b"PK\x03\x04" * 10])
def test_what_is_no_zip_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(data)
    assert refusal(path) == "not a readable .npz file (File is not a zip file)"


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_npz_is_refused_or_gives_the_same_data(compression: int, tmp_path: Path) -> None:
    path = archive(tmp_path / "d.npz", compression, inputs=npy(IMAGES), labels=npy(LABELS))
    whole = path.read_bytes()
    refused = 0
    for position in random.Random(0).sample(range(len(whole)), 150):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            split = load(path)
        except DataError as error:
            refused += "\n" not in str(error)
        else:
            assert split.data_id() == a_split().data_id(), position
    assert refused > 75
