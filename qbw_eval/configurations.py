"""Which bitwidth configurations to evaluate: seeded samplers without duplicates, the same on every machine.

A sampler is a sequence that does not depend on how many configurations are taken, so a later run with more continues an
earlier one. A sampler's version changes when its sequence does; torch's global generator is neither read nor moved.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

from qbw_eval.cost import costs_over
from qbw_eval.layer_table import LayerTable
from qbw_eval.sampling import samplers
from qbw_eval.sampling.ranges import CostRange
from qbw_eval.sampling.samplers import Draw, Within
from schemas.costs import COSTS, Cost, average_cost
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


VERSIONED_NAMES = {
    "iid": "iid/1",
    "uniform": "uniform/1",
    "stratified": "stratified/1",
    "one-layer": "one-layer/1",
    "neighbours": "neighbours/1",
    "file": "file/1",
}
"""The samplers, and what rows call them."""

SEEDED = frozenset({"iid", "stratified"})
"""The samplers whose draws depend on the seed, and that are asked for a number of configurations; the others have what
they have, and the seed is no part of a row's identity."""


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """What a sampler can be told besides its seed.

    Attributes:
        range: configurations outside are left out, by any sampler.
        cost: stratified: what is spread evenly; that of the range, else avg_bitwidth, where None.
        base: one-layer: the bits of the other layers; the largest option where None.
        given: file: the configurations; neighbours: the one whose neighbours are wanted.
        source: where those come from, for errors.
    """

    range: CostRange | None = None
    cost: str | None = None
    base: int | None = None
    given: tuple[tuple[int, ...], ...] = ()
    source: str = field(default="given", compare=False)

    @property
    def spread_cost(self) -> str:
        """The cost that `stratified` spreads evenly."""
        return self.cost or (self.range.cost if self.range else "avg_bitwidth")

    @property
    def needs_sizes(self) -> bool:
        """Whether more must be known of the layers than how many there are."""
        return self.spread_cost != "avg_bitwidth"

    def facts(self, sampler: str, options: Sequence[int]) -> dict[str, object]:
        """Return what decides the sampler's sequence besides seed, options and layers, as plain JSON.

        Empty for `iid` and `uniform` without a range: their rows were named before there was anything to tell.
        """
        facts: dict[str, object] = {}
        if self.range:
            facts["range"] = self.range.facts
        if sampler == "stratified":
            facts["cost"] = self.spread_cost
        if sampler == "one-layer":
            facts["base"] = options[-1] if self.base is None else self.base
        if self.given:
            facts["given"] = hash_of({"configurations": [list(bits) for bits in self.given]})
        return facts


PLAIN = SamplerSettings()
"""Nothing is told."""


_GOES_WITH = {"cost": ("stratified",), "base": ("one-layer",), "given": ("file", "neighbours")}
"""Settings, and the only samplers that they mean something to."""


def number_of_configurations(num_layers: int, options: Sequence[int]) -> int:
    """Return how many configurations exist."""
    return math.prod([len(options)] * num_layers)


def sample(
    sampler: str,
    layers: LayerTable | int,
    options: Sequence[int],
    count: int | None,
    seed: int,
    settings: SamplerSettings = PLAIN,
) -> list[BitwidthConfiguration]:
    """Return the first `count` configurations of a sampler, fewer where no more exist.

    Args:
        sampler: one of `VERSIONED_NAMES`.
        layers: the network's quantized layers, at least one; their number is enough for `avg_bitwidth`.
        options: the bitwidths to choose from; order does not matter.
        count: how many, at least 0; None for all there are, of samplers that are not SEEDED.
        seed: any integer.
        settings: what else the sampler is told.

    Raises:
        UsageError: there is no such sampler, its settings do not fit it, the options or the layers, or no configuration
            lies in the range.
        ValueError: a sampler that draws is not told how many.
    """
    if sampler not in VERSIONED_NAMES:
        raise UsageError(f"sampler: expected one of {', '.join(VERSIONED_NAMES)}, found {sampler!r}")
    if count is None and sampler in SEEDED:
        raise ValueError(f"the sampler {sampler!r} must be told how many")
    return list(_sampled(sampler, layers, tuple(sorted(set(options))), count, seed, settings))


@lru_cache(maxsize=4)
def _sampled(
    sampler: str,
    layers: LayerTable | int,
    options: tuple[int, ...],
    count: int | None,
    seed: int,
    settings: SamplerSettings,
) -> tuple[BitwidthConfiguration, ...]:
    """Return what `sample` does; the checkpoints of a run share it, and counting may take seconds."""
    num_layers = layers if isinstance(layers, int) else len(layers)
    _check_settings(sampler, num_layers, options, settings)
    if not options:
        return ()
    within = _within(layers, options, settings)
    drawn = tuple(islice(_draws(sampler, num_layers, options, seed, settings, within), count))
    if not drawn and count != 0:
        raise UsageError(
            f"range {settings.range}: none of the configurations of the sampler {sampler!r} lies there; "
            f"{_reach(within.cost, options)}"
        )
    return tuple(
        BitwidthConfiguration(
            bitwidths=draw.bitwidths,
            index=index,
            target_cost=None if draw.target is None else settings.spread_cost,
            target=draw.target,
        )
        for index, draw in enumerate(drawn)
    )


def _draws(
    sampler: str, num_layers: int, options: tuple[int, ...], seed: int, settings: SamplerSettings, within: Within
) -> Iterator[Draw]:
    """Return the sampler's sequence, without what lies outside the range."""
    match sampler:
        case "stratified":
            return samplers.stratified(within, options, seed)
        case "iid" if settings.range:
            return samplers.iid_within(within, options, seed)
        case "iid":
            return samplers.iid(num_layers, options, seed)
        case "uniform":
            draws = samplers.uniform(num_layers, options)
        case "one-layer":
            base = options[-1] if settings.base is None else settings.base
            draws = samplers.one_layer(num_layers, options, base)
        case "neighbours":
            draws = samplers.neighbours(settings.given[0], options)
        case _:
            draws = (Draw(bitwidths) for bitwidths in settings.given)
    return (draw for draw in draws if within.holds(draw.bitwidths))


def _within(layers: LayerTable | int, options: tuple[int, ...], settings: SamplerSettings) -> Within:
    """Return which configurations the settings leave: all, or those in the range.

    Raises:
        UsageError: the cost needs what is not known of the layers, or there is none at all in the range.
    """
    name = settings.range.cost if settings.range else settings.spread_cost
    cost = _cost_named(name, layers, options)
    num_layers = len(cost.sizes)
    lowest, highest = (cost.total((bits,) * num_layers) for bits in (options[0], options[-1]))
    if settings.range is None:
        return Within(cost, lowest, highest)
    first, last = settings.range.totals(cost, lowest, highest)
    if first > last:
        raise UsageError(f"range {settings.range}: there is no configuration; {_reach(cost, options)}")
    return Within(cost, first, last)


def _cost_named(name: str, layers: LayerTable | int, options: tuple[int, ...]) -> Cost:
    if isinstance(layers, LayerTable):
        return costs_over(layers, options[-1])[name]
    if name != "avg_bitwidth":
        raise UsageError(f"cost {name}: only the number of layers is known here, not their sizes; use avg_bitwidth")
    return average_cost(layers)


def _check_settings(sampler: str, num_layers: int, options: tuple[int, ...], settings: SamplerSettings) -> None:
    """Raise UsageError where the settings go with another sampler, or do not fit options and layers."""
    if settings.cost not in (None, *COSTS):
        raise UsageError(f"cost: expected one of {', '.join(COSTS)}, found {settings.cost!r}")
    for name, its_samplers in _GOES_WITH.items():
        if sampler not in its_samplers and getattr(settings, name) not in (None, ()):
            raise UsageError(f"{name}: goes with the sampler {' or '.join(its_samplers)}, not with {sampler}")
    if settings.range and settings.cost not in (None, settings.range.cost):
        raise UsageError(
            f"cost {settings.cost}: expected the cost of the range {settings.range}; what is spread is what is bounded"
        )
    if settings.base not in (None, *options):
        raise UsageError(f"base: expected one of the options {list(options)}, found {settings.base}")
    if sampler == "file" and not settings.given:
        raise UsageError("sampler 'file': expected configurations, found none; name a file of them")
    if sampler == "neighbours" and len(settings.given) != 1:
        raise UsageError(
            f"sampler 'neighbours': expected one configuration whose neighbours are wanted, found {len(settings.given)}"
        )
    first: dict[tuple[int, ...], int] = {}
    for number, bitwidths in enumerate(settings.given, start=1):
        where = f"{settings.source}: configuration {number}"
        if len(bitwidths) != num_layers:
            raise UsageError(f"{where}: expected bits for {num_layers} layers, found {len(bitwidths)}")
        wrong = sorted(set(bitwidths) - set(options))
        if wrong:
            raise UsageError(f"{where}: expected bits among the options {list(options)}, found {_listed(wrong)}")
        if first.setdefault(bitwidths, number) != number:
            raise UsageError(f"{where}: the same as configuration {first[bitwidths]}; leave one of them out")


def _reach(cost: Cost, options: tuple[int, ...]) -> str:
    num_layers = len(cost.sizes)
    lowest, highest = (cost.value(cost.total((bits,) * num_layers)) for bits in (options[0], options[-1]))
    return f"{num_layers} layers at {list(options)} reach {_number(lowest)} to {_number(highest)}"


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
