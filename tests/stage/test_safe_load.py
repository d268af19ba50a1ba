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
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoint_kinds
import numpy as np
import pytest
import torch
from checkpoint_kinds import KINDS, same

from qbw_eval.checkpoints import safe_load
from qbw_eval.checkpoints.beside_weights import Foreign
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


WAY_ROUND = ", or name it with --trust-pickle too, which lets whoever wrote it do on this machine all that you can"


def wants(names: str) -> str:
    return (
        f"wants to run {names} while loading, which QBW never does; save it again with tensors, numbers and text only"
        f"{WAY_ROUND}"
    )


@pytest.mark.parametrize("name", OPCODES)
def test_no_opcode_runs_anything(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    sentence = refusal(torch_zip(OPCODES[name](f"touch {canary}"), tmp_path / "hostile.pt"))
    assert not canary.exists()
    assert sentence == wants("posix.system")


SEVERAL = "builtins.exec, builtins.eval, posix.system and 1 more"


def hostile(command: str) -> dict[str, tuple[object, str]]:
    """Return name -> (content that runs `command` when unpickled carelessly, what the refusal must name)."""
    system = Runs(os.system, command)
    return {
        "alone": (system, "posix.system"),
        "in a list": ([1, [2, [system]]], "posix.system"),
        "in a checkpoint": ({"epoch": 1, "model_state_dict": {"w": torch.ones(2)}, "config": system}, "posix.system"),
        "in a state dict": ({"model_state_dict": collections.OrderedDict(w=system)}, "posix.system"),
        "in a set": ({"a": (1, 2, (system,))}, "posix.system"),
        "several": ([Runs(exec, "1"), Runs(eval, "2"), system, Runs(getattr, "", "join")], SEVERAL),
        "eval": (Runs(eval, f"__import__('os').system({command!r})"), "builtins.eval"),
        "exec": (Runs(exec, f"import os; os.system({command!r})"), "builtins.exec"),
        "getattr": (Runs(getattr, "", "join"), "builtins.getattr"),
        "partial": (functools.partial(os.system, command), "functools.partial, posix.system"),
        "NumPy object array": (np.array([system, None], dtype=object), "posix.system"),
        "torch.load": (Runs(torch.load, command), "torch.serialization.load"),
        "torch.hub.load": (Runs(torch.hub.load, command, "x"), "torch.hub.load"),
        "torch.save": (Runs(torch.save, 1, command), "torch.serialization.save"),
    }


@pytest.mark.parametrize("name", hostile(""))
def test_content_that_wants_more_than_weights_is_refused_by_name_and_never_run(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    content, wanted = hostile(f"touch {canary}")[name]
    sentence = refusal(saved(content, tmp_path / "hostile.pt"))
    assert sentence == wants(wanted)
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
    assert refusal(path) == wants("posix.system")
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
        f"content: a NumPy scalar of {length} bytes where its type has 8"
    )


@pytest.mark.parametrize(
    "scalar", [np.longdouble(1), np.str_("x"), np.bytes_(b"x"), np.datetime64("2026-01-01")], ids=repr
)
def test_numpy_scalars_that_are_no_numbers_stay_foreign(scalar: object, tmp_path: Path) -> None:
    assert repr(load_torch_file(saved([scalar], tmp_path / "a.pt")).content) == (
        "[Foreign(name='numpy._core.multiarray.scalar')]"
    )


@pytest.mark.parametrize(
    "arguments", [b"N" + text("a") + b"\x86", b"NN\x86", b")"], ids=["no type", "nothing", "no arguments"]
)
def test_a_numpy_scalar_without_a_type_is_refused(arguments: bytes, tmp_path: Path) -> None:
    pickled = b"\x80\x02cnumpy._core.multiarray\nscalar\n" + arguments + b"R."
    assert refusal(torch_zip(pickled, tmp_path / "a.pt")) == "content: a NumPy scalar without a type or a value"


@pytest.mark.parametrize("kind", ["O8", "V8", "f3", "", "d", "f8f8"])
def test_made_up_numpy_types_stay_foreign(kind: str, tmp_path: Path) -> None:
    content = load_torch_file(torch_zip(numpy_scalar(kind, "<", b"a" * 8), tmp_path / "a.pt")).content
    assert isinstance(content, Foreign)


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
        (b"\x80\x02}.", "a bare pickle; load it and save what it holds with torch.save"),
        (b"\xff" * 257 + b"ustar", "a tar archive, torch's format of 2017; load and save it again with a recent torch"),
        (b"PK\x03\x04", "a zip archive that was cut short; is it still being written or copied?"),
    ],
)
def test_what_is_no_zip_is_called_what_it_looks_like(data: bytes, found: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(data)
    assert refusal(path) == f"expected a file written by torch.save, found {found}"


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
    assert refusal(path) == "expected a file written by torch.save, found another kind of zip archive"


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
        (8, 0x09, "its record 'archive/data/0' is encrypted, which torch.save never does"),
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
    assert refusal(path) == "damaged: the record 'archive/data/0' is not where the directory says; copy the file again"


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
            "content['w']: expected an ordinary tensor, found a sparse one",
        ),
        "sparse rows": (
            lambda: torch.eye(3).to_sparse_csr(),
            "content['w']: expected an ordinary tensor, found a sparse one",
        ),
        "quantized": (
            lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
            "content['w']: expected an ordinary tensor, found a quantized one",
        ),
        "nested": (
            lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
            "content['w']: expected an ordinary tensor, found a nested one",
        ),
        "meta": (
            lambda: torch.zeros(3, device="meta"),
            "content['w']: expected an ordinary tensor, found one without data (device meta)",
        ),
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


LATER = [f"uint{bits}" for bits in (16, 32, 64)]
LATER += [f"float8_{kind}" for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")]


@pytest.mark.parametrize("name", LATER)
def test_a_tensor_of_a_type_that_no_storage_is_named_after_comes_back(name: str, tmp_path: Path) -> None:
    tensor = torch.arange(8, dtype=torch.uint8).view(getattr(torch, name))
    back = load_torch_file(saved(tensor, tmp_path / "a.pt")).content
    assert isinstance(back, torch.Tensor)
    assert back.dtype == tensor.dtype
    assert torch.equal(back.view(torch.uint8), tensor.view(torch.uint8))


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
        assert refusal(torch_zip(nested(depth), tmp_path / "a.pt")) == (
            f"nested more than 64 deep at {('content' + '[0]' * 65)[:80]}...{('[0]' * 65)[-80:]}"
        )


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
        "content[1][0]: claims 1000000000 elements, more than its storage holds"
    )


@pytest.mark.parametrize(
    ("pickled", "sentence"),
    [
        (b"", "the pickle was cut short"),
        (b".", "the pickle takes a value where there is none"),
        (b"\x80", "the pickle was cut short, or claims 1 bytes that are not there"),
        (b"\x80\x02", "the pickle was cut short"),
        (b"\x80\x02.", "the pickle takes a value where there is none"),
        (b"\x94.", "the pickle takes a value where there is none"),
        (b"h\x00.", "the pickle recalls a value that it never kept"),
        (b"(((", "the pickle was cut short"),
        (b"t.", "the pickle goes back to a mark that it never set"),
        (b"0.", "the pickle goes back to a mark that it never set"),
        (b"(o.", "the pickle takes a value where there is none"),
        (b"NNa.", "the pickle adds items to what has none"),
        (b"NNNs.", "the pickle sets keys of what has none"),
        (b"}(Nu.", "the pickle sets keys of what has none"),
        (b"NNR.", "the pickle calls what is no name of anything"),
        (b"cbuiltins\nset\n]R.", "the pickle calls what is no name of anything"),
        (b"}}b.", None),
        (b"N}b.", "the pickle hands a state to what takes none"),
        (b"}}b}b.", "the pickle hands a state to what takes none"),
        (b"K\x01K\x01\x93.", "the pickle names something by what is no text"),
        (b"\x8c\x01aK\x01\x93.", "the pickle names something by what is no text"),
        (b"cbuiltins\n", "the pickle names something whose name does not end"),
        (b"c" + b"a" * 201 + b"\nb\n.", "the pickle names something whose name does not end"),
        (b"c" + b"a" * 199 + b"\nb\n.", "the pickle names something by what is no name in Python"),
        (b"ca b\nc\n.", "the pickle names something by what is no name in Python"),
        (b"c\n\n.", "the pickle names something by what is no name in Python"),
        (b"ca\xff\nb\n.", "the pickle holds text that is not UTF-8"),
        (b"\x8c\x01\xff.", "the pickle holds text that is not UTF-8"),
        (b"\x82\x01.", "the pickle names something by a number of Python's extension registry"),
        (b"P1\n.", "the pickle's opcode b'P' is none that torch.save writes"),
        (b"I1\n.", "the pickle's opcode b'I' is none that torch.save writes"),
        (b"\x97.", "the pickle's opcode b'\\x97' is none that torch.save writes"),
        (
            b"\x96" + b"\xff" * 8 + b".",
            "the pickle holds more values than any checkpoint needs",
        ),
        (
            b"\x8e" + (2**20).to_bytes(8, "little") + b".",
            "the pickle was cut short, or claims 1,048,576 bytes that are not there",
        ),
        (b"X\xff\xff\xff\xff.", "the pickle holds more values than any checkpoint needs"),
        (b"\x8b" + (1025).to_bytes(4, "little") + bytes(1025) + b".", "the pickle holds a whole number of 1,025 bytes"),
    ],
)
def test_a_broken_pickle_is_refused(pickled: bytes, sentence: str | None, tmp_path: Path) -> None:
    path = torch_zip(pickled, tmp_path / "a.pt")
    if sentence is None:
        assert load_torch_file(path).content == {}
    else:
        assert refusal(path) == sentence


def test_opcodes_that_torch_rarely_writes_are_read_as_pickle_reads_them(tmp_path: Path) -> None:
    for pickled in (
        b"]2a.",  # DUP: of a list that holds itself, only that it ends is compared
        b"(K\x01K\x02l.",
        b"K\x01K\x020.",
        b"K\x01(K\x02K\x031.",
        b"K\x01(0.",
        b"\x8b\x02\x00\x00\x00\x00\x80.",
        b"\x8a\x00.",
        b"\x8d\x02" + bytes(7) + b"ab.",
        b"B\x02\x00\x00\x00ab.",
        b"U\x02ab.",
        b"T\x02\x00\x00\x00ab.",
        b"\x95" + bytes(8) + b"N.",
        b"ccollections\nOrderedDict\n)\x81.",
        b"ccollections\nOrderedDict\n)}\x92.",
        b"(ccollections\nOrderedDict\no.",
        b"(icollections\nOrderedDict\n.",
        b"c__builtin__\nset\n]\x85R.",
        b"\x80\x04\x8f(K\x01K\x02\x90.",
        b"\x80\x04(K\x01K\x02\x91.",
        b"K\x05r\x00\x01\x00\x000j\x00\x01\x00\x00.",
    ):
        content = load_torch_file(torch_zip(pickled, tmp_path / "a.pt")).content
        assert repr(content) == repr(pickle.loads(pickled)), pickled


def test_text_of_python_2_that_is_not_ascii_stays_bytes(tmp_path: Path) -> None:
    assert load_torch_file(torch_zip(b"U\x02\xe4a.", tmp_path / "a.pt")).content == b"\xe4a"


# --- what people keep in checkpoints --------------------------------------------------------------------------------

FORMATS: dict[str, dict[str, Any]] = {
    "as torch.save writes": {},
    "protocol 4": {"pickle_protocol": 4},
    "protocol 5": {"pickle_protocol": 5},
    "before torch 1.6": {"_use_new_zipfile_serialization": False},
}


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("name", KINDS)
def test_legitimate_content_comes_back_bit_for_bit_and_nothing_is_imported_for_it(
    name: str, how: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(checkpoint_kinds.saved(KINDS[name].saved(), **FORMATS[how]))
    imported = set(sys.modules)
    content = load_torch_file(path).content
    assert set(sys.modules) == imported
    assert same(content, KINDS[name].expected()), content


def test_the_comparison_notices_differences() -> None:
    """The control: each is other content."""
    different = [
        *(torch.ones(2), torch.ones(3), torch.tensor([1.0, 2.0]), torch.ones(2).double(), torch.ones(2, 1)),
        *(torch.ones(2, requires_grad=True), torch.nn.Parameter(torch.ones(2)), torch.ones(4)[::2]),
        *(1, 1.0, True, "1", b"1", None, [1], (1,), {1}, {1: 1}, {1: 2}, {1: 1, 2: 2}, {2: 2, 1: 1}, [1, 2], [2, 1]),
        *(0.0, -0.0, collections.OrderedDict({1: 1}), torch.tensor(0.0), torch.tensor(-0.0), [torch.tensor(0.0)]),
    ]
    assert len(KINDS) >= 35
    for i, one in enumerate(different):
        assert [j for j, other in enumerate(different) if same(one, other)] == [i]


PLAIN_KINDS = [
    name for name, kind in KINDS.items() if kind.loaded is None and name not in ("something that holds itself", "bytes")
]


@pytest.mark.parametrize("name", PLAIN_KINDS)
def test_torchs_own_loader_gives_the_same_where_it_gives_anything(name: str, tmp_path: Path) -> None:
    """The slow and obviously right twin."""
    path = tmp_path / "a.pt"
    path.write_bytes(checkpoint_kinds.saved(KINDS[name].saved()))
    assert same(load_torch_file(path).content, torch.load(path, weights_only=False))


def test_tensors_that_shared_a_storage_still_do(tmp_path: Path) -> None:
    content: Any = load_torch_file(saved(KINDS["views of one storage"].saved(), tmp_path / "a.pt")).content
    content["base"][2] = 77
    assert content["column"].tolist() == [77, 8, 14, 20]
    tied: Any = load_torch_file(saved(KINDS["tied weights"].saved(), tmp_path / "a.pt")).content
    assert tied["encoder.weight"] is tied["decoder.weight"]


def test_a_state_dict_keeps_the_versions_of_its_parts_and_nothing_else(tmp_path: Path) -> None:
    state = checkpoint_kinds.network().state_dict()
    state._metadata["0"]["run"] = "x"  # type: ignore[attr-defined]  # where torch keeps them
    state._metadata["3"]["version"] = "y"  # type: ignore[attr-defined]
    content: Any = load_torch_file(saved(state, tmp_path / "a.pt")).content
    assert vars(content) == {
        "_metadata": {"": {"version": 1}, "0": {"version": 1}, "1": {"version": 2}, "2": {"version": 1}}
    }
    checkpoint_kinds.network().load_state_dict(content)


def test_a_whole_optimizer_and_a_whole_schedule_become_what_is_in_them(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(checkpoint_kinds.network().parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    content: Any = load_torch_file(saved({"o": optimizer, "s": schedule}, tmp_path / "a.pt")).content
    assert content["o"]["param_groups"][0]["lr"] == 0.1
    assert content["s"]["step_size"] == 2
    assert content["s"]["optimizer"] is content["o"]


def test_what_is_of_an_unknown_class_is_no_value(tmp_path: Path) -> None:
    content: Any = load_torch_file(
        torch_zip(b"\x80\x02(cpkg\nmake\n(K\x01K\x02tRcpkg\nC\nctorch\nstrided\ncpkg\nC\n)Rl.", tmp_path / "a.pt")
    ).content
    assert [repr(item) for item in content] == [
        "Foreign(name='pkg.make')", "Foreign(name='pkg.C')", "torch.strided", "Foreign(name='pkg.C')"
    ]  # fmt: skip


WHOLE = "holds a whole network ({}), which only its own code can read; save its state_dict() instead" + WAY_ROUND


def test_a_whole_network_is_refused_with_the_remedy(tmp_path: Path) -> None:
    for content in (torch.nn.Linear(1, 1), {"model": torch.nn.Linear(1, 1), "epoch": 1}):
        assert refusal(saved(content, tmp_path / "a.pt")) == WHOLE.format("torch.nn.modules.linear.Linear")
    # One whose parts are all somebody's own.
    state = b"}(" + text("_parameters") + b"}" + text("_modules") + b"}u"
    assert refusal(torch_zip(b"\x80\x02cnet\nNet\n)\x81" + state + b"b.", tmp_path / "a.pt")) == WHOLE.format("net.Net")


# --- files before torch 1.6 -----------------------------------------------------------------------------------------

OLD = {"w": torch.arange(3.0), "n": torch.arange(2), "epoch": 3}


def old_file(content: object = OLD) -> bytes:
    return checkpoint_kinds.saved(content, _use_new_zipfile_serialization=False)


def test_a_file_of_torch_before_1_6_that_was_cut_short_is_refused_at_every_length(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.pt", old_file()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert re.search("cut short|still being written|bare pickle|does not end", refusal(path)), length
    path.write_bytes(whole + b"\0")
    assert refusal(path) == "damaged: 1 bytes follow its last storage"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"M\xe9\x03.", b"M\xe8\x03.", "expected torch's format before 1.6 on a little-endian machine, found another "),
        (
            b"little_endianq\x02\x88",
            b"little_endianq\x02\x89",
            "expected torch's format before 1.6 on a little-endian ",
        ),
        (b"}q\x00(X\x10", b"]q\x00(X\x10", "the pickle sets keys of what has none"),
        (b"X\x01\x00\x00\x00w", b"K\x05]]]]", "content: a list as a key"),
        (b"\x80\x02]q\x00(", b"\x80\x02}q\x00(", "damaged: its list of storages is none"),
    ],
)
def test_a_file_of_torch_before_1_6_that_lies_is_refused(old: bytes, new: bytes, sentence: str, tmp_path: Path) -> None:
    path, whole = tmp_path / "a.pt", old_file()
    assert old in whole
    path.write_bytes(whole.replace(old, new))
    assert refusal(path).startswith(sentence)


def test_storages_that_the_content_lacks_or_that_come_twice_are_refused(tmp_path: Path) -> None:
    whole = old_file({"w": torch.ones(1)})
    begin = whole.rindex(b"\x80\x02]")
    key = whole[begin + 5 : whole.rindex(b".")].removesuffix(b"a")
    for keys, sentence in {
        b"(" + text("x") + b"e": "damaged: the content has no storage 'x', which follows it",
        b"(" + key + key + b"e": "damaged: the content has no storage ",
        b"K\x01a": "damaged: its list of storages is none",
    }.items():
        path = tmp_path / "a.pt"
        path.write_bytes(whole[:begin] + b"\x80\x02]" + keys + b"." + (1).to_bytes(8, "little") + bytes(12))
        assert refusal(path).startswith(sentence)


def test_a_view_of_another_storage_as_torch_0_3_wrote_it_is_refused(tmp_path: Path) -> None:
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01" + b"Nt"
    pickled = b"\x80\x02ctorch._utils\n_rebuild_tensor\n(" + storage + b"QK\x00K\x01\x85K\x01\x85tR."
    one = torch_zip(pickled, tmp_path / "a.pt", **{"data/0": bytes(4)})
    assert same(load_torch_file(one).content, torch.zeros(1))
    two = torch_zip(
        pickled.replace(b"K\x01Nt", b"K\x01Xt".replace(b"X", b")")), tmp_path / "b.pt", **{"data/0": bytes(4)}
    )
    assert refusal(two) == "content: lies in something that is no storage"


# --- with the user's trust ------------------------------------------------------------------------------------------


def test_a_file_that_its_user_trusts_runs_only_where_it_must(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = saved({"w": torch.ones(2), "config": Runs(os.system, f"touch {canary}")}, tmp_path / "a.pt")
    assert refusal(path) == wants("posix.system")
    assert not canary.exists()
    loaded = load_torch_file(path, trust=True)
    assert canary.exists()
    assert same(loaded.content, {"w": torch.ones(2), "config": 0})
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    # Nothing in this one needs it: it is read as ever, and what its class is called is not imported.
    plain = saved({"args": argparse.Namespace(a=1)}, tmp_path / "b.pt")
    assert load_torch_file(plain, trust=True).content == {"args": {"a": 1}}


LEN = Runs(len, ())


def test_a_trusted_file_that_is_damaged_does_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = saved([torch.ones(2), Runs(os.system, f"touch {canary}")], tmp_path / "a.pt")
    data = path.read_bytes()
    assert data.count(struct.pack("<2f", 1, 1)) == 1
    path.write_bytes(data.replace(struct.pack("<2f", 1, 1), struct.pack("<2f", 1, 2)))
    with pytest.raises(CheckpointError, match="damaged: the record 'a/data/0' fails its checksum; copy the file again"):
        load_torch_file(path, trust=True)
    assert not canary.exists()


def test_of_a_trusted_network_the_weights_are_taken(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    content: Any = load_torch_file(saved(model, tmp_path / "a.pt"), trust=True).content
    assert list(content) == ["weight", "bias"]
    assert torch.equal(content["weight"], model.weight)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            Runs(getattr, "", "nothing"),
            "not loadable even by pickle (AttributeError: 'str' object has no attribute 'not",
        ),
        ([Runs(len, ()), torch.eye(2).to_sparse()], "content['1']: expected an ordinary tensor, found one that is "),
        (
            [Runs(len, ()), torch.ones(1, device="meta")],
            "content['1']: expected an ordinary tensor, found one that is ",
        ),
        (
            [Runs(len, ()), {"w": torch.ones(1).expand(9)}],
            "content['1']['w']: claims 9 elements, more than its storage",
        ),
    ],
    ids=["raises", "sparse", "meta", "stride 0"],
)
def test_what_a_trusted_file_gives_is_still_checked(content: object, sentence: str, tmp_path: Path) -> None:
    path = saved(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as error:
        load_torch_file(path, trust=True)
    assert str(error.value).startswith(f"{path}: {sentence}")
    assert "\n" not in str(error.value)


# --- how much -------------------------------------------------------------------------------------------------------


def test_a_file_of_more_bytes_than_it_may_have_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with path.open("wb") as file:
        file.truncate(2**43)  # which costs nothing on the disk
    for limit in (None, 1000):
        with pytest.raises(CheckpointError, match=r"holds 8,796,093,022,208 bytes, more than the .* may; allow"):
            load_torch_file(path, max_bytes=limit)


def test_views_count_as_what_they_would_take_by_themselves(tmp_path: Path) -> None:
    base = torch.zeros(1000)
    path = saved([base.view(10, 100) for _ in range(20)], tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as error:
        load_torch_file(path, max_bytes=15_999)
    assert str(error.value) == (
        f"{path}: content[3]: with it, tensors claim more than the 15,999 bytes that a checkpoint may"
    )
    load_torch_file(path, max_bytes=80_000)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fstat, calls = saved(1, tmp_path / "a.pt"), os.fstat, []

    def meddling(number: int) -> os.stat_result:
        if calls:
            with path.open("ab") as file:
                file.write(b"more")
        calls.append(number)
        return fstat(number)

    monkeypatch.setattr(safe_load.os, "fstat", meddling)
    assert refusal(path) == "changed while it was read; is it still being written?"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "expected a checkpoint, found a pipe, socket or device"


# --- what stands for something plain, and does not make sense ---------------------------------------------------------


def named(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def called(name: str, *arguments: bytes) -> bytes:
    return named(name) + b"(" + b"".join(arguments) + b"tR"


DTYPE = called("numpy.dtype", text("f4"), b"\x89", b"\x88")
ARRAY = called("numpy._core.multiarray._reconstruct", named("numpy.ndarray"), b"K\x00\x85", b"C\x01b")
STORAGE = b"(" + text("storage") + named("torch.FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"
NO_TEXT, NO_SET = " that is not made of text", "a list or set that is not made of a list"
NO_PAIRS, NO_TENSOR = "a dict that is not made of keys and values", "a tensor without a storage, sizes and strides"


def tensor(*arguments: bytes, how: str = "_rebuild_tensor_v2") -> bytes:
    given = (STORAGE, b"K\x00", b"K\x04\x85", b"K\x01\x85", b"\x89", b"N")
    return called(f"torch._utils.{how}", *(arguments or given))


SENSELESS: dict[bytes, str] = {
    called("_codecs.encode", text("ü"), text("utf-8")): "expected bytes, found something else",
    called("_codecs.encode", text("€"), text("latin1")): "expected bytes, found something else",
    called("builtins.bytes", b"K\x05"): "expected bytes, found something else",
    called("numpy._core.multiarray.scalar", DTYPE, b"N"): "expected bytes, found something else",
    ARRAY: "a NumPy array without values",
    ARRAY + b"(K\x01K\x02\x85" + DTYPE + b"\x89C\x04abcdtb": "a NumPy array whose shape and type do not take the 4 byt",
    ARRAY + b"(K\x01]K\x01aK\x01a" + DTYPE + b"\x89C\x05abcdetb": "a NumPy array whose shape and type do not take the",
    ARRAY + b"(K\x01N" + DTYPE + b"\x89C\x04abcdtb": "a NumPy array whose shape and type do not take the 4 bytes",
    ARRAY + b"(K\x01" + b"J\xff\xff\xff\xff" + b"\x85" + DTYPE + b"\x89C\x04abcdtb": "a NumPy array whose shape and ty",
    ARRAY + b"(K\x01K\x01\x85" + called("numpy.dtype", text("b1")) + b"\x89C\x01\x02tb": "a truth value that is neithe",
    called("numpy._core.numeric._frombuffer", b"C\x04abcd", DTYPE, b"K\x01\x85"): "a NumPy array without values",
    called("pathlib.PosixPath", b"K\x01"): "a pathlib.PosixPath" + NO_TEXT,
    called("pathlib.PosixPath", text("x" * 4096), text("y")): "a pathlib.PosixPath" + NO_TEXT,
    called("decimal.Decimal", b"N"): "a decimal.Decimal" + NO_TEXT,
    called("decimal.Decimal"): "a decimal.Decimal" + NO_TEXT,
    called("decimal.Decimal", text("x" * 4097)): "a decimal.Decimal" + NO_TEXT,
    called("uuid.UUID"): "a UUID without a number",
    called("uuid.UUID") + b"}" + text("int") + b"J\xff\xff\xff\xffsb": "a UUID without a number",
    called("uuid.UUID") + b"}K\x01K\x01sb": "a UUID without a number",
    called("datetime.timedelta", text("1")): "a timedelta that is not made of whole numbers",
    called("datetime.timedelta", b"K\x01" * 4): "a timedelta that is not made of whole numbers",
    called("datetime.timedelta", b"J\xff\xff\xff\x7f"): "a timedelta of more days than there are",
    called("datetime.timezone"): "a timezone without an offset",
    called("datetime.timezone", b"K\x01"): "a timezone without an offset",
    called("datetime.timezone", called("datetime.timedelta", b"K\x02")): "a timezone more than a day away",
    called("datetime.datetime", b"C\x04abcd"): "a datetime.datetime of 4 bytes",
    called("datetime.time"): "a datetime.time of 0 bytes",
    called("datetime.date", b"C\x04\x07\xea\x0d\x01"): "a datetime.date that no calendar or clock shows",
    called("builtins.complex", b"K\x01", b"K\x01"): "a complex number that is not made of two numbers",
    called("builtins.bytearray", b"K\x01"): "a bytearray that is not made of bytes",
    called("builtins.slice"): "a builtins.slice that is not made of whole numbers",
    called("builtins.slice", b"]"): "a builtins.slice that is not made of whole numbers",
    called("builtins.range", b"N"): "a range that is none",
    called("builtins.range", b"K\x01", b"K\x02", b"K\x00"): "a range that is none",
    called("torch.Size", b"K\x01"): "a torch.Size that is not made of sizes",
    called("torch.Size"): "a torch.Size that is not made of sizes",
    called("torch.device", text("moon")): "a torch.device that is none",
    called("torch.device", b"K\x01"): "a torch.device that is none",
    called("torch.device", text("cpu"), b"\x88"): "a torch.device that is none",
    called("torch.device", text("cpu"), b"\x8a\x0a" + bytes(9) + b"\x01"): "a torch.device that is none",
    called("builtins.set", b"N"): NO_SET,
    called("collections.deque", b"}"): NO_SET,
    called("collections.OrderedDict", b"]Na"): NO_PAIRS,
    called("collections.OrderedDict", b"K\x01"): NO_PAIRS,
    called("collections.OrderedDict", b"]N\x85a"): NO_PAIRS,
    called("copyreg.__newobj__"): "an object of no class",
    called("copyreg._reconstructor", b"N", b"N", b"N"): "an object of no class",
    b"}" + b"\x8a\x08" + (2**60).to_bytes(8, "little") + b"Ns": "a whole number of too many digits as a key",
    b"}" + b"\x8a\x08" + (-(2**60)).to_bytes(8, "little", signed=True) + b"Ns": "a whole number of too many digits as",
    b"}]Ns": "a list as a key",
    b"}]\x85Ns": "a list as a key",
    b"}(" + b"N" * 65 + b"tNs": "a tuple as a key",
    b"\x8f(}\x90": "a dict as a key",
    tensor(b"N"): NO_TENSOR,
    tensor(b"N", b"N", b"N", b"N"): NO_TENSOR,
    tensor(STORAGE, b"\x88", b")", b")"): "a tensor whose sizes and strides are none",
    tensor(STORAGE, b"K\x00", b"N", b")"): "a tensor whose sizes and strides are none",
    tensor(STORAGE, b"K\x00", b")", b"N"): "a tensor whose sizes and strides are none",
    tensor(STORAGE, b"K\x00", b")", b"K\x01\x85"): "a tensor whose sizes and strides are none",
    tensor(STORAGE, b"K\x00", b"(" + b"K\x01" * 65 + b"t", b"(" + b"K\x01" * 65 + b"t"): "a tensor whose sizes and str",
    tensor(STORAGE, b"K\x01", b"K\x04\x85", b"K\x01\x85"): "claims an element at 4, more than its storage holds",
    tensor(STORAGE, b"K\x00", b"K\x02\x85", b"K\x04\x85"): "claims an element at 4, more than its storage holds",
    tensor(STORAGE, b"K\x05", b"K\x00\x85", b"K\x01\x85"): "claims an element at 4, more than its storage holds",
    tensor(how="_rebuild_tensor_v3"): "a tensor of no type",
    tensor(STORAGE, b"K\x00", b")", b")", b"\x89", b"N", named("torch.strided"), how="_rebuild_tensor_v3"): "a tensor",
    tensor(STORAGE, b"K\x00", b")", b")", b"\x89", b"N", named("torch.qint8"), how="_rebuild_tensor_v3"): (
        "expected an ordinary tensor, found one of torch.qint8"
    ),
    tensor(STORAGE, b"K\x00", b")", b")", b"\x89", b"N", named("torch.uint3"), how="_rebuild_tensor_v3"): (
        "expected an ordinary tensor, found one of torch.uint3"
    ),
    tensor(STORAGE.replace(b"Float", b"QInt8"), b"K\x00", b")", b")"): "expected an ordinary tensor, found one of torc",
    tensor(STORAGE.replace(text("0"), text("1")), b"K\x00", b")", b")"): "lies in a storage '1' that is not in the fil",
    tensor(STORAGE.replace(b"K\x04t", b"K\x05t"), b"K\x00", b")", b")"): "its storage claims 20 bytes, and 16 are ther",
    tensor(STORAGE.replace(b"storage", b"STORAGE"), b"K\x00", b")", b")"): "lies in something that is no storage",
    called("torch._utils._rebuild_parameter", b"N", b"\x88", b"N"): "a parameter that is not made of a tensor",
    called("torch._utils._rebuild_parameter", tensor(), b"N", b"N"): "a parameter that is not made of a tensor",
    called("torch._tensor._rebuild_from_type_v2", b"N"): "a tensor of a class that does not say how it is made",
    called(
        "torch._tensor._rebuild_from_type_v2", named("torch._tensor._rebuild_from_type_v2"), named("a.B"), b")", b"}"
    ): "a tensor of a class that does not say how it is made",
    called(
        "torch._tensor._rebuild_from_type_v2", named("a.b"), named("torch.Tensor"), b")", b"}"
    ): "expected an ordinary tensor, found a.b",
    called("torch._utils._rebuild_nested_tensor", b"N"): "expected an ordinary tensor, found a nested one",
    STORAGE.replace(b"Float", b"Bool").replace(b"K\x04t", b"K\x10t"): "a truth value that is neither 0 nor 1; damaged",
}  # fmt: skip


@pytest.mark.parametrize("pickled", SENSELESS, ids=range(len(SENSELESS)))
def test_what_does_not_make_sense_is_refused_with_its_place(pickled: bytes, tmp_path: Path) -> None:
    path = torch_zip(b"\x80\x02]" + pickled + b"a.", tmp_path / "a.pt", **{"data/0": b"\0\1\2\3" * 4})
    sentence = refusal(path)
    assert re.match(r"content\[0\](, a key)?: ", sentence), sentence
    assert sentence.partition(": ")[2].startswith(SENSELESS[pickled])


SENSIBLE: list[tuple[bytes, object]] = [
    (called("_codecs.encode", text("ü"), text("latin-1")), b"\xfc"),
    (called("builtins.bytes"), b""),
    (called("builtins.bytearray", text("ü"), text("latin-1")), bytearray(b"\xfc")),
    (called("builtins.bytearray"), bytearray()),
    (called("numpy._core.multiarray.scalar", DTYPE, b"\x96\x04" + bytes(7) + b"\0\0\x80?"), 1.0),
    (called("fractions.Fraction", text("1/2")), "1/2"),
    (called("datetime.datetime", b"C\x0a\x07\xea\x8b\x19\x13\x02\x09\x00\x00\x00"), "2026-11-25T19:02:09"),
    (called("datetime.time", b"C\x06\x93\x02\x09\x00\x00\x00"), "19:02:09"),
    (called("datetime.datetime", b"C\x0a\x07\xea\x0b\x19\x13\x02\x09\0\0\0", named("a.Zone")), "2026-11-25T19:02:09"),
    (called("builtins.range", b"K\x03"), range(3)),
    (called("collections.OrderedDict", b"]]K\x01aK\x02aa"), collections.OrderedDict([(1, 2)])),
    (called("collections.OrderedDict", b"]K\x01K\x02\x86a"), collections.OrderedDict([(1, 2)])),
    (called("collections.Counter", b"}K\x01K\x02s"), {1: 2}),
    (called("copyreg.__newobj__", named("a.B"), text("x")), "x"),
    (called("copyreg.__newobj_ex__", named("collections.OrderedDict"), b")", b"}"), collections.OrderedDict()),
    (called("copyreg._reconstructor", named("a.B"), named("builtins.object"), b"N") + b"}K\x01K\x02sb", {1: 2}),
    (called("copyreg._reconstructor", named("a.B"), named("builtins.str"), text("x")), "x"),
    (called("a.B") + b"N}K\x01K\x02s\x86b", {1: 2}),
    (called("a.B") + b"(K\x01K\x02e", [1, 2]),
    (b"}(K\x01K\x02K\x01K\x03u", {1: 3}),
    (tensor(), torch.tensor([0.0, 1.0, 2.0, 3.0])),
    (tensor(STORAGE, b"K\x02", b"K\x00\x85", b"K\x01\x85"), torch.empty(0)),
    (tensor(STORAGE, b"K\x02", b")", b")", how="_rebuild_tensor"), torch.tensor(2.0)),
    (
        called("torch._tensor._rebuild_from_type_v2", named("torch._utils._rebuild_tensor_v2"), named("a.Mine"),
               b"(" + STORAGE + b"K\x00K\x01\x85K\x01\x85\x88Nt", b"}"),
        torch.tensor([0.0], requires_grad=True),
    ),
    (
        called("torch._utils._rebuild_parameter", tensor(
            STORAGE.replace(b"Float", b"Int"), b"K\x00", b")", b")", b"\x88", b"N", b"}" + text("neg") + b"\x88s"
        ), b"\x88", b"N"),
        torch.nn.Parameter(torch.tensor(0, dtype=torch.int32), requires_grad=False),
    ),
    (STORAGE, torch.tensor([0.0, 1.0, 2.0, 3.0])),
    (STORAGE.replace(b"Float", b"Bool").replace(text("0"), text("1")), torch.tensor([False, True, True, False])),
]  # fmt: skip


@pytest.mark.parametrize(("pickled", "expected"), SENSIBLE, ids=range(len(SENSIBLE)))
def test_what_makes_sense_in_another_way_than_torch_writes_it_is_read(
    pickled: bytes, expected: object, tmp_path: Path
) -> None:
    records = {"data/0": struct.pack("<4f", 0, 1, 2, 3), "data/1": b"\0\1\1\0"}
    content: Any = load_torch_file(torch_zip(b"\x80\x02]" + pickled + b"a.", tmp_path / "a.pt", **records)).content
    assert same(content, [expected]), content


FOREIGN = [
    called("a.B"),
    called("a.B", b"K\x01", b"K\x02"),
    called("a.B", b"]"),
    called("a.B") + b"K\x01aK\x01K\x02s",
    named("a.B") + b")}K\x01K\x02s\x92",
    called("a.B", b"K\x01", b"K\x02") + b"}K\x01K\x02sb",
    called("omegaconf.dictconfig.DictConfig"),
    named("torch.nn.parameter.Parameter"),
    ARRAY + b"(K\x01K\x01\x85" + called("numpy.dtype", text("O8")) + b"\x89]Natb",
    called("numpy.dtype", text("O8")),
]


@pytest.mark.parametrize("pickled", FOREIGN, ids=range(len(FOREIGN)))
def test_what_nobody_knows_stays_foreign(pickled: bytes, tmp_path: Path) -> None:
    content: Any = load_torch_file(torch_zip(b"\x80\x02]" + pickled + b"a.", tmp_path / "a.pt")).content
    assert isinstance(content[0], Foreign), content


def test_copies_of_something_large_are_counted(tmp_path: Path) -> None:
    """Four opcodes make a copy: a megabyte that is encoded three hundred times."""
    for large, copy_of in (
        (text("x" * 2**20), named("_codecs.encode") + b"h\x01" + text("latin1") + b"\x86R"),
        (b"(" + b"K\x01" * 2**20 + b"l", named("builtins.set") + b"h\x01\x85R"),
        (b"C\x04abcd", (ARRAY + b"(K\x01K\x01\x85" + DTYPE + b"\x89h\x01tb")),
    ):
        times = 300 if copy_of[-1:] == b"R" else 1
        path = torch_zip(b"\x80\x02" + large + b"q\x010(" + copy_of * times + b"l.", tmp_path / "a.pt")
        if times == 1:
            assert load_torch_file(path).content is not None
        else:
            assert refusal(path) == "holds more values than any checkpoint needs"


def test_the_order_of_bytes_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for order, refused in ((b"big", True), (b"little", False), (b"", True)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"N.")
            archive.writestr("archive/byteorder", order)
        if refused:
            assert refusal(path) == f"expected bytes in the order 'little', found {order!r}; save it again"
        else:
            assert load_torch_file(path).content is None


def test_storages_that_are_not_aligned_are_as_good_as_any(tmp_path: Path) -> None:
    for name in ("archive/data.pkl", *(f"archive/data.pkl{'x' * n}" for n in range(1, 5))):
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + tensor() + b".")
            archive.writestr(name.replace(".pkl", ".txt"), b"")
            archive.writestr("archive/data/0", struct.pack("<4f", 0, 1, 2, 3))
        content: Any = load_torch_file(tmp_path / "a.pt").content
        assert content.tolist() == [0, 1, 2, 3]
        assert content.data_ptr() % 4 == 0


def test_of_what_hangs_on_a_dict_only_the_versions_are_kept(tmp_path: Path) -> None:
    state = b"}(" + text("items") + b"K\x01" + text("_metadata") + b"Nub"
    pickled = b"\x80\x02" + called("collections.OrderedDict") + state + b"."
    content: Any = load_torch_file(torch_zip(pickled, tmp_path / "a.pt")).content
    assert vars(content) == {}


def test_a_file_of_torch_before_1_6_that_refers_to_anything_else_is_refused(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.pt", old_file({"w": torch.ones(1)})
    assert whole.count(b"FloatStorage") == 1
    path.write_bytes(whole.replace(b"FloatStorage", b"QInt8Storage"))
    assert refusal(path).startswith("damaged: the content has no storage '")
