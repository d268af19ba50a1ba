"""Kinds of values in an experiment file, and what all of its sections share.

Rules that span several settings are checked at the last of them, where `info.data` holds those that came out right: a
check of the whole would not run at all while any of them is wrong, and so hide mistakes until the next try.
"""

from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from qbw_eval.yaml_reader import shown

MAX_SEED: Final = 2**63 - 1  # a record's seed is an int64
MAX_NAME_BYTES: Final = 200  # file systems stop at 255, and names get prefixes and endings


def list_as_tuple(value: object) -> object:
    """Return a list as a tuple, anything else as it is.

    A lax tuple would also take sets and generators, which have no order or only one use.
    """
    return tuple(value) if isinstance(value, list) else value


def printable_name(name: str) -> str:
    """Return `name` if it can stand in a table and in a log.

    Raises:
        ValueError: it is empty, too long, or has characters that are not printable.
    """
    if not name or len(name.encode(errors="replace")) > MAX_NAME_BYTES or not name.isprintable():
        raise ValueError(f"expected a name of 1 to {MAX_NAME_BYTES} bytes, all printable, found {shown(name)}")
    return name


def _safe_name(name: str) -> str:
    """Return `name` if a file or a folder can bear it too.

    Raises:
        ValueError: it is not printable, or holds what a file name cannot.
    """
    if printable_name(name) in (".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"expected a name without / and \\, and neither . nor .., found {shown(name)}")
    return name


Name = Annotated[str, AfterValidator(_safe_name)]
Bitwidth = Annotated[int, Field(ge=1, le=32)]
Sides = Annotated[int, Field(ge=1, le=16384)]


class Settings(BaseModel):
    """Frozen; nothing is converted silently (a text is no number, true is no 1), nothing unknown is accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)
