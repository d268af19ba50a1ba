"""Which nodes run as one: by hand for every part, and rules that hold for random networks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from random_networks import Case, cases
from torch import Tensor, nn

from qbw_eval.engine.graph import trace_network
from qbw_eval.engine.incremental import own_layer
from qbw_eval.engine.regions import Region, find_regions
from qbw_eval.quantization.layers import QuantConv2d, Quantizers, QuantLinear, SwitchableBatchNorm2d

Forward = Callable[["Network", Tensor], Any]
LAYERS = ["conv1", "conv2", "conv3", "fc"]
X = torch.zeros(2, 3, 4, 4)


class Network(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        quantizers = Quantizers(options=(2, 4))
        self.conv1, self.conv2, self.conv3 = (QuantConv2d(3, 3, 1, quantizers=quantizers) for _ in range(3))
        self.bn = nn.BatchNorm2d(3)
        self.untracked = nn.BatchNorm2d(3, track_running_stats=False)
        self.own_bn = SwitchableBatchNorm2d(3, self.conv1)
        self.other_bn = SwitchableBatchNorm2d(3, self.conv2)
        self.hooked_bn, self.hooked_relu = nn.BatchNorm2d(3), nn.ReLU()
        for module in (self.hooked_bn, self.hooked_relu):
            module.register_forward_hook(lambda _module, _inputs, output: output)
        self.relu, self.relu6 = nn.ReLU(inplace=True), nn.ReLU6()
        self.fc = QuantLinear(4, 3, quantizers=quantizers)
        self._run = forward

    def forward(self, x: Tensor) -> Any:
        return self._run(self, x)


def regions_of(forward: Forward) -> list[Region]:
    return find_regions(trace_network(Network(forward).eval(), LAYERS, X), own_layer)


def words(region: Region) -> str:
    """Return a region as layer, +bn, +other, relu -> reader."""
    parts = [str(region.node.target).removeprefix("network.")]
    parts += ["bn"] if region.batch_norm is not None else []
    parts += [f"+ {region.other.name.removeprefix('network_')}"] if region.other is not None else []
    parts += ["relu"] if region.relu else []
    reader = f" -> {str(region.reader.target).removeprefix('network.')}" if region.reader is not None else ""
    assert region.members[0] is region.node
    assert region.members[-1] is region.last
    assert len(region.members) == len(parts)
    return " ".join(parts) + reader


def read_twice(net: Network, x: Tensor) -> Tensor:
    y = net.conv1(x)
    return net.bn(y) + y


def read_by_two_layers(net: Network, x: Tensor) -> Tensor:
    y = F.relu(net.conv1(x))
    return net.conv2(y) * net.conv3(y)


def two_layers_added(net: Network, x: Tensor) -> Tensor:
    return torch.relu(net.bn(net.conv1(x)) + net.conv2(x))


def residual(net: Network, x: Tensor) -> Tensor:
    out = net.conv2(net.relu(net.bn(net.conv1(x))))
    out += x
    return net.conv3(net.relu(out))


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda net, x: net.conv1(x), ["conv1"]),
        (lambda net, x: net.bn(net.conv1(x)), ["conv1 bn"]),
        (lambda net, x: net.own_bn(net.conv1(x)), ["conv1 bn"]),
        (lambda net, x: net.relu(net.bn(net.conv1(x) + x)), ["conv1 + getitem"]),  # a batch norm after the sum is none
        (lambda net, x: net.bn(net.relu(net.conv1(x))), ["conv1 relu"]),
        (lambda net, x: net.conv1(x).relu(), ["conv1 relu"]),
        (lambda net, x: x.add(net.conv1(x)), ["conv1 + getitem"]),
        (lambda net, x: torch.add(net.conv1(x), x), ["conv1 + getitem"]),
        (lambda net, x: F.relu(net.conv1(x), inplace=True) + x, ["conv1 relu"]),
        (lambda net, x: net.conv2(net.conv1(x)), ["conv1 -> conv2", "conv2"]),
        (lambda net, x: net.fc(net.bn(net.conv1(x))), ["conv1 bn -> fc", "fc"]),
        (lambda net, x: net.relu(net.fc(x)), ["fc relu"]),
        (residual, ["conv1 bn relu -> conv2", "conv2 + getitem relu -> conv3", "conv3"]),
        (two_layers_added, ["conv1 bn", "conv2 + bn relu"]),
        (read_twice, ["conv1"]),
        (read_by_two_layers, ["conv1 relu", "conv2", "conv3"]),
        # and what is no part, although it looks like one
        (lambda net, x: net.untracked(net.conv1(x)), ["conv1"]),
        (lambda net, x: net.other_bn(net.conv1(x)), ["conv1"]),  # it looks at the bits of another layer
        (lambda net, x: net.hooked_bn(net.conv1(x)), ["conv1"]),
        (lambda net, x: net.hooked_relu(net.conv1(x)), ["conv1"]),
        (lambda net, x: net.relu6(net.conv1(x)), ["conv1"]),
        (lambda net, x: net.bn(net.fc(x)), ["fc"]),
        (lambda net, x: torch.add(net.conv1(x), x, alpha=2), ["conv1"]),
        (lambda net, x: net.conv1(x) + 1, ["conv1"]),
        (lambda net, x: net.conv1(x) - x, ["conv1"]),
        (lambda net, x: (lambda y: y + y)(net.conv1(x)), ["conv1"]),
        (lambda net, x: net.conv2(net.conv1(x).flatten(1).view(2, 3, 4, 4)), ["conv1", "conv2"]),
        (lambda _net, x: x * 2, []),
    ],
)
def test_a_layer_takes_with_it_what_nobody_else_looks_at(forward: Forward, expected: list[str]) -> None:
    assert [words(region) for region in regions_of(forward)] == expected


def test_a_layer_with_a_hook_or_of_another_class_is_nobodys_region() -> None:
    class Changed(QuantConv2d):
        pass

    network = Network(lambda net, x: net.conv3(net.conv2(net.conv1(x)))).eval()
    network.conv1.register_forward_pre_hook(lambda _module, _inputs: None)
    network.conv2.__class__ = Changed
    found = find_regions(trace_network(network, LAYERS, X), own_layer)
    assert [words(region) for region in found] == ["conv3"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(cases())
def test_every_layer_has_a_region_and_no_node_has_two(case: Case) -> None:
    traced = trace_network(case.network, case.layer_names, case.inputs)
    regions = find_regions(traced, own_layer)
    order = {node: number for number, node in enumerate(traced.nodes)}
    assert [region.layer for region in regions] == [
        traced.modules[node] for node in traced.nodes if isinstance(traced.modules.get(node), QuantConv2d | QuantLinear)
    ]
    members = [node for region in regions for node in region.members]
    assert len(members) == len(set(members))
    for region in regions:
        for before, after in zip(region.members, region.members[1:], strict=False):
            assert list(before.users) == [after], "nobody else looks at what lies inside"
        if region.other is not None:
            assert order[region.other] < order[region.last]
            owners = [one for one in regions if region.other in one.members]
            assert all(one.last is region.other for one in owners), "what is added is a value that is computed"
        if region.reader is not None:
            assert list(region.last.users) == [region.reader]
