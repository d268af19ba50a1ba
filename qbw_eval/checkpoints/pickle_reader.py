"""A pickle from a stranger -> a description of what it holds. Imports nothing, calls nothing, makes no tensor.

A pickle is a program. Its opcodes (CPython's Lib/pickletools.py describes them) push values on a stack, name anything
in any module, and call it. This reader knows the opcodes and nothing else: where a pickle wants to import, it notes the
name (`Name`); where it wants to call, it notes what with what (`Call`). So there is nothing that it could be talked
into, and what the notes mean is decided elsewhere, where they are seen whole.

Every value costs its estimated bytes before it is made, so that a pickle that repeats, copies or claims without end is
refused while it is small. Nothing here recurs, so that no depth of nesting matters.
"""

import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Never

MAX_BYTES: Final = 2**28
"""What the values of a pickle may take, weights not counted: two million numbers, or 50,000 tensors."""

_PLAIN_COST, _CONTAINER_COST = 64, 256
"""Bytes, estimated: an opcode that pushes a number, and one that makes a container or a note."""

_MAX_NAME = 200
_MAX_INTEGER_BYTES = 1024
"""Python shows no integer of more than 4,300 digits, and these have 2,467."""


class PickleError(ValueError):
    """What is wrong with a pickle, without a place."""

    def __init__(self, what: str, names: tuple[str, ...] = ()) -> None:
        super().__init__(what)
        self.names = names  # that it wanted so far


@dataclass(frozen=True, slots=True)
class Name:
    """Something a pickle would import.

    Attributes:
        name: module and name with a dot between, as Python 3 calls them.
    """

    name: str


@dataclass(slots=True, eq=False)
class Call:
    """Something a pickle would call or make, and what it would do with it; also a dict or set of its own.

    Attributes:
        name: of what is called.
        arguments: what with.
        keywords: a note of a dict, or None.
        state: what BUILD would hand over; None where it would not.
        items: what APPEND, or ADDITEMS, would add.
        pairs: keys and values that SETITEM would set, in order.
    """

    name: str
    arguments: tuple[object, ...] = ()
    keywords: object = None
    state: object = None
    items: list[object] = field(default_factory=list)
    pairs: list[tuple[object, object]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Persistent:
    """A reference to something that is kept outside of the pickle; torch's storages are."""

    reference: object


DICT, SET, FROZENSET = "builtins.dict", "builtins.set", "builtins.frozenset"


@dataclass(frozen=True, kw_only=True)
class Pickled:
    """What a pickle holds.

    Attributes:
        content: None, bool, int, float, str, bytes, bytearray, list, tuple and notes (`Name`, `Call`, `Persistent`).
            Values met twice are one object; there may be cycles.
        names: everything it would import, in the order of first mention.
        persistent: all references to what is kept outside.
        end: the position behind it.
    """

    content: object
    names: tuple[str, ...]
    persistent: tuple[Persistent, ...]
    end: int


def read_pickle(data: memoryview, begin: int = 0, max_bytes: int = MAX_BYTES) -> Pickled:
    """Read one pickle.

    Args:
        data: bytes.
        begin: where in them it begins.
        max_bytes: what its values may take.

    Raises:
        PickleError: it is cut short, no pickle, or too large.
    """
    machine = _Machine(data, begin, max_bytes)
    try:
        content = machine.run()
    except PickleError as error:
        raise PickleError(str(error), tuple(machine.names)) from None
    return Pickled(
        content=content, names=tuple(machine.names), persistent=tuple(machine.persistent), end=machine.position
    )


class _Machine:
    def __init__(self, data: memoryview, begin: int, max_bytes: int) -> None:
        self.data = data
        self.position = begin
        self.left = max_bytes
        self.stack: list[object] = []
        self.below: list[list[object]] = []  # a stack for every open mark
        self.memo: dict[int, object] = {}
        self.names: dict[str, None] = {}
        self.persistent: list[Persistent] = []

    def run(self) -> object:
        while True:
            at = self.position
            if at >= len(self.data):
                raise PickleError("the pickle was cut short")
            opcode = self.data[at]
            self.position = at + 1
            if opcode == _STOP:
                return self.pop()
            do = _OPCODES.get(opcode)
            if do is None:
                raise PickleError(f"the pickle's opcode {bytes([opcode])!r} is none that torch.save writes")
            self.spend(_PLAIN_COST)
            do(self)

    # --- reading ---

    def spend(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise PickleError("the pickle holds more values than any checkpoint needs")

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            raise PickleError(f"the pickle was cut short, or claims {count:,} bytes that are not there")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> str:
        near = bytes(self.data[self.position : self.position + _MAX_NAME + 1])
        length = near.find(b"\n")
        if length < 0:
            raise PickleError("the pickle names something whose name does not end")
        self.position += length + 1
        return _decoded(near[:length])

    def text(self, size: int) -> None:
        length = self.number(size)
        self.spend(4 * length)
        self.stack.append(_decoded(self.take(length)))

    def bytes_(self, size: int) -> None:
        length = self.number(size)
        self.spend(length)
        self.stack.append(bytes(self.take(length)))

    def old_string(self, size: int) -> None:
        """Push a string of Python 2, which does not say whether it is text: it is where it is ASCII."""
        length = self.number(size)
        self.spend(length)
        taken = bytes(self.take(length))
        self.stack.append(taken.decode("ascii") if taken.isascii() else taken)

    def bytearray_(self) -> None:
        length = self.number(8)
        self.spend(length)
        self.stack.append(bytearray(self.take(length)))

    def integer(self, size: int) -> None:
        length = self.number(size)
        if length > _MAX_INTEGER_BYTES:
            raise PickleError(f"the pickle holds a whole number of {length:,} bytes")
        self.stack.append(self.number(length, signed=True))

    def float_(self) -> None:
        self.stack.append(struct.unpack(">d", self.take(8))[0])

    # --- the stack ---

    def pop(self) -> object:
        if not self.stack:
            raise PickleError("the pickle takes a value where there is none")
        return self.stack.pop()

    def top(self) -> object:
        if not self.stack:
            raise PickleError("the pickle takes a value where there is none")
        return self.stack[-1]

    def mark(self) -> None:
        self.spend(_CONTAINER_COST)
        self.below.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[object]:
        if not self.below:
            raise PickleError("the pickle goes back to a mark that it never set")
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop_or_mark(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_to_mark()

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise PickleError("the pickle recalls a value that it never kept")
        self.stack.append(self.memo[index])

    # --- containers ---

    def push(self, value: object) -> None:
        self.spend(_CONTAINER_COST)
        self.stack.append(value)

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def add(self, items: list[object]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Call):
            target.items.extend(items)
        else:
            raise PickleError("the pickle adds items to what has none")

    def set_pairs(self, items: list[object]) -> None:
        target = self.top()
        if not isinstance(target, Call) or len(items) % 2:
            raise PickleError("the pickle sets keys of what has none")
        self.spend(_PLAIN_COST * len(items))
        target.pairs.extend(zip(items[::2], items[1::2], strict=True))

    def set_pair(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_pairs([key, value])

    def frozen_set(self) -> None:
        self.push(Call(FROZENSET, items=self.pop_to_mark()))

    # --- names and calls, of which only notes are taken ---

    def global_(self) -> None:
        module = self.line()
        self.push_name(module, self.line())

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("the pickle names something by what is no text")
        self.push_name(module, name)

    def push_name(self, module: str, name: str) -> None:
        # As Python 2 called things, so did protocol 2, which torch.save writes.
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[module, name]
        full = f"{IMPORT_MAPPING.get(module, module)}.{name}"
        if len(full) > _MAX_NAME or not all(
            part.replace("<locals>", "locals").isidentifier() for part in full.split(".")
        ):
            raise PickleError("the pickle names something by what is no name in Python")
        self.names.setdefault(full)
        self.push(Name(full))

    def call(self, function: object, arguments: object, keywords: object = None) -> None:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise PickleError("the pickle calls what is no name of anything")
        self.push(Call(function.name, arguments, keywords))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        self.call(function, arguments)

    def new_with_keywords(self) -> None:
        keywords, arguments, function = self.pop(), self.pop(), self.pop()
        self.call(function, arguments, keywords)

    def instance(self) -> None:
        module = self.line()
        self.push_name(module, self.line())
        function = self.pop()
        self.call(function, tuple(self.pop_to_mark()))

    def object_(self) -> None:
        items = self.pop_to_mark()
        if not items:
            raise PickleError("the pickle takes a value where there is none")
        self.call(items[0], tuple(items[1:]))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if not isinstance(target, Call) or target.state is not None:
            raise PickleError("the pickle hands a state to what takes none")
        target.state = state

    def persistent_id(self) -> None:
        reference = Persistent(self.pop())
        self.persistent.append(reference)
        self.push(reference)


def _decoded(data: bytes | memoryview) -> str:
    try:
        return str(data, "utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise PickleError("the pickle holds text that is not UTF-8") from None


def _refuse_registry(_machine: _Machine) -> Never:
    raise PickleError("the pickle names something by a number of Python's extension registry")


_STOP = ord(".")

# Protocols 2 to 5, and INST and OBJ of the older ones, so that what they want can be told.
_OPCODES: Final[dict[int, Callable[[_Machine], object]]] = {
    code[0]: do
    for code, do in {
        b"\x80": lambda m: m.take(1),  # PROTO
        b"\x95": lambda m: m.take(8),  # FRAME: where the next bytes could be read at once
        b"N": lambda m: m.stack.append(None),
        b"\x88": lambda m: m.stack.append(True),
        b"\x89": lambda m: m.stack.append(False),
        b"J": lambda m: m.stack.append(m.number(4, signed=True)),
        b"K": lambda m: m.stack.append(m.number(1)),
        b"M": lambda m: m.stack.append(m.number(2)),
        b"\x8a": lambda m: m.integer(1),
        b"\x8b": lambda m: m.integer(4),
        b"G": _Machine.float_,
        b"\x8c": lambda m: m.text(1),
        b"X": lambda m: m.text(4),
        b"\x8d": lambda m: m.text(8),
        b"C": lambda m: m.bytes_(1),
        b"B": lambda m: m.bytes_(4),
        b"\x8e": lambda m: m.bytes_(8),
        b"\x96": _Machine.bytearray_,
        b"U": lambda m: m.old_string(1),
        b"T": lambda m: m.old_string(4),
        b"(": _Machine.mark,
        b"0": _Machine.pop_or_mark,
        b"1": lambda m: m.pop_to_mark(),
        b"2": lambda m: m.stack.append(m.top()),
        b"q": lambda m: m.remember(m.number(1)),
        b"r": lambda m: m.remember(m.number(4)),
        b"\x94": lambda m: m.remember(len(m.memo)),
        b"h": lambda m: m.recall(m.number(1)),
        b"j": lambda m: m.recall(m.number(4)),
        b")": lambda m: m.push(()),
        b"\x85": lambda m: m.tuple_of(1),
        b"\x86": lambda m: m.tuple_of(2),
        b"\x87": lambda m: m.tuple_of(3),
        b"t": lambda m: m.push(tuple(m.pop_to_mark())),
        b"]": lambda m: m.push([]),
        b"l": lambda m: m.push(m.pop_to_mark()),
        b"a": lambda m: m.add([m.pop()]),
        b"e": lambda m: m.add(m.pop_to_mark()),
        b"}": lambda m: m.push(Call(DICT)),
        b"s": _Machine.set_pair,
        b"u": lambda m: m.set_pairs(m.pop_to_mark()),
        b"\x8f": lambda m: m.push(Call(SET)),
        b"\x90": lambda m: m.add(m.pop_to_mark()),
        b"\x91": _Machine.frozen_set,
        b"c": _Machine.global_,
        b"\x93": _Machine.stack_global,
        b"R": _Machine.reduce,
        b"\x81": _Machine.reduce,  # NEWOBJ: to make is to call
        b"\x92": _Machine.new_with_keywords,
        b"i": _Machine.instance,
        b"o": _Machine.object_,
        b"b": _Machine.build,
        b"Q": _Machine.persistent_id,
        b"\x82": _refuse_registry,
        b"\x83": _refuse_registry,
        b"\x84": _refuse_registry,
    }.items()
}
