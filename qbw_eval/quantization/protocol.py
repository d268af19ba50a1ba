"""What a quantized layer says of itself, ours or anybody's: docs/protocol.md."""

from dataclasses import dataclass

from torch import Tensor, nn

from qbw_eval.quantization.layers import QuantizedLayer


@dataclass(frozen=True, kw_only=True)
class Said:
    """How a layer says it is quantized.

    Attributes:
        weight, activation: names of quantizers, known to us or not.
        clippings: how many clipping values (PACT) it has; 0 where its activations have none.
        steps: how many steps (LSQ and its kin) it has for weights, or else for activations; 0 where it has none.
    """

    weight: str
    activation: str
    clippings: int
    steps: int

    @property
    def words(self) -> str:
        """The same for people.

        >>> Said(weight="dorefa", activation="pact", clippings=3, steps=0).words
        'dorefa/pact, 3 clipping values'
        """
        if {self.weight, self.activation} == {"none"}:
            return "not quantized"
        text = self.weight if self.weight == self.activation else f"{self.weight}/{self.activation}"
        if self.clippings:
            text += f", {self.clippings} clipping value{'s' * (self.clippings > 1)}"
        if self.steps:
            text += f", {self.steps} step{'s' * (self.steps > 1)}"
        return text


def said_by(layer: nn.Module) -> Said | None:
    """Return how a layer says it is quantized; None where it does not say, or not in words."""
    weight, activation = (getattr(layer, f"{what}_quantization", None) for what in ("weight", "activation"))
    if isinstance(layer, QuantizedLayer):
        weight, activation = layer.quantizers.weight, layer.quantizers.activation
    if not isinstance(weight, str) or not isinstance(activation, str):
        return None
    steps = [step_of(layer, which) for which in ("quantize_w", "quantize_a")]
    alpha = getattr(layer, "alpha", None) if activation == "pact" else None
    return Said(
        weight=weight,
        activation=activation,
        clippings=alpha.numel() if isinstance(alpha, Tensor) else 0,
        steps=max(step.numel() if isinstance(step, Tensor) else 0 for step in steps),
    )


def step_of(layer: nn.Module, which: str) -> Tensor | None:
    """Return the `step_size` of a layer's `quantize_w` or `quantize_a`; None where there is none."""
    step = getattr(getattr(layer, which, None), "step_size", None)
    return step if isinstance(step, Tensor) else None


def quantizer_words(layer: nn.Module) -> str:
    """Return how a layer is quantized, for people."""
    said = said_by(layer)
    return f"custom ({type(layer).__name__})" if said is None else said.words
