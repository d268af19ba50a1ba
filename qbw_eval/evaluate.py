"""The story of an evaluation: checkpoint -> network -> plan -> chunks of rows. Touches no output file."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from qbw_eval.checkpoints.native import Checkpoint
from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.data.batches import Batch, Batches, batches_on
from qbw_eval.data.fit import check_data_fit
from qbw_eval.data.split import Split
from qbw_eval.engine.choose import Engine, choose_engine
from qbw_eval.engine.tally import Measurement, Tally, predictions_of
from qbw_eval.experiment import Experiment
from qbw_eval.memory import MemoryBudget, free_memory, is_out_of_memory
from qbw_eval.nested import bytes_of, samples, to_device
from qbw_eval.networks.build import load_network, quantizers_of
from qbw_eval.networks.preact_resnet import FOLLOWED
from qbw_eval.plan import Plan
from qbw_eval.quantization.bitwidths import trace_layers_on_meta, unquantized_weight_bytes
from qbw_eval.quantization.numerics import FULL_PRECISION
from qbw_eval.rows import Provenance, record_table
from qbw_eval.settings.model import AnyPrecisionModel
from schemas.errors import QBWError, UsageError

_PROBED_SAMPLES = 2
"""Samples on which engines are compared before one is trusted."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What a run is asked for beyond the experiment's own settings.

    Attributes:
        sampler, num_configs, seed: which configurations; see `configurations.sample`.
        bitwidths: the options to draw from; None for those the network was trained with.
        batch_size: samples a forward pass.
        device: where to run.
        engine: one of `engine.choose.ENGINES`.
        memory: bytes that data on the device, weights and activations may take together; None for a quarter of what is
            free.
        tf32: allow TensorFloat-32 on CUDA, which changes results and so the rows' identity.
    """

    sampler: str
    num_configs: int
    seed: int
    bitwidths: tuple[int, ...] | None
    batch_size: int
    device: torch.device
    engine: str
    memory: int | None = None
    tf32: bool = False

    @property
    def budget(self) -> MemoryBudget:
        """What the memory is spent on."""
        return MemoryBudget(free_memory(self.device) // 4 if self.memory is None else self.memory)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A checkpoint ready to be evaluated: what will run is decided, nothing has been measured yet.

    Attributes:
        why: why it is this engine.
        budget: the memory to spend.
    """

    checkpoint: Checkpoint
    split: Split
    plan: Plan
    engine: Engine
    why: str
    settings: EvaluationSettings
    budget: MemoryBudget


def prepare(checkpoint: Checkpoint, split: Split, settings: EvaluationSettings) -> Evaluation:
    """Build the checkpoint's network on the device and plan its configurations.

    Raises:
        CheckpointError: the weights do not fit the network.
        DataError: the data do not fit the network.
        UsageError: the bitwidths asked for are not among the options.
        QBWError: there is not memory enough for a sample.
    """
    model = load_network(checkpoint.experiment, checkpoint.state, str(checkpoint.path))
    check_data_fit(checkpoint.experiment, split, f"the network of {checkpoint.path}")
    table = trace_layers_on_meta(model, split.first)
    options = options_of(checkpoint, settings.bitwidths)
    budget = settings.budget
    try:
        choice = choose_engine(
            settings.engine,
            model.to(settings.device),
            table.names,
            _probed(split, settings.device),
            options,
            cache_bytes=budget.caches,
            work=len(split) * sum(layer.macs for layer in table.layers),
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _too_little_memory(checkpoint, settings.device) from None
    plan = Plan(
        sampler=settings.sampler,
        seed=settings.seed,
        options=options,
        network=_network_facts(checkpoint.experiment),
        table=table,
        data_id=split.data_id(),
        num_samples=len(split),
        numerics=choice.engine.numerics + ("+tf32" if settings.tf32 else ""),
        count=settings.num_configs,
        unquantized_weight_bytes=unquantized_weight_bytes(model),
    )
    return Evaluation(
        checkpoint=checkpoint,
        split=split,
        plan=plan,
        engine=choice.engine,
        why=choice.reason,
        settings=settings,
        budget=budget,
    )


def _probed(split: Split, device: torch.device) -> Any:
    """Return the samples on which engines are compared, on the device."""
    return to_device(samples(split.inputs, slice(_PROBED_SAMPLES)), device)


def _too_little_memory(checkpoint: Checkpoint, device: torch.device) -> QBWError:
    return QBWError(
        f"{checkpoint.path}: {device} has not memory enough for one sample; free some, or use another --device"
    )


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
        **({"weight_normalization": True} if quantizers.weight_normalization else {}),  # not known to older rows
        **_choices_of_ours(experiment),
    }


def _choices_of_ours(experiment: Experiment) -> dict[str, object]:
    """Return what the checkpoint's authors left open and we decide; rows name it (`extras_json`)."""
    return {"batch_norm_follows": FOLLOWED} if isinstance(experiment.model, AnyPrecisionModel) else {}


def _claims(checkpoint: Checkpoint) -> dict[str, object]:
    """Return what the checkpoint says of itself, to be compared with ours."""
    return {} if checkpoint.val_acc is None else {"val_acc": checkpoint.val_acc}


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
    tell: Callable[[str], object] = lambda _sentence: None,
) -> Iterator[pa.Table]:
    """Yield the rows of each chunk, in the schema of `schemas.records`; a chunk is asked for when its turn has come.

    Each batch meets every configuration of a chunk. The reference configuration's predictions are computed once, with
    the first chunk. Where memory runs out the batch is halved, and the chunk begins anew.

    Args:
        evaluation: what to run.
        chunks: consecutive configurations that are evaluated together, such as `Plan.chunks` yields.
        advance: told how many configurations were just finished, in fractions, once a batch; negative where a chunk
            begins anew.
        tell: told a sentence where batches become smaller.

    Raises:
        QBWError: there is not memory enough for one sample.
    """
    plan, provenance = evaluation.plan, _provenance(evaluation)
    batch_size: int | None = None
    data: _Data | None = None
    for chunk in chunks:
        start = time.perf_counter()
        measurements = None
        while measurements is None:
            counted = _Counted(advance, len(chunk) / len(evaluation.split))
            try:
                batch_size = batch_size or _batch_size(evaluation, chunk, tell)
                data = data or _Data.of(evaluation, batch_size)
                measurements = measure(evaluation.engine, data.batches, chunk, data.reference, counted)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                batch_size = (batch_size or _wanted_batch_size(evaluation)) // 2
                if batch_size == 0:
                    raise _too_little_memory(evaluation.checkpoint, evaluation.settings.device) from None
                tell(f"out of memory on {evaluation.settings.device}: going on with batches of {_samples(batch_size)}")
                data = None
                counted.take_back()
        yield record_table(
            plan,
            provenance,
            chunk,
            measurements,
            duration_s=(time.perf_counter() - start) / len(chunk),
            evaluated_at=datetime.now(UTC),
        )


@dataclass(frozen=True)
class _Data:
    """The batches, and the classes that the reference configuration predicts for each."""

    batches: Batches
    reference: Sequence[Tensor]

    @classmethod
    def of(cls, evaluation: Evaluation, batch_size: int) -> "_Data":
        """Make batches; all of them are on a GPU at once where the budget allows it."""
        split, settings = evaluation.split, evaluation.settings
        resident = settings.device.type == "cpu" or bytes_of(split.inputs) <= evaluation.budget.data
        batches = batches_on(split, batch_size, settings.device, resident=resident)
        return cls(batches, predict(evaluation.engine, batches, evaluation.plan.reference))


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count} samples"


def _wanted_batch_size(evaluation: Evaluation) -> int:
    return min(evaluation.settings.batch_size, len(evaluation.split))


def _batch_size(
    evaluation: Evaluation, configurations: Sequence[BitwidthConfiguration], tell: Callable[[str], object]
) -> int:
    """Return the batch size asked for, or a fitting one where so many do not fit into the budget.

    At least 1: whether that fits is seen when it runs.
    """
    wanted = _wanted_batch_size(evaluation)
    probed = _probed(evaluation.split, evaluation.settings.device)
    with torch.no_grad():
        needed = evaluation.engine.peak_bytes(probed, configurations)
    fitting = (
        max(1, evaluation.budget.activations * min(_PROBED_SAMPLES, len(evaluation.split)) // needed)
        if needed
        else wanted
    )
    if fitting >= wanted:
        return wanted
    tell(f"{_samples(fitting)} a batch instead of {wanted}: more do not fit into the memory allowed (--memory)")
    return fitting


class _Counted:
    """Tells of finished samples as fractions of configurations, and can take back what it told."""

    def __init__(self, advance: Callable[[float], object], per_sample: float) -> None:
        self._advance, self._per_sample, self._told = advance, per_sample, 0.0

    def __call__(self, samples: int) -> None:
        self._told += samples * self._per_sample
        self._advance(samples * self._per_sample)

    def take_back(self) -> None:
        self._advance(-self._told)


def measure(
    engine: Engine,
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
    with torch.no_grad():
        for number, batch in enumerate(batches):
            # Closed even where a tally fails, or the network would keep this configuration's bits.
            with closing(engine.logits(batch.inputs, configurations)) as results:
                for position, logits in results:
                    tallies[position].update(logits, batch.labels, reference[number] if reference else None)
            advance(len(batch.labels))
    return [tally.finish() for tally in tallies]


def predict(engine: Engine, batches: Iterable[Batch], configuration: BitwidthConfiguration) -> list[Tensor]:
    """Return, per batch, the (N,) classes that one configuration predicts, on the engine's device."""
    with torch.no_grad():
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
        extras_json=json.dumps(_choices_of_ours(checkpoint.experiment) | _claims(checkpoint)),
    )
