"""An index of samples, and the samples it lists: one .pt file each, nested by location and modality.

    {"data": {location: {modality: tensor}}, "label": {"vehicle_type": 3}}

Indices hold paths, often absolute ones of the machine where somebody wrote them; `root` stands in for what differs.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from qbw_eval.checkpoints.safe_load import is_file, load_torch_file, open_without_waiting
from qbw_eval.data.errors import DataError, described, printable
from qbw_eval.data.labels import label_of_sample
from qbw_eval.settings.data import DataSettings
from qbw_eval.yaml_reader import shown

MAX_INDEX: Final = 2**28
"""Bytes of an index."""

MAX_SAMPLES: Final = 1_000_000
"""Lines of an index; as many samples in as many files would take hours to read."""

_MAX_LINE: Final = 4096  # bytes, Linux's PATH_MAX
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")  # no name has such, but a file that means to write on a terminal
_ENDINGS: Final = (".pt", ".pth")

# Unpickling holds the interpreter's lock, and torch's allow-list is the process's: 2,000 samples in memory take one
# thread 1.7 s, two 2.4 s, four 2.7 s. Waiting for a disk is another thing: at 5 ms a file one thread takes 14 s, and
# 2.6 s where eight others have read the files before it.
_STRIP: Final = 64
_FETCHERS: Final = 8
_SLOW_S: Final = 0.002
_SMALL: Final = 2**22  # bytes; for larger files it is not the waiting that takes the time

Values = dict[str, dict[str, Tensor]]
"""Tensors of one sample by location and modality."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """An index that was read.

    Attributes:
        path: the file.
        content: its bytes.
        files: the samples in its order, where they are here; at least one.
    """

    path: Path
    content: bytes
    files: tuple[Path, ...]


# --- which files ------------------------------------------------------------------------------------------------------


def read_index(path: Path, root: Path | None, key: str) -> Index:
    """Return what an index file lists.

    Where the first file is not there as written, the shortest beginning of its path whose replacement by `root` leads
    to a file is replaced, in all paths alike: so no two of them, in different folders, can become one.

    Args:
        path: the index; one that is not there is looked for below `root` in the same way.
        root: the folder that stands in for another machine's; None for none.
        key: the setting that names the index, in errors.

    Raises:
        DataError: there is no such index, or it lists no files, or the first of them is not there, or another path
            does not begin like it.
    """
    found = _below_root(path, root)
    if found is None:
        beside = "" if root is None else f", nor is it below data.root ({printable(root)})"
        raise DataError(
            f"{printable(path)}: no such file{beside}; {key} must name an index file, which lists .pt files"
        )
    content = _bytes_of(found)
    listed = _paths_in(content, found)
    return Index(path=found, content=content, files=_located(listed, found, root))


def _below_root(path: Path, root: Path | None) -> Path | None:
    """Return the path, or the longest end of it that is a file below `root`; None where there is none."""
    if is_file(path):
        return path
    if root is None:
        return None
    ends = (root.joinpath(*path.parts[first:]) for first in range(int(path.is_absolute()), len(path.parts)))
    return next((end for end in ends if is_file(end)), None)


def _bytes_of(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=open_without_waiting) as file:  # Path.open has no opener
            content = file.read(MAX_INDEX + 1) or b""  # nothing where it would have to be waited for
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror})") from None
    if len(content) > MAX_INDEX:
        raise DataError(f"{printable(path)}: is larger than {MAX_INDEX // 2**20} MiB; is it an index, a path a line?")
    return content


def _paths_in(content: bytes, index: Path) -> list[Path]:
    """Return the paths as they are written."""
    if content.count(b"\n") > MAX_SAMPLES:  # before a line is looked at: paths take forty times the memory
        raise DataError(
            f"{printable(index)}: has more than {MAX_SAMPLES:,} lines; is it an index of samples? Split it into several"
        )
    paths = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        text = os.fsdecode(line.strip())
        if not text:
            continue
        if len(line) > _MAX_LINE or _CONTROL.search(line.strip()) or not text.endswith(_ENDINGS):
            raise DataError(f"{printable(index)}:{number}: expected the path of a .pt file, found {shown(text[:200])}")
        paths.append(Path(text))
    if not paths:
        raise DataError(f"{printable(index)}: lists no files; expected the path of a .pt file a line")
    return paths


def _located(listed: Sequence[Path], index: Path, root: Path | None) -> tuple[Path, ...]:
    """Return where the files are: as written, relative to the index or to `root`, or with their beginning replaced."""
    first, folder = listed[0], index.parent
    if is_file(folder / first):  # which is `first` itself where that is absolute
        return tuple(folder / path for path in listed)
    if root is not None:
        for count in range(len(first.parts)):
            if is_file(root / Path(*first.parts[count:])) and not (count == 0 and first.is_absolute()):
                return tuple(_replaced(path, first.parts[:count], root, index) for path in listed)
    where = f"in {printable(folder)}" if not first.is_absolute() else "there"
    remedy = (
        "name the folder that holds the samples here with data.root"
        if root is None
        else f"no end of its path is a file below data.root ({printable(root)}) either"
    )
    raise DataError(f"{printable(index)}: the first file it lists, {shown(str(first))}, is not {where}; {remedy}")


def _replaced(path: Path, beginning: tuple[str, ...], root: Path, index: Path) -> Path:
    if path.parts[: len(beginning)] != beginning or (path.is_absolute() and not beginning):
        raise DataError(
            f"{printable(index)}: data.root replaces {shown(str(Path(*beginning)))}, as the first file needs it, and "
            f"{shown(str(path))} does not begin with that; list files below one folder"
        )
    return root.joinpath(*path.parts[len(beginning) :])


# --- what is in them --------------------------------------------------------------------------------------------------


def fetched(files: Sequence[Path]) -> Iterator[Path]:
    """Yield the files in order; where reading one takes long, those that follow were read ahead by several threads."""
    for first in range(0, len(files), _STRIP):
        strip = files[first : first + _STRIP]
        started = time.perf_counter()
        _fetch(strip[0])
        if time.perf_counter() - started > _SLOW_S:
            with ThreadPoolExecutor(_FETCHERS) as pool:
                list(pool.map(_fetch, strip[1:]))
        yield from strip


def _fetch(file: Path) -> None:
    """Have the system keep a small file in memory; what is wrong with it is said when it is loaded."""
    with suppress(OSError):
        if is_file(file) and file.stat().st_size <= _SMALL:
            with open(file, "rb", opener=open_without_waiting) as opened:  # Path.open has no opener
                opened.read()


class SampleReader:
    """Reads samples that all have the locations, modalities and shapes of the first one read.

    Attributes:
        settings: locations, modalities and label are used.
    """

    def __init__(self, settings: DataSettings) -> None:
        self.settings = settings
        self._first: tuple[Path, Values] | None = None

    def read(self, file: Path) -> tuple[Values, object]:
        """Return a sample's values (float32, finite) and its label as it is in the file.

        Raises:
            CheckpointError: it is no file of tensors.
            DataError: it is not there, is no sample, has other locations, modalities or shapes than the first, or
                values that are NaN or infinite.
        """
        if not is_file(file):
            raise DataError(f"{printable(file)}: no such file; its index lists it")
        content = load_torch_file(file).content
        if not isinstance(content, Mapping) or not isinstance(content.get("data"), Mapping) or "label" not in content:
            found = _keys(content) if isinstance(content, Mapping) else described(content)
            raise DataError(
                f"{printable(file)}: expected a dict with 'data' ({{location: {{modality: tensor}}}}) and 'label', "
                f"found {found}"
            )
        values = self._values(content["data"], file)
        if self._first is None:
            self._first = file, values
        return values, content["label"]

    def label(self, label: object, file: Path) -> int:
        """Return the class number in the label of a file's sample.

        Raises:
            DataError: there is none.
        """
        return label_of_sample(label, self.settings.label, printable(file))

    def _values(self, data: Mapping[object, object], file: Path) -> Values:
        first = {} if self._first is None else self._first[1]
        locations = self._chosen(data, self.settings.locations, first, "locations", file, "data")
        values: Values = {}
        for location in locations:
            inner, where = data[location], f"data[{shown(location)}]"
            if not isinstance(inner, Mapping):
                raise DataError(
                    f"{printable(file)}: {where}: expected a dict of a tensor per modality, found {described(inner)}"
                )
            known = first.get(location, {})
            modalities = self._chosen(inner, self.settings.modalities, known, "modalities", file, where)
            values[location] = {
                modality: self._tensor(inner[modality], known.get(modality), file, f"{where}[{shown(modality)}]")
                for modality in modalities
            }
        return values

    def _chosen(
        self,
        found: Mapping[object, object],
        asked: tuple[str, ...] | None,
        first: Mapping[str, object],
        what: str,
        file: Path,
        where: str,
    ) -> list[str]:
        """Return which keys to take, in order: those asked for, or those of the first sample, or all."""
        if asked is not None:
            missing = [name for name in asked if name not in found]
            if missing:
                raise DataError(
                    f"{printable(file)}: {where}: data.{what} asks for {missing[0]!r}, found {_keys(found)}"
                )
            return list(asked)
        if first:
            if found.keys() != first.keys():
                raise DataError(
                    f"{printable(file)}: {where}: expected the {what} {_keys(first)}, as {self._first_name()} has, "
                    f"found {_keys(found)}"
                )
            return list(first)
        names = [name for name in found if isinstance(name, str)]
        if not names or len(names) < len(found):
            raise DataError(f"{printable(file)}: {where}: expected {what} by name, found {_keys(found)}")
        return names

    def _tensor(self, tensor: object, first: Tensor | None, file: Path, where: str) -> Tensor:
        """Return a checked tensor as float32."""
        if not isinstance(tensor, Tensor) or tensor.is_complex() or tensor.dtype == torch.bool or not tensor.numel():
            raise DataError(f"{printable(file)}: {where}: expected a tensor of real numbers, found {described(tensor)}")
        if first is not None and tensor.shape != first.shape:
            raise DataError(
                f"{printable(file)}: {where}: expected shape {tuple(first.shape)}, as in {self._first_name()}, "
                f"found {tuple(tensor.shape)}"
            )
        # One that wants a gradient was saved as such, and so was one whose sign torch put off changing.
        tensor = tensor.detach().resolve_neg().float().contiguous()
        if not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            raise DataError(f"{printable(file)}: {where}: {count} values are NaN or infinite; take it out of the index")
        return tensor

    def _first_name(self) -> str:
        assert self._first is not None
        return printable(self._first[0])


def _keys(mapping: Mapping[Any, Any]) -> str:
    names = ", ".join(described(name) for name in list(mapping)[:20])
    return f"[{names}{', ...' if len(mapping) > 20 else ''}]"
