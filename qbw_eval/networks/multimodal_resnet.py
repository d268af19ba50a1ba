"""The seed's network: a residual backbone for every sensor (location and modality), whose features are averaged.

State-dict keys are the seed's: `mod_loc_backbones.{location}.{modality}.` and those of a torchvision-shaped `ResNet`
without classifier, then `sample_embd_layer.0` and `class_layer`. Stems and the two linear layers are in full precision.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from qbw_eval.networks.resnet import SHAPES, ResNetFeatures, initialize
from qbw_eval.quantization.layers import Quantizers
from schemas.errors import UsageError

Variant = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

_TAKEN = frozenset(dir(nn.ModuleDict()))
"""What a sensor cannot be called: torch's modules have an attribute of that name."""


class MultimodalResNet(nn.Module):
    """Mean fusion: of a location's modalities, then of the locations; then an embedding and a classifier.

    Quantized layers come in the order of `in_channels`, location by location and modality by modality.

    Args:
        variant: the shape of every backbone.
        quantizers: how their convolutions are quantized, 1x1 shortcuts included.
        in_channels: location -> modality -> channels of that sensor's input.
        fc_dim: features of the embedding.
        num_classes: outputs.
        width: channels of the backbones' first stage.

    Raises:
        UsageError: there is no sensor, or one's name cannot be a part of a key in a state dict.
    """

    def __init__(
        self,
        variant: Variant,
        quantizers: Quantizers,
        *,
        in_channels: Mapping[str, Mapping[str, int]],
        fc_dim: int,
        num_classes: int,
        width: int = 64,
    ) -> None:
        super().__init__()
        _check_names(in_channels)
        self.mod_loc_backbones = nn.ModuleDict()
        for location, modalities in in_channels.items():
            backbones = {
                modality: ResNetFeatures(SHAPES[variant], quantizers, width=width, in_channels=channels)
                for modality, channels in modalities.items()
            }
            features = next(iter(backbones.values())).features
            self.mod_loc_backbones[location] = nn.ModuleDict(backbones)
        self.sample_embd_layer = nn.Sequential(nn.Linear(features, fc_dim), nn.ReLU())
        self.class_layer = nn.Linear(fc_dim, num_classes)
        initialize(self)

    def forward(self, inputs: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """Map location -> modality -> (N, channels, segments, bins) to logits (N, num_classes).

        Sensors may differ in all but N; other keys of `inputs` are not looked at.
        """
        locations = []
        for location, backbones in self.mod_loc_backbones.items():
            assert isinstance(backbones, nn.ModuleDict)
            features = [backbone(inputs[location][modality]) for modality, backbone in backbones.items()]
            locations.append(torch.stack(features, dim=1).mean(dim=1))  # (N, modalities, features) -> (N, features)
        sample = torch.stack(locations, dim=1).mean(dim=1)
        return self.class_layer(self.sample_embd_layer(sample))  # type: ignore[no-any-return]  # modules are untyped calls


def _check_names(in_channels: Mapping[str, Mapping[str, int]]) -> None:
    """Raise UsageError where there is no sensor, or one's name cannot be a part of a key."""
    if not in_channels:
        raise UsageError("expected at least one location with a modality, found none")
    for location, modalities in in_channels.items():
        if not modalities:
            raise UsageError(f"location {location!r}: expected at least one modality, found none")
        for kind, name in (("location", location), *(("modality", modality) for modality in modalities)):
            if not isinstance(name, str) or not name.isprintable() or not name or "." in name or name in _TAKEN:
                raise UsageError(
                    f"{kind} {name!r:.80}: expected a printable name without dots that is no attribute of torch's "
                    "ModuleDict; it becomes a part of the network's state-dict keys, so rename it"
                )
