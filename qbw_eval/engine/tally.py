"""Logits -> counts: sums first, ratio last, so that batch size, order and sharding cannot change the result.

Everything stays on the device until `finish`: nothing waits for the device once a batch. What several measurements need
is computed once, the logarithm of the softmax above all; it is in float64, so that neither the mean over a million
samples nor a divergence near zero depends on rounding.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

_TOP = 5
_CLASSES_WITHOUT_TOP5 = 10
"""Of so few classes, five are half: being among them says nothing."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured beside accuracy and loss.

    Attributes:
        agreement, kl: comparisons with the reference configuration.
        mask: which samples were right.
        top5: whose class was among the 5 likeliest, where there are more than 10 classes.
        per_class: samples and hits, class by class.
    """

    agreement: bool = True
    kl: bool = True
    mask: bool = True
    top5: bool = True
    per_class: bool = False

    @property
    def comparisons(self) -> bool:
        """Whether the reference configuration is needed."""
        return self.agreement or self.kl


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one configuration scored on one data split; None where something was not measured.

    Attributes:
        correct: samples whose class was predicted right; 0 <= correct <= num_samples.
        num_samples: samples seen.
        loss: mean cross-entropy in nats; NaN where a logit was.
        correct_mask: one bit a sample in data order, least significant bit first, zero-padded to a whole byte.
        agreement: share of predictions equal to the reference's.
        kl_divergence: mean of `kl_divergences` from the reference, in nats; 0 for the reference itself.
        top5_correct: samples for which `among_top5` holds; correct <= top5_correct <= num_samples.
        correct_per_class, samples_per_class: summands of `correct` and `num_samples`, class by class from 0.
    """

    correct: int
    num_samples: int
    loss: float
    correct_mask: bytes | None = None
    agreement: float | None = None
    kl_divergence: float | None = None
    top5_correct: int | None = None
    correct_per_class: tuple[int, ...] | None = None
    samples_per_class: tuple[int, ...] | None = None

    @property
    def accuracy(self) -> float:
        """Correct / num_samples."""
        return self.correct / self.num_samples


def has_top5(classes: int) -> bool:
    """Return whether so many classes are enough for the 5 likeliest of them to say something."""
    return classes > _CLASSES_WITHOUT_TOP5


def predictions_of(logits: Tensor) -> Tensor:
    """Return (N,) predicted classes of (N, classes) logits; -1, which equals no class, where a logit is NaN.

    Of equal logits the first counts.
    """
    largest, classes = logits.max(dim=1)
    return torch.where(largest.isnan(), -1, classes)  # a NaN is larger than everything to torch


def log_softmax(logits: Tensor) -> Tensor:
    """Return (N, classes) logarithms of the softmax, float64; a sample with a NaN or a positive infinity is all NaN."""
    return logits.log_softmax(dim=1, dtype=torch.float64)


def among_top5(logits: Tensor, labels: Tensor, predictions: Tensor) -> Tensor:
    """Return (N,) whether fewer than 5 classes come before the label's.

    Those with a larger logit do; and of those with an equal one the lower ones, so that the first of them counts, as in
    `predictions_of`, of which `predictions` come: never where a logit is NaN.
    """
    own = logits.gather(1, labels[:, None])
    lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    before = (logits > own) | ((logits == own) & lower)
    return (before.sum(dim=1) < _TOP) & (predictions >= 0)


@dataclass(frozen=True)
class Compared:
    """What the reference configuration makes of one batch, ready to be compared with many others.

    Attributes:
        classes: (N,) predicted.
        log_softmax: (N, classes); None where there will be no divergence.
        softmax: its exponential.
        impossible: where that is 0.
    """

    classes: Tensor
    log_softmax: Tensor | None = None
    softmax: Tensor | None = None
    impossible: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, *, kl: bool = True) -> "Compared":
        """Return what (N, classes) logits of the reference configuration are compared by."""
        if not kl:
            return cls(predictions_of(logits))
        logarithms = log_softmax(logits)
        softmax = logarithms.exp()
        return cls(predictions_of(logits), logarithms, softmax, softmax == 0)


def kl_divergence(reference: Compared, logarithms: Tensor) -> Tensor:
    """Return the sum over samples of KL(reference || configuration) = sum_c p_c (log p_c - log q_c), in nats.

    A class that the reference holds impossible (p_c = 0, a logit of minus infinity) adds nothing, whatever the
    configuration holds of it. One that the configuration alone holds impossible makes the sum infinite. A sample with a
    NaN or a positive infinity among its logits, on either side, has no softmax and makes it NaN.

    Args:
        reference: what to compare with.
        logarithms: (N, classes) of the configuration, from `log_softmax`.
    """
    assert reference.log_softmax is not None
    assert reference.softmax is not None
    assert reference.impossible is not None
    terms = (reference.log_softmax - logarithms).mul_(reference.softmax)
    return terms.masked_fill_(reference.impossible, 0.0).sum()


@dataclass
class Tally:
    """The running sums of one configuration; batches are added in data order.

    Attributes:
        measures: what is measured.
    """

    measures: Measures = field(default_factory=Measures)
    _num_samples: int = 0
    _hits: list[Tensor] = field(default_factory=list)
    _sums: dict[str, Tensor] = field(default_factory=dict)

    def update(self, logits: Tensor, labels: Tensor, reference: Compared | None = None) -> None:
        """Add one batch.

        Args:
            logits: (N, classes).
            labels: (N,) integer classes.
            reference: what the reference configuration makes of the batch; there are no comparisons without.
        """
        predictions, logarithms = predictions_of(logits), log_softmax(logits)
        hits = predictions == labels
        self._num_samples += len(labels)
        self._add("correct", hits.sum())
        self._add("loss", F.nll_loss(logarithms, labels, reduction="sum"))
        if self.measures.mask:
            self._hits.append(hits)
        if self.measures.top5 and has_top5(logits.shape[1]):
            self._add("top5_correct", among_top5(logits, labels, predictions).sum())
        if self.measures.per_class:
            nothing = torch.zeros(logits.shape[1], dtype=torch.int64, device=logits.device)
            self._add("samples_per_class", nothing.index_add(0, labels, torch.ones_like(labels)))
            self._add("correct_per_class", nothing.index_add(0, labels, hits.long()))
        if reference is not None and self.measures.agreement:
            self._add("agreement", (predictions == reference.classes).sum())
        if reference is not None and self.measures.kl:
            self._add("kl_divergence", kl_divergence(reference, logarithms))

    def _add(self, name: str, term: Tensor) -> None:
        """Add to a running sum on the device; one number a batch, kept until the end, would be many."""
        self._sums[name] = self._sums[name].add_(term) if name in self._sums else term

    def finish(self) -> Measurement:
        """Fetch the sums from the device and divide, once."""
        sums = {name: total.cpu() for name, total in self._sums.items()}
        divergence = self._mean(sums.get("kl_divergence"))
        return Measurement(
            correct=int(sums["correct"]),
            num_samples=self._num_samples,
            loss=float(sums["loss"]) / self._num_samples,
            correct_mask=pack_bits(torch.cat(self._hits).cpu()) if self.measures.mask else None,
            agreement=self._mean(sums.get("agreement")),
            # Never negative, but for rounding; a NaN stays one.
            kl_divergence=0.0 if divergence is not None and divergence < 0 else divergence,
            top5_correct=int(sums["top5_correct"]) if "top5_correct" in sums else None,
            correct_per_class=_tuple(sums.get("correct_per_class")),
            samples_per_class=_tuple(sums.get("samples_per_class")),
        )

    def _mean(self, total: Tensor | None) -> float | None:
        return None if total is None else total.item() / self._num_samples


def _tuple(counts: Tensor | None) -> tuple[int, ...] | None:
    return None if counts is None else tuple(counts.tolist())


def pack_bits(hits: Tensor) -> bytes:
    r"""Return (N,) booleans as ceil(N / 8) bytes, sample i in bit i % 8 of byte i // 8.

    >>> pack_bits(torch.tensor([True, False, True]))
    b'\x05'
    """
    padded = F.pad(hits.to(torch.uint8), (0, -len(hits) % 8)).view(-1, 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    return bytes((padded * weights).sum(dim=1, dtype=torch.uint8).tolist())
