"""Somebody's layers as ours: those that are what they say get the fast engines, and nobody else does."""

import copy
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbw_eval.configurations import sample
from qbw_eval.engine.choose import choose_engine
from qbw_eval.engine.incremental import IncrementalEngine
from qbw_eval.engine.integer import IntegerEngine
from qbw_eval.engine.packing import why_not_here
from qbw_eval.engine.reference import ReferenceEngine
from qbw_eval.quantization.adoption import adopt_layers
from qbw_eval.quantization.bitwidths import get_bitwidths, quantized_layers
from qbw_eval.quantization.layers import QuantConv2d, QuantLinear

OPTIONS = (2, 4, 8)


def dorefa_weight(w: Tensor, bits: int) -> Tensor:
    if bits == 32:
        return w
    n = 2**bits - 1
    t = w.tanh() / (2 * w.tanh().abs().max()) + 0.5
    return 2 * ((t * n) + ((t * n).round() - t * n).detach()) / n - 1  # the straight-through estimator people write


def dorefa_scaled_weight(w: Tensor, bits: int) -> Tensor:
    t = w.tanh() / w.tanh().abs().max()
    n = 2**bits - 1
    return (2 * ((t / 2 + 0.5) * n).round() / n - 1) * w.abs().mean()


def dorefa_activation(x: Tensor, bits: int) -> Tensor:
    return x.clamp(0, 1) if bits == 32 else torch.round(x.clamp(0, 1) * (2**bits - 1)) / (2**bits - 1)


class Theirs:
    """What their layers share; `forward` of the classes below is made of these."""

    bitwidth_options: ClassVar[Any] = [2, 4, 8]
    weight_quantization, activation_quantization = "dorefa", "dorefa"
    curr_bitwidth = 8
    weight: Tensor

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bits = self.curr_bitwidth
        return dorefa_activation(x, bits), dorefa_weight(self.weight, bits)


class Conv(Theirs, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        a, w = self.quantized(x)
        return self._conv_forward(a, w, self.bias)


class Linear(Theirs, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        a, w = self.quantized(x)
        return F.linear(a, w, self.bias)


class Scaled(Conv):
    weight_quantization = "dorefa_scaled"

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return dorefa_activation(x, self.curr_bitwidth), dorefa_scaled_weight(self.weight, self.curr_bitwidth)


class Pact(Conv):
    """alpha as the seed family keeps it, one for each option."""

    activation_quantization = "pact"

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.alpha = nn.Parameter(torch.tensor([0.7, 1.1, 1.9]).view(3, 1, 1, 1))

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bits, n = self.curr_bitwidth, 2**self.curr_bitwidth - 1
        alpha = self.alpha[self.bitwidth_options.index(bits)].view(())
        return self.rounded(x, alpha, n), dorefa_weight(self.weight, bits)

    def rounded(self, x: Tensor, alpha: Tensor, n: int) -> Tensor:
        return torch.round(x.clamp(min=0).minimum(alpha) * n / alpha) * alpha / n


class PactOfPapers(Pact):
    """The same with a scale, as papers have it: equal, but for the last place."""

    def rounded(self, x: Tensor, alpha: Tensor, n: int) -> Tensor:
        y = 0.5 * (x.abs() - (x - alpha).abs() + alpha)
        return torch.round(y * (n / alpha)) / (n / alpha)


class Step(nn.Module):
    def __init__(self, *steps: float) -> None:
        super().__init__()
        self.step_size = nn.Parameter(torch.tensor(steps))


class Lsq(Conv):
    weight_quantization = activation_quantization = "lsq"

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.quantize_w, self.quantize_a = Step(0.2, 0.05, 0.004), Step(0.1)

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bits = self.curr_bitwidth
        step = self.quantize_w.step_size[self.bitwidth_options.index(bits)]
        w = (self.weight / step).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).round() * step
        a = (x / self.quantize_a.step_size).clamp(0, 2**bits - 1).round() * self.quantize_a.step_size
        return a, w


class LikeAConvolution(Theirs, nn.Module):
    """No nn.Conv2d at all."""

    def __init__(self, inputs: int, outputs: int, kernel: int, padding: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) / 3)
        self.stride, self.padding, self.dilation, self.groups = 1, padding, 1, 1

    def forward(self, x: Tensor) -> Tensor:
        a, w = self.quantized(x)
        return F.conv2d(a, w, None, self.stride, self.padding, self.dilation, self.groups)


class Network(nn.Module):
    def __init__(self, kind: Any, **keywords: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.bn = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.first = kind(6, 6, 3, **{"padding": 1, **keywords})
        self.second = kind(6, 4, 3)
        self.fc = Linear(4, 5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(torch.relu(self.bn(self.stem(x)))))
        return self.fc(torch.relu(self.second(x)).mean((2, 3)))


X = torch.randn(6, 2, 7, 7, generator=torch.Generator().manual_seed(1))
LAYERS = ("first", "second", "fc")
CONFIGURATIONS = sample("iid", 3, OPTIONS, 12, seed=1)


def logits(engine: Any, x: Tensor = X) -> list[Tensor]:
    with torch.no_grad():
        found = dict(engine.logits(x, CONFIGURATIONS))
    return [found[position] for position in range(len(CONFIGURATIONS))]


CLASSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "dorefa": (Conv, {}),
    "dorefa_scaled": (Scaled, {}),
    "pact": (Pact, {}),
    "lsq": (Lsq, {}),
    "no nn.Conv2d": (LikeAConvolution, {}),
    "grouped and without bias": (Conv, {"groups": 3, "bias": False}),
    "dilated": (Conv, {"dilation": 2, "padding": 2}),
    "reflecting": (Conv, {"padding_mode": "reflect"}),
    "padding in words": (Conv, {"padding": "same"}),
    "an oblong kernel": (Conv, {"padding": (1, 0)}),
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_layer_that_is_what_it_says_is_run_as_ours_and_gives_the_same_bits(name: str) -> None:
    kind, keywords = CLASSES[name]
    network = Network(kind, **keywords)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    adopted = adopt_layers(network, X[:2], OPTIONS)
    assert adopted.refused == {}
    assert adopted.remarks == ["3 layers run as ours, having given the same bits"]
    kinds = [type(adopted.stand_ins[layer]) for layer in quantized_layers(network).values()]
    assert kinds == [QuantConv2d, QuantConv2d, QuantLinear]
    engine = IncrementalEngine(network, LAYERS, X[:2], 10**7, adopted.stand_ins)
    assert sum(type(module) in (QuantConv2d, QuantLinear) for module in engine_modules(engine)) == 3
    for found, expected in zip(logits(engine), logits(ReferenceEngine(network, LAYERS)), strict=True):
        assert torch.equal(found, expected)
    assert get_bitwidths(network) == dict.fromkeys(LAYERS, 8)
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())


def engine_modules(engine: IncrementalEngine) -> list[Any]:
    """Return the quantized layers that the engine's operations call."""
    return [operation.compute.args[0] for operation in engine.program.operations if len(operation.layers) == 1]  # type: ignore[attr-defined]  # partial


def test_parameters_are_shared_so_that_training_goes_on_in_both() -> None:
    network = Network(Pact)
    adopted = adopt_layers(network, X[:2], OPTIONS)
    stand_in = adopted.stand_ins[network.first]
    assert stand_in.weight is network.first.weight
    assert stand_in.bias is network.first.bias
    with torch.no_grad():
        network.first.alpha.mul_(2)
    assert torch.equal(stand_in.alpha, network.first.alpha.flatten())
    assert len(list(network.parameters())) == len({id(p) for p in network.parameters()}) == 12


@pytest.mark.skipif(why_not_here() is not None, reason="int8 convolutions are not exact here")
@pytest.mark.parametrize("name", [*CLASSES, "pact of papers"])
def test_integers_agree_with_float64_as_far_as_the_network_itself_does(name: str) -> None:
    kind, keywords = CLASSES.get(name, (PactOfPapers, {}))
    network = Network(kind, **keywords)
    adopted = adopt_layers(network, X[:2], OPTIONS)
    integer = IntegerEngine(network, LAYERS, X[:2], OPTIONS, 10**7, stand_ins=adopted.for_integers)
    assert len(integer.in_float32) == (name in ("reflecting", "padding in words", "grouped and without bias"))
    double = logits(ReferenceEngine(copy.deepcopy(network).double(), LAYERS), X.double())
    found, reference = logits(integer), logits(ReferenceEngine(network, LAYERS))
    strays = [
        sum(int((one.argmax(1) != other.argmax(1)).sum()) for one, other in zip(engine, double, strict=True))
        for engine in (found, reference)
    ]
    print(f"{name}: classes other than float64's: integer {strays[0]}, reference {strays[1]}")
    assert strays[0] <= strays[1]
    assert all((one - other).abs().median() < 1e-5 for one, other in zip(found, double, strict=True))


def test_a_layer_that_differs_in_the_last_place_is_run_as_ours_only_with_integers() -> None:
    network = Network(PactOfPapers)
    adopted = adopt_layers(network, X[:2], OPTIONS)
    assert adopted.stand_ins.keys() == {network.fc}
    assert adopted.for_integers.keys() == set(quantized_layers(network).values())
    assert adopted.remarks == [
        "1 layer runs as ours, having given the same bits",
        "2 layers run as ours where integers are computed with, being equal but for rounding",
    ]
    choice = choose_engine("incremental", network, LAYERS, X[:2], OPTIONS, cache_bytes=10**7)
    for found, expected in zip(logits(choice.engine), logits(ReferenceEngine(network, LAYERS)), strict=True):
        assert torch.equal(found, expected)


# --- who is not what he says ------------------------------------------------------------------------------------------


class SignedActivations(Conv):
    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n = 2**self.curr_bitwidth - 1
        return torch.round(x.clamp(-1, 1) * n) / n, dorefa_weight(self.weight, self.curr_bitwidth)


class AnotherAtFour(Conv):
    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, w = super().quantized(x)
        return a, w * 1.0001 if self.curr_bitwidth == 4 else w


class OnlyAboveTen(Conv):
    """Real activations do not reach there."""

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, w = super().quantized(x)
        return torch.where(x > 10, 2.0, a), w


class ChangesItsInput(Conv):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        x.mul_(2)
        return y


class TwoInputs(Conv):
    def forward(self, x: Tensor, more: float = 0) -> Tensor:
        y: Tensor = super().forward(x)
        return y + more


class Unknown(Conv):
    weight_quantization = "ternary"


class FewerOptions(Conv):
    bitwidth_options: ClassVar[Any] = (2, 8)


class NoAlpha(Conv):
    activation_quantization = "pact"


class TwoAlphas(Pact):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.alpha = nn.Parameter(torch.ones(2))
        self.bitwidth_options = [2, 4, 8]

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.weight


AS_DOCUMENTED = "are not those of dorefa weights and dorefa activations as docs/protocol.md has them"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (SignedActivations, f"its outputs at 2 bits {AS_DOCUMENTED}"),
        (AnotherAtFour, f"its outputs at 4 bits {AS_DOCUMENTED}"),
        (OnlyAboveTen, f"its outputs at 2 bits {AS_DOCUMENTED}"),
        (ChangesItsInput, "it changes its input"),
        (Unknown, "'ternary' and 'dorefa' are not both quantizers that are known here"),
        (FewerOptions, "its bitwidth_options [2, 8] lack some of [2, 4, 8]"),
        (NoAlpha, "expected alpha of 1 value or 3, found none"),
        (TwoAlphas, "expected alpha of 1 value or 3, found 2"),
    ],
)
def test_a_layer_that_is_not_what_it_says_runs_as_it_is(kind: Any, why: str) -> None:
    network = Network(kind)
    adopted = adopt_layers(network, X[:2], OPTIONS)
    assert adopted.refused == {"first": why, "second": why}
    assert adopted.stand_ins.keys() == adopted.for_integers.keys() == {network.fc}
    assert get_bitwidths(network) == dict.fromkeys(LAYERS, 8)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    choice = choose_engine("incremental", network, LAYERS, X[:2], OPTIONS, cache_bytes=10**7)
    if kind is ChangesItsInput:
        assert choice.engine.name == "reference"  # nobody can skip anything then
    else:
        assert f"2 layers run as they are, such as first: {why}" in choice.reason
    for found, expected in zip(logits(choice.engine), logits(ReferenceEngine(network, LAYERS)), strict=True):
        assert torch.equal(found, expected)


class Asks(Network):
    """Calls a layer with more than a tensor, and one as no module at all."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(torch.relu(self.bn(self.stem(x))), more=0.0))
        y: Tensor = self.fc(torch.relu(self.second.forward(x)).mean((2, 3)))
        return y


def test_a_layer_is_left_as_it_is_where_something_else_looks_on_or_calls_it_in_another_way() -> None:
    network = Network(Conv)
    hook = network.first.register_forward_hook(lambda _module, _arguments, output: output + 1)
    assert adopt_layers(network, X[:2], OPTIONS).refused == {"first": "it has forward hooks"}
    hook.remove()
    lacking = "its bitwidth_options [2, 4, 8] lack some of [8, 16]"
    assert adopt_layers(network, X[:2], [8, 16]).refused == dict.fromkeys(LAYERS, lacking)
    assert adopt_layers(Asks(TwoInputs), X[:2], OPTIONS).refused == {
        "first": "it is called with something else than one tensor",
        "second": "nothing calls it as a module",
    }


def test_layers_that_do_not_say_what_they_are_cost_nothing_and_are_not_mentioned() -> None:
    class Silent(nn.Linear):
        curr_bitwidth = 8

        def forward(self, _input: Tensor) -> Tensor:
            raise AssertionError("nobody may call it")

    adopted = adopt_layers(nn.Sequential(Silent(2, 2)), torch.zeros(1, 2), OPTIONS)
    assert (adopted.stand_ins, adopted.for_integers, adopted.refused, adopted.remarks) == ({}, {}, {}, [])
