"""Measurements -> a table of records, column by column in the types of the schema."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import pyarrow as pa

from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.cost import costs_of
from qbw_eval.plan import Plan
from schemas.records import RECORD_SCHEMA

if TYPE_CHECKING:  # rows need no torch, and who only stores them should not wait for it
    from qbw_eval.engine.tally import Measurement


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a row says about where it came from; names as in `schemas.records`."""

    experiment: str
    checkpoint: str
    checkpoint_id: str
    epoch: int
    dataset: str
    split: str
    engine: str
    device: str
    qbw_version: str
    torch_version: str
    extras_json: str = "{}"


def record_table(
    plan: Plan,
    provenance: Provenance,
    configurations: Sequence[BitwidthConfiguration],
    measurements: "Sequence[Measurement]",
    *,
    duration_s: float,
    evaluated_at: datetime,
) -> pa.Table:
    """Return one row per configuration, in the schema of `schemas.records`.

    Args:
        plan: what the configurations belong to.
        provenance: what all rows share.
        configurations: N configurations.
        measurements: their N results, in the same order.
        duration_s: seconds a configuration took, averaged over those that ran together.
        evaluated_at: an aware time.
    """
    rows = [
        _row(plan, provenance, configuration, measurement) | {"duration_s": duration_s, "evaluated_at": evaluated_at}
        for configuration, measurement in zip(configurations, measurements, strict=True)
    ]
    # Explicitly per column: from_pylist would drop a misspelt key in silence, and round 1.5 to 1.
    assert set(rows[0]) == set(RECORD_SCHEMA.names)
    return pa.table(
        [pa.array([row[field.name] for row in rows], field.type) for field in RECORD_SCHEMA], schema=RECORD_SCHEMA
    )


def _row(
    plan: Plan, provenance: Provenance, configuration: BitwidthConfiguration, measurement: "Measurement"
) -> dict[str, object]:
    costs = costs_of(configuration.bitwidths, plan.table, plan.options[-1])
    return {
        **vars(provenance),
        **vars(costs),
        "record_id": plan.record_id(provenance.checkpoint_id, configuration),
        "data_id": plan.data_id,
        "num_samples": measurement.num_samples,
        "model_id": plan.table.model_id,
        "network_id": plan.network_id,
        "config_id": configuration.config_id,
        "plan_id": plan.plan_id,
        "sampler": plan.versioned_sampler,
        "seed": plan.seed,
        "config_index": configuration.index,
        "bitwidths": list(configuration.bitwidths),
        "bitwidth_options": list(plan.options),
        "unquantized_weight_bytes": plan.unquantized_weight_bytes,
        "target_cost": configuration.target_cost,
        "target": configuration.target,
        "accuracy": measurement.accuracy,
        "loss": measurement.loss,
        "correct": measurement.correct,
        "correct_mask": measurement.correct_mask,
        "agreement": measurement.agreement,
        "kl_divergence": None,
        "top5_correct": None,
        "correct_per_class": None,
        "samples_per_class": None,
    }
