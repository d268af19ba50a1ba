"""What is computed once per layer and bitwidth and kept, as long as there is room: weights, quantized or packed."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """A cache that forgets what was used longest ago when it would grow too large.

    Args:
        limit: bytes; a value that is larger by itself is computed anew every time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._entries: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], tuple[Value, int]]) -> Value:
        """Return the value of `key`; where it is not kept, `make` returns it with its size in bytes."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key][0]
        value, size = make()
        if size <= self.limit:
            self._entries[key] = value, size
            self.size += size
            while self.size > self.limit:
                _, (_, forgotten) = self._entries.popitem(last=False)
                self.size -= forgotten
        return value
