"""From the experiment's settings to a network, without weights or with a checkpoint's."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qbw_eval.checkpoints.foreign import wrapping
from qbw_eval.experiment import Experiment
from qbw_eval.networks.factory import network_from_factory, running
from qbw_eval.networks.multimodal_resnet import MultimodalResNet
from qbw_eval.networks.preact_resnet import NETWORKS, PreActResNet20, PreActResNet50
from qbw_eval.networks.resnet import SHAPES, ResNet
from qbw_eval.networks.weights import COUNTER, check_weights_fit
from qbw_eval.quantization.bitwidths import LayerError, common_options
from qbw_eval.quantization.layers import Quantizers
from qbw_eval.settings.model import AnyPrecisionModel, FactoryModel, ModelSettings
from qbw_eval.settings.multimodal import MultimodalModel
from schemas.errors import UsageError


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
        weight_normalization=method.sat_weight_normalization,
    )


def build_network(experiment: Experiment) -> nn.Module:
    """Return the experiment's network, newly initialized from torch's generator (a factory's: from a fixed seed).

    Raises:
        UsageError: the number of input channels or classes is not known, or somebody's factory fails.
    """
    if isinstance(experiment.model, FactoryModel):
        return network_from_factory(experiment.model)
    if isinstance(experiment.model, MultimodalModel):
        return _multimodal(experiment.model, quantizers_of(experiment))
    return _built_by_us(experiment.model, quantizers_of(experiment))


def _multimodal(model: MultimodalModel, quantizers: Quantizers) -> MultimodalResNet:
    return MultimodalResNet(
        model.name,
        quantizers,
        in_channels=model.in_channels,
        fc_dim=model.fc_dim,
        num_classes=model.num_classes,
        width=model.width,
    )


def _built_by_us(model: ModelSettings, quantizers: Quantizers) -> ResNet | PreActResNet20 | PreActResNet50:
    for name in ("in_channels", "num_classes"):
        if getattr(model, name) is None:
            raise UsageError(
                f"model.{name}: not known; name it in the experiment file (training fills it in by itself)"
            )
    assert model.in_channels is not None
    assert model.num_classes is not None
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


def load_network(experiment: Experiment, state: Mapping[str, Tensor], where: str) -> nn.Module:
    """Return the experiment's network with a checkpoint's weights, in evaluation mode.

    Raises:
        CheckpointError: names, shapes or types do not fit; lists them with the likely cause.
        UserCodeError: somebody's factory fails.
    """
    if isinstance(experiment.model, FactoryModel):
        return _load_into_theirs(experiment.model, state, where)
    return _load_into_ours(experiment, state, where)


def _load_into_ours(experiment: Experiment, state: Mapping[str, Tensor], where: str) -> nn.Module:
    """Return the network, laid out on torch's meta device first, with the weights' own memory.

    So a size that only the checkpoint's configuration claims costs nothing.
    """
    with torch.device("meta"):
        network = build_network(experiment)
    described = "network that its configuration describes"
    if isinstance(experiment.model, AnyPrecisionModel):
        described = f"{experiment.model.name} that its 'model' names"
    check_weights_fit(network.state_dict(), state, where, described)
    full_precision = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    network.load_state_dict(full_precision, assign=True)
    return network.eval()


def _load_into_theirs(model: FactoryModel, state: Mapping[str, Tensor], where: str) -> nn.Module:
    """Return the network that a factory makes, the weights copied into its own memory, and so converted to its types.

    Where training wrapped it (`module.`, `_orig_mod.`) and the factory does too, the names agree again.
    """
    network = network_from_factory(model)
    with running(model, f"{where}: its weights cannot be loaded"):
        expected = network.state_dict()
        prefix = wrapping(expected)
        named = {name: tensor for name, tensor in expected.items() if name.rpartition(".")[2] == COUNTER}
        named |= {prefix + name: tensor for name, tensor in state.items()}
        check_weights_fit(expected, named, where, f"network that {model.factory} returns")
        network.load_state_dict(named)
    return network.eval()


def with_layer_options(experiment: Experiment, network: nn.Module) -> Experiment:
    """Return the experiment with the bitwidth options that it leaves to the network's layers.

    Raises:
        UsageError: the layers do not say either.
    """
    if experiment.layer_options:
        return experiment
    try:
        return experiment.with_options(common_options(network))
    except LayerError:
        raise UsageError(
            "model.bitwidth_options: this key is missing: the network's quantized layers share no bitwidth_options "
            "of their own; name the bitwidths to draw from, for instance [2, 4, 8]"
        ) from None
