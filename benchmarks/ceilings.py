"""What a card can do at best, measured: matrix products in int8 and bfloat16, and copying memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.figures import Figure
from benchmarks.timing import typical_seconds

SIZES = (2048, 4096, 8192, 16384)
COPIED_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What nothing is faster than.

    Attributes:
        int8: operations a second, two a multiply-accumulate, of `torch._int_mm`.
        bf16: the same of `torch.mm` in bfloat16.
        copied: bytes a second, read and written, of a copy.
    """

    int8: float
    bf16: float
    copied: float

    def figures(self) -> list[Figure]:
        """Return them as figures."""
        best = "the best of several large squares"
        return [
            Figure(figure=f"int8 matrix ceiling, {best}", values=[self.int8 / 1e12], unit="TOP/s"),
            Figure(figure=f"bf16 matrix ceiling, {best}", values=[self.bf16 / 1e12], unit="TFLOP/s"),
            Figure(figure="memory ceiling, a large copy", values=[self.copied / 1e9], unit="GB/s"),
        ]

    def least_seconds(self, operations: int, moved: int) -> float:
        """Return how long so many int8 operations take at least that move so many bytes."""
        return max(operations / self.int8, moved / self.copied)


def measured_ceilings(device: torch.device, sizes: Sequence[int] = SIZES, copied_bytes: int = COPIED_BYTES) -> Ceilings:
    """Measure them.

    Args:
        device: which card.
        sizes: rows and columns of the products tried; multiples of 8 above 16, as `torch._int_mm` asks for.
        copied_bytes: in the copy; more than any cache holds.
    """
    return Ceilings(
        int8=_best_product(torch._int_mm, torch.int8, device, sizes),
        bf16=_best_product(torch.mm, torch.bfloat16, device, sizes),
        copied=_copied(copied_bytes, device),
    )


def _copied(size: int, device: torch.device) -> float:
    """Return bytes a second of a copy of so many bytes."""
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / typical_seconds(lambda: target.copy_(source), device)


def _best_product(
    product: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, device: torch.device, sizes: Sequence[int]
) -> float:
    """Return operations a second of the fastest of the sizes."""
    return max(
        2 * size**3 / typical_seconds(lambda a=a, b=b: product(a, b), device)  # type: ignore[misc]  # bound now
        for size in sizes
        for a, b in [_factors(size, dtype, device)]
    )


def _factors(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return two squares of random whole numbers, the second by columns, which is what int8 tensor cores read fastest.

    Not zeros: a card that computes with zeros draws less power and stays faster than it ever is.
    """
    a, b = (torch.randint(-127, 128, (size, size), device=device, dtype=torch.int8).to(dtype) for _ in range(2))
    return a, b.t()
