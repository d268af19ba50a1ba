"""What is done to the raw samples of a sample index: normalized, cut into segments, turned into spectra.

Pure functions on batches, in this order; each is elementwise or along the last axis, so that a sample's result does not
depend on the batch that it is in.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from qbw_eval.settings.data import NormalizationSettings

_TINY: Final = 1e-8
"""What is smaller is no scale to divide by; 1 is taken instead."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What is known of the values of one location and modality over many samples, in float64.

    Invariants: `count > 0`; `minimum <= mean <= maximum`, but for rounding; `squares >= 0`.

    Attributes:
        count: how many values.
        mean: their mean.
        squares: the sum of their squared distances from the mean.
        minimum: the smallest.
        maximum: the largest.
    """

    count: int
    mean: float
    squares: float
    minimum: float
    maximum: float

    @property
    def std(self) -> float:
        """The standard deviation, unbiased as torch's; 1 where it is below 1e-8 or there is but one value."""
        return 1.0 if self.count < 2 else _scale((self.squares / (self.count - 1)) ** 0.5)

    @property
    def value_range(self) -> float:
        """Largest less smallest; 1 where that is below 1e-8."""
        return _scale(self.maximum - self.minimum)

    @property
    def max_abs(self) -> float:
        """The largest absolute value; 1 where that is below 1e-8."""
        return _scale(max(abs(self.minimum), abs(self.maximum)))


def _scale(value: float) -> float:
    return 1.0 if value < _TINY else value


def moments_of(values: Tensor) -> Moments:
    """Return the moments of a tensor of any shape with at least one value.

    >>> moments_of(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    Moments(count=4, mean=3.0, squares=14.0, minimum=1.0, maximum=6.0)
    """
    # NumPy's sums run in one thread, whatever torch is told, so that a fit is the same bits everywhere on a machine.
    array: np.ndarray[Any, np.dtype[np.float64]] = values.numpy().astype(np.float64)
    mean = float(array.mean())
    return Moments(
        count=array.size,
        mean=mean,
        squares=float(np.square(array - mean).sum()),
        minimum=float(array.min()),
        maximum=float(array.max()),
    )


def merged(one: Moments, other: Moments) -> Moments:
    """Return the moments of both together (Chan, Golub and LeVeque 1979): no large sums are subtracted.

    >>> merged(moments_of(torch.tensor([1.0, 2.0])), moments_of(torch.tensor([3.0, 6.0])))
    Moments(count=4, mean=3.0, squares=14.0, minimum=1.0, maximum=6.0)
    """
    count, apart = one.count + other.count, other.mean - one.mean
    return Moments(
        count=count,
        mean=one.mean + apart * (other.count / count),
        squares=one.squares + other.squares + apart * apart * (one.count * other.count / count),
        minimum=min(one.minimum, other.minimum),
        maximum=max(one.maximum, other.maximum),
    )


def normalized(values: Tensor, settings: NormalizationSettings, moments: Moments | None) -> Tensor:
    """Return float32 values normalized by the moments of the training samples.

    Args:
        values: float32 of any shape.
        settings: the method.
        moments: of the same location and modality; needed unless the method is none.
    """
    if settings.method == "none":
        return values
    assert moments is not None, "every other method is fitted"
    match settings.method:
        case "standard":
            return (values - moments.mean) / moments.std
        case "minmax":
            low, high = settings.minmax_range
            return (values - moments.minimum) / moments.value_range * (high - low) + low
        case "maxabs":
            return values / moments.max_abs


def segmented(batch: Tensor, num_segments: int | None) -> Tensor:
    """Return a batch of four dimensions as it is, one of fewer as (batch, 1, num_segments, -1).

    Raises:
        ValueError: a sample has more than three dimensions, or cannot be cut into so many segments; says what it has.

    >>> segmented(torch.zeros(2, 12), 3).shape
    torch.Size([2, 1, 3, 4])
    """
    shape = tuple(batch.shape[1:])
    if batch.ndim > 4:
        raise ValueError(f"a sample of shape {shape}; expected (channels, segments, values) or fewer dimensions")
    if batch.ndim == 4:
        return batch
    if num_segments is None:
        raise ValueError(
            f"a sample of shape {shape}, which has no segments; expected (channels, segments, values), "
            "or data.num_segments, which says how many to cut it into"
        )
    if batch[0].numel() % num_segments:
        raise ValueError(
            f"a sample of shape {shape}, whose {batch[0].numel()} values cannot be cut into data.num_segments: "
            f"{num_segments}"
        )
    return batch.reshape(len(batch), 1, num_segments, -1)


def spectrum(batch: Tensor) -> Tensor:
    """Return real and imaginary part of the complex spectrum along the last axis, as channels.

    Args:
        batch: (b, c, i, s) float32.

    Returns:
        (b, 2c, i, s) float32; channel 2k is the real part of channel k, 2k + 1 its imaginary part.

    >>> spectrum(torch.tensor([[[[1.0, 2.0]]]])).abs().tolist()
    [[[[3.0, 1.0]], [[0.0, 0.0]]]]
    """
    parts = torch.view_as_real(torch.fft.fft(batch))  # (b, c, i, s, 2)
    return parts.permute(0, 1, 4, 2, 3).flatten(1, 2)
