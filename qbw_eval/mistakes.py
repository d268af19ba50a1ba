"""What is wrong with settings, in words for the person who wrote them.

pydantic finds the mistakes; here its error types become sentences of the form `expected X, found Y`.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from qbw_eval.yaml_reader import UNREADABLE, KeyPath, shown
from schemas.errors import did_you_mean

MAX_SHOWN: Final = 100
"""Mistakes listed before the rest is only counted."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One thing that is wrong: which setting, and a sentence without its name."""

    path: KeyPath
    what: str
    at_key: bool = False
    """The key itself is the mistake, not the value behind it."""


def mistakes_in(error: ValidationError, known_keys: Callable[[KeyPath], Sequence[str]]) -> list[Mistake]:
    """Return the mistakes in `error`; `known_keys` says which keys the mapping at a path may have.

    Values that could not even be read are left out: that has been said already.
    """
    details = error.errors(include_url=False)
    return [
        _mistake(detail, known_keys)
        for detail in details
        if detail["input"] is not UNREADABLE or detail["type"] == "extra_forbidden"
    ]


def unknown_key(path: KeyPath, known: Sequence[str], remark: str = "") -> Mistake:
    """Return the mistake that the last key of `path` is none of `known`; `remark` says what else could stand there."""
    hint = did_you_mean(str(path[-1]), list(known)) or f" (known here: {', '.join(known)}{remark})"
    return Mistake(path=path, what=f"unknown key{hint}", at_key=True)


def path_text(path: KeyPath) -> str:
    """Return `path` as people write it.

    >>> path_text(("quantization", "my_method", "bitwidth_options", 2))
    'quantization.my_method.bitwidth_options[2]'
    >>> path_text(("quantization", "two words", "bitwidth"))
    "quantization.'two words'.bitwidth"
    """
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            is_plain = re.fullmatch(r"[\w-]{1,60}", part)
            text += f"{'.' if text else ''}{part if is_plain else shown(part)}"
    return text


def sentence(where: str, path: KeyPath, what: str) -> str:
    """Return `where: path: what`, without the path where it is the whole."""
    return ": ".join(part for part in (where, path_text(path), what) if part)


def all_sentences(sentences: Iterable[str]) -> str:
    """Return the sentences, one a line; very many are cut and counted."""
    lines = list(sentences)
    if len(lines) > MAX_SHOWN:
        lines[MAX_SHOWN:] = [f"... and {len(lines) - MAX_SHOWN:,} more mistakes"]
    return "\n".join(lines)


def found(value: object) -> str:
    """Return `value` as a YAML author knows it.

    >>> found(None), found(True), found("abc"), found([1]), found(float("nan"))
    ('nothing', 'true', "'abc'", 'a list', '.nan')
    """
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if type(value) in (str, int, float):
        return shown(value)
    if isinstance(value, list | tuple):
        return "a list"
    # Not its repr: that could be a stranger's code, or a million numbers.
    return "a mapping" if isinstance(value, dict) else f"an object of type {shown(type(value).__name__)}"


_KINDS: Final = {
    "bool_type": "true or false",
    "dict_type": "a mapping of keys",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "model_type": "a mapping of keys",
    "string_type": "text",
    "tuple_type": "a list",
}
_TRUE_FALSE: Final = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def _mistake(detail: ErrorDetails, known_keys: Callable[[KeyPath], Sequence[str]]) -> Mistake:
    path: KeyPath = detail["loc"]
    value: object = detail["input"]
    context = detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return Mistake(path=path, what="this key is missing")
        case "extra_forbidden":
            return unknown_key(path, known_keys(path[:-1]))
        case "model_type" if len(path) == 2 and path[0] == "quantization":
            # Only a mapping under a name of the author's own can be a method; anything else is a key nobody knows.
            return unknown_key(path, known_keys(path[:-1]), "; a method is a mapping with bitwidth_options")
        case "value_error":
            return Mistake(path=path, what=str(context["error"]))
        case "literal_error":
            choices: str = context["expected"]  # 'a', 'b' or 'c'
            hint = did_you_mean(value, re.findall(r"'([^']*)'", choices)) if isinstance(value, str) else ""
            return Mistake(path=path, what=f"expected {choices}, found {found(value)}{hint}")
        case "greater_than":
            return Mistake(path=path, what=f"expected more than {_bound(context['gt'])}, found {found(value)}")
        case "greater_than_equal":
            return Mistake(path=path, what=f"expected at least {_bound(context['ge'])}, found {found(value)}")
        case "less_than_equal":
            return Mistake(path=path, what=f"expected at most {_bound(context['le'])}, found {found(value)}")
        case "string_type" if isinstance(value, bool | int | float):
            # The author's spelling is lost (True, 1.50), so say only that quotes are what is missing.
            return Mistake(path=path, what=f"expected text, found {found(value)}; put it in quotes")
        case "bool_type" if isinstance(value, str) and value.lower() in _TRUE_FALSE:
            meant = _TRUE_FALSE[value.lower()]
            return Mistake(path=path, what=f"expected true or false, found {found(value)}; did you mean {meant}?")
        case kind if kind in _KINDS:
            return Mistake(path=path, what=f"expected {_KINDS[kind]}, found {found(value)}")
        case _:
            return Mistake(path=path, what=f"{detail['msg']}, found {found(value)}")


def _bound(bound: float) -> str:
    # pydantic turns the bounds of a float field into floats; nobody writes "at least 0.0".
    return f"{bound:g}" if isinstance(bound, float) else str(bound)
