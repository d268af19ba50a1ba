"""Differences on the same samples: McNemar, noise and clusters against slow ones."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from qbw_report.insight.stability import pooled_spread
from qbw_report.masks import compare_right, holm, mcnemar_mid_p, mean_difference, noise_variance, right_samples


def rows_with_masks(right: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "num_samples": right.shape[1],
            "data_id": "data",
            "correct": right.sum(axis=1),
            "accuracy": right.mean(axis=1),
            "correct_mask": [np.packbits(row, bitorder="little").tobytes() for row in right],
        }
    )


def random_right(seed: int, configs: int = 6, samples: int = 203) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.asarray(random.random((configs, samples)) < random.random(samples))


def test_masks_come_back_as_they_were() -> None:
    right = random_right(0)
    found = right_samples(rows_with_masks(right))
    assert found is not None
    assert (found == right).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.assign(correct_mask=[None, *rows["correct_mask"][1:]]),
        lambda rows: rows.assign(correct=rows["correct"] - 1),
        lambda rows: rows.assign(num_samples=[*rows["num_samples"][:-1], 17]),
        lambda rows: rows.assign(data_id=["other", *rows["data_id"][1:]]),
        lambda rows: rows.assign(correct_mask=[mask[:-1] for mask in rows["correct_mask"]]),
    ],
)
def test_masks_that_are_missing_or_do_not_fit_are_none(change: object) -> None:
    assert right_samples(change(rows_with_masks(random_right(0)))) is None  # type: ignore[operator]  # a function


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 9), (20, 20), (40, 12)])
def test_mid_p_is_the_exact_p_without_half_of_what_was_seen(b: int, c: int) -> None:
    if b + c == 0:
        assert mcnemar_mid_p(b, c) == 1
        return
    seen = math.comb(b + c, b) / 2 ** (b + c)
    # Both tails hold what was seen; in the mid-p each counts it half.
    assert mcnemar_mid_p(b, c) == pytest.approx(binomtest(b, b + c).pvalue - seen)
    assert mcnemar_mid_p(c, b) == mcnemar_mid_p(b, c)


def test_a_difference_counts_the_samples_only_one_gets_right() -> None:
    first = np.array([True] * 60 + [True] * 20 + [False] * 5 + [False] * 15)
    second = np.array([True] * 60 + [False] * 20 + [True] * 5 + [False] * 15)
    found = compare_right(first, second)
    assert (found.only_first, found.only_second, found.difference) == (20, 5, 0.15)
    assert found.low < 0.15 < found.high
    assert found.p_value < 0.01


def test_noise_is_what_two_way_analysis_of_variance_leaves() -> None:
    right = random_right(3).astype(float)
    configs, samples = right.shape
    residuals = right - right.mean(axis=1, keepdims=True) - right.mean(axis=0) + right.mean()
    expected = (residuals**2).sum() / ((configs - 1) * (samples - 1)) / samples
    assert noise_variance(right.astype(bool)) == pytest.approx(expected)


def test_configurations_that_agree_on_every_sample_have_no_noise() -> None:
    assert noise_variance(np.tile(random_right(1)[:1], (4, 1))) == pytest.approx(0, abs=1e-15)


def test_a_mean_difference_counts_a_sample_once() -> None:
    right = random_right(5, configs=2).astype(float)
    per_sample = right[0] - right[1]
    once, many = mean_difference(per_sample), mean_difference(np.tile(per_sample, (9, 1)).mean(axis=0))
    assert once == pytest.approx(many)
    error = per_sample.std(ddof=1) / math.sqrt(len(per_sample))
    assert once[2] - once[1] == pytest.approx(2 * 1.959964 * error)
    assert mean_difference(np.zeros(5)) == (0.0, 0.0, 0.0, 1.0)


def test_holm() -> None:
    assert holm([0.01, 0.02, 0.5]).tolist() == pytest.approx([0.03, 0.04, 0.5])
    assert holm([]).tolist() == []


def test_spread_without_masks_takes_the_binomial_noise() -> None:
    rows = rows_with_masks(random_right(2, configs=8)).assign(bitwidth_bin=[2.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0, 4.0])
    with_masks = pooled_spread(rows)
    without = pooled_spread(rows.assign(correct_mask=None))
    assert with_masks is not None
    assert without is not None
    assert (with_masks.freedom, with_masks.by_mask, without.by_mask) == (5, True, False)
    groups = [group["accuracy"] for _, group in rows.groupby("bitwidth_bin") if len(group) > 1]
    assert with_masks.total == pytest.approx(sum((len(g) - 1) * g.var(ddof=1) for g in groups) / 5)
    expected = sum((len(g) - 1) * (g * (1 - g)).mean() / 203 for g in groups) / 5
    assert without.noise == pytest.approx(expected)
    assert pooled_spread(rows[-1:]) is None
