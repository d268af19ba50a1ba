"""Which machine the figures are from, in one line."""

import os
import platform
import re
from pathlib import Path

import torch

from qbw_eval.engine.compiled_passes import fastest_passes
from qbw_eval.engine.packing import why_not_here


def machine_line(device: torch.device) -> str:
    """Return model, cores, int8 instructions, torch, threads, and whether passes are compiled."""
    facts = [_cpu_model(), f"{os.cpu_count()} CPUs", f"int8: {_int8()}"]
    if device.type == "cuda":
        facts.append(f"GPU {torch.cuda.get_device_name(device)}")
    facts.append(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if device.type == "cpu":
        facts.append("passes compiled" if fastest_passes().compiled else "passes not compiled")
    return ", ".join(facts)


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        found = None  # not Linux
    return found[1].strip() if found else platform.processor() or platform.machine()


def _int8() -> str:
    instructions = {"VNNI": torch.cpu._is_vnni_supported(), "AMX": torch.cpu._is_amx_tile_supported()}
    words = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in instructions.items())
    reason = why_not_here()
    return words if reason is None else f"{words} ({reason})"
