"""The definition of truth: the network's own forward, fake quantization and all, once per configuration."""

from collections.abc import Generator, Sequence
from typing import Any

from torch import Tensor, nn

from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.nested import for_each_tensor
from qbw_eval.quantization.bitwidths import restored, set_bitwidths


class ReferenceEngine:
    """Works for any network whose quantized layers carry `curr_bitwidth`.

    Attributes:
        name, numerics: as in `choose.Engine`.
    """

    name = "reference"
    numerics = "fake-quantization-fp32/1"

    def __init__(self, model: nn.Module, layer_names: Sequence[str]) -> None:
        self._model = model
        self._layer_names = tuple(layer_names)

    def logits(self, inputs: Any, configurations: Sequence[BitwidthConfiguration]) -> Generator[tuple[int, Tensor]]:
        """Yield (position in `configurations`, logits of shape (N, classes)) for one batch of what the network takes.

        The network's bits and mode are put back when the generator ends or is closed.
        """
        with restored(self._model):
            self._model.eval()
            for position, configuration in enumerate(configurations):
                set_bitwidths(self._model, dict(zip(self._layer_names, configuration.bitwidths, strict=True)))
                # A copy: a forward that changes its input must not hand the change to the next configuration.
                yield position, self._model(for_each_tensor(inputs, Tensor.clone))

    def peak_bytes(self, _inputs: Any, _configurations: Sequence[BitwidthConfiguration]) -> None:
        """Return None: what lives at the same time in somebody's forward is not known."""
