"""A folder of images, with a folder per class -> inputs and labels.

What torchvision's ImageFolder, Resize, CenterCrop, ToTensor and Normalize make of the same files, operation for
operation: sorted class names are the labels from 0, files come class by class in sorted order, a picture is decoded to
RGB, its shorter side scaled (bilinear, with antialiasing), its centre cut out, divided by 255 and normalized.

Images come from strangers. Every one is looked at before memory is claimed for its pixels, and one that is broken, too
large or of a kind whose pixels would have to be guessed is named. As in torchvision, transparency is left out, of an
animation the first picture is taken, and the orientation that a camera noted is not applied.
Beyond it: hidden files are passed over, and nothing else is.
"""

import os
import stat
import threading
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from qbw_eval.data.errors import DataError
from qbw_eval.data.labels import MOST_CLASSES
from qbw_eval.memory import free_memory
from qbw_eval.settings.data import DataSettings

if TYPE_CHECKING:
    from PIL import Image

_FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What people keep data sets in. Pillow knows four dozen more, some of which start other programs."""

_SUFFIXES: Final = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_MODES: Final = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
"""Pillow's modes of 8 bits a channel or fewer. It clips those of 16 and 32 at 255, which turns most pixels white."""

_MOST_PIXELS: Final = 2**30 // 4 // 3
"""Pillow's own limit (a quarter of a GiB in RGB), beyond which it warns of a decompression bomb; an error here."""

_LARGE: Final = 2**25
"""Pixels from which on images are decoded one at a time, so that many threads do not hold many large ones."""

_MOST_THREADS: Final = 16
_STRIP: Final = 32  # images a task: few enough to stop soon, many enough that a million images are no million tasks

_large_images = threading.Lock()


def read_image_folder(
    settings: DataSettings, name: str, folders: Mapping[str, Path], limit: int | None = None
) -> tuple[Tensor, Tensor, int]:
    """Return the inputs and labels of a split, and the number of classes.

    Args:
        settings: size, resize, mean and std are used.
        name: which of the folders is read.
        folders: of all splits. Where those of other splits are there, they must have the same classes.
        limit: how many of the first images are decoded; all where it is None or larger.

    Returns:
        (N, 3, size, size) float32, (N,) int64 and how many classes there are, also where `limit` leaves some out.

    Raises:
        DataError: there is no such folder, it is not one folder of images per class, an image cannot be used (the first
            in order is named), or the data need more memory than there is.
    """
    _check_pillow()
    folder, size = folders[name], settings.size
    assert size is not None, "the settings have been checked"
    class_names = _class_names(folder, name)
    _check_same_classes(class_names, name, folders)
    files, labels = _images_of(folder, class_names)
    files, labels = files[:limit], labels[:limit]
    _check_memory(folder, len(files), size)
    return _decoded(files, settings), torch.tensor(labels), len(class_names)


def _check_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401  # is it there?
    except ImportError:
        raise DataError("data.source: 'image_folder' needs Pillow; install it with: pip install 'qbw[eval]'") from None


# --- which images -----------------------------------------------------------------------------------------------------


def _class_names(folder: Path, name: str) -> list[str]:
    """Return the names of the class folders, sorted.

    Raises:
        DataError: there are fewer than two, or far too many, or an image lies beside them.
    """
    wanted = f"data.{name} must name a folder that holds a folder of images for each class"
    if not folder.is_dir():
        found = "is no folder" if folder.exists() else "no such folder"
        raise DataError(f"{_shown(folder)}: {found}; {wanted}")
    names: list[str] = []
    others: list[str] = []
    for entry in _entries(str(folder)):
        (names if _is_folder(entry) else others).append(entry.name)
    stray = min((other for other in others if other.lower().endswith(_SUFFIXES)), default=None)
    if stray is not None:
        raise DataError(f"{_shown(folder / stray)}: lies beside the folders of the classes; {wanted}")
    if not 2 <= len(names) <= MOST_CLASSES:
        raise DataError(f"{_shown(folder)}: holds {len(names):,} folders; {wanted}, 2 to {MOST_CLASSES:,} of them")
    return sorted(names)


def _check_same_classes(class_names: list[str], name: str, folders: Mapping[str, Path]) -> None:
    """Check that the other splits that are there number their classes alike."""
    for other, folder in folders.items():
        if other == name or not folder.is_dir():
            continue  # evaluating elsewhere than training is fine
        theirs = _class_names(folder, other)
        lacking, having, missing = name, other, sorted(set(theirs) - set(class_names))
        if not missing:
            lacking, having, missing = other, name, sorted(set(class_names) - set(theirs))
        if missing:
            raise DataError(
                f"{_shown(folders[lacking])}: data.{lacking} has no folder for the class {missing[0]!r}, which "
                f"data.{having} has; classes are numbered by their sorted names, so all splits must have the same"
            )


def _images_of(folder: Path, class_names: list[str]) -> tuple[list[str], list[int]]:
    """Return the paths of all images, class by class and sorted, and their labels."""
    files: list[str] = []
    labels: list[int] = []
    seen = {_identity(str(folder)): str(folder)}
    for label, class_name in enumerate(class_names):
        found = _files_below(str(folder / class_name), seen)
        if not found:
            raise DataError(
                f"{_shown(folder / class_name)}: the folder of a class holds no images; "
                "add some, or remove it from every split"
            )
        files += found
        labels += [label] * len(found)
    return files, labels


def _files_below(top: str, seen: dict[tuple[int, int], str]) -> list[str]:
    """Return the files in a folder and the folders in it, as `sorted(os.walk(top))` orders them.

    `seen` is added to: every folder met, by device and inode. Meeting one twice means that a link leads back (which
    would never end), or that images would have two labels.
    """
    files_of: dict[str, list[str]] = {}
    folders = [top]
    while folders:
        folder = folders.pop()
        earlier = seen.setdefault(_identity(folder), folder)
        if earlier != folder:
            raise DataError(f"{_shown(folder)}: leads to the same folder as {_shown(earlier)}; remove one of them")
        files_of[folder] = []
        for entry in _entries(folder):
            (folders if _is_folder(entry) else files_of[folder]).append(entry.path)
    return [file for folder in sorted(files_of) for file in sorted(files_of[folder])]


def _entries(folder: str) -> list["os.DirEntry[str]"]:
    """Return what is in a folder, but for what is hidden."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{_shown(folder)}: cannot be read ({error.strerror})") from None


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a folder (True) or a file (False), through links."""
    try:
        if entry.is_file():  # known from the folder itself, but for links
            return False
        mode = entry.stat().st_mode
    except OSError as error:
        raise DataError(
            f"{_shown(entry.path)}: cannot be read ({error.strerror}); a link that leads nowhere?"
        ) from None
    if not stat.S_ISDIR(mode):
        raise DataError(f"{_shown(entry.path)}: expected an image or a folder, found a pipe, socket or device")
    return True


def _identity(folder: str) -> tuple[int, int]:
    try:
        found = os.stat(folder)  # noqa: PTH116  # a million paths stay plain text
    except OSError as error:
        raise DataError(f"{_shown(folder)}: cannot be read ({error.strerror})") from None
    return found.st_dev, found.st_ino


# --- images -> inputs -------------------------------------------------------------------------------------------------


def _check_memory(folder: Path, count: int, size: int) -> None:
    """Check that the inputs fit into three quarters of what is free; the rest is for the network."""
    needed, limit = count * 3 * size * size * 4, free_memory(torch.device("cpu")) * 3 // 4
    if needed > limit:
        raise DataError(
            f"{_shown(folder)}: {count:,} images of 3x{size}x{size} need {_in_words(needed)} of memory, more than "
            f"{_in_words(limit)} (three quarters of what is free); use fewer (--limit), or a smaller data.size"
        )


def _decoded(files: list[str], settings: DataSettings) -> Tensor:
    """Return the images as inputs (N, 3, size, size), decoded by several threads: Pillow works outside the GIL."""
    assert settings.size is not None
    assert settings.resize is not None
    size, resize = settings.size, settings.resize
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (settings.mean, settings.std))
    inputs = torch.empty((len(files), 3, size, size))
    target = inputs.numpy()

    def decode(strip: Iterable[int]) -> None:
        for index in strip:
            image = target[index]
            image[...] = _read_image(files[index], size, resize).transpose(2, 0, 1)
            image /= 255
            image -= mean
            image /= std

    # What Pillow has to remark about a stranger's file is not for the user; what is wrong with it, we say.
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(_thread_count()) as pool:
        strips = [range(first, min(first + _STRIP, len(files))) for first in range(0, len(files), _STRIP)]
        tasks = [pool.submit(decode, strip) for strip in strips]
        try:
            for task in tasks:  # in order, so that the same image is named whichever thread was faster
                task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return inputs


def _thread_count() -> int:
    # What this process may use (a container, taskset), where the system tells.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _MOST_THREADS)


def _read_image(path: str, size: int, resize: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Return the (size, size, 3) pixels in the centre of an image whose shorter side is scaled to `resize`.

    Raises:
        DataError: it is no image, broken, too large, or of a kind that is not 8 bits a channel.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check_image(image, path, resize)
            with _large_images if image.width * image.height > _LARGE else nullcontext():
                image.info.pop("transparency", None)  # it is left out in any case, and Pillow would warn
                pixels = image.convert("RGB")
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{_shown(path)}: has more than {2 * _MOST_PIXELS:,} pixels; {_TOO_LARGE}") from None
    except UnidentifiedImageError:
        found = "something else" if os.path.getsize(path) else "an empty file"  # noqa: PTH202  # a path is plain text
        raise DataError(
            f"{_shown(path)}: expected an image ({', '.join(_FORMATS)}), found {found}; "
            "remove it, or hide it with a leading dot"
        ) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on crafted bytes
        reason = getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{_shown(path)}: cannot be decoded ({_shown(reason[:200])}); copy it again, or remove it"
        ) from None
    scaled = _scaled_size(pixels.size, resize)
    if scaled != pixels.size:
        pixels = pixels.resize(scaled, Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in scaled)  # ties to even, as in torchvision
    return np.asarray(pixels.crop((left, top, left + size, top + size)))


_TOO_LARGE: Final = f"the most is {_MOST_PIXELS:,}; a decompression bomb, or scale it down"


def _check_image(image: "Image.Image", path: str, resize: int) -> None:
    """Check what the header says, before any pixel is decoded."""
    if image.width * image.height > _MOST_PIXELS:
        raise DataError(f"{_shown(path)}: has {image.width} x {image.height} pixels; {_TOO_LARGE}")
    width, height = _scaled_size(image.size, resize)
    if width * height > _MOST_PIXELS:
        raise DataError(
            f"{_shown(path)}: has {image.width} x {image.height} pixels, "
            f"and {width} x {height} with the shorter side scaled to {resize}; {_TOO_LARGE}"
        )
    if image.mode not in _MODES:
        raise DataError(
            f"{_shown(path)}: has pixels of mode {image.mode}; expected 8 bits a channel (gray, palette, RGB, CMYK); "
            "convert it, so that its brightness need not be guessed"
        )


def _scaled_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Return width and height with the shorter side scaled to `shorter` and the longer one rounded down."""
    width, height = size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _in_words(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _shown(text: str | Path) -> str:
    """Return a stranger's text, such as a file's name, as one printable line."""
    return str(text) if str(text).isprintable() else repr(str(text))
