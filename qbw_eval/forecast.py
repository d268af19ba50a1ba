"""What a run would take, before it runs: time from a short probe, disk from an encoded part, memory as it is bounded.

The probe runs the very code that an evaluation runs, on a chunk as it would be evaluated: what configurations share
makes a whole chunk cheaper than as many single ones. It begins with one sample and goes on to larger batches
while there is time, so that it needs seconds only, however large the network. What a batch takes is a constant and so
much a sample; the two are told apart by the last two batches.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import torch

from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.data.batches import batches_on
from qbw_eval.engine.tally import Measurement
from qbw_eval.evaluate import (
    Evaluation,
    batch_size_for,
    comparison_of,
    data_bytes,
    measure,
    provenance_of,
    too_little_memory,
)
from qbw_eval.memory import is_out_of_memory
from qbw_eval.nested import to_device
from qbw_eval.networks.factory import running
from qbw_eval.rows import record_table
from schemas import records
from schemas.parts import encode_part

_PROBE_S = 2.0
"""About as long as one likes to wait for a forecast; no batch begins that would, if it took as long as the one before,
end later."""

_GROWTH = 4
"""How many times as large the next batch of a probe is at least."""

Configurations = Sequence[BitwidthConfiguration]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a chunk took in the end, everything that is done only once being done.

    Attributes:
        samples, configurations: how many met.
        seconds: that took, measurements included.
        constant_s: how many of them a batch takes whatever its size; 0 <= constant_s <= seconds.
        starting_s: what comes once, above all the weights quantized for the first time.
        reference_s: the reference configuration on those samples, alone; it runs once too.
        reference_bytes: what is kept of its results.
        batch_size: what an evaluation would take.
        measurements: what was measured, of every configuration.
    """

    samples: int
    configurations: int
    seconds: float
    constant_s: float = 0.0
    starting_s: float = 0.0
    reference_s: float
    reference_bytes: int
    batch_size: int
    measurements: tuple[Measurement, ...]

    def seconds_for(self, samples: int, configurations: int) -> float:
        """Return what so many configurations on so many samples would take at this speed."""
        passes = configurations / self.configurations + self.reference_s / self.seconds
        return self.starting_s + passes * sum(
            count * self.seconds_of(size)
            for size, count in ((self.batch_size, samples // self.batch_size), (samples % self.batch_size, 1))
            if size and count
        )

    def seconds_of(self, samples: int) -> float:
        """Return what one batch of so many samples would take."""
        return self.constant_s + (self.seconds - self.constant_s) * samples / self.samples

    def after(self, smaller: "Probe") -> "Probe":
        """Return this with its constant share, from what a batch of fewer samples took."""
        a_sample = (self.seconds - smaller.seconds) / (self.samples - smaller.samples)
        return replace(self, constant_s=min(max(self.seconds - a_sample * self.samples, 0.0), self.seconds))


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that an evaluation would take at most, and how much it is allowed; activations are None if not known.

    Attributes:
        data_bytes: samples and labels.
        reference_bytes: what is kept of the reference configuration's results.
        weight_bytes: quantized weights that are kept, every layer at every option, in float32.
        activation_bytes: values that live at the same time.
        budget_bytes: the last three together; and the first, where they are on a GPU.
        batch_size: samples a forward pass.
    """

    data_bytes: int
    reference_bytes: int
    weight_bytes: int
    activation_bytes: int | None
    budget_bytes: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What the missing configurations of one checkpoint would take.

    Attributes:
        seconds: of evaluating, without reading the checkpoint and the data.
        disk_bytes: of the parts, at most: masks are counted as if they could not be compressed.
        parts: how many there would be.
        memory: bounds.
        probe: what the seconds are based on.
    """

    seconds: float
    disk_bytes: int
    parts: int
    memory: Memory
    probe: Probe


def forecast_of(evaluation: Evaluation, chunks: Sequence[Configurations], probe: Probe | None = None) -> Forecast:
    """Return what evaluating some chunks would take.

    Args:
        evaluation: what would run.
        chunks: what is missing, at least one configuration.
        probe: of the same plan on another checkpoint; None to make one, which takes about two seconds.

    Raises:
        QBWError: there is not memory enough for one sample.
    """
    largest = max(chunks, key=len)
    probe = probe or _probe(evaluation, largest)
    return Forecast(
        seconds=probe.seconds_for(len(evaluation.split), sum(map(len, chunks))),
        disk_bytes=_disk_bytes(evaluation, chunks, probe),
        parts=len(chunks),
        memory=_memory(evaluation, largest, probe),
        probe=probe,
    )


def _probe(evaluation: Evaluation, chunk: Configurations) -> Probe:
    """Run a chunk on more and more samples, up to a batch, while there is time."""
    batch_size = batch_size_for(evaluation, chunk, lambda _sentence: None)
    begun = time.perf_counter()
    first = _run(evaluation, chunk, 1, batch_size)
    found = _run(evaluation, chunk, 1, batch_size)
    starting_s = max(0.0, first.seconds + first.reference_s - found.seconds - found.reference_s)
    while found.samples < batch_size:
        left = (_PROBE_S - (time.perf_counter() - begun)) / found.seconds  # in batches like the last
        if left < 1:
            break
        # As many samples as there is time for; and at least so many that what a batch takes by itself shows. Of a small
        # network they take hardly longer.
        count = min(int(max(left, _GROWTH) * found.samples), batch_size)
        try:
            found = _run(evaluation, chunk, count, batch_size).after(found)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
    return replace(found, starting_s=starting_s)


def _run(evaluation: Evaluation, chunk: Configurations, samples: int, batch_size: int) -> Probe:
    """Measure a chunk on the first samples, in one batch."""
    engine, settings = evaluation.engine, evaluation.settings
    batches = batches_on(evaluation.split.limited(samples), samples, settings.device)
    comparison = comparison_of(evaluation)
    checkpoint = evaluation.checkpoint
    try:
        with running(checkpoint.experiment.model, f"{checkpoint.path}: its network fails"):
            begun = time.perf_counter()
            if comparison is not None:
                comparison.of(0, next(iter(batches))).classes.cpu()  # which waits for a GPU
            between = time.perf_counter()
            measurements = measure(engine, batches, chunk, comparison, measures=settings.measures)
    except (RuntimeError, MemoryError) as error:
        if samples > 1 or not is_out_of_memory(error):
            raise
        raise too_little_memory(checkpoint, settings.device) from None
    return Probe(
        samples=samples,
        configurations=len(chunk),
        seconds=time.perf_counter() - between,
        reference_s=between - begun,
        reference_bytes=comparison.kept_bytes if comparison else 0,
        batch_size=batch_size,
        measurements=tuple(measurements),
    )


def _disk_bytes(evaluation: Evaluation, chunks: Sequence[Configurations], probe: Probe) -> int:
    """Return the bytes of the parts: what the largest takes, encoded, and what a part takes beside its rows."""
    rows = max(chunks, key=len)
    measurements = [_at_full_size(one, len(evaluation.split), seed) for seed, one in enumerate(probe.measurements)]
    table = record_table(
        evaluation.plan,
        provenance_of(evaluation),
        rows,
        (measurements * len(rows))[: len(rows)],  # the probe may have been another, smaller chunk's
        duration_s=probe.seconds,
        evaluated_at=datetime.now(UTC),
    )
    whole, single = (len(encode_part(part, records.KIND, "forecast")) for part in (table, table.slice(0, 1)))
    a_row = (whole - single) / (len(rows) - 1) if len(rows) > 1 else 0.0
    return round(sum(single + (len(chunk) - 1) * a_row for chunk in chunks))


def _at_full_size(measurement: Measurement, samples: int, seed: int) -> Measurement:
    """Return a made-up measurement of so many samples, whose mask cannot be compressed."""
    bits = np.random.default_rng(seed).integers(0, 2, samples, dtype=np.uint8)
    return replace(
        measurement,
        correct=int(bits.sum()),
        num_samples=samples,
        correct_mask=None if measurement.correct_mask is None else np.packbits(bits, bitorder="little").tobytes(),
    )


def _memory(evaluation: Evaluation, chunk: Configurations, probe: Probe) -> Memory:
    split, budget, plan = evaluation.split, evaluation.budget, evaluation.plan
    comparison = comparison_of(evaluation)
    reference_bytes = probe.reference_bytes * len(split) // probe.samples
    probed = split.limited(2)
    with torch.no_grad():
        peak = evaluation.engine.peak_bytes(to_device(probed.inputs, evaluation.settings.device), chunk)
    return Memory(
        data_bytes=data_bytes(evaluation),
        reference_bytes=0 if comparison is None else min(reference_bytes, comparison.limit),
        weight_bytes=min(budget.caches, 4 * len(plan.options) * sum(layer.weights for layer in plan.table.layers)),
        activation_bytes=None if peak is None else peak * probe.batch_size // len(probed),
        budget_bytes=budget.total,
        batch_size=probe.batch_size,
    )
