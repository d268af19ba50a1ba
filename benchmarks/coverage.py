"""How often the report's 95% intervals cover the truth, and its readings find it, on simulated configurations.

python -m benchmarks.coverage [TRIALS]      a line a figure; 1,000 trials unless told (some ten minutes)
"""

import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from benchmarks.figures import Figure
from benchmarks.simulated_curves import LOWEST, OPTIONS, SHAPES, Shape, network, right_samples
from qbw_report.additive import Additive, fit_additive
from qbw_report.correlation import pearson_interval, spearman_interval
from qbw_report.insight.curve import Fitted, fit_curve
from qbw_report.insight.stability import beyond_noise, pooled_spread
from qbw_report.masks import compare_right, mean_difference
from qbw_report.sensitivity import rank_layers

TRIALS = 1000
CONFIGS = 64
LAYERS = 12
ROWS_PER_LAYER_OPTION = 10
_CHANCE = 0.02
_NEAR = 0.5
"""A plateau is found where its beginning is, to half a bit."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """How often something held.

    Attributes:
        name: what.
        hits: how often it held.
        trials: of so many.
        at_least: the share that was asked for.
        at_most: likewise; None where more is better.
    """

    name: str
    hits: int
    trials: int
    at_least: float
    at_most: float | None = None

    def figure(self) -> Figure:
        """Return it as a figure of `make bench`.

        The bounds are for 1,000 trials, where chance moves a share of 95% by two points once in 300 times. With fewer
        it moves it further, and the bounds are as much wider.
        """
        wider = _CHANCE * max(math.sqrt(TRIALS / max(self.trials, 1)) - 1, 0)
        return Figure(
            figure=f"{self.name}, {self.trials} trials",
            values=[self.hits / max(self.trials, 1)],
            unit="of trials",
            at_least=round(self.at_least - wider, 3),
            at_most=None if self.at_most is None else round(min(self.at_most + wider, 1.0), 3),
        )


def _covered(name: str, hits: int, trials: int) -> Share:
    return Share(name=f"95% interval covers: {name}", hits=hits, trials=trials, at_least=0.93, at_most=0.97)


def curve_shares(name: str, shape: Shape, trials: int) -> Iterator[Share]:
    """Yield how often correlations, knee, plateau and lowest cost of one shape are right.

    Every other trial spreads configurations evenly over the range, as the stratified sampler does.
    """
    random = np.random.default_rng([trials, *name.encode()])
    pearson, spearman = shape.correlations()
    knee, lowest = shape.knee, shape.lowest_cost
    counts: Counter[str] = Counter()
    for trial in range(trials):
        stratified = trial % 2 == 1
        x, y = shape.draw(CONFIGS, random, stratified=stratified)
        strata = x if stratified else None
        p, s = pearson_interval(x, y, strata), spearman_interval(x, y, strata)
        counts["pearson"] += p.low <= pearson <= p.high
        counts["spearman"] += s.low <= spearman <= s.high
        found = fit_curve(x, y, shape.tolerance, random)
        assert isinstance(found, Fitted)
        # An interval that begins at the lowest cost measured says "there or below".
        low = LOWEST if found.enough[1] <= x.min() else found.enough[1]
        counts["lowest cost"] += low <= lowest <= found.enough[2]
        has_knee = not np.isnan(found.knee[0])
        counts["has knee"] += has_knee
        counts["knee"] += has_knee and found.knee[1] <= knee <= found.knee[2]
        if shape.plateau is not None:
            is_plateau = has_knee and found.gain[0] < shape.tolerance
            counts["plateau"] += is_plateau and abs(found.knee[0] - shape.plateau) <= _NEAR
    yield _covered(f"Pearson, {name}", counts["pearson"], trials)
    yield _covered(f"Spearman, {name}", counts["spearman"], trials)
    lowest_covered = _covered(f"lowest sufficient cost, {name}", counts["lowest cost"], trials)
    # Where the truth is the end of the range, an interval can only be too short at its other end.
    yield lowest_covered if lowest > LOWEST else replace(lowest_covered, at_most=None)
    if shape.has_knee:
        yield _covered(f"knee where one is reported, {name}", counts["knee"], counts["has knee"])
    else:
        yield Share(name=f"no knee, {name}", hits=trials - counts["has knee"], trials=trials, at_least=0.95)
    if shape.plateau is not None:
        yield Share(name=f"plateau found to half a bit, {name}", hits=counts["plateau"], trials=trials, at_least=0.95)


def sensitivity_shares(trials: int) -> Iterator[Share]:
    """Yield how often effects and predictions are covered, and layers are ranked right."""
    random = np.random.default_rng([trials, 1])
    rows = ROWS_PER_LAYER_OPTION * LAYERS * len(OPTIONS)
    counts: Counter[str] = Counter()
    for _ in range(trials):
        true = network(LAYERS, random)
        bits, accuracy = true.draw(rows, random)
        model = fit_additive(bits, accuracy, OPTIONS)
        assert isinstance(model, Additive)
        layer, place = random.integers(LAYERS), random.integers(2)
        effect = true.effects[layer, place]
        counts["effect"] += model.low[layer, place] <= effect <= model.high[layer, place]
        new_bits, new = true.draw(1, random)
        predicted, half = model.predict(new_bits)
        counts["prediction"] += abs(predicted[0] - new[0]) <= half[0]
        ranks = np.empty(LAYERS)
        ranks[rank_layers(model)] = np.arange(LAYERS)
        counts["rank"] += spearmanr(ranks, true.effects[:, 0]).statistic >= 0.95
    yield _covered("effect of a layer's option", counts["effect"], trials)
    yield _covered("accuracy of a new configuration", counts["prediction"], trials)
    yield Share(
        name=f"layers ranked with Spearman 0.95 or more ({ROWS_PER_LAYER_OPTION} rows per layer and option)",
        hits=counts["rank"],
        trials=trials,
        at_least=0.95,
    )


def stability_shares(trials: int) -> Iterator[Share]:
    """Yield how often the spread beyond the samples' noise is covered."""
    random = np.random.default_rng([trials, 2])
    bins, each, samples, spread = 12, 4, 500, 0.01
    hits = 0
    for _ in range(trials):
        level = np.repeat(np.linspace(0.8, 0.95, bins), each)
        right = right_samples(level + random.normal(0, spread, bins * each), samples, random)
        rows = pd.DataFrame(
            {
                "bitwidth_bin": np.repeat(np.arange(bins), each),
                "accuracy": right.mean(axis=1),
                "correct": right.sum(axis=1),
                "num_samples": samples,
                "data_id": "data",
                "correct_mask": [np.packbits(row, bitorder="little").tobytes() for row in right],
            }
        )
        pooled = pooled_spread(rows)
        assert pooled is not None
        _, low, high = beyond_noise(pooled)
        hits += low <= spread <= high
    yield _covered("spread beyond the samples' noise", hits, trials)


def paired_shares(trials: int) -> Iterator[Share]:
    """Yield how often differences on the same samples are covered: of one configuration, and of the mean of 16."""
    random = np.random.default_rng([trials, 3])
    samples, configs, difference = 500, 16, 0.02
    single, mean = 0, 0
    for _ in range(trials):
        accuracies = random.uniform(0.8, 0.93, configs)
        right = right_samples(np.concatenate([accuracies + difference, accuracies]), samples, random)
        paired = compare_right(right[0], right[configs])
        single += paired.low <= difference <= paired.high
        per_sample = (right[:configs].sum(axis=0).astype(float) - right[configs:].sum(axis=0)) / configs
        _, low, high, _ = mean_difference(per_sample)
        mean += low <= difference <= high
    yield _covered("difference of one configuration, same samples", single, trials)
    yield _covered("mean difference of 16 configurations, clustered by sample", mean, trials)


def all_shares(trials: int) -> Iterator[Share]:
    """Yield everything."""
    yield from sensitivity_shares(trials)
    yield from stability_shares(trials)
    yield from paired_shares(trials)
    for name, shape in SHAPES.items():
        yield from curve_shares(name, shape, trials)


if __name__ == "__main__":
    for share in all_shares(int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS):
        print(share.figure().line(), flush=True)
