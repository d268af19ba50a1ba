"""The reference configuration's results, batch by batch: kept within a limit of memory, else computed again."""

from contextlib import closing

import torch
from torch import Tensor

from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.data.batches import Batch
from qbw_eval.engine.choose import Engine
from qbw_eval.engine.tally import Compared, predictions_of


class Comparison:
    """What every batch is compared with; the same values whether they were kept or not.

    Args:
        engine: what computes logits.
        configuration: the reference.
        limit: bytes that may be kept on the engine's device; what does not fit is computed again each time.
        kl: keep logits, from which divergences are computed; else the predicted classes do.

    Attributes:
        limit: as given.
        kept_bytes: how much is kept so far.
    """

    def __init__(self, engine: Engine, configuration: BitwidthConfiguration, limit: int, *, kl: bool) -> None:
        self._engine = engine
        self._configurations = [configuration]
        self.limit, self._kl = limit, kl
        self._kept: dict[int, Tensor] = {}
        self.kept_bytes = 0

    def of(self, number: int, batch: Batch) -> Compared:
        """Return what the reference makes of batch `number`, which is `batch` every time."""
        kept = self._kept.get(number)
        if kept is None:
            kept = self._computed(batch)
            if self.kept_bytes + kept.nbytes <= self.limit:
                self._kept[number] = kept
                self.kept_bytes += kept.nbytes
        return Compared.of(kept) if self._kl else Compared(kept)

    def _computed(self, batch: Batch) -> Tensor:
        with torch.no_grad(), closing(self._engine.logits(batch.inputs, self._configurations)) as results:
            _, logits = next(results)
            return logits.clone() if self._kl else predictions_of(logits)  # the engine may use the memory again
