"""Files that want to do harm, or are broken as no chance would break them: made by rule, the same every time.

`hostile_files` makes them from tables: what a pickle could run, by which opcodes, hidden where, in which format; and
what a file could claim of sizes, places, shapes and names. `mutated_files` damages good and bad ones by a seeded draw,
half of them inside an archive whose checksums are made right again.
"""

import dataclasses
import io
import itertools
import json
import pickle
import random
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence

import torch
from checkpoint_kinds import KINDS, saved


@dataclasses.dataclass(frozen=True)
class HostileFile:
    """A file and what is wrong with it, in words."""

    name: str
    data: bytes


# --- pickles by hand --------------------------------------------------------------------------------------------------


def text(words: str) -> bytes:
    data = words.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    length = value.bit_length() // 8 + 1
    data = value.to_bytes(length, "little", signed=True)
    return (b"\x8a" + bytes([length]) if length < 256 else b"\x8b" + struct.pack("<I", length)) + data


def pair(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def named(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def archive(pickled: bytes, **more: bytes) -> bytes:
    """Return what torch.save would write around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", **more}.items():
            file.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
    return buffer.getvalue()


def before_1_6(pickled: bytes) -> bytes:
    """Return what torch.save would have written around a pickle without storages before torch 1.6."""
    begin = saved({}, _use_new_zipfile_serialization=False)
    at = begin.index(b"}q\x00(", 20)
    machine_end = begin.index(b".", begin.index(b"type_sizes", at) + 10) + 1
    return begin[:machine_end] + pickled + pickle.dumps([], protocol=2)


# --- what a pickle could run ------------------------------------------------------------------------------------------


def targets(canary: str) -> dict[str, tuple[bytes, ...]]:
    """Return name -> arguments that would make the canary, or do something else that nobody asked for."""
    shell, python = f"touch {canary}", f"open({canary!r}, 'w').close()"
    imported = f"__import__('os').system({shell!r})"
    words = b"](" + text("touch") + text(canary) + b"e"
    code = text(imported)
    return {
        **{name: (text(shell),) for name in ("os.system", "posix.system", "nt.system", "os.popen", "posix.popen")},
        **{name: (text(shell),) for name in ("commands.getoutput", "popen2.popen2", "asyncio.subprocess.create")},
        **{
            f"subprocess.{name}": (words,)
            for name in ("Popen", "call", "run", "check_call", "check_output", "list2cmdline")
        },
        **{f"subprocess.{name}": (text(shell),) for name in ("getoutput", "getstatusoutput")},
        **dict.fromkeys(("builtins.eval", "builtins.exec", "__builtin__.eval", "__builtin__.execfile"), (code,)),
        "builtins.compile": (code, text("x"), text("exec")),
        "builtins.open": (text(canary), text("w")),
        "io.open": (text(canary), text("w")),
        "_io.open": (text(canary), text("w")),
        "_io.FileIO": (text(canary), text("w")),
        "codecs.open": (text(canary), text("w")),
        "builtins.__import__": (text("antigravity"),),
        "builtins.getattr": (named("os.path"), text("join")),
        "builtins.setattr": (named("os.path"), text("join"), b"N"),
        "builtins.map": (named("os.system"), words),
        "builtins.breakpoint": (),
        "builtins.input": (),
        "builtins.print": (text("x"),),
        "builtins.globals": (),
        "builtins.type": (text("X"), b")", b"}"),
        "builtins.bytearray": (number(2**50),),
        "builtins.bytes": (number(2**50),),
        "builtins.range": (number(2**50),),
        "importlib.import_module": (text("antigravity"),),
        "importlib._bootstrap._gcd_import": (text("antigravity"),),
        "imp.load_source": (text("x"), text(canary)),
        "runpy.run_path": (text(canary),),
        "runpy._run_code": (code, b"}"),
        "timeit.timeit": (code,),
        "cProfile.run": (code,),
        "profile.run": (code,),
        "pdb.run": (code,),
        "bdb.Bdb": (),
        "trace.Trace": (),
        "code.interact": (),
        "codeop.compile_command": (code,),
        "doctest.debug_script": (code,),
        "webbrowser.open": (text(f"file://{canary}"),),
        "pty.spawn": (words,),
        "ctypes.CDLL": (text("libc.so.6"),),
        "ctypes.util.find_library": (text("c"),),
        "_ctypes.dlopen": (text("libc.so.6"), number(0)),
        "multiprocessing.Process": (),
        "multiprocessing.util.spawnv_passfds": (text("/bin/sh"), words, b")"),
        "concurrent.futures.process._process_chunk": (named("os.system"), words),
        "threading.Thread": (b"N", named("os.system")),
        "_thread.start_new_thread": (named("os.system"), pair(text(shell))),
        "types.FunctionType": (b"N", b"}"),
        "types.CodeType": (number(0),),
        "types.MethodType": (named("os.system"), text(shell)),
        "operator.attrgetter": (text("system"),),
        "operator.methodcaller": (text("system"), text(shell)),
        "operator.call": (named("os.system"), text(shell)),
        "operator.getitem": (b"}", text("x")),
        "functools.partial": (named("os.system"), text(shell)),
        "functools.reduce": (named("os.system"), words),
        "itertools.starmap": (named("os.system"), words),
        "pickle.loads": (text(python),),
        "_pickle.loads": (text(python),),
        "cPickle.loads": (text(python),),
        "marshal.loads": (text(python),),
        "shelve.open": (text(canary),),
        "sqlite3.connect": (text(canary),),
        "dbm.open": (text(canary), text("c")),
        "shutil.rmtree": (text(canary + ".d"),),
        "shutil.copyfile": (text("/etc/hostname"), text(canary)),
        "os.remove": (text(canary),),
        "os.mkdir": (text(canary),),
        "os.execv": (text("/bin/touch"), words),
        "os.putenv": (text("A"), text("B")),
        "pathlib.Path.touch": (text(canary),),
        "pathlib.Path.write_text": (text(canary), text("x")),
        "tempfile.mktemp": (),
        "logging.FileHandler": (text(canary),),
        "logging.config.fileConfig": (text(canary),),
        "socket.create_connection": (pair(text("127.0.0.1"), number(9)),),
        "urllib.request.urlopen": (text(f"file://{canary}"),),
        "http.client.HTTPConnection": (text("127.0.0.1"),),
        "smtplib.SMTP": (text("127.0.0.1"),),
        "xmlrpc.client.ServerProxy": (text("http://127.0.0.1"),),
        "zipfile.ZipFile": (text(canary), text("w")),
        "tarfile.open": (text(canary), text("w")),
        "atexit.register": (named("os.system"), text(shell)),
        "signal.signal": (number(15), named("os.system")),
        "sys.exit": (),
        "sys.setrecursionlimit": (number(2**20),),
        "gc.get_objects": (),
        "inspect.getmodule": (text("x"),),
        "site.main": (),
        "venv.create": (text(canary),),
        "ensurepip.bootstrap": (),
        "pydoc.pipepager": (text("x"), text(shell)),
        "getpass.getuser": (),
        "platform.popen": (text(shell),),
        "uuid._get_command_stdout": (text("touch"), text(canary)),
        "collections.namedtuple": (text("A"), text("b")),
        "copyreg.add_extension": (text("os"), text("system"), number(1)),
        "copyreg.pickle": (named("builtins.int"), named("os.system")),
        "weakref.finalize": (b"]", named("os.system"), text(shell)),
        "enum.Enum": (text("E"), text("A")),
        "string.Formatter": (),
        "numpy.load": (text(canary),),
        "numpy.save": (text(canary), number(1)),
        "numpy.savetxt": (text(canary), b"]"),
        "numpy.fromfile": (text(canary),),
        "numpy.memmap": (text(canary), text("u1"), text("w+"), number(0), pair(number(9))),
        "numpy.vectorize": (named("os.system"),),
        "numpy.ones": (number(2**50),),
        "numpy.testing._private.utils.runstring": (code, b"}"),
        "numpy.distutils.exec_command.exec_command": (text(shell),),
        "numpy.f2py.compile": (code,),
        "numpy._core.multiarray.fromiter": (words, text("O")),
        "torch.load": (text(canary),),
        "torch.serialization.load": (text(canary),),
        "torch.save": (number(1), text(canary)),
        "torch.serialization.save": (number(1), text(canary)),
        "torch.storage._load_from_bytes": (text(python),),
        "torch.hub.load": (text(canary), text("x")),
        "torch.hub.download_url_to_file": (text(f"file://{canary}"), text(canary)),
        "torch.jit.load": (text(canary),),
        "torch._C._jit_compile": (code,),
        "torch.classes.load_library": (text(canary),),
        "torch.ops.load_library": (text(canary),),
        "torch.utils.cpp_extension.load": (text("x"), words),
        "torch.utils.collect_env.run": (text(shell),),
        "torch.utils.checkpoint.checkpoint": (named("os.system"), text(shell)),
        "torch.fx.graph_module.reduce_graph_module": (b"}", code),
        "torch.fx.graph_module._exec_with_source": (code, b"}"),
        "torch.package.PackageImporter": (text(canary),),
        "torch.distributed.rpc.internal._run_function": (text(python),),
        "torch.multiprocessing.spawn": (named("os.system"), pair(text(shell))),
        "torch._dynamo.guards.GuardBuilder": (code,),
        "torch._inductor.codecache.PyCodeCache": (code,),
        "torch.from_file": (text(canary), b"\x88", number(2**40)),
        "torch.UntypedStorage.from_file": (text(canary), b"\x88", number(2**40)),
        "torch.UntypedStorage": (number(2**50),),
        "torch.FloatStorage": (number(2**50),),
        "torch.Tensor": (number(2**50),),
        "torch.FloatTensor": (number(2**50),),
        "torch.empty": (number(2**50),),
        "torch.nn.Module": (),
        "torch.nn.modules.linear.Linear": (number(2**20), number(2**20)),
        "torch.optim.sgd.os.system": (text(shell),),
        "torch._utils._rebuild_device_tensor_from_numpy": (text("x"), text("f4"), text("cpu"), b"\x89"),
        "pip._internal.main": (words,),
        "setuptools.sandbox.run_setup": (text(canary), b"]"),
        "pkg_resources.run_script": (text(canary), text("x")),
        "cloudpickle.cloudpickle._make_function": (code,),
        "dill._dill._create_function": (code,),
        "joblib.load": (text(canary),),
        "IPython.start_ipython": (),
        "numba.core.pickled.x": (),
        "requests.get": (text("http://127.0.0.1"),),
        "somebody.os.system": (text(shell),),
        "somebody.module.__builtins__.eval": (code,),
        "somebody.builtins.exec": (code,),
        "__main__.__loader__.load_module": (text("os"),),
        "__main__.os.system": (text(shell),),
    }


OPCODES: dict[str, Callable[[str, tuple[bytes, ...]], bytes]] = {
    "REDUCE": lambda name, given: named(name) + pair(*given) + b"R",
    "REDUCE, BUILD": lambda name, given: named(name) + pair(*given) + b"R}" + text("x") + number(1) + b"sb",
    "STACK_GLOBAL": lambda name, given: text(name.rpartition(".")[0]) + text(name.rpartition(".")[2]) + b"\x93"
    + pair(*given) + b"R",
    "STACK_GLOBAL, dotted": lambda name, given: text(name.partition(".")[0]) + text(name.partition(".")[2]) + b"\x93"
    + pair(*given) + b"R",
    "INST": lambda name, given: b"(" + b"".join(given) + b"i" + named(name)[1:],
    "OBJ": lambda name, given: b"(" + named(name) + b"".join(given) + b"o",
    "NEWOBJ": lambda name, given: named(name) + pair(*given) + b"\x81",
    "NEWOBJ_EX": lambda name, given: named(name) + pair(*given) + b"}\x92",
    "memoized": lambda name, given: named(name) + b"q\x630h\x63" + pair(*given) + b"R",
    "mentioned": lambda name, _given: named(name),
}  # fmt: skip

_STORAGE = pair(text("storage"), named("torch.FloatStorage"), text("0"), text("cpu"), number(4)) + b"Q"

PLACES: dict[str, Callable[[bytes], bytes]] = {
    "alone": lambda inside: inside,
    "in a list": lambda inside: b"]" + inside + b"a",
    "in a tuple": lambda inside: inside + b"\x85",
    "in a set": lambda inside: b"\x8f(" + inside + b"\x90",
    "in a frozenset": lambda inside: b"(" + inside + b"\x91",
    "in an old set": lambda inside: named("builtins.set") + b"](" + inside + b"e\x85R",
    "as a value": lambda inside: b"}" + text("config") + inside + b"s",
    "as a key": lambda inside: b"}" + inside + number(1) + b"s",
    "in a state dict": lambda inside: b"}" + text("model_state_dict") + named("collections.OrderedDict") + b")R"
    + text("w") + inside + b"ss",
    "in an optimizer": lambda inside: b"}" + text("optimizer_state_dict") + b"}" + text("state") + b"}" + number(0)
    + inside + b"sss",
    "behind a memo": lambda inside: inside + b"q\x6200" [:2] + b"0]h\x62a",
    "thrown away": lambda inside: inside + b"0}",
    "below a mark": lambda inside: b"(" + inside + b"1}",
    "as a state": lambda inside: named("argparse.Namespace") + b")\x81" + inside + b"b",
    "as an argument": lambda inside: named("collections.OrderedDict") + inside + b"\x85R",
    "as a tensor's storage": lambda inside: named("torch._utils._rebuild_tensor_v2")
    + pair(inside, number(0), pair(number(4)), pair(number(1)), b"\x89", b"N") + b"R",
    "as a tensor's hooks": lambda inside: named("torch._utils._rebuild_tensor_v2")
    + pair(_STORAGE, number(0), pair(number(4)), pair(number(1)), b"\x89", inside) + b"R",
    "as a parameter's state": lambda inside: named("torch._utils._rebuild_parameter_with_state")
    + pair(b"N", b"\x88", b"N", inside) + b"R",
    "as what makes a tensor": lambda inside: named("torch._tensor._rebuild_from_type_v2")
    + pair(inside, named("torch.Tensor"), b")", b"}") + b"R",
    "as a persistent id": lambda inside: inside + b"Q",
    "in a NumPy array": lambda inside: named("numpy._core.multiarray._reconstruct")
    + pair(named("numpy.ndarray"), pair(number(0)), b"C\x01b") + b"R"
    + pair(number(1), pair(number(1)), named("numpy.dtype") + pair(text("O8"), b"\x89", b"\x88") + b"R", b"\x89",
           b"]" + inside + b"a") + b"b",
}  # fmt: skip

CORE = ("posix.system", "builtins.eval", "subprocess.Popen", "importlib.import_module", "torch.load", "numpy.load",
        "functools.partial", "runpy.run_path")  # fmt: skip


def running_files(canary: str) -> Iterator[HostileFile]:
    """Yield files that would run something: each target by each way to call it, a few of them everywhere."""
    every, wraps = targets(canary), itertools.cycle((archive, before_1_6))
    places = itertools.cycle(PLACES)
    for name, given in every.items():
        for how, build in OPCODES.items():
            place = next(places)
            pickled = b"\x80\x02" + PLACES[place](build(name, given)) + b"."
            yield HostileFile(f"{name} by {how}, {place}", next(wraps)(pickled))
    for name, how, place in itertools.product(CORE, ("REDUCE", "STACK_GLOBAL", "INST"), PLACES):
        pickled = b"\x80\x02" + PLACES[place](OPCODES[how](name, every[name])) + b"."
        yield HostileFile(f"{name} by {how}, {place}, as torch.save writes", archive(pickled, **{"data/0": bytes(16)}))


# --- pickles that claim too much, or are none -------------------------------------------------------------------------


def tensor(
    offset: bytes, sizes: bytes, strides: bytes, storage: bytes = _STORAGE, how: str = "_rebuild_tensor_v2"
) -> bytes:
    return named(f"torch._utils.{how}") + pair(storage, offset, sizes, strides, b"\x89", b"N") + b"R"


def _sizes(*values: int) -> bytes:
    return pair(*map(number, values))


def claiming_pickles() -> Iterator[tuple[str, bytes]]:
    """Yield pickles of tensors and storages that are not what they claim; the storage 0 has 16 bytes."""
    huge = (4, 5, 2**31, 2**40, 2**62, 2**63, 2**64, 2**200, -1, -(2**40))
    for value in huge:
        yield f"offset {value}", tensor(number(value), _sizes(1), _sizes(1))
        yield f"size {value}", tensor(number(0), _sizes(value), _sizes(1 if value != 4 else 2))
        yield f"stride {value}", tensor(number(0), _sizes(2), _sizes(value))
        yield f"two sizes {value}", tensor(number(0), _sizes(value, value), _sizes(0, 0))
        yield f"no elements of {value}", tensor(number(0), _sizes(0, value, value), _sizes(value, value, 1))
        yield f"stride 0 of {value}", tensor(number(0), _sizes(value + 1), _sizes(0))
        count = pair(text("storage"), named("torch.FloatStorage"), text("0"), text("cpu"), number(value)) + b"Q"
        yield f"a storage of {value}", tensor(number(0), _sizes(1), _sizes(1), count) if value != 4 else count + b"\x85"
        for kind in ("UntypedStorage", "DoubleStorage", "BoolStorage", "QInt8Storage", "ComplexDoubleStorage"):
            module = "torch.storage" if kind == "UntypedStorage" else "torch"
            of = pair(text("storage"), named(f"{module}.{kind}"), text("0"), text("cpu"), number(value)) + b"Q"
            yield f"a {kind} of {value}", tensor(number(0), _sizes(1), _sizes(1), of)
    odd = (b"N", b"]", b"}", text("x"), b"\x88", b"G" + bytes(8), b"C\x01x", _STORAGE, named("torch.float32"))
    for place, value in itertools.product(range(5), odd):
        parts = [_STORAGE, number(0), _sizes(1), _sizes(1), b"\x89", b"N"]
        parts[place] = value
        yield f"argument {place} is {value!r}", named("torch._utils._rebuild_tensor_v2") + pair(*parts) + b"R"
    for value in odd:
        yield f"sizes of {value!r}", tensor(number(0), pair(value), _sizes(1))
        yield f"strides of {value!r}", tensor(number(0), _sizes(1), pair(value))
        yield f"the persistent id {value!r}", value + b"Q"
        yield f"a parameter of {value!r}", named("torch._utils._rebuild_parameter") + pair(value, b"\x88", b"N") + b"R"
        yield (
            f"a tensor's type is {value!r}",
            named("torch._utils._rebuild_tensor_v3")
            + pair(_STORAGE, number(0), _sizes(1), _sizes(1), b"\x89", b"N", value)
            + b"R",
        )
        for place in range(5):
            parts = [text("storage"), named("torch.FloatStorage"), text("0"), text("cpu"), number(4)]
            parts[place] = value
            yield (
                f"part {place} of a storage is {value!r}",
                tensor(number(0), _sizes(1), _sizes(1), pair(*parts) + b"Q"),
            )
    for count in range(5):
        few = (text("storage"), named("torch.FloatStorage"), text("0"), text("cpu"))[:count]
        yield f"a storage of {count} parts", tensor(number(0), _sizes(1), _sizes(1), pair(*few) + b"Q")
        yield (
            f"a tensor of {count} arguments",
            named("torch._utils._rebuild_tensor_v2") + pair(*[number(0)] * count) + b"R",
        )
    for key in ("1", "../../etc/passwd", "/etc/passwd", "", "0\0", "0/", "0" * 10_000, "data/0", "\ud800"):
        of = pair(text("storage"), named("torch.FloatStorage"), text(key), text("cpu"), number(4)) + b"Q"
        yield f"the storage {key[:20]!r}", tensor(number(0), _sizes(4), _sizes(1), of)
    for how in (
        "_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor", "_rebuild_qtensor", "_rebuild_nested_tensor",
        "_rebuild_meta_tensor_no_storage", "_rebuild_wrapper_subclass", "_rebuild_device_tensor_from_cpu_tensor",
        "_rebuild_tensor", "_rebuild_tensor_v3", "_rebuild_parameter_with_state", "_rebuild_xla_tensor",
    ):  # fmt: skip
        yield how, tensor(number(0), _sizes(2**40), _sizes(1), how=how)
    for how in ("_rebuild_from_type_v2", "_rebuild_from_type"):
        inner = named(f"torch._tensor.{how}")
        yield f"{how} of itself", inner + pair(inner, named("torch.Tensor"), b")", b"}") + b"R"
        yield (
            f"{how} of FakeTensor",
            inner
            + pair(
                named("torch._utils._rebuild_tensor_v2"), named("torch._subclasses.fake_tensor.FakeTensor"), b")", b"}"
            )
            + b"R",
        )


def _doubled(times: int, make: Callable[[bytes], bytes]) -> bytes:
    """Return a value that holds twice what holds twice ..."""
    pickled = b"]q\x00"
    for index in range(times):
        pickled += b"0" + make(b"h" + bytes([index])) + b"q" + bytes([index + 1])
    return pickled


def consuming_pickles() -> Iterator[tuple[str, bytes]]:
    """Yield pickles that would take memory, time or the interpreter's stack."""
    laughs: dict[str, Callable[[bytes], bytes]] = {
        "lists": lambda of: b"](" + of * 8 + b"e",
        "tuples": lambda of: b"(" + of * 8 + b"t",
        "dicts": lambda of: b"}(" + b"".join(number(i) + of for i in range(8)) + b"u",
        "sets of tuples": lambda of: b"(" + of * 8 + b"t",
        "lists in lists of lists": lambda of: b"]((" + of * 3 + b"l" + b"(" + of * 3 + b"le",
        "Namespaces": lambda of: named("argparse.Namespace") + b")\x81}(" + b"".join(
            text(f"a{i}") + of for i in range(4)) + b"ub",
    }  # fmt: skip
    for name, make in laughs.items():
        for times in (10, 40, 60, 250):
            yield f"a billion laughs of {name}, {times} times", _doubled(times, make)
        yield f"a billion laughs of {name} as a key", b"}" + _doubled(30, make) + number(1) + b"s"
        yield f"a billion laughs of {name} in a set", b"\x8f(" + _doubled(30, make) + b"\x90"
        yield f"a billion laughs of {name} as the epoch", b"}" + text("epoch") + _doubled(40, make) + b"s"
    wholes = b"}" + text("model_state_dict") + b"}s" + text("epoch") + _doubled(40, laughs["lists"]) + b"s"
    yield "a checkpoint whose epoch is a billion laughs", wholes
    for depth in (100, 1000, 10_000, 1_000_000):
        yield f"lists {depth} deep", b"]" * depth + b"a" * (depth - 1)
        yield f"tuples {depth} deep", b")" + b"\x85" * depth
        yield f"tuples {depth} deep as a key", b"})" + b"\x85" * depth + number(1) + b"s"
        yield f"tuples {depth} deep in a set", b"\x8f()" + b"\x85" * depth + b"\x90"
        yield f"marks {depth} deep", b"(" * depth
        yield f"marks and tuples {depth} deep", b"(" * depth + b"t" * depth
        yield f"{depth} objects deep", named("a.B") + b"q\x01)\x81" + b"h\x01)\x81" * depth + b"b" * depth
        yield f"{depth} makers deep", named("copyreg.__newobj__") + b"q\x010" + b"(h\x01" * depth + b"t" * depth
        yield f"{depth} containers by size", b"(" + b"]" * depth + b"t"
        yield f"{depth} sets", b"(" + b"\x8f" * depth + b"l"
        yield (
            f"{depth} times a memo",
            b"".join(b"Nr" + struct.pack("<I", i) + b"0" for i in range(min(depth, 10**5))) + b"N",
        )
        yield f"text {depth} times", b"(" + (text("x" * 10)) * depth + b"l"
        yield (
            f"one text of {depth} encoded 300 times",
            text("x" * depth)
            + b"q\x010("
            + (named("_codecs.encode") + b"h\x01" + text("latin1") + b"\x86R") * 300
            + b"l",
        )
        yield (
            f"one list of {depth} in 300 sets",
            b"(" + b"K\x01" * depth + b"lq\x010(" + (named("builtins.set") + b"h\x01\x85R") * 300 + b"l",
        )
        yield (
            f"keys whose hashes are one, {depth}",
            b"}(" + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(1, min(depth, 50_000))) + b"u",
        )
    for length in (2**16, 2**31 - 1, 2**32 - 1):
        for opcode in (b"X", b"B", b"T", b"\x8b"):
            yield f"{opcode!r} of {length} bytes", opcode + struct.pack("<I", length)
    for length in (2**16, 2**31, 2**40, 2**60, 2**63, 2**64 - 1):
        for opcode in (b"\x8d", b"\x8e", b"\x96", b"\x95"):
            yield f"{opcode!r} of {length} bytes", opcode + struct.pack("<Q", length)
    for length in (255, 1024, 1025, 100_000):
        yield f"a whole number of {length} bytes", b"\x8b" + struct.pack("<I", length) + b"\x7f" * length
        yield f"a whole number of {length} bytes as the epoch", b"}(" + text("epoch") + b"\x8b" + struct.pack(
            "<I", length) + b"\x7f" * length + text("model_state_dict") + b"}u"  # fmt: skip
    array = (
        named("numpy._core.multiarray._reconstruct") + pair(named("numpy.ndarray"), pair(number(0)), b"C\x01b") + b"R"
    )
    for size, kind in itertools.product(
        (0, 1, 2**20, 2**40, 2**62, 2**64, -1), ("f4", "f8", "b1", "O8", "U8", "V8", "c16")
    ):
        dtype = named("numpy.dtype") + pair(text(kind), b"\x89", b"\x88") + b"R"
        yield (
            f"a NumPy array of {size} {kind}",
            array + pair(number(1), _sizes(size), dtype, b"\x89", b"C\x04abcd") + b"b",
        )
        yield f"a NumPy scalar {kind}, {size}", named("numpy._core.multiarray.scalar") + dtype + number(size) + b"\x86R"
    for name in ("datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta", "datetime.timezone",
                 "pathlib.PosixPath", "uuid.UUID", "decimal.Decimal", "fractions.Fraction", "builtins.complex",
                 "builtins.slice", "builtins.range", "builtins.bytearray", "builtins.bytes", "builtins.set",
                 "collections.OrderedDict", "collections.Counter", "collections.deque", "collections.defaultdict",
                 "torch.Size", "torch.device", "torch.torch_version.TorchVersion", "_codecs.encode",
                 "copyreg.__newobj__", "copyreg._reconstructor", "copyreg.__newobj_ex__", "numpy.dtype",
                 "torch.serialization._get_layout", "types.SimpleNamespace"):  # fmt: skip
        for given in (b")", b"N\x85", b"C\x0a" + b"\xff" * 10 + b"\x85", pair(*[number(2**62)] * 3),
                      pair(text("x"), b"]"), b"]\x85", pair(named("a.B"), named("a.B"), b"}")):  # fmt: skip
            yield f"{name} of {given[:12]!r}", named(name) + given + b"R"


def broken_pickles() -> Iterator[tuple[str, bytes]]:
    """Yield every opcode where it has nothing to work on, and few bytes behind it."""
    for opcode in range(256):
        yield f"the opcode {bytes([opcode])!r} alone", bytes([opcode])
    for opcode in range(256):
        yield (
            f"the opcode {bytes([opcode])!r} on some values",
            b"(N]}K\x01X\x01\x00\x00\x00a" + bytes([opcode]) + bytes(9),
        )


# --- archives ---------------------------------------------------------------------------------------------------------

GOOD = {"epoch": 3, "model_state_dict": {"w": torch.arange(54.0), "b": torch.ones(2)}, "config": {"x": [1, 2]}}


def lying_archives() -> Iterator[HostileFile]:
    """Yield archives each field of whose records lies."""
    good = saved(GOOD)
    directory = good.rindex(b"PK\x01\x02", 0, good.rindex(b"archive/data/0"))
    fields = {4: 2, 6: 2, 8: 2, 10: 2, 16: 4, 20: 4, 24: 4, 28: 2, 30: 2, 32: 2, 34: 2, 36: 2, 38: 4, 42: 4}
    local = good.index(b"PK\x03\x04", good.index(b"archive/byteorder"))
    local_fields = {4: 2, 6: 2, 8: 2, 14: 4, 18: 4, 22: 4, 26: 2, 28: 2}
    end = good.rindex(b"PK\x05\x06")
    end_fields = {4: 2, 6: 2, 8: 2, 10: 2, 12: 4, 16: 4, 20: 2}
    wide = good.rindex(b"PK\x06\x06")
    wide_fields = {4: 8, 16: 4, 20: 4, 24: 8, 32: 8, 40: 8, 48: 8}
    for where, base, widths in (
        ("directory", directory, fields),
        ("header", local, local_fields),
        ("end", end, end_fields),
        ("zip64", wide, wide_fields),
    ):
        for offset, width in widths.items():
            for value in (0, 1, 8, 0xFFFF, 2**31, 2 ** (8 * width) - 1):
                data = bytearray(good)
                data[base + offset : base + offset + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")
                if where == "zip64":  # which is only looked at where the end says so
                    data[end + 8 : end + 20] = b"\xff" * 12
                yield HostileFile(f"{where}, field {offset} is {value}", bytes(data))
    for begin in ("end", "zip64"):
        data = bytearray(good)
        data[end + 8 : end + 20] = b"\xff" * 12
        if begin == "end":
            data[wide : wide + 4] = b"PK\0\0"
        yield HostileFile(f"only {begin} says where the directory is", bytes(data))


def odd_archives() -> Iterator[HostileFile]:
    pickled = b"\x80\x02" + tensor(number(0), _sizes(4), _sizes(1)) + b"."
    plain = {"archive/data.pkl": pickled, "archive/data/0": bytes(16), "archive/version": b"3"}

    def made(records: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
        buffer = io.BytesIO()
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w", method) as file:  # of equal names
            for name, data in records:
                file.writestr(zipfile.ZipInfo(name), data, method)
            file.comment = comment
        return buffer.getvalue()

    items = list(plain.items())
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield HostileFile(f"compressed by {method}", made(items, method))
        yield HostileFile(f"a bomb by {method}", made([*items, ("archive/data/1", bytes(2**25))], method))
    for name in items:
        yield HostileFile(f"{name[0]} twice", made([*items, name]))
        yield HostileFile(f"without {name[0]}", made([item for item in items if item is not name]))
    for name in (
        "../../x", "/etc/passwd", "archive/../../x", "archive/data/../0", "C:\\x", "archive\\data.pkl", "a" * 60_000,
        "", "archive/", "archive/data/0/", "archive/data/0/x", "\0", "archive/data.pkl\0.txt", "other/data.pkl",
        "data.pkl",
        "archive/code/__torch__.py", "archive/constants.pkl", "archive/.data/serialization_id", "archive/byteorder",
        "archive/deep/data.pkl", "ARCHIVE/DATA.PKL", "archive/data/00", "archive/data/-1", "é/data.pkl",
    ):  # fmt: skip
        yield HostileFile(f"a record {name[:30]!r}", made([*items, (name, b"x" * 4)]))
        yield HostileFile(f"only a record {name[:30]!r}", made([(name, pickled)]))
    for order in (b"big", b"", b"LITTLE", b"little\n", b"\xff\xfe", b"little" * 1000):
        yield HostileFile(f"byte order {order[:10]!r}", made([*items, ("archive/byteorder", order)]))
    yield HostileFile("10,000 records", made([*items, *((f"archive/data/{i}", b"") for i in range(1, 10_000))]))
    yield HostileFile("a comment", made(items, comment=b"PK\x05\x06" + bytes(60)))
    yield HostileFile("another archive in the comment", made(items, comment=made(items)))
    yield HostileFile("something before it", b"#!/bin/sh\n" + made(items))
    yield HostileFile("something behind it", made(items) + b"\0" * 100)
    yield HostileFile("two of them", made(items) + made(items))
    yield HostileFile("storages that are truth values", archive(b"\x80\x02" + tensor(
        number(0), _sizes(4), _sizes(1),
        pair(text("storage"), named("torch.BoolStorage"), text("0"), text("cpu"), number(4)) + b"Q",
    ) + b".", **{"data/0": b"\0\1\2\3"}))  # fmt: skip
    shared = bytearray(made(items))  # a directory that points 50 times at the same bytes
    at = shared.rindex(b"PK\x05\x06")
    begin = int.from_bytes(shared[at + 16 : at + 20], "little")
    entries = bytes(shared[begin:at])
    for times in (2, 50):
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 3 * times, 3 * times, len(entries) * times, begin, 0)
        yield HostileFile(f"a directory {times} times", bytes(shared[:begin]) + entries * times + end)
    claims = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65_534, 65_534, 46 * 65_534, 0, 0)
    yield HostileFile("65,534 records claimed", bytes(1000) + claims)
    many = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0) + b"%08d" % i
        for i in range(60_000)
    )
    yield HostileFile("60,000 records in one place", many + struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, 60_000, 60_000, len(many), 0, 0))  # fmt: skip


# --- other formats ----------------------------------------------------------------------------------------------------


def old_files() -> Iterator[HostileFile]:
    """Yield files as torch wrote them before 1.6, that lie, and formats that are older still."""
    good = saved(GOOD, _use_new_zipfile_serialization=False)
    for cut in range(0, len(good), max(1, len(good) // 60)):
        yield HostileFile(f"before 1.6, cut at {cut}", good[:cut])
    storages = len(good) - (54 + 2) * 4 - 2 * 8
    for value in (0, 1, 3, 2**20, 2**40, 2**62, 2**64 - 1):
        data = good[:storages] + struct.pack("<Q", value) + good[storages + 8 :]
        yield HostileFile(f"before 1.6, a storage of {value}", data)
    for old, new in (
        (b"\xe9\x03", b"\xe8\x03"),
        (b"little_endian", b"little_endiam"),
        (b"X\x05\x00\x00\x00epoch", b"]"),
    ):
        yield HostileFile(f"before 1.6, {new!r}", good.replace(old, new, 1))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            file.addfile(tarfile.TarInfo(name))
    yield HostileFile("a tar of torch 0.1", buffer.getvalue())
    script = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # torch.jit is deprecated
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    yield HostileFile("TorchScript", script.getvalue())
    for name, data in {
        "nothing": b"", "a byte": b"P", "text": b"weights\n" * 100, "HTML": b"<!doctype html><html></html>",
        "YAML": b"!!python/object/apply:os.system ['x']\n", "ELF": b"\x7fELF" + bytes(200), "PNG": b"\x89PNG\r\n\x1a\n",
        "gzip": b"\x1f\x8b\x08" + bytes(50), "7z": b"7z\xbc\xaf\x27\x1c", "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "NumPy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}", "zeros": bytes(10_000), "ones": b"\xff" * 10_000,
        "a bare pickle": pickle.dumps({"a": 1}), "a bare pickle of protocol 0": pickle.dumps({"a": 1}, protocol=0),
        "a link of git": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "a zip of nothing": b"PK\x05\x06" + bytes(18), "an end alone": b"PK\x05\x06" + b"\xff" * 18,
    }.items():  # fmt: skip
        yield HostileFile(name, data)


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    words = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(words) if length is None else length) + words + data


def lying_safetensors() -> Iterator[HostileFile]:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for key, values in {
        "dtype": ["F33", "", None, 5, ["F32"], "BOOL", "F64", "I8", "F8_E4M3", "f32"],
        "shape": [[], [1], [3], [-2], [2.0], ["2"], [True], None, 2, [2**62], [2**40, 2**40], [0], [1] * 40,
                  [[2]], [-1, -2]],
        "data_offsets": [[], [0], [0, 8, 8], [8, 0], [0, 7], [0, 9], [1, 9], [-8, 0], [0, 2**62],
                         [2**62, 2**62 + 8], None, [0.0, 8.0], ["0", "8"], [True, 8], [0, 10**400]],
        "more": [1],
    }.items():  # fmt: skip
        for value in values:
            yield HostileFile(
                f"safetensors, {key} {str(value)[:30]}", safetensors({"t": {**entry, key: value}}, bytes(8))
            )
    for length in (0, 1, 2**20, 2**31, 2**62, 2**64 - 1):
        yield HostileFile(f"safetensors, a header of {length}", safetensors({"t": entry}, bytes(8), length))
    for words in (b"{", b"{}", b"[]", b"{}{}", b"{\"a\":", b"{\"a\":" * 100_000, b"{\"t\": NaN}",
                  b"{\"a\":1,\"a\":1}", b"{\xff}",
                  b"{\"__metadata__\": []}", b"{\"__metadata__\": {\"a\": 1}}",
                  b"{ \"t\": " + b"1" * 10_000 + b"}"):  # fmt: skip
        yield HostileFile(f"safetensors, {words[:20]!r}", safetensors(words, bytes(8)))
    two = {"a": entry, "b": {**entry, "data_offsets": [4, 12]}}
    yield HostileFile("safetensors, overlapping", safetensors(two, bytes(12)))
    yield HostileFile("safetensors, a gap", safetensors({**two, "b": {**entry, "data_offsets": [9, 17]}}, bytes(17)))


def hostile_files(canary: str) -> Iterator[HostileFile]:
    """Yield every hostile file; `canary` is a path that nothing may come to be at."""
    yield from running_files(canary)
    for name, pickled in itertools.chain(claiming_pickles(), consuming_pickles()):
        yield HostileFile(name, archive(b"\x80\x02" + pickled + b".", **{"data/0": bytes(16)}))
    for name, pickled in broken_pickles():
        yield HostileFile(name, archive(pickled, **{"data/0": bytes(16)}))
    yield from lying_archives()
    yield from odd_archives()
    yield from old_files()
    yield from lying_safetensors()


# --- by chance --------------------------------------------------------------------------------------------------------


def originals(canary: str) -> list[bytes]:
    """Return what is mutated: every kind of good content in both formats, and some bad ones."""
    good = [
        saved(kind.saved(), **how) for kind in KINDS.values() for how in ({}, {"_use_new_zipfile_serialization": False})
    ]
    tensors = {"t": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"a": "b"}}
    bad = [file.data for file in itertools.islice(running_files(canary), 0, 2000, 40)]
    return [*good, *[safetensors(tensors, bytes(24))] * 8, *bad]


def mutated_files(canary: str, seed: int, first: int, count: int) -> Iterator[HostileFile]:
    """Yield `count` damaged files from the `first` on; each follows from the seed and its number alone."""
    whole = originals(canary)
    pickles = [pickled for pickled in map(_pickle_in, whole) if pickled is not None]
    for index in range(first, first + count):
        draw = random.Random(f"{seed} {index}")
        if draw.random() < 0.5:
            pickled = draw.choice(pickles)
            for _ in range(draw.choice((1, 1, 2, 4, 16))):
                pickled = _mutated(pickled, draw, pickles)
            records = {f"data/{i}": bytes(4 * draw.choice((0, 1, 4, 6, 24))) for i in range(4)}
            yield HostileFile(f"mutated pickle {index}", archive(pickled, **records))
        else:
            data = draw.choice(whole)
            for _ in range(draw.choice((1, 1, 2, 4, 16))):
                data = _mutated(data, draw, whole)
            yield HostileFile(f"mutated file {index}", data)


def _pickle_in(data: bytes) -> bytes | None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            return file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
    except (zipfile.BadZipFile, StopIteration, zlib.error):
        return None


def _mutated(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Return the bytes, changed at one place."""
    at = draw.randrange(len(data) + 1)
    until = min(len(data), at + draw.choice((1, 1, 2, 8, 64)))
    what = draw.choice(("bit", "byte", "number", "deleted", "doubled", "spliced", "cut", "opcode", "swapped"))
    if what == "bit" and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    if what == "byte":
        return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
    if what == "number":
        value = draw.choice((0, 1, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1))
        width = draw.choice((1, 2, 4, 8))
        return data[:at] + (value % 2 ** (8 * width)).to_bytes(width, "little") + data[at + width :]
    if what == "deleted":
        return data[:at] + data[until:]
    if what == "doubled":
        return data[:until] + data[at:until] * draw.choice((1, 2, 50)) + data[until:]
    if what == "spliced":
        other = draw.choice(others)
        begin = draw.randrange(len(other) + 1)
        return data[:at] + other[begin : begin + draw.choice((4, 16, 200))] + data[at:]
    if what == "cut":
        return data[:at] if draw.random() < 0.2 else data
    if what == "opcode":
        opcodes = b"(.012NRabcdehijlopqrstu}]K\x81\x82\x85\x86\x87\x88\x89\x8a\x8c\x8f\x90\x91\x92\x93\x94Q"
        return data[:at] + bytes([draw.choice(opcodes)]) + data[at + draw.randrange(2) :]
    middle = (at + until) // 2
    return data[:at] + data[middle:until] + data[at:middle] + data[until:]
