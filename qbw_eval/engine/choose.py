"""Which engine runs, and why: `auto` picks the fastest that is right for the network, the data and the machine."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qbw_eval.configurations import BitwidthConfiguration, sample
from qbw_eval.engine.amx_arithmetic import AmxArithmetic, kernel_here
from qbw_eval.engine.compiled_passes import fastest_passes
from qbw_eval.engine.convolutions import Arithmetic
from qbw_eval.engine.cuda_graphs import CudaLane, seconds_on
from qbw_eval.engine.graph import UntraceableError
from qbw_eval.engine.incremental import IncrementalEngine
from qbw_eval.engine.integer import DeclinedError, IntegerEngine, Replaying
from qbw_eval.engine.onednn import OnednnArithmetic
from qbw_eval.engine.reference import ReferenceEngine
from qbw_eval.engine.replay import Replay
from qbw_eval.memory import is_out_of_memory
from qbw_eval.nested import tensors_in
from qbw_eval.quantization.adoption import Adopted, StandIns, adopt_layers
from schemas.errors import first_line

ENGINES = ("auto", "reference", "incremental", "integer")

WORTH_COMPILING = 10**11
"""Multiply-accumulates of one configuration on all samples (about 2 s on two cores) from which `auto` takes integers.

Compiling what lies between convolutions, packing weights and trying them takes seconds, and rows of two engines are no
series: so the choice must depend on the network and the data alone, not on how many configurations are asked for.
"""

WORTH_COMPILING_ON_GPU = 10**12
"""The same on a GPU (about 0.1 s on an H200), where kernels are compiled and tiles tried, up to a minute or two, the
first time that a network of these sizes is met."""


class Engine(Protocol):
    """What turns a batch and configurations into logits.

    Attributes:
        name: what rows call it.
        numerics: what its results depend on besides weights, data and bits; part of a row's identity. Engines that give
            the same bits share it. A batch size or a device changes rounding in the last place at most and is no part.
    """

    name: str
    numerics: str

    def logits(self, inputs: Any, configurations: Sequence[BitwidthConfiguration]) -> Generator[tuple[int, Tensor]]:
        """Yield (position in `configurations`, logits of shape (N, classes)) in any order, each position once.

        The network's bits and mode are put back when the generator ends or is closed.
        """
        ...

    def peak_bytes(self, inputs: Any, configurations: Sequence[BitwidthConfiguration]) -> int | None:
        """Return how many bytes of activations live at once for these inputs; None where that is not known."""
        ...


@dataclass(frozen=True)
class Choice:
    """An engine, and in a sentence without its end why it is this one."""

    engine: Engine
    reason: str


def choose_engine(
    name: str,
    model: nn.Module,
    layer_names: Sequence[str],
    inputs: Any,
    options: Sequence[int],
    *,
    cache_bytes: int,
    work: int | None = None,
    activation_bytes: int = 0,
) -> Choice:
    """Return the engine called `name`; where that is not right for the network, the next best, and why.

    A traced network is compared with the network itself, on `inputs` and some configurations, before it is trusted: a
    graph cannot show everything that somebody's forward may do.

    Args:
        name: one of `ENGINES`.
        model: the network, in evaluation mode, on the device it is to run on.
        layer_names: what a configuration's bitwidths belong to.
        inputs: a few samples, on that device.
        options: bitwidths that will be asked for.
        cache_bytes: how much may be spent on quantized weights.
        work: multiply-accumulates of one configuration on all samples; None where they are not known, and results are
            to be the reference's in every bit.
        activation_bytes: how much values may take on a GPU, where configurations may be walked side by side.
    """
    if name not in ENGINES:
        raise ValueError(f"engine {name!r} is not among {ENGINES}")
    reference = ReferenceEngine(model, layer_names)
    if name == "reference":
        return Choice(reference, "as asked")
    adopted = adopt_layers(model, inputs, options)
    try:
        incremental, expected = _checked_incremental(
            reference, model, layer_names, inputs, options, cache_bytes, adopted.stand_ins
        )
    except UntraceableError as error:
        return Choice(reference, f"{error.format_message()}, so every configuration runs whole")
    choice = _faster(
        name, incremental, expected, model, layer_names, inputs, options, cache_bytes, work, adopted, activation_bytes
    )
    return Choice(choice.engine, "; ".join([choice.reason, *adopted.remarks]))


def _checked_incremental(
    reference: ReferenceEngine,
    model: nn.Module,
    layer_names: Sequence[str],
    inputs: Any,
    options: Sequence[int],
    cache_bytes: int,
    stand_ins: StandIns,
) -> tuple[IncrementalEngine, Mapping[int, Tensor]]:
    """Return the incremental engine, compared with the network, and the logits it was compared on.

    Raises:
        UntraceableError: it gives another bit, or cannot be.
    """
    engine = IncrementalEngine(model, layer_names, inputs, cache_bytes, stand_ins)
    probes = _probes(len(layer_names), options)
    with torch.no_grad():
        expected = dict(reference.logits(inputs, probes))
        _check_equal(engine, inputs, probes, expected)
    return engine, expected


def _faster(
    name: str,
    incremental: IncrementalEngine,
    expected: Mapping[int, Tensor],
    model: nn.Module,
    layer_names: Sequence[str],
    inputs: Any,
    options: Sequence[int],
    cache_bytes: int,
    work: int | None,
    adopted: Adopted,
    activation_bytes: int,
) -> Choice:
    """Return the incremental engine or, where that is wanted and right, the one that computes with integers."""
    if name == "incremental":
        return Choice(incremental, "as asked")
    device = next((tensor.device for tensor in tensors_in(inputs)), torch.device("cpu"))
    worth = WORTH_COMPILING if device.type == "cpu" else WORTH_COMPILING_ON_GPU
    if name == "auto" and (work is None or work < worth):
        return Choice(incremental, "equal to the reference in every bit, and there is little to compute")
    if not all(bool(logits.isfinite().all()) for logits in expected.values()):
        what = "some of its logits are NaN or infinite, which integers cannot carry on"
        return Choice(incremental, f"equal to the reference in every bit; no integers: {what}")
    try:
        arithmetic, how = _arithmetic_on(device, cache_bytes // 2)
        integer = IntegerEngine(
            *(model, layer_names, inputs, options, cache_bytes),
            stand_ins=adopted.for_integers,
            arithmetic=arithmetic,
            replaying=_replaying_on(device, activation_bytes),
        )
        integer.try_replaying(inputs, _probes(len(layer_names), options))
        if device.type == "cpu":  # elsewhere every launch would be compiled and tuned for so few samples
            _check_runs(integer, inputs, sample("uniform", len(layer_names), options, None, seed=0))
    except DeclinedError as error:
        return Choice(incremental, f"equal to the reference in every bit; no integers: {error.format_message()}")
    if name == "auto" and device.type != "cpu" and integer.not_replayed is not None:
        what = f"launched one by one, they were never measured on a GPU: {integer.not_replayed}"
        return Choice(incremental, f"equal to the reference in every bit; no integers: {what}")
    reason = f"exact convolutions of integers at {arithmetic.most_bits} bits or fewer; {how}"
    if integer.in_float32:
        name, why = next(iter(integer.in_float32.items()))
        reason += f"; {len(integer.in_float32)} layers are in float32, such as {name}: {why}"
    if integer.not_replayed is not None:
        reason += f"; every launch by itself: {integer.not_replayed}"
    return Choice(integer, reason)


def _arithmetic_on(device: torch.device, cache_bytes: int) -> tuple[Arithmetic, str]:
    """Return what convolves integers on a device, and what there is to say about it.

    Raises:
        DeclinedError: nothing does.
    """
    if device.type == "cpu":
        passes = fastest_passes()
        between = "compiled" if passes.compiled else "plain torch, since no C++ compiler is found"
        how, kernel = f"what lies between them is {between}", kernel_here()
        if kernel is None:
            return OnednnArithmetic(cache_bytes, passes), how
        if isinstance(kernel, str):
            return OnednnArithmetic(cache_bytes, passes), f"{how}; by oneDNN, not AMX: {kernel}"
        amx = AmxArithmetic(cache_bytes, passes, kernel)
        why_not = amx.why_not([device])
        if why_not is not None:
            return OnednnArithmetic(cache_bytes, passes), f"{how}; by oneDNN: {why_not}"
        return amx, f"by AMX, float32 as three bfloat16 numbers each, with what follows in the same pass; {how}"
    if device.type != "cuda":
        raise DeclinedError(f"nothing convolves them on {device}")
    try:
        from qbw_eval.engine.triton_arithmetic import TritonArithmetic  # optional, and slow to import
    except ImportError:
        raise DeclinedError("Triton, which convolves them on a GPU, is not installed: pip install '.[gpu]'") from None
    once = "for sizes that are new here, kernels are compiled and tried out first, for a minute or two"
    return TritonArithmetic(device, cache_bytes), f"by Triton; {once}"


def _replaying_on(device: torch.device, activation_bytes: int) -> Replaying | None:
    """Return how launches are captured as CUDA graphs on a GPU where Triton convolves; None elsewhere."""
    if device.type != "cuda":
        return None

    from qbw_eval.engine.dialled_region import DialledBatchNorm, DialledRegion, DialledRounding  # they need Triton

    return Replaying(
        region=DialledRegion,
        rounding=DialledRounding,
        batch_norm=DialledBatchNorm,
        replay=partial(
            Replay,
            device=device,
            new_lane=partial(CudaLane, device),
            most_bytes=activation_bytes,
            seconds=seconds_on(device),
        ),
    )


_MOST_SUFFIXES = 16


def _probes(num_layers: int, options: Sequence[int]) -> list[BitwidthConfiguration]:
    """Return configurations that an engine's mistakes show at.

    All layers at the same bits; random ones; and for (up to 16) numbers of layers, one that differs from the first
    random one in exactly its last so many layers: what is computed before them is kept, and a layer that looks at
    something it does not tell, or that changes what it is given, meets values that another configuration left behind.
    """
    uniform = sample("uniform", num_layers, options, 8, seed=0)
    first, *others = sample("iid", num_layers, options, 4, seed=0)
    ordered = sorted(set(options))
    following = dict(zip(ordered, [*ordered[1:], ordered[0]], strict=True))
    starts = sorted({num_layers * part // _MOST_SUFFIXES for part in range(_MOST_SUFFIXES)} - {0})
    suffixes = [
        BitwidthConfiguration(
            bitwidths=(*first.bitwidths[:start], *(following[bits] for bits in first.bitwidths[start:])), index=-1
        )
        for start in starts
    ]
    return [*uniform, first, *others, *suffixes]


def _check_equal(
    engine: IncrementalEngine,
    inputs: Any,
    probes: Sequence[BitwidthConfiguration],
    expected: Mapping[int, Tensor],
) -> None:
    """Raise UntraceableError where the engine gives another bit than expected, or nothing at all."""
    try:
        found = dict(engine.logits(inputs, probes))
    except Exception as error:  # where the graph took another way than the network does, anything may fail
        if is_out_of_memory(error):
            raise
        raise UntraceableError(f"what its graph shows cannot be run ({first_line(error)})") from None
    for position, logits in found.items():
        if not torch.equal(logits.nan_to_num(nan=torch.pi), expected[position].nan_to_num(nan=torch.pi)):
            raise UntraceableError("its forward pass does more than its graph shows")


def _check_runs(engine: IntegerEngine, inputs: Any, probes: Sequence[BitwidthConfiguration]) -> None:
    """Raise DeclinedError where integers fail on what the network itself computes: one image without a batch, say."""
    try:
        with torch.no_grad():
            for _ in engine.logits(inputs, probes):
                pass
    except Exception as error:  # from a layer that is given what nobody foresaw
        if is_out_of_memory(error):
            raise
        raise DeclinedError(f"a layer cannot be run in them ({first_line(error)})") from None
