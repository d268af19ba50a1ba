"""Anything at all -> plain values: what a checkpoint calls its configuration may hold tensors, cycles or worse.

Only exact built-in types pass, so that nothing a stranger defined is ever compared, printed or converted.
"""

from collections.abc import Mapping

from qbw_eval.mistakes import Mistake, found
from qbw_eval.yaml_reader import MAX_DEPTH, MAX_DIGITS, MAX_NODES, UNREADABLE, KeyPath, is_encodable, shown


def plain_values(value: object) -> tuple[object, list[Mistake]]:
    """Return `value` as str, int, float, bool, None, list and dict, and what in it is none of these.

    What cannot be taken over becomes `UNREADABLE` (a key that cannot be is left out). Depth and count are bounded.

    >>> plain_values({"sizes": (8, 8)})
    ({'sizes': [8, 8]}, [])
    """
    walk = _Walk()
    return walk.value_of(value, ()), walk.mistakes


class _Walk:
    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self.nodes = 0

    def value_of(self, value: object, path: KeyPath) -> object:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            if self.nodes == MAX_NODES + 1:
                self.mistake(path, f"more than {MAX_NODES:,} values, shared ones counted as often as used")
            return UNREADABLE
        if len(path) >= MAX_DEPTH:
            # Also where a cycle ends.
            return self.mistake(path, f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, Mapping):
            return self.mapping_of(value, path)
        if isinstance(value, list | tuple):
            return [self.value_of(item, (*path, i)) for i, item in enumerate(value)]
        if type(value) is str and not is_encodable(value):
            return self.mistake(path, f"expected text, found half of a surrogate pair in {shown(value)}")
        if type(value) is int and abs(value) >= 10**MAX_DIGITS:
            return self.mistake(path, f"a whole number of more than {MAX_DIGITS} digits is too long")
        if value is None or type(value) in (str, int, float, bool):
            return value
        return self.mistake(path, f"expected a plain value, found {found(value)}")

    def mapping_of(self, mapping: Mapping[object, object], path: KeyPath) -> dict[str, object]:
        values: dict[str, object] = {}
        for key, value in mapping.items():
            if type(key) is not str or not is_encodable(key):
                self.mistake(path, f"expected a name as the key, found {found(key)}")
            else:
                values[key] = self.value_of(value, (*path, key))
        return values

    def mistake(self, path: KeyPath, what: str) -> object:
        self.mistakes.append(Mistake(path=path, what=what))
        return UNREADABLE
