"""The bits of a whole network: find its quantized layers, read and set their bits, list them as a layer table.

A quantized layer is any module with an integer attribute `curr_bitwidth`: ours, and anybody's who follows the seed.
Reading (average, table) never changes a setting; `restored` puts settings back after a function that has to.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from qbw_eval.cost import average_bitwidth
from qbw_eval.layer_table import Layer, LayerTable
from qbw_eval.nested import to_device
from schemas.errors import UsageError, did_you_mean


class LayerError(UsageError):
    """A configuration and a network do not name the same layers, or a network has none to vary."""


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return name -> quantized layer, in the order in which the network registers them."""
    return {name: module for name, module in model.named_modules() if isinstance(_bits_of(module), Integral)}


def _bits_of(module: nn.Module) -> object:
    return getattr(module, "curr_bitwidth", None)


def name_layers(model: nn.Module) -> None:
    """Tell each quantized layer its path in `model`, for its error messages."""
    for name, layer in quantized_layers(model).items():
        layer.layer_name = name  # type: ignore[assignment]  # a plain string, which nn.Module does not foresee


def get_bitwidths(model: nn.Module) -> dict[str, int]:
    """Return layer name -> current bits."""
    return {name: int(_bits_of(layer)) for name, layer in quantized_layers(model).items()}  # type: ignore[call-overload]


def set_bitwidths(model: nn.Module, bitwidths: Mapping[str, int]) -> None:
    """Set the bits of every quantized layer.

    Args:
        model: the network.
        bitwidths: layer name -> bits, for exactly the quantized layers of `model`.

    Raises:
        LayerError: a layer is unknown or left out; lists both sides. Nothing has been set then.
        BitwidthError: a value is not among a layer's options.
    """
    layers = quantized_layers(model)
    unknown = [name for name in bitwidths if name not in layers]
    missing = [name for name in layers if name not in bitwidths]
    if unknown or missing:
        sides = [f"unknown layer {name!r}{did_you_mean(name, list(layers))}" for name in unknown]
        sides += [f"no bits for layer {name!r}" for name in missing]
        raise LayerError("the configuration does not fit the network: " + "; ".join(sides))
    for name, bits in bitwidths.items():
        set_bitwidth(layers[name], bits)


def set_bitwidth(layer: nn.Module, bits: int) -> None:
    """Set the bits of one quantized layer, through its own `set_bitwidth` where it has one."""
    setter = getattr(layer, "set_bitwidth", None)
    if callable(setter):
        setter(bits)
    else:
        layer.curr_bitwidth = bits  # type: ignore[assignment]  # a plain integer, which nn.Module does not foresee


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Put every layer's bits and the network's train/eval mode back on leaving, whatever happened between."""
    before = [(layer, _bits_of(layer)) for layer in quantized_layers(model).values()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for layer, bits in before:
            _put_back(layer, bits)
        for module, training in modes:
            module.training = training


def _put_back(layer: nn.Module, bits: Any) -> None:
    """Set a layer's bits to what they were: through its own setter, which may keep more than the bits.

    What was there goes back even where the setter would refuse it.
    """
    if getattr(layer, "curr_bitwidth", None) == bits:
        return
    with suppress(Exception):  # somebody's setter may raise anything
        set_bitwidth(layer, bits)
    if getattr(layer, "curr_bitwidth", None) != bits:
        layer.curr_bitwidth = bits


def get_average_bitwidth(model: nn.Module) -> float:
    """Return the mean of `curr_bitwidth` over the quantized layers, unweighted (the seed document's function).

    Raises:
        LayerError: the network has no quantized layers, so there is nothing to average.
    """
    bits = list(get_bitwidths(model).values())
    if not bits:
        raise LayerError(
            "the network has no quantized layers (modules with an integer `curr_bitwidth`) to average over"
        )
    return average_bitwidth(bits)


def common_options(model: nn.Module) -> tuple[int, ...]:
    """Return the bitwidth options that every quantized layer offers, ascending.

    Raises:
        LayerError: there are none.
    """
    offered = [set(getattr(layer, "bitwidth_options", ())) for layer in quantized_layers(model).values()]
    common = sorted(set.intersection(*offered)) if offered else []
    if not common:
        raise LayerError("the quantized layers share no `bitwidth_options`; say which bitwidths to draw from")
    return tuple(common)


def unquantized_weight_bytes(model: nn.Module) -> int:
    """Return the bytes that the network keeps for inference beside its quantized weights, at 32 bits a value.

    These are its other parameters (unquantized layers, biases, batch norms, learned clipping values and steps) and its
    floating-point buffers (batch norms' running statistics, all sets of switchable ones); not the integer that batch
    norms count batches with, which inference does not read.
    """
    quantized = {getattr(layer, "weight", None) for layer in quantized_layers(model).values()}
    kept: list[Tensor] = [parameter for parameter in model.parameters() if parameter not in quantized]
    kept += [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    return 4 * sum(tensor.numel() for tensor in kept)


def trace_order(model: nn.Module, *inputs: object) -> list[str]:
    """Return the names of the quantized layers in the order in which a forward pass meets them.

    Args:
        model: the network; left as it was.
        inputs: the arguments of `forward`, for a batch of one sample.

    Raises:
        LayerError: no quantized layer takes part in the forward pass, or one that exists does not.
    """
    return list(_trace(model, inputs, lambda _layer, _output: 0))


def trace_layers(model: nn.Module, *inputs: object) -> LayerTable:
    """Return the quantized layers in forward order, with their costs, from one forward pass in evaluation mode.

    Args:
        model: the network, whose quantized layers have a `weight` (out, in, ...); left as it was.
        inputs: the arguments of `forward`, for a batch of one sample.

    Raises:
        LayerError: no quantized layer takes part in the forward pass, or one that exists does not.
    """
    layers = quantized_layers(model)
    macs = _trace(model, inputs, _macs)
    return LayerTable(tuple(_describe(name, layers[name], sum(uses)) for name, uses in macs.items()))


def _trace(
    model: nn.Module, inputs: Sequence[object], measure: Callable[[nn.Module, Tensor], int]
) -> dict[str, list[int]]:
    """Run a forward pass and return, per layer in the order of first use, what `measure` says of each of its uses."""
    names = {layer: name for name, layer in quantized_layers(model).items()}
    uses: dict[str, list[int]] = {}

    def note(module: nn.Module, _arguments: object, output: Tensor) -> None:
        uses.setdefault(names[module], []).append(measure(module, output))

    hooks = [layer.register_forward_hook(note) for layer in names]
    try:
        with restored(model), torch.no_grad():
            model.eval()
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    idle = [name for name in names.values() if name not in uses]
    if idle or not uses:
        what = f"quantized layers {idle} take no part in" if idle else "no quantized layer takes part in"
        raise LayerError(f"{what} the forward pass")
    return uses


def trace_layers_on_meta(model: nn.Module, sample: Any) -> LayerTable:
    """Return `trace_layers` for a batch of one sample, whatever containers its tensors are in, computing shapes only.

    Shapes come from files that a stranger may have written; on torch's meta device a huge one costs nothing.
    """
    shapes_only = copy.deepcopy(model).to("meta")
    return trace_layers(shapes_only, to_device(sample, torch.device("meta")))


def _macs(module: nn.Module, output: Tensor) -> int:
    """Return multiply-accumulates: one per output element and weight of its output channel; the batch is one sample."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return output.numel() * (weight.numel() // weight.shape[0])


def _describe(name: str, module: nn.Module, macs: int) -> Layer:
    weight = module.weight
    assert isinstance(weight, Tensor)
    convolution = isinstance(module, nn.Conv2d)
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    return Layer(
        layer_name=name,
        kind="conv2d" if convolution else "linear" if isinstance(module, nn.Linear) else type(module).__name__,
        weights=weight.numel(),
        macs=macs,
        in_channels=weight.shape[1] * groups,
        out_channels=weight.shape[0],
        kernel="x".join(map(str, weight.shape[2:])) if convolution else None,
        stride="x".join(map(str, module.stride)) if isinstance(module, nn.Conv2d) else None,
    )
