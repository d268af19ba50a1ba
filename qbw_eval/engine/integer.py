"""Exact low-bit arithmetic: at 8 bits or fewer a quantized layer is a convolution of integers.

Every region of the network (`regions`) becomes one operation (`integer_region`): an int8 convolution that is exact
(`convolutions`), then batch norm, sum, ReLU and the rounding for the next layer in float32, folded into one
multiplication and one addition. Between two layers that nobody else reads the tensor stays uint8. What an operation
computes depends on the bits of its own layer and of the layer it rounds for, never on what was computed before or
beside it, so that the order and the company of a configuration cannot change its result. `walk` recomputes only what
changed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from qbw_eval.engine.convolutions import Arithmetic
from qbw_eval.engine.graph import TracedNetwork, trace_network
from qbw_eval.engine.incremental import QuantizedWeights, TracedEngine, operation_of, own_layer
from qbw_eval.engine.integer_region import MOST_BITS, IntegerRegion
from qbw_eval.engine.onednn import OnednnArithmetic
from qbw_eval.engine.passes import PLAIN, Passes
from qbw_eval.engine.regions import Region, find_regions
from qbw_eval.engine.walk import Operation, Program
from qbw_eval.quantization.adoption import NO_STAND_INS, StandIns
from qbw_eval.quantization.bitwidths import restored
from schemas.errors import QBWError


class DeclinedError(QBWError):
    """This network or this machine is none for integer arithmetic; the text says why and is no whole sentence."""


class IntegerEngine(TracedEngine):
    """Exact convolutions of integers; see the module.

    Args:
        model: the network, in evaluation mode, where `arithmetic` computes.
        layer_names: what a configuration's bitwidths belong to.
        inputs: a batch; only its containers count.
        options: bitwidths that will be asked for; others work as well.
        cache_bytes: how much may be spent on quantized and packed weights.
        passes: what lies between convolutions, plain or compiled; both give the same bits.
        stand_ins: layers of ours that are the network's own in another form (`adoption`).
        arithmetic: what convolves, with passes of its own; oneDNN if left out.

    Attributes:
        in_float32: layer -> why it does not run in integers at some of the options up to 8 bits.

    Raises:
        UntraceableError: the network cannot be traced.
        DeclinedError: it would not be exact, or there is nothing for it to do.
    """

    name = "integer"
    numerics = "integer-convolution/1"

    def __init__(
        self,
        model: nn.Module,
        layer_names: Sequence[str],
        inputs: Any,
        options: Sequence[int],
        cache_bytes: int,
        passes: Passes = PLAIN,
        stand_ins: StandIns = NO_STAND_INS,
        arithmetic: Arithmetic | None = None,
    ) -> None:
        if arithmetic is None:
            arithmetic = OnednnArithmetic(cache_bytes // 2, passes)
        _check(model, arithmetic)
        traced = trace_network(model, layer_names, inputs, stand_ins)
        weights = QuantizedWeights(cache_bytes // 2)
        regions: dict[fx.Node, IntegerRegion] = {}
        for region in reversed(find_regions(traced, own_layer)):  # readers come after what they read
            (position,) = traced.layers[region.node]
            reader = regions[region.reader] if region.reader is not None else None
            regions[region.node] = IntegerRegion(region, position, reader, weights, arithmetic)
        if not regions:
            raise DeclinedError("none of its quantized layers is one that QBW knows the arithmetic of")
        few = [bits for bits in options if bits <= MOST_BITS]
        if not few:
            raise DeclinedError(f"no bitwidth of {sorted(options)} is {MOST_BITS} or less")
        with restored(model):
            whys = {
                (layer_names[region.position], bits): why
                for region in regions.values()
                for bits in few
                if (why := region.why_not(bits)) is not None
            }
        self.in_float32 = {name: why for (name, _), why in reversed(whys.items())}
        if len(whys) == len(few) * len(regions):
            reasons = "; ".join(sorted(set(self.in_float32.values())))
            raise DeclinedError(f"none of its quantized layers runs in integers: {reasons}")
        super().__init__(model, layer_names, inputs, _program(traced, regions, weights), stand_ins)

    def _leaves(self, inputs: Any) -> tuple[Tensor, ...] | None:
        """Return the tensors of a batch: images in channels_last, or every rounding would transpose them."""
        tensors = super()._leaves(inputs)
        return tensors and tuple(
            tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor for tensor in tensors
        )


def _check(model: nn.Module, arithmetic: Arithmetic) -> None:
    """Raise DeclinedError where integer arithmetic cannot be exact."""
    tensors = [*model.parameters(), *model.buffers()]
    reason = arithmetic.why_not(list({tensor.device for tensor in tensors}))
    if reason is not None:
        raise DeclinedError(reason)
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in tensors):
        raise DeclinedError("its weights are not float32")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise DeclinedError("some of its weights are NaN or infinite, which integers cannot carry on")


def _program(traced: TracedNetwork, regions: dict[fx.Node, IntegerRegion], weights: QuantizedWeights) -> Program:
    """Return the network as operations: roundings of what several layers read, regions, and the rest."""
    by_last = {region.region.last: region for region in regions.values()}
    inside = {member for region in regions.values() for member in region.region.members}
    rounded_by_region = {region.region.reader for region in regions.values()}
    number = {traced.nodes[0]: 0}
    operations: list[Operation] = []

    def add(operation: Operation) -> int:
        operations.append(operation)
        return len(operations)

    for node in traced.nodes[1:]:
        if node not in by_last:
            if node not in inside:
                number[node] = add(operation_of(node, traced, number, weights))
            continue
        region = by_last[node]
        (source,) = region.region.node.all_input_nodes
        rounded, others = number[source], [number[other] for other in _others(region.region)]
        if region.region.node not in rounded_by_region:
            rounded = add(
                Operation(
                    name=f"{region.region.node.name}_rounded",
                    inputs=(rounded,),
                    layers=frozenset([region.position]),
                    compute=region.round_input,
                )
            )
        number[node] = add(
            Operation(
                name=node.name,
                inputs=(rounded, *others),
                layers=region.positions,
                compute=region.run,
            )
        )
    return Program(operations)


def _others(region: Region) -> list[fx.Node]:
    return [region.other] if region.other is not None else []
