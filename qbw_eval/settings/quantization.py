"""The sections `quantization` and `random_bitwidths`: how the network is quantized, and where it is evaluated."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from qbw_eval.settings.kinds import MAX_SEED, Bitwidth, Settings, list_as_tuple, printable_name


class MethodSettings(Settings):
    """One way to quantize, under a name of your own."""

    weight_quantization: Literal["dorefa", "dorefa_scaled", "lsq"] = Field(
        default="dorefa", description="how weights are quantized; dorefa_scaled keeps their mean magnitude"
    )
    activation_quantization: Literal["dorefa", "pact", "lsq"] = Field(
        default="dorefa", description="how activations are quantized; pact learns where to clip, lsq the step"
    )
    bitwidth_options: Annotated[tuple[Bitwidth, ...], BeforeValidator(list_as_tuple)] = Field(
        description="the bitwidths a layer can have, 1 to 32, each once; 32 is unquantized",
        json_schema_extra={"minItems": 1, "maxItems": 32, "uniqueItems": True},
    )
    training_method: Literal["joint_quantization", "vanilla_single_precision_training"] = Field(
        default="joint_quantization",
        description="joint_quantization: all options at once, k random configurations a batch; "
        "vanilla_single_precision_training: every layer at one bitwidth",
    )
    validation_function: Literal["random_bitwidths", "simple_validation"] = Field(
        default="random_bitwidths",
        description="random_bitwidths: validate at random configurations; simple_validation: at one",
    )
    switchable_clipping: bool = Field(
        default=False, description="one learned clipping value (pact) or step (lsq) for every bitwidth option"
    )
    bitwidth: Bitwidth | None = Field(
        default=None,
        description="vanilla_single_precision_training only: the bitwidth trained at; the only option if left out",
    )

    @field_validator("bitwidth_options")
    @classmethod
    def _options_make_sense(cls, options: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if not options:
            raise ValueError("expected at least one bitwidth, found an empty list")
        twice = sorted(bits for bits in set(options) if options.count(bits) > 1)
        if twice:
            raise ValueError(f"expected every bitwidth once, found {_listed(twice)} more than once")
        for key in ("weight_quantization", "activation_quantization"):
            # A signed 1-bit LSQ weight has the levels -1 and 0 only; the paper starts at 2 bits.
            if 1 in options and info.data.get(key) == "lsq":
                raise ValueError(f"the option 1 does not go with {key} 'lsq', which needs at least 2 bits")
        return tuple(sorted(options))

    @field_validator("bitwidth")
    @classmethod
    def _bitwidth_is_an_option(cls, bitwidth: int | None, info: ValidationInfo) -> int | None:
        options, training_method = info.data.get("bitwidth_options"), info.data.get("training_method")
        if options is None or training_method is None:
            return bitwidth
        if training_method == "joint_quantization":
            if bitwidth is not None:
                raise ValueError("goes with training_method 'vanilla_single_precision_training' only; leave it out")
            return None
        if bitwidth is None and len(options) > 1:
            raise ValueError(f"this key is missing: which of {_listed(options)} is trained at?")
        if bitwidth is not None and bitwidth not in (*options, 32):
            raise ValueError(f"expected one of the bitwidth_options {_listed(options)} or 32, found {bitwidth}")
        return options[0] if bitwidth is None else bitwidth


class QuantizationSettings(Settings):
    """Whether and how the network is quantized: any number of methods, each under a name of your own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[Annotated[str, AfterValidator(printable_name)], MethodSettings] = Field(init=False)

    enable: bool = Field(default=True, description="false: every layer stays at 32 bits")

    @property
    def methods(self) -> Mapping[str, MethodSettings]:
        """The methods by name, in the order of the file."""
        return self.__pydantic_extra__

    @model_validator(mode="after")
    def _has_a_method(self) -> "QuantizationSettings":
        if self.enable and not self.methods:
            raise ValueError(
                "a method is missing: a name of your own with bitwidth_options below it (or enable: false)"
            )
        return self


class RandomBitwidths(Settings):
    """The random configurations at which the network is evaluated."""

    num_bitwidths: int = Field(
        default=16, ge=1, le=1_000_000, description="number of random configurations (also spelled number_of_configs)"
    )
    sampler: Literal["iid", "uniform"] = Field(
        default="iid",
        description="iid: every layer's bits drawn independently; uniform: every layer at the same bits",
    )
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="the same seed draws the same configurations")


def _listed(bitwidths: Iterable[int]) -> str:
    return ", ".join(str(bits) for bits in bitwidths)
