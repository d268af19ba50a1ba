"""Logits -> counts: sums first, ratio last, so that batch size, order and sharding cannot change the result.

Everything stays on the device until `finish`: nothing waits for the device once a batch.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one configuration scored on one data split.

    Attributes:
        correct: samples whose class was predicted right; 0 <= correct <= num_samples.
        num_samples: samples seen.
        loss: mean cross-entropy in nats; NaN where a logit was.
        correct_mask: one bit a sample in data order, least significant bit first, zero-padded to a whole byte.
        agreement: share of predictions equal to the reference's; None where there was no reference.
    """

    correct: int
    num_samples: int
    loss: float
    correct_mask: bytes
    agreement: float | None

    @property
    def accuracy(self) -> float:
        """Correct / num_samples."""
        return self.correct / self.num_samples


def predictions_of(logits: Tensor) -> Tensor:
    """Return (N,) predicted classes of (N, classes) logits; -1, which equals no class, where a logit is NaN."""
    return torch.where(logits.isnan().any(dim=1), -1, logits.argmax(dim=1))


@dataclass
class Tally:
    """The running sums of one configuration; batches are added in data order."""

    _hits: list[Tensor] = field(default_factory=list)
    _losses: list[Tensor] = field(default_factory=list)
    _agreements: list[Tensor] = field(default_factory=list)

    def update(self, logits: Tensor, labels: Tensor, reference: Tensor | None = None) -> None:
        """Add one batch.

        Args:
            logits: (N, classes).
            labels: (N,) integer classes.
            reference: (N,) classes that the reference configuration predicted.
        """
        predictions = predictions_of(logits)
        self._hits.append(predictions == labels)
        # Summed in float64: the mean over a million samples must not depend on how they were batched.
        self._losses.append(F.cross_entropy(logits.double(), labels, reduction="sum"))
        if reference is not None:
            self._agreements.append((predictions == reference).sum())

    def finish(self) -> Measurement:
        """Fetch the sums from the device and divide, once."""
        hits = torch.cat(self._hits).cpu()
        num_samples = len(hits)
        agreement = int(torch.stack(self._agreements).sum()) / num_samples if self._agreements else None
        return Measurement(
            correct=int(hits.sum()),
            num_samples=num_samples,
            loss=float(torch.stack(self._losses).sum()) / num_samples,
            correct_mask=pack_bits(hits),
            agreement=agreement,
        )


def pack_bits(hits: Tensor) -> bytes:
    r"""Return (N,) booleans as ceil(N / 8) bytes, sample i in bit i % 8 of byte i // 8.

    >>> pack_bits(torch.tensor([True, False, True]))
    b'\x05'
    """
    padded = F.pad(hits.to(torch.uint8), (0, -len(hits) % 8)).view(-1, 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    return bytes((padded * weights).sum(dim=1, dtype=torch.uint8).tolist())
