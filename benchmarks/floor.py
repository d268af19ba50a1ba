"""The floor: a network's quantized layers as bare int8 convolutions, and nothing between them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.engine.packing import integers_of
from qbw_eval.quantization.bitwidths import quantized_layers, restored, set_bitwidth
from qbw_eval.quantization.layers import QuantConv2d


class BareConvolutions:
    """Every quantized layer of a network as ONE int8 convolution of oneDNN, uint8 in and uint8 out.

    No batch norm, no sum, no splitting of weights that are too wide for int8 (they are clipped): the results are
    useless, the time is what a perfect engine would need.

    Args:
        model: the network.
        layer_names: what a configuration's bitwidths belong to; convolutions, all of them.
        inputs: the batch, which tells the shapes.
        configurations: those that `run` goes through.
    """

    def __init__(
        self,
        model: nn.Module,
        layer_names: Sequence[str],
        inputs: Tensor,
        configurations: Sequence[BitwidthConfiguration],
    ) -> None:
        layers = quantized_layers(model)
        shapes = _input_shapes(model, inputs)
        used = {
            (name, bits)
            for configuration in configurations
            for name, bits in zip(layer_names, configuration.bitwidths, strict=True)
        }
        packed = {(name, bits): _pack(layers[name], bits, shapes[name]) for name, bits in used}
        images = {name: _random_image(shapes[name]) for name in layer_names}
        self._calls = [
            (images[name], packed[name, bits])
            for configuration in configurations
            for name, bits in zip(layer_names, configuration.bitwidths, strict=True)
        ]

    def run(self) -> None:
        """Convolve, one layer after the other."""
        with torch.inference_mode():
            for x, (weight, scale, zero_point, geometry) in self._calls:
                torch.ops.onednn.qconv2d_pointwise.default(
                    *(x, 1.0, 0, weight, scale, zero_point, None, *geometry),
                    *(1.0, 0, torch.uint8, "none", [], ""),
                )


def _input_shapes(model: nn.Module, inputs: Tensor) -> dict[str, torch.Size]:
    shapes: dict[str, torch.Size] = {}
    layers = quantized_layers(model)
    names = {layer: name for name, layer in layers.items()}

    def note(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        shapes[names[layer]] = arguments[0].shape

    hooks = [layer.register_forward_pre_hook(note) for layer in layers.values()]
    try:
        with torch.inference_mode():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _pack(
    layer: nn.Module, bits: int, shape: torch.Size
) -> tuple[Tensor, Tensor, Tensor, tuple[list[int], list[int], list[int], int]]:
    """Return packed weights, scale and zero point per output, and (stride, padding, dilation, groups)."""
    assert isinstance(layer, QuantConv2d)
    with restored(layer):
        set_bitwidth(layer, bits)
        unit = layer.weight_unit()
        assert unit is not None
        integers = integers_of(layer.quantize_weight().detach(), unit)
    assert integers is not None
    weight = integers.clamp(-128, 127).to(torch.int8)
    ones, zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int64)
    geometry = list(layer.stride), [int(side) for side in layer.padding], list(layer.dilation), layer.groups
    packed = torch.ops.onednn.qconv_prepack(weight, ones, 1.0, 0, *geometry, list(shape))
    return packed, ones, zeros, geometry


def _random_image(shape: torch.Size) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
