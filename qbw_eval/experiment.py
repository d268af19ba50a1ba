"""The experiment file: YAML -> frozen, checked settings, with every mistake reported at once.

The keys of the seed document keep their names and meaning. One experiment can be written in several ways
(`model: resnet8` for `model: {name: resnet8}`, `random_bitwidths` at top level or under `quantization`,
`number_of_configs` for `num_bitwidths`); all of them become one spelling before anything is checked, and errors still
name what was written.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from qbw_eval.mistakes import Mistake, all_sentences, found, mistakes_in, sentence
from qbw_eval.plain_values import plain_values
from qbw_eval.settings.data import DataSettings, NormalizationSettings
from qbw_eval.settings.kinds import MAX_NAME_BYTES, Name, Settings
from qbw_eval.settings.model import MODEL_KINDS, AnyModel, FactoryModel, kind_of_model
from qbw_eval.settings.quantization import LEFT_TO_THE_LAYERS, MethodSettings, QuantizationSettings, RandomBitwidths
from qbw_eval.settings.training import TrainingSettings
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

OWN_METHOD: Final = "layers"
"""What the only method is called where a file names no more than bitwidth options, beside its factory."""

_MISSING: Final = "this key is missing"


class ExperimentError(UsageError):
    """An experiment that cannot be meant as written; a line per mistake."""


class Experiment(Settings):
    """An experiment: a network, data, how to train, how to quantize and what to evaluate."""

    experiment: Name = Field(
        default="experiment",
        description="name of the experiment; the file's name without its ending if left out",
        json_schema_extra={"minLength": 1, "maxLength": MAX_NAME_BYTES},
    )
    model: AnyModel = Field(description="the network")
    data: DataSettings = Field(description="what it is trained and evaluated on")
    training: TrainingSettings = Field(
        default_factory=TrainingSettings, description="how `qbw-eval train` makes checkpoints"
    )
    quantization: QuantizationSettings = Field(
        default=LEFT_TO_THE_LAYERS,
        description="whether and how it is quantized; may be left out where model names a factory",
    )
    random_bitwidths: RandomBitwidths = Field(
        default_factory=RandomBitwidths, description="the random configurations at which it is evaluated"
    )
    quantization_method: str | None = Field(
        default=None, description="the method to use; needed where there are several"
    )

    @field_validator("quantization")
    @classmethod
    def _ours_needs_quantizers(cls, quantization: QuantizationSettings, info: ValidationInfo) -> QuantizationSettings:
        model = info.data.get("model")  # absent where it is wrong itself; then _checked looks at what is written
        if quantization is LEFT_TO_THE_LAYERS and model is not None and not isinstance(model, FactoryModel):
            raise ValueError(_MISSING)
        return quantization

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
        """The bitwidths that every quantized layer offers, ascending; only 32 where quantization is disabled.

        None at all where only the layers of somebody's own network know them; see `with_options`.
        """
        if self.quantization is LEFT_TO_THE_LAYERS:
            return ()
        return (32,) if self.method is None else self.method.bitwidth_options

    @property
    def trained_bitwidths(self) -> tuple[int, ...]:
        """The bitwidths that layers are trained at, ascending: the options, or the only one of vanilla training."""
        alone = None if self.method is None else self.method.bitwidth
        return self.layer_options if alone is None else (alone,)

    def with_options(self, options: tuple[int, ...]) -> "Experiment":
        """Return the experiment with bitwidth options that it left to the layers."""
        method = MethodSettings(bitwidth_options=options)
        quantization = QuantizationSettings.model_validate({OWN_METHOD: method})
        return self.model_copy(update={"quantization": quantization, "quantization_method": OWN_METHOD})

    def as_mapping(self) -> dict[str, object]:
        """Return plain JSON values, which `experiment_from_mapping` turns back into an equal experiment."""
        left_out = {"quantization"} if self.quantization is LEFT_TO_THE_LAYERS else None
        return self.model_dump(mode="json", exclude=left_out)


class WithoutNetwork(Settings):
    """An experiment file that leaves the network to the checkpoint; its keys are those of `Experiment`."""

    experiment: Name = "experiment"
    data: DataSettings
    random_bitwidths: RandomBitwidths = Field(default_factory=RandomBitwidths)

    def with_network_of(self, experiment: Experiment) -> Experiment:
        """Return `experiment` with all that this file says in place of its own."""
        return experiment.model_copy(update={name: getattr(self, name) for name in type(self).model_fields})


_Kind = TypeVar("_Kind", Experiment, WithoutNetwork)

_NO_CODE: Final = (
    "names code to run, which QBW runs only where you name it yourself; "
    "if you trust it, copy the model section into a file and give that with --config"
)

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
    document = read_document(path)
    if quantization_method is None:
        return _in_document(document, path, Experiment)
    return _in_document(document, path, Experiment, {"quantization_method": quantization_method})


def load_evaluation_file(path: Path) -> Experiment | WithoutNetwork:
    """Return what `load_experiment` does, or what the file says where it leaves the network to the checkpoint.

    Raises:
        ExperimentError: the file cannot be read or has mistakes; the message has a line for each.
    """
    document = read_document(path)
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
        raise ExperimentError(all_sentences(located(str(path), document, mistakes)))
    return with_absolute_files(settings, path)


def experiment_from_mapping(config: Mapping[str, object], where: str, data: DataSettings | None = None) -> Experiment:
    """Return the experiment in `config`, as `Experiment.as_mapping` wrote it or a file could hold it.

    `config` comes from a checkpoint, so from a stranger: it may hold anything. What would run code is refused.

    Args:
        config: the settings.
        where: names the place in errors.
        data: what the user says in place of its data, which then do not matter.

    Raises:
        ExperimentError: there are mistakes; the message has a line for each.
    """
    plain, unreadable = plain_values(config)
    mapping, mistakes = _mapping_in(plain)
    experiment: Experiment | None = None
    if mapping is not None and kind_of_model(mapping.get("model")) == "factory":
        mistakes = [Mistake(path=("model", "factory"), what=_NO_CODE)]
    elif mapping is not None:
        experiment, mistakes = _checked(mapping if data is None else {**mapping, "data": data}, Experiment)
    mistakes = unreadable + mistakes
    if experiment is not None and data is None and experiment.data.source == "factory":
        mistakes.append(Mistake(path=("data", "source"), what=_NO_FACTORY))
    if experiment is None or mistakes:
        raise ExperimentError(all_sentences(sentence(where, mistake.path, mistake.what) for mistake in mistakes))
    return experiment


_NO_FACTORY: Final = (
    "'factory' runs a function of somebody's own, which no checkpoint may ask for; "
    "if you trust it, name the data in a file of yours, with --config"
)


def experiment_json_schema() -> dict[str, Any]:
    """Return the JSON schema of the experiment file, every accepted spelling included, for editors.

    Rules that span several settings are beyond it; `load_experiment` and `load_evaluation_file` know them all.
    """
    schema = Experiment.model_json_schema()
    definitions, keys = schema["$defs"], schema["properties"]
    del definitions["MultimodalModel"]  # which only the seed's own files can say
    names = definitions["ModelSettings"]["properties"]["name"]
    kinds = [{"$ref": f"#/$defs/{kind.__name__}"} for kind in MODEL_KINDS.values()]
    keys["model"] = {"anyOf": [names, *kinds], "description": keys["model"]["description"]}
    # A file without a network; see WithoutNetwork. One with a factory may leave quantization to the layers.
    schema["required"] = ["data"]
    del keys["quantization"]["default"]
    says_something_of_networks = {"anyOf": [{"required": [key]} for key in sorted(_OF_NETWORKS)]}
    has_a_factory = {"properties": {"model": {"type": "object", "required": ["factory"]}}, "required": ["model"]}
    schema["anyOf"] = [{"required": ["model", "quantization"]}, has_a_factory, {"not": says_something_of_networks}]
    # The other spellings; see _one_spelling.
    definitions["FactoryModel"]["properties"]["bitwidth_options"] = {
        **definitions["MethodSettings"]["properties"]["bitwidth_options"],
        "description": "the bitwidths to draw from, where there is no section quantization; those that all layers "
        "offer (their attribute bitwidth_options) if left out",
    }
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


def read_document(path: Path) -> Document:
    """Return the YAML file at `path`, read but not checked.

    Raises:
        ExperimentError: it cannot be read.
    """
    return read_yaml(_bytes_of(path))


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
        more += _missing_quantization(canonical, error, kind)
        more = [replace(mistake, path=_without_kind(mistake.path)) for mistake in more]
        return None, mistakes + [replace(mistake, path=_as_written(mistake.path, written)) for mistake in more]
    return (None if mistakes else settings), mistakes


def _without_kind(path: KeyPath) -> KeyPath:
    """Return the path of a setting without the kind of model, which pydantic notes in it."""
    return path[:1] + path[2:] if path[:1] == ("model",) else path


def _missing_quantization(config: dict[str, object], error: ValidationError, kind: type[Settings]) -> list[Mistake]:
    """Return that the section is missing, where a mistake in `model` kept pydantic from seeing whether it may be."""
    wrong = {detail["loc"][:1] for detail in error.errors(include_url=False)}
    if kind is not Experiment or ("model",) not in wrong or "quantization" in config:
        return []
    if kind_of_model(config.get("model")) == "factory":
        return []
    return [Mistake(path=("quantization",), what=_MISSING)]


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
    elif isinstance(model, dict) and kind_of_model(model) == "factory" and "bitwidth_options" in model:
        config["model"] = {key: value for key, value in model.items() if key != "bitwidth_options"}
        short: KeyPath = ("model", "bitwidth_options")
        if "quantization" in config:
            what = "stands beside a section quantization, which has bitwidth_options of its own; keep one of the two"
            mistakes.append(Mistake(path=short, what=what, at_key=True))
        else:
            config["quantization"] = {OWN_METHOD: {"bitwidth_options": model["bitwidth_options"]}}
            written["quantization", OWN_METHOD, "bitwidth_options"] = short

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
        case ("model", str() as kind):
            others = {"network": ["factory"], "factory": ["bitwidth_options"]}
            return [*MODEL_KINDS[kind].model_fields, *others[kind]]
        case ("data",):
            return list(DataSettings.model_fields)
        case ("data", _):
            return list(NormalizationSettings.model_fields)
        case ("training",):
            return list(TrainingSettings.model_fields)
        case _:
            return list(Experiment.model_fields)


def located(where: str, document: Document, mistakes: list[Mistake]) -> list[str]:
    """Return a sentence per problem and mistake, in the order of the file."""
    lines = [(problem.position, problem.path, problem.what) for problem in document.problems]
    lines += [(_position_of(mistake, document), mistake.path, mistake.what) for mistake in mistakes]
    lines.sort(key=lambda entry: entry[0])
    return [sentence(f"{where}:{line}:{column}", path, what) for (line, column), path, what in lines]


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


def with_absolute_files(settings: _Kind, path: Path) -> _Kind:
    """Return the settings in the file at `path` with the files that they name looked for beside it.

    Raises:
        ExperimentError: no checkpoint could say where that is.
    """
    folder = path.parent.absolute()
    if settings.data.paths and not is_encodable(str(folder)):
        raise ExperimentError(f"{path}: its folder's name is not UTF-8, so no checkpoint could say where the data is")
    update: dict[str, object] = {"data": settings.data.in_folder(folder)}
    if isinstance(settings, Experiment) and isinstance(settings.model, FactoryModel):
        update["model"] = settings.model.in_folder(folder)
    return settings.model_copy(update=update)


def _named(names: list[str]) -> str:
    return ", ".join([shown(name) for name in names[:20]] + ["..."] * (len(names) > 20))
