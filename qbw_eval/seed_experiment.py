"""The seed's experiment file -> our settings: its YAML, or the `config` that its checkpoints hold (the same keys).

Read are (others, of which there are many, mean nothing to us):

model, model_variant                 ResNet and resnet18, 34, 50, 101 or 152
location_names, modality_names       the network has a backbone for every pair of them
loc_mod_in_freq_channels             location -> modality -> input channels (after the Fourier transform)
loc_mod_spectrum_len                 location -> modality -> bins; only to count operations without data
vehicle_classification               num_classes, train_index_file, val_index_file, test_index_file
  (or activity_classification)
fc_dim, num_segments, batch_size, normalization.{method, minmax_range}
quantization.enable, quantization.<method>.{bitwidth_options, weight_quantization, ...}, quantization_method
random_bitwidths.{num_bitwidths or number_of_configs}, at top level or under quantization
<model>.{optimizer.{start_lr, weight_decay}, lr_scheduler.train_epochs}; only to train
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from qbw_eval.experiment import Experiment, ExperimentError, located, read_document, with_absolute_files
from qbw_eval.mistakes import Mistake, all_sentences, found, mistakes_in, sentence
from qbw_eval.plain_values import plain_values
from qbw_eval.settings.data import DataSettings
from qbw_eval.settings.kinds import list_as_tuple
from qbw_eval.settings.multimodal import MULTIMODAL_VARIANTS, Channels, MultimodalModel
from qbw_eval.settings.quantization import MethodSettings, QuantizationSettings, RandomBitwidths, ValidationFunction
from qbw_eval.settings.training import TrainingSettings
from qbw_eval.yaml_reader import KeyPath, shown

_TASKS: Final = ("vehicle_classification", "activity_classification")
_KEYS: Final = (
    *("model", "model_variant", "location_names", "modality_names", "loc_mod_in_freq_channels", "loc_mod_spectrum_len"),
    *(*_TASKS, "fc_dim", "num_segments", "batch_size", "normalization"),
    *("quantization", "quantization_method", "random_bitwidths"),
)
_CONVOLUTIONS: Final = ("QuanConv", "QuanConvActivationFirst", "QuanConvNoWeightNorm")
"""The seed's layers that compute the same, but for the last, which never normalizes weights."""


@dataclass(frozen=True, kw_only=True)
class SeedExperiment:
    """What a seed's configuration says.

    Attributes:
        experiment: in our settings.
        options: the bitwidth options in the order of the configuration, which is that of learned scales in checkpoints.
        config: the configuration itself, plain values, all of its keys.
    """

    experiment: Experiment
    options: tuple[int, ...]
    config: Mapping[str, object]


def is_seed_config(config: object) -> bool:
    """Say whether a mapping is a configuration of the seed's, right or wrong as its values may be."""
    return isinstance(config, Mapping) and "loc_mod_in_freq_channels" in config


class _Keys(BaseModel):
    """Frozen, nothing converted silently; unknown keys are other people's."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


_Names = Annotated[tuple[str, ...], BeforeValidator(list_as_tuple), Field(min_length=1, max_length=64)]


def _possible_path(text: str) -> str:
    if "\0" in text:
        raise ValueError(f"expected the path of an index file, which lists a .pt file a line, found {shown(text)}")
    return text


IndexFile = Annotated[str, AfterValidator(_possible_path)]


class _Task(_Keys):
    num_classes: Annotated[int, Field(ge=2, le=100_000)]
    train_index_file: IndexFile | None = None
    val_index_file: IndexFile | None = None
    test_index_file: IndexFile | None = None


class _Normalization(_Keys):
    method: Literal["standard", "standardscaler", "minmax", "minmaxscaler", "maxabs", "maxabsscaler", "none"] = "none"
    minmax_range: Annotated[tuple[float, float], BeforeValidator(list_as_tuple)] = (0.0, 1.0)

    @field_validator("method", mode="before")
    @classmethod
    def _any_case(cls, method: object) -> object:
        return "none" if method is None else method.lower() if isinstance(method, str) else method


class _Optimizer(_Keys):
    start_lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class _Schedule(_Keys):
    train_epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 50


class _Architecture(_Keys):
    optimizer: _Optimizer = Field(default_factory=_Optimizer)
    lr_scheduler: _Schedule = Field(default_factory=_Schedule)


class _Seed(_Keys):
    """The keys that mean something to us, `task`, `method` and `architecture` taken from where they stand."""

    variant: str
    location_names: _Names
    modality_names: _Names
    loc_mod_in_freq_channels: dict[str, dict[str, Channels]]
    loc_mod_spectrum_len: dict[str, dict[str, Annotated[int, Field(ge=1, le=1_000_000)]]] | None = None
    task: _Task
    fc_dim: Annotated[int, Field(ge=1, le=65_536)] = 512
    num_segments: Annotated[int, Field(ge=1, le=16_384)]
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 256
    normalization: _Normalization = Field(default_factory=_Normalization)
    enable: bool = False
    method: MethodSettings | None = None
    joint_quantization_batch_size: Annotated[int, Field(ge=1, le=1024)] = 2
    random_bitwidths: RandomBitwidths = Field(default_factory=RandomBitwidths)
    architecture: _Architecture = Field(default_factory=_Architecture)

    @field_validator("variant")
    @classmethod
    def _is_a_resnet(cls, variant: str) -> str:
        if variant.lower() not in MULTIMODAL_VARIANTS:
            raise ValueError(f"expected one of {', '.join(MULTIMODAL_VARIANTS)}, found {shown(variant)}")
        return variant.lower()

    @field_validator("loc_mod_in_freq_channels")
    @classmethod
    def _has_every_sensor(cls, channels: dict[str, dict[str, int]], info: ValidationInfo) -> dict[str, dict[str, int]]:
        locations, modalities = info.data.get("location_names", ()), info.data.get("modality_names", ())
        missing = [f"{loc}.{mod}" for loc in locations for mod in modalities if mod not in channels.get(loc, {})]
        if missing:
            raise ValueError(f"expected the channels of every location and modality, found none for {missing[0]}")
        return channels


def load_seed_experiment(path: Path, overrides: Mapping[str, object]) -> SeedExperiment | None:
    """Return the experiment in a YAML file of the seed's; None where the file is none of those.

    Args:
        path: the file.
        overrides: keys of the file, such as `model_variant`, that are to have other values.

    Raises:
        ExperimentError: the file cannot be read or has mistakes; the message has a line for each.
    """
    document = read_document(path)
    if not is_seed_config(document.value):
        return None
    assert isinstance(document.value, dict)
    seed, mistakes = _checked({**document.value, **overrides}, path.stem)
    if seed is None or document.problems:
        raise ExperimentError(all_sentences(located(str(path), document, mistakes)))
    experiment = with_absolute_files(seed.experiment, path)
    return replace(seed, experiment=experiment, config=_with_index_files(seed.config, experiment.data))


def _with_index_files(config: Mapping[str, object], data: DataSettings) -> dict[str, object]:
    """Return a configuration whose index files do not depend on the folder that it lies in."""
    key = next(key for key in _TASKS if key in config)
    files = {"train_index_file": data.train, "val_index_file": data.validation, "test_index_file": data.test}
    task = config[key]
    assert isinstance(task, Mapping)
    return {**config, key: {**task, **{name: str(file) for name, file in files.items() if file is not None}}}


def seed_experiment_from_mapping(config: Mapping[Any, Any], name: str, where: str) -> SeedExperiment:
    """Return the experiment in the `config` of a checkpoint of the seed's; it comes from a stranger.

    Args:
        config: it may hold anything; keys that mean nothing to us are not looked at.
        name: of the experiment.
        where: names the place in errors.

    Raises:
        ExperimentError: there are mistakes; the message has a line for each.
    """
    model = config.get("model")
    wanted = {*_KEYS, model} if isinstance(model, str) else _KEYS
    plain, unreadable = plain_values({key: value for key, value in config.items() if key in wanted})
    assert isinstance(plain, dict)
    seed, mistakes = _checked(plain, name)
    mistakes = unreadable + mistakes
    if seed is None or mistakes:
        raise ExperimentError(all_sentences(sentence(where, mistake.path, mistake.what) for mistake in mistakes))
    return seed


def _checked(config: dict[str, Any], name: str) -> tuple[SeedExperiment | None, list[Mistake]]:
    """Return what a configuration says or None, and all mistakes, their paths as they are written there."""
    gathered = _Gathered.of(config)
    try:
        seed = _Seed.model_validate(gathered.canonical)
    except ValidationError as error:
        more = mistakes_in(error, lambda _path: ())
        return None, gathered.mistakes + [replace(mistake, path=gathered.as_written(mistake.path)) for mistake in more]
    if gathered.mistakes:
        return None, gathered.mistakes
    options = gathered.canonical["method"]["bitwidth_options"] if seed.method is not None else ()
    return SeedExperiment(
        experiment=_experiment(seed, name, gathered.method_name), options=tuple(options), config=config
    ), []


@dataclass
class _Gathered:
    """The settings under the names that `_Seed` has.

    Attributes:
        canonical: the settings.
        written: where those stand that have another name here.
        mistakes: what is wrong already.
        method_name: of the quantization method in use.
    """

    canonical: dict[str, Any]
    written: dict[str, KeyPath] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    method_name: str = "none"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "_Gathered":
        gathered = cls({key: config[key] for key in _Seed.model_fields.keys() & config.keys() - {"method", "enable"}})
        variant = "model" if config.get("model_variant") is None else "model_variant"
        gathered.take("variant", config, variant)
        gathered.take("task", config, next((key for key in _TASKS if key in config), _TASKS[0]))
        if isinstance(config.get("model"), str) and config["model"] in config:
            gathered.take("architecture", config, config["model"])
        quantization = config.get("quantization")
        if isinstance(quantization, dict):
            gathered.take("enable", quantization, "enable", ("quantization",))
            if quantization.get("enable") is True:
                gathered._take_method(config, quantization)
        elif quantization is not None:
            gathered._wrong(("quantization",), f"expected a mapping of keys, found {found(quantization)}")
        gathered._take_random_bitwidths(config, quantization if isinstance(quantization, dict) else {})
        return gathered

    def take(self, name: str, mapping: Mapping[str, Any], key: str, place: KeyPath = ()) -> None:
        """Take a value over under the name it has here, if it is there."""
        self.written[name] = (*place, key)
        if key in mapping:
            self.canonical[name] = mapping[key]

    def as_written(self, path: KeyPath) -> KeyPath:
        """Return where a setting stands in the configuration."""
        return (*self.written.get(str(path[0]), path[:1]), *path[1:])

    def _wrong(self, path: KeyPath, what: str) -> None:
        self.mistakes.append(Mistake(path=path, what=what))

    def _take_method(self, config: Mapping[str, Any], quantization: Mapping[str, Any]) -> None:
        """Take the method in use: under its name, or, as the seed had it at first, directly under quantization."""
        name = config.get("quantization_method")
        methods = [
            key for key, value in quantization.items() if isinstance(value, dict) and "bitwidth_options" in value
        ]
        methods = [key for key in methods if not key.startswith("random_bitwid")]  # which may restrict the options
        place: KeyPath = ("quantization",)
        method: Any = quantization
        if "bitwidth_options" not in quantization:
            if name is None and len(methods) == 1:
                name = methods[0]
            if name not in methods:
                known = f"one of {', '.join(map(shown, methods))}" if methods else "a method under quantization"
                self._wrong(("quantization_method",), f"expected {known}, found {found(name)}")
                return
            place, method = ("quantization", str(name)), quantization[name]
        self.method_name = str(name) if isinstance(name, str) else "any_precision"
        self.written["method"] = place
        taken = {key: method[key] for key in MethodSettings.model_fields if method.get(key) is not None}
        if taken.get("training_method") != "joint_quantization" and "bitwidth" not in taken:
            # Which of them a vanilla training is at is not written; all of them can be run at.
            taken["training_method"] = "joint_quantization"
        if taken.get("validation_function") not in get_args(ValidationFunction):
            taken["validation_function"] = "simple_validation"  # the seed's others are ways of training, too
        self.canonical["method"] = taken
        self.take("joint_quantization_batch_size", method, "joint_quantization_batch_size", place)
        batch_norm = method.get("bn_type", quantization.get("bn_type", "float"))
        if batch_norm != "float":
            self._wrong(
                (*place, "bn_type"),
                f"expected 'float', found {found(batch_norm)}; "
                "other batch norms of the seed's are evaluated as your own model",
            )
        convolution = method.get("Conv", quantization.get("Conv", "QuanConv"))
        if convolution not in _CONVOLUTIONS:
            known = ", ".join(_CONVOLUTIONS)
            self._wrong(
                (*place, "Conv"),
                f"expected one of {known}, found {found(convolution)}; "
                "other layers of the seed's are evaluated as your own model",
            )
        elif convolution == "QuanConvNoWeightNorm":
            taken["sat_weight_normalization"] = False

    def _take_random_bitwidths(self, config: Mapping[str, Any], quantization: Mapping[str, Any]) -> None:
        """Take the number of configurations from where the seed document or its code has it."""
        self.canonical.pop("random_bitwidths", None)
        for mapping, place in ((config, ()), (quantization, ("quantization",))):
            for key in ("random_bitwidths", "random_bitwidhts"):  # both are spelled in the seed's files
                drawn = mapping.get(key)
                for number in ("num_bitwidths", "number_of_configs"):
                    if isinstance(drawn, dict) and number in drawn:
                        self.canonical["random_bitwidths"] = {"num_bitwidths": drawn[number]}
                        self.written["random_bitwidths"] = (*place, key)
                        return


def _experiment(seed: _Seed, name: str, method_name: str) -> Experiment:
    sensors = [(location, modality) for location in seed.location_names for modality in seed.modality_names]
    channels: dict[str, dict[str, int]] = {location: {} for location in seed.location_names}
    sizes: dict[str, dict[str, tuple[int, int]]] = {location: {} for location in seed.location_names}
    for location, modality in sensors:
        channels[location][modality] = seed.loc_mod_in_freq_channels[location][modality]
        bins = (seed.loc_mod_spectrum_len or {}).get(location, {}).get(modality)
        if bins is not None:
            sizes[location][modality] = (seed.num_segments, bins)
    known = all(modality in sizes[location] for location, modality in sensors)
    methods = {method_name: seed.method} if seed.method is not None else {}
    return Experiment(
        experiment=name,
        model=MultimodalModel.model_validate(
            {
                "name": seed.variant,
                "in_channels": channels,
                "fc_dim": seed.fc_dim,
                "num_classes": seed.task.num_classes,
                "input_sizes": sizes if known else None,
            }
        ),
        data=_data(seed),
        training=TrainingSettings(
            epochs=seed.architecture.lr_scheduler.train_epochs,
            batch_size=seed.batch_size,
            learning_rate=seed.architecture.optimizer.start_lr,
            weight_decay=seed.architecture.optimizer.weight_decay,
            configurations_per_batch=seed.joint_quantization_batch_size,
        ),
        quantization=QuantizationSettings.model_validate({"enable": bool(methods), **methods}),
        random_bitwidths=seed.random_bitwidths,
        quantization_method=method_name if methods else None,
    )


def _data(seed: _Seed) -> DataSettings:
    """Return where the samples are and what is made of them; an index that is not named is none."""
    task, normalization = seed.task, seed.normalization
    files = {"train": task.train_index_file, "validation": task.val_index_file, "test": task.test_index_file}
    return DataSettings.model_validate(
        {
            "source": "sample_index",
            **{split: Path(file) for split, file in files.items() if file},
            "locations": seed.location_names,
            "modalities": seed.modality_names,
            "label": None,
            "num_segments": seed.num_segments,
            "fft": True,
            "normalization": {
                "method": normalization.method.removesuffix("scaler"),
                "minmax_range": normalization.minmax_range,
            },
            "batch_size": seed.batch_size,
        }
    )
