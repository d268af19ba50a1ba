"""Reads checkpoints, writes rows: the only package that imports torch.

`get_average_bitwidth` and `validate_random_bitwidths` are the seed document's functions, for anybody's training loop.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qbw_eval.quantization.bitwidths import get_average_bitwidth
    from qbw_eval.validation import validate_random_bitwidths

__all__ = ["get_average_bitwidth", "validate_random_bitwidths"]


def __getattr__(name: str) -> object:
    # Imported when asked for: torch takes longer than `qbw-eval --help` may.
    if name == "get_average_bitwidth":
        from qbw_eval.quantization.bitwidths import get_average_bitwidth

        return get_average_bitwidth
    if name == "validate_random_bitwidths":
        from qbw_eval.validation import validate_random_bitwidths

        return validate_random_bitwidths
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
