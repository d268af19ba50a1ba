"""Training that writes the checkpoints which QBW evaluates: joint quantization, or one bitwidth throughout.

Joint quantization (Any-Precision DNN, arXiv 1911.07346, section 3.2, with random per-layer bits): every batch is seen
at k random configurations, the losses are averaged, and one step is taken.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbw_eval.checkpoints.native import write_checkpoint
from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.data.batches import batches_on
from qbw_eval.data.fit import check_data_fit
from qbw_eval.data.split import Split
from qbw_eval.engine.reference import ReferenceEngine
from qbw_eval.evaluate import measure
from qbw_eval.experiment import Experiment
from qbw_eval.nested import samples, to_device
from qbw_eval.networks.build import build_network
from qbw_eval.quantization.bitwidths import quantized_layers, restored, set_bitwidths
from qbw_eval.quantization.layers import SMALLEST_SCALE, QuantizedLayer
from qbw_eval.quantization.numerics import FULL_PRECISION
from qbw_eval.validation import validate_random_bitwidths
from schemas.errors import QBWError


class TrainingError(QBWError):
    """Training cannot start or go on."""


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """One finished epoch.

    Attributes:
        epoch: 0-based.
        checkpoint: the file that was written.
        train_loss: mean over the epoch's batches, in nats.
        val_acc, val_loss: means over the validated configurations; loss in nats.
    """

    epoch: int
    checkpoint: Path
    train_loss: float
    val_acc: float
    val_loss: float


def train(
    experiment: Experiment,
    train_split: Split,
    validation_split: Split,
    folder: Path,
    *,
    device: torch.device,
    log: Callable[[str], object],
    advance: Callable[[int], object] = lambda _batches: None,
) -> Iterator[EpochResult]:
    """Train the experiment's network, yielding after every epoch; its checkpoint is on the disk by then.

    Seeds torch's global generator. On one CPU with one number of threads, equal settings give equal checkpoints.

    Args:
        experiment: complete settings (see `with_data_shape`).
        train_split: what is learned from.
        validation_split: what every epoch is scored on.
        folder: where `epoch_NNN.pt` go, NNN = epoch + 1; must exist.
        device: where to train.
        log: called with the lines of each validation.
        advance: told of every finished batch.

    Raises:
        DataError: the data do not fit the network.
        TrainingError: there are too few samples for batch norm, or the loss is no longer a number.
    """
    settings = experiment.training
    check_data_fit(experiment, train_split, "the network")
    check_data_fit(experiment, validation_split, "the network")
    if min(settings.batch_size, len(train_split)) < 2:
        found = "training.batch_size: 1" if settings.batch_size == 1 else f"{train_split.dataset}: 1 training sample"
        raise TrainingError(f"{found}; batch norm needs at least 2 samples to normalize")
    torch.manual_seed(settings.seed)
    choices = random.Random(settings.seed)
    model = build_network(experiment).to(device)
    inputs, labels = to_device(train_split.inputs, device), train_split.labels.to(device)
    initialize_activation_steps(model, samples(inputs, slice(settings.batch_size)))
    optimizer = torch.optim.AdamW(_parameter_groups(model, settings.weight_decay), lr=settings.learning_rate)
    batches_per_epoch = math.ceil(len(labels) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * batches_per_epoch)
    for epoch in range(settings.epochs):
        model.train()
        losses = []
        for batch in torch.randperm(len(labels)).split(settings.batch_size):  # type: ignore[no-untyped-call]  # torch's split is untyped
            if len(batch) == 1:
                continue  # batch norm has nothing to normalize a single sample with
            optimizer.zero_grad()
            loss = _accumulate_gradients(model, experiment, choices, samples(inputs, batch), labels[batch])
            optimizer.step()
            schedule.step()
            _keep_scales_positive(model)
            losses.append(loss)
            advance(1)
        train_loss = float(torch.stack(losses).mean())
        if not math.isfinite(train_loss):
            raise TrainingError(
                f"epoch {epoch + 1}: the training loss is {train_loss}; lower training.learning_rate and train again"
            )
        val_acc, val_loss = _validate(model, experiment, validation_split, device, log)
        path = folder / f"epoch_{epoch + 1:03d}.pt"
        write_checkpoint(
            path,
            epoch=epoch,
            model=model,
            optimizer=optimizer,
            val_acc=val_acc,
            val_loss=val_loss,
            experiment=experiment,
        )
        yield EpochResult(epoch=epoch, checkpoint=path, train_loss=train_loss, val_acc=val_acc, val_loss=val_loss)


def _accumulate_gradients(
    model: nn.Module, experiment: Experiment, choices: random.Random, inputs: Any, labels: Tensor
) -> Tensor:
    """Add the gradients of the mean loss over the batch's configurations; return that loss, detached."""
    configurations = list(_training_configurations(model, experiment, choices))
    total = torch.zeros((), device=labels.device)
    for bitwidths in configurations:
        set_bitwidths(model, bitwidths)
        loss = F.cross_entropy(model(inputs), labels) / len(configurations)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        total += loss.detach()
    return total


def _training_configurations(
    model: nn.Module, experiment: Experiment, choices: random.Random
) -> Iterator[dict[str, int]]:
    """Yield the bits at which one batch is seen: k random ones, or the only one there is."""
    names, options = list(quantized_layers(model)), experiment.trained_bitwidths
    if len(options) == 1:
        yield dict.fromkeys(names, options[0])
    else:
        for _ in range(experiment.training.configurations_per_batch):
            yield {name: choices.choice(options) for name in names}


def _validate(
    model: nn.Module, experiment: Experiment, split: Split, device: torch.device, log: Callable[[str], object]
) -> tuple[float, float]:
    """Return (accuracy, loss), validated as the experiment asks; means where there are several configurations."""
    batches = batches_on(split, experiment.data.batch_size, device)
    validation = validate_random_bitwidths(model, batches, config=experiment.as_mapping(), log=log)
    if validation is not None:
        return validation.mean_accuracy, validation.mean_loss
    names, bits = list(quantized_layers(model)), experiment.trained_bitwidths[-1]
    single = BitwidthConfiguration(bitwidths=(bits,) * len(names), index=0)
    (measurement,) = measure(ReferenceEngine(model, names), batches, [single])
    log(f"Validation: Acc={measurement.accuracy:.4f}, Loss={measurement.loss:.4f}, Bitwidth={bits}")
    return measurement.accuracy, measurement.loss


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay weights and PACT's clipping values (its paper, section 3), not norms, biases or LSQ's steps."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if parameter.ndim > 1 or name.endswith(".alpha") else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def _keep_scales_positive(model: nn.Module) -> None:
    """Stop LSQ's steps and PACT's clipping values short of zero, where they would divide by nothing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".step_size", ".alpha")):
                parameter.clamp_(min=SMALLEST_SCALE)


def initialize_activation_steps(model: nn.Module, inputs: Any) -> None:
    """Set LSQ's activation steps from what each layer receives in one full-precision pass (LSQ, section 2.1).

    Explicit and once, before training: a step that a checkpoint holds is never overwritten by the first batch it meets.
    """
    layers = [layer for layer in quantized_layers(model).values() if isinstance(layer, QuantizedLayer)]
    layers = [layer for layer in layers if layer.quantizers.activation == "lsq"]
    if not layers:
        return

    def note(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, QuantizedLayer)
        layer.initialize_steps(layer.quantize_a, arguments[0].abs().mean(), signed=False)

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with restored(model), torch.no_grad():
            set_bitwidths(model, dict.fromkeys(quantized_layers(model), FULL_PRECISION))
            model.eval()  # the batch norms' running statistics are not to move
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
