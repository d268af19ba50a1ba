"""Notes of what a checkpoint holds -> its content: dicts, lists, numbers, text and ordinary tensors.

One walk, which meets every value once however often it is shared, and knows the place of what it refuses. What stands
for something plain becomes that: a Namespace, a dataclass or an OmegaConf configuration a dict of what is in it, a path
or a date text, a member of an Enum its value. Anything else stays `Foreign`.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

import torch
from torch import Tensor

from qbw_eval.checkpoints.beside_weights import PLAIN, ContentError, Foreign, torch_constant
from qbw_eval.checkpoints.harmless import LISTS, MAKERS, MAPPINGS, SETS
from qbw_eval.checkpoints.pickle_reader import DICT, MAX_BYTES, Call, Name, Persistent, Pickled
from qbw_eval.checkpoints.tensors import ODD_TENSORS, TENSORS, Tensors

MAX_DEPTH: Final = 64
"""Nesting of containers; configurations nest a handful deep."""

_MAX_KEY = 2**60
"""Whole numbers below this all differ in their hashes; of larger ones a dict can be made that takes hours to fill."""

_ITEM_COST, _TENSOR_COST = 64, 1024
"""Bytes, estimated, of an item of a container, and of a tensor without its data."""

_SCALARS: Final = (type(None), bool, int, float, str, bytes)
_MAX_PLACE, _MAX_LABEL = 160, 80

_Made = TypeVar("_Made")


class WholeModuleError(ContentError):
    """The content is a network, code and all, where weights were expected."""


def content_of(pickled: Pickled, tensors: Tensors) -> object:
    """Return what a pickle holds, with the tensors it refers to.

    Raises:
        WholeModuleError: it holds a whole network.
        ContentError: something in it is not what it should be; says where.
    """
    return _Walk(tensors).value(pickled.content, "content", 0)


class _Walk:
    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.left = MAX_BYTES
        self.done: dict[int, object] = {}  # by the id of the note, which the pickle's content keeps alive, or
        self.kept: list[Call] = []  # this, as the id of something that is gone may be given again

    def value(self, note: object, place: str, depth: int) -> object:
        if isinstance(note, _SCALARS):
            return note
        if id(note) in self.done:
            return self.done[id(note)]
        if depth > MAX_DEPTH:
            raise ContentError(f"nested more than {MAX_DEPTH} deep at {_shortened(place)}")
        if isinstance(note, Call):
            made = self.called(note, place, depth)
        elif isinstance(note, list):
            made = self.list_of(note, note, place, depth)
        elif isinstance(note, tuple):
            made = tuple(self.items(note, place, depth))
        else:
            made = self.leaf(note, place)
        self.done[id(note)] = made
        return made

    def leaf(self, note: object, place: str) -> object:
        if isinstance(note, Name):
            constant = torch_constant(note)
            return Foreign(note.name) if constant is None else constant
        if isinstance(note, Persistent):
            return self.at(place, _TENSOR_COST, lambda: self.tensors.storage(note))
        return note  # a bytearray

    def called(self, call: Call, place: str, depth: int) -> object:
        """Return what a call stands for."""
        name = call.name
        if name in MAPPINGS:
            return self.mapping(call, place, depth)
        if name in TENSORS or name in ODD_TENSORS:
            return self.at(place, _TENSOR_COST, lambda: self.tensors.tensor(call))
        if name in PLAIN:
            return self.at(place, _ITEM_COST, lambda: PLAIN[name](call))
        if name in LISTS:
            return self.list_of(call, (*_listed(call.arguments[:1], place), *call.items), place, depth)
        if name in SETS:
            members = (*_listed(call.arguments, place), *call.items)
            made = {self.key(note, place, depth) for note in self.counted(members)}
            return made if name.endswith(".set") else frozenset(made)
        if name in MAKERS:
            remade = _remade(call, place)
            self.kept.append(remade)
            return self.value(remade, place, depth + 1)
        return self.object_(call, place, depth)

    def object_(self, call: Call, place: str, depth: int) -> object:
        """Return what an object of somebody's class stands for, judged by what it is made of."""
        attributes = _attributes(call.state)
        names = {key for key, _ in attributes if isinstance(key, str)}
        if {"_parameters", "_modules"} <= names:
            raise WholeModuleError(call.name)
        if call.name.startswith("omegaconf."):
            inside = [value for key, value in attributes if key in ("_content", "_val")]
            if len(inside) == 1:
                return self.value(inside[0], place, depth + 1)
        if len(call.arguments) == 1 and isinstance(call.arguments[0], _SCALARS) and not call.items and not call.pairs:
            return call.arguments[0]  # a member of an Enum, or of a kind of number or text
        if call.arguments or call.keywords is not None:
            return Foreign(call.name)
        if call.items:
            return Foreign(call.name) if call.pairs else self.list_of(call, call.items, place, depth)
        if attributes or call.pairs:
            return self.fill({}, call, [*attributes, *call.pairs], place, depth)
        return Foreign(call.name)

    # --- containers ---

    def counted(self, notes: Iterable[object]) -> Iterator[object]:
        for note in notes:
            self.spend(_ITEM_COST)
            yield note

    def items(self, notes: Iterable[object], place: str, depth: int) -> Iterator[object]:
        for index, note in enumerate(self.counted(notes)):
            # Most are numbers, and of those nobody asks where they are.
            yield note if isinstance(note, _SCALARS) else self.value(note, f"{place}[{index}]", depth + 1)

    def list_of(self, of: object, notes: Iterable[object], place: str, depth: int) -> list[object]:
        made: list[object] = []
        self.done[id(of)] = made  # before its items, of which it may be one
        made.extend(self.items(notes, place, depth))
        return made

    def mapping(self, call: Call, place: str, depth: int) -> dict[object, object]:
        attributes = _attributes(call.state)
        arguments = call.arguments[1:] if call.name == "collections.defaultdict" else call.arguments
        pairs = [*_paired(arguments, place), *call.pairs]
        if call.name in ("argparse.Namespace", "types.SimpleNamespace"):
            pairs = [*attributes, *pairs]
        elif call.name == "collections.UserDict":
            pairs = [*_paired(tuple(value for key, value in attributes if key == "data"), place), *pairs]
        if call.name != "collections.OrderedDict":
            return self.fill({}, call, pairs, place, depth)
        ordered: collections.OrderedDict[object, object] = collections.OrderedDict()
        self.fill(ordered, call, pairs, place, depth)
        versions = _versions(attributes)
        if versions:
            ordered._metadata = versions  # type: ignore[attr-defined]  # where torch keeps them (Module.state_dict)
        return ordered

    def fill(
        self,
        made: dict[object, object],
        of: Call,
        pairs: Iterable[tuple[object, object]],
        place: str,
        depth: int,
    ) -> dict[object, object]:
        self.done[id(of)] = made  # before its values, of which it may be one
        for key, note in pairs:
            self.spend(_ITEM_COST)
            name = self.key(key, place, depth)
            inside = isinstance(note, _SCALARS)
            made[name] = note if inside else self.value(note, f"{place}[{_label(name)}]", depth + 1)
        return made

    def key(self, note: object, place: str, depth: int) -> object:
        """Return what can be a key, or a member of a set, at a known cost: one plain value, or a few."""
        if isinstance(note, str):
            return note
        key = self.value(note, f"{place}, a key", depth + 1)
        for part in key if isinstance(key, tuple) and len(key) <= MAX_DEPTH else (key,):
            if isinstance(part, int) and abs(part) >= _MAX_KEY:
                raise ContentError(f"{_shortened(place)}: a whole number of too many digits as a key")
            # Tensors and what is foreign are told apart by what they are, not by what is in them.
            if not isinstance(part, (*_SCALARS, Foreign, Tensor, torch.dtype)):
                raise ContentError(f"{_shortened(place)}: a {type(part).__name__} as a key")
        return key

    # --- costs and places ---

    def spend(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise ContentError("holds more values than any checkpoint needs")

    def at(self, place: str, cost: int, make: Callable[[], _Made]) -> _Made:
        """Return what is made, its cost spent and its place told where it cannot be."""
        self.spend(cost)
        try:
            made = make()
        except ContentError as error:
            raise ContentError(f"{_shortened(place)}: {error}") from None
        if isinstance(made, str | bytes | bytearray):
            self.spend(len(made))
        elif isinstance(made, Tensor) and cost == _ITEM_COST:  # an array of NumPy's, which is copied
            self.spend(made.nbytes)
        return made


def _attributes(state: object) -> list[tuple[object, object]]:
    """Return the attributes of an object in what BUILD would hand over: a dict, or one and another of its slots."""
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    return [pair for part in parts if isinstance(part, Call) and part.name == DICT for pair in part.pairs]


def _listed(arguments: tuple[object, ...], place: str) -> Iterable[object]:
    """Return the items in what a list or set is made of."""
    match arguments:
        case ():
            return ()
        case ((list() | tuple()) as items,):
            return items
    raise ContentError(f"{_shortened(place)}: a list or set that is not made of a list")


def _paired(arguments: tuple[object, ...], place: str) -> Iterable[tuple[object, object]]:
    """Return the keys and values in what a dict is made of."""
    match arguments:
        case ():
            return ()
        case (Call(name="builtins.dict", arguments=()) as inside,):
            return inside.pairs
        case ([*pairs],) if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            return [(pair[0], pair[1]) for pair in pairs]  # type: ignore[index]  # they are lists of two
    raise ContentError(f"{_shortened(place)}: a dict that is not made of keys and values")


def _remade(call: Call, place: str) -> Call:
    """Return the call that one through Python's copyreg comes down to."""
    match call.name, call.arguments:
        case "copyreg.__newobj__", (Name(name=name), *arguments):
            return Call(name, tuple(arguments), None, call.state, call.items, call.pairs)
        case "copyreg.__newobj_ex__", (Name(name=name), tuple() as arguments, keywords):
            return Call(name, arguments, keywords, call.state, call.items, call.pairs)
        case "copyreg._reconstructor", (Name(name=name), Name(), value):
            return Call(name, () if value is None else (value,), None, call.state, call.items, call.pairs)
    raise ContentError(f"{_shortened(place)}: an object of no class")


def _versions(attributes: list[tuple[object, object]]) -> dict[str, dict[str, int]]:
    """Return the versions of a network's parts, which a state dict carries along for torch to read it by."""
    versions: dict[str, dict[str, int]] = {}
    for key, metadata in attributes:
        if key == "_metadata":
            for name, facts in _pairs_in(metadata):
                version = next((value for key, value in _pairs_in(facts) if key == "version"), None)
                if isinstance(name, str) and type(version) is int:
                    versions[name] = {"version": version}
    return versions


def _pairs_in(note: object) -> list[tuple[object, object]]:
    return note.pairs if isinstance(note, Call) and note.name in MAPPINGS else []


def _label(key: object) -> str:
    return repr(key[:_MAX_LABEL]) if isinstance(key, str | bytes) else f"{key!r:.80}" if isinstance(key, int) else "..."


def _shortened(place: str) -> str:
    """Return a place as one short line: how it begins and how it ends."""
    half = _MAX_PLACE // 2
    return place if len(place) <= _MAX_PLACE else f"{place[:half]}...{place[-half:]}"
