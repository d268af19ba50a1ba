"""What training scripts leave in checkpoints beside weights -> plain values, from nothing but the notes taken of it.

Numbers and arrays of NumPy, paths, dates, versions: each is read from the arguments that its class would have been
given, all of the right kind and size, or refused. None of the classes is imported on a file's behalf.
"""

import datetime
import math
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Final, TypeGuard

import numpy as np
import torch

from qbw_eval.checkpoints.pickle_reader import Call, Name

MAX_DIMENSIONS: Final = 64
_MAX_ELEMENTS: Final = 2**48
"""Sizes multiplied, those of 0 left out: what they must stay below for torch's strides to be right."""

_MAX_TEXT = 4096
"""Characters of a path, or of a number in words."""


class ContentError(ValueError):
    """What is wrong with something in a checkpoint, without its place."""


@dataclass(frozen=True, eq=False)
class Foreign:
    """Something of a class that is not known here: its name, and nothing that could be mistaken for a value."""

    name: str


def sizes_of(value: object) -> tuple[int, ...] | None:
    """Return the sizes of a tensor or array, or None where they cannot be any."""
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMENSIONS:
        return None
    if not all(is_size(item) for item in value) or math.prod(max(1, item) for item in value) > _MAX_ELEMENTS:
        return None
    return tuple(value)


def is_size(value: object) -> TypeGuard[int]:
    """Return whether this is a whole number from 0 that no product of two overflows."""
    return type(value) is int and 0 <= value <= _MAX_ELEMENTS  # True is no 1


def bytes_of(value: object) -> bytes:
    """Return bytes, which protocol 2 writes as text that is to be encoded.

    Raises:
        ContentError: it is something else.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, Call) and value.name == "builtins.bytes" and value.arguments == ():
        return b""
    if isinstance(value, Call) and value.name == "_codecs.encode":
        match value.arguments:
            case (str() as text, "latin1" | "latin-1"):
                value = text
    if isinstance(value, str):
        try:
            return value.encode("latin-1")
        except UnicodeEncodeError:
            pass
    raise ContentError("expected bytes, found something else")


# --- NumPy ------------------------------------------------------------------------------------------------------------

_NUMBERS: Final = {"f2": "e", "f4": "f", "f8": "d", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q"}
_NUMBERS.update({"u1": "B", "u2": "H", "u4": "I", "u8": "Q", "c8": "ff", "c16": "dd"})
"""NumPy's types of numbers -> struct's formats, without the order of bytes."""


def _dtype(call: Call) -> str | None:
    """Return a type of numbers as NumPy writes it, order of bytes included: <f4. None where it is of something else."""
    code = call.arguments[0] if call.arguments else None
    order = "<"
    if isinstance(call.state, tuple) and call.state[1:2] == (">",):
        order = ">"
    return order + code if isinstance(code, str) and code in _NUMBERS else None


def _dtype_name(call: Call) -> str | Foreign:
    dtype = _dtype(call)
    return Foreign(call.name) if dtype is None else np.dtype(dtype).name


def _scalar(call: Call) -> float | int | bool | complex | Foreign:
    """Return a number from exactly as many bytes as its type has; what is no number stays foreign."""
    match call.arguments:
        case (Call(name="numpy.dtype") as kind, data):
            pass
        case _:
            raise ContentError("a NumPy scalar without a type or a value")
    dtype = _dtype(kind)
    if dtype is None:
        return Foreign(call.name)
    data = bytes_of(data)
    layout = dtype[0] + _NUMBERS[dtype[1:]]
    if len(data) != struct.calcsize(layout):
        raise ContentError(f"a NumPy scalar of {len(data)} bytes where its type has {struct.calcsize(layout)}")
    numbers = struct.unpack(layout, data)
    return complex(*numbers) if len(numbers) == 2 else numbers[0]


def _array(call: Call) -> torch.Tensor | Foreign:
    """Return an array of numbers as a tensor; one of anything else stays foreign."""
    match call.state:
        case (int(), shape, Call(name="numpy.dtype") as dtype, bool() as is_fortran, data):
            return _array_of(shape, dtype, data, "F" if is_fortran else "C")
    raise ContentError("a NumPy array without values")


def _array_from_buffer(call: Call) -> torch.Tensor | Foreign:
    """Return an array that protocol 5 wrote."""
    match call.arguments:
        case (data, Call(name="numpy.dtype") as dtype, shape, "C" | "F" as order):
            return _array_of(shape, dtype, data, order)
    raise ContentError("a NumPy array without values")


def _array_of(shape: object, dtype: Call, data: object, order: str) -> torch.Tensor | Foreign:
    code = _dtype(dtype)
    if code is None:
        return Foreign("numpy.ndarray")
    sizes, content = sizes_of(shape), bytes_of(data)
    needed = None if sizes is None else math.prod(sizes) * np.dtype(code).itemsize
    if sizes is None or needed != len(content):
        raise ContentError(f"a NumPy array whose shape and type do not take the {len(content):,} bytes that it has")
    if code[1:] == "b1" and content.strip(b"\0\1"):
        raise ContentError("a truth value that is neither 0 nor 1; damaged")
    values = np.frombuffer(content, code).reshape(sizes, order="F" if order == "F" else "C")
    return torch.from_numpy(np.array(values, values.dtype.newbyteorder("="), order="C"))


# --- the standard library ---------------------------------------------------------------------------------------------


def _texts(call: Call) -> list[str]:
    texts = [item for item in call.arguments if isinstance(item, str) and len(item) <= _MAX_TEXT]
    if len(texts) != len(call.arguments) or sum(map(len, texts)) > _MAX_TEXT:
        raise ContentError(f"a {call.name} that is not made of text")
    return texts


def _text(call: Call) -> str:
    """Return what is made of one text as this text: a version, or an exact number in words."""
    texts = _texts(call)
    if len(texts) != 1:
        raise ContentError(f"a {call.name} that is not made of text")
    return texts[0]


def _fraction(call: Call) -> str:
    match call.arguments:
        case (int() as above, int() as below):
            return f"{above}/{below}"
    return _text(call)  # as Python wrote it before 3.12


def _path(flavour: type[PurePath]) -> Callable[[Call], str]:
    return lambda call: str(flavour(*_texts(call)))


def _uuid(call: Call) -> str:
    state = dict(call.state.pairs) if isinstance(call.state, Call) and _all_text(call.state) else {}
    number = state.get("int")
    if type(number) is not int or not 0 <= number < 2**128:
        raise ContentError("a UUID without a number")
    return str(uuid.UUID(int=number))


def _all_text(call: Call) -> bool:
    return all(isinstance(key, str) for key, _ in call.pairs)


def _timedelta(call: Call) -> datetime.timedelta:
    parts = [item for item in call.arguments if type(item) is int]
    if len(parts) != len(call.arguments) or len(parts) > 3:
        raise ContentError("a timedelta that is not made of whole numbers")
    try:
        return datetime.timedelta(*parts)
    except OverflowError:
        raise ContentError("a timedelta of more days than there are") from None


def _timezone(call: Call) -> datetime.timezone:
    if not call.arguments or not isinstance(call.arguments[0], Call) or call.arguments[0].name != "datetime.timedelta":
        raise ContentError("a timezone without an offset")
    try:
        return datetime.timezone(_timedelta(call.arguments[0]))
    except ValueError:
        raise ContentError("a timezone more than a day away") from None


def _zone(arguments: tuple[object, ...]) -> datetime.timezone | None:
    """Return the zone in what is behind a time; one that only has a name is left out."""
    is_known = len(arguments) == 1 and isinstance(arguments[0], Call) and arguments[0].name == "datetime.timezone"
    return _timezone(arguments[0]) if is_known else None  # type: ignore[arg-type]  # it is a Call


def _moment(call: Call) -> str:
    """Return a date, a time or both in ISO 8601, from the bytes that CPython's datetime.c keeps them in."""
    data = bytes_of(call.arguments[0]) if call.arguments else b""
    if len(data) != {"datetime.date": 4, "datetime.time": 6, "datetime.datetime": 10}[call.name]:
        raise ContentError(f"a {call.name} of {len(data)} bytes")
    zone = _zone(call.arguments[1:])
    date, clock = data[:4], data[-6:]
    try:
        if call.name == "datetime.time":
            return datetime.time(clock[0] & 0x7F, clock[1], clock[2], int.from_bytes(clock[3:]), zone).isoformat()
        year, month, day = (
            int.from_bytes(date[:2]),
            date[2] & 0x7F,
            date[3],
        )  # the high bit: the hour is the second of its name
        if call.name == "datetime.date":
            return datetime.date(year, month, day).isoformat()
        time = (clock[0], clock[1], clock[2], int.from_bytes(clock[3:]))
        return datetime.datetime(year, month, day, *time, zone).isoformat()
    except ValueError:
        raise ContentError(f"a {call.name} that no calendar or clock shows") from None


def _complex(call: Call) -> complex:
    match call.arguments:
        case (float() as real, float() as imaginary):
            return complex(real, imaginary)
    raise ContentError("a complex number that is not made of two numbers")


def _bytearray(call: Call) -> bytearray:
    match call.arguments:
        case ():
            return bytearray()
        case (str() as text, "latin1" | "latin-1"):
            return bytearray(bytes_of(text))
        case (Call() | bytes() as data,):
            return bytearray(bytes_of(data))
    raise ContentError("a bytearray that is not made of bytes")


def _numbers(call: Call) -> list[int | None]:
    numbers = [item for item in call.arguments if item is None or type(item) is int]
    if len(numbers) != len(call.arguments) or not 1 <= len(numbers) <= 3:
        raise ContentError(f"a {call.name} that is not made of whole numbers")
    return numbers


def _slice(call: Call) -> slice:
    return slice(*_numbers(call))


def _range(call: Call) -> range:
    try:
        return range(*_numbers(call))  # type: ignore[arg-type]  # None is refused by range
    except (TypeError, ValueError):
        raise ContentError("a range that is none") from None


# --- torch ------------------------------------------------------------------------------------------------------------


def _size(call: Call) -> torch.Size:
    sizes = sizes_of(call.arguments[0]) if len(call.arguments) == 1 else None
    if sizes is None:
        raise ContentError("a torch.Size that is not made of sizes")
    return torch.Size(sizes)


def _device(call: Call) -> torch.device:
    try:
        match call.arguments:
            case (str() as kind,):
                return torch.device(kind)
            case (str() as kind, int() as index) if is_size(index):  # True is no 1
                return torch.device(kind, index)
    except RuntimeError:
        pass
    raise ContentError("a torch.device that is none")


PLAIN: Final[dict[str, Callable[[Call], object]]] = {
    "_codecs.encode": bytes_of,
    "builtins.bytearray": _bytearray,
    "builtins.bytes": bytes_of,
    "builtins.complex": _complex,
    "builtins.range": _range,
    "builtins.slice": _slice,
    "datetime.date": _moment,
    "datetime.datetime": _moment,
    "datetime.time": _moment,
    "datetime.timedelta": lambda call: _timedelta(call).total_seconds(),
    "datetime.timezone": lambda call: str(_timezone(call)),
    "decimal.Decimal": _text,
    "fractions.Fraction": _fraction,
    "numpy.dtype": _dtype_name,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.torch_version.TorchVersion": _text,
    "uuid.UUID": _uuid,
}
"""What is called -> the function that reads its value from the notes, and raises ContentError where it cannot."""

for _core in ("core", "_core"):  # NumPy 1, NumPy 2
    PLAIN[f"numpy.{_core}.multiarray.scalar"] = _scalar
    PLAIN[f"numpy.{_core}.multiarray._reconstruct"] = _array
    PLAIN[f"numpy.{_core}.numeric._frombuffer"] = _array_from_buffer
for _module in ("pathlib", "pathlib._local"):  # Python 3.13 moved them
    for _name in ("Path", "PosixPath", "PurePath", "PurePosixPath"):
        PLAIN[f"{_module}.{_name}"] = _path(PurePosixPath)
    for _name in ("WindowsPath", "PureWindowsPath"):
        PLAIN[f"{_module}.{_name}"] = _path(PureWindowsPath)


def torch_constant(name: Name) -> torch.dtype | torch.layout | None:
    """Return the dtype or layout that a name such as torch.float32 stands for."""
    return _CONSTANTS.get(name.name)


_CONSTANTS: Final[dict[str, torch.dtype | torch.layout]] = {
    f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
_CONSTANTS["torch.strided"] = torch.strided
