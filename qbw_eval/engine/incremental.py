"""The reference's arithmetic, bit for bit, and nothing twice: recompute only what a changed bitwidth changes.

Weights are quantized once per layer and bitwidth; of a forward pass only what depends on a changed layer runs again
(`walk`). Works for every network that can be traced (`graph`).
"""

from collections.abc import Collection, Generator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.engine.cache import BoundedCache
from qbw_eval.engine.graph import TracedNetwork, call, trace_network
from qbw_eval.engine.reference import ReferenceEngine
from qbw_eval.engine.walk import Bits, Compute, Operation, Program, Step
from qbw_eval.nested import for_each_tensor, tensors_like
from qbw_eval.quantization.adoption import NO_STAND_INS, StandIns
from qbw_eval.quantization.bitwidths import quantized_layers, restored, set_bitwidth
from qbw_eval.quantization.layers import QuantConv2d, QuantizedLayer, QuantLinear


class TracedEngine:
    """What engines share that walk a traced network; a subclass says which operations make it up.

    Attributes:
        name, numerics: as in `ReferenceEngine`.
        program: the network's operations.
    """

    name: str
    numerics: str

    def __init__(
        self,
        model: nn.Module,
        layer_names: Sequence[str],
        inputs: Any,
        program: Program,
        stand_ins: StandIns = NO_STAND_INS,
    ) -> None:
        self._model = model
        self._like = for_each_tensor(inputs, lambda tensor: tensor[:0])  # the containers, without the data
        self._whole = ReferenceEngine(model, layer_names)
        layers = quantized_layers(model)
        self._layers = [layers[name] for name in layer_names]
        self._stand_ins = stand_ins
        self.program = program
        self._planned: tuple[Sequence[BitwidthConfiguration], list[Step]] = ((), [])

    def logits(self, inputs: Any, configurations: Sequence[BitwidthConfiguration]) -> Generator[tuple[int, Tensor]]:
        """Yield (position in `configurations`, logits of shape (N, classes)), in the order that needs the least work.

        The network's bits and mode are put back when the generator ends or is closed.
        """
        for configuration in configurations:
            if len(configuration.bitwidths) != len(self._layers):
                raise ValueError(f"{len(configuration.bitwidths)} bitwidths for {len(self._layers)} layers")
        leaves = self._leaves(inputs)
        if leaves is None:  # other containers than the graph was made for: only the network knows what to do with them
            yield from self._whole.logits(inputs, configurations)
            return
        with restored(self._model):
            self._model.eval()
            if self._planned[0] is not configurations:  # the same for every batch
                self._planned = configurations, self.program.plan(configurations)
            yield from self.program.walk(leaves, configurations, self._planned[1], self._set)

    def peak_bytes(self, inputs: Any, configurations: Sequence[BitwidthConfiguration]) -> int:
        """Return how many bytes of values live at the same time, the batch and the weights not counted.

        Seen at the first two of the configurations, while what the others will need is kept.
        """
        peaks = [0]

        def watch(values: Collection[Any]) -> None:
            batch, *computed = values
            live = _storages(computed)
            peaks.append(sum(size for pointer, size in live.items() if pointer not in _storages(batch)))

        with restored(self._model):
            self._model.eval()
            steps = self.program.plan(configurations)[:2]
            for _ in self.program.walk(self._leaves(inputs), configurations, steps, self._set, watch):
                pass
        return max(peaks)

    def _leaves(self, inputs: Any) -> tuple[Tensor, ...] | None:
        """Return a batch as the program takes it, a flat tuple of tensors; None where its containers are others."""
        tensors = tensors_like(inputs, self._like)
        return None if tensors is None else tuple(tensors)

    def _set(self, bits: Bits) -> None:
        for layer, value in zip(self._layers, bits, strict=True):
            set_bitwidth(layer, value)
            if layer in self._stand_ins:
                set_bitwidth(self._stand_ins[layer], value)


def _storages(value: Any) -> dict[int, int]:
    """Return where the memory of tensors, in whatever containers, begins, and its bytes; views share theirs."""
    if isinstance(value, Tensor):
        return {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()}
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return {pointer: size for item in items for pointer, size in _storages(item).items()}


class IncrementalEngine(TracedEngine):
    """Equal to `ReferenceEngine` in every bit.

    Args:
        model: the network, in evaluation mode, on the device it is to run on.
        layer_names: what a configuration's bitwidths belong to.
        inputs: a batch; only its containers count.
        cache_bytes: how much may be spent on quantized weights.
        stand_ins: layers of ours that are the network's own in another form (`adoption`).

    Raises:
        UntraceableError: the network cannot be traced.
    """

    name = "incremental"
    numerics = ReferenceEngine.numerics

    def __init__(
        self,
        model: nn.Module,
        layer_names: Sequence[str],
        inputs: Any,
        cache_bytes: int,
        stand_ins: StandIns = NO_STAND_INS,
    ) -> None:
        traced = trace_network(model, layer_names, inputs, stand_ins)
        weights = QuantizedWeights(cache_bytes)
        number = {node: position for position, node in enumerate(traced.nodes)}
        operations = [operation_of(node, traced, number, weights) for node in traced.nodes[1:]]
        super().__init__(model, layer_names, inputs, Program(operations), stand_ins)


class QuantizedWeights:
    """The quantized weights of every layer and bitwidth met so far, within a limit of bytes."""

    def __init__(self, limit: int) -> None:
        self._cache: BoundedCache[Tensor] = BoundedCache(limit)

    def of(self, layer: QuantizedLayer, bits: int) -> Tensor:
        """Return the weights of `layer`, which is set to `bits`."""

        def make() -> tuple[Tensor, int]:
            weight = layer.quantize_weight()
            return weight.detach(), 0 if weight is layer.weight else weight.nbytes

        return self._cache.get((layer, bits), make)


def operation_of(
    node: fx.Node, traced: TracedNetwork, number: Mapping[fx.Node, int], weights: QuantizedWeights
) -> Operation:
    """Return what a node does as an operation: the very calls of the network's own forward, weights quantized once.

    Args:
        node: one of the traced nodes.
        traced: the network.
        number: node -> its position in the program.
        weights: where quantized weights are kept.
    """
    inputs = tuple(node.all_input_nodes)
    layers = traced.layers.get(node, frozenset())
    layer = own_layer(node, traced)
    compute: Compute
    if layer is None:
        compute = partial(_call, node, traced, inputs)
    else:
        (position,) = layers
        compute = partial(_run_layer, layer, position, weights)
    return Operation(name=node.name, inputs=tuple(number[input_] for input_ in inputs), layers=layers, compute=compute)


def own_layer(node: fx.Node, traced: TracedNetwork) -> QuantConv2d | QuantLinear | None:
    """Return the quantized layer that a node calls if it is one of ours, unchanged, so that we know what it does."""
    layer = traced.modules.get(node)
    if type(layer) not in (QuantConv2d, QuantLinear) or len(node.all_input_nodes) != 1:
        return None
    assert isinstance(layer, QuantConv2d | QuantLinear)
    changed = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return None if changed or node.kwargs or len(node.args) != 1 else layer


def _call(node: fx.Node, traced: TracedNetwork, inputs: Sequence[fx.Node], values: Sequence[Any], _bits: Bits) -> Any:
    return call(node, traced, dict(zip(inputs, values, strict=True)).__getitem__)


def _run_layer(
    layer: QuantConv2d | QuantLinear,
    position: int,
    weights: QuantizedWeights,
    values: Sequence[Tensor],
    bits: Bits,
) -> Tensor:
    return layer.run(layer.quantize_activation(values[0]), weights.of(layer, bits[position]))
