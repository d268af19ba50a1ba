"""A network as a list of operations, and the walk over many configurations that recomputes only what changed.

As in a build system: an operation is out of date when the bits of a layer it depends on, itself or through its inputs,
have changed since it last ran. Configurations are walked in lexicographic order of their bits in forward order, which
changes early layers rarely; every value is dropped after its last use, which is known because the whole order is.

What reads one value alone may be computed along with it, in one call (`Rider`): that saves reading the value again.
"""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from qbw_eval.configurations import BitwidthConfiguration

Bits = tuple[int, ...]
"""The bits of every quantized layer, in the order of the layer names."""


Compute = Callable[[Sequence[Any], Bits], Any]
"""What an operation does: (values of its inputs, bits of every layer) -> its value."""


class UnreplayableError(Exception):
    """What is launched cannot be recorded and replayed; the text says why and is no whole sentence."""


class Dialled(Protocol):
    """An operation with bits as data: what it launches is the same for many bits, and looks up on the device which."""

    @property
    def held_bytes(self) -> int:
        """Bytes on the device that are held for as long as this lives."""
        ...

    def form(self, bits: Bits) -> Hashable | None:
        """Return what is launched, as far as bits decide that; None where bits are none that it knows."""
        ...

    def dial(self, bits: Bits) -> tuple[int, int]:
        """Return what says on the device which bits they are."""
        ...

    def run(self, inputs: Sequence[Any], form: Hashable, dial: Tensor, out: Tensor | None) -> Tensor:
        """Return the value for whatever bits `dial` says; the same bits as `Operation.compute`.

        Args:
            inputs: their values.
            form: of the bits.
            dial: (2,) int32 on the device, read there only.
            out: where the value may be written, if that saves a copy.

        Raises:
            UnreplayableError: these inputs need other launches.
        """
        ...


class Rider(Protocol):
    """An operation that may be computed along, in the very call that computes its only input; the same bits."""

    def rides(self, form: Any, /) -> bool:
        """Return whether it may, in this form; where it is walked, at these bits."""
        ...


class Carrier(Protocol):
    """An operation whose call may compute others along: those that read its value."""

    def carries(self, form: Any, /) -> int:
        """Return how many at most, in this form; where it is walked, at these bits."""
        ...


def riders_of(
    operations: "Sequence[Operation]",
    riders: Sequence[Rider | None],
    carriers: Sequence[Carrier | None],
    forms: Sequence[Any],
) -> dict[int, tuple[int, ...]]:
    """Return which operations others are computed along with, and which: each reads nothing else; the first ones first.

    Args:
        operations: of a program.
        riders: what each operation is as a rider; None for one that is none.
        carriers: the same as a carrier.
        forms: of each.
    """
    found: dict[int, tuple[int, ...]] = {}
    for number, (operation, rider) in enumerate(zip(operations, riders, strict=True), start=1):
        if rider is None or len(operation.inputs) != 1 or not rider.rides(forms[number - 1]):
            continue
        (source,) = operation.inputs
        carrier = carriers[source - 1] if source else None
        others = found.get(source, ())
        if carrier is not None and len(others) < carrier.carries(forms[source - 1]):
            found[source] = (*others, number)
    return found


class WalkedCarrier(Carrier, Protocol):
    """See `Carrier`; where it is walked."""

    def compute_with(
        self, inputs: Sequence[Any], bits: Bits, riders: Sequence[Rider], *, kept: bool
    ) -> tuple[Any, ...]:
        """Return its value, then those of its riders; the same bits as `Operation.compute` of each.

        Args:
            inputs: their values.
            bits: of every layer.
            riders: what is computed along; `Operation.rider` of each.
            kept: whether somebody else reads its value, which may be None where nobody does.
        """
        ...


@runtime_checkable
class DialledRider(Dialled, Rider, Protocol):
    """See `Rider`; with bits as data."""


class Ride(NamedTuple):
    """What a launch is asked to compute along.

    Attributes:
        rider: the operation.
        form: of its bits.
        dial: (2,) int32 on the device.
        out: where its value may be written; new memory if None.
    """

    rider: DialledRider
    form: Hashable
    dial: Tensor
    out: Tensor | None


class Addition(NamedTuple):
    """What a launch is asked to compute first, and to add; nobody else needs its value.

    Attributes:
        summand: the operation.
        inputs: their values.
        form: of its bits.
        dial: (2,) int32 on the device.
    """

    summand: Dialled
    inputs: Sequence[Any]
    form: Hashable
    dial: Tensor


@runtime_checkable
class DialledCarrier(Dialled, Carrier, Protocol):
    """See `Carrier`; with bits as data. Its launch may compute along the operation that it adds, too."""

    def adds(self, form: Hashable, summand: Dialled, of_summand: Hashable) -> bool:
        """Return whether it may compute its last input along, which is that operation's value, in these forms."""
        ...

    def run_with(
        self,
        inputs: Sequence[Any],
        form: Hashable,
        dial: Tensor,
        out: Tensor | None,
        rides: Sequence[Ride],
        addition: Addition | None,
    ) -> tuple[Tensor, ...]:
        """Return its value, then those of its riders; the same bits as `run` of each.

        Args:
            inputs: their values; but the last, where there is an addition.
            form: of the bits.
            dial: (2,) int32 on the device, read there only.
            out: where the value may be written, if that saves a copy.
            rides: what is computed along that reads its value.
            addition: what is computed along to be added.

        Raises:
            UnreplayableError: these inputs need other launches.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One step of a forward pass.

    Attributes:
        name: for people.
        inputs: where in the program its inputs are computed; all before itself.
        layers: which layers' bits it looks at, as positions in the layer names.
        compute: a pure function of its inputs and those bits; it changes no input, and does not depend on what was
            walked before.
        dialled: the same with bits as data; None where nobody knows how, or there are no layers.
        rider: the same along with its only input; None where that is not known.
        carrier: the same with others along that read its value; None where that is not known.
    """

    name: str
    inputs: tuple[int, ...]
    layers: frozenset[int]
    compute: Compute
    dialled: Dialled | None = None
    rider: Rider | None = None
    carrier: WalkedCarrier | None = None


class Turn(NamedTuple):
    """What is computed in one call.

    Attributes:
        number: the operation.
        drop: the values that have no use after it.
        along: the operations that are computed along, which all come later in the program, and read nothing else.
    """

    number: int
    drop: tuple[int, ...]
    along: tuple[int, ...] = ()


@dataclass(frozen=True)
class Step:
    """What one configuration needs.

    Attributes:
        position: of the configuration in the list that was handed in.
        run: the operations that are out of date, in program order but for those that are computed along.
        drop: the values that have no use after the configuration's result.
    """

    position: int
    run: tuple[Turn, ...]
    drop: tuple[int, ...]

    @property
    def numbers(self) -> tuple[int, ...]:
        """All operations that are out of date, in program order."""
        return tuple(sorted(number for turn in self.run for number in (turn.number, *turn.along)))


class Program:
    """Operations in an order in which each comes after its inputs; the first is the batch, the last the result.

    The batch is given, not computed, and never dropped.

    Args:
        operations: all but the batch, which is position 0 for their `inputs`.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = tuple(operations)
        self.depends_on: list[frozenset[int]] = [frozenset()]
        """Per position: the layers whose bits a value depends on, through any number of operations."""
        for operation in operations:
            inherited = (self.depends_on[position] for position in operation.inputs)
            self.depends_on.append(operation.layers.union(*inherited))
        self._riders = [operation.rider for operation in self.operations]
        self._carriers = [operation.carrier for operation in self.operations]

    def plan(self, configurations: Sequence[BitwidthConfiguration]) -> list[Step]:
        """Return the walk over the configurations: lexicographic order, least work, every value dropped when it can be.

        A value's last use is the last one before it is computed again; the result's use is being handed out. What is
        computed along is out of date whenever its carrier is, and has used the carrier's value once that is computed;
        itself it carries nobody.
        """
        order = sorted(range(len(configurations)), key=lambda position: configurations[position].bitwidths)
        runs: list[list[tuple[int, ...]]] = []  # per step: an operation, and those that are computed along with it
        drops: dict[tuple[int, int], list[int]] = {}  # (step, index in its run; len(run): after the result) -> values
        last_use: dict[int, tuple[int, int]] = {}
        before: Bits | None = None
        result = len(self.operations)
        for step, position in enumerate(order):
            bits = configurations[position].bitwidths
            changed = {layer for layer, value in enumerate(bits) if before is None or value != before[layer]}
            riders = riders_of(self.operations, self._riders, self._carriers, [bits] * result)
            computed: set[int] = set()
            runs.append([])
            for number, operation in enumerate(self.operations, start=1):
                if number in computed or (before is not None and not changed & self.depends_on[number]):
                    continue
                together = (number, *riders.get(number, ()))
                for each in together:
                    if each in last_use:
                        drops.setdefault(last_use[each], []).append(each)
                use = (step, len(runs[-1]))
                used = operation.inputs if len(together) == 1 else (*operation.inputs, number)
                last_use.update(dict.fromkeys((value for value in used if value != 0), use))
                computed.update(together)
                runs[-1].append(together)
            last_use[result] = (step, len(runs[-1]))
            before = bits
        for number, use in last_use.items():
            drops.setdefault(use, []).append(number)
        return [
            Step(
                position=position,
                run=tuple(
                    Turn(number, tuple(drops.get((step, index), ())), tuple(along))
                    for index, (number, *along) in enumerate(runs[step])
                ),
                drop=tuple(drops.get((step, len(runs[step])), ())),
            )
            for step, position in enumerate(order)
        ]

    def walk(
        self,
        batch: Any,
        configurations: Sequence[BitwidthConfiguration],
        steps: Sequence[Step],
        enter: Callable[[Bits], None] = lambda _bits: None,
        watch: Callable[[Collection[Any]], None] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """Yield (position, result) of every configuration, in the order of `steps`.

        Args:
            batch: the value at position 0.
            configurations: what `steps` was planned for.
            steps: from `plan`.
            enter: called with the bits of each configuration before anything of it is computed.
            watch: called with all values that live, the batch first, after every turn.
        """
        values: dict[int, Any] = {0: batch}
        for step in steps:
            bits = configurations[step.position].bitwidths
            enter(bits)
            for turn in step.run:
                values |= self._computed(turn, values, bits)
                if watch is not None:
                    watch(values.values())
                for position in turn.drop:
                    del values[position]
            yield step.position, values[len(self.operations)]
            for position in step.drop:
                del values[position]

    def _computed(self, turn: Turn, values: Mapping[int, Any], bits: Bits) -> dict[int, Any]:
        """Return the values of an operation and of those that are computed along; it keeps none of them."""
        operation = self.operations[turn.number - 1]
        inputs = [values[position] for position in operation.inputs]
        if not turn.along:
            return {turn.number: operation.compute(inputs, bits)}
        riders = [rider for number in turn.along if (rider := self._riders[number - 1]) is not None]
        assert operation.carrier is not None
        found = operation.carrier.compute_with(inputs, bits, riders, kept=turn.number not in turn.drop)
        return dict(zip((turn.number, *turn.along), found, strict=True))
