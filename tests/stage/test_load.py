"""Which kind of file a checkpoint is; the parts of the loader one by one, where whole files do not reach them."""

import doctest
import hashlib
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_kinds import saved

from qbw_eval.checkpoints import archive, harmless, safetensors_file
from qbw_eval.checkpoints.archive import ArchiveError, read_archive, record_names
from qbw_eval.checkpoints.find import trusted_among
from qbw_eval.checkpoints.harmless import is_harmless
from qbw_eval.checkpoints.load import load_checkpoint_file
from qbw_eval.checkpoints.pickle_reader import PickleError, read_pickle
from qbw_eval.checkpoints.safe_load import CheckpointError
from qbw_eval.cli import main
from schemas.errors import UsageError

SAFETENSORS = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


def safetensors(header: bytes = SAFETENSORS) -> bytes:
    return struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1, 2)


# --- which kind -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a"])
def test_what_a_file_is_is_seen_in_its_bytes_and_not_in_its_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    content = {"w": torch.tensor([1.0, 2.0])}
    for data in (saved(content), saved(content, _use_new_zipfile_serialization=False), safetensors()):
        path.write_bytes(data)
        loaded: Any = load_checkpoint_file(path)
        assert list(loaded.content) == ["w"]
        assert torch.equal(loaded.content["w"], content["w"])
        assert loaded.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"12345678{", "expected a file written by torch.save, found text"),
        (struct.pack("<Q", 2**22 + 1) + b"{", "expected a file written by torch.save, found text"),
        (
            struct.pack("<Q", 2**22) + b"{",
            "its header claims 4,194,304 bytes, and 1 are there; cut short",
        ),
        (struct.pack("<Q", 2) + b"[]", "expected a file written by torch.save, found text"),
        (b"", "expected a file written by torch.save, found an empty file; is it still being written?"),
    ],
)
def test_a_file_of_no_kind_is_told_so(data: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint_file(path)
    assert str(error.value).startswith(f"{path}: {sentence}")


def test_a_file_that_is_not_there_and_a_pipe_are_told_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, sentence in {
        "nowhere": "cannot be read (No such file or directory)",
        ".": "cannot be read (Is a directory)",
        "pipe": "expected a checkpoint, found a pipe, socket or device",
    }.items():
        with pytest.raises(CheckpointError) as error:
            load_checkpoint_file(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: {sentence}"


def test_the_limit_and_the_trust_are_handed_on(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for data in (saved({"w": torch.ones(9)}), safetensors()):
        path.write_bytes(data)
        load_checkpoint_file(path, max_bytes=len(data))
        with pytest.raises(CheckpointError) as error:
            load_checkpoint_file(path, max_bytes=len(data) - 1)
        assert str(error.value) == (
            f"{path}: holds {len(data):,} bytes, more than the {len(data) - 1:,} that a checkpoint may; "
            "allow it more with --max-bytes"
        )
    path.write_bytes(saved(torch.nn.Linear(1, 1)))
    with pytest.raises(CheckpointError, match="holds a whole network"):
        load_checkpoint_file(path)
    assert set(load_checkpoint_file(path, trust=True).content) == {"weight", "bias"}  # type: ignore[call-overload]


def test_without_a_limit_half_of_the_memory_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "default_max_bytes", lambda: 60)
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors())
    with pytest.raises(CheckpointError, match=r"holds 70 bytes, more than the 60 that a checkpoint may"):
        load_checkpoint_file(path)


# --- whom a user trusts -----------------------------------------------------------------------------------------------


def test_a_file_is_trusted_by_whatever_path_leads_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two, link = Path("one.pt"), Path("two.pt"), Path("link.pt")
    one.touch()
    two.touch()
    link.symlink_to(one)
    assert trusted_among([one, two], []) == set()
    assert trusted_among([one, two], [tmp_path / "one.pt"]) == {one}
    assert trusted_among([one, two, link], [Path("x/../one.pt")]) == {one, link}
    for wrong in (Path("three.pt"), tmp_path):
        with pytest.raises(UsageError) as error:
            trusted_among([one, two], [one, wrong])
        assert str(error.value) == f"--trust-pickle {wrong}: is none of the checkpoints named; name the very file"


class Touches:
    """Pickles as a command that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("command", ["run", "inspect"])
def test_the_commands_run_a_file_only_where_its_user_says_so(
    command: str,
    demo_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    content = torch.load(demo_checkpoint, weights_only=True)
    path, canary = Path("mine.pt"), tmp_path / "canary"
    torch.save({**content, "extra": Touches(canary)}, path)
    more = ["--dry-run", "--device", "cpu"] if command == "run" else []

    def said(*words: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["qbw-eval", command, *more, str(path), *words])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr().err

    code, sentence = said()
    assert code == 1
    assert "wants to run posix.system" in sentence
    assert not canary.exists()
    assert said("--trust-pickle", "mine.pt")[0] in (0, None)
    assert canary.exists()
    assert said("--trust-pickle", "other.pt") == (
        2,
        "qbw-eval: error: --trust-pickle other.pt: is none of the checkpoints named; name the very file\n",
    )
    code, sentence = said("--max-bytes", "1kB")
    assert code == 1
    assert "more than the 1,000 that a checkpoint may; allow it more with --max-bytes" in sentence


# --- names ------------------------------------------------------------------------------------------------------------


def test_the_examples_of_the_names_are_true() -> None:
    assert doctest.testmod(harmless).attempted > 0
    assert doctest.testmod(harmless).failed == 0


@pytest.mark.parametrize(
    "name",
    [
        *("collections.OrderedDict", "argparse.Namespace", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage"),
        *("torch.float32", "torch.float8_e4m3fn", "torch.uint16", "torch.bits8", "torch.bool", "torch.optim.sgd.SGD"),
        *("torch.optim.lr_scheduler.StepLR", "torch.amp.grad_scaler.GradScaler", "torch.nn.parameter.Parameter"),
        *("numpy.dtype", "numpy.float64", "numpy.random._pickle.__generator_ctor", "numpy.ndarray", "numpy.bool"),
        *("typing.Any", "builtins.int", "pathlib.PosixPath", "pathlib._local.PosixPath", "_codecs.encode"),
        *("omegaconf.dictconfig.DictConfig", "__main__.Config", "my_project.train.main.locals.C", "wandb.sdk.Config"),
        *("my_os.Settings", "config.types.Kind", "pytorch_lightning.callbacks.ModelCheckpoint"),
    ],
)
def test_what_checkpoints_mention_is_harmless(name: str) -> None:
    assert is_harmless(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "os.system",
            "posix.system",
            "nt.system",
            "builtins.eval",
            "builtins.getattr",
            "subprocess.Popen",
            "sys.exit",
        ),
        *("importlib.import_module", "functools.partial", "operator.attrgetter", "codecs.encode", "pickle.loads"),
        *("commands.getoutput", "popen2.popen2", "distutils.spawn.spawn", "__builtin__.eval", "cPickle.loads"),
        *("torch.load", "torch.optim.sgd.os.system", "torch.optim.os.system", "torch.nn.modules.linear.Linear"),
        *("torch.storage._load_from_bytes", "torch.hub.load", "torch._utils._rebuild_xla_tensor", "torch.float32.x"),
        *("numpy.load", "numpy.f2py.compile", "numpy.random.x", "numpy.ma.core._mareconstruct", "typing.sys.exit"),
        *("somebody.os.system", "somebody.builtins.eval", "__main__.__builtins__.eval", "a.__class__", "x.eval"),
        *("pip._internal.main", "cloudpickle.cloudpickle._make_function", "dill._dill._create_function"),
        *(
            "collections.namedtuple",
            "pathlib.Path.touch",
            "datetime.sys.exit",
            "re._compile",
            "enum.Enum",
            "joblib.load",
        ),
    ],
)
def test_what_reaches_further_is_not(name: str) -> None:
    assert not is_harmless(name)


# --- archives by hand -------------------------------------------------------------------------------------------------


def wide_archive() -> bytes:
    """Return an archive of two records the way it is written where sizes and places exceed 32 bits."""
    records = {b"a/data.pkl": b"N.", b"a/data/0": b"1234"}
    body, directory = b"", b""
    for name, data in records.items():
        begin = len(body)
        body += struct.pack("<4s5H3L2H", b"PK\x03\x04", 45, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name + data
        extra = struct.pack("<2H", 7, 2) + b"xy" + struct.pack("<2H3Q", 1, 24, len(data), len(data), begin)
        wide = 0xFFFFFFFF
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\x01\x02", 45, 45, 0, 0, 0, 0, archive.zlib.crc32(data), wide, wide,
            len(name), len(extra), 0, 0, 0, 0, wide,
        ) + name + extra  # fmt: skip
    at = len(body) + len(directory)
    end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, len(directory), len(body))
    end += struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    return body + directory + end + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, wide, wide, 0)


def test_an_archive_of_the_wide_kind_is_read() -> None:
    records = read_archive(memoryview(wide_archive()))
    assert {name: bytes(data) for name, data in records.items()} == {"a/data.pkl": b"N.", "a/data/0": b"1234"}
    assert record_names(memoryview(wide_archive())) == ["a/data.pkl", "a/data/0"]


NOT_THERE = "damaged: its directory is not where it should be"
CUT = "damaged: its directory was cut short"
MORE = "damaged: its directory holds more than its records"
ELSEWHERE = "damaged: the record 'a/data/0' is not where the directory says; copy the file again"


@pytest.mark.parametrize(
    ("signature", "offset", "value", "sentence"),
    [
        (b"PK\x06\x07", 0, b"PX", NOT_THERE),
        (b"PK\x06\x07", 8, b"\xff\xff\xff\xff", NOT_THERE),
        (b"PK\x06\x06", 0, b"PX", NOT_THERE),
        (b"PK\x06\x06", 16, b"\x01", NOT_THERE),
        (b"PK\x06\x06", 20, b"\x01", NOT_THERE),
        (b"PK\x06\x06", 24, b"\x03", NOT_THERE),
        (b"PK\x06\x06", 40, b"\xff\xff", NOT_THERE),
        (
            b"PK\x06\x06",
            24,
            (10**6).to_bytes(8, "little") * 2,
            "it claims 1,000,000 records, more than any checkpoint has",
        ),
        (b"PK\x06\x06", 24, b"\x01" + bytes(7) + b"\x01", MORE),
        (b"PK\x06\x06", 24, b"\x03" + bytes(7) + b"\x03", CUT),
        (b"PK\x01\x02", 0, b"PX", CUT),
        (b"PK\x01\x02", 28, b"\xff\xff", CUT),
        (b"PK\x01\x02", 30, b"\x00\x00", MORE),
        (b"PK\x01\x02", 46 + 8 + 8, b"\x10", CUT),  # its zip64 field has room for two numbers
        (
            b"PK\x01\x02",
            46 + 8 + 6,
            b"\x02",
            ELSEWHERE,
        ),
        (
            b"PK\x01\x02",
            46 + 8 + 26,
            b"\x00",
            ELSEWHERE,
        ),
        (
            b"PK\x03\x04",
            0,
            b"PX",
            ELSEWHERE,
        ),
        (
            b"PK\x03\x04",
            6,
            b"\x01",
            ELSEWHERE,
        ),
        (
            b"PK\x03\x04",
            8,
            b"\x08",
            ELSEWHERE,
        ),
        (
            b"PK\x03\x04",
            26,
            b"\x07",
            ELSEWHERE,
        ),
        (
            b"PK\x03\x04",
            28,
            b"\xff\xff",
            ELSEWHERE,
        ),
        (
            b"PK\x03\x04",
            30,
            b"b",
            ELSEWHERE,
        ),
    ],
)
def test_an_archive_of_the_wide_kind_that_lies_is_refused(
    signature: bytes, offset: int, value: bytes, sentence: str
) -> None:
    data = bytearray(wide_archive())
    at = data.rindex(signature) + offset
    data[at : at + len(value)] = value
    with pytest.raises(ArchiveError) as error:
        read_archive(memoryview(data))
    assert str(error.value).startswith(sentence)


def test_records_that_overlap_are_refused() -> None:
    """The first record's bytes reach into the second's header, with a checksum that is right."""
    data = bytearray(wide_archive())
    entry, second = data.index(b"PK\x01\x02"), data.rindex(b"PK\x03\x04")
    begin = 30 + len("a/data.pkl")
    size = second + 4 - begin
    data[entry + 16 : entry + 20] = archive.zlib.crc32(data[begin : begin + size]).to_bytes(4, "little")
    sizes = entry + 46 + len("a/data.pkl") + 10
    data[sizes : sizes + 16] = size.to_bytes(8, "little") * 2
    with pytest.raises(ArchiveError) as error:
        read_archive(memoryview(data))
    assert str(error.value) == "damaged: the record 'a/data/0' overlaps the one before it"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(50),
        b"PK\x05\x06",
        b"PK\x05\x06" + bytes(17),
        b"PK\x05\x06" + bytes(18) + b"x",
        b"PK\x05\x06" + b"\xff" * 18,
    ],
)
def test_what_does_not_end_as_an_archive_is_none(data: bytes) -> None:
    assert not archive.is_archive(memoryview(data))
    with pytest.raises(ArchiveError, match="damaged: it has no directory"):
        read_archive(memoryview(data))


def test_an_archive_whose_end_alone_is_there_says_so() -> None:
    data = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0, 0, 0)
    with pytest.raises(ArchiveError, match=NOT_THERE):
        read_archive(memoryview(data))


# --- pickles by themselves --------------------------------------------------------------------------------------------


def test_a_pickle_says_what_it_named_where_it_ends_and_what_it_refers_to() -> None:
    data = memoryview(b"xxcos\nsystem\n0ca\nB\n0ca\nB\n0K\x05Qrest."[:-5] + b".rest")
    pickled = read_pickle(data, 2)
    assert pickled.names == ("posix.system", "a.B") or pickled.names == ("os.system", "a.B")
    assert bytes(data[pickled.end :]) == b"rest"
    assert [item.reference for item in pickled.persistent] == [5]
    assert pickled.content is pickled.persistent[0]


def test_a_broken_pickle_says_what_it_named_before() -> None:
    with pytest.raises(PickleError) as error:
        read_pickle(memoryview(b"cos\nsystem\nca\nB\nR"))
    assert error.value.names == ("os.system", "a.B")


@pytest.mark.parametrize(
    ("pickled", "cost"),
    [(b"N.", 64), (b").", 320), (b"X\x02\x00\x00\x00ab.", 72), (b"C\x02ab.", 66), (b"].", 320), (b"(N1N.", 512),
     (b"}NNs.", 64 * 4 + 256 + 128), (b"ca\nB\n)R.", 3 * 320), (b"NQ.", 128 + 256)],
)  # fmt: skip
def test_a_pickle_may_cost_what_it_may_and_not_a_byte_more(pickled: bytes, cost: int) -> None:
    read_pickle(memoryview(pickled), max_bytes=cost)
    with pytest.raises(PickleError, match="the pickle holds more values than any checkpoint needs"):
        read_pickle(memoryview(pickled), max_bytes=cost - 1)
