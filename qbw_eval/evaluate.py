"""The story of an evaluation: checkpoint -> network -> plan -> chunks of rows. Touches no output file."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version

import pyarrow as pa
import torch
from torch import Tensor

from qbw_eval.checkpoints.native import Checkpoint
from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.data.batches import Batch, batches_on
from qbw_eval.data.fit import check_data_fit
from qbw_eval.data.sources import Split
from qbw_eval.engine.choose import choose_engine
from qbw_eval.engine.reference import ReferenceEngine
from qbw_eval.engine.tally import Measurement, Tally, predictions_of
from qbw_eval.experiment import Experiment
from qbw_eval.networks.build import load_network, quantizers_of
from qbw_eval.plan import Plan
from qbw_eval.quantization.bitwidths import trace_layers_on_meta
from qbw_eval.quantization.numerics import FULL_PRECISION
from qbw_eval.rows import Provenance, record_table
from schemas.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What a run is asked for beyond the experiment's own settings.

    Attributes:
        sampler, num_configs, seed: which configurations; see `configurations.sample`.
        bitwidths: the options to draw from; None for those the network was trained with.
        batch_size: samples a forward pass.
        device: where to run.
        engine: one of `engine.choose.ENGINES`.
        tf32: allow TensorFloat-32 on CUDA, which changes results and so the rows' identity.
    """

    sampler: str
    num_configs: int
    seed: int
    bitwidths: tuple[int, ...] | None
    batch_size: int
    device: torch.device
    engine: str
    tf32: bool = False


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A checkpoint ready to be evaluated: what will run is decided, nothing has run yet."""

    checkpoint: Checkpoint
    split: Split
    plan: Plan
    engine: ReferenceEngine
    settings: EvaluationSettings


def prepare(checkpoint: Checkpoint, split: Split, settings: EvaluationSettings) -> Evaluation:
    """Build the checkpoint's network on the device and plan its configurations.

    Raises:
        CheckpointError: the weights do not fit the network.
        DataError: the data do not fit the network.
        UsageError: the bitwidths asked for are not among the options.
    """
    model = load_network(checkpoint.experiment, checkpoint.state, str(checkpoint.path))
    check_data_fit(checkpoint.experiment, split, f"the network of {checkpoint.path}")
    table = trace_layers_on_meta(model, split.input_shape)
    options = options_of(checkpoint, settings.bitwidths)
    engine = choose_engine(settings.engine, model.to(settings.device), table.names)
    plan = Plan(
        sampler=settings.sampler,
        seed=settings.seed,
        options=options,
        network=_network_facts(checkpoint.experiment),
        table=table,
        data_id=split.data_id(),
        num_samples=len(split),
        numerics=engine.numerics + ("+tf32" if settings.tf32 else ""),
        count=settings.num_configs,
    )
    return Evaluation(checkpoint=checkpoint, split=split, plan=plan, engine=engine, settings=settings)


def _network_facts(experiment: Experiment) -> dict[str, object]:
    """Return what decides how the network computes, as plain JSON."""
    quantizers = quantizers_of(experiment)
    return {
        # By hand, so that a setting that is added later, or a default that is spelled out, makes no other network.
        "name": experiment.model.name,
        "width": experiment.model.resolved_width,
        "in_channels": experiment.model.in_channels,
        "num_classes": experiment.model.num_classes,
        "batch_norm": experiment.model.batch_norm,
        "quantize_first_and_last": experiment.model.quantize_first_and_last,
        "weight": quantizers.weight,
        "activation": quantizers.activation,
        "switchable": quantizers.switchable,
        "trained_options": list(quantizers.options),  # a switchable value's position among them is its bitwidth
    }


def options_of(checkpoint: Checkpoint, asked: Sequence[int] | None) -> tuple[int, ...]:
    """Return the bitwidths to draw from, ascending: those asked for, or those the network was trained at.

    Raises:
        UsageError: one that was asked for is neither an option of the network nor 32.
    """
    options = checkpoint.experiment.layer_options
    wrong = [bits for bits in asked or () if bits not in (*options, FULL_PRECISION)]
    if wrong:
        raise UsageError(
            f"--bitwidths: {', '.join(map(str, wrong))} not among the options {list(options)} (or 32) "
            f"that {checkpoint.path} was trained with"
        )
    return tuple(sorted(set(asked))) if asked else checkpoint.experiment.trained_bitwidths


def evaluate(
    evaluation: Evaluation,
    chunks: Iterable[Sequence[BitwidthConfiguration]],
    advance: Callable[[float], object] = lambda _configurations: None,
) -> Iterator[pa.Table]:
    """Yield the rows of each chunk, in the schema of `schemas.records`; a chunk is asked for when its turn has come.

    The data go to the device once; each batch meets every configuration of a chunk. The reference configuration's
    predictions are computed once, with the first chunk.

    Args:
        evaluation: what to run.
        chunks: consecutive configurations that are evaluated together, such as `Plan.chunks` yields.
        advance: told how many configurations were just finished, in fractions, once a batch.
    """
    settings, plan, engine = evaluation.settings, evaluation.plan, evaluation.engine
    batches: Sequence[Batch] = ()
    reference: Sequence[Tensor] = ()
    provenance = _provenance(evaluation)
    for chunk in chunks:
        if not batches:
            batches = batches_on(evaluation.split, settings.batch_size, settings.device)
            reference = predict(engine, batches, plan.reference)
        start = time.perf_counter()
        per_sample = len(chunk) / len(evaluation.split)
        measurements = measure(engine, batches, chunk, reference, partial(_advance_by, advance, per_sample))
        yield record_table(
            plan,
            provenance,
            chunk,
            measurements,
            duration_s=(time.perf_counter() - start) / len(chunk),
            evaluated_at=datetime.now(UTC),
        )


def _advance_by(advance: Callable[[float], object], factor: float, samples: int) -> None:
    advance(samples * factor)


def measure(
    engine: ReferenceEngine,
    batches: Iterable[Batch],
    configurations: Sequence[BitwidthConfiguration],
    reference: Sequence[Tensor] | None = None,
    advance: Callable[[int], object] = lambda _samples: None,
) -> list[Measurement]:
    """Return what each configuration scores on the batches.

    Nothing is fetched from the device until every batch has met every configuration.

    Args:
        engine: what computes logits.
        batches: in data order, on the engine's device.
        configurations: N configurations.
        reference: per batch, the (N,) classes to measure agreement against.
        advance: told how many samples every configuration has just met, once a batch.
    """
    tallies = [Tally() for _ in configurations]
    with torch.inference_mode():
        for number, batch in enumerate(batches):
            # Closed even where a tally fails, or the network would keep this configuration's bits.
            with closing(engine.logits(batch.inputs, configurations)) as results:
                for position, logits in results:
                    tallies[position].update(logits, batch.labels, reference[number] if reference else None)
            advance(len(batch.labels))
    return [tally.finish() for tally in tallies]


def predict(engine: ReferenceEngine, batches: Sequence[Batch], configuration: BitwidthConfiguration) -> list[Tensor]:
    """Return, per batch, the (N,) classes that one configuration predicts, on the engine's device."""
    with torch.inference_mode():
        return [
            predictions_of(logits) for batch in batches for _, logits in engine.logits(batch.inputs, [configuration])
        ]


def _provenance(evaluation: Evaluation) -> Provenance:
    checkpoint, device = evaluation.checkpoint, evaluation.settings.device
    return Provenance(
        experiment=checkpoint.experiment.experiment,
        checkpoint=checkpoint.path.name,
        checkpoint_id=checkpoint.sha256,
        epoch=checkpoint.epoch,
        dataset=evaluation.split.dataset,
        split=evaluation.split.name,
        engine=evaluation.engine.name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        qbw_version=version("qbw"),
        torch_version=torch.__version__,
    )
