"""A program's launches, recorded once and replayed for every configuration: how a GPU is kept busy.

Launching a kernel takes longer than most kernels of a small network run. A GPU can record launches (a CUDA graph) and
repeat them all at one word, but repeats the very same ones, on the very same memory. So every value of a forward pass
has its own place in memory here, and bits are data (`walk.Dialled`): a table on the device holds the dials of every
configuration, and before a replay one row of it is copied to where the launches look.

**From which launch on** depends on the configuration: as in `walk`, only operations that depend on a layer whose bits
changed run again. Each set of operations that the order of configurations asks for is recorded once. Where there would
be too many sets, whatever follows the first operation of a set counts to it: running what is up to date already
changes nothing.

**Side by side.** Small networks do not fill a GPU. So configurations can be walked on several *lanes*, each a queue of
the device with memory of its own; how many pays is measured.

What reads a value on the host, or is launched differently for other bits, cannot be replayed; `Replay.refuses` says
so, and the caller walks.
"""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.engine.walk import (
    Addition,
    Bits,
    DialledCarrier,
    DialledRider,
    Operation,
    Program,
    Ride,
    UnreplayableError,
    riders_of,
)

MOST_RECORDINGS = 64
"""Sets of operations that are recorded one by one; with more of them, each is from its first operation on."""

LANES = (1, 2, 4)
"""Numbers of lanes that are tried."""

_WORTH = 0.97
"""More lanes cost memory: they have to take at most so much of the time that fewer take."""

_TRIED = 16
"""Configurations that are replayed to see how many lanes pay."""

Replayed = Callable[[], object]


class Lane(Protocol):
    """A queue of work on a device."""

    def queue(self) -> AbstractContextManager[object]:
        """Return a context in which work goes to this queue."""
        ...

    def record(self, run: Callable[[], None]) -> Replayed:
        """Return what repeats the launches of `run`, in the queue of whoever calls it, without calling `run` again."""
        ...

    def follow(self) -> None:
        """Let this queue wait for all that the caller's has been given."""
        ...

    def hand_over(self, value: Tensor) -> None:
        """Let the caller's queue wait for all that this one has been given, of which `value` is a result."""
        ...


@dataclass(frozen=True)
class _Course:
    """What one lane does: configurations by their positions in the list, and the operations that each runs."""

    positions: tuple[int, ...]
    runs: tuple[tuple[int, ...], ...]
    dials: Tensor
    """(configurations, operations, 2) int32 on the device."""


Forms = tuple[Hashable, ...]
"""Of each operation, what it launches; None for those without layers."""

_PLANS = 2
"""Plans that are kept: of a chunk, and of the reference configuration, which turn and turn about meet each batch."""


@dataclass(frozen=True)
class _Plan:
    """What is known of a list of configurations before any batch: forms, or why there are none; courses by lanes."""

    configurations: Sequence[BitwidthConfiguration]
    forms: Forms | str
    courses: dict[int, list[_Course]] = field(default_factory=dict)


def _key(plan: _Plan, batch: Sequence[Tensor]) -> Hashable:
    """Return what one recording serves."""
    return plan.forms, tuple((tensor.shape, tensor.dtype, tensor.stride()) for tensor in batch)


class Replay:
    """Walks configurations by replaying; the same bits as `Program.walk`.

    Args:
        program: the operations.
        device: where they run.
        new_lane: makes a lane.
        most_bytes: what the values of all lanes may take together.
        seconds: what a call takes, and all work it gives to the device; None for one lane, whatever it takes.
    """

    def __init__(
        self,
        program: Program,
        device: torch.device,
        new_lane: Callable[[], Lane],
        most_bytes: int,
        seconds: Callable[[Callable[[], None]], float] | None = None,
    ) -> None:
        self._program = program
        self._device = device
        self._new_lane = new_lane
        self._most_bytes = most_bytes
        self._seconds = seconds
        self._lanes: list[_Places] = []
        self._tracks: dict[Hashable, list[_Track]] = {}
        self._counts: dict[Hashable, int] = {}
        self._plans: deque[_Plan] = deque(maxlen=_PLANS)

    def refuses(self, configurations: Sequence[BitwidthConfiguration]) -> str | None:
        """Return why configurations cannot be replayed, as no whole sentence; None where they can."""
        forms = self._plan(configurations).forms
        return forms if isinstance(forms, str) else None

    def walk(
        self, batch: Sequence[Tensor], configurations: Sequence[BitwidthConfiguration]
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (position, result) of every configuration, each once; a result is the caller's own.

        Nothing is fetched from the device. The first batch of a shape is slower: its launches are recorded.

        Args:
            batch: the value at position 0.
            configurations: such that `refuses` does not.

        Raises:
            UnreplayableError: a value of the program is none that can be kept in one place.
        """
        plan = self._plan(configurations)
        key = _key(plan, batch)
        if key not in self._counts and len(configurations) >= 2 * max(LANES):  # with fewer there is little to measure
            self._counts[key] = self._best_count(batch, plan)
        count = min(self._counts.get(key, 1), len(configurations))
        yield from self._drive(self._prepared(batch, plan, count))

    def bytes_for(self, batch: Sequence[Tensor], configurations: Sequence[BitwidthConfiguration]) -> int:
        """Return what the values of one lane take for such a batch."""
        plan = self._plan(configurations)
        assert not isinstance(plan.forms, str)
        (course,) = _courses(self._program, plan.configurations[:1], 1, self._device)
        return _Track(self._program, _Places(self._new_lane()), batch, plan.forms, course.dials[0]).size

    def _plan(self, configurations: Sequence[BitwidthConfiguration]) -> _Plan:
        """Return the plan, which is the same for every batch."""
        for plan in self._plans:
            if plan.configurations is configurations:
                return plan
        self._plans.append(_Plan(configurations, _forms_of(self._program, configurations)))
        return self._plans[-1]

    # --- set up, once per batch shape -------------------------------------------------------------------------------

    def _prepared(self, batch: Sequence[Tensor], plan: _Plan, count: int) -> "list[tuple[_Track, _Course]]":
        """Return `count` lanes that hold the batch and have recorded all that their courses need."""
        assert not isinstance(plan.forms, str)
        if count not in plan.courses:
            plan.courses[count] = _courses(self._program, plan.configurations, count, self._device)
        courses = plan.courses[count]
        tracks = self._tracks.setdefault(_key(plan, batch), [])
        self._lanes += [_Places(self._new_lane()) for _ in range(count - len(self._lanes))]
        for places, course in zip(self._lanes[len(tracks) : count], courses[len(tracks) :], strict=True):
            tracks.append(_Track(self._program, places, batch, plan.forms, course.dials[0]))
        pairs = list(zip(tracks, courses, strict=False))
        for track, course in pairs:
            track.load(batch)
            for run in dict.fromkeys(course.runs):
                track.record(run)
        return pairs

    def _best_count(self, batch: Sequence[Tensor], plan: _Plan) -> int:
        """Return how many lanes are worth their memory."""
        if self._seconds is None:
            return 1
        affordable = self._most_bytes // max(1, self._prepared(batch, plan, 1)[0][0].size)
        best, fastest = 1, float("inf")
        for count in LANES:
            if count == 1 or count <= affordable:
                pairs = self._prepared(batch, plan, count)
                _exhaust(self._drive(pairs, _TRIED))  # what is replayed for the first time takes longer
                taken = self._seconds(partial(_exhaust, self._drive(pairs, _TRIED)))
                if taken < _WORTH * fastest:
                    best, fastest = count, taken
        del self._tracks[_key(plan, batch)][best:]
        del self._lanes[max([best, *self._counts.values()]) :]
        return best

    # --- the walk itself --------------------------------------------------------------------------------------------

    def _drive(
        self, pairs: "Sequence[tuple[_Track, _Course]]", most: int | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (position, result), the lanes taking turns; of `most` configurations, if that is given."""
        turns = [
            (track, course, step) for step in range(max(len(course.runs) for _, course in pairs))
            for track, course in pairs if step < len(course.runs)
        ]  # fmt: skip
        for track, course, step in turns[:most]:
            yield course.positions[step], track.replay(course.runs[step], course.dials[step])


def _nothing() -> None:
    """Replay what has no launch: where configurations are equal."""


def _exhaust(results: Iterator[object]) -> None:
    for _ in results:
        pass


class _Places:
    """A lane, and where the values of its walks lie: one place each, of the largest batch so far."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self._memory: dict[object, Tensor] = {}

    def like(self, name: object, value: Tensor) -> Tensor:
        """Return a tensor of the shape, type and strides of `value`, in the place called `name`.

        Batches of two shapes share it, since the values of one are not needed once another comes.
        """
        if not value.is_contiguous() and not torch.empty_like(value).stride() == value.stride():
            raise UnreplayableError("a value has gaps in memory")
        size = value.numel() * value.element_size()
        if name not in self._memory or self._memory[name].numel() < size:
            self._memory[name] = torch.empty(size, dtype=torch.uint8, device=value.device)
        return self._memory[name][:size].view(value.dtype).as_strided(value.shape, value.stride())


class _Track:
    """One lane's values for batches of one shape, each in its place, and what was recorded of them.

    Everything runs once when this is made, so that kernels are compiled and places are known.
    """

    def __init__(self, program: Program, places: _Places, batch: Sequence[Tensor], forms: Forms, dials: Tensor) -> None:
        self._program, self._places, self._forms = program, places, forms
        self._lane = places.lane
        self._recorded: dict[tuple[int, ...], Replayed] = {}
        self._computed: set[int] = set()
        self._riders = _riders_of(program, forms)
        self._summands = _summands_of(program, forms)
        self._lane.follow()
        with self._lane.queue():
            self._dials = dials.clone()
            leaves = tuple(places.like(("batch", number), tensor) for number, tensor in enumerate(batch))
            for leaf, tensor in zip(leaves, batch, strict=True):
                leaf.copy_(tensor)
            self._values: list[Any] = [leaves]
            for number in range(1, len(program.operations) + 1):
                if number in self._summands.values():  # computed with the sum, always, and kept nowhere
                    self._values.append(None)
                    continue
                # Riders by themselves, too, as they run where their carrier is up to date.
                self._values.append(self._placed(number, self._compute_together(number)[0]))
        self.size: int = sum(self._values[number].nbytes for number in self._computed)
        if not isinstance(self._values[-1], Tensor):
            raise UnreplayableError("its result is no tensor")

    def load(self, batch: Sequence[Tensor]) -> None:
        """Take another batch."""
        self._lane.follow()
        with self._lane.queue():
            for leaf, tensor in zip(self._values[0], batch, strict=True):
                leaf.copy_(tensor)

    def record(self, run: tuple[int, ...]) -> None:
        """Record operations, unless that was done."""
        numbers = tuple(number for number in run if number in self._computed)
        if numbers not in self._recorded:
            self._recorded[numbers] = self._lane.record(partial(self._run, numbers)) if numbers else _nothing
        self._recorded[run] = self._recorded[numbers]

    def replay(self, run: tuple[int, ...], dials: Tensor) -> Tensor:
        """Return the result for a configuration's dials, of which `run` is what is out of date."""
        with self._lane.queue():
            self._dials.copy_(dials)
            self._recorded[run]()
            result: Tensor = self._values[-1].clone()
        self._lane.hand_over(result)
        return result

    def _run(self, numbers: Sequence[int]) -> None:
        done: set[int] = set()
        for number in numbers:
            if number not in done:
                # Riders depend on whatever this does, and so are out of date as well.
                together = (number, *self._riders.get(number, ()))
                done.update(together)
                self._write(together, self._compute_together(number))

    def _write(self, numbers: Sequence[int], values: Sequence[Any]) -> None:
        for number, value in zip(numbers, values, strict=True):
            if value is not self._values[number]:
                self._values[number].copy_(value)

    def _compute_together(self, number: int) -> tuple[Any, ...]:
        """Return an operation's value, and those of its riders."""
        operation = self._program.operations[number - 1]
        dialled, inputs = operation.dialled, self._inputs(number)
        if dialled is None:
            with _NoValueRead(operation):
                return (operation.compute(inputs, ()),)
        form, dial, out = self._forms[number - 1], self._dials[number - 1], self._place(number)
        if number not in self._riders and number not in self._summands:
            return (dialled.run(inputs, form, dial, out),)
        assert isinstance(dialled, DialledCarrier)
        rides = [self._ride(rider) for rider in self._riders.get(number, ())]
        return dialled.run_with(inputs, form, dial, out, rides, self._addition(self._summands.get(number)))

    def _inputs(self, number: int) -> list[Any]:
        return [self._values[position] for position in self._program.operations[number - 1].inputs]

    def _ride(self, number: int) -> Ride:
        rider = self._program.operations[number - 1].dialled
        assert isinstance(rider, DialledRider)
        return Ride(rider, self._forms[number - 1], self._dials[number - 1], self._place(number))

    def _addition(self, number: int | None) -> Addition | None:
        if number is None:
            return None
        summand = self._program.operations[number - 1].dialled
        assert summand is not None
        return Addition(summand, self._inputs(number), self._forms[number - 1], self._dials[number - 1])

    def _place(self, number: int) -> Tensor | None:
        """Return where a value lies, once it has a place."""
        return self._values[number] if number < len(self._values) else None

    def _placed(self, number: int, value: Any) -> Any:
        """Return a value in its place; what is a view of another, or no tensor, has none and never runs again."""
        operation = self._program.operations[number - 1]
        if not operation.inputs and not operation.layers:  # a constant
            return value
        if not isinstance(value, Tensor):
            if not _is_shape(value):
                raise UnreplayableError(f"{operation.name} gives something else than a tensor or a shape")
            return value
        memory = value.untyped_storage().data_ptr()
        if memory in {place.untyped_storage().data_ptr() for place in self._places_so_far()}:
            return value
        self._computed.add(number)
        return self._places.like(number, value).copy_(value)

    def _places_so_far(self) -> Iterator[Tensor]:
        yield from self._values[0]
        yield from (value for value in self._values[1:] if isinstance(value, Tensor))


def _is_shape(value: Any) -> bool:
    """Return whether a value is whole numbers, such as a shape: the same for every batch of one shape."""
    return isinstance(value, int) or (isinstance(value, tuple) and all(_is_shape(item) for item in value))


_READ = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""What torch calls operations whose result on the host depends on values."""


class _NoValueRead(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Refuses what waits for the device to look at a value: recorded, it would never look again."""

    def __init__(self, operation: Operation) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._name = operation.name

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        elsewhere = (kwargs or {}).get("device")
        copied = elsewhere is not None and args and isinstance(args[0], Tensor) and args[0].device != elsewhere
        if copied or _READ & set(func.tags):
            raise UnreplayableError(f"{self._name} looks at a value, which would be recorded once for all")
        return func(*args, **(kwargs or {}))


# --- plans --------------------------------------------------------------------------------------------------------


def _forms_of(program: Program, configurations: Sequence[BitwidthConfiguration]) -> Forms | str:
    """Return the one form of each operation in all configurations; or why there is none."""
    forms: list[Hashable] = []
    for operation in program.operations:
        if not operation.layers:
            forms.append(None)
            continue
        if operation.dialled is None:
            return f"{operation.name} cannot be told its bits on the device"
        found = {operation.dialled.form(configuration.bitwidths) for configuration in configurations}
        if len(found) > 1 or None in found:
            return f"{operation.name} is launched in different ways at different bits"
        forms += found
    return tuple(forms)


def _courses(
    program: Program, configurations: Sequence[BitwidthConfiguration], count: int, device: torch.device
) -> list[_Course]:
    """Return what each of `count` lanes does: neighbours in lexicographic order stay together."""
    order = sorted(range(len(configurations)), key=lambda position: configurations[position].bitwidths)
    ends = [len(order) * lane // count for lane in range(count + 1)]
    return [_course(program, configurations, order[start:end], device) for start, end in pairwise(ends)]


def _course(
    program: Program, configurations: Sequence[BitwidthConfiguration], positions: Sequence[int], device: torch.device
) -> _Course:
    steps = program.plan([configurations[position] for position in positions])
    runs = [step.numbers for step in steps]
    if len(set(runs)) > MOST_RECORDINGS:
        last = len(program.operations)
        runs = [tuple(range(min(run, default=last), last + 1)) for run in runs]
    table = torch.tensor(
        [
            [_dial(op, configurations[positions[step.position]].bitwidths) for op in program.operations]
            for step in steps
        ],
        dtype=torch.int32,
    )
    return _Course(
        positions=tuple(positions[step.position] for step in steps),
        runs=tuple(runs),
        dials=_sent(table, device),
    )


def _riders_of(program: Program, forms: Forms) -> dict[int, tuple[int, ...]]:
    """Return which operations others are computed along with, and which."""
    dialled = [operation.dialled for operation in program.operations]
    riders = [each if isinstance(each, DialledRider) else None for each in dialled]
    carriers = [each if isinstance(each, DialledCarrier) else None for each in dialled]
    return riders_of(program.operations, riders, carriers, forms)


def _summands_of(program: Program, forms: Forms) -> dict[int, int]:
    """Return which operations compute their last input along, and which one that is: nobody else reads it."""
    readers = Counter(source for operation in program.operations for source in set(operation.inputs))
    summands: dict[int, int] = {}
    for number, operation in enumerate(program.operations, start=1):
        source = operation.inputs[-1] if len(operation.inputs) > 1 else 0
        carrier, summand = operation.dialled, program.operations[source - 1].dialled if source else None
        if (
            isinstance(carrier, DialledCarrier)
            and summand is not None
            and readers[source] == operation.inputs.count(source) == 1
            and source not in summands
            and carrier.adds(forms[number - 1], summand, forms[source - 1])
        ):
            summands[number] = source
    return summands


def _dial(operation: Operation, bits: Bits) -> tuple[int, int]:
    return (0, 0) if operation.dialled is None else operation.dialled.dial(bits)


def _sent(table: Tensor, device: torch.device) -> Tensor:
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table
