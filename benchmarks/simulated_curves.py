"""Configurations whose truth is known: accuracy as a function of cost, of five shapes, with noise."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata

from qbw_report.insight.curve import TOP_SHARE
from qbw_report.monotone import fit_two_lines

LOWEST, HIGHEST = 2.0, 8.0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How accuracy depends on the average bitwidth.

    Attributes:
        mean: bits -> expected accuracy.
        noise: bits -> standard deviation of one configuration's accuracy.
        knee: where two lines meet that describe it best; None where one line does.
        plateau: from which bitwidth on nothing is gained; None where something always is.
        tolerance: for the lowest sufficient cost.
    """

    mean: Callable[[np.ndarray], np.ndarray]
    noise: Callable[[np.ndarray], np.ndarray]
    has_knee: bool = True
    plateau: float | None = None
    tolerance: float = 0.01

    @property
    def lowest_cost(self) -> float:
        """The lowest cost at which the mean is within the tolerance of that of the upper fifth."""
        x = np.linspace(LOWEST, HIGHEST, 60_001)
        y = self.mean(x)
        top = y[x >= HIGHEST - TOP_SHARE * (HIGHEST - LOWEST)].mean()
        return float(x[np.argmax(y >= top - self.tolerance)])

    @property
    def knee(self) -> float:
        """Where the two lines meet that are closest to the mean."""
        x = np.linspace(LOWEST, HIGHEST, 4_001)
        points = np.linspace(LOWEST, HIGHEST, 1_201)[1:-1]
        return float(fit_two_lines(x, self.mean(x), np.ones((1, len(x))), points).knee[0])

    def correlations(self) -> tuple[float, float]:
        """Pearson's and Spearman's over very many configurations."""
        x, y = self.draw(400_000, np.random.default_rng(0), stratified=True)
        return tuple(float(np.corrcoef(a, b)[0, 1]) for a, b in ((x, y), (rankdata(x), rankdata(y))))  # type: ignore[return-value]  # two of them

    def draw(self, configs: int, random: np.random.Generator, *, stratified: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return costs and accuracies of so many configurations."""
        places = (np.arange(configs) + random.random(configs)) / configs if stratified else random.random(configs)
        x = LOWEST + (HIGHEST - LOWEST) * places
        return x, self.mean(x) + random.normal(0, 1, configs) * self.noise(x)


def _less_at_high_bits(x: np.ndarray) -> np.ndarray:
    return 0.008 * (1 + (HIGHEST - x) / 6)


SHAPES = {
    "monotone": Shape(mean=lambda x: 0.95 - 0.35 * np.exp((LOWEST - x) / 1.5), noise=_less_at_high_bits),
    "plateau": Shape(
        mean=lambda x: 0.95 - 0.1 * np.maximum(0, 4.5 - x), noise=lambda x: np.full_like(x, 0.008), plateau=4.5
    ),
    "noisy": Shape(
        mean=lambda x: 0.95 - 0.35 * np.exp((LOWEST - x) / 1.5),
        noise=lambda x: 6 * _less_at_high_bits(x),
        tolerance=0.03,
    ),
    "flat": Shape(mean=lambda x: np.full_like(x, 0.9), noise=lambda x: np.full_like(x, 0.015), has_knee=False),
    "two-regime": Shape(
        mean=lambda x: 0.95 - 0.12 * np.maximum(0, 4 - x) + 0.008 * np.maximum(0, x - 4),
        noise=lambda x: np.full_like(x, 0.015),
    ),
}


OPTIONS = (2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of which is known what each layer loses at each option.

    Attributes:
        effects: change of accuracy against 8 bits: (layers, options).
        noise: standard deviation of a measured accuracy.
    """

    effects: np.ndarray
    noise: float

    def draw(self, configs: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return bits (configs, layers), drawn independently, and accuracies (configs,)."""
        places = random.integers(len(OPTIONS), size=(configs, len(self.effects)))
        accuracy = 0.95 + self.effects[np.arange(len(self.effects)), places].sum(axis=1)
        return np.array(OPTIONS)[places], accuracy + random.normal(0, self.noise, configs)


def network(layers: int, random: np.random.Generator) -> Network:
    """Return a network whose layers lose from 0.1 to 5 points at 2 bits, a quarter of it at 4, in random order."""
    lost = random.permutation(np.geomspace(0.001, 0.05, layers))
    return Network(effects=-np.stack([lost, lost / 4, 0 * lost], axis=1), noise=0.004)


def right_samples(accuracies: np.ndarray, samples: int, random: np.random.Generator, shared: float = 0.7) -> np.ndarray:
    """Return which samples each configuration gets right: (configurations, samples) booleans.

    A sample is as hard for one configuration as for another but for what they do not share.

    Args:
        accuracies: true accuracy of each configuration.
        samples: how many.
        random: what chance is drawn with.
        shared: correlation of how hard a sample is to two configurations.
    """
    hard = random.normal(0, 1, samples)
    own = random.normal(0, 1, (len(accuracies), samples))
    hardness = np.sqrt(shared) * hard + np.sqrt(1 - shared) * own
    return np.asarray(hardness < norm.ppf(accuracies)[:, None])
