"""A checkpoint file -> what it holds: what kind of file it is is seen in its first bytes, never in its name."""

from pathlib import Path

from qbw_eval.checkpoints.safe_load import LoadedFile, load_torch_file, open_without_waiting
from qbw_eval.checkpoints.safetensors_file import MAX_HEADER, load_safetensors


def load_checkpoint_file(path: Path, *, trust: bool = False, max_bytes: int | None = None) -> LoadedFile:
    """Read a file of torch.save, of any version since 0.4, or a safetensors file.

    Args:
        path: the file.
        trust: where it cannot be read without, let pickle run what the file says.
        max_bytes: what the file may hold, and what its tensors may take; half of the machine's memory if not given.

    Raises:
        CheckpointError: no such file, another kind of file, damaged, too large, or it wants more than weights.
    """
    if _is_safetensors(path):
        return load_safetensors(path, max_bytes=max_bytes)
    return load_torch_file(path, trust=trust, max_bytes=max_bytes)


def _is_safetensors(path: Path) -> bool:
    """Return whether a file begins with the length of a header, and a header; False where it cannot be read."""
    try:
        with open(path, "rb", buffering=0, opener=open_without_waiting) as file:  # Path.open has no opener
            start = file.read(9) or b""
    except OSError:
        return False  # who reads it will say why
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER
