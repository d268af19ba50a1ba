"""Anyone's network: what a function of the user's own returns, made to look like ours to the rest of the code.

The rest of the code knows a quantized layer by its integer `curr_bitwidth` and sets it with `set_bitwidth`. Where a
network's layers keep their bits under other names, or need a function to change them, their class becomes a subclass,
made here, that translates: the layers stay the user's very objects, with the user's forward.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from numbers import Integral
from types import new_class
from typing import Any

import torch
from torch import Tensor, nn

from qbw_eval.layer_table import LayerTable
from qbw_eval.memory import is_out_of_memory
from qbw_eval.nested import places
from qbw_eval.quantization.bitwidths import get_bitwidths, quantized_layers, restored, set_bitwidth, trace_layers
from qbw_eval.settings.model import CURRENT_BITS, FactoryModel
from qbw_eval.user_code import UserCodeError, load_function, running_user_code

_SEED = 0
"""What a factory draws at random is drawn the same every time: not all of it need be in the checkpoint."""


def network_from_factory(model: FactoryModel) -> nn.Module:
    """Return the network that the user's function makes, its quantized layers as the rest of the code knows them.

    Torch's generator is left as it was.

    Raises:
        UserCodeError: the function is not there, fails, or returns no network with quantized layers.
    """
    setter = None
    with torch.random.fork_rng(devices=[]), redirect_stdout(sys.stderr):  # stdout carries results
        factory = load_function(model.factory, "model.factory", model.folder)
        if model.set_bitwidth is not None:
            setter = load_function(model.set_bitwidth, "model.set_bitwidth", model.folder)
        with running_user_code(model.factory, "model.factory", model.folder):
            torch.manual_seed(_SEED)
            network = factory(**copy.deepcopy(model.arguments))
    if not isinstance(network, nn.Module):
        raise UserCodeError(
            f"model.factory: {model.factory}: returned an object of type {type(network).__name__}; expected the "
            "network, a torch.nn.Module"
        )
    _check_layers(network, model)
    try:
        _translate(network, model.bitwidth_attribute, setter)
    except TypeError as error:
        raise UserCodeError(
            f"model.bitwidth_attribute: {model.factory}: its layers cannot be adapted ({error}); give them an "
            f"attribute {CURRENT_BITS} instead"
        ) from None
    return network.eval()


def _has_bits(module: nn.Module, names: Sequence[str]) -> bool:
    return all(isinstance(getattr(module, name, None), Integral) for name in names)


def _check_layers(network: nn.Module, model: FactoryModel) -> None:
    """Check that there are quantized layers, and no module that only the rest of the code would take for one."""
    names = " and ".join(model.bitwidth_attribute)
    if not any(_has_bits(module, model.bitwidth_attribute) for module in network.modules()):
        raise UserCodeError(
            f"model.factory: {model.factory}: none of the {sum(1 for _ in network.modules())} modules of its network "
            f"has {names} as a whole number; name what holds a layer's bits with model.bitwidth_attribute"
        )
    for name, module in quantized_layers(network).items():
        if not _has_bits(module, model.bitwidth_attribute):
            raise UserCodeError(
                f"model.bitwidth_attribute: {model.factory}: module {name!r} has {CURRENT_BITS}, by which quantized "
                f"layers are known, but not {names}; name {CURRENT_BITS} too, or call it something else there"
            )


def _translate(network: nn.Module, names: Sequence[str], setter: Callable[[nn.Module, int], object] | None) -> None:
    """Have the network's quantized layers read and set their bits as ours do."""
    if tuple(names) == (CURRENT_BITS,) and setter is None:
        return
    subclasses: dict[type[nn.Module], type[nn.Module]] = {}
    for module in network.modules():
        if _has_bits(module, names):
            kind = type(module)
            if kind not in subclasses:
                subclasses[kind] = _translating(kind, names, setter)
            module.__class__ = subclasses[kind]


def _translating(
    kind: type[nn.Module], names: Sequence[str], setter: Callable[[nn.Module, int], object] | None
) -> type[nn.Module]:
    """Return a subclass of `kind` whose `curr_bitwidth` stands for the attributes `names`.

    A class, because a copy of a layer (`copy.deepcopy`) must translate for itself.
    """
    own = getattr(kind, "set_bitwidth", None)

    def bits_of(layer: nn.Module) -> Any:
        return getattr(layer, names[0])

    def put(layer: nn.Module, bits: int) -> None:
        for name in names:
            if getattr(layer, name) != bits:  # one that follows another may be none that can be set
                setattr(layer, name, bits)

    def set_all(layer: nn.Module, bits: int) -> None:
        if setter is not None:
            setter(layer, bits)
            return
        if callable(own):
            own(layer, bits)
        put(layer, bits)

    body: dict[str, object] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    body["set_bitwidth"] = set_all
    if CURRENT_BITS not in names:
        body[CURRENT_BITS] = property(bits_of, put)
    return new_class(kind.__name__, (kind,), exec_body=lambda namespace: namespace.update(body))


def check_settable(network: nn.Module, model: FactoryModel, options: Sequence[int]) -> None:
    """Check that every quantized layer can be set to every option, so that no evaluation ends in its middle.

    Raises:
        UserCodeError: one cannot; names the layer and the bits.
    """
    name = model.set_bitwidth or model.factory
    with restored(network):
        for bits in options:
            for layer_name, layer in quantized_layers(network).items():
                where = f"layer {layer_name!r} cannot be set to {bits} bits"
                with running_user_code(name, where, model.folder):
                    set_bitwidth(layer, bits)
                found = get_bitwidths(network)[layer_name]
                if found != bits:
                    raise UserCodeError(
                        f"layer {layer_name!r} stays at {found} bits where {name} sets it to {bits}; "
                        f"{' and '.join(model.bitwidth_attribute)} must say what a layer runs at"
                    )


def run_one(network: nn.Module, model: FactoryModel, sample: Any, words: str) -> tuple[LayerTable, int]:
    """Run the network on one sample; return its quantized layers in forward order, and the number of classes.

    Really, and not only its shapes: what somebody's own code does with tensors that hold nothing is not known.

    Args:
        network: from `network_from_factory`; left as it was.
        model: what it was made from.
        sample: a batch of one sample, on the network's device.
        words: for the data, in errors.

    Raises:
        UserCodeError: it fails, or returns something else than logits (samples, classes).
        LayerError: a quantized layer takes no part in it.
    """
    outputs: list[object] = []
    hook = network.register_forward_hook(lambda _module, _arguments, output: outputs.append(output))
    shapes = "; ".join(f"{place or 'one tensor'} {tuple(tensor.shape)}" for place, tensor in places(sample))
    try:
        with running(model, f"the network fails on a sample of {words}, {shapes[:300]}"):
            table = trace_layers(network, sample)
    finally:
        hook.remove()
    return table, _classes_in(outputs[-1], model)


def _classes_in(output: object, model: FactoryModel) -> int:
    """Return how many classes the output for one sample has logits of."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.ndim == 2 and len(output) == 1:
            return output.shape[1]
        found = f"{str(output.dtype).removeprefix('torch.')} of shape {tuple(output.shape)}"
        remedy = "the first dimension stays also where it is 1"
    else:
        found = f"a {type(output).__name__}"
        remedy = "let the factory return a module whose forward picks the logits out"
    raise UserCodeError(
        f"model.factory: {model.factory}: its network returns {found} for one sample; expected logits as one tensor "
        f"of floats (samples, classes); {remedy}"
    )


@contextmanager
def running(model: object, where: str) -> Iterator[None]:
    """Run a network in the block; where it is the user's own code, what goes wrong in it becomes a sentence.

    What it prints goes to stderr.

    Args:
        model: the section `model` that it was made from, of whatever kind.
        where: what is being done, in errors.

    Raises:
        UserCodeError: the user's code failed. That memory ran out is none of its business, and passes.
    """
    if not isinstance(model, FactoryModel):
        yield
        return
    ran_out: BaseException | None = None
    with running_user_code(model.factory, where, model.folder), redirect_stdout(sys.stderr):
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            ran_out = error
    if ran_out is not None:
        raise ran_out
