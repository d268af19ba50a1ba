"""The fastest thing that somebody who knows torch would try: fake quantization in bfloat16, compiled, weights cached.

As `peoples_loop`, but: data lie on the device, images in channels_last; every layer's weights are fake-quantized once
per bitwidth and kept in bfloat16; the forward is compiled, so that batch norm, ReLU and fake quantization become one
pass between two convolutions; bitwidths are data, so that none compiles anything anew; and nothing is fetched before
all is computed. Its classes are not quite the network's: bfloat16 has 8 significant bits.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.data.batches import Batch
from qbw_eval.engine.passes import values_by_clipping
from qbw_eval.quantization.bitwidths import quantized_layers, restored, set_bitwidth
from qbw_eval.quantization.layers import QuantConv2d


class ExpertsLoop:
    """A network's twin with cached weights; the network itself stays as it is.

    Args:
        model: the network, in evaluation mode, on its device; quantized layers are convolutions, by DoReFa or PACT.
        layer_names: what a configuration's bitwidths belong to.
        compiler: what torch.compile compiles the forward with; compiling happens in the first one.
        dtype: of weights and activations. Batch norms stay in float32, as under autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        layer_names: Sequence[str],
        *,
        compiler: str = "inductor",
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        layers = quantized_layers(model)
        network = copy.deepcopy(model)
        self._dtype = dtype
        self._twins = []
        for name in layer_names:
            layer = layers[name]
            assert isinstance(layer, QuantConv2d)
            twin = _CachedConv2d(layer, dtype)
            parent, _, own_name = name.rpartition(".")
            setattr(network.get_submodule(parent), own_name, twin)
            self._twins.append(twin)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):  # the stem and the classifier
                module.to(dtype)
        twin_network: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's hints know no memory_format alone
        self._forward = torch.compile(twin_network, backend=compiler, dynamic=False)

    def logits(self, inputs: Tensor, configuration: BitwidthConfiguration) -> Tensor:
        """Return (N, classes) of images as `images_for` makes them."""
        for twin, bits in zip(self._twins, configuration.bitwidths, strict=True):
            twin.run_at(bits)
        with torch.no_grad():
            logits: Tensor = self._forward(inputs)
        return logits

    def images_for(self, inputs: Tensor) -> Tensor:
        """Return images as the loop keeps them."""
        return inputs.to(self._dtype, memory_format=torch.channels_last)

    def run(self, batches: Sequence[Batch], configurations: Sequence[BitwidthConfiguration]) -> list[int]:
        """Return how many samples each configuration gets right; `batches` have images as `images_for` makes them."""
        scores = []
        for configuration in configurations:
            hits = [(self.logits(inputs, configuration).argmax(1) == labels).sum() for inputs, labels in batches]
            scores.append(torch.stack(hits).sum())
        return [int(score) for score in torch.stack(scores).tolist()]


class _CachedConv2d(nn.Module):
    """A quantized convolution whose weights at every bitwidth met are kept."""

    weight: Tensor
    clipping: Tensor
    largest: Tensor

    def __init__(self, layer: QuantConv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self._layer = (layer,)  # in a tuple, or it would be a submodule
        self._dtype = dtype
        self._kept: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for name in ("weight", "clipping", "largest"):
            self.register_buffer(name, torch.empty(0, device=layer.weight.device))
        self.run_at(layer.curr_bitwidth)

    def run_at(self, bits: int) -> None:
        """Compute at so many bits from now on."""
        if bits not in self._kept:
            self._kept[bits] = self._at(bits)
        self.weight, self.clipping, self.largest = self._kept[bits]

    def _at(self, bits: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return quantized weights, and the clipping value and the number of levels of activations."""
        (layer,) = self._layer
        with restored(layer), torch.no_grad():
            set_bitwidth(layer, bits)
            weight = layer.quantize_weight().to(self._dtype, memory_format=torch.channels_last)
            grid = layer.activation_grid()
        assert grid is not None
        assert grid.clipping is not None
        clipping, largest = (
            torch.tensor(float(value), device=weight.device) for value in (grid.clipping, grid.largest)
        )
        return weight, clipping, largest

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H_out, W_out)."""
        (layer,) = self._layer
        x = values_by_clipping(x, self.clipping, self.largest)
        return F.conv2d(x, self.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
