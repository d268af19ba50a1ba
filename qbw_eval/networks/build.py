"""From the experiment's settings to a network, without weights or with a checkpoint's."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qbw_eval.checkpoints.safe_load import CheckpointError
from qbw_eval.experiment import Experiment
from qbw_eval.networks.preact_resnet import NETWORKS, PreActResNet20, PreActResNet50
from qbw_eval.networks.resnet import SHAPES, ResNet
from qbw_eval.quantization.layers import Quantizers
from qbw_eval.settings.model import AnyPrecisionModel
from schemas.errors import UsageError

Network = ResNet | PreActResNet20 | PreActResNet50

_SHOWN_MISMATCHES = 5


def quantizers_of(experiment: Experiment) -> Quantizers:
    """Return how the experiment's layers are quantized; where quantization is off, they only offer 32 bits."""
    method, options = experiment.method, experiment.layer_options
    if method is None:
        return Quantizers(options=options, weight="none", activation="none")
    return Quantizers(
        options=options,
        weight=method.weight_quantization,
        activation=method.activation_quantization,
        switchable=method.switchable_clipping,
    )


def build_network(experiment: Experiment) -> Network:
    """Return the experiment's network, newly initialized from torch's generator.

    Raises:
        UsageError: the number of input channels or classes is not known.
    """
    model = experiment.model
    for name in ("in_channels", "num_classes"):
        if getattr(model, name) is None:
            raise UsageError(
                f"model.{name}: not known; name it in the experiment file (training fills it in by itself)"
            )
    assert model.in_channels is not None
    assert model.num_classes is not None
    quantizers = quantizers_of(experiment)
    if isinstance(model, AnyPrecisionModel):
        return NETWORKS[model.name](
            quantizers, width=model.resolved_width, in_channels=model.in_channels, num_classes=model.num_classes
        )
    return ResNet(
        SHAPES[model.name],
        quantizers,
        width=model.resolved_width,
        in_channels=model.in_channels,
        num_classes=model.num_classes,
        switchable_batch_norm=model.batch_norm == "switchable",
        quantize_first_and_last=model.quantize_first_and_last,
    )


def load_network(experiment: Experiment, state: Mapping[str, Tensor], where: str) -> Network:
    """Return the experiment's network with a checkpoint's weights, in evaluation mode.

    The network is first laid out on torch's meta device, so that a size that only the checkpoint's configuration claims
    costs nothing; the weights' own memory is then used as it is.

    Raises:
        CheckpointError: names, shapes or types do not fit; lists them with the likely cause.
    """
    with torch.device("meta"):
        network = build_network(experiment)
    of_checkpoint = isinstance(experiment.model, AnyPrecisionModel)
    described = (
        f"{experiment.model.name} that its 'model' names"
        if of_checkpoint
        else "network that its configuration describes"
    )
    _check_fit(network, state, where, described)
    full_precision = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    network.load_state_dict(full_precision, assign=True)
    return network.eval()


def _check_fit(network: nn.Module, state: Mapping[str, Tensor], where: str, described: str) -> None:
    expected = network.state_dict()
    problems = [
        f"{name}: is {tuple(state[name].shape)} in the checkpoint, {tuple(tensor.shape)} in the network; "
        "was it saved from another width, number of classes or clipping?"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems += [
        f"{name}: is {state[name].dtype} in the checkpoint, {tensor.dtype} in the network"
        for name, tensor in expected.items()
        if name in state and state[name].is_floating_point() != tensor.is_floating_point()
    ]
    problems += [f"{name}: missing from the checkpoint" for name in expected if name not in state]
    problems += [f"{name}: not in the network" for name in state if name not in expected]
    if problems:
        more = f"; and {len(problems) - _SHOWN_MISMATCHES} more" if len(problems) > _SHOWN_MISMATCHES else ""
        raise CheckpointError(
            f"{where}: its weights do not fit the {described}: " + "; ".join(problems[:_SHOWN_MISMATCHES]) + more
        )
