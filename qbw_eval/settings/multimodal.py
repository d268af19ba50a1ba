"""The seed's network, which only its own experiment files and checkpoints can describe."""

from typing import Annotated, Literal

from pydantic import Field

from qbw_eval.settings.kinds import Settings, Sides

Channels = Annotated[int, Field(ge=1, le=4096)]
MULTIMODAL_VARIANTS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


class MultimodalModel(Settings):
    """A residual backbone for every location and modality, mean fusion, an embedding and a classifier.

    Attributes:
        name: the shape of the backbones.
        in_channels: location -> modality -> channels of that sensor's input; the order is that of the network.
        fc_dim: features of the embedding.
        num_classes: classes.
        width: channels of the backbones' first stage.
        input_sizes: location -> modality -> (segments, bins); None where only the data tell.
    """

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    in_channels: dict[str, dict[str, Channels]]
    fc_dim: Annotated[int, Field(ge=1, le=65_536)] = 512
    num_classes: Annotated[int, Field(ge=2, le=100_000)]
    width: Annotated[int, Field(ge=1, le=1024)] = 64
    input_sizes: dict[str, dict[str, tuple[Sides, Sides]]] | None = None
