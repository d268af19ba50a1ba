"""Exact low-bit arithmetic: at few bits a quantized layer is a convolution of integers; 8 or, with AMX, 16.

Every region of the network (`regions`) becomes one operation (`integer_region`): an int8 convolution that is exact
(`convolutions`), then batch norm, sum, ReLU and the rounding for the next layer in float32, folded into one
multiplication and one addition. Between two layers that nobody else reads the tensor stays uint8. What an operation
computes depends on the bits of its own layer and of the layer it rounds for, never on what was computed before or
beside it, so that the order and the company of a configuration cannot change its result. `walk` recomputes only what
changed.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.engine.convolutions import Arithmetic
from qbw_eval.engine.graph import TracedNetwork, trace_network
from qbw_eval.engine.incremental import QuantizedWeights, TracedEngine, operation_of, own_layer
from qbw_eval.engine.integer_region import IntegerRegion
from qbw_eval.engine.onednn import OnednnArithmetic
from qbw_eval.engine.passes import PLAIN, Passes
from qbw_eval.engine.regions import Region, find_regions
from qbw_eval.engine.replay import Replay
from qbw_eval.engine.walk import Dialled, Operation, Program, UnreplayableError
from qbw_eval.memory import is_out_of_memory
from qbw_eval.quantization.adoption import NO_STAND_INS, StandIns
from qbw_eval.quantization.bitwidths import restored
from qbw_eval.quantization.layers import SwitchableBatchNorm2d
from schemas.errors import QBWError, first_line


class DeclinedError(QBWError):
    """This network or this machine is none for integer arithmetic; the text says why and is no whole sentence."""


@dataclass(frozen=True, kw_only=True)
class Replaying:
    """How launches are recorded, where the arithmetic's can be.

    Attributes:
        region, rounding, batch_norm: what makes an operation's twin with bits as data (`dialled_region`).
        replay: what makes a `Replay` of a program.
    """

    region: Callable[[IntegerRegion, Sequence[int]], Dialled]
    rounding: Callable[[IntegerRegion, Sequence[int]], Dialled]
    batch_norm: Callable[[SwitchableBatchNorm2d, int, Sequence[int]], Dialled]
    replay: Callable[[Program], Replay]


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
        replaying: how its launches are recorded and replayed; None where each is launched.

    Attributes:
        in_float32: layer -> why it does not run in integers at some of the options up to `arithmetic.most_bits`.
        not_replayed: why launches are not replayed although `replaying` was given, as no whole sentence; or None.

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
        replaying: Replaying | None = None,
    ) -> None:
        if arithmetic is None:
            arithmetic = OnednnArithmetic(cache_bytes // 2, passes)
        _check(model, arithmetic)
        traced = trace_network(model, layer_names, inputs, stand_ins)
        _allow_copies(traced)
        weights = QuantizedWeights(cache_bytes // 2)
        regions: dict[fx.Node, IntegerRegion] = {}
        for region in reversed(find_regions(traced, own_layer)):  # readers come after what they read
            (position,) = traced.layers[region.node]
            reader = regions[region.reader] if region.reader is not None else None
            regions[region.node] = IntegerRegion(region, position, reader, weights, arithmetic)
        if not regions:
            raise DeclinedError("none of its quantized layers is one that QBW knows the arithmetic of")
        few = [bits for bits in options if bits <= arithmetic.most_bits]
        if not few:
            raise DeclinedError(f"no bitwidth of {sorted(options)} is {arithmetic.most_bits} or less")
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
        with restored(model):
            program = _program(traced, regions, weights, options, replaying)
        super().__init__(model, layer_names, inputs, program, stand_ins)
        self._replay = None if replaying is None else replaying.replay(program)
        self.not_replayed: str | None = None
        with restored(model):
            held = sum(operation.dialled.held_bytes for operation in program.operations if operation.dialled)
        if held > cache_bytes:
            self._stop_replaying(f"weights at all bitwidths take {held:,} bytes, of {cache_bytes:,}")

    def logits(self, inputs: Any, configurations: Sequence[BitwidthConfiguration]) -> Generator[tuple[int, Tensor]]:
        """Yield (position in `configurations`, logits of shape (N, classes)), in the order that needs the least work.

        The network's bits and mode are put back when the generator ends or is closed.
        """
        leaves = self._leaves(inputs)
        with restored(self._model):
            self._model.eval()
            replay = self._replay_for(leaves, configurations)
            if replay is not None and leaves is not None:
                yield from replay.walk(leaves, configurations)
                return
        yield from super().logits(inputs, configurations)

    def peak_bytes(self, inputs: Any, configurations: Sequence[BitwidthConfiguration]) -> int:
        """Return how many bytes of values live at the same time, the batch and the weights not counted.

        All values of a forward pass do where they are replayed.
        """
        leaves, walked = self._leaves(inputs), super().peak_bytes(inputs, configurations)
        with restored(self._model):
            self._model.eval()
            replay = self._replay_for(leaves, configurations)
            return walked if replay is None or leaves is None else max(walked, replay.bytes_for(leaves, configurations))

    def try_replaying(self, inputs: Any, probes: Sequence[BitwidthConfiguration]) -> None:
        """Replay from now on only if that gives the very bits that launching gives, and can be done at all.

        Args:
            inputs: a few samples.
            probes: configurations to compare.
        """
        leaves = self._leaves(inputs)
        if self._replay is None or leaves is None:
            return
        try:
            with restored(self._model), torch.no_grad():
                self._model.eval()
                why = self._replay.refuses(probes)
                if why is None:
                    launched = dict(super().logits(inputs, probes))
                    replayed = dict(self._replay.walk(leaves, probes))
                    equal = all(torch.equal(replayed[position], logits) for position, logits in launched.items())
                    why = None if equal else "replayed launches give other values"
        except Exception as error:  # whatever a driver says of what it cannot capture
            if is_out_of_memory(error):
                raise
            why = first_line(error)
        if why is not None:
            self._stop_replaying(why)

    def _stop_replaying(self, why: str) -> None:
        self._replay, self.not_replayed = None, why

    def _replay_for(
        self, leaves: Sequence[Tensor] | None, configurations: Sequence[BitwidthConfiguration]
    ) -> Replay | None:
        """Return what replays these configurations on a batch, if anything does."""
        if self._replay is None or leaves is None or not configurations:
            return None
        if any(len(configuration.bitwidths) != len(self._layers) for configuration in configurations):
            return None
        return self._replay if self._replay.refuses(configurations) is None else None

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


def _allow_copies(traced: TracedNetwork) -> None:
    """Let a network's `x.view(...)` copy: it was written for images that are not in channels_last, as they are here."""
    for node in traced.nodes:
        to_another_type = any(isinstance(argument, torch.dtype) for argument in node.args)
        if node.op == "call_method" and node.target == "view" and not node.kwargs and not to_another_type:
            node.target = "reshape"


def _program(
    traced: TracedNetwork,
    regions: dict[fx.Node, IntegerRegion],
    weights: QuantizedWeights,
    options: Sequence[int],
    replaying: Replaying | None,
) -> Program:
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
                operation = operation_of(node, traced, number, weights)
                number[node] = add(replace(operation, dialled=_dialled_norm(node, traced, options, replaying)))
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
                    dialled=None if replaying is None else replaying.rounding(region, options),
                    rider=region,
                )
            )
        number[node] = add(
            Operation(
                name=node.name,
                inputs=(rounded, *others),
                layers=region.positions,
                compute=region.run,
                dialled=None if replaying is None else replaying.region(region, options),
                carrier=region,
            )
        )
    return Program(operations)


def _dialled_norm(
    node: fx.Node, traced: TracedNetwork, options: Sequence[int], replaying: Replaying | None
) -> Dialled | None:
    """Return a switchable batch norm that is no part of a region with bits as data; None for any other node."""
    norm, layers = traced.modules.get(node), traced.layers.get(node, frozenset())
    if replaying is None or type(norm) is not SwitchableBatchNorm2d or len(layers) != 1:
        return None
    if norm._forward_hooks or norm._forward_pre_hooks or len(node.args) != 1 or node.kwargs:
        return None
    (position,) = layers
    try:
        return replaying.batch_norm(norm, position, options)
    except UnreplayableError:
        return None  # `Replay.refuses` says that nobody knows how


def _others(region: Region) -> list[fx.Node]:
    return [region.other] if region.other is not None else []
