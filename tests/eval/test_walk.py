"""The walk over configurations against a twin that recomputes everything, and against brute force on who needs what."""

import itertools
import weakref
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import configurations_of

from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.engine.walk import Bits, Operation, Program, Rider, Step, Turn

# --- a program that writes down what it does -------------------------------------------------------------------------


@dataclass(eq=False)
class Value:
    """What an operation computes here: its name applied to its inputs and its layers' bits, written out in full."""

    text: str


class Computed:
    """The compute function of one operation, which notes every call in a list that all share.

    It carries as many others as bits of the first layer that it looks at say, two where it looks at none; and rides
    unless one of its bits is above 4.
    """

    def __init__(self, name: str, layers: frozenset[int], calls: list["Call"]) -> None:
        self.name, self.layers, self.calls = name, layers, calls

    def __call__(self, inputs: Sequence[Value], bits: Bits) -> Value:
        value = Value(text_of(self.name, [value.text for value in inputs], self.layers, bits))
        self.calls.append(Call(self.name, tuple(map(id, inputs)), id(value), weakref.ref(value)))
        return value

    def rides(self, bits: Bits, /) -> bool:
        return all(bits[layer] <= 4 for layer in self.layers)

    def carries(self, bits: Bits, /) -> int:
        return {2: 2, 4: 1, 8: 0}[bits[min(self.layers)]] if self.layers else 2

    def compute_with(
        self, inputs: Sequence[Value], bits: Bits, riders: Sequence[Rider], *, kept: bool
    ) -> tuple[Value, ...]:
        value = self(inputs, bits)
        assert 0 < len(riders) <= self.carries(bits)
        along = []
        for rider in riders:
            assert isinstance(rider, Computed)
            assert rider.rides(bits)
            along.append(rider([value], bits))
        if not kept:
            value.text = "nobody reads it"
        return (value, *along)


@dataclass(frozen=True)
class Call:
    name: str
    inputs: tuple[int, ...]
    value: int
    reference: "weakref.ref[Value]"


def text_of(name: str, inputs: Sequence[str], layers: frozenset[int], bits: Bits) -> str:
    return f"{name}({', '.join(inputs)}; {[bits[layer] for layer in sorted(layers)]})"


def program_of(
    parts: Sequence[tuple[tuple[int, ...], frozenset[int]]], *, rides: bool = False
) -> tuple[Program, list[Call]]:
    """Return a program of (inputs, layers), operation n called "n", and the list that its calls are noted in.

    Args:
        parts: of the program.
        rides: whether operations may be computed along with others.
    """
    calls: list[Call] = []
    operations = []
    for number, (inputs, layers) in enumerate(parts, start=1):
        computed = Computed(str(number), layers, calls)
        along = computed if rides else None
        operations.append(
            Operation(name=str(number), inputs=inputs, layers=layers, compute=computed, rider=along, carrier=along)
        )
    return Program(operations), calls


def naive_result(program: Program, bits: Bits) -> str:
    """Recompute everything for one configuration."""
    texts = ["batch"]
    for number, operation in enumerate(program.operations, start=1):
        texts.append(text_of(str(number), [texts[i] for i in operation.inputs], operation.layers, bits))
    return texts[-1]


def needs(program: Program, number: int) -> set[int]:
    """Return the layers that a value depends on: its own, and those of everything that can be reached from it."""
    found: set[int] = set()
    waiting, seen = [number], set()
    while waiting:
        one = waiting.pop()
        if one == 0 or one in seen:
            continue
        seen.add(one)
        found |= program.operations[one - 1].layers
        waiting += program.operations[one - 1].inputs
    return found


LAYERS = 4
MODERATE = settings(max_examples=60, deadline=None)  # the machine may be busy


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[tuple[int, ...], frozenset[int]]]:
    """Draw a directed acyclic graph whose last operation everything contributes to, as a traced network's does."""
    count = draw(st.integers(1, 9))
    parts: list[tuple[tuple[int, ...], frozenset[int]]] = []
    for number in range(1, count + 1):
        inputs = draw(st.lists(st.integers(0, number - 1), max_size=3))
        if number == count:
            read = {position for earlier, _ in parts for position in earlier}
            inputs += [position for position in range(1, number) if position not in read | set(inputs)]
        layers = draw(st.sets(st.integers(0, LAYERS - 1), max_size=2))
        parts.append((tuple(inputs), frozenset(layers)))
    return parts


configuration_lists = st.lists(
    st.tuples(*[st.sampled_from([2, 4, 8])] * LAYERS), min_size=1, max_size=8
).map(lambda bits: configurations_of(*bits))  # fmt: skip


def walked(
    program: Program, configurations: Sequence[BitwidthConfiguration], watch: Any = None
) -> list[tuple[int, str]]:
    steps = program.plan(configurations)
    return [(at, value.text) for at, value in program.walk(Value("batch"), configurations, steps, watch=watch)]


# --- properties ------------------------------------------------------------------------------------------------------


@MODERATE
@given(programs(), configuration_lists, st.booleans())
def test_every_result_is_that_of_recomputing_everything_and_each_comes_once(
    parts: list[tuple[tuple[int, ...], frozenset[int]]], configurations: list[BitwidthConfiguration], rides: bool
) -> None:
    program, _ = program_of(parts, rides=rides)
    found = walked(program, configurations)
    assert sorted(position for position, _ in found) == list(range(len(configurations)))
    for position, text in found:
        assert text == naive_result(program, configurations[position].bitwidths)


@MODERATE
@given(programs(), configuration_lists)
def test_the_order_is_lexicographic(
    parts: list[tuple[tuple[int, ...], frozenset[int]]], configurations: list[BitwidthConfiguration]
) -> None:
    program, _ = program_of(parts)
    entered: list[Bits] = []
    steps = program.plan(configurations)
    for position, _ in program.walk(Value("batch"), configurations, steps, enter=entered.append):
        assert entered[-1] == configurations[position].bitwidths, "told before anything of it is computed"
    assert entered == sorted(configuration.bitwidths for configuration in configurations)


@MODERATE
@given(programs(), configuration_lists)
def test_what_runs_is_what_a_changed_layer_can_reach_and_nothing_else(
    parts: list[tuple[tuple[int, ...], frozenset[int]]], configurations: list[BitwidthConfiguration]
) -> None:
    program, calls = program_of(parts)
    assert program.depends_on == [frozenset(needs(program, number)) for number in range(len(parts) + 1)]
    walked(program, configurations)
    expected, before = [], None
    for bits in sorted(configuration.bitwidths for configuration in configurations):
        for number in range(1, len(parts) + 1):
            if before is None or any(bits[layer] != before[layer] for layer in needs(program, number)):
                expected.append(str(number))
        before = bits
    assert [call.name for call in calls] == expected


@MODERATE
@given(programs(), configuration_lists)
def test_what_may_be_computed_along_is_whatever_reads_one_value_alone_the_first_ones_first(
    parts: list[tuple[tuple[int, ...], frozenset[int]]], configurations: list[BitwidthConfiguration]
) -> None:
    """Whether it is or not, it is computed as often; and by itself where its carrier is up to date, or rides itself."""
    (apart, calls_apart), (program, calls) = program_of(parts), program_of(parts, rides=True)
    plan = program.plan(configurations)
    for step, alone in zip(plan, apart.plan(configurations), strict=True):
        bits = configurations[step.position].bitwidths
        assert step.numbers == alone.numbers == tuple(turn.number for turn in alone.run)
        carriers = [operation.compute for operation in program.operations]
        expected: dict[int, list[int]] = {}
        for number in step.numbers:
            (source, *others), rider = parts[number - 1][0] or (0,), carriers[number - 1]
            carrier = carriers[source - 1]
            assert isinstance(rider, Computed)
            assert isinstance(carrier, Computed)
            rides_itself = any(source in riders for riders in expected.values())
            if source in step.numbers and not others and rider.rides(bits) and not rides_itself:
                found = expected.setdefault(source, [])
                found += [number] * (len(found) < carrier.carries(bits))
        assert {turn.number: list(turn.along) for turn in step.run if turn.along} == {
            source: riders for source, riders in expected.items() if riders
        }
    assert sorted(walked(program, configurations)) == sorted(walked(apart, configurations))
    assert sorted(call.name for call in calls) == sorted(call.name for call in calls_apart)


@MODERATE
@given(programs(), configuration_lists, st.booleans())
def test_a_value_lives_from_its_computation_to_its_last_use_and_no_longer(
    parts: list[tuple[tuple[int, ...], frozenset[int]]], configurations: list[BitwidthConfiguration], rides: bool
) -> None:
    """A model of time: one tick a turn, one a result; a value is needed until the last tick that reads it."""
    program, calls = program_of(parts, rides=rides)
    seen: list[tuple[str, set[int], set[int]]] = []  # per tick: what it was, values listed, values that exist
    called: list[int] = []  # per tick: how many calls there were by then

    def living() -> set[int]:
        return {number for number, call in enumerate(calls) if call.reference() is not None}

    def watch(values: Collection[Value]) -> None:
        batch, *others = values
        assert batch.text == "batch"
        numbers = {call.value: number for number, call in enumerate(calls) if call.reference() is not None}
        seen.append(("computed", {numbers[id(value)] for value in others}, living()))
        called.append(len(calls))

    steps = program.plan(configurations)
    batch = Value("batch")
    results: list[int] = []  # per result: the number of the call that made it
    walk = program.walk(batch, configurations, steps, watch=watch)
    for _, value in walk:
        results.append(next(number for number in living() if calls[number].reference() is value))
        del value  # or the walk would seem to keep it
        seen.append(("result", living(), living()))
        called.append(len(calls))
    assert living() == set(), "nothing is kept in the end"

    made: dict[int, int] = {}  # identity -> the call that made the value that has it now
    born, last_read = {}, {}
    call_number, result_number = 0, 0
    for tick, (what, _, _) in enumerate(seen):
        if what == "result":
            last_read[results[result_number]] = tick
            result_number += 1
            continue
        assert call_number < called[tick]
        for call in calls[call_number : called[tick]]:
            for identity in call.inputs:
                if identity != id(batch):
                    last_read[made[identity]] = tick
            made[call.value] = call_number
            born[call_number] = tick
            call_number += 1
    assert call_number == len(calls)
    for tick, (_, listed, existing) in enumerate(seen):
        needed = {number for number in born if born[number] <= tick <= last_read[number]}
        assert listed == needed
        assert existing == needed


@MODERATE
@given(programs(), configuration_lists, st.integers(0, 7), st.booleans())
def test_a_walk_that_is_given_up_keeps_nothing(
    parts: list[tuple[tuple[int, ...], frozenset[int]]],
    configurations: list[BitwidthConfiguration],
    after: int,
    rides: bool,
) -> None:
    program, calls = program_of(parts, rides=rides)
    walk = program.walk(Value("batch"), configurations, program.plan(configurations))
    deque(itertools.islice(walk, after), maxlen=0)  # a loop's variable would keep the last result
    walk.close()
    assert all(call.reference() is None for call in calls)


# --- by hand --------------------------------------------------------------------------------------------------------

DIAMOND = [((0,), frozenset({0})), ((1,), frozenset({1})), ((1,), frozenset({2})), ((2, 3), frozenset())]


def test_a_plan_written_out() -> None:
    """A branch that the changed layer is not in stays; what both branches read is kept until the last has read it."""
    program, _ = program_of(DIAMOND)
    configurations = configurations_of((4, 2, 8, 2), (2, 2, 4, 2), (2, 2, 2, 2), (2, 2, 2, 2))
    assert program.plan(configurations) == [
        Step(position=2, run=(Turn(1, ()), Turn(2, ()), Turn(3, ()), Turn(4, (3,))), drop=()),
        Step(position=3, run=(), drop=(4,)),
        Step(position=1, run=(Turn(3, (1,)), Turn(4, (2, 3))), drop=(4,)),
        Step(position=0, run=(Turn(1, ()), Turn(2, ()), Turn(3, (1,)), Turn(4, (2, 3))), drop=(4,)),
    ]


def test_a_plan_with_riders_written_out() -> None:
    """Both branches are computed along where their bits and the carrier's allow it, and alone where only they changed.

    What nobody reads any more but those that were computed along has no use after it.
    """
    program, calls = program_of(DIAMOND, rides=True)
    configurations = configurations_of((2, 2, 2, 2), (2, 2, 4, 2), (2, 4, 8, 2), (4, 2, 2, 2), (8, 2, 2, 2))
    assert program.plan(configurations) == [
        Step(position=0, run=(Turn(1, (), (2, 3)), Turn(4, (3,))), drop=(4,)),
        Step(position=1, run=(Turn(3, ()), Turn(4, (2, 3))), drop=(4,)),
        Step(position=2, run=(Turn(2, ()), Turn(3, (1,)), Turn(4, (2, 3))), drop=(4,)),
        Step(position=3, run=(Turn(1, (), (2,)), Turn(3, (1,)), Turn(4, (2, 3))), drop=(4,)),
        Step(position=4, run=(Turn(1, ()), Turn(2, ()), Turn(3, (1,)), Turn(4, (2, 3))), drop=(4,)),
    ]
    last = program.plan(configurations[:1])
    assert last == [Step(position=0, run=(Turn(1, (1,), (2, 3)), Turn(4, (2, 3))), drop=(4,))]
    assert [text for _, text in walked(program, configurations)] == [
        naive_result(program, configuration.bitwidths) for configuration in configurations
    ]
    assert len(calls) == 4 + 2 + 3 + 4 + 4


def test_no_configurations_no_steps() -> None:
    program, calls = program_of(DIAMOND)
    assert program.plan([]) == []
    assert walked(program, []) == []
    assert calls == []


def test_a_configuration_asked_for_twice_is_computed_once() -> None:
    program, calls = program_of(DIAMOND)
    found = walked(program, configurations_of((2, 2, 2, 2), (2, 2, 2, 2), (2, 2, 2, 2)))
    assert [call.name for call in calls] == ["1", "2", "3", "4"]
    assert [position for position, _ in found] == [0, 1, 2]
    assert len({text for _, text in found}) == 1


def test_a_sweep_of_one_layer_at_a_time_runs_what_is_behind_it() -> None:
    program, calls = program_of([((number,), frozenset({number})) for number in range(LAYERS)])
    walked(program, configurations_of((2, 2, 2, 2), (2, 2, 2, 4), (2, 2, 4, 2), (2, 4, 2, 2), (4, 2, 2, 2)))
    assert len(calls) == 4 + 1 + 2 + 3 + 4, "instead of 20"
