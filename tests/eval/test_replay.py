"""Launches that are recorded once and replayed for every configuration, against launching each: every bit is equal.

On the CPU, with a recorder that runs no Python code again (`tape`): random programs, and whole networks with Triton's
interpreter for the kernels.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import configurations_of, layer_names_of, randomize
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.data.batches import Batch
from qbw_eval.engine import replay
from qbw_eval.engine.comparison import Comparison
from qbw_eval.engine.integer import IntegerEngine, Replaying
from qbw_eval.engine.replay import Replay
from qbw_eval.engine.tally import Measures, Tally
from qbw_eval.engine.walk import Addition, Bits, Dialled, Operation, Program, Ride, UnreplayableError
from qbw_eval.evaluate import measure
from qbw_eval.networks.resnet import ResNet, Shape
from qbw_eval.quantization.layers import QuantConv2d, Quantizers, QuantLinear, SwitchableBatchNorm2d

pytest.importorskip("triton", reason="Triton is not installed: pip install '.[gpu]'")

from tape import Tape

from qbw_eval.engine.dialled_region import DialledBatchNorm, DialledRegion, DialledRounding
from qbw_eval.engine.triton_arithmetic import TritonArithmetic

CPU = torch.device("cpu")
MUCH = 10**8
Seconds = Callable[[Callable[[], None]], float]


# --- programs -------------------------------------------------------------------------------------------------------


class Looked:
    """An operation's twin with bits as data: cos(inputs + a number of its bits); another form from some bits on."""

    held_bytes = 0

    def __init__(self, layer: int, odd_from: int = 99) -> None:
        self.table = torch.linspace(0, 1, 9)
        self.layer, self.odd_from = layer, odd_from

    def form(self, bits: Bits) -> Hashable | None:
        return bits[self.layer] >= self.odd_from

    def dial(self, bits: Bits) -> tuple[int, int]:
        return bits[self.layer], 7

    def run(self, inputs: Sequence[Any], form: Hashable, dial: Tensor, out: Tensor | None) -> Tensor:
        x = torch.cos(sum(inputs) + self.table.index_select(0, dial[:1]))
        return x if out is None or form else out.copy_(x)

    def compute(self, inputs: Sequence[Any], bits: Bits) -> Tensor:
        return torch.cos(sum(inputs) + self.table[bits[self.layer]])


class Carrying(Looked):
    """One that computes others along: up to two that read it, and the one that it reads last, if that is like it.

    Attributes:
        added: how often it computed that one.
    """

    added = 0

    def carries(self, form: Hashable) -> int:
        return 0 if form else 2

    def adds(self, form: Hashable, summand: Dialled, of_summand: Hashable) -> bool:
        return isinstance(summand, Carrying) and not form and not of_summand

    def run_with(
        self,
        inputs: Sequence[Any],
        form: Hashable,
        dial: Tensor,
        out: Tensor | None,
        rides: Sequence[Ride],
        addition: Addition | None,
    ) -> tuple[Tensor, ...]:
        if addition is not None:
            assert inputs[-1] is None, "nobody keeps its value"
            self.added += 1
            summand = addition.summand.run(addition.inputs, addition.form, addition.dial, None)
            inputs = [*inputs[:-1], summand]
        value = self.run(inputs, form, dial, out)
        for ride in rides:
            assert isinstance(ride.rider, Riding)
            ride.rider.along += 1
        return (value, *(ride.rider.run([value], ride.form, ride.dial, ride.out) for ride in rides))


class Riding(Looked):
    """One that may be computed along.

    Attributes:
        along: how often it was.
        runs: how often it was computed, however.
    """

    along = runs = 0

    def run(self, inputs: Sequence[Any], form: Hashable, dial: Tensor, out: Tensor | None) -> Tensor:
        self.runs += 1
        return super().run(inputs, form, dial, out)

    def rides(self, form: Hashable) -> bool:
        return not form


@dataclass(frozen=True)
class Drawn:
    program: Program
    configurations: list[BitwidthConfiguration]


@st.composite
def programs(draw: st.DrawFn) -> Drawn:
    """Draw operations that read any earlier ones: those with bits, views, shapes, plain ones; and configurations."""
    layers = draw(st.integers(1, 4))
    operations = [Operation(name="leaf", inputs=(0,), layers=frozenset(), compute=lambda v, _: v[0][0])]
    tensors = [1]
    for number in range(2, 2 + draw(st.integers(2, 8))):
        kind = draw(st.sampled_from(["bits", "bits", "view", "plain", "shape"]))
        read = tuple(draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=2)))
        if kind == "bits":
            layer = draw(st.integers(0, layers - 1))
            looked = draw(st.sampled_from([Looked, Carrying, Riding]))(layer)
            operation = Operation(
                name="bits", inputs=read, layers=frozenset([layer]), compute=looked.compute, dialled=looked
            )
        elif kind == "view":
            operation = Operation(
                name="view", inputs=read[:1], layers=frozenset(), compute=lambda v, _: v[0].view(-1).view(v[0].shape)
            )
        elif kind == "plain":
            operation = Operation(name="plain", inputs=read, layers=frozenset(), compute=lambda v, _: sum(v) / 2)
        else:
            operation = Operation(name="shape", inputs=read[:1], layers=frozenset(), compute=lambda v, _: v[0].shape)
        operations.append(operation)
        if kind != "shape":
            tensors.append(number)
    last = Looked(draw(st.integers(0, layers - 1)))
    operations.append(
        Operation(
            name="last",
            inputs=tuple(tensors[-2:]),
            layers=frozenset([last.layer]),
            compute=last.compute,
            dialled=last,
        )
    )
    each = draw(st.lists(st.tuples(*[st.integers(0, 3)] * layers), min_size=1, max_size=9))
    return Drawn(Program(operations), configurations_of(*each))


@given(drawn=programs(), lanes=st.integers(1, 3), most=st.sampled_from([1, 64]))
@settings(max_examples=60, deadline=None)
def test_random_programs_are_replayed_as_they_are_walked(drawn: Drawn, lanes: int, most: int) -> None:
    """Whatever is read by whom, on any number of lanes, however many recordings there may be; batch after batch.

    The reference configuration comes before the others, as it does in an evaluation.
    """
    tapes: list[Tape] = []
    replayed, first = replay_of(drawn.program, tapes, favouring(lanes)), drawn.configurations[:1]
    with mock.patch.object(replay, "MOST_RECORDINGS", most), mock.patch.object(replay, "LANES", (1, 2, 3)):
        for samples, seed in ((3, 0), (2, 1), (3, 2)):
            batch = (torch.randn(samples, 4, generator=torch.Generator().manual_seed(seed)),)
            assert len(list(replayed.walk(batch, first))) == 1
            steps = drawn.program.plan(drawn.configurations)
            expected = dict(drawn.program.walk(batch, drawn.configurations, steps))
            found = list(replayed.walk(batch, drawn.configurations))
            assert sorted(position for position, _ in found) == list(range(len(drawn.configurations)))
            assert all(torch.equal(logits, expected[position]) for position, logits in found)


def replay_of(program: Program, tapes: list[Tape], seconds: Seconds | None = None) -> Replay:
    return Replay(program, CPU, partial(new_tape, tapes), MUCH, seconds)


def new_tape(tapes: list[Tape]) -> Tape:
    tapes.append(Tape())
    return tapes[-1]


def favouring(lanes: int) -> Seconds:
    """Return a clock by which so many lanes, tried as the last but those that are more, are the fastest."""
    tried: list[int] = []

    def seconds(run: Callable[[], None]) -> float:
        run()
        tried.append(1)
        return 1.0 / len(tried) if len(tried) <= lanes else 9.0

    return seconds


def chain(*looked: Looked) -> Program:
    operations = [Operation(name="leaf", inputs=(0,), layers=frozenset(), compute=lambda v, _: v[0][0])]
    for number, one in enumerate(looked, start=1):
        operations.append(
            Operation(
                name=f"layer {one.layer}",
                inputs=(number,),
                layers=frozenset([one.layer]),
                compute=one.compute,
                dialled=one,
            )
        )
    return Program(operations)


def test_what_reads_one_value_alone_is_computed_along_with_it_and_a_third_one_by_itself() -> None:
    """One carrier, three riders, one of another form; and what reads two values or another's, which rides with none."""
    riders = [Riding(1), Riding(1, odd_from=0), Riding(2), Riding(0), Riding(2)]
    inputs = [(2,), (2,), (2,), (2,), (2, 3)]
    carrier = Carrying(0)
    read = [((1,), carrier), *zip(inputs, riders, strict=True), ((3, 4, 5, 6, 7), Looked(0))]
    program = Program(
        [
            Operation(name="leaf", inputs=(0,), layers=frozenset(), compute=lambda v, _: v[0][0]),
            *(
                Operation(name="", inputs=read, layers=frozenset([one.layer]), compute=one.compute, dialled=one)
                for read, one in read
            ),
        ]
    )
    each = configurations_of((0, 0, 0), (0, 1, 1), (1, 1, 1))
    replayed, batch = replay_of(program, []), (torch.randn(2, 4),)
    found = dict(replayed.walk(batch, each))
    for position, value in program.walk(batch, each, program.plan(each)):
        assert torch.equal(found[position], value)
    # Once for places, with the carrier and without, and once for each of two sets, one of which has the carrier in it.
    assert [rider.along for rider in riders] == [2, 0, 2, 0, 0]
    assert [rider.runs for rider in riders] == [4, 3, 4, 2, 3]


def test_what_one_operation_alone_adds_is_computed_along_with_it_and_kept_nowhere() -> None:
    """Not what two read, nor what is read twice, nor in another form, nor what is added first."""
    leaf = Operation(name="leaf", inputs=(0,), layers=frozenset(), compute=lambda v, _: v[0][0])
    read: list[tuple[tuple[int, ...], Looked]] = [
        ((1,), Carrying(0)),  # 2: added by 4 alone
        ((1,), Carrying(1)),  # 3: read by 4 first, and by 5
        ((3, 2), Carrying(0)),  # 4: added by 6 alone, but 6 is another kind
        ((3, 3), Carrying(1)),  # 5
        ((5, 4), Looked(2)),  # 6
        ((1,), Carrying(2, odd_from=0)),  # 7: of another form
        ((6, 7), Carrying(2)),  # 8: the result
    ]
    operations = [
        Operation(name="", inputs=inputs, layers=frozenset([one.layer]), compute=one.compute, dialled=one)
        for inputs, one in read
    ]
    program = Program([leaf, *operations])
    each = configurations_of((0, 0, 0), (0, 1, 1), (1, 1, 1))
    tapes: list[Tape] = []
    replayed, batch = replay_of(program, tapes), (torch.randn(2, 4),)
    found = dict(replayed.walk(batch, each))
    for position, value in program.walk(batch, each, program.plan(each)):
        assert torch.equal(found[position], value)
    # Once for places, once for each of two sets that it is in: all, and all but what depends on the first layer alone.
    assert [one.added for _, one in read if isinstance(one, Carrying)] == [0, 0, 3, 0, 0, 0]
    assert replayed.bytes_for(batch, each) == (len(read) - 1) * 2 * 4 * 4


def test_a_set_of_operations_is_recorded_once_and_only_what_changed_runs() -> None:
    tapes: list[Tape] = []
    replayed = replay_of(chain(*map(Looked, range(3))), tapes)
    configurations = configurations_of((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (1, 0, 0))
    for _ in range(2):
        list(replayed.walk((torch.ones(2, 2),), configurations))
    (tape,) = tapes
    assert (tape.recorded, tape.replays) == (3, 10)  # from the first, the second and the third layer on


def test_lanes_that_save_nothing_are_not_taken() -> None:
    tapes: list[Tape] = []
    configurations = configurations_of(*((bits,) for bits in range(8)))
    replayed = replay_of(chain(Looked(0)), tapes, lambda run: run() or 1.0)
    list(replayed.walk((torch.ones(2, 2),), configurations))
    before = [tape.replays for tape in tapes]
    list(replayed.walk((torch.ones(2, 2),), configurations))
    assert [tape.replays - count for tape, count in zip(tapes, before, strict=True)] == [8, 0, 0, 0]


def test_lanes_that_save_time_share_the_configurations() -> None:
    tapes: list[Tape] = []
    configurations = configurations_of(*((bits,) for bits in range(8)))
    replayed = replay_of(chain(Looked(0)), tapes, favouring(2))
    list(replayed.walk((torch.ones(2, 2),), configurations))
    before = [tape.replays for tape in tapes]
    list(replayed.walk((torch.ones(2, 2),), configurations))
    assert [tape.replays - count for tape, count in zip(tapes, before, strict=True)] == [4, 4, 0, 0]


def test_lanes_beyond_the_memory_allowed_are_not_tried() -> None:
    tapes: list[Tape] = []
    configurations = configurations_of(*((bits,) for bits in range(8)))
    replayed = Replay(chain(Looked(0)), CPU, partial(new_tape, tapes), 2 * 2 * 2 * 4, favouring(4))
    assert replayed.bytes_for((torch.ones(2, 2),), configurations) == 2 * 2 * 4
    tapes.clear()
    for chunk in (configurations[:1], configurations):  # one configuration alone says nothing about lanes
        list(replayed.walk((torch.ones(2, 2),), chunk))
    assert len(tapes) == 2


def test_what_is_launched_differently_at_other_bits_is_refused_in_words() -> None:
    replayed = replay_of(chain(Looked(0), Looked(1, odd_from=3)), [])
    assert replayed.refuses(configurations_of((0, 0), (3, 2))) is None
    assert replayed.refuses(configurations_of((0, 3), (1, 4))) is None
    reason = replayed.refuses(configurations_of((0, 0), (0, 3)))
    assert reason == "layer 1 is launched in different ways at different bits"


@pytest.mark.parametrize(
    ("compute", "why"),
    [
        (lambda v, _: v[0][0] * v[0][0].sum().item(), "looks at a value"),
        (lambda v, _: v[0][0][v[0][0] > 0], "looks at a value"),
        (lambda v, _: v[0][0].sum().to("meta"), "looks at a value"),
        (lambda v, _: v[0][0].chunk(2), "something else than a tensor or a shape"),
        (lambda v, _: v[0][0].tolist(), "something else than a tensor or a shape"),
    ],
)
def test_what_a_recording_would_get_wrong_is_refused(compute: Callable[..., Any], why: str) -> None:
    program = Program([Operation(name="odd", inputs=(0,), layers=frozenset(), compute=compute)])
    with pytest.raises(UnreplayableError, match=why):
        list(replay_of(program, []).walk((torch.ones(2, 2),), configurations_of((2,))))


# --- networks -------------------------------------------------------------------------------------------------------


def replaying_on(tapes: list[Tape]) -> Replaying:
    return Replaying(
        region=DialledRegion,
        rounding=DialledRounding,
        batch_norm=DialledBatchNorm,
        replay=lambda program: replay_of(program, tapes),
    )


def engine_of(
    network: nn.Module, x: Tensor, options: Sequence[int], replaying: Replaying | None = None, cache_bytes: int = MUCH
) -> IntegerEngine:
    return IntegerEngine(
        *(network, layer_names_of(network), x, options, cache_bytes),
        arithmetic=TritonArithmetic(CPU, MUCH),
        replaying=replaying,
    )


def check(
    network: nn.Module, batches: Sequence[Tensor], options: Sequence[int], each: Sequence[BitwidthConfiguration]
) -> Tape:
    """Compare each configuration's logits on each batch, and return the tape."""
    tapes: list[Tape] = []
    launching = engine_of(network, batches[0], options)
    replayed = engine_of(network, batches[0], options, replaying_on(tapes))
    with torch.no_grad():
        for x in batches:
            expected = dict(launching.logits(x, each))
            found = dict(replayed.logits(x, each))
            assert found.keys() == expected.keys()
            for position, logits in expected.items():
                assert torch.equal(found[position], logits), each[position].bitwidths
    assert len({tuple(logits.flatten().tolist()) for logits in expected.values()}) > len(each) / 2
    (tape,) = tapes
    assert tape.replays == len(each) * len(batches)
    return tape


def images(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.3


OPTIONS = (2, 4, 8)


def test_a_residual_network_is_replayed_from_the_first_layer_that_changed() -> None:
    quantizers = Quantizers(options=OPTIONS, activation="pact", switchable=True)
    network = ResNet(Shape(blocks=(1, 1), stem="cifar"), quantizers, width=4, in_channels=1, num_classes=5).eval()
    randomize(network, 1)
    each = configurations_of((4, 8, 2, 8, 2), (4, 8, 2, 8, 8), (8, 4, 2, 4, 8))
    # Other values in the same shape, and a smaller batch.
    batches = [images(2, 2, 1, 4, 4), images(3, 2, 1, 4, 4), images(4, 1, 1, 4, 4)]
    with mock.patch.object(DialledRegion, "run_with", autospec=True, side_effect=DialledRegion.run_with) as together:
        tape = check(network, batches, OPTIONS, each)
    assert tape.recorded < tape.replays
    rides = {(len(call.args[-2]), call.args[-1] is not None) for call in together.call_args_list}
    first, second = (2, False), (0, True)
    assert rides == {first, second}, "the first block's sum, rounded for two; the second's, with the way round it"


class Odd(nn.Module):
    """Layers that have no integers (one grouped, one LSQ+), batch norms that follow another layer, a linear layer."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        learned = Quantizers(options=OPTIONS, weight="lsq", activation=activation, switchable=True)  # type: ignore[arg-type]  # they are among those
        self.first = QuantConv2d(2, 4, 1, quantizers=learned)
        self.grouped = QuantConv2d(4, 4, 3, padding=1, groups=4, quantizers=learned, bias=True)
        self.own_norm = SwitchableBatchNorm2d(4, self.grouped)
        self.second = QuantConv2d(4, 4, 1, quantizers=learned)
        self.reader_norm = SwitchableBatchNorm2d(4, self.second)
        self.loose_norm = SwitchableBatchNorm2d(4, self.second)
        self.linear = QuantLinear(4, 3, quantizers=Quantizers(options=OPTIONS))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = self.second(self.reader_norm(self.grouped(x))) + self.own_norm(x)
        x = torch.relu(self.loose_norm(x)).mean(dim=(2, 3))
        return self.linear(x.view(x.size(0), -1))  # type: ignore[no-any-return]  # modules are untyped calls


@pytest.mark.parametrize("activation", ["lsq", "pact"])
def test_layers_in_float32_and_loose_batch_norms_take_their_bits_from_the_device(activation: str) -> None:
    network = Odd(activation).eval()
    randomize(network, 5)
    each = configurations_of((2, 2, 4, 8), (2, 4, 4, 8), (2, 8, 2, 2), (4, 2, 8, 4), (8, 8, 8, 8))
    check(network, [images(6, 2, 2, 3, 4)], OPTIONS, each)


def test_a_layer_that_rounds_in_its_own_way_is_replayed_at_bits_of_its_own() -> None:
    """LSQ+ has no grid of ours: recorded at one bitwidth, it is replayed for that one."""
    plus = Quantizers(options=OPTIONS, weight="lsqplus", activation="lsqplus", switchable=True)
    network = nn.Sequential(
        QuantConv2d(2, 3, 1, quantizers=plus), QuantConv2d(3, 3, 1, quantizers=Quantizers(options=OPTIONS))
    ).eval()
    randomize(network, 7)
    for bits in (2, 8):
        check(network, [images(8, 1, 2, 2, 2)], OPTIONS, configurations_of(*((bits, own) for own in OPTIONS)))
    refused = engine_of(network, images(8, 1, 2, 2, 2), OPTIONS, replaying_on([]))
    with torch.no_grad():
        refused.try_replaying(images(8, 1, 2, 2, 2), configurations_of((2, 2), (4, 2)))
    assert refused.not_replayed == "network_0 is launched in different ways at different bits"


class Repeated(nn.Module):
    """Adds what torch repeats, or a number: other launches than the one that adds in the same kernel."""

    def __init__(self, *, number: bool) -> None:
        super().__init__()
        self.conv = QuantConv2d(2, 2, 1, quantizers=Quantizers(options=OPTIONS))
        self._number = number

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + (x.size(0) if self._number else x[:, :1])  # type: ignore[no-any-return]  # modules are untyped calls


@pytest.mark.parametrize("number", [False, True])
def test_what_cannot_be_replayed_is_launched_and_says_why(number: bool) -> None:
    network, x = Repeated(number=number).eval(), images(9, 1, 2, 2, 2)
    randomize(network, 10)
    engine, each = engine_of(network, x, OPTIONS, replaying_on([])), configurations_of((2,), (8,))
    expected = dict(engine_of(network, x, OPTIONS).logits(x, each))
    with torch.no_grad():
        engine.try_replaying(x, each)
        assert engine.not_replayed == "it adds values of another shape or kind"
        assert all(torch.equal(logits, expected[position]) for position, logits in engine.logits(x, each))


def test_replaying_that_gives_other_values_is_given_up_with_a_reason() -> None:
    network, x = (
        nn.Sequential(QuantConv2d(2, 2, 1, quantizers=Quantizers(options=OPTIONS))).eval(),
        images(1, 1, 2, 2, 2),
    )
    randomize(network, 10)
    engine, each = engine_of(network, x, OPTIONS, replaying_on([])), configurations_of((2,), (8,))
    with torch.no_grad(), mock.patch.object(DialledRegion, "dial", return_value=(0, 0)):
        engine.try_replaying(x, each)
    assert engine.not_replayed == "replayed launches give other values"


def test_weights_that_do_not_fit_at_all_bitwidths_are_not_held() -> None:
    network = nn.Sequential(QuantConv2d(2, 2, 1, quantizers=Quantizers(options=OPTIONS))).eval()
    engine = engine_of(network, images(1, 1, 2, 2, 2), OPTIONS, replaying_on([]), cache_bytes=40)
    assert engine.not_replayed == "weights at all bitwidths take 72 bytes, of 40"


class NothingIsRead(TorchDispatchMode):
    """Fails where anything waits for a value on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags), func
        return func(*args, **(kwargs or {}))


def test_inside_a_chunk_nothing_waits_for_the_device() -> None:
    """From the second batch on; with all measurements, up to where they are fetched."""
    network = nn.Sequential(QuantConv2d(2, 12, 2, quantizers=Quantizers(options=OPTIONS)), nn.Flatten()).eval()
    randomize(network, 11)
    batches = [Batch(images(seed, 3, 2, 2, 2), torch.tensor([0, 5, 11])) for seed in (1, 2)]
    engine = engine_of(network, batches[0].inputs, OPTIONS, replaying_on([]))
    each = configurations_of((2,), (4,), (8,))
    reference = Comparison(engine, each[-1], MUCH, kl=True)
    measure(engine, batches[:1], each, reference)
    with NothingIsRead(), mock.patch.object(Tally, "finish", lambda tally: tally):
        measure(engine, batches, each, reference, measures=Measures(per_class=True))
    with NothingIsRead(), pytest.raises(AssertionError, match="local_scalar"):  # it does see what waits
        measure(engine, batches, each, reference)
