"""How much memory a measurement takes beyond data, weights and caches, counted in one batch's activations."""

import ctypes
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.figures import Figure
from benchmarks.prepared import Prepared
from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.engine.incremental import IncrementalEngine
from qbw_eval.quantization.bitwidths import restored, set_bitwidths

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory_figures(prepared: Prepared, engines: Sequence[str], rounds: int, at_most: float | None) -> list[Figure]:
    """The peak that the operating system (or CUDA) saw during a measurement, and what the engine says itself.

    Args:
        prepared: what is measured.
        engines: with which.
        rounds: how often.
        at_most: the bound for the engine that auto takes.
    """
    workload = prepared.workload
    configurations = workload.random_configurations()
    activations = activation_bytes(prepared, configurations[0])
    label = f"{workload.label}, {len(configurations)} random configurations"
    figures = [
        Figure(figure=f"activations of one batch, {workload.label}", values=[activations / 2**20], unit="MiB"),
    ]
    for name in dict.fromkeys(engines):
        action = prepared.measuring(name, configurations)
        # Every layer at every option: data, weights and caches are resident from here on.
        prepared.measuring(name, workload.uniform_configurations)()
        peaks = [peak_bytes(action, prepared.device) for _ in range(rounds)]
        bound = at_most if name == prepared.auto else None
        seen = "peak resident set" if prepared.device.type == "cpu" else "peak of CUDA's allocator"
        if None not in peaks:
            figures.append(
                Figure(
                    figure=f"memory beyond data, weights and caches, {seen}, {name}, {label}",
                    values=[peak / activations for peak in peaks if peak is not None],
                    unit="batches' activations",
                    at_most=bound,
                )
            )
        with torch.inference_mode():
            own = prepared.engines[name].peak_bytes(prepared.batches[0].inputs, configurations)
        if own is not None:
            figures.append(
                Figure(
                    figure=f"memory beyond data, weights and caches, the engine's own count, {name}, {label}",
                    values=[own / activations],
                    unit="batches' activations",
                    at_most=bound,
                )
            )
    return figures


def activation_bytes(prepared: Prepared, configuration: BitwidthConfiguration) -> int:
    """Return the bytes of all operations' outputs of one forward pass in float32, each memory counted once.

    What a quantized layer makes of its input before it convolves is no operation's output, and not counted.
    """
    engine = prepared.engines["incremental"]
    assert isinstance(engine, IncrementalEngine)
    operations = engine.program.operations
    bits = configuration.bitwidths
    inputs = prepared.batches[0].inputs
    with restored(prepared.model), torch.inference_mode():
        prepared.model.eval()
        set_bitwidths(prepared.model, dict(zip(prepared.workload.table.names, bits, strict=True)))
        values: list[object] = [(inputs,)]  # all of them, so that no memory is used twice
        for operation in operations:
            values.append(operation.compute([values[position] for position in operation.inputs], bits))
    given = {tensor.untyped_storage().data_ptr() for tensor in (inputs, *prepared.model.parameters())}
    return sum(size for pointer, size in _storages(values).items() if pointer not in given)


def _storages(values: Sequence[object]) -> dict[int, int]:
    tensors = [value for value in values if isinstance(value, Tensor)]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def peak_bytes(action: Callable[[], object], device: torch.device) -> int | None:
    """Return how far memory rises above where it stands before an action; None where that cannot be seen."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    # What was freed before and is still kept for later would hide what the action takes: back to the system first.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:  # not glibc
        print("bench: no peak resident set here: the C library has no malloc_trim", file=sys.stderr)
        return None
    trim(0)
    try:
        _CLEAR.write_text("5")  # resets VmHWM to VmRSS, proc_pid_clear_refs(5)
        before = _status_bytes("VmHWM")
        action()
        return _status_bytes("VmHWM") - before
    except OSError as error:
        print(f"bench: no peak resident set here: {error}", file=sys.stderr)
        return None


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), flags=re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
