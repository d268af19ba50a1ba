"""The section `data`: what the network is trained and evaluated on."""

import math
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationInfo, field_validator

from qbw_eval.mistakes import found
from qbw_eval.settings.kinds import Settings, Sides, list_as_tuple, printable_name
from qbw_eval.user_code import function_name
from qbw_eval.yaml_reader import UNREADABLE, shown
from schemas.errors import UsageError

_DATA_FILES: Final = (".pt", ".npz", ".safetensors")
TENSOR_FILES: Final = ".pt, .npz or .safetensors"
_PATHS: Final = {
    "tensors": f"the path of a {TENSOR_FILES} file",
    "image_folder": "the path of a folder",
    "sample_index": "the path of an index file, which lists a .pt file a line",
}
"""What a split names, by source."""


def _colours(value: object) -> object:
    if isinstance(value, list | tuple) and len(value) != 3:
        raise ValueError(f"expected three numbers, for red, green and blue, found a list of {len(value)}")
    return list_as_tuple(value)


def _text_as_path(value: object, info: ValidationInfo) -> object:
    source = info.data.get("source")  # absent where it is wrong itself, which is said already
    expected = _PATHS.get(str(source), "a path")
    if not isinstance(value, str | Path):
        raise ValueError(f"expected {expected}, found {found(value)}")
    path = Path(value)
    if not str(value) or "\0" in str(path) or (source == "tensors" and path.suffix not in _DATA_FILES):
        hint = _OTHER_SOURCES.get(path.suffix, "") if path.name else ""
        raise ValueError(f"expected {expected}, found {shown(str(value))}{hint if source == 'tensors' else ''}")
    return path


_OTHER_SOURCES: Final = {
    "": "; for a folder of images say source: image_folder",
    ".txt": "; for an index of samples say source: sample_index",
}
"""What may have been meant with a file of such an ending."""


def _text_as_folder(value: object) -> object:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError(f"expected the path of a folder, found {found(str(value) if value == Path() else value)}")
    return Path(value)


def _all_different(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names):
        raise ValueError(f"expected names, each once, found {', '.join(map(shown, names)) or 'an empty list'}")
    return names


def _plain_arguments(value: object) -> object:
    """Return a mapping of names to what both YAML and JSON can say.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping of keys, found {found(value)}")
    inner: list[object] = [value]
    while inner:
        part = inner.pop()
        if isinstance(part, dict):
            odd = [key for key in part if not isinstance(key, str)]
            if odd:
                raise ValueError(f"expected names as keys, found {found(odd[0])}")
            inner += part.values()
        elif isinstance(part, list):
            inner += part
        elif not (part is None or part is UNREADABLE or type(part) in (str, bool, int)) and not (
            type(part) is float and math.isfinite(part)
        ):
            raise ValueError(f"expected text, finite numbers, true, false, lists and mappings, found {found(part)}")
    return value


Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
DataPath = Annotated[Path, BeforeValidator(_text_as_path, json_schema_input_type=str)]
FolderPath = Annotated[Path, BeforeValidator(_text_as_folder, json_schema_input_type=str)]
Place = Annotated[str, AfterValidator(printable_name)]
Places = Annotated[tuple[Place, ...], BeforeValidator(list_as_tuple), AfterValidator(_all_different)]

_SPLIT_PATH: Final = (
    f"tensors: {TENSOR_FILES} file; image_folder: folder; sample_index: index file; "
    "relative to the experiment file's folder"
)
# There is no default: with other values than those of the training, a network is evaluated on other inputs, and
# nothing but a lower accuracy says so.
_NEEDED: Final = {
    "size": "the height and width of the network's inputs in pixels; torchvision's networks take 224 (and resize: 256)",
    "mean": "what the network was trained with; ImageNet's is [0.485, 0.456, 0.406], none is [0, 0, 0]",
    "std": "what the network was trained with; ImageNet's is [0.229, 0.224, 0.225], none is [1, 1, 1]",
    "normalization": "the method that the network was trained with (standard, minmax, maxabs or none)",
    "factory": "a function of your own as package.module:function",
}

_SOURCE_OF: Final = {
    **dict.fromkeys(("size", "resize", "mean", "std"), "image_folder"),
    **dict.fromkeys(
        ("root", "locations", "modalities", "label", "num_segments", "fft", "normalization"), "sample_index"
    ),
    **dict.fromkeys(("factory", "arguments"), "factory"),
}
"""The only source that a key goes with."""

NormalizationMethod = Literal["standard", "minmax", "maxabs", "none"]


class NormalizationSettings(Settings):
    """How raw samples are normalized, each location and modality by itself."""

    method: NormalizationMethod = Field(
        description="standard: less the mean, divided by the standard deviation; minmax: from minmax_range[0] to "
        "minmax_range[1]; maxabs: divided by the largest absolute value; all of these are those of the training "
        "samples; none: as they are"
    )
    minmax_range: Annotated[tuple[float, float], BeforeValidator(list_as_tuple)] = Field(
        default=(0.0, 1.0), description="minmax only: what the smallest and the largest training value become"
    )

    @field_validator("minmax_range")
    @classmethod
    def _goes_up(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if not ends[0] < ends[1]:
            raise ValueError(f"expected a smaller and a larger number, found [{ends[0]:g}, {ends[1]:g}]")
        return ends


class DataSettings(Settings):
    """What the network is trained and evaluated on."""

    source: Literal["digits", "tensors", "image_folder", "sample_index", "factory"] = Field(
        description="digits: scikit-learn's handwritten digits, no download; tensors: files with inputs and labels; "
        "image_folder: folders that hold a folder of images for each class; sample_index: files that list .pt files "
        "of a sample each, nested by location and modality; factory: a function of your own"
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
    root: FolderPath | None = Field(
        default=None,
        description="sample_index only: the folder in which paths of the index are looked for that are not there as "
        "written, such as those of another machine; relative to the experiment file's folder",
    )
    locations: Places | None = Field(
        default=None, description="sample_index only: the locations to take, in this order; all if left out"
    )
    modalities: Places | None = Field(
        default=None,
        description="sample_index only: the modalities to take of every location, in this order; all if left out",
    )
    label: Place | None = Field(
        default=None,
        description="sample_index only: the key of the class number where a sample's label is a dict; if left out, "
        "vehicle_type or the only key",
    )
    num_segments: int | None = Field(
        default=None,
        ge=1,
        le=2**20,
        description="sample_index only: how many segments a sample of fewer than three dimensions is cut into",
    )
    fft: bool | None = Field(
        default=None,
        description="sample_index only: whether samples become real and imaginary part of their complex spectrum, "
        "as channels; true if left out",
    )
    normalization: NormalizationSettings | None = Field(
        default=None, description="sample_index only: how raw samples are normalized, before segments and spectrum"
    )
    factory: Annotated[str, AfterValidator(function_name)] | None = Field(
        default=None,
        description="factory only: package.module:function, called as function(split=..., **arguments); it returns "
        "an iterable of batches (inputs, labels)",
    )
    arguments: Annotated[dict[str, Any], BeforeValidator(_plain_arguments)] | None = Field(
        default=None, description="factory only: what the function is called with, beside split"
    )
    batch_size: int = Field(default=256, ge=1, le=65536, description="samples a batch when evaluating")
    _folder: Path | None = PrivateAttr(default=None)

    @property
    def paths(self) -> dict[str, Path]:
        """What is named on the disk, by key."""
        named = {key: getattr(self, key) for key in ("train", "validation", "test", "root")}
        return {key: path for key, path in named.items() if path is not None}

    @property
    def folder(self) -> Path | None:
        """The experiment file's, where a factory's module is looked for first."""
        return self._folder

    def in_folder(self, folder: Path) -> "DataSettings":
        """Return these settings as an experiment file in `folder` holds them: paths are relative to it.

        Not resolved: a link (git-annex, DVC) may lead to a file without the ending that says what it holds.
        """
        data = self.model_copy(update={key: folder / path for key, path in self.paths.items()})
        data._folder = folder if self.source == "factory" else None
        return data

    def below(self, root: Path | None) -> "DataSettings":
        """Return the settings with another `root`, where it is not None.

        Raises:
            UsageError: the source has none.
        """
        if root is None:
            return self
        if self.source != "sample_index":
            raise UsageError(f"--data-root: goes with the source 'sample_index' only, the data are {self.source!r}")
        return self.model_copy(update={"root": root.absolute()})

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # pydantic's own fails at `arguments`, a dict

    @field_validator("train", "validation", "test")
    @classmethod
    def _some_have_no_files(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        source = info.data.get("source")
        if path is not None and source in ("digits", "factory"):
            raise ValueError(
                f"the source {source!r} takes no file; leave this key out, or did you mean source: tensors?"
            )
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

    @field_validator(*_SOURCE_OF)
    @classmethod
    def _each_source_has_keys_of_its_own(cls, value: object, info: ValidationInfo) -> object:
        source, key = info.data.get("source"), str(info.field_name)
        if value is not None and source not in (None, _SOURCE_OF[key]):
            raise ValueError(f"goes with source {_SOURCE_OF[key]!r} only; leave it out")
        if value is None and source == _SOURCE_OF[key] and key in _NEEDED:
            raise ValueError(f"this key is missing: the source {source!r} needs {_NEEDED[key]}")
        return value

    @field_validator("resize")
    @classmethod
    def _the_centre_is_inside(cls, resize: int | None, info: ValidationInfo) -> int | None:
        size = info.data.get("size")
        if resize is not None and size is not None and resize < size:
            raise ValueError(f"expected at least data.size, which is {size}, found {resize}")
        return size if resize is None else resize

    @field_validator("fft")
    @classmethod
    def _spectra_unless_told(cls, fft: bool | None, info: ValidationInfo) -> bool | None:
        return True if fft is None and info.data.get("source") == "sample_index" else fft

    @field_validator("normalization")
    @classmethod
    def _fitted_on_training_samples(
        cls, settings: NormalizationSettings | None, info: ValidationInfo
    ) -> NormalizationSettings | None:
        no_train = "train" in info.data and info.data["train"] is None
        if settings is not None and settings.method != "none" and no_train and info.data.get("source"):
            raise ValueError(
                f"the method {settings.method!r} is fitted on the training samples; name their index with data.train"
            )
        return settings
