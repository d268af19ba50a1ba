"""The section `model`: which network."""

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from qbw_eval.settings.kinds import Settings, Sides, list_as_tuple

NetworkName = Literal["resnet8", "resnet20", "resnet32", "resnet56", "resnet18", "resnet34", "resnet50"]
CIFAR_STYLE: Final = ("resnet8", "resnet20", "resnet32", "resnet56")
"""Networks for small images: 3x3 stem, three stages. The others have torchvision's shape."""


def _height_and_width(value: object) -> object:
    if isinstance(value, list | tuple) and len(value) != 2:
        raise ValueError(f"expected two whole numbers, height and width, found a list of {len(value)}")
    return list_as_tuple(value)


class ModelSettings(Settings):
    """The network; `model: resnet20` is short for `model: {name: resnet20}`."""

    name: NetworkName = Field(
        description="resnet8, 20, 32 and 56 are the CIFAR-style networks; resnet18, 34 and 50 have torchvision's shape"
    )
    width: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="channels of the first stage; 16 for the CIFAR-style networks and 64 for the others if left out",
    )
    batch_norm: Literal["shared", "switchable"] = Field(
        default="shared", description="switchable: statistics and affine parameters of its own for every bitwidth"
    )
    quantize_first_and_last: bool = Field(
        default=False, description="quantize the first convolution and the classifier too, not only what lies between"
    )
    in_channels: int | None = Field(
        default=None, ge=1, le=4096, description="channels of the input; taken from the data if left out"
    )
    num_classes: int | None = Field(
        default=None, ge=2, le=100_000, description="number of classes; taken from the data if left out"
    )
    input_size: Annotated[tuple[Sides, Sides], BeforeValidator(_height_and_width)] | None = Field(
        default=None, description="height and width of the input; taken from the data if left out"
    )

    @property
    def resolved_width(self) -> int:
        """Channels of the first stage."""
        if self.width is not None:
            return self.width
        return 16 if self.name in CIFAR_STYLE else 64


class AnyPrecisionModel(ModelSettings):
    """A network of an Any-Precision DNN checkpoint, which says itself what it is; no experiment file can name one."""

    name: Literal["resnet20q", "resnet50q"]  # type: ignore[assignment]  # other names than those a file may hold
    batch_norm: Literal["switchable"] = "switchable"
