"""A network's forward pass as a graph of torch operations, or a sentence that says why there is none.

torch.fx runs the network's own Python once, on stand-ins for tensors, and notes what it calls. Quantized layers stay
whole. What a graph cannot show - Python that looks at values, in-place changes that somebody sees, hooks - is refused;
the caller compares the rest with the network itself (`engine.choose`).
"""

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qbw_eval.nested import for_each_tensor, tensors_in
from qbw_eval.quantization.adoption import NO_STAND_INS, StandIns
from qbw_eval.quantization.bitwidths import quantized_layers, restored
from schemas.errors import QBWError, first_line


class UntraceableError(QBWError):
    """The network's forward pass cannot be written down as a graph; the text says why and is no whole sentence."""


_NOT_IN_PLACE: Mapping[object, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
}


@dataclass(frozen=True)
class TracedNetwork:
    """A forward pass: nodes of torch.fx, the first of which is the batch as a tuple of tensors, the last the result.

    Attributes:
        nodes: in an order in which each comes after its arguments; every one contributes to the result.
        modules: node -> the module it calls, for nodes that call one. None changes its arguments.
        layers: node -> positions (in the layer names) of the layers whose bits the node itself looks at.
        constants: node -> the parameter, buffer or other attribute that it stands for.
    """

    nodes: tuple[fx.Node, ...]
    modules: Mapping[fx.Node, nn.Module]
    layers: Mapping[fx.Node, frozenset[int]]
    constants: Mapping[fx.Node, Any]


class _Root(nn.Module):
    """The network behind an input that is one flat tuple, which torch.fx understands, whatever the network takes."""

    def __init__(self, network: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.network = network
        self._like = inputs
        self._count = len(tensors_in(inputs))

    def forward(self, leaves: Any) -> Any:
        positions = iter(range(self._count))
        return self.network(for_each_tensor(self._like, lambda _tensor: leaves[next(positions)]))


def bitwidth_sources(module: nn.Module) -> Sequence[nn.Module]:
    """Return the quantized layers, besides those inside it, whose bits a module looks at (`bitwidth_sources`)."""
    return getattr(module, "bitwidth_sources", ())


class _Tracer(fx.Tracer):
    def __init__(self, quantized: set[nn.Module]) -> None:
        super().__init__()
        self._quantized = quantized

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m in self._quantized or bitwidth_sources(m) or super().is_leaf_module(m, module_qualified_name):
            return True
        if _has_hooks(m):
            raise UntraceableError(f"module {module_qualified_name.removeprefix('network.')!r} has forward hooks")
        return False


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def trace_network(
    network: nn.Module, layer_names: Sequence[str], inputs: Any, stand_ins: StandIns = NO_STAND_INS
) -> TracedNetwork:
    """Return the network's forward pass in evaluation mode.

    Args:
        network: left as it was.
        layer_names: what positions in `layers` refer to.
        inputs: a batch, of which only the containers count: a tensor, or dicts, lists and tuples of tensors.
        stand_ins: layer of the network -> what is to be called in its place.

    Raises:
        UntraceableError: it cannot be written down.
    """
    layers = quantized_layers(network)
    positions = {layers[name]: position for position, name in enumerate(layer_names)}
    root = _Root(network, inputs)
    try:
        with restored(network):
            root.eval()
            graph = _Tracer(set(layers.values())).trace(root)
    except UntraceableError:
        raise
    except Exception as error:  # the network's own code, and torch.fx, raise anything
        raise UntraceableError(f"its forward pass cannot be traced ({first_line(error)})") from None
    _make_pure(graph, root)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))  # the rest is pure by now
    nodes = tuple(graph.nodes)
    (result,) = nodes[-1].args
    if not isinstance(result, fx.Node):
        kind = type(result).__name__.removeprefix("immutable_")  # torch.fx's own containers
        raise UntraceableError(f"it returns a {kind} instead of one tensor of logits")
    modules = {node: _pure_module(root, node) for node in nodes if node.op == "call_module"}
    return TracedNetwork(
        nodes=_ending_with(result, nodes[:-1]),
        modules={node: stand_ins.get(module, module) for node, module in modules.items()},
        layers={node: _layers_of(module, positions) for node, module in modules.items()},
        constants={node: _attribute(root, str(node.target)) for node in nodes if node.op == "get_attr"},
    )


def _ending_with(result: fx.Node, nodes: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
    return (*(node for node in nodes if node is not result), result)


def _layers_of(module: nn.Module, positions: Mapping[nn.Module, int]) -> frozenset[int]:
    seen = [*module.modules(), *bitwidth_sources(module)]
    return frozenset(positions[layer] for layer in seen if layer in positions)


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _make_pure(graph: fx.Graph, root: nn.Module) -> None:
    """Replace what changes its first argument by what returns the change, where nobody can see the difference.

    Raises:
        UntraceableError: somebody looks at the changed argument afterwards, or there is no such replacement.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        name = getattr(node.target, "__name__", str(node.target).removeprefix("network."))
        if "out" in node.kwargs:
            raise UntraceableError(f"{name} writes into a tensor that it is given (out=)")
        if node.op == "call_module":
            in_place = getattr(root.get_submodule(str(node.target)), "inplace", False)
        elif node.op == "call_function":
            in_place = _changes_its_argument(node.target) or node.kwargs.get("inplace", False)
        else:
            in_place = node.op == "call_method" and name.endswith("_") and not name.endswith("__")
        if not in_place:
            continue
        changed = node.args[0] if node.args else None
        if not isinstance(changed, fx.Node) or any(order[user] > order[node] for user in changed.users):
            raise UntraceableError(f"{name} changes a tensor in place that is used again")
        if node.op == "call_function":
            node.target = _not_in_place(node.target)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}
        elif node.op == "call_method":
            if not hasattr(Tensor, name.removesuffix("_")):
                raise UntraceableError(f"{name} changes a tensor in place")
            node.target = name.removesuffix("_")


def _changes_its_argument(function: Any) -> bool:
    """Return whether a function is one of Python's `+=` and its kin, or named as torch names those: `torch.relu_`."""
    name = getattr(function, "__name__", "")
    pure = name.endswith("__") or getattr(function, "__module__", None) == "_operator"  # operator.and_ is `and`, `&`
    return function in _NOT_IN_PLACE or (name.endswith("_") and not pure)


def _not_in_place(function: Any) -> Callable[..., Any]:
    """Return the function that returns what another one would change its first argument to.

    Raises:
        UntraceableError: there is none.
    """
    if not _changes_its_argument(function):
        return function  # type: ignore[no-any-return]  # told by its argument `inplace`
    name = getattr(function, "__name__", "")
    found = _NOT_IN_PLACE.get(function) or next(
        (getattr(where, name[:-1]) for where in (torch, F) if hasattr(where, name[:-1])), None
    )
    if found is None:
        raise UntraceableError(f"{name} changes a tensor in place")
    return found


def _pure_module(root: nn.Module, node: fx.Node) -> nn.Module:
    """Return the module that a node calls, or a copy of it (with the same parameters) that does not work in place."""
    module = root.get_submodule(str(node.target))
    if getattr(module, "inplace", False):
        module = copy.copy(module).eval()  # no longer a part of the network, whose eval() will not reach it
        module.inplace = False  # type: ignore[assignment]  # a plain bool, which nn.Module does not foresee
    return module


def call(node: fx.Node, traced: TracedNetwork, value_of: Callable[[fx.Node], Any]) -> Any:
    """Return what a node computes, given the values of the nodes that are its arguments."""
    if node.op == "get_attr":
        return traced.constants[node]
    args = torch.fx.node.map_arg(node.args, value_of)
    kwargs = torch.fx.node.map_arg(node.kwargs, value_of)
    if node.op == "call_module":
        return traced.modules[node](*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
