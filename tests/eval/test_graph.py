"""Which forward passes can be written down as a graph, which are refused and with which words."""

import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbw_eval.engine.graph import TracedNetwork, UntraceableError, call, tensors_in, trace_network
from qbw_eval.quantization.bitwidths import get_bitwidths
from qbw_eval.quantization.layers import QuantConv2d, Quantizers, SwitchableBatchNorm2d

Forward = Callable[["Network", Any], Any]
LAYERS = ["conv1", "conv2"]
X = torch.linspace(-1, 2, 100).view(2, 2, 5, 5)


class Inner(nn.Module):
    """A module of somebody's own, which is not kept whole."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Network(nn.Module):
    """Two quantized layers, and a forward pass that is handed in."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        quantizers = Quantizers(options=(2, 4, 8))
        self.conv1 = QuantConv2d(2, 3, 3, padding=1, quantizers=quantizers)
        self.norm = SwitchableBatchNorm2d(3, self.conv1)
        self.conv2 = QuantConv2d(3, 3, 3, padding=1, quantizers=quantizers)
        self.relu = nn.ReLU(inplace=True)
        self.inner = Inner()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self._run = forward

    def forward(self, x: Any) -> Any:
        return self._run(self, x)


def traced(forward: Forward, inputs: Any = X) -> TracedNetwork:
    return trace_network(Network(forward).eval(), LAYERS, inputs)


def refusal(forward: Forward, inputs: Any = X) -> str:
    with pytest.raises(UntraceableError) as error:
        traced(forward, inputs)
    return str(error.value)


def result_of(network: TracedNetwork, inputs: Any) -> Tensor:
    """Run the graph node by node."""
    values: dict[Any, Any] = {network.nodes[0]: tuple(tensors_in(inputs))}
    with torch.no_grad():
        for node in network.nodes[1:]:
            values[node] = call(node, network, values.__getitem__)
    found: Tensor = values[network.nodes[-1]]
    return found


def called(network: TracedNetwork) -> list[str]:
    """Return what the nodes call, the batch and the choice of its tensors left out."""
    names = [getattr(node.target, "__name__", str(node.target)) for node in network.nodes[1:]]
    return [name.removeprefix("network.") for name in names if name != "getitem"]


# --- refused --------------------------------------------------------------------------------------------------------


def looks_at_values(net: Network, x: Tensor) -> Tensor:
    y = net.conv1(x)
    return y + 1 if y.sum() > 0 else y


def changes_a_part(net: Network, x: Tensor) -> Tensor:
    y = net.conv1(x)
    y[:, 0] = 0
    return y


def relu_on_what_is_used_again(net: Network, x: Tensor) -> Tensor:
    y = net.conv1(x)
    z = net.relu(y)
    return y + z


def method_on_what_is_used_again(net: Network, x: Tensor) -> Tensor:
    y = net.conv1(x)
    z = y.add_(1)
    return y * z


def functional_on_what_is_used_again(net: Network, x: Tensor) -> Tensor:
    y = net.conv1(x)
    z = F.relu(y, inplace=True)
    return y * z


def torchs_own_on_what_is_used_again(net: Network, x: Tensor) -> Tensor:
    y = net.conv1(x)
    z = torch.relu_(y)
    return y * z


def changed_unseen(net: Network, x: Tensor) -> Tensor:
    """The result of the change is not used: only the change itself is."""
    y = net.conv1(x)
    torch.exp_(y)
    return y


def writes_out(net: Network, x: Tensor) -> Tensor:
    y = net.conv1(x)
    return torch.add(y, 1, out=net.scale.data)


def overwrites(net: Network, x: Tensor) -> Tensor:
    return net.conv1(x).random_()


def unknown_change(net: Network, x: Tensor) -> Tensor:
    return torch._amp_update_scale_(net.conv1(x), x, x, 2.0, 0.5, 1)  # one that has no other form


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (
            looks_at_values,
            "its forward pass cannot be traced "
            "(symbolically traced variables cannot be used as inputs to control flow)",
        ),
        (changes_a_part, "its forward pass cannot be traced ('Proxy' object does not support item assignment)"),
        (lambda net, x: net.conv1(x) / 0 if 1 / 0 else x, "its forward pass cannot be traced (division by zero)"),
        (lambda _net, _x: (_ for _ in ()).throw(KeyError), "its forward pass cannot be traced (KeyError)"),
        (relu_on_what_is_used_again, "relu changes a tensor in place that is used again"),
        (method_on_what_is_used_again, "add_ changes a tensor in place that is used again"),
        (functional_on_what_is_used_again, "relu changes a tensor in place that is used again"),
        (torchs_own_on_what_is_used_again, "relu_ changes a tensor in place that is used again"),
        (changed_unseen, "exp_ changes a tensor in place that is used again"),
        (writes_out, "add writes into a tensor that it is given (out=)"),
        (overwrites, "random_ changes a tensor in place"),
        (unknown_change, "_amp_update_scale_ changes a tensor in place"),
        (lambda net, x: (net.conv1(x), x), "it returns a tuple instead of one tensor of logits"),
        (lambda net, x: [net.conv1(x)], "it returns a list instead of one tensor of logits"),
        (lambda net, x: {"logits": net.conv1(x)}, "it returns a dict instead of one tensor of logits"),
        (lambda _net, _x: 3, "it returns a int instead of one tensor of logits"),
    ],
)
def test_what_cannot_be_written_down_is_refused_in_these_words(forward: Forward, words: str) -> None:
    assert refusal(forward) == words


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("path", ["inner", "", "block"])
def test_a_hook_on_a_module_that_would_be_taken_apart_is_refused(register: str, path: str) -> None:
    network = Network(lambda net, x: net.block(net.conv1(x))).eval()
    network.block = nn.Sequential(network.inner, network.conv2)
    getattr(network.get_submodule(path), register)(lambda *_: None)
    with pytest.raises(UntraceableError) as error:
        trace_network(network, LAYERS, X)
    # The first name that a module has is the one it is called by.
    where = {"inner": "inner", "": "network", "block": "block"}[path]
    assert str(error.value) == f"module {where!r} has forward hooks"


def test_hooks_of_modules_that_stay_whole_run() -> None:
    network = Network(lambda net, x: net.relu(net.conv1(x))).eval()
    network.conv1.register_forward_hook(lambda _module, _inputs, output: output - 1)
    network.relu.register_forward_hook(lambda _module, _inputs, output: output * 3)
    with torch.no_grad():
        expected = network(X)
    assert torch.equal(result_of(trace_network(network, LAYERS, X), X), expected)


# --- made pure ------------------------------------------------------------------------------------------------------


def in_place_everywhere(net: Network, x: Tensor) -> Tensor:
    y = net.relu(net.norm(net.conv1(x)))
    y = F.hardtanh(y, inplace=True)
    y = torch.relu_(y)
    y = F.elu_(y)
    y += net.scale
    y = operator.imul(y, 2)
    y = y.mul_(0.25).clamp_(0, 1)
    return net.conv2(y).flatten(1)


def test_what_nobody_sees_changing_returns_the_change_instead() -> None:
    network = Network(in_place_everywhere).eval()
    with torch.no_grad():
        expected = network(X.clone())
    found = trace_network(network, LAYERS, X)
    assert called(found) == [
        *("conv1", "norm", "relu", "hardtanh", "relu", "elu", "scale", "add", "mul", "mul", "clamp"),
        *("conv2", "flatten"),
    ]
    values: dict[Any, Any] = {found.nodes[0]: (X,)}
    with torch.no_grad():
        for node in found.nodes[1:]:
            arguments = [values[argument] for argument in node.all_input_nodes]
            before = [argument.clone() for argument in arguments if isinstance(argument, Tensor)]
            values[node] = call(node, found, values.__getitem__)
            after = [argument for argument in arguments if isinstance(argument, Tensor)]
            assert all(map(torch.equal, after, before)), f"{node} changed an argument"
    assert torch.equal(values[found.nodes[-1]], expected)
    assert network.relu.inplace, "the network keeps its own habits"
    (relu,) = [module for module in found.modules.values() if isinstance(module, nn.ReLU)]
    assert relu is not network.relu
    assert not relu.inplace


def test_pythons_and_is_no_change_in_place() -> None:
    """Its name is `and_`, as torch's changes in place are named."""
    found = traced(lambda net, x: (x > 0) & (x < 1) | (net.conv1(x)[:, :2] > 0))
    assert {"and_", "or_"} <= set(called(found))
    assert result_of(found, X).dtype == torch.bool


# --- what a graph says ----------------------------------------------------------------------------------------------


def test_every_node_contributes_and_says_whose_bits_it_looks_at() -> None:
    def forward(net: Network, x: Tensor) -> Tensor:
        y = net.conv1(x)
        net.conv2(y)  # nobody looks at it
        return net.conv2(net.inner(net.norm(y))) * net.scale

    network = Network(forward).eval()
    found = trace_network(network, LAYERS, X)
    assert called(found) == ["conv1", "norm", "mul", "conv2", "scale", "mul"]
    looked_at = [found.layers.get(node, frozenset()) for node in found.nodes]
    assert looked_at == [frozenset(bits) for bits in ((), (), {0}, {0}, (), {1}, (), ())]
    assert list(found.constants.values()) == [network.scale]
    assert found.constants[found.nodes[-2]] is network.scale
    reversed_names = trace_network(network, LAYERS[::-1], X)
    assert [found_bits for found_bits in reversed_names.layers.values() if found_bits] == [{1}, {1}, {0}]
    for node in found.nodes:
        assert all(found.nodes.index(argument) < found.nodes.index(node) for argument in node.all_input_nodes)


NESTED = {"a": {"x": X, "unused": X * 9}, "b": [X * 2, (X * 3,)]}


def test_any_nesting_of_inputs_comes_back_as_it_was() -> None:
    seen: list[Any] = []

    def forward(net: Network, inputs: Any) -> Tensor:
        seen.append((type(inputs), type(inputs["b"]), type(inputs["b"][1]), sorted(inputs["a"])))
        return net.conv1(inputs["a"]["x"] + inputs["b"][0] - inputs["b"][1][0])

    network = Network(forward).eval()
    found = trace_network(network, LAYERS, NESTED)
    assert seen == [(dict, list, tuple, ["unused", "x"])]
    with torch.no_grad():
        assert torch.equal(result_of(found, NESTED), network(NESTED))


def test_tensors_stand_in_the_order_in_which_they_are_nested() -> None:
    tensors = tensors_in(NESTED)
    expected: Iterable[Tensor] = (X, X * 9, X * 2, X * 3)
    assert len(tensors) == 4
    assert all(map(torch.equal, tensors, expected))
    assert tensors_in(X) == [X]


def test_an_evaluation_is_traced_and_the_network_is_left_as_it_was() -> None:
    network = Network(lambda net, x: net.conv1(x) if net.training else net.conv2(net.conv1(x))).train()
    network.relu.eval()
    network.conv1.set_bitwidth(2)
    bits, modes = get_bitwidths(network), [module.training for module in network.modules()]
    assert called(trace_network(network, LAYERS, X)) == ["conv1", "conv2"]
    assert get_bitwidths(network) == bits
    assert [module.training for module in network.modules()] == modes

    network = Network(looks_at_values).train()
    with pytest.raises(UntraceableError, match=re.escape("control flow")):
        trace_network(network, LAYERS, X)
    assert all(module.training for module in network.modules())


def test_a_network_that_returns_its_batch_is_one_node() -> None:
    found = traced(lambda _net, x: x)
    assert called(found) == []
    assert torch.equal(result_of(found, X), X)
