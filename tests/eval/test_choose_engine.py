"""Which engine runs and in which words it says why; a graph that does not tell the truth is found out."""

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from random_networks import configurations_of, layer_names_of, naive_logits, randomize
from torch import Tensor, nn

from qbw_eval.engine import choose
from qbw_eval.engine.choose import (
    ENGINES,
    WORTH_COMPILING,
    WORTH_COMPILING_ON_GPU,
    Choice,
    _arithmetic_on,
    choose_engine,
)
from qbw_eval.engine.integer import DeclinedError, IntegerEngine
from qbw_eval.engine.packing import why_not_here
from qbw_eval.engine.passes import PLAIN, Passes
from qbw_eval.networks.resnet import ResNet, Shape
from qbw_eval.quantization.bitwidths import get_bitwidths
from qbw_eval.quantization.layers import QuantConv2d, Quantizers

INTEGERS_HERE = pytest.mark.skipif(why_not_here() is not None, reason=f"no integer convolutions here: {why_not_here()}")
OPTIONS = (2, 4, 8)
X = torch.linspace(-1, 2, 2 * 3 * 6 * 6).view(2, 3, 6, 6)
EQUAL = "equal to the reference in every bit"


def network() -> nn.Module:
    quantizers = Quantizers(options=OPTIONS, activation="pact", switchable=True)
    net = ResNet(Shape(blocks=(1, 1), stem="cifar"), quantizers, width=4, in_channels=3, num_classes=3)
    randomize(net, 0)
    return net.eval()


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes a second; `test_passes` does it once."""
    monkeypatch.setattr(choose, "fastest_passes", lambda: PLAIN)
    monkeypatch.setattr(choose, "kernel_here", lambda: None)  # or reasons depend on the machine


def chosen(name: str, net: nn.Module | None = None, inputs: Any = X, work: int | None = WORTH_COMPILING) -> Choice:
    net = network() if net is None else net
    return choose_engine(name, net, layer_names_of(net), inputs, OPTIONS, cache_bytes=10**7, work=work)


def named(choice: Choice) -> tuple[str, str]:
    return choice.engine.name, choice.reason


# --- every branch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reference", "incremental"])
def test_an_engine_that_is_asked_for_and_right_is_taken(name: str) -> None:
    assert named(chosen(name)) == (name, "as asked")


@INTEGERS_HERE
@pytest.mark.parametrize("work", [None, 0, WORTH_COMPILING])
def test_integers_that_are_asked_for_are_taken_however_little_there_is_to_do(work: int | None) -> None:
    assert chosen("integer", work=work).engine.name == "integer"


@INTEGERS_HERE
def test_auto_takes_integers_from_a_certain_amount_of_work_on() -> None:
    words = (
        "exact convolutions of integers at 8 bits or fewer; what lies between them is "
        "plain torch, since no C++ compiler is found"
    )
    assert named(chosen("auto", work=WORTH_COMPILING)) == ("integer", words)
    little = ("incremental", f"{EQUAL}, and there is little to compute")
    assert named(chosen("auto", work=WORTH_COMPILING - 1)) == little
    assert named(chosen("auto", work=None)) == little, "where results are to be the reference's"


@INTEGERS_HERE
def test_what_lies_between_is_said_to_be_compiled_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "fastest_passes", lambda: Passes(compiled=True))
    words = "exact convolutions of integers at 8 bits or fewer; what lies between them is compiled"
    assert named(chosen("auto")) == ("integer", words)


def test_off_the_cpu_auto_takes_integers_for_more_work_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's meta device stands for a GPU: it is not the CPU, and holds no values that could be compared."""
    monkeypatch.setattr(choose, "_check_equal", lambda *_: None)
    found = chosen("auto", network().to("meta"), X.to("meta"), WORTH_COMPILING_ON_GPU - 1)
    assert named(found) == ("incremental", f"{EQUAL}, and there is little to compute")
    nested = {"a": [X.to("meta")]}
    assert named(chosen("auto", Nested().to("meta"), nested)) == named(found)


def test_integers_on_a_gpu_need_triton_and_elsewhere_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qbw_eval.engine.triton_arithmetic", None)  # as if importing it failed
    with pytest.raises(DeclinedError) as error:
        _arithmetic_on(torch.device("cuda:0"), 10**7)
    assert str(error.value) == "Triton, which convolves them on a GPU, is not installed: pip install '.[gpu]'"
    with pytest.raises(DeclinedError) as error:
        _arithmetic_on(torch.device("mps"), 10**7)
    assert str(error.value) == "nothing convolves them on mps"


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, inputs: dict[str, list[Tensor]]) -> Tensor:
        return self.inner(inputs["a"][0])  # type: ignore[no-any-return]  # modules are untyped calls


class Foreign(nn.Module):
    """A quantized layer of somebody else, who follows the seed document."""

    def __init__(self) -> None:
        super().__init__()
        self.curr_bitwidth = 8
        self.weight = nn.Parameter(torch.linspace(-1, 1, 9).view(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return (x.mean(dim=(2, 3)) if x.ndim == 4 else x) @ self.weight * self.curr_bitwidth


NAN = "some of its logits are NaN or infinite, which integers cannot carry on"
UNKNOWN = "none of its quantized layers is one that QBW knows the arithmetic of"


def with_nan(net: nn.Module) -> nn.Module:
    net.get_submodule("bn1").bias.data[0] = float("nan")  # type: ignore[union-attr, operator]  # a parameter
    return net


def with_zero_clipping(net: nn.Module) -> nn.Module:
    """Finite weights whose forward pass divides 0 by 0, at 2 bits."""
    net.get_submodule("layer2.0.conv1").alpha.data[0] = 0.0  # type: ignore[union-attr, operator]  # a parameter
    return net


@INTEGERS_HERE
@pytest.mark.parametrize("name", ["auto", "integer"])
@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (lambda: with_nan(network()), "some of its logits are NaN or infinite, which integers cannot carry on"),
        (
            lambda: with_zero_clipping(network()),
            "some of its logits are NaN or infinite, which integers cannot carry on",
        ),
        (lambda: network().double(), "its weights are not float32"),
        (
            lambda: nn.Sequential(Foreign()).eval(),
            "none of its quantized layers is one that QBW knows the arithmetic of",
        ),
    ],
    ids=["NaN weights", "NaN on the way", "float64", "foreign layers"],
)
def test_where_integers_are_not_right_the_reason_is_told(name: str, net: Callable[[], nn.Module], reason: str) -> None:
    model = net()
    inputs = X.to(next(model.parameters()).dtype)
    choice = chosen(name, model, inputs)
    assert named(choice) == ("incremental", f"{EQUAL}; no integers: {reason}")
    names = layer_names_of(model)
    configurations = configurations_of([2] * len(names), [8] * len(names))
    with torch.inference_mode():
        found = dict(choice.engine.logits(inputs, configurations))
    for position, expected in enumerate(naive_logits(model, names, inputs, configurations)):
        assert torch.equal(found[position].nan_to_num(nan=7), expected.nan_to_num(nan=7))


class OneByOne(nn.Module):
    """Convolves every image by itself, without a batch around it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = QuantConv2d(3, 4, 3, quantizers=Quantizers(options=OPTIONS))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.layer(x[0]), self.layer(x[1])]).mean((2, 3))


@INTEGERS_HERE
@pytest.mark.parametrize("name", ["auto", "integer"])
def test_a_network_that_integers_fail_on_runs_without_them(name: str) -> None:
    choice = chosen(name, OneByOne().eval())
    assert choice.engine.name == "incremental"
    assert choice.reason.startswith(f"{EQUAL}; no integers: a layer cannot be run in them (")


@INTEGERS_HERE
def test_integers_are_tried_at_every_bitwidth_however_many_there_are() -> None:
    options = (*range(1, 9), 16, 20, 32)
    net = nn.Sequential(QuantConv2d(3, 4, 3, quantizers=Quantizers(options=options)), nn.Flatten()).eval()
    with mock.patch.object(IntegerEngine, "logits", autospec=True, side_effect=IntegerEngine.logits) as asked:
        choice = choose_engine("integer", net, ["0"], X, options, cache_bytes=10**7)
    assert choice.engine.name == "integer"
    tried = [configuration.bitwidths for call in asked.call_args_list for configuration in call.args[2]]
    assert tried == [(bits,) for bits in options]


def test_a_weight_that_is_nan_where_no_logit_is_shows_in_the_weights() -> None:
    """A batch norm's statistics at a bitwidth that is not among the options asked for."""
    net = network()
    net.unused = nn.Parameter(torch.full((2,), float("nan")))
    reason = "some of its weights are NaN or infinite, which integers cannot carry on"
    expected = why_not_here() or reason
    assert named(chosen("integer", net)) == ("incremental", f"{EQUAL}; no integers: {expected}")


def test_a_machine_without_exact_convolutions_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qbw_eval.engine.onednn.why_not_here", lambda: "this is a toaster")
    assert named(chosen("auto")) == ("incremental", f"{EQUAL}; no integers: this is a toaster")


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "reference"])
def test_a_network_that_cannot_be_traced_runs_whole_and_says_why(name: str) -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x)
            return y if y.sum() > 0 else -y

    words = "symbolically traced variables cannot be used as inputs to control flow"
    reason = f"its forward pass cannot be traced ({words}), so every configuration runs whole"
    assert named(chosen(name, Looks().eval())) == ("reference", reason)


def test_an_engine_that_does_not_exist_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match=r"^engine 'fastest' is not among \('auto', 'reference', 'incremental', 'int"):
        chosen("fastest")


# --- graphs that do not tell the truth ------------------------------------------------------------------------------


class Two(nn.Module):
    """Two quantized layers in a network of somebody else, whose forward does `_tail` to the end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        quantizers = Quantizers(options=OPTIONS)
        self.conv1 = QuantConv2d(3, 4, 3, quantizers=quantizers)
        self.conv2 = QuantConv2d(4, 3, 3, quantizers=quantizers)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.conv2(self.conv1(x)).mean(dim=(2, 3)))

    def tail(self, y: Tensor) -> Tensor:
        return y


class ReadsBits(Two):
    def tail(self, y: Tensor) -> Tensor:
        return y * self.conv1.curr_bitwidth


class Noise(Two):
    def tail(self, y: Tensor) -> Tensor:
        return y + torch.rand(3)


class Alias(Two):
    def tail(self, y: Tensor) -> Tensor:
        same = y
        y += 1
        return y * same


class OtherType(Two):
    """A stand-in is no tensor, so that the graph goes another way than the network."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if isinstance(x, Tensor) else x["image"].float())


LIES = "its forward pass does more than its graph shows"


@pytest.mark.parametrize(
    ("lying", "reason"),
    [
        (ReadsBits, LIES),
        (Noise, LIES),
        (Alias, LIES),
        (OtherType, "what its graph shows cannot be run (too many indices for tensor of dimension 4)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # torch, of OtherType's index "image"
def test_a_graph_that_lies_is_found_out(lying: type[Two], reason: str) -> None:
    assert named(chosen("auto", Two().eval()))[0] in ("incremental", "integer"), "without the lie it is fast"
    for name in ("auto", "incremental", "integer"):
        assert named(chosen(name, lying().eval())) == ("reference", f"{reason}, so every configuration runs whole")


class LooksAhead(Foreign):
    """A quantized layer that looks at another's bits, which it does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.others: tuple[nn.Module, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / sum(layer.curr_bitwidth for layer in self.others)  # type: ignore[misc]  # integers


class ClampsItsInput(Foreign):
    """A quantized layer that changes what it is given, which another reads as well."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp_(-0.1, 0.1))


class Deep(nn.Module):
    """Many layers, the one before the last two not like the others."""

    def __init__(self, odd_one: Foreign) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Foreign() for _ in range(9)))
        self.odd_one, self.beside, self.last = odd_one, Foreign(), Foreign()
        if isinstance(odd_one, LooksAhead):
            odd_one.others = (self.beside,)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.layers(x))
        beside = self.beside(y)  # before it is changed
        return self.last(self.odd_one(y) + beside)  # type: ignore[no-any-return]  # modules are untyped calls


@pytest.mark.parametrize("odd_one", [LooksAhead, ClampsItsInput])
def test_a_lie_at_the_end_of_a_deep_network_is_found_out(odd_one: type[Foreign]) -> None:
    """Random configurations of 12 layers have no long beginning in common, so that nothing that was kept is used."""
    assert named(chosen("incremental", Deep(Foreign()).eval())) == ("incremental", "as asked")
    expected = ("reference", f"{LIES}, so every configuration runs whole")
    assert named(chosen("auto", Deep(odd_one()).eval())) == expected


@pytest.mark.parametrize("count", [1, 2, 12, 40])
def test_probes_share_every_beginning(count: int) -> None:
    probes = [probe.bitwidths for probe in choose._probes(count, OPTIONS)]
    assert {(bits,) * count for bits in OPTIONS} <= set(probes)
    assert all(len(probe) == count and set(probe) <= set(OPTIONS) for probe in probes)
    assert len(probes) <= 3 + 4 + 16
    shared = {
        next(layer for layer in range(count) if one[layer] != other[layer])
        for one in probes
        for other in probes
        if one != other
    }
    starts = range(count) if count <= 16 else [count * part // 16 for part in range(16)]
    assert shared >= set(starts)


def test_one_option_is_enough_for_probes() -> None:
    assert {probe.bitwidths for probe in choose._probes(3, [4])} == {(4, 4, 4)}


# --- the network is left as it was ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [network, lambda: ReadsBits(), lambda: OtherType()])
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # torch, of OtherType's index "image"
def test_choosing_leaves_bits_and_mode_as_they_were(make: Callable[[], nn.Module]) -> None:
    net = make().train()
    for layer in layer_names_of(net):
        net.get_submodule(layer).curr_bitwidth = 4  # type: ignore[assignment]  # a plain integer
    bits, modes = get_bitwidths(net), [module.training for module in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    for name in ENGINES:
        chosen(name, net)
    assert get_bitwidths(net) == bits
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
