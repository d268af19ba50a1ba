"""What people keep in checkpoints: kinds of content, and what loading them must give. Everything here is legitimate.

The modules of "somebody's project" exist only while their objects are pickled; where the files are read there are none.
"""

import argparse
import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import fractions
import io
import pathlib
import sys
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Kind:
    """A kind of content.

    Attributes:
        saved: makes what is saved.
        loaded: makes what must come back; None where it is the same.
    """

    saved: Callable[[], object]
    loaded: Callable[[], object] | None = None

    def expected(self) -> object:
        return (self.loaded or self.saved)()


# --- somebody's project -----------------------------------------------------------------------------------------------

_MODULES: dict[str, types.ModuleType] = {}


def somebodys(module: str, name: str, *bases: type, **attributes: object) -> type:
    """Return a class of a module that nobody else has."""
    made = type(name, bases, {"__module__": module, "__qualname__": name, **attributes})
    setattr(_module(module), name, made)
    return made


def _module(name: str) -> types.ModuleType:
    """Return a module of somebody's, its package made too."""
    package = name.rpartition(".")[0]
    if package:
        _module(package).__path__ = []  # type: ignore[attr-defined]  # which makes it a package
    return _MODULES.setdefault(name, types.ModuleType(name))


@contextlib.contextmanager
def somebodys_modules() -> Iterator[None]:
    """Let Python find them, as pickling needs."""
    sys.modules.update(_MODULES)
    try:
        yield
    finally:
        for name in _MODULES:
            del sys.modules[name]


def _with_state(made: type, state: Mapping[str, object]) -> object:
    instance = made.__new__(made)
    instance.__dict__.update(state)
    return instance


Settings = somebodys("my_project.settings", "Settings")
Color = enum.Enum("Color", {"RED": 1, "BLUE": "b"}, module="my_project.settings")
_module("my_project.settings").Color = Color  # type: ignore[attr-defined]
Data = dataclasses.make_dataclass("Data", ["lr", "layers"], namespace={"__module__": "my_project.settings"})
_module("my_project.settings").Data = Data  # type: ignore[attr-defined]
AttrDict = somebodys("easydict", "AttrDict", dict)
AttrList = somebodys("easydict", "AttrList", list)
Words = somebodys("my_project.settings", "Words", str)
Point = collections.namedtuple("Point", ["x", "y"], module="my_project.settings")  # type: ignore[misc]
_module("my_project.settings").Point = Point  # type: ignore[attr-defined]
Script = somebodys("__mp_main__", "Arguments")

# OmegaConf's classes, as far as a pickle shows them: a node keeps its value in _val, a container in _content, and each
# knows its parent.
_Node = somebodys("omegaconf.nodes", "AnyNode")
_Dict = somebodys("omegaconf.dictconfig", "DictConfig")
_List = somebodys("omegaconf.listconfig", "ListConfig")
_Metadata = somebodys("omegaconf.base", "ContainerMetadata")


def omega(value: object, parent: object = None) -> object:
    kind = _Dict if isinstance(value, dict) else _List if isinstance(value, list) else _Node
    made = kind.__new__(kind)
    metadata = _with_state(
        _Metadata, {"ref_type": Any, "object_type": dict, "flags": {}, "resolver_cache": collections.defaultdict(dict)}
    )
    made.__dict__.update({"_metadata": metadata, "_parent": parent})
    if isinstance(value, dict):
        made.__dict__["_content"] = {key: omega(inside, made) for key, inside in value.items()}
    elif isinstance(value, list):
        made.__dict__["_content"] = [omega(inside, made) for inside in value]
    else:
        made.__dict__["_val"] = value
    return made


# --- networks and what training keeps ---------------------------------------------------------------------------------


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )


def _trained(kind: Callable[..., torch.optim.Optimizer], **settings: Any) -> torch.optim.Optimizer:
    model = network()
    optimizer = kind(model.parameters(), lr=0.1, **settings)
    model(torch.ones(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    return optimizer


def _shared() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0)
    return {"base": base, "view": base.view(4, 6), "column": base.view(4, 6)[:, 2], "end": base[20:]}


def _tied() -> dict[str, torch.Tensor]:
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    return {"encoder.weight": weight, "decoder.weight": weight}


def _cycle() -> list[object]:
    cycle: list[object] = [torch.ones(2)]
    cycle.append({"again": cycle, "pair": (cycle,)})
    return cycle


def _averaged() -> object:
    model = network()
    return torch.optim.swa_utils.AveragedModel(model).state_dict()


_DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
_SCALARS = (
    np.float16(0.1), np.float32(0.1), np.float64(0.1), np.float64(-0.0), np.bool_(True), np.int8(-1), np.int16(-300),
    np.int32(-70000), np.int64(-(2**40)), np.uint8(255), np.uint16(65535), np.uint32(2**32 - 1), np.uint64(2**64 - 1),
    np.complex64(1 + 2j), np.complex128(1 - 2j),
)  # fmt: skip
_UTC = datetime.UTC
_EAST = datetime.timezone(datetime.timedelta(hours=5, minutes=45))
_TIME = datetime.datetime(2026, 11, 25, 19, 2, 9, 123456)
_SETTINGS = {"lr": 0.1, "layers": [1, 2], "name": "x", "nested": {"deep": [None, True]}}

KINDS: dict[str, Kind] = {
    # tensors
    **{
        f"a tensor of {str(dtype).removeprefix('torch.')}": Kind(
            lambda dtype=dtype: {"w": torch.tensor([[0, 1, 1], [1, 0, 0]]).to(dtype)}  # type: ignore[misc]
        )
        for dtype in _DTYPES
    },
    "an empty tensor": Kind(lambda: {"w": torch.empty(0, 3), "b": torch.empty(0)}),
    "a scalar tensor": Kind(lambda: {"num_batches_tracked": torch.tensor(7), "t": torch.tensor(1.5)}),
    "channels last": Kind(lambda: torch.arange(48.0).view(2, 3, 2, 4).to(memory_format=torch.channels_last)),
    "transposed": Kind(lambda: torch.arange(6.0).view(2, 3).t()),
    "views of one storage": Kind(_shared),
    "tied weights": Kind(_tied),
    "a parameter": Kind(lambda: torch.nn.Parameter(torch.ones(2))),
    "a frozen parameter": Kind(lambda: torch.nn.Parameter(torch.ones(2), requires_grad=False)),
    "a tensor that wants a gradient": Kind(lambda: torch.ones(2, requires_grad=True)),
    "a conjugated tensor": Kind(lambda: torch.tensor([1 + 2j]).conj()),
    "a negated view": Kind(lambda: torch.tensor([1 + 2j]).conj().imag),
    "special floats": Kind(lambda: torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])),
    "a storage by itself": Kind(
        lambda: torch.arange(3, dtype=torch.uint8).untyped_storage(), lambda: torch.arange(3).byte()
    ),
    # state dicts and checkpoints
    "a state dict alone": Kind(lambda: network().state_dict()),
    "a state dict as a dict": Kind(lambda: dict(network().state_dict())),
    "prefixes of wrappers": Kind(lambda: {f"module._orig_mod.{k}": v for k, v in network().state_dict().items()}),
    "a moving average": Kind(_averaged),
    "SGD": Kind(lambda: _trained(torch.optim.SGD, momentum=0.9).state_dict()),
    "Adam": Kind(lambda: _trained(torch.optim.Adam).state_dict()),
    "AdamW with amsgrad": Kind(lambda: _trained(torch.optim.AdamW, amsgrad=True).state_dict()),
    "schedules": Kind(
        lambda: [
            torch.optim.lr_scheduler.CosineAnnealingLR(_trained(torch.optim.SGD), 5).state_dict(),
            torch.optim.lr_scheduler.MultiStepLR(_trained(torch.optim.SGD), [2, 4]).state_dict(),
        ],
        lambda: [
            torch.optim.lr_scheduler.CosineAnnealingLR(_trained(torch.optim.SGD), 5).state_dict(),
            {
                **torch.optim.lr_scheduler.MultiStepLR(_trained(torch.optim.SGD), [2, 4]).state_dict(),
                "milestones": {2: 1, 4: 1},
            },
        ],
    ),
    "a gradient scaler's state": Kind(lambda: {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0}),
    "a gradient scaler": Kind(
        lambda: torch.amp.GradScaler("cpu", enabled=False), lambda: {"_device": "cpu", "_enabled": False}
    ),
    "random states": Kind(
        lambda: {"torch": torch.Generator().manual_seed(1).get_state(), "numpy": np.random.RandomState(1).get_state()},
        lambda: {
            "torch": torch.Generator().manual_seed(1).get_state(),
            "numpy": tuple(
                torch.from_numpy(part) if isinstance(part, np.ndarray) else part
                for part in np.random.RandomState(1).get_state()  # type: ignore[union-attr]
            ),
        },
    ),
    # numbers, text and containers
    "plain values": Kind(
        lambda: {"none": None, "yes": True, "n": -(2**31), "big": 2**200, "f": 0.1, "inf": float("-inf"), "s": "x"}
    ),
    "names in any script": Kind(lambda: {"Genauigkeit (größte)": 1, "准确率": 2, "🎯": 3, "": 4}),
    "bytes": Kind(lambda: {"b": b"\x00\xff" * 200, "empty": b"", "array": bytearray(b"\x80abc")}),
    "complex numbers": Kind(lambda: [1j, complex(0.5, -0.0)]),
    "sets": Kind(lambda: {"s": {1, "a", (2, 3)}, "f": frozenset({4})}),
    "tuples and lists": Kind(lambda: {"t": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), "l": [[], [[1]]]}),
    "long lists": Kind(lambda: {"losses": [i / 7 for i in range(3000)], "n": list(range(3000))}),
    "slices and ranges": Kind(lambda: {"s": slice(1, None, 2), "r": range(2, 10, 3)}),
    "keys of all kinds": Kind(lambda: {1: "a", (1, "b"): 2, None: 3, 0.5: 4, True and "t": 5, b"k": 6, -7: 8}),
    "something that holds itself": Kind(_cycle),
    "OrderedDict": Kind(lambda: collections.OrderedDict([("b", 1), ("a", [2])])),
    "defaultdict": Kind(lambda: collections.defaultdict(list, {"a": [1]}), lambda: {"a": [1]}),
    "Counter": Kind(lambda: collections.Counter("abca"), lambda: {"a": 2, "b": 1, "c": 1}),
    "deque": Kind(lambda: collections.deque([1, 2, 3], maxlen=5), lambda: [1, 2, 3]),
    "UserDict": Kind(lambda: collections.UserDict({"a": 1}), lambda: {"a": 1}),
    # torch's own values
    "torch values": Kind(
        lambda: {"size": torch.Size([2, 3]), "dtype": torch.bfloat16, "device": torch.device("cuda", 0)}
    ),
    "the version of torch": Kind(lambda: {"v": torch.__version__}, lambda: {"v": str(torch.__version__)}),
    # NumPy
    "NumPy numbers": Kind(lambda: {"val_acc": list(_SCALARS)}, lambda: {"val_acc": [s.item() for s in _SCALARS]}),
    "NumPy arrays": Kind(
        lambda: [np.arange(6.0).reshape(2, 3), np.arange(6).reshape(2, 3).T, np.array([], "f4"), np.array(3)],
        lambda: [
            torch.arange(6.0, dtype=torch.float64).view(2, 3),
            torch.arange(6).view(2, 3).T.contiguous(),
            torch.tensor([], dtype=torch.float32),
            torch.tensor(3),
        ],
    ),
    "big-endian arrays": Kind(lambda: np.array([1, 2], ">i4"), lambda: torch.tensor([1, 2], dtype=torch.int32)),
    "NumPy types": Kind(lambda: {"t": np.dtype("float32")}, lambda: {"t": "float32"}),
    # configurations
    "a plain config": Kind(lambda: {"config": _SETTINGS}),
    "Namespace": Kind(
        lambda: {"args": argparse.Namespace(lr=0.1, inner=argparse.Namespace(a=[1]))},
        lambda: {"args": {"lr": 0.1, "inner": {"a": [1]}}},
    ),
    "SimpleNamespace": Kind(lambda: types.SimpleNamespace(a=1, b="c"), lambda: {"a": 1, "b": "c"}),
    "OmegaConf": Kind(lambda: {"config": omega(_SETTINGS)}, lambda: {"config": _SETTINGS}),
    "a list of OmegaConf's": Kind(lambda: omega([1, {"a": ["b"]}]), lambda: [1, {"a": ["b"]}]),
    "a dataclass": Kind(lambda: Data(0.1, [1, 2]), lambda: {"lr": 0.1, "layers": [1, 2]}),  # type: ignore[call-arg]
    "somebody's settings": Kind(lambda: _with_state(Settings, _SETTINGS), lambda: _SETTINGS),
    "a script's arguments": Kind(lambda: _with_state(Script, {"lr": 1}), lambda: {"lr": 1}),
    "a dict of somebody's": Kind(lambda: AttrDict({"a": AttrDict(b=1)}), lambda: {"a": {"b": 1}}),
    "a list of somebody's": Kind(lambda: AttrList([1, 2]), lambda: [1, 2]),
    "text of somebody's": Kind(lambda: {"w": Words("abc")}, lambda: {"w": "abc"}),
    "members of an Enum": Kind(lambda: [Color.RED, Color.BLUE], lambda: [1, "b"]),
    # what else lies around
    "paths": Kind(
        lambda: [
            pathlib.PurePosixPath("/a/b c"),
            pathlib.PureWindowsPath("C:\\a\\b"),
            pathlib.Path("x/y"),
            pathlib.Path(),
        ],
        lambda: ["/a/b c", "C:\\a\\b", "x/y", "."],
    ),
    "a path as a key": Kind(lambda: {pathlib.Path("a"): 1}, lambda: {"a": 1}),
    "dates and times": Kind(
        lambda: [_TIME, _TIME.replace(tzinfo=_UTC), _TIME.replace(tzinfo=_EAST), _TIME.date(), _TIME.time()],
        lambda: [
            "2026-11-25T19:02:09.123456",
            "2026-11-25T19:02:09.123456+00:00",
            "2026-11-25T19:02:09.123456+05:45",
            "2026-11-25",
            "19:02:09.123456",
        ],
    ),
    "spans and zones": Kind(
        lambda: [datetime.timedelta(days=-1, seconds=2, microseconds=3), _UTC, _EAST],
        lambda: [-86397.999997, "UTC", "UTC+05:45"],
    ),
    "exact numbers": Kind(lambda: [decimal.Decimal("0.10"), fractions.Fraction(1, 3)], lambda: ["0.10", "1/3"]),
    "a UUID": Kind(lambda: uuid.UUID(int=5), lambda: "00000000-0000-0000-0000-000000000005"),
}


def saved(content: object, **how: Any) -> bytes:
    """Return what torch.save writes."""
    buffer = io.BytesIO()
    with somebodys_modules():
        torch.save(content, buffer, **how)
    return buffer.getvalue()


def same(one: object, other: object, seen: frozenset[int] = frozenset()) -> bool:
    """Return whether two contents are alike in types, values, order and every bit of every tensor."""
    if id(one) in seen:
        return True  # once around a cycle
    seen |= {id(one)}
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return _same_tensor(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return len(one) == len(other) and all(
            same(a, b, seen) and same(one[a], other[b], seen) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b, seen) for a, b in zip(one, other, strict=True))
    return one == other if isinstance(one, set | frozenset) else repr(one) == repr(other)


def _same_tensor(one: torch.Tensor, other: torch.Tensor) -> bool:
    facts = [
        (t.dtype, t.shape, t.numel() and t.stride(), t.requires_grad, t.is_conj(), t.is_neg()) for t in (one, other)
    ]
    return facts[0] == facts[1] and _bits(one) == _bits(other)


def _bits(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().reshape(-1).clone(memory_format=torch.contiguous_format)
    return bytes(plain.view(torch.uint8).tolist()) if plain.numel() else b""
