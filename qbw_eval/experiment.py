"""The experiment file: YAML -> frozen, checked settings, with every mistake reported at once.

The keys of the seed document keep their names and meaning. One experiment can be written in several ways
(`model: resnet8` for `model: {name: resnet8}`, `random_bitwidths` at top level or under `quantization`,
`number_of_configs` for `num_bitwidths`); all of them become one spelling before anything is checked, and errors still
name what was written.

Rules that span several settings are checked at the last of them, where `info.data` holds those that came out right: a
check of the whole would not run at all while any of them is wrong, and so hide mistakes until the next try.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from qbw_eval.mistakes import Mistake, all_sentences, found, mistakes_in, sentence
from qbw_eval.plain_values import plain_values
from qbw_eval.yaml_reader import (
    MAX_BYTES,
    TOP,
    UNREADABLE,
    Document,
    KeyPath,
    Position,
    is_encodable,
    read_yaml,
    shown,
)
from schemas.errors import UsageError, did_you_mean

NetworkName = Literal["resnet8", "resnet20", "resnet32", "resnet56", "resnet18", "resnet34", "resnet50"]
CIFAR_STYLE: Final = ("resnet8", "resnet20", "resnet32", "resnet56")
"""Networks for small images: 3x3 stem, three stages. The others have torchvision's shape."""

MAX_SEED: Final = 2**63 - 1  # a record's seed is an int64
MAX_NAME_BYTES: Final = 200  # file systems stop at 255, and names get prefixes and endings
_DATA_FILES: Final = (".pt", ".npz", ".safetensors")
TENSOR_FILES: Final = ".pt, .npz or .safetensors"
_PATHS: Final = {"tensors": f"the path of a {TENSOR_FILES} file", "image_folder": "the path of a folder"}
"""What a split names, by source."""


class ExperimentError(UsageError):
    """An experiment that cannot be meant as written; a line per mistake."""


# --- kinds of values ------------------------------------------------------------------------------------------------


def _list_as_tuple(value: object) -> object:
    # Only lists: a lax tuple would also take sets and generators, which have no order or only one use.
    return tuple(value) if isinstance(value, list) else value


def _height_and_width(value: object) -> object:
    if isinstance(value, list | tuple) and len(value) != 2:
        raise ValueError(f"expected two whole numbers, height and width, found a list of {len(value)}")
    return _list_as_tuple(value)


def _colours(value: object) -> object:
    if isinstance(value, list | tuple) and len(value) != 3:
        raise ValueError(f"expected three numbers, for red, green and blue, found a list of {len(value)}")
    return _list_as_tuple(value)


def _text_as_path(value: object, info: ValidationInfo) -> object:
    source = info.data.get("source")  # absent where it is wrong itself, which is said already
    expected = _PATHS.get(str(source), "a path")
    if not isinstance(value, str | Path):
        raise ValueError(f"expected {expected}, found {found(value)}")
    path = Path(value)
    if not str(value) or "\0" in str(path) or (source == "tensors" and path.suffix not in _DATA_FILES):
        hint = "" if path.suffix or not path.name else "; for a folder of images say source: image_folder"
        raise ValueError(f"expected {expected}, found {shown(str(value))}{hint if source == 'tensors' else ''}")
    return path


def _printable_name(name: str) -> str:
    """Return `name` if it can stand in a table and in a log.

    Raises:
        ValueError: it is empty, too long, or has characters that are not printable.
    """
    if not name or len(name.encode(errors="replace")) > MAX_NAME_BYTES or not name.isprintable():
        raise ValueError(f"expected a name of 1 to {MAX_NAME_BYTES} bytes, all printable, found {shown(name)}")
    return name


def _safe_name(name: str) -> str:
    """Return `name` if a file or a folder can bear it too.

    Raises:
        ValueError: it is not printable, or holds what a file name cannot.
    """
    if _printable_name(name) in (".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"expected a name without / and \\, and neither . nor .., found {shown(name)}")
    return name


Name = Annotated[str, AfterValidator(_safe_name)]
Bitwidth = Annotated[int, Field(ge=1, le=32)]
Sides = Annotated[int, Field(ge=1, le=16384)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
DataPath = Annotated[Path, BeforeValidator(_text_as_path, json_schema_input_type=str)]


# --- the settings ---------------------------------------------------------------------------------------------------


class _Settings(BaseModel):
    """Frozen; nothing is converted silently (a text is no number, true is no 1), nothing unknown is accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)


class ModelSettings(_Settings):
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


_SPLIT_PATH: Final = f"tensors: {TENSOR_FILES} file; image_folder: folder; relative to the experiment file's folder"
# There is no default: with other values than those of the training, a network is evaluated on other inputs, and
# nothing but a lower accuracy says so.
_NEEDED_FOR_IMAGES: Final = {
    "size": "the height and width of the network's inputs in pixels; torchvision's networks take 224 (and resize: 256)",
    "mean": "what the network was trained with; ImageNet's is [0.485, 0.456, 0.406], none is [0, 0, 0]",
    "std": "what the network was trained with; ImageNet's is [0.229, 0.224, 0.225], none is [1, 1, 1]",
}


class DataSettings(_Settings):
    """What the network is trained and evaluated on."""

    source: Literal["digits", "tensors", "image_folder"] = Field(
        description="digits: scikit-learn's handwritten digits, no download; tensors: files with inputs and labels; "
        "image_folder: folders that hold a folder of images for each class"
    )
    train: DataPath | None = Field(default=None, description=_SPLIT_PATH)
    validation: DataPath | None = Field(default=None, description=_SPLIT_PATH)
    test: DataPath | None = Field(default=None, description=_SPLIT_PATH)
    size: Sides | None = Field(
        default=None,
        description="image_folder only: height and width of the inputs in pixels, cut from the centre of the image",
    )
    resize: Sides | None = Field(
        default=None,
        description="image_folder only: pixels that the image's shorter side is scaled to first (bilinear); "
        "the same as size if left out",
    )
    mean: Annotated[tuple[Share, Share, Share], BeforeValidator(_colours)] | None = Field(
        default=None,
        description="image_folder only: what is subtracted from red, green and blue, which go from 0 to 1",
    )
    std: Annotated[tuple[PositiveShare, PositiveShare, PositiveShare], BeforeValidator(_colours)] | None = Field(
        default=None, description="image_folder only: what red, green and blue, less the mean, are divided by"
    )
    batch_size: int = Field(default=256, ge=1, le=65536, description="samples a batch when evaluating")

    @field_validator("train", "validation", "test")
    @classmethod
    def _digits_have_no_files(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and info.data.get("source") == "digits":
            raise ValueError("the source 'digits' takes no file; leave this key out, or did you mean source: tensors?")
        return path

    @field_validator("validation")
    @classmethod
    def _others_need_a_path(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        # A train that is wrong is absent from info.data; one that was left out is there as None.
        no_train = "train" in info.data and info.data["train"] is None
        source = info.data.get("source")
        if path is None and no_train and source in _PATHS:
            raise ValueError(f"this key is missing: the source {source!r} needs train, validation or both")
        return path

    @field_validator("size", "resize", "mean", "std")
    @classmethod
    def _images_are_preprocessed(cls, value: object, info: ValidationInfo) -> object:
        source, key = info.data.get("source"), str(info.field_name)
        if value is not None and source not in (None, "image_folder"):
            raise ValueError("goes with source 'image_folder' only; leave it out")
        if value is None and source == "image_folder" and key in _NEEDED_FOR_IMAGES:
            raise ValueError(f"this key is missing: the source 'image_folder' needs {_NEEDED_FOR_IMAGES[key]}")
        return value

    @field_validator("resize")
    @classmethod
    def _the_centre_is_inside(cls, resize: int | None, info: ValidationInfo) -> int | None:
        size = info.data.get("size")
        if resize is not None and size is not None and resize < size:
            raise ValueError(f"expected at least data.size, which is {size}, found {resize}")
        return size if resize is None else resize


class TrainingSettings(_Settings):
    """How `qbw-eval train` makes checkpoints."""

    epochs: int = Field(default=30, ge=1, le=1_000_000, description="passes over the training data")
    batch_size: int = Field(default=64, ge=1, le=65536, description="samples a batch when training")
    learning_rate: float = Field(default=1e-3, gt=0, description="AdamW's, at the start of its cosine schedule")
    weight_decay: float = Field(default=1e-4, ge=0, description="AdamW's decoupled weight decay")
    configurations_per_batch: int = Field(
        default=2, ge=1, le=1024, description="joint_quantization: random bitwidth configurations a batch is seen at"
    )
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="of initialization, batch order and configurations")


class MethodSettings(_Settings):
    """One way to quantize, under a name of your own."""

    weight_quantization: Literal["dorefa", "dorefa_scaled", "lsq"] = Field(
        default="dorefa", description="how weights are quantized; dorefa_scaled keeps their mean magnitude"
    )
    activation_quantization: Literal["dorefa", "pact", "lsq"] = Field(
        default="dorefa", description="how activations are quantized; pact learns where to clip, lsq the step"
    )
    bitwidth_options: Annotated[tuple[Bitwidth, ...], BeforeValidator(_list_as_tuple)] = Field(
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


class QuantizationSettings(_Settings):
    """Whether and how the network is quantized: any number of methods, each under a name of your own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[Annotated[str, AfterValidator(_printable_name)], MethodSettings] = Field(init=False)

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


class RandomBitwidths(_Settings):
    """The random configurations at which the network is evaluated."""

    num_bitwidths: int = Field(
        default=16, ge=1, le=1_000_000, description="number of random configurations (also spelled number_of_configs)"
    )
    sampler: Literal["iid", "uniform"] = Field(
        default="iid",
        description="iid: every layer's bits drawn independently; uniform: every layer at the same bits",
    )
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="the same seed draws the same configurations")


class Experiment(_Settings):
    """An experiment: a network, data, how to train, how to quantize and what to evaluate."""

    experiment: Name = Field(
        default="experiment",
        description="name of the experiment; the file's name without its ending if left out",
        json_schema_extra={"minLength": 1, "maxLength": MAX_NAME_BYTES},
    )
    model: ModelSettings = Field(description="the network")
    data: DataSettings = Field(description="what it is trained and evaluated on")
    training: TrainingSettings = Field(
        default_factory=TrainingSettings, description="how `qbw-eval train` makes checkpoints"
    )
    quantization: QuantizationSettings = Field(description="whether and how it is quantized")
    random_bitwidths: RandomBitwidths = Field(
        default_factory=RandomBitwidths, description="the random configurations at which it is evaluated"
    )
    quantization_method: str | None = Field(
        default=None, description="the method to use; needed where there are several"
    )

    @field_validator("quantization_method")
    @classmethod
    def _method_exists(cls, name: str | None, info: ValidationInfo) -> str | None:
        quantization: QuantizationSettings | None = info.data.get("quantization")
        # Where quantization itself is wrong, _checked looks at the names as they are written.
        return name if quantization is None else _method_in_use(name, list(quantization.methods), quantization.enable)

    @property
    def method_name(self) -> str | None:
        """Name of the method in use; None where quantization is disabled."""
        return self.quantization_method if self.quantization.enable else None

    @property
    def method(self) -> MethodSettings | None:
        """The method in use; None where quantization is disabled."""
        return None if self.method_name is None else self.quantization.methods[self.method_name]

    @property
    def layer_options(self) -> tuple[int, ...]:
        """The bitwidths that every quantized layer offers, ascending; only 32 where quantization is disabled."""
        return (32,) if self.method is None else self.method.bitwidth_options

    @property
    def trained_bitwidths(self) -> tuple[int, ...]:
        """The bitwidths that layers are trained at, ascending: the options, or the only one of vanilla training."""
        alone = None if self.method is None else self.method.bitwidth
        return self.layer_options if alone is None else (alone,)

    def as_mapping(self) -> dict[str, object]:
        """Return plain JSON values, which `experiment_from_mapping` turns back into an equal experiment."""
        return self.model_dump(mode="json")


class WithoutNetwork(_Settings):
    """An experiment file that leaves the network to the checkpoint; its keys are those of `Experiment`."""

    experiment: Name = "experiment"
    data: DataSettings
    random_bitwidths: RandomBitwidths = Field(default_factory=RandomBitwidths)

    def with_network_of(self, experiment: Experiment) -> Experiment:
        """Return `experiment` with all that this file says in place of its own."""
        return experiment.model_copy(update={name: getattr(self, name) for name in type(self).model_fields})


_Kind = TypeVar("_Kind", Experiment, WithoutNetwork)

_OF_NETWORKS: Final = {"model", "quantization", "quantization_method", "training"}
"""A file with none of these keys leaves the network to the checkpoint."""


def _method_in_use(name: str | None, names: list[str], enable: bool) -> str | None:
    """Return which of the methods `names` is used when `name` is asked for (None: the only one).

    Raises:
        ValueError: there is no such method, or several and none is asked for.
    """
    if name is not None and name not in names:
        known = f"methods: {_named(names)}" if names else "there is none"
        hint = did_you_mean(name, names)
        raise ValueError(f"expected a method under quantization, found {shown(name)} ({known}){hint}")
    if name is None and enable and names:
        if len(names) > 1:
            raise ValueError(f"this key is missing: which of the methods {_named(names)}?")
        return names[0]
    return name


# --- from a file, from a mapping ------------------------------------------------------------------------------------


def load_experiment(path: Path, *, quantization_method: str | None = None) -> Experiment:
    """Return the experiment in the YAML file at `path`; `quantization_method` overrides the file's choice.

    The name defaults to the file's, and data files are looked for beside it.

    Raises:
        ExperimentError: the file cannot be read or has mistakes; the message has a line for each.
    """
    document = read_yaml(_bytes_of(path))
    if quantization_method is None:
        return _in_document(document, path, Experiment)
    return _in_document(document, path, Experiment, {"quantization_method": quantization_method})


def load_evaluation_file(path: Path) -> Experiment | WithoutNetwork:
    """Return what `load_experiment` does, or what the file says where it leaves the network to the checkpoint.

    Raises:
        ExperimentError: the file cannot be read or has mistakes; the message has a line for each.
    """
    document = read_yaml(_bytes_of(path))
    if isinstance(document.value, dict) and not _OF_NETWORKS & set(document.value):
        return _in_document(document, path, WithoutNetwork)
    return _in_document(document, path, Experiment)


def _in_document(
    document: Document, path: Path, kind: type[_Kind], options: Mapping[str, object] | None = None
) -> _Kind:
    """Return the settings in a file that was read; `options` override the file's."""
    config, mistakes = _mapping_in(document.value)
    settings: _Kind | None = None
    if config is not None:
        settings, mistakes = _checked({"experiment": path.stem, **config, **(options or {})}, kind)
    if settings is None or document.problems:
        if options:
            mistakes = [_blame_the_option(mistake) for mistake in mistakes]
        raise ExperimentError(all_sentences(_located(str(path), document, mistakes)))
    return _with_absolute_files(settings, path)


def experiment_from_mapping(config: Mapping[str, object], where: str) -> Experiment:
    """Return the experiment in `config`, as `Experiment.as_mapping` wrote it or a file could hold it.

    `where` names the place in errors. `config` comes from a checkpoint, so from a stranger: it may hold anything.

    Raises:
        ExperimentError: there are mistakes; the message has a line for each.
    """
    plain, unreadable = plain_values(config)
    mapping, mistakes = _mapping_in(plain)
    experiment: Experiment | None = None
    if mapping is not None:
        experiment, mistakes = _checked(mapping, Experiment)
    mistakes = unreadable + mistakes
    if experiment is None or mistakes:
        raise ExperimentError(all_sentences(sentence(where, mistake.path, mistake.what) for mistake in mistakes))
    return experiment


def experiment_json_schema() -> dict[str, Any]:
    """Return the JSON schema of the experiment file, every accepted spelling included, for editors.

    Rules that span several settings are beyond it; `load_experiment` and `load_evaluation_file` know them all.
    """
    schema = Experiment.model_json_schema()
    definitions, keys = schema["$defs"], schema["properties"]
    names = definitions["ModelSettings"]["properties"]["name"]
    keys["model"] = {"anyOf": [names, {"$ref": "#/$defs/ModelSettings"}], "description": keys["model"]["description"]}
    # A file without a network; see WithoutNetwork.
    schema["required"] = ["data"]
    says_something_of_networks = {"anyOf": [{"required": [key]} for key in sorted(_OF_NETWORKS)]}
    schema["anyOf"] = [{"required": ["model", "quantization"]}, {"not": says_something_of_networks}]
    # The other spellings; see _one_spelling.
    configurations = definitions["RandomBitwidths"]
    configurations["properties"]["number_of_configs"] = {
        **configurations["properties"]["num_bitwidths"],
        "title": "Number Of Configs",
        "description": "another spelling of num_bitwidths",
    }
    del configurations["properties"]["number_of_configs"]["default"]
    configurations["not"] = {"required": ["num_bitwidths", "number_of_configs"]}
    definitions["QuantizationSettings"]["properties"]["random_bitwidths"] = {
        "$ref": "#/$defs/RandomBitwidths",
        "description": "accepted here too, if it is not at top level",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "QBW experiment file"}


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)  # one more than allowed is enough to see that it is too large
    except FileNotFoundError as error:
        raise ExperimentError(f"{path}: no such file; expected an experiment file (YAML)") from error
    except IsADirectoryError as error:
        raise ExperimentError(f"{path}: is a folder; expected an experiment file (YAML)") from error
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ExperimentError(f"{shown(str(path))}: no path can hold a NUL character") from error


def _mapping_in(value: object) -> tuple[dict[str, object] | None, list[Mistake]]:
    if isinstance(value, dict):
        return value, []
    if value is UNREADABLE:
        return None, []
    return None, [Mistake(path=(), what=f"expected the keys model, data and quantization, found {found(value)}")]


def _checked(config: dict[str, object], kind: type[_Kind]) -> tuple[_Kind | None, list[Mistake]]:
    """Return the settings in `config` or None, and all mistakes, their paths as they are written there."""
    canonical, written, mistakes = _one_spelling(config)
    try:
        settings = kind.model_validate(canonical)
    except ValidationError as error:
        more = mistakes_in(error, _known_keys) + _method_mistakes(canonical, error)
        return None, mistakes + [replace(mistake, path=_as_written(mistake.path, written)) for mistake in more]
    return (None if mistakes else settings), mistakes


def _method_mistakes(config: dict[str, object], error: ValidationError) -> list[Mistake]:
    """Return what is wrong with the choice of a method where a mistake under `quantization` kept pydantic from it."""
    quantization, name = config.get("quantization"), config.get("quantization_method")
    wrong = {detail["loc"][:1] for detail in error.errors(include_url=False)}
    if ("quantization",) not in wrong or not isinstance(quantization, dict) or not isinstance(name, str | None):
        return []
    names = [key for key, value in quantization.items() if isinstance(value, dict) and key != "enable"]
    try:
        # With an enable that is no boolean, only a name that is no method is wrong for certain.
        _method_in_use(name, names, quantization.get("enable", True) is True)
    except ValueError as what:
        return [Mistake(path=("quantization_method",), what=str(what))]
    return []


def _one_spelling(config: dict[str, object]) -> tuple[dict[str, object], dict[KeyPath, KeyPath], list[Mistake]]:
    """Return `config` in the one spelling the settings know, how moved keys are written there, and contradictions."""
    config = dict(config)
    written: dict[KeyPath, KeyPath] = {}
    mistakes: list[Mistake] = []

    model = config.get("model")
    if isinstance(model, str):
        config["model"] = {"name": model}
        written["model", "name"] = ("model",)

    quantization = config.get("quantization")
    if isinstance(quantization, dict) and "random_bitwidths" in quantization:
        config["quantization"] = {key: value for key, value in quantization.items() if key != "random_bitwidths"}
        inner: KeyPath = ("quantization", "random_bitwidths")
        if "random_bitwidths" in config:
            what = "is given at top level too (random_bitwidths); keep one of the two"
            mistakes.append(Mistake(path=inner, what=what, at_key=True))
        else:
            config["random_bitwidths"] = quantization["random_bitwidths"]
            written["random_bitwidths",] = inner

    settings = config.get("random_bitwidths")
    if isinstance(settings, dict) and "number_of_configs" in settings:
        other: KeyPath = (*_as_written(("random_bitwidths",), written), "number_of_configs")
        if "num_bitwidths" in settings:
            what = "is another spelling of num_bitwidths, which is given too; keep one of the two"
            mistakes.append(Mistake(path=other, what=what, at_key=True))
        else:
            written["random_bitwidths", "num_bitwidths"] = other
        config["random_bitwidths"] = {
            "num_bitwidths": settings["number_of_configs"],
            **{key: value for key, value in settings.items() if key != "number_of_configs"},
        }
    return config, written, mistakes


def _as_written(path: KeyPath, written: dict[KeyPath, KeyPath]) -> KeyPath:
    for end in range(len(path), 0, -1):
        if path[:end] in written:
            return written[path[:end]] + path[end:]
    return path


def _known_keys(path: KeyPath) -> list[str]:
    """Return the keys that the mapping at `path` (in our one spelling) may have."""
    match path:
        case ("quantization",):
            return ["enable", "random_bitwidths"]
        case ("quantization", _):
            return list(MethodSettings.model_fields)
        case ("random_bitwidths",):
            return [*RandomBitwidths.model_fields, "number_of_configs"]
        case ("model",):
            return list(ModelSettings.model_fields)
        case ("data",):
            return list(DataSettings.model_fields)
        case ("training",):
            return list(TrainingSettings.model_fields)
        case _:
            return list(Experiment.model_fields)


def _located(where: str, document: Document, mistakes: list[Mistake]) -> list[str]:
    """Return a sentence per problem and mistake, in the order of the file."""
    located = [(problem.position, problem.path, problem.what) for problem in document.problems]
    located += [(_position_of(mistake, document), mistake.path, mistake.what) for mistake in mistakes]
    located.sort(key=lambda entry: entry[0])
    return [sentence(f"{where}:{line}:{column}", path, what) for (line, column), path, what in located]


def _position_of(mistake: Mistake, document: Document) -> Position:
    """Return where the mistake stands; a key that is missing has the place of the mapping it is missing from."""
    if mistake.at_key and mistake.path in document.key_positions:
        return document.key_positions[mistake.path]
    for end in range(len(mistake.path), -1, -1):
        if mistake.path[:end] in document.positions:
            return document.positions[mistake.path[:end]]
    return TOP


def _blame_the_option(mistake: Mistake) -> Mistake:
    return replace(mistake, path=("--quantization-method",)) if mistake.path == ("quantization_method",) else mistake


def _with_absolute_files(settings: _Kind, path: Path) -> _Kind:
    data = settings.data
    files = {key: getattr(data, key) for key in ("train", "validation", "test")}
    # Not resolved: a link (git-annex, DVC) may lead to a file without the ending that says what it holds.
    folder = path.parent.absolute()
    absolute = {key: folder / file for key, file in files.items() if file is not None}
    if absolute and not is_encodable(str(folder)):
        raise ExperimentError(f"{path}: its folder's name is not UTF-8, so no checkpoint could say where the data is")
    return settings.model_copy(update={"data": data.model_copy(update=absolute)})


def _listed(bitwidths: Iterable[int]) -> str:
    return ", ".join(str(bits) for bits in bitwidths)


def _named(names: list[str]) -> str:
    return ", ".join([shown(name) for name in names[:20]] + ["..."] * (len(names) > 20))
