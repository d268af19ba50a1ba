"""The story of an evaluation: checkpoint -> network -> plan -> chunks of rows. Touches no output file."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import torch

from qbw_eval.checkpoints.native import Checkpoint
from qbw_eval.configurations import BitwidthConfiguration, SamplerSettings, sample
from qbw_eval.data.batches import Batch, Batches, SentBatches, batches_on
from qbw_eval.data.fit import check_data_fit, layers_on
from qbw_eval.data.split import Split
from qbw_eval.engine.choose import Engine, choose_engine
from qbw_eval.engine.comparison import Comparison
from qbw_eval.engine.tally import Measurement, Measures, Tally
from qbw_eval.memory import MemoryBudget, free_memory, is_out_of_memory
from qbw_eval.nested import bytes_of, samples, to_device
from qbw_eval.networks.build import load_network, with_layer_options
from qbw_eval.networks.factory import check_settable, running
from qbw_eval.networks.facts import choices_of_ours, network_facts
from qbw_eval.plan import Plan
from qbw_eval.quantization.bitwidths import unquantized_weight_bytes
from qbw_eval.quantization.numerics import FULL_PRECISION
from qbw_eval.rows import Provenance, record_table
from qbw_eval.sampling.given import Given
from qbw_eval.sampling.ranges import CostRange
from qbw_eval.settings.model import FactoryModel
from schemas.errors import QBWError, UsageError

_PROBED_SAMPLES = 2
"""Samples on which engines are compared before one is trusted."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What a run is asked for beyond the experiment's own settings.

    Attributes:
        sampler, num_configs, seed: which configurations; see `configurations.sample`.
        range, cost, base: what else the sampler is told; see `configurations.SamplerSettings`.
        given: configurations that somebody wrote down, for the samplers that need some.
        bitwidths: the options to draw from; None for those the network was trained with.
        batch_size: samples a forward pass.
        device: where to run.
        engine: one of `engine.choose.ENGINES`.
        memory: bytes that data on the device, weights and activations may take together; None for a quarter of what is
            free.
        tf32: allow TensorFloat-32 on CUDA, which changes results and so the rows' identity.
        measures: what is measured beside accuracy and loss; it changes no result and so no row's identity.
    """

    sampler: str
    num_configs: int | None
    seed: int
    bitwidths: tuple[int, ...] | None
    batch_size: int
    device: torch.device
    engine: str
    memory: int | None = None
    tf32: bool = False
    range: CostRange | None = None
    cost: str | None = None
    base: int | None = None
    given: Given | None = None
    measures: Measures = field(default_factory=Measures)

    def of_sampler(self, layer_names: Sequence[str]) -> SamplerSettings:
        """Return what the sampler is told, for a network of these layers.

        Raises:
            UsageError: what was written down does not fit them.
        """
        told = SamplerSettings(range=self.range, cost=self.cost, base=self.base)
        if self.given is None:
            return told
        return replace(told, given=self.given.in_order(layer_names), source=self.given.source)

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

    Bitwidth options that the experiment leaves to the network's layers are filled in.

    Raises:
        CheckpointError: the weights do not fit the network.
        DataError: the data do not fit the network.
        UsageError: the bitwidths asked for are not among the options, the sampler cannot do what is asked of it, or
            somebody's own network fails.
        QBWError: there is not memory enough for a sample.
    """
    words, model = f"the network of {checkpoint.path}", checkpoint.experiment.model
    network = load_network(checkpoint.experiment, checkpoint.state, str(checkpoint.path))
    check_data_fit(checkpoint.experiment, split, words)
    checkpoint = replace(checkpoint, experiment=with_layer_options(checkpoint.experiment, network))
    options = options_of(checkpoint, settings.bitwidths)
    budget = settings.budget
    try:
        table = layers_on(checkpoint.experiment, network.to(settings.device), split, settings.device, words)
        of_sampler = settings.of_sampler(table.names)
        # Before the engines are compared: what cannot be drawn is told at once.
        sample(settings.sampler, table, options, settings.num_configs, settings.seed, of_sampler)
        if isinstance(model, FactoryModel):
            check_settable(network, model, options)
        with running(model, f"{words} fails on the first samples of {split.dataset}"):
            choice = choose_engine(
                settings.engine,
                network,
                table.names,
                _probed(split, settings.device),
                options,
                cache_bytes=budget.caches,
                work=len(split) * sum(layer.macs for layer in table.layers),
                activation_bytes=budget.activations,
            )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise too_little_memory(checkpoint, settings.device) from None
    plan = Plan(
        sampler=settings.sampler,
        seed=settings.seed,
        options=options,
        network=network_facts(checkpoint.experiment, network),
        table=table,
        data_id=split.data_id(),
        num_samples=len(split),
        numerics=choice.engine.numerics + ("+tf32" if settings.tf32 else ""),
        count=settings.num_configs,
        settings=of_sampler,
        unquantized_weight_bytes=unquantized_weight_bytes(network),
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


def too_little_memory(checkpoint: Checkpoint, device: torch.device) -> QBWError:
    """Return the error of a device on which not one sample fits."""
    return QBWError(
        f"{checkpoint.path}: {device} has not memory enough for one sample; free some, or use another --device"
    )


def _claims(checkpoint: Checkpoint) -> dict[str, object]:
    """Return what the checkpoint says of itself, to be compared with ours."""
    return {} if checkpoint.val_acc is None else {"val_acc": checkpoint.val_acc}


def _told(plan: Plan) -> dict[str, object]:
    """Return what the sampler was told; rows name it (`extras_json`)."""
    return {"sampler_settings": plan.sampler_facts} if plan.sampler_facts else {}


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

    Each batch meets every configuration of a chunk. What the reference configuration makes of the data is computed with
    the first chunk, and kept for the others where there is room. Where memory runs out the batch is halved, and the
    chunk begins anew.

    Args:
        evaluation: what to run.
        chunks: consecutive configurations that are evaluated together, such as `Plan.chunks` yields.
        advance: told how many configurations were just finished, in fractions, once a batch; negative where a chunk
            begins anew.
        tell: told a sentence where batches become smaller.

    Raises:
        DataError: the data have changed on the disk meanwhile.
        QBWError: there is not memory enough for one sample.
    """
    plan, provenance = evaluation.plan, provenance_of(evaluation)
    model, failing = evaluation.checkpoint.experiment.model, f"{evaluation.checkpoint.path}: its network fails"
    batch_size: int | None = None
    data: _Data | None = None
    for chunk in chunks:
        start = time.perf_counter()
        measurements = None
        while measurements is None:
            counted = _Counted(advance, len(chunk) / len(evaluation.split))
            try:
                with running(model, failing):
                    batch_size = batch_size or batch_size_for(evaluation, chunk, tell)
                    data = data or _Data.of(evaluation, batch_size)
                    measurements = measure(
                        evaluation.engine, data.batches, chunk, data.reference, counted, evaluation.settings.measures
                    )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                batch_size = (batch_size or _wanted_batch_size(evaluation)) // 2
                if batch_size == 0:
                    raise too_little_memory(evaluation.checkpoint, evaluation.settings.device) from None
                tell(f"out of memory on {evaluation.settings.device}: going on with batches of {_samples(batch_size)}")
                data = None
                counted.take_back()
        evaluation.split.check_unchanged()
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
    """The batches, and what configurations are compared with on each; None where nothing is compared."""

    batches: Batches | SentBatches
    reference: Comparison | None

    @classmethod
    def of(cls, evaluation: Evaluation, batch_size: int) -> "_Data":
        """Make batches; all of them are on a GPU at once, in their narrowest form, where the budget allows it."""
        device = evaluation.settings.device
        batches = batches_on(
            evaluation.split,
            batch_size,
            device,
            resident=is_resident(evaluation),
            narrow=device.type != "cpu",  # where they lie in memory anyway
        )
        return cls(batches, comparison_of(evaluation))


def data_bytes(evaluation: Evaluation) -> int:
    """Return how many bytes samples and labels take: as they are on the CPU, in their narrowest form elsewhere."""
    split = evaluation.split
    on_cpu = evaluation.settings.device.type == "cpu"
    return bytes_of((split.inputs, split.labels)) if on_cpu else split.narrow_bytes


def is_resident(evaluation: Evaluation) -> bool:
    """Return whether all samples are on the device at once."""
    return evaluation.settings.device.type == "cpu" or data_bytes(evaluation) <= evaluation.budget.data


def comparison_of(evaluation: Evaluation) -> Comparison | None:
    """Return what configurations are compared with; None where nothing is.

    What the samples on a GPU leave of their share of the budget is for its results; on the CPU they lie in memory
    anyway.
    """
    budget, measures = evaluation.budget, evaluation.settings.measures
    if not measures.comparisons:
        return None
    shared = evaluation.settings.device.type != "cpu" and is_resident(evaluation)
    limit = budget.data - data_bytes(evaluation) if shared else budget.data
    return Comparison(evaluation.engine, evaluation.plan.reference, limit, kl=measures.kl)


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count} samples"


def _wanted_batch_size(evaluation: Evaluation) -> int:
    return min(evaluation.settings.batch_size, len(evaluation.split))


def batch_size_for(
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
    reference: Comparison | None = None,
    advance: Callable[[int], object] = lambda _samples: None,
    measures: Measures | None = None,
) -> list[Measurement]:
    """Return what each configuration scores on the batches.

    Nothing is fetched from the device until every batch has met every configuration.

    Args:
        engine: what computes logits.
        batches: in data order, on the engine's device.
        configurations: N configurations.
        reference: what they are compared with.
        advance: told how many samples every configuration has just met, once a batch.
        measures: what is measured; all that `Measures` does unless told otherwise.
    """
    tallies = [Tally(measures or Measures()) for _ in configurations]
    with torch.no_grad():
        for number, batch in enumerate(batches):
            compared = None if reference is None else reference.of(number, batch)
            # Closed even where a tally fails, or the network would keep this configuration's bits.
            with closing(engine.logits(batch.inputs, configurations)) as results:
                for position, logits in results:
                    tallies[position].update(logits, batch.labels, compared)
            advance(len(batch.labels))
    return [tally.finish() for tally in tallies]


def provenance_of(evaluation: Evaluation) -> Provenance:
    """Return what all rows of an evaluation say about where they came from."""
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
        extras_json=json.dumps(choices_of_ours(checkpoint.experiment) | _claims(checkpoint) | _told(evaluation.plan)),
    )
