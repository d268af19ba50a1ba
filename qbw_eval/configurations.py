"""Which bitwidth configurations to evaluate: seeded samplers without duplicates, the same on every machine.

Draws come from SHAKE-128 of (sampler, seed, draw), not from a generator whose stream may change between versions of a
library, and torch's global generator is neither read nor moved. A sampler's version changes when its draws do.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product

from schemas.errors import UsageError
from schemas.records import hash_of


@dataclass(frozen=True, kw_only=True)
class BitwidthConfiguration:
    """The bits of every quantized layer.

    Attributes:
        bitwidths: one of the options per layer, in forward order of the layer table.
        index: position in the sampler's sequence, from 0.
        target_cost, target: the cost that the sampler aimed at, and its value there; None where it aimed at none.
    """

    bitwidths: tuple[int, ...]
    index: int
    target_cost: str | None = None
    target: float | None = None

    @property
    def config_id(self) -> str:
        """The hash that names these bits."""
        return hash_of({"bitwidths": list(self.bitwidths)})


def number_of_configurations(num_layers: int, options: Sequence[int]) -> int:
    """Return how many configurations exist."""
    return math.prod([len(options)] * num_layers)


def _iid(num_layers: int, options: Sequence[int], seed: int) -> Iterator[tuple[int, ...]]:
    """Draw each layer's bits independently and uniformly, leaving out what was drawn before (the seed document's way).

    The sequence does not depend on how many are taken, so a later run with more continues an earlier one.
    """
    total = number_of_configurations(num_layers, options)
    seen: set[tuple[int, ...]] = set()
    draw = 0
    while len(seen) < total:
        if draw >= 64 * total:  # a small space, nearly used up: finish it in order instead of waiting for luck
            yield from (bits for bits in product(options, repeat=num_layers) if bits not in seen)
            return
        stream = hashlib.shake_128(f"qbw iid/1 seed={seed} draw={draw}".encode()).digest(8 * num_layers)
        # 64 bits a layer: the bias of the remainder is below 1e-17.
        bits = tuple(options[int.from_bytes(stream[8 * i : 8 * i + 8]) % len(options)] for i in range(num_layers))
        draw += 1
        if bits not in seen:
            seen.add(bits)
            yield bits


def _uniform(num_layers: int, options: Sequence[int], seed: int) -> Iterator[tuple[int, ...]]:
    """Give every layer the same option, each option once; the seed has nothing to decide."""
    del seed
    yield from ((bits,) * num_layers for bits in options)


_SAMPLERS: dict[str, Callable[[int, Sequence[int], int], Iterator[tuple[int, ...]]]] = {
    "iid": _iid,
    "uniform": _uniform,
}
VERSIONED_NAMES = {"iid": "iid/1", "uniform": "uniform/1"}
"""What rows call each sampler."""

SEEDED = frozenset({"iid"})
"""The samplers whose draws depend on the seed; for the others it is no part of a row's identity."""


def sample(sampler: str, num_layers: int, options: Sequence[int], count: int, seed: int) -> list[BitwidthConfiguration]:
    """Return the first `count` configurations of a sampler, fewer where no more exist.

    Args:
        sampler: "iid" or "uniform".
        num_layers: quantized layers of the network, at least 1.
        options: the bitwidths to choose from; order does not matter.
        count: how many, at least 0.
        seed: any integer.

    Raises:
        UsageError: there is no such sampler.
    """
    if sampler not in _SAMPLERS:
        raise UsageError(f"sampler: expected one of {', '.join(_SAMPLERS)}, found {sampler!r}")
    ordered = tuple(sorted(set(options)))
    drawn = islice(_SAMPLERS[sampler](num_layers, ordered, seed), count)
    return [BitwidthConfiguration(bitwidths=bits, index=index) for index, bits in enumerate(drawn)]
