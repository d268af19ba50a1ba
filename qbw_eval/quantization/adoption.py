"""Somebody's quantized layers as ours: what they say of themselves (docs/protocol.md) is tried before it is believed.

A layer that says it is DoReFa, PACT or LSQ gets a stand-in: one of our layers with the very same parameters. The fast
engines call it in the layer's place, because they know its arithmetic; the network itself is never changed.

At every bitwidth, on the activations of real samples and on random ones, a stand-in must give the layer's own bits.
Some write the same formula in another order (`/ scale` with a scale of n / alpha), which differs in the last place and,
where that decides, by a level. In float64 nothing is that close to a tie by chance: a stand-in that agrees there to
1e-9 takes the layer's place in the engine that computes with integers, which may round a tie the other way by itself,
and only there.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from qbw_eval.nested import for_each_tensor
from qbw_eval.quantization.bitwidths import offered_bitwidths, quantized_layers, restored, set_bitwidth
from qbw_eval.quantization.layers import BitwidthError, QuantConv2d, QuantizedLayer, Quantizers, QuantLinear
from qbw_eval.quantization.numerics import FULL_PRECISION
from qbw_eval.quantization.protocol import Said, said_by, step_of

StandIn = QuantConv2d | QuantLinear
StandIns = Mapping[nn.Module, StandIn]
"""Somebody's layer -> one of ours that gives the same bits."""

NO_STAND_INS: Final[StandIns] = MappingProxyType({})

_Weights = Literal["dorefa", "dorefa_scaled", "lsq"]
_Activations = Literal["dorefa", "pact", "lsq"]

_ROUNDING: Final = "equal but for rounding"
_CLOSE: Final = 1e-9

_SPREADS: Final = (0.5, 4.0, 100.0)
"""Standard deviations of the random inputs: most values inside what a quantizer clips, and most outside."""


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """Which layers have a stand-in.

    Attributes:
        stand_ins: layer -> its stand-in, equal in every bit.
        for_integers: the same, and those that are equal but for rounding.
        refused: name -> why it has none, of the layers that say how they are quantized.
    """

    stand_ins: StandIns
    for_integers: StandIns
    refused: Mapping[str, str]

    @property
    def remarks(self) -> list[str]:
        """What there is to say, in clauses; nothing where all layers are ours or do not say what they are."""
        said = []
        if self.stand_ins:
            said.append(f"{_layers(len(self.stand_ins))} as ours, having given the same bits")
        rounding = len(self.for_integers) - len(self.stand_ins)
        if rounding:
            said.append(f"{_layers(rounding)} as ours where integers are computed with, being equal but for rounding")
        if self.refused:
            name, why = next(iter(self.refused.items()))
            said.append(f"{_layers(len(self.refused))} as they are, such as {name}: {why}")
        return said


def _layers(count: int) -> str:
    return "1 layer runs" if count == 1 else f"{count} layers run"


def adopt_layers(model: nn.Module, inputs: Any, options: Sequence[int]) -> Adopted:
    """Return stand-ins for somebody's layers that are what they say; the network is left as it was.

    Args:
        model: the network; nothing runs where no layer of it says what it is.
        inputs: a few samples, on its device.
        options: the bitwidths that will be asked for.
    """
    stand_ins: dict[nn.Module, StandIn] = {}
    refused: dict[str, str] = {}
    names: dict[nn.Module, str] = {}
    for name, layer in quantized_layers(model).items():
        said = said_by(layer)
        if isinstance(layer, QuantizedLayer) or said is None:
            continue
        made = _stand_in(layer, said, options)
        if isinstance(made, str):
            refused[name] = made
        else:
            made.layer_name = name
            stand_ins[layer], names[layer] = made, name
    verdicts = _found_out(model, inputs, options, stand_ins) if stand_ins else {}
    refused |= {names[layer]: why for layer, why in verdicts.items() if why != _ROUNDING}
    return Adopted(
        stand_ins={layer: made for layer, made in stand_ins.items() if layer not in verdicts},
        for_integers={layer: made for layer, made in stand_ins.items() if verdicts.get(layer, _ROUNDING) == _ROUNDING},
        refused=refused,
    )


# --- what a layer says ------------------------------------------------------------------------------------------------


def _stand_in(layer: nn.Module, said: Said, options: Sequence[int], *, hooks_are_ours: bool = False) -> StandIn | str:
    """Return a layer of ours with the same parameters that does what a layer says it does; or why there is none."""
    weight, bias, offered = getattr(layer, "weight", None), getattr(layer, "bias", None), offered_bitwidths(layer)
    if not isinstance(weight, nn.Parameter) or not (bias is None or isinstance(bias, nn.Parameter)):
        return "its weight and bias are no parameters"
    if said.weight not in get_args(_Weights) or said.activation not in get_args(_Activations):
        return f"{said.weight!r} and {said.activation!r} are not both quantizers that are known here"
    if any(bits not in (*offered, FULL_PRECISION) for bits in options):
        return f"its bitwidth_options {list(offered)} lack some of {list(options)}"
    try:
        quantizers = Quantizers(options=offered, weight=said.weight, activation=said.activation)  # type: ignore[arg-type]  # compared above
    except BitwidthError as error:
        return str(error)
    if not hooks_are_ours and (layer._forward_hooks or layer._forward_pre_hooks):
        return "it has forward hooks"
    with torch.device("meta"):  # draws nothing from anybody's generator
        made = _with_geometry_of(layer, weight, quantizers)
    if isinstance(made, str):
        return made
    made.weight = weight
    made.register_parameter("bias", bias)
    return _share_learned(made, layer, said, len(offered)) or made


def _with_geometry_of(layer: nn.Module, weight: Tensor, quantizers: Quantizers) -> StandIn | str:
    """Return a layer of ours without weights, its stride and so on those of somebody's layer; or why there is none."""
    if weight.ndim == 2:
        return QuantLinear(1, 1, quantizers=quantizers, bias=False)
    if weight.ndim != 4 or getattr(layer, "transposed", False):
        return "it is neither a linear layer nor a convolution of images"
    made = QuantConv2d(1, 1, 1, quantizers=quantizers)
    made.kernel_size = (weight.shape[2], weight.shape[3])
    made.padding_mode = getattr(layer, "padding_mode", "zeros")
    made._reversed_padding_repeated_twice = getattr(layer, "_reversed_padding_repeated_twice", [])
    made.groups = getattr(layer, "groups", 1)
    for key in ("stride", "padding", "dilation"):
        value = getattr(layer, key, None)
        pair = (value, value) if isinstance(value, int) else value
        if not isinstance(pair, tuple | str):
            return f"it has no {key}, or one of another kind than numbers"
        setattr(made, key, pair)
    return made


def _share_learned(made: StandIn, layer: nn.Module, said: Said, count: int) -> str | None:
    """Give a stand-in the clipping values and steps of somebody's layer, in its memory; or return what is wrong."""
    learned: list[tuple[nn.Module, str, Tensor | None]] = []
    if said.activation == "pact":
        learned.append((made, "alpha", getattr(layer, "alpha", None)))
    if said.weight == "lsq":
        learned.append((made.quantize_w, "step_size", step_of(layer, "quantize_w")))
    if said.activation == "lsq":
        learned.append((made.quantize_a, "step_size", step_of(layer, "quantize_a")))
    for module, key, values in learned:
        if not isinstance(values, Tensor) or values.numel() not in (1, count):
            found = "none" if not isinstance(values, Tensor) else str(values.numel())
            return f"expected {key} of 1 value or {count}, found {found}"
        delattr(module, key)  # a parameter, in whose place only another could stand
        setattr(module, key, values.detach().reshape(-1))
    return None


# --- what it does -----------------------------------------------------------------------------------------------------


def _found_out(model: nn.Module, inputs: Any, options: Sequence[int], stand_ins: StandIns) -> dict[nn.Module, str]:
    """Return why a layer is not what it says, or `_ROUNDING`, for each whose stand-in gives another bit somewhere."""
    whys: dict[nn.Module, str] = {}
    met: set[nn.Module] = set()
    before: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if len(arguments) != 1 or keywords or not isinstance(arguments[0], Tensor):
            whys[layer] = "it is called with something else than one tensor"
        else:
            before[layer] = arguments[0].clone()

    def compare(layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        met.add(layer)
        if layer not in whys:
            why = _difference(layer, stand_ins[layer], before.pop(layer), arguments[0], output)
            if why is not None:
                whys[layer] = why
        elif whys[layer] == _ROUNDING and not _agree_in_double(layer, before.pop(layer), bits):
            whys[layer] = _other_outputs(stand_ins[layer])

    with restored(model), torch.no_grad():
        model.eval()
        hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in stand_ins]
        hooks += [layer.register_forward_hook(compare) for layer in stand_ins]
        try:
            for bits in options:
                for layer in [*quantized_layers(model).values(), *stand_ins.values()]:
                    set_bitwidth(layer, bits)
                model(for_each_tensor(inputs, Tensor.clone))
        finally:
            for hook in hooks:
                hook.remove()
    return {**{layer: "nothing calls it as a module" for layer in stand_ins if layer not in met}, **whys}


def _difference(layer: nn.Module, stand_in: StandIn, given: Tensor, after: Tensor, output: Any) -> str | None:
    """Return how a layer differs from its stand-in, both set to the same bits; None where it does not.

    Args:
        layer: somebody's.
        stand_in: ours.
        given: what the layer was called with.
        after: the same afterwards.
        output: what it returned.
    """
    if not _same(given, after):
        return "it changes its input"
    # Not called as a module, which would call whoever compares again.
    if _same(stand_in(given), output) and all(
        _same(stand_in(x), layer.forward(x.clone())) for x in _random_inputs(given)
    ):
        return None
    return _ROUNDING if _agree_in_double(layer, given, stand_in.curr_bitwidth) else _other_outputs(stand_in)


def _other_outputs(stand_in: StandIn) -> str:
    quantizers = stand_in.quantizers
    return (
        f"its outputs at {stand_in.curr_bitwidth} bits are not those of {quantizers.weight} weights and "
        f"{quantizers.activation} activations as docs/protocol.md has them"
    )


def _random_inputs(like: Tensor) -> list[Tensor]:
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)
    return [noise * spread for spread in _SPREADS]


def _agree_in_double(layer: nn.Module, given: Tensor, bits: int) -> bool:
    """Return whether a layer, set to `bits`, and what it says it is agree when both compute in float64."""
    try:
        double = copy.deepcopy(layer).double()
        said = said_by(double)
        stand_in = None if said is None else _stand_in(double, said, [bits], hooks_are_ours=True)
        if not isinstance(stand_in, StandIn):
            return False
        set_bitwidth(stand_in, bits)
        inputs = [x.double() for x in (given, *_random_inputs(given))]
        pairs = [(stand_in(x), double.forward(x)) for x in inputs]
    except Exception:  # somebody's layer may know float32 only, and fails in its own way
        return False
    for expected, found in pairs:
        if not isinstance(found, Tensor) or found.shape != expected.shape or found.dtype != torch.float64:
            return False
        if not bool((found - expected).abs().max() <= _CLOSE * expected.abs().max()):  # also where anything is NaN
            return False
    return True


def _same(one: Tensor, other: Any) -> bool:
    """Return whether two outputs are equal in every bit; NaN equals NaN."""
    if not isinstance(other, Tensor) or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.nan_to_num(nan=torch.pi), other.nan_to_num(nan=torch.pi))
