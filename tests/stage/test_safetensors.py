"""Safetensors files: what a good one holds, and what is said about every way to lie in a header."""

import hashlib
import json
import os
import random
import re
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qbw_eval.checkpoints import safetensors_file
from qbw_eval.checkpoints.safe_load import CheckpointError
from qbw_eval.checkpoints.safetensors_file import MAX_HEADER, load_safetensors
from qbw_eval.data.errors import DataError
from qbw_eval.data.sources import load_split
from qbw_eval.data.split import Split
from qbw_eval.settings.data import DataSettings

IMAGES = np.linspace(-1, 1, 4 * 2 * 3 * 5, dtype=np.float32).reshape(4, 2, 3, 5)
LABELS = np.array([0, 2, 1, 2])


def written(header: object, data: bytes = b"", claimed: int | None = None) -> bytes:
    """Return a file with a header (an object, or its very bytes), and another length than it has if told."""
    words = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(words) if claimed is None else claimed) + words + data


def entry(dtype: str, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file_of(tensors: Mapping[str, tuple[str, np.ndarray]], align: int = 1) -> bytes:
    """Return a good file of (dtype, array) by name, in this order, which begin at a multiple of `align` bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    data = b""
    for name, (dtype, array) in tensors.items():
        header[name] = entry(dtype, list(array.shape), len(data), len(data) + array.nbytes)
        data += array.tobytes()
    words = json.dumps(header).encode()
    return written(words + b" " * (-(len(words) + 8) % align), data)


def refusal(data: bytes, folder: Path) -> str:
    """Return what is said about a file that must be refused, without the path it begins with."""
    path = folder / "d.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        load_safetensors(path)
    assert str(error.value).isprintable()
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value).removeprefix(f"{path}: ")


# --- good files -------------------------------------------------------------------------------------------------------

DTYPES = {
    "BOOL": (torch.bool, "?"),
    "U8": (torch.uint8, "u1"),
    "I8": (torch.int8, "i1"),
    "U16": (torch.uint16, "u2"),
    "I16": (torch.int16, "i2"),
    "U32": (torch.uint32, "u4"),
    "I32": (torch.int32, "i4"),
    "U64": (torch.uint64, "u8"),
    "I64": (torch.int64, "i8"),
    "F16": (torch.float16, "f2"),
    "F32": (torch.float32, "f4"),
    "F64": (torch.float64, "f8"),
    "C64": (torch.complex64, "c8"),
}


def test_every_dtype_is_read_bit_for_bit_in_the_order_of_the_header(tmp_path: Path) -> None:
    arrays = {
        name: (name, np.arange(6).reshape(2, 3).astype(code) if code != "?" else np.eye(2, 3, dtype=bool))
        for name, (_, code) in DTYPES.items()
    }
    path = tmp_path / "d.safetensors"
    path.write_bytes(file_of(arrays))
    loaded = load_safetensors(path)
    assert isinstance(loaded.content, dict)
    assert list(loaded.content) == list(DTYPES)
    for name, (dtype, _) in DTYPES.items():
        tensor = loaded.content[name]
        assert (type(tensor), tensor.dtype, tensor.is_contiguous()) == (torch.Tensor, dtype, True)
        assert np.array_equal(tensor.numpy(), arrays[name][1])
        assert tensor.untyped_storage().nbytes() == arrays[name][1].nbytes
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("BF16", torch.bfloat16), ("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)],
)
def test_dtypes_that_numpy_lacks_are_read_too(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.tensor([[0.5, -2.0], [0.0, 1.0]]).to(dtype)
    path = tmp_path / "d.safetensors"
    path.write_bytes(file_of({"t": (name, tensor.view(torch.uint8).numpy())}))
    data = path.read_bytes().replace(json.dumps([2, 2 * tensor.element_size()]).encode(), b"[2, 2]")
    path.write_bytes(struct.pack("<Q", len(data) - 8 - tensor.nbytes) + data[8:])
    loaded = load_safetensors(path).content
    assert isinstance(loaded, dict)
    assert loaded["t"].dtype == dtype
    assert torch.equal(loaded["t"].float(), tensor.float())


def test_places_need_not_be_in_the_order_of_the_header_and_data_need_no_alignment(tmp_path: Path) -> None:
    header = {
        "last": entry("F32", [2], 5, 13),
        "scalar": entry("U8", [], 0, 1),
        "none": entry("F32", [0, 7], 5, 5),
        "middle": entry("I32", [1], 1, 5),
    }
    path = tmp_path / "d.safetensors"
    path.write_bytes(written(json.dumps(header).encode() + b"   ", b"\7" + struct.pack("<iff", -3, 1.5, 2.5)))
    content = load_safetensors(path).content
    assert isinstance(content, dict)
    assert list(content) == list(header)
    assert {name: tensor.tolist() for name, tensor in content.items()} == {
        "last": [1.5, 2.5],
        "scalar": 7,
        "none": [],
        "middle": [-3],
    }
    assert content["none"].shape == (0, 7)


@pytest.mark.parametrize("data", [written({}), written({"__metadata__": {"a": "b"}})])
def test_a_file_of_no_tensors_is_one(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "d.safetensors").write_bytes(data)
    assert load_safetensors(tmp_path / "d.safetensors").content == {}


# --- files that lie ---------------------------------------------------------------------------------------------------

NOT_JSON = "its header is not JSON; damaged, or another kind of file"
NO_ENTRY = "'t': expected dtype, shape and data_offsets in the header, found something else"
KNOWN = "BOOL, U8, I8, U16, I16, U32, I32, U64, I64, F8_E4M3, F8_E5M2, F16, BF16, F32, F64, C64"

LIES: list[tuple[bytes, str]] = [
    (b"", "expected a safetensors file, found 0 bytes; is it still being written?"),
    (b"1234567", "expected a safetensors file, found 7 bytes; is it still being written?"),
    (
        b"\xff" * 100,
        "expected a safetensors file, found a header that claims 18,446,744,073,709,551,615 bytes (the most is "
        "4,194,304); is it another kind of file?",
    ),
    (
        written({}, claimed=MAX_HEADER),
        "its header claims 4,194,304 bytes, and 2 are there; cut short, or another kind of file",
    ),
    (written(b""), NOT_JSON),
    (written(b" {}"), NOT_JSON),
    (written(b"[]"), NOT_JSON),
    (written(b"{}{}"), NOT_JSON),
    (written(b"{'a': 1}"), NOT_JSON),
    (written(b'{"\xff": 1}'), NOT_JSON),
    (written("{}".encode("utf-16")), NOT_JSON),
    (written(b'{"a":' + b"[" * 100_000), NOT_JSON),
    (written(b'{"a":' + b"1" * 100_000 + b"}"), NOT_JSON),
    (written(b'{"a": NaN}'), "its header holds NaN; damaged, or another kind of file"),
    (written(b'{"a": 1, "a": 1}'), "its header gives a name twice; damaged, or another kind of file"),
    (written({"__metadata__": []}), "its __metadata__ is not text by name; damaged, or another kind of file"),
    (written({"__metadata__": {"a": 1}}), "its __metadata__ is not text by name; damaged, or another kind of file"),
    (written({"t": 3}), NO_ENTRY),
    (written({"t": {}}), NO_ENTRY),
    (written({"t": {**entry("U8", [1], 0, 1), "more": 1}}, b"1"), NO_ENTRY),
    (written({"t": entry("F4", [1], 0, 1)}, b"1"), f"'t': dtype 'F4' is none that is read here ({KNOWN})"),
    (written({"t": entry(["U8"], [1], 0, 1)}, b"1"), f"'t': dtype ['U8'] is none that is read here ({KNOWN})"),  # type: ignore[arg-type]  # a lie
    (written({"t": entry("U8", "1", 0, 1)}, b"1"), "'t': '1' is no shape of a tensor; damaged"),
    (written({"t": entry("U8", [-1], 0, 1)}, b"1"), "'t': [-1] is no shape of a tensor; damaged"),
    (written({"t": entry("U8", [-1, -1], 0, 1)}, b"1"), "'t': [-1, -1] is no shape of a tensor; damaged"),
    (written({"t": entry("U8", [1.0], 0, 1)}, b"1"), "'t': [1.0] is no shape of a tensor; damaged"),
    (written({"t": entry("U8", [True], 0, 1)}, b"1"), "'t': [True] is no shape of a tensor; damaged"),
    (
        written({"t": entry("U8", [1] * 17, 0, 1)}, b"1"),
        "'t': [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1] is no shape of a tensor; damaged",
    ),
    (
        written({"t": entry("U8", [0, 2**40, 2**40], 0, 0)}),
        "'t': [0, 1099511627776, 1099511627776] is no shape of a tensor; damaged",
    ),
    (written({"t": entry("U8", [10**4000], 0, 1)}, b"1"), f"'t': [1{'0' * 75}... is no shape of a tensor; damaged"),
    (
        written({"t": entry("U8", [1], -1, 0)}, b"1"),
        "'t': data_offsets are [-1, 0], expected where it begins and ends; damaged",
    ),
    (
        written({"t": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}}, b"1"),
        "'t': data_offsets are [0, 1, 2], expected where it begins and ends; damaged",
    ),
    (
        written({"t": entry("F32", [1000, 1000, 1000], 0, 4)}, bytes(4)),
        "'t': F32 of shape [1000, 1000, 1000] takes 4,000,000,000 bytes, "
        "data_offsets [0, 4] hold another number; damaged",
    ),
    (
        written({"t": entry("U8", [1], 1, 0)}, b"1"),
        "'t': U8 of shape [1] takes 1 bytes, data_offsets [1, 0] hold another number; damaged",
    ),
    (
        written({"t": entry("U8", [2**40], 0, 2**40)}, b"1"),
        "its tensors take 1,099,511,627,776 bytes, 1 are there; cut short; copy it again",
    ),
    (written({"t": entry("U8", [1], 0, 1)}, b"12"), "its tensors take 1 bytes, 2 are there; damaged"),
    (written({}, b"1"), "its tensors take 0 bytes, 1 are there; damaged"),
    (
        written({"t": entry("U8", [1], 1, 2)}, b"12"),
        "'t': leaves a gap before it (begins at byte 1, expected 0); damaged",
    ),
    (
        written({"s": entry("U8", [2], 0, 2), "t": entry("U8", [2], 1, 3)}, b"123"),
        "'t': overlaps the tensor before it (begins at byte 1, expected 2); damaged",
    ),
    (
        written({"s": entry("U8", [2], 0, 2), "t": entry("U8", [2], 0, 2)}, b"12"),
        "'t': overlaps the tensor before it (begins at byte 0, expected 2); damaged",
    ),
    (
        written({"t": entry("BOOL", [2], 0, 2)}, b"\1\2"),
        "'t': a truth value that is neither 0 nor 1; damaged",
    ),
    (
        written({"a\nb" + "c" * 100: entry("U8", [1], 1, 2)}, b"12"),
        f"'a\\nb{'c' * 72}...: leaves a gap before it (begins at byte 1, expected 0); damaged",
    ),
]


@pytest.mark.parametrize(("data", "sentence"), LIES, ids=range(len(LIES)))
def test_a_file_that_lies_is_refused_and_no_memory_taken(
    data: bytes, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = torch.empty
    taken: list[int] = []
    monkeypatch.setattr(safetensors_file.torch, "empty", lambda size, **more: taken.append(size) or empty(size, **more))
    assert refusal(data, tmp_path) == sentence
    assert sum(taken) <= 2


def test_every_way_to_cut_a_file_short_is_refused(tmp_path: Path) -> None:
    data = file_of({"inputs": ("F32", IMAGES), "labels": ("I64", LABELS)})
    for length in range(len(data)):
        assert re.search("cut short|still being written", refusal(data[:length], tmp_path)), length


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = file_of({"inputs": ("F32", IMAGES), "labels": ("I64", LABELS)})
    size, fstat = len(data), os.fstat
    for length in (8, 50, len(data) - 1):
        monkeypatch.setattr(
            safetensors_file.os, "fstat", lambda number: os.stat_result([*fstat(number)[:6], size, *fstat(number)[7:]])
        )
        sentence = refusal(data[:length], tmp_path)
        assert sentence == "was cut short while it was read; is it still being written?"


def test_a_file_larger_than_what_is_free_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "free_memory", lambda _device: 1000)
    data = written({"t": entry("U8", [2000], 0, 2000)}, bytes(2000))
    assert refusal(data, tmp_path) == f"holds {len(data):,} bytes, more than the 1,000 of memory that are free"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, reason in {
        "nowhere": "cannot be read (No such file or directory)",
        ".": "cannot be read (Is a directory)",
        "pipe": "expected a safetensors file, found a pipe, socket or device",
    }.items():
        with pytest.raises(CheckpointError) as error:
            load_safetensors(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: {reason}"


def test_a_machine_of_the_other_byte_order_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    assert refusal(written({}), tmp_path) == (
        "safetensors files are little-endian, this machine is not; save it with torch.save"
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_file_gives_a_sentence_or_tensors_that_fill_it_exactly(seed: int, tmp_path: Path) -> None:
    drawn = random.Random(seed)
    data = file_of({"inputs": ("F32", IMAGES[:1, :1]), "labels": ("I64", LABELS), "mask": ("BOOL", LABELS > 0)})
    header = len(data) - IMAGES[:1, :1].nbytes - LABELS.nbytes - len(LABELS)
    path, refused = tmp_path / "d.safetensors", 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(drawn.choice([1, 1, 2, 8])):
            place = drawn.randrange(header)
            what = drawn.choice(["bit", "byte", "digit", "deleted", "doubled"])
            if what == "bit":
                damaged[place] ^= 1 << drawn.randrange(8)
            elif what == "byte":
                damaged[place] = drawn.randrange(256)
            elif what == "digit":
                damaged[place] = drawn.choice(b'0123456789-,[]{}":')
            elif what == "deleted":
                del damaged[place]
            else:
                damaged.insert(place, damaged[place])
        path.write_bytes(damaged)
        try:
            content: Any = load_safetensors(path).content
        except CheckpointError as error:
            refused += str(error).isprintable()
        else:
            length = int.from_bytes(damaged[:8], "little")
            assert sum(tensor.nbytes for tensor in content.values()) == len(damaged) - 8 - length
            assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in content.values())
    assert refused > 200


# --- as data ----------------------------------------------------------------------------------------------------------


def load(path: Path) -> Split:
    return load_split(DataSettings(source="tensors", validation=path), "validation")


def test_data_in_a_safetensors_file_are_the_same_data(tmp_path: Path) -> None:
    path, other = tmp_path / "d.safetensors", tmp_path / "d.npz"
    np.savez(other, inputs=IMAGES, labels=LABELS)
    one_hot = np.eye(3, dtype=np.float32)[LABELS]
    for names, labels in ((("inputs", "labels"), ("I64", LABELS)), (("x", "y"), ("F32", one_hot))):
        path.write_bytes(file_of({names[0]: ("F32", IMAGES), names[1]: labels}))
        split = load(path)
        assert (split.dataset, len(split)) == ("d", 4)
        assert split.data_id() == load(other).data_id()


def test_a_safetensors_file_of_something_else_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    path.write_bytes(file_of({"weight": ("F32", IMAGES)}))
    with pytest.raises(DataError) as error:
        load(path)
    assert str(error.value) == f"{path}: holds ['weight'], but no tensor named inputs, x, images or data"
