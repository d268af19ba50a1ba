"""The section `data`: what the network is trained and evaluated on."""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from qbw_eval.mistakes import found
from qbw_eval.settings.kinds import Settings, Sides, list_as_tuple
from qbw_eval.yaml_reader import shown

_DATA_FILES: Final = (".pt", ".npz", ".safetensors")
TENSOR_FILES: Final = ".pt, .npz or .safetensors"
_PATHS: Final = {"tensors": f"the path of a {TENSOR_FILES} file", "image_folder": "the path of a folder"}
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
        hint = "" if path.suffix or not path.name else "; for a folder of images say source: image_folder"
        raise ValueError(f"expected {expected}, found {shown(str(value))}{hint if source == 'tensors' else ''}")
    return path


Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
DataPath = Annotated[Path, BeforeValidator(_text_as_path, json_schema_input_type=str)]

_SPLIT_PATH: Final = f"tensors: {TENSOR_FILES} file; image_folder: folder; relative to the experiment file's folder"
# There is no default: with other values than those of the training, a network is evaluated on other inputs, and
# nothing but a lower accuracy says so.
_NEEDED_FOR_IMAGES: Final = {
    "size": "the height and width of the network's inputs in pixels; torchvision's networks take 224 (and resize: 256)",
    "mean": "what the network was trained with; ImageNet's is [0.485, 0.456, 0.406], none is [0, 0, 0]",
    "std": "what the network was trained with; ImageNet's is [0.229, 0.224, 0.225], none is [1, 1, 1]",
}


class DataSettings(Settings):
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
