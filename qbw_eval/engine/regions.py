"""Which nodes of a traced network run as one: a quantized layer and what follows it until somebody else looks.

    layer -> batch norm -> + other -> relu -> the rounding of the one quantized layer that reads the result

Every part but the first may be missing. A part belongs to the region only if nobody else reads what comes before it.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from qbw_eval.engine.graph import TracedNetwork
from qbw_eval.quantization.layers import QuantConv2d, QuantLinear, SwitchableBatchNorm2d

OwnLayer = Callable[[fx.Node, TracedNetwork], QuantConv2d | QuantLinear | None]

_RELU_FUNCTIONS = (F.relu, torch.relu)
_ADD_FUNCTIONS = (operator.add, torch.add)


@dataclass(frozen=True, kw_only=True)
class Region:
    """A quantized layer and what runs with it.

    Attributes:
        node: the layer's.
        layer: the layer.
        batch_norm: directly behind it, or None. One that is switchable follows the bits of the layer, or of `reader`.
        other: the node that is added, or None.
        relu: whether negative values become zero in the end.
        last: the node whose value the region computes.
        reader: the quantized layer's node that is the only one to read `last`, or None.
        members: all nodes of the region, the layer's first.
    """

    node: fx.Node
    layer: QuantConv2d | QuantLinear
    batch_norm: nn.BatchNorm2d | SwitchableBatchNorm2d | None
    other: fx.Node | None
    relu: bool
    last: fx.Node
    reader: fx.Node | None
    members: tuple[fx.Node, ...]


def find_regions(traced: TracedNetwork, own_layer: OwnLayer) -> list[Region]:
    """Return one region per quantized layer that `own_layer` recognizes; no node is in two of them.

    Where two layers are added, the later one takes the sum: with configurations in lexicographic order it changes more
    often than the earlier one, whose result then stays.
    """
    order = {node: number for number, node in enumerate(traced.nodes)}
    taken: set[fx.Node] = set()
    regions = []
    for node in reversed(traced.nodes):
        layer = own_layer(node, traced)
        if layer is not None:
            region = _grow(node, layer, traced, own_layer, order, taken)
            taken.update(region.members)
            regions.append(region)
    return regions[::-1]


def _grow(
    node: fx.Node,
    layer: QuantConv2d | QuantLinear,
    traced: TracedNetwork,
    own_layer: OwnLayer,
    order: dict[fx.Node, int],
    taken: set[fx.Node],
) -> Region:
    members = [node]

    def follower() -> fx.Node | None:
        """Return the only node that reads the region so far, unless another region has it."""
        users = list(members[-1].users)
        return users[0] if len(users) == 1 and users[0] in order and users[0] not in taken else None

    batch_norm = other = None
    relu = False
    after = follower()
    if after is not None and (batch_norm := _batch_norm(after, layer, traced, own_layer)) is not None:
        members.append(after)
        after = follower()
    if after is not None and (other := _added(after, members[-1])) is not None:
        members.append(after)
        after = follower()
    if after is not None and _is_relu(after, traced):
        relu = True
        members.append(after)
    readers = list(members[-1].users)
    sole = readers[0] if len(readers) == 1 and readers[0] in order else None
    return Region(
        node=node,
        layer=layer,
        batch_norm=batch_norm,
        other=other,
        relu=relu,
        last=members[-1],
        reader=sole if sole is not None and own_layer(sole, traced) is not None else None,
        members=tuple(members),
    )


def _batch_norm(
    node: fx.Node, layer: nn.Module, traced: TracedNetwork, own_layer: OwnLayer
) -> nn.BatchNorm2d | SwitchableBatchNorm2d | None:
    """Return the batch norm that a node applies to a convolution, if it is one that scales by fixed statistics."""
    module = traced.modules.get(node)
    if not isinstance(layer, QuantConv2d) or len(node.args) != 1 or node.kwargs:
        return None
    if module is None or module._forward_hooks or module._forward_pre_hooks:
        return None
    if type(module) is SwitchableBatchNorm2d:
        # Of two layers' bits the region knows: its own, and those of the layer that alone reads it.
        users = list(node.users)
        reader = own_layer(users[0], traced) if len(users) == 1 else None
        return module if tuple(module.bitwidth_sources) in ((layer,), (reader,)) else None
    if type(module) is nn.BatchNorm2d and module.running_mean is not None:
        return module
    return None


def _added(node: fx.Node, value: fx.Node) -> fx.Node | None:
    """Return what a node adds to `value`; None where it does something else."""
    plain = node.op == "call_function" and node.target in _ADD_FUNCTIONS
    method = node.op == "call_method" and node.target == "add"
    if not (plain or method) or len(node.args) != 2 or node.kwargs:
        return None
    others = [argument for argument in node.args if argument is not value]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None


def _is_relu(node: fx.Node, traced: TracedNetwork) -> bool:
    if node.op == "call_module":
        module = traced.modules[node]
        return type(module) is nn.ReLU and not (module._forward_hooks or module._forward_pre_hooks)
    if node.op == "call_function":
        return node.target in _RELU_FUNCTIONS
    return node.op == "call_method" and node.target == "relu"
