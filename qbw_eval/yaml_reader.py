"""YAML from a stranger -> plain values, each with the place it was written at.

Invariants:
    nothing in the text is ever run: there is no constructor here, only a tree that becomes str, int, float, bool, None,
    list and dict;
    size, depth and count are bounded, also where aliases multiply what is written once;
    every problem that leaves the rest readable is reported together with the others; what could not be read is
    `UNREADABLE`, so that nobody complains about it a second time.

What a plain (unquoted) scalar means follows YAML 1.2's core schema, not PyYAML's 1.1, whose surprises have cost people
experiments:

    text                   | YAML 1.1 (PyYAML)  | here
    no, off, yes, on       | a boolean          | text
    1e-3                   | text               | a number
    1:30                   | 90                 | text
    1_000                  | 1000               | text
    010, 0x10              | 8, 16              | text (refused as a number rather than guessed at)
    2024-01-01             | a date             | text
    true, True, TRUE       | a boolean          | a boolean
    null, Null, NULL, ~    | null               | null
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, TypeAlias

from yaml.composer import Composer
from yaml.error import MarkedYAMLError
from yaml.events import Event
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

MAX_BYTES: Final = 2**20
MAX_DEPTH: Final = 50
MAX_NODES: Final = 100_000
MAX_DIGITS: Final = 100
"""A longer whole number means nothing to us, and Python refuses to convert really long ones."""

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the top of the document; `()` is the document itself."""


class Position(NamedTuple):
    """Line and column, both from 1."""

    line: int
    column: int


TOP: Final = Position(1, 1)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something in the text that is not readable as plain values."""

    path: KeyPath
    position: Position
    what: str


class Unreadable:
    """Stands where a value could not be read; the problem is in `Document.problems`."""


UNREADABLE: Final = Unreadable()


@dataclass(frozen=True, kw_only=True)
class Document:
    """What a YAML text says, where it says it, and what was wrong with it."""

    value: object
    positions: dict[KeyPath, Position]
    """Where each value starts."""
    key_positions: dict[KeyPath, Position]
    """Where the key of each value stands (list items have none)."""
    problems: tuple[Problem, ...]


def read_yaml(data: bytes) -> Document:
    r"""Return the values in `data` (UTF-8, one document); problems are returned, never raised.

    >>> document = read_yaml(b"rate: 1e-3\nsizes: [8, no]")
    >>> document.value
    {'rate': 0.001, 'sizes': [8, 'no']}
    >>> document.positions[("sizes", 1)]
    Position(line=2, column=12)
    """
    if len(data) > MAX_BYTES:
        return _unreadable(TOP, f"larger than {MAX_BYTES:,} bytes, the most that is read")
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        position = _position_at(data[: error.start].decode())
        return _unreadable(position, f"not UTF-8 text (byte 0x{data[error.start]:02x}); save the file as UTF-8")
    try:
        node = _compose(text)
        if node is None:
            return Document(value=None, positions={(): TOP}, key_positions={}, problems=())
        reading = _Reading()
        value = reading.value_of(node, path=(), inside=frozenset())
    except _RefusedError as refused:
        return _unreadable(refused.position, refused.what)
    return Document(
        value=value,
        positions=reading.positions,
        key_positions=reading.key_positions,
        problems=tuple(reading.problems),
    )


def shown(value: object) -> str:
    """Return `value` as one line of printable text for an error message, shortened where long.

    >>> shown("a" * 100)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...'"
    """
    if isinstance(value, str) and len(value) > 60:
        return repr(value[:59] + "...")
    return repr(value)


def is_encodable(text: str) -> bool:
    """Return whether `text` can be written as UTF-8; half of a surrogate pair, which an escape can make, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- text -> nodes --------------------------------------------------------------------------------------------------

_CORE: Final = "tag:yaml.org,2002:"
_STR, _MAP, _SEQ = _CORE + "str", _CORE + "map", _CORE + "seq"

_SCALARS: Final[dict[str, tuple[re.Pattern[str], Callable[[str], object]]]] = {
    # In this order: every whole number would pass for a float too.
    _CORE + "null": (re.compile(r"(~|null|Null|NULL|)\Z"), lambda _: None),
    _CORE + "bool": (re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), lambda text: text.lower() == "true"),
    _CORE + "int": (re.compile(r"[-+]?(0|[1-9][0-9]*)\Z"), int),
    _CORE + "float": (
        re.compile(
            r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z"
            r"|[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z"
        ),
        lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    ),
}


class _HasPlace(Protocol):
    line: int
    column: int


class _RefusedError(Exception):
    """The whole text is refused."""

    def __init__(self, position: Position, what: str) -> None:
        super().__init__(what)
        self.position = position
        self.what = what


class _Composer(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML without its constructors (which make objects) and without its YAML 1.1 resolvers."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._depth = 0
        self._nodes = 0

    def compose_node(self, parent: Node | None, index: object) -> Node | None:
        # Bounded here, before PyYAML's recursion meets Python's limit.
        event: Event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's types leave it open
        self._depth += 1
        self._nodes += 1
        _check_bounds(self._depth, self._nodes, event.start_mark)
        node = super().compose_node(parent, index)  # type: ignore[arg-type]  # the index is a Node or an int
        self._depth -= 1
        return node


for _tag, (_pattern, _) in _SCALARS.items():
    _Composer.add_implicit_resolver(_tag, _pattern, None)


def _compose(text: str) -> Node | None:
    """Return the tree of the one document in `text`, None where there is none."""
    try:
        composer = _Composer(text)
    except ReaderError as error:
        position = _position_at(text[: error.position])
        raise _RefusedError(position, f"not valid YAML: the character {error.character:#x} is not allowed") from error
    try:
        return composer.get_single_node()
    except MarkedYAMLError as error:
        raise _RefusedError(_position_of(error.problem_mark or error.context_mark), _sentence(error)) from error
    except (ValueError, OverflowError) as error:
        # An escape such as "\UFFFFFFFF" or a version number of thousands of digits: PyYAML lets these through.
        raise _RefusedError(_position_of(composer.get_mark()), "not valid YAML: a number is out of range") from error


def _sentence(error: MarkedYAMLError) -> str:
    if "'\\t'" in (error.problem or ""):
        return "not valid YAML: a tab cannot stand here; indent with spaces"
    # Cut, because PyYAML quotes names in full and a name can be as long as the file.
    return "not valid YAML: " + ", ".join(part for part in (error.context, error.problem) if part)[:200]


def _check_bounds(depth: int, nodes: int, mark: _HasPlace | None) -> None:
    if depth > MAX_DEPTH:
        raise _RefusedError(_position_of(mark), f"nested more than {MAX_DEPTH} levels deep")
    if nodes > MAX_NODES:
        raise _RefusedError(_position_of(mark), f"more than {MAX_NODES:,} values, aliases counted as often as used")


# --- nodes -> values ------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Reading:
    """One walk over the tree, collecting places and problems on the way."""

    positions: dict[KeyPath, Position] = field(default_factory=dict)
    key_positions: dict[KeyPath, Position] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    nodes: int = 0

    def value_of(self, node: Node, *, path: KeyPath, inside: frozenset[int]) -> object:
        """Return the plain value of `node`; `inside` holds the collections around it (an alias may lead back)."""
        self.nodes += 1
        _check_bounds(len(path) + 1, self.nodes, node.start_mark)
        position = self.positions[path] = _position_of(node.start_mark)
        if id(node) in inside:
            # An alias has no place of its own in PyYAML's tree; its key has.
            self.problem(path, self.key_positions.get(path, position), "an alias cannot contain itself")
            return UNREADABLE
        inside |= {id(node)}
        if isinstance(node, MappingNode) and node.tag == _MAP:
            return self.mapping_of(node, path, inside)
        if isinstance(node, SequenceNode) and node.tag == _SEQ:
            return [self.value_of(item, path=(*path, i), inside=inside) for i, item in enumerate(node.value)]
        if isinstance(node, ScalarNode) and (node.tag == _STR or node.tag in _SCALARS):
            return self.scalar_of(node, path)
        tag = _short(node.tag)
        self.problem(path, position, f"the tag {tag} is not allowed here: an experiment file holds plain values only")
        return UNREADABLE

    def mapping_of(self, node: MappingNode, path: KeyPath, inside: frozenset[int]) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            position = _position_of(key_node.start_mark)
            key = self.key_of(key_node, path)
            if key is None:
                continue
            if key in values:
                line = self.key_positions[*path, key].line
                self.problem((*path, key), position, f"this key is given twice (first in line {line}); keep one")
                continue
            self.key_positions[*path, key] = position
            values[key] = self.value_of(value_node, path=(*path, key), inside=inside)
        return values

    def key_of(self, node: Node, path: KeyPath) -> str | None:
        position = _position_of(node.start_mark)
        if not isinstance(node, ScalarNode):
            kind = "a mapping" if isinstance(node, MappingNode) else "a list"
            self.problem(path, position, f"expected a name as the key, found {kind}")
            return None
        if node.value == "<<" and node.style is None:
            self.problem(path, position, "merge keys (<<) are not supported; write the settings out")
            return None
        if node.tag != _STR:
            quotable = (
                f"; put it in quotes ({shown(node.value)}) if it is meant as a name" if node.style is None else ""
            )
            self.problem(path, position, f"expected a name as the key, found {node.value[:60] or 'nothing'}{quotable}")
            return None
        key = self.scalar_of(node, path)
        return key if isinstance(key, str) else None

    def scalar_of(self, node: ScalarNode, path: KeyPath) -> object:
        text: str = node.value
        position = _position_of(node.start_mark)
        if node.tag == _STR:
            if not is_encodable(text):
                self.problem(path, position, f"expected text, found half of a surrogate pair in {shown(text)}")
                return UNREADABLE
            return text
        pattern, convert = _SCALARS[node.tag]
        if not pattern.match(text):  # only an explicit tag gets here: !!int abc
            self.problem(path, position, f"the tag {_short(node.tag)} does not fit {shown(text)}")
            return UNREADABLE
        if convert is int and len(text) > MAX_DIGITS:
            self.problem(path, position, f"a whole number of {len(text):,} digits is too long")
            return UNREADABLE
        return convert(text)

    def problem(self, path: KeyPath, position: Position, what: str) -> None:
        self.problems.append(Problem(path=path, position=position, what=what))


# --- small helpers --------------------------------------------------------------------------------------------------


def _unreadable(position: Position, what: str) -> Document:
    problem = Problem(path=(), position=position, what=what)
    return Document(value=UNREADABLE, positions={(): TOP}, key_positions={}, problems=(problem,))


def _short(tag: str) -> str:
    written = tag.replace(_CORE, "!!", 1)
    return written if written.isprintable() and len(written) <= 60 else shown(written)


def _position_of(mark: _HasPlace | None) -> Position:
    return Position(mark.line + 1, mark.column + 1) if mark else TOP


def _position_at(before: str) -> Position:
    """Return the position of the character that comes after the text `before`."""
    before = before.replace("\r\n", "\n").replace("\r", "\n")
    return Position(before.count("\n") + 1, len(before) - before.rfind("\n"))
