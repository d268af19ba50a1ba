"""A torch file from a stranger: nothing in it runs, nothing it claims is believed, and it ends in one sentence."""

import argparse
import collections
import contextlib
import copy
import functools
import hashlib
import io
import os
import pickle
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qbw_eval.checkpoints.safe_load import CheckpointError, load_torch_file


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def refusal(path: Path) -> str:
    """Return what is said about a file that must be refused, without the path it begins with."""
    with pytest.raises(CheckpointError) as error:
        load_torch_file(path)
    sentence = str(error.value)
    assert sentence.startswith(f"{path}: ")
    assert "\n" not in sentence
    return sentence.removeprefix(f"{path}: ")


def torch_zip(pickled: bytes, path: Path, **more: bytes) -> Path:
    """Write a file as `torch.save` would, with a pickle of one's own."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", **more}.items():
            archive.writestr(f"archive/{name}", data)
    return path


# --- files that want to run something -------------------------------------------------------------------------------


class Runs:
    """Pickles as a call of `function` with these arguments."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def text(words: str) -> bytes:
    return b"X" + struct.pack("<I", len(words.encode())) + words.encode()


# By hand, because Python's pickler no longer writes most of them. {touch} is a shell command.
OPCODES: dict[str, Callable[[str], bytes]] = {
    "GLOBAL, REDUCE": lambda touch: b"\x80\x02cposix\nsystem\n(" + text(touch) + b"tR.",
    "GLOBAL, REDUCE, BUILD": lambda touch: b"\x80\x02cposix\nsystem\n(" + text(touch) + b"tR}b.",
    "INST": lambda touch: b"\x80\x02(" + text(touch) + b"iposix\nsystem\n.",
    "OBJ": lambda touch: b"\x80\x02(cposix\nsystem\n" + text(touch) + b"o.",
    "NEWOBJ": lambda touch: b"\x80\x02cposix\nsystem\n(" + text(touch) + b"t\x81.",
    "STACK_GLOBAL": lambda touch: b"\x80\x04\x8c\x05posix\x8c\x06system\x93(" + text(touch) + b"tR.",
    "memoized": lambda touch: b"\x80\x02]q\x00(cposix\nsystem\nq\x01h\x01(" + text(touch) + b"tRe.",
    "result thrown away": lambda touch: b"\x80\x02cposix\nsystem\n(" + text(touch) + b"tR0].",
    "as a dict's key": lambda touch: b"\x80\x02}cposix\nsystem\n(" + text(touch) + b"tRK\x01s.",
}
RUNS_IN_PYTHON = [name for name in OPCODES if name != "NEWOBJ"]


@pytest.mark.parametrize("name", RUNS_IN_PYTHON)
def test_pickle_itself_would_run_the_opcodes(name: str, tmp_path: Path) -> None:
    """The control: these bytes are live."""
    canary = tmp_path / "canary"
    with contextlib.suppress(AttributeError):  # BUILD finds nothing to build on in what the call returned; it has run
        pickle.loads(OPCODES[name](f"touch {canary}"))
    assert canary.exists()


WANTS_SYSTEM = (
    "wants to run posix.system while loading, which QBW never does; "
    "save it again with tensors, numbers and strings only"
)
# torch cannot list the names in these: it reads only the opcodes that torch.save writes.
BLOCKED = "not loadable as weights (Trying to load unsupported GLOBAL posix.system whose module posix is blocked.)"
UNLISTED = {
    "INST": "not loadable as weights (Unsupported operand 105)",
    "OBJ": BLOCKED,
    "result thrown away": BLOCKED,
    "STACK_GLOBAL": "not loadable as weights (Unsupported operand 140)",
}


@pytest.mark.parametrize("name", OPCODES)
def test_no_opcode_runs_anything(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    sentence = refusal(torch_zip(OPCODES[name](f"touch {canary}"), tmp_path / "hostile.pt"))
    assert not canary.exists()
    assert sentence == UNLISTED.get(name, WANTS_SYSTEM)


def hostile(command: str) -> dict[str, tuple[object, str]]:
    """Return name -> (content that runs `command` when unpickled carelessly, what the refusal must name)."""
    system = Runs(os.system, command)
    return {
        "alone": (system, "posix.system"),
        "in a list": ([1, [2, [system]]], "posix.system"),
        "in a checkpoint": ({"epoch": 1, "model_state_dict": {"w": torch.ones(2)}, "config": system}, "posix.system"),
        "in a state dict": ({"model_state_dict": collections.OrderedDict(w=system)}, "posix.system"),
        "in a set": ({"a": (1, 2, (system,))}, "posix.system"),
        "eval": (Runs(eval, f"__import__('os').system({command!r})"), "builtins.eval"),
        "exec": (Runs(exec, f"import os; os.system({command!r})"), "builtins.exec"),
        "getattr": (Runs(getattr, "", "join"), "builtins.getattr"),
        "partial": (functools.partial(os.system, command), "functools.partial"),
        "NumPy object array": (np.array([system, None], dtype=object), "posix.system"),
        "torch.load": (Runs(torch.load, command), "torch.serialization.load"),
        "torch.hub.load": (Runs(torch.hub.load, command, "x"), "torch.hub.load"),
        "torch.save": (Runs(torch.save, 1, command), "torch.serialization.save"),
        "a module": (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        "Namespace": ({"config": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        "a path": ({"config": Path("x")}, "pathlib.PosixPath"),
        "NumPy array": ({"mean": np.zeros(3)}, "numpy.ndarray"),
    }


@pytest.mark.parametrize("name", hostile(""))
def test_content_that_wants_more_than_weights_is_refused_by_name_and_never_run(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    content, wanted = hostile(f"touch {canary}")[name]
    sentence = refusal(saved(content, tmp_path / "hostile.pt"))
    found = re.fullmatch(
        r"wants to run (.+) while loading, which QBW never does; save it again with tensors, numbers and strings only",
        sentence,
    )
    assert found, sentence
    assert wanted in found[1].split(", ")
    assert not canary.exists()


def test_the_hostile_content_is_live(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.load(saved(hostile(f"touch {canary}")["in a list"][0], tmp_path / "hostile.pt"), weights_only=False)
    assert canary.exists()


def test_the_environment_cannot_talk_us_into_running_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of torch's makes every loading careless that does not say otherwise."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary = tmp_path / "canary"
    path = saved(hostile(f"touch {canary}")["in a list"][0], tmp_path / "hostile.pt")
    assert refusal(path) == WANTS_SYSTEM
    assert not canary.exists()
    with pytest.warns(UserWarning, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD detected"):
        torch.load(path)
    assert canary.exists(), "the control: the variable works"


# --- NumPy's scalars ------------------------------------------------------------------------------------------------

SCALARS = [
    np.float16(0.1),
    np.float32(0.1),
    np.float64(0.1),
    np.float64(-0.0),
    np.float64("inf"),
    np.bool_(True),
    np.bool_(False),
    *(kind(value) for kind in (np.int8, np.int16, np.int32, np.int64) for value in (np.iinfo(kind).min, -1, 7)),
    *(kind(np.iinfo(kind).max) for kind in (np.uint8, np.uint16, np.uint32, np.uint64)),
]


@pytest.mark.parametrize("core", ["_core", "core"])
@pytest.mark.parametrize("scalar", SCALARS, ids=repr)
def test_numpy_numbers_come_back_as_exact_python_numbers(scalar: Any, core: str, tmp_path: Path) -> None:
    # NumPy 1 calls the module numpy.core, NumPy 2 numpy._core.
    pickled = pickle.dumps({"val_acc": scalar}, protocol=2)
    assert pickled.count(b"numpy._core.multiarray") == 1
    path = torch_zip(pickled.replace(b"numpy._core.multiarray", f"numpy.{core}.multiarray".encode()), tmp_path / "a.pt")
    content = load_torch_file(path).content
    assert isinstance(content, dict)
    back, expected = content["val_acc"], scalar.item()
    assert type(back) is type(expected)
    assert repr(back) == repr(expected)


def test_a_numpy_nan_comes_back_as_nan(tmp_path: Path) -> None:
    content = load_torch_file(saved([np.float32("nan")], tmp_path / "a.pt")).content
    assert repr(content) == "[nan]"


def numpy_scalar(kind: str, order: str, data: bytes) -> bytes:
    """Return the pickle of a NumPy scalar of any type and any bytes."""
    dtype = (
        b"cnumpy\ndtype\n("
        + text(kind)
        + b"\x89\x88tR(K\x03"
        + text(order)
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    value = b"c_codecs\nencode\n(" + text(data.decode("latin1")) + text("latin1") + b"tR"
    return b"\x80\x02cnumpy._core.multiarray\nscalar\n(" + dtype + value + b"tR."


def test_a_big_endian_numpy_number_comes_back_right(tmp_path: Path) -> None:
    path = torch_zip(numpy_scalar("f8", ">", struct.pack(">d", 0.3)), tmp_path / "a.pt")
    assert load_torch_file(path).content == 0.3
    path = torch_zip(numpy_scalar("f8", "<", struct.pack("<d", 0.3)), tmp_path / "b.pt")
    assert load_torch_file(path).content == 0.3


@pytest.mark.parametrize(
    "state", [b"", b"Nb", b")b", b"K\x03\x85b"], ids=["none", "None", "an empty tuple", "a short one"]
)
def test_a_numpy_type_that_does_not_say_its_byte_order_is_little_endian(state: bytes, tmp_path: Path) -> None:
    pickled = numpy_scalar("f8", "<", struct.pack("<d", 0.3))
    begin, end = pickled.index(b"(K\x03"), pickled.index(b"tb") + 2
    assert load_torch_file(torch_zip(pickled[:begin] + state + pickled[end:], tmp_path / "a.pt")).content == 0.3


@pytest.mark.parametrize("length", [0, 1, 7, 9, 100])
def test_numpy_bytes_of_the_wrong_length_are_refused(length: int, tmp_path: Path) -> None:
    assert refusal(torch_zip(numpy_scalar("f8", "<", b"a" * length), tmp_path / "a.pt")) == (
        "not loadable as weights (error: unpack requires a buffer of 8 bytes)"
    )


@pytest.mark.parametrize(
    "scalar", [np.complex64(1j), np.longdouble(1), np.str_("x"), np.bytes_(b"x"), np.datetime64("2026-01-01")], ids=repr
)
def test_numpy_scalars_that_are_no_numbers_are_refused(scalar: object, tmp_path: Path) -> None:
    assert refusal(saved(scalar, tmp_path / "a.pt")) == "not loadable as weights (a NumPy scalar that is not a number)"


@pytest.mark.parametrize(
    "arguments", [b"N" + text("a") + b"\x86", b"NN\x86", b")"], ids=["no type", "nothing", "no arguments"]
)
def test_a_numpy_scalar_without_a_type_is_refused(arguments: bytes, tmp_path: Path) -> None:
    pickled = b"\x80\x02cnumpy._core.multiarray\nscalar\n" + arguments + b"R."
    assert refusal(torch_zip(pickled, tmp_path / "a.pt")) == (
        "not loadable as weights (a NumPy scalar that is not a number)"
    )


@pytest.mark.parametrize("kind", ["O8", "V8", "f3", "", "d", "f8f8"])
def test_made_up_numpy_types_are_refused(kind: str, tmp_path: Path) -> None:
    assert refusal(torch_zip(numpy_scalar(kind, "<", b"a" * 8), tmp_path / "a.pt")) == (
        "not loadable as weights (a NumPy scalar that is not a number)"
    )


# --- files that are no torch files ----------------------------------------------------------------------------------


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere.pt") == "cannot be read (No such file or directory)"
    assert refusal(tmp_path) == "cannot be read (Is a directory)"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "an empty file; is it still being written?"),
        (b"accuracy: 0.9\n", "text"),
        ("Genauigkeit: 90 %, über alles".encode(), "text"),
        (b"x" + "ü".encode() * 4096, "text"),  # of which a byte more or less is half a character
        (b"x" * 4096 + b"\xff", "text"),  # as far as we look
        (b"x" * 4095 + b"\xff", "something else"),
        (b"\x7fELF\xff\xfe", "something else"),
        (b"PK\x03\x04", "a zip that was cut short; is it still being written or copied?"),
    ],
)
def test_what_is_no_zip_is_called_what_it_looks_like(data: bytes, found: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(data)
    assert refusal(path) == f"expected a file written by torch.save (a zip archive), found {found}"


def test_a_file_of_torch_before_1_6_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert refusal(path) == (
        "expected a file written by torch.save (a zip archive), found a bare pickle, torch's format before 1.6; "
        "load and save it again with a recent torch"
    )


def test_a_torchscript_archive_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with warnings.catch_warnings(action="ignore"):  # torch.jit is deprecated, which is no reason not to meet its files
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    assert refusal(path) == (
        "expected a file written by torch.save, found a TorchScript archive (torch.jit.save); "
        "save the state dict of the module it was made from"
    )


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("holiday.jpg", b"\xff\xd8")
    assert refusal(path).startswith("not loadable as weights (RuntimeError: ")


# --- damage and lies in the zip -------------------------------------------------------------------------------------

CHECKPOINT = {
    "epoch": 3,
    "model_state_dict": {"conv.weight": torch.arange(54.0).view(2, 3, 3, 3), "bn.bias": torch.tensor([0.5, -0.5])},
    "val_acc": np.float64(0.875),
    "config": {"experiment": "x", "options": [2, 4, 8]},
}


@pytest.fixture(scope="module")
def whole() -> bytes:
    buffer = io.BytesIO()
    torch.save(CHECKPOINT, buffer)
    return buffer.getvalue()


def test_an_undamaged_file_comes_back_equal_with_its_hash(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(whole)
    loaded = load_torch_file(path)
    assert repr(loaded.content) == repr({**CHECKPOINT, "val_acc": 0.875})
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_was_cut_short_is_refused_at_every_length(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for length in [*range(0, 8), *random.Random(0).sample(range(8, len(whole)), 120), len(whole) - 1]:
        path.write_bytes(whole[:length])
        found = "cut short; is it still being written or copied?" if length > 1 else "(an empty file|text)"
        assert re.search(found, refusal(path)), length


def test_a_flipped_bit_is_refused_or_changes_nothing(whole: bytes, tmp_path: Path) -> None:
    """Everywhere: pickle, weights, and (where torch looks least closely) the zip's own records."""
    path, expected = tmp_path / "a.pt", repr({**CHECKPOINT, "val_acc": 0.875})
    end = whole.index(b"PK\x01\x02")  # of the data; the zip's directory follows
    chance = random.Random(0)
    positions = [*chance.sample(range(end), 250), *chance.sample(range(end, len(whole)), 250)]
    outcomes: collections.Counter[str] = collections.Counter()
    for position in positions:
        for mask in (1 << chance.randrange(8), 0xFF):
            damaged = bytearray(whole)
            damaged[position] ^= mask
            path.write_bytes(damaged)
            try:
                content = load_torch_file(path).content
            except CheckpointError:
                outcomes["refused"] += 1
            else:
                assert repr(content) == expected, f"byte {position} of {len(whole)}, mask {mask:#x}"
                outcomes["harmless: the same content"] += 1
    print(f"{outcomes.total()} flipped bytes of a checkpoint: {dict(outcomes)}")
    assert outcomes["refused"] > 400


def directory_entry(data: bytes, record: bytes) -> int:
    """Return where the zip's central directory has its entry of a record."""
    return data.rindex(b"PK\x01\x02", 0, data.rindex(record))


@pytest.mark.parametrize(
    ("offset", "value", "sentence"),
    [
        # 38: attributes; bit 4 is DOS's for a folder. 20: the size in the archive. torch finds no fault with either and
        # returns memory that nobody has written.
        (38, 0x10, "damaged: the record 'archive/data/0' has a wrong size or kind; copy the file again"),
        (20, 0xDB, "damaged: the record 'archive/data/0' has a wrong size or kind; copy the file again"),
        (16, 0x00, "damaged: the record 'archive/data/0' fails its checksum; copy the file again"),
        (8, 0x09, "a damaged zip archive (File 'archive/data/0' is encrypted, password required for extraction)"),
    ],
    ids=["a folder", "two sizes", "checksum", "encrypted"],
)
def test_weights_whose_entry_in_the_zip_lies_are_refused(
    whole: bytes, tmp_path: Path, offset: int, value: int, sentence: str
) -> None:
    changed = bytearray(whole)
    where = directory_entry(whole, b"archive/data/0") + offset
    assert changed[where] != value
    changed[where] = value
    path = tmp_path / "a.pt"
    path.write_bytes(changed)
    assert refusal(path) == sentence


def test_a_record_that_is_marked_read_only_is_as_good_as_any(whole: bytes, tmp_path: Path) -> None:
    changed = bytearray(whole)
    changed[directory_entry(whole, b"archive/data/0") + 38] = 0x01
    path = tmp_path / "a.pt"
    path.write_bytes(changed)
    assert repr(load_torch_file(path).content) == repr({**CHECKPOINT, "val_acc": 0.875})


def test_a_compressed_zip_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert refusal(path) == "its record 'archive/data.pkl' is compressed, which torch.save never does"


def test_two_records_of_one_name_are_refused(tmp_path: Path) -> None:
    path = torch_zip(pickle.dumps({"a": 1}, protocol=2), tmp_path / "a.pt")
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "a") as archive:  # zipfile warns of them too
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 2}, protocol=2))
    assert refusal(path) == "two of its records have the same name"


def test_records_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Many entries that point at the same stored bytes: a small file that unpacks to any size."""
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(1000))
        first = archive.infolist()[0]
        for number in range(100):
            shared = copy.copy(first)
            shared.filename = f"archive/data/{number}"
            archive.filelist.append(shared)
    assert refusal(path) == "its records claim more bytes than the file has"


def test_records_that_claim_all_bytes_of_the_file_and_not_one_more_are_looked_at(tmp_path: Path) -> None:
    path = torch_zip(pickle.dumps(1, protocol=2), tmp_path / "a.pt", **{"data/0": bytes(1000)})
    with zipfile.ZipFile(path, "a") as archive:
        shared = copy.copy(archive.getinfo("archive/data/0"))
        shared.filename = "archive/data/1"
        archive.filelist.append(shared)
        archive.comment = b" "  # marks the directory as changed, so that it is written again
    with zipfile.ZipFile(path, "a") as archive:
        claimed = sum(member.file_size for member in archive.infolist())
        archive.comment = b" " * (claimed - path.stat().st_size + len(archive.comment))
    assert path.stat().st_size == claimed
    assert refusal(path) == "damaged: the record 'archive/data/1' fails its checksum; copy the file again"


# --- tensors that are not what they seem ----------------------------------------------------------------------------


def odd_tensors() -> dict[str, tuple[Callable[[], torch.Tensor], str]]:
    return {
        "stride 0": (
            lambda: torch.zeros(1).expand(10**12),
            "content['w']: claims 1000000000000 elements, more than its storage holds",
        ),
        "overlapping": (
            lambda: torch.zeros(10).as_strided((5, 5), (1, 1)),
            "content['w']: claims 25 elements, more than its storage holds",
        ),
        "sparse": (
            lambda: torch.eye(3).to_sparse(),
            "content['w']: expected an ordinary tensor, found Tensor (torch.sparse_coo)",
        ),
        "sparse rows": (
            lambda: torch.eye(3).to_sparse_csr(),
            "content['w']: expected an ordinary tensor, found Tensor (torch.sparse_csr)",
        ),
        "quantized": (
            lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
            "content['w']: expected an ordinary tensor, found Tensor (quantized)",
        ),
        "nested": (
            lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
            "content['w']: expected an ordinary tensor, found Tensor (nested)",
        ),
        "meta": (lambda: torch.zeros(3, device="meta"), "content['w']: a tensor without data (device meta)"),
    }


@pytest.mark.parametrize("name", odd_tensors())
def test_a_tensor_that_is_not_ordinary_is_refused(name: str, tmp_path: Path) -> None:
    make, sentence = odd_tensors()[name]
    with warnings.catch_warnings(action="ignore"):  # of making them; some are deprecated or experimental
        path = saved({"w": make()}, tmp_path / "a.pt")
    assert refusal(path) == sentence


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).view(2, 3),
        torch.arange(6.0).view(2, 3).t(),
        torch.arange(10.0)[2:5],
        torch.zeros(0, 3),
        torch.tensor(1.5),
        torch.tensor([True, False]),
        torch.ones(2, dtype=torch.bfloat16),
        torch.nn.Parameter(torch.ones(2)),
    ],
    ids=["whole numbers", "transposed", "slice", "empty", "scalar", "boolean", "bfloat16", "parameter"],
)
def test_an_ordinary_tensor_comes_back(tensor: torch.Tensor, tmp_path: Path) -> None:
    content = load_torch_file(saved([tensor, {"again": tensor}], tmp_path / "a.pt")).content
    assert isinstance(content, list)
    for back in (content[0], content[1]["again"]):
        assert type(back) is type(tensor)
        assert back.dtype == tensor.dtype
        assert torch.equal(back, tensor)


def test_a_tensor_of_another_device_comes_back_on_the_cpu(tmp_path: Path) -> None:
    pickled = zipfile.ZipFile(saved({"w": torch.ones(2)}, tmp_path / "a.pt")).read("a/data.pkl")
    assert pickled.count(text("cpu")) == 1
    elsewhere = pickled.replace(text("cpu"), text("cuda:0"))
    path = torch_zip(elsewhere, tmp_path / "b.pt", **{"data/0": torch.ones(2).numpy().tobytes()})
    assert repr(load_torch_file(path).content) == repr({"w": torch.ones(2)})


def test_the_place_of_a_tensor_shows_the_beginning_of_a_long_name(tmp_path: Path) -> None:
    path = saved({"w" * 100: torch.zeros(1).expand(10)}, tmp_path / "a.pt")
    assert refusal(path) == f"content['{'w' * 80}']: claims 10 elements, more than its storage holds"


# --- shapes of content ----------------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    """Return the pickle of an empty list inside `depth` lists."""
    return b"\x80\x02" + b"]" * (depth + 1) + b"a" * depth + b"."


def test_deep_nesting_is_refused_and_ordinary_nesting_is_not(tmp_path: Path) -> None:
    assert load_torch_file(torch_zip(nested(64), tmp_path / "a.pt")).content is not None
    for depth in (65, 5000):
        sentence = refusal(torch_zip(nested(depth), tmp_path / "a.pt"))
        assert re.fullmatch(r"nested more than 64 deep at \"(\['0'\])+\"", sentence)


def test_content_that_contains_itself_ends(tmp_path: Path) -> None:
    cycle: list[object] = [torch.ones(2)]
    cycle += [cycle, {"again": cycle}]
    content = load_torch_file(saved({"cycle": cycle}, tmp_path / "a.pt")).content
    assert isinstance(content, dict)
    assert content["cycle"][1] is content["cycle"]


def test_a_tensor_hidden_in_a_cycle_is_still_checked(tmp_path: Path) -> None:
    cycle: list[object] = []
    cycle += [cycle, (torch.zeros(1).expand(10**9),)]
    assert refusal(saved(cycle, tmp_path / "a.pt")) == (
        "content['1']['0']: claims 1000000000 elements, more than its storage holds"
    )


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x05]\x94.",
        b"h\x00.",
        b"(((",
        b"\x80\x02" + b"\x96" + b"\xff" * 8 + b".",
    ],
)
def test_a_broken_pickle_is_refused(pickled: bytes, tmp_path: Path) -> None:
    assert refusal(torch_zip(pickled, tmp_path / "a.pt")).startswith("not loadable as weights (")


def test_a_pickle_that_ends_too_early_is_refused_without_a_word_of_torch(tmp_path: Path) -> None:
    assert refusal(torch_zip(b"", tmp_path / "a.pt")) == "not loadable as weights (EOFError: no message)"


def test_torchs_advice_to_trust_the_file_is_not_passed_on(tmp_path: Path) -> None:
    """Thrown away at once, so that torch cannot list the name and says itself what it thinks of it."""
    pickled = b"\x80\x02cargparse\nNamespace\n0]."
    assert refusal(torch_zip(pickled, tmp_path / "a.pt")) == (
        "not loadable as weights (Unsupported global: GLOBAL argparse.Namespace was not an allowed global by default.)"
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (pickle.UnpicklingError(""), "no message"),
        (pickle.UnpicklingError("Weights only load failed.\n\n  broken  "), "broken"),
        (pickle.UnpicklingError("advice\n" + "broken " * 100), ("broken " * 100)[:200]),
        (ValueError("one line\nand another"), "ValueError: one line"),
        (ValueError("long " * 100), "ValueError: " + "long " * 40),
    ],
)
def test_of_what_torch_says_one_line_is_told(
    error: Exception, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved({"a": 1}, tmp_path / "a.pt")

    def refuse(*_arguments: object, **_keywords: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", refuse)
    assert refusal(path) == f"not loadable as weights ({told})"


@pytest.mark.parametrize("version", ["2.9.1", "2.5.0+cu121", "1.13.1"])
def test_a_torch_with_known_ways_round_opens_nothing(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved({"a": 1}, tmp_path / "a.pt")
    monkeypatch.setattr(torch, "__version__", version)
    assert refusal(path) == (
        f"not opened: the weights-only loader of torch {version} has known ways round; install torch 2.10 or newer"
    )


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0"])
def test_a_newer_torch_opens_files(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved({"a": 1}, tmp_path / "a.pt")
    monkeypatch.setattr(torch, "__version__", version)
    assert load_torch_file(path).content == {"a": 1}
