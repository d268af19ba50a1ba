"""The sections `quantization` and `random_bitwidths`: how the network is quantized, and where it is evaluated."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from qbw_eval.sampling.ranges import parse_range
from qbw_eval.settings.kinds import MAX_SEED, Bitwidth, Settings, list_as_tuple, printable_name

ValidationFunction = Literal["random_bitwidths", "simple_validation"]
CostName = Literal[
    "avg_bitwidth", "weighted_avg_bitwidth", "weight_bytes", "relative_weight_bytes", "bit_ops", "relative_bit_ops"
]
"""The names in `cost.COSTS`."""


class MethodSettings(Settings):
    """One way to quantize, under a name of your own."""

    weight_quantization: Literal["dorefa", "dorefa_scaled", "lsq", "lsqplus"] = Field(
        default="dorefa",
        description="how weights are quantized; dorefa_scaled keeps their mean magnitude, lsq learns the step, lsqplus "
        "the step and a zero point",
    )
    activation_quantization: Literal["dorefa", "pact", "lsq", "lsqplus"] = Field(
        default="dorefa",
        description="how activations are quantized; pact learns where to clip, lsq the step, lsqplus the step and a "
        "zero point",
    )
    sat_weight_normalization: bool = Field(
        default=False, description="divide quantized weights by their standard deviation, below 32 bits"
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
    validation_function: ValidationFunction = Field(
        default="random_bitwidths",
        description="random_bitwidths: validate at random configurations; simple_validation: at one",
    )
    switchable_clipping: bool = Field(
        default=False,
        description="one learned clipping value (pact), step (lsq, lsqplus) and zero point (lsqplus) for every option",
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
            # A signed 1-bit LSQ weight has the levels -1 and 0 only; the paper starts at 2 bits. LSQ+ learns where its
            # levels 0 and 1 lie, which makes sense of any two.
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
        if self.enable and not self.methods and self is not LEFT_TO_THE_LAYERS:
            raise ValueError(
                "a method is missing: a name of your own with bitwidth_options below it (or enable: false)"
            )
        return self


LEFT_TO_THE_LAYERS: Final = QuantizationSettings.model_construct()
"""The section of a file that has none, because its network is somebody's own."""


def _range_text(text: str) -> str:
    """Return the range if it is one, as `sampling.ranges` reads it.

    Raises:
        ValueError: it is none.
    """
    parse_range(text)
    return text


class RandomBitwidths(Settings):
    """The random configurations at which the network is evaluated."""

    num_bitwidths: int = Field(
        default=16, ge=1, le=1_000_000, description="number of random configurations (also spelled number_of_configs)"
    )
    sampler: Literal["iid", "uniform", "stratified", "one-layer"] | None = Field(
        default=None,
        description="iid: every layer's bits drawn independently; uniform: every layer at the same bits; stratified: "
        "spread evenly over the range of a cost; one-layer: each layer in turn at each option. Left out: iid while "
        "training, stratified in qbw-eval run",
    )
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="the same seed draws the same configurations")
    range: Annotated[str, AfterValidator(_range_text)] | None = Field(
        default=None, description="only configurations whose cost lies in it, such as avg_bitwidth=3:5"
    )
    cost: CostName | None = Field(
        default=None, description="stratified: which cost is spread evenly; that of the range, or avg_bitwidth"
    )
    base: Bitwidth | None = Field(
        default=None, description="one-layer: the bits of the other layers; the largest option if left out"
    )

    @field_validator("cost")
    @classmethod
    def _cost_goes_with_the_others(cls, cost: str | None, info: ValidationInfo) -> str | None:
        sampler, bounded = info.data.get("sampler"), info.data.get("range")
        if cost is not None and sampler not in (None, "stratified"):
            raise ValueError(f"goes with sampler 'stratified' only, not with {sampler!r}; leave it out")
        if cost is not None and bounded is not None and parse_range(bounded).cost != cost:
            raise ValueError(f"expected the cost of the range {bounded!r}, found {cost!r}; leave it out")
        return cost

    @field_validator("base")
    @classmethod
    def _base_goes_with_its_sampler(cls, base: int | None, info: ValidationInfo) -> int | None:
        if base is not None and info.data.get("sampler") != "one-layer":
            raise ValueError("goes with sampler 'one-layer' only; leave it out")
        return base


def _listed(bitwidths: Iterable[int]) -> str:
    return ", ".join(str(bits) for bits in bitwidths)
