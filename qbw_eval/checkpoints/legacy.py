"""A file of torch.save before torch 1.6 (Any-Precision DNN's authors used 1.1) -> its pickle and its storages.

No archive, and no checksum: a number that marks the format, its version, facts about the machine, the content's pickle,
the keys of the storages, and the storages in that order, each behind its number of elements, to the end of the file
(torch/serialization.py, _legacy_save).
"""

from collections.abc import Mapping
from typing import Final

from qbw_eval.checkpoints.beside_weights import ContentError, is_size
from qbw_eval.checkpoints.pickle_reader import Call, Name, Pickled, read_pickle
from qbw_eval.checkpoints.tensors import STORAGES

MAGIC: Final = b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
"""The number that marks the format, as a pickle of any protocol holds it."""

_VERSION = 1001


def is_legacy(data: memoryview) -> bool:
    """Return whether a file begins as the format does."""
    return bytes(data[:1]) == b"\x80" and bytes(data[2:14]) == MAGIC


def read_legacy(data: memoryview) -> tuple[Pickled, Mapping[str, memoryview]]:
    """Return the pickle of the content, and the bytes of every storage by its key.

    Raises:
        PickleError: one of the pickles is none.
        ContentError: something else is not as the format has it, or not there.
    """
    magic = read_pickle(data)
    version = read_pickle(data, magic.end)
    machine = read_pickle(data, version.end)
    facts = dict(machine.content.pairs) if isinstance(machine.content, Call) and _has_names(machine.content) else {}
    if version.content != _VERSION or facts.get("little_endian") is not True:
        raise ContentError("expected torch's format before 1.6 on a little-endian machine, found another version of it")
    content = read_pickle(data, machine.end)
    keys = read_pickle(data, content.end)
    if not isinstance(keys.content, list) or not all(isinstance(key, str) for key in keys.content):
        raise ContentError("damaged: its list of storages is none")
    return content, _storages(data, keys.end, keys.content, _element_sizes(content))


def _has_names(call: Call) -> bool:
    return all(isinstance(key, str) for key, _ in call.pairs)


def _element_sizes(content: Pickled) -> dict[str, int]:
    """Return the bytes of an element of every storage that the content refers to, by the storage's key."""
    sizes: dict[str, int] = {}
    for persistent in content.persistent:
        match persistent.reference:
            case ("storage", Name(name=kind), str() as key, *_) if kind in STORAGES:
                sizes[key] = STORAGES[kind].itemsize
    return sizes


def _storages(data: memoryview, at: int, keys: list[str], element_sizes: Mapping[str, int]) -> dict[str, memoryview]:
    """Return the bytes of the storages, which must fill the file to its end."""
    records: dict[str, memoryview] = {}
    for key in keys:
        if key not in element_sizes or key in records:
            raise ContentError(f"damaged: the content has no storage {key!r:.40}, which follows it")
        count = int.from_bytes(data[at : at + 8], "little")
        end = at + 8 + count * element_sizes[key]
        if not is_size(count) or end > len(data):
            raise ContentError("damaged or cut short: a storage claims more bytes than the file has; copy it again")
        records[key] = data[at + 8 : end]
        at = end
    if at != len(data):
        raise ContentError(f"damaged: {len(data) - at:,} bytes follow its last storage")
    return records
