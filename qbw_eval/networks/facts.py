"""What decides how a network computes, besides a checkpoint's weights: facts that go into the rows' identity."""

import hashlib
import sys
from pathlib import Path

from torch import nn

from qbw_eval.experiment import Experiment
from qbw_eval.networks.build import quantizers_of
from qbw_eval.networks.preact_resnet import FOLLOWED
from qbw_eval.settings.model import AnyPrecisionModel, FactoryModel
from qbw_eval.settings.multimodal import MultimodalModel


def network_facts(experiment: Experiment, network: nn.Module) -> dict[str, object]:
    """Return what decides how the network computes, as plain JSON."""
    model = experiment.model
    if isinstance(model, FactoryModel):
        return {
            "factory": model.factory,
            "arguments": model.arguments,
            "bitwidth_attribute": list(model.bitwidth_attribute),
            "set_bitwidth": model.set_bitwidth,
            "sources": _sources(network, model),
        }
    if isinstance(model, MultimodalModel):
        return {
            "name": f"multimodal {model.name}",
            "width": model.width,
            # A list, for the order of locations and modalities is that of the sums.
            "in_channels": [[location, list(of.items())] for location, of in model.in_channels.items()],
            "fc_dim": model.fc_dim,
            "num_classes": model.num_classes,
            **_quantizer_facts(experiment),
        }
    return {
        # By hand, so that a setting that is added later, or a default that is spelled out, makes no other network.
        "name": model.name,
        "width": model.resolved_width,
        "in_channels": model.in_channels,
        "num_classes": model.num_classes,
        "batch_norm": model.batch_norm,
        "quantize_first_and_last": model.quantize_first_and_last,
        **_quantizer_facts(experiment),
        **choices_of_ours(experiment),
    }


def _quantizer_facts(experiment: Experiment) -> dict[str, object]:
    quantizers = quantizers_of(experiment)
    return {
        "weight": quantizers.weight,
        "activation": quantizers.activation,
        "switchable": quantizers.switchable,
        "trained_options": list(quantizers.options),  # a switchable value's position among them is its bitwidth
        **({"weight_normalization": True} if quantizers.weight_normalization else {}),  # not known to older rows
    }


def choices_of_ours(experiment: Experiment) -> dict[str, object]:
    """Return what the checkpoint's authors left open and we decide; rows name it (`extras_json`)."""
    return {"batch_norm_follows": FOLLOWED} if isinstance(experiment.model, AnyPrecisionModel) else {}


def _sources(network: nn.Module, model: FactoryModel) -> list[str]:
    """Return sha256 of the files with the user's factory, setter and module classes, in no order of their names.

    Who edits a forward gets other results from the same weights, so they must not pass for the same. Where the files
    lie makes no difference; what they import, besides classes of modules, is not seen. Torch is named in every row.
    """
    names = {type(module).__module__ for module in network.modules()}
    names |= {name.partition(":")[0] for name in (model.factory, model.set_bitwidth) if name is not None}
    own = {name for name in names if name.partition(".")[0] not in ("torch", "qbw_eval")}
    files = {Path(getattr(sys.modules.get(name), "__file__", None) or "") for name in own}
    return sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file())
