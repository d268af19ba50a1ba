"""Choosing the device, and the arithmetic it is allowed."""

import torch

from schemas.errors import QBWError, UsageError


def choose_device(name: str) -> torch.device:
    """Return the device called auto, cpu, cuda or cuda:INDEX.

    Raises:
        UsageError: the name is none of these.
        QBWError: there is no such GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (":" in name and not index.isdecimal()):
        raise UsageError(f"--device: expected auto, cpu, cuda or cuda:INDEX, found {name!r}")
    count = torch.cuda.device_count()
    if count <= int(index or 0):
        found = f"this machine has {count}" if count else "torch finds no CUDA GPU on this machine"
        raise QBWError(f"--device: {name!r} asked for, but {found}; use --device auto or cpu")
    return torch.device(name)


def allow_tf32(allowed: bool) -> None:
    """Let CUDA round inputs of convolutions and matrix products to TensorFloat-32's 10 bits, or forbid it.

    torch allows it for convolutions by default, which changes classes; we do not, unless asked.
    """
    precision = "tf32" if allowed else "ieee"
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]  # torch's hints lag behind
    torch.backends.cuda.matmul.fp32_precision = precision
