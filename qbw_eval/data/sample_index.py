"""An index of samples -> inputs by location and modality, and labels: normalized, cut into segments, as spectra."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from qbw_eval.data.errors import DataError, printable
from qbw_eval.data.normalization import Fit, fitted
from qbw_eval.data.room import check_room
from qbw_eval.data.samples import SampleReader, Values, fetched, read_index
from qbw_eval.data.transforms import normalized, segmented, spectrum
from qbw_eval.nested import bytes_of
from qbw_eval.settings.data import DataSettings
from qbw_eval.yaml_reader import shown


def read_sample_index(
    settings: DataSettings, name: str, indices: Mapping[str, Path], limit: int | None, beside: Path | None
) -> tuple[Values, Tensor]:
    """Return the inputs and labels of a split.

    Args:
        settings: everything that goes with the source `sample_index`.
        name: which of the indices is read.
        indices: of all splits; normalization is fitted on that of `train`.
        limit: how many of the first samples are read; all where it is None or larger.
        beside: where fits are kept (see `normalization.fitted`).

    Returns:
        {location: {modality: (N, channels, segments, values) float32}}, channels twice as many as those of the samples
        where they become spectra; and (N,) int64.

    Raises:
        CheckpointError: a file cannot be read (the first in order is named).
        DataError: an index or a sample cannot be used, or they need more memory than there is.
    """
    index = read_index(indices[name], settings.root, f"data.{name}")
    files = index.files[:limit]
    with _one_thread():
        fit = _fit(settings, indices, beside)
        reader = SampleReader(settings)
        inputs: Values = {}
        labels: list[int] = []
        for position, file in enumerate(fetched(files)):
            values, label = reader.read(file)
            sample = _preprocessed(values, settings, fit, file)
            if not inputs:
                check_room(
                    len(files) * bytes_of(sample), f"{printable(index.path)}: {len(files):,} samples", "fewer (--limit)"
                )
                inputs = _room_for(len(files), sample)
            for location, modalities in sample.items():
                for modality, tensor in modalities.items():
                    inputs[location][modality][position] = tensor[0]
            labels.append(reader.label(label, file))
    return inputs, torch.tensor(labels)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch compute in one thread in the block: samples are small, and MKL's spectra differ with the number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit(settings: DataSettings, indices: Mapping[str, Path], beside: Path | None) -> Fit | None:
    assert settings.normalization is not None, "the settings have been checked"
    if settings.normalization.method == "none":
        return None
    return fitted(settings, read_index(indices["train"], settings.root, "data.train"), beside)


def _preprocessed(values: Values, settings: DataSettings, fit: Fit | None, file: Path) -> Values:
    """Return a batch of the one sample as the network takes it: tensors (1, channels, segments, values)."""
    assert settings.normalization is not None
    result: Values = {}
    for location, modalities in values.items():
        result[location] = {}
        for modality, tensor in modalities.items():
            where = f"{printable(file)}: data[{shown(location)}][{shown(modality)}]"
            moments = None if fit is None else fit.get(location, {}).get(modality)
            if fit is not None and moments is None:
                raise DataError(f"{where}: the samples of data.train, which normalization is fitted on, have none")
            batch = normalized(tensor.unsqueeze(0), settings.normalization, moments)
            try:
                batch = segmented(batch, settings.num_segments)
            except ValueError as error:
                raise DataError(f"{where}: {error}") from None
            if settings.fft:
                batch = spectrum(batch)
            if not bool(batch.isfinite().all()):
                raise DataError(f"{where}: its values are too large to be normalized or turned into a spectrum")
            result[location][modality] = batch
    return result


def _room_for(count: int, sample: Values) -> Values:
    return {
        location: {modality: tensor.new_empty((count, *tensor.shape[1:])) for modality, tensor in modalities.items()}
        for location, modalities in sample.items()
    }
