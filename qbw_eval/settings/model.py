"""The section `model`: which network. There are several kinds; `MODEL_KINDS` lists those that a file can name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, PrivateAttr, Tag

from qbw_eval.mistakes import found
from qbw_eval.settings.kinds import Settings, Sides, list_as_tuple
from qbw_eval.settings.multimodal import MultimodalModel
from qbw_eval.user_code import function_name

NetworkName = Literal[
    "resnet8", "resnet20", "resnet32", "resnet56", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"
]
CIFAR_STYLE: Final = ("resnet8", "resnet20", "resnet32", "resnet56")
"""Networks for small images: 3x3 stem, three stages. The others have torchvision's shape."""


def _height_and_width(value: object) -> object:
    if isinstance(value, list | tuple) and len(value) != 2:
        raise ValueError(f"expected two whole numbers, height and width, found a list of {len(value)}")
    return list_as_tuple(value)


class ModelSettings(Settings):
    """The network; `model: resnet20` is short for `model: {name: resnet20}`."""

    name: NetworkName = Field(
        description="resnet8, 20, 32 and 56 are the CIFAR-style networks; resnet18, 34, 50, 101 and 152 have "
        "torchvision's shape"
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


def _finite(arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(arguments, allow_nan=False)
    except ValueError:
        raise ValueError("expected finite numbers, found .nan or .inf") from None
    return arguments


def _attribute(name: object) -> object:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"expected the name of an attribute, found {found(name)}")
    return name


def _one_as_several(names: object) -> object:
    if isinstance(names, list) and len(set(map(str, names))) != max(1, len(names)):
        raise ValueError("expected each name once, and at least one")
    return list_as_tuple(names) if isinstance(names, list | tuple) else (names,)


FunctionName = Annotated[str, AfterValidator(function_name)]
CURRENT_BITS: Final = "curr_bitwidth"
"""The attribute of quantized layers that all of our code reads."""


class FactoryModel(Settings):
    """Anyone's network: what a function of the user's own returns. Only a file that the user names can hold one."""

    factory: FunctionName = Field(
        description="package.module:function, a function of your own that returns the network (a torch.nn.Module); "
        "modules are looked for in the experiment file's folder first"
    )
    arguments: Annotated[dict[str, Any], AfterValidator(_finite)] = Field(
        default_factory=dict, description="what the function is called with, by name"
    )
    bitwidth_attribute: Annotated[
        tuple[Annotated[str, BeforeValidator(_attribute)], ...],
        BeforeValidator(_one_as_several, json_schema_input_type=str | list[str]),
    ] = Field(
        default=(CURRENT_BITS,),
        description="the attribute that holds a quantized layer's bits, or several that are set to the same; quantized "
        "layers are the modules that have all of them as whole numbers",
    )
    set_bitwidth: FunctionName | None = Field(
        default=None,
        description="package.module:function, called as function(layer, bits); for where setting the attribute is not "
        "enough",
    )
    _folder: Path | None = PrivateAttr(default=None)

    @property
    def folder(self) -> Path | None:
        """The experiment file's, where modules are looked for first."""
        return self._folder

    def in_folder(self, folder: Path) -> "FactoryModel":
        """Return these settings as an experiment file in `folder` holds them."""
        model = self.model_copy()
        model._folder = folder
        return model


# --- which kind -------------------------------------------------------------------------------------------------------

MODEL_KINDS: Final[Mapping[str, type[Settings]]] = {"network": ModelSettings, "factory": FactoryModel}
"""What a file's section `model` can be; a checkpoint's layout may bring others (`AnyPrecisionModel`)."""


def kind_of_model(value: object) -> str:
    """Return which of `MODEL_KINDS` a section is, right or wrong as it may be; no file can say "multimodal"."""
    if isinstance(value, MultimodalModel):
        return "multimodal"
    keys = value if isinstance(value, Mapping) else ()
    return "factory" if isinstance(value, FactoryModel) or "factory" in keys else "network"


AnyModel = Annotated[
    Annotated[ModelSettings, Tag("network")]
    | Annotated[FactoryModel, Tag("factory")]
    | Annotated[MultimodalModel, Tag("multimodal")],
    Discriminator(kind_of_model),
]
