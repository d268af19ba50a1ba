"""Answers: what is told, how sure it is, and when it cannot be told."""

import math
from typing import Any

import pandas as pd
import pytest
from simulated_records import row, table_of

from qbw_report.bins import add_bins
from qbw_report.insight.answers import Answers, answer, sampling_noise, sentences
from qbw_report.insight.thresholds import DEFAULTS, Thresholds
from qbw_report.insight.trend import read_correlation
from qbw_report.series import add_series
from schemas.records import hash_of


def rows_of(*measured: tuple[list[int], int], num_samples: int = 1000, epoch: int = 0, **others: Any) -> pd.DataFrame:
    """Return rows of (bits, correct)."""
    records = [
        row(bits, correct, num_samples=num_samples, epoch=epoch, config_index=index, **others)
        for index, (bits, correct) in enumerate(measured)
    ]
    return add_bins(add_series(table_of(records).to_pandas()))


RISING = (([2, 2], 600), ([2, 4], 800), ([4, 4], 945), ([4, 8], 950), ([8, 8], 955))
MORE = (*RISING, ([2, 2], 610), ([2, 8], 946), ([4, 2], 790), ([8, 4], 952))


def told(*measured: tuple[list[int], int], **others: Any) -> Answers:
    return answer(rows_of(*measured, **others))


def test_fewest_bits_within_the_tolerance_of_the_best() -> None:
    answers = told(*RISING)
    assert (answers.best.avg_bitwidth, answers.best.accuracy) == (8.0, 0.955)
    assert answers.lowest is not None
    assert (answers.lowest.avg_bitwidth, answers.lowest.accuracy, answers.lowest.bitwidths) == (4.0, 0.945, (4, 4))


def test_exactly_the_tolerance_worse_is_within_it() -> None:
    assert 38 / 300 - 0.01 > 35 / 300  # a hair, because of how floats are rounded; 35 of 300 must count all the same
    answers = told(([2], 10), ([3], 20), ([4], 35), ([6], 36), ([8], 38), num_samples=300)
    assert answers.lowest is not None
    assert answers.lowest.bitwidths == (4,)


def test_a_smaller_tolerance_asks_for_more_bits() -> None:
    lowest = answer(rows_of(*RISING), Thresholds(tolerance=0.009)).lowest
    assert lowest is not None
    assert lowest.avg_bitwidth == 6.0


def test_of_equally_accurate_configurations_the_one_with_fewer_bits_is_best() -> None:
    answers = told(([8, 8], 900), ([4, 4], 900), ([2, 2], 100), ([2, 4], 500), ([4, 8], 800))
    assert answers.best.bitwidths == (4, 4)


def test_only_the_last_epoch_is_read() -> None:
    first = rows_of(*RISING, epoch=3)
    last = rows_of(*((bits, correct // 2) for bits, correct in RISING), epoch=11)
    answers = answer(pd.concat([last, first]))
    assert (answers.epoch, answers.best.accuracy) == (11, 0.477)


@pytest.mark.parametrize(
    ("correlation", "reading"),
    [
        (1.0, "strong positive"),
        (0.7, "strong positive"),
        (0.69, "positive"),
        (0.3, "positive"),
        (0.29, "flat"),
        (0.0, "flat"),
        (-0.29, "flat"),
        (-0.3, "negative"),
        (-1.0, "negative"),
        (math.nan, "flat"),
    ],
)
def test_readings(correlation: float, reading: str) -> None:
    assert read_correlation(correlation, DEFAULTS) == reading


@pytest.mark.parametrize(
    ("accuracy", "samples", "points"),
    [(0.9, 500, 2.6), (0.9, 2_000, 1.3), (0.9, 10_000, 0.6)],  # facts.md, section 5
)
def test_sampling_noise_is_the_published_one(accuracy: float, samples: int, points: float) -> None:
    assert round(100 * sampling_noise(accuracy, samples), 1) == points


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_a_perfect_score_is_not_a_certain_one(accuracy: float) -> None:
    assert 0.001 < sampling_noise(accuracy, 360) < 0.01


def test_sentences() -> None:
    measured = [(bits, 10 * correct) for bits, correct in MORE]
    best, lowest = (hash_of({"bitwidths": bits})[:8] for bits in ([8, 8], [4, 4]))
    assert sentences(told(*measured, num_samples=10_000)) == [
        "demo, epoch 1: accuracy rises with bitwidth (strong positive correlation, r = 0.84, 9 configurations).",
        f"Best accuracy: 0.9550 ± 0.0041 at 8.00 bits on average (configuration {best}); "
        "± is the 95% sampling noise of 10,000 samples.",
        f"Fewest bits within 1 point of the best: 0.9450 ± 0.0045 at 4.00 bits on average (configuration {lowest}).",
        "Where more bits stop paying cannot be told: 9 configurations measured, at least 12 needed; "
        "evaluate about 3 more.",
    ]


def test_noise_above_the_tolerance_is_said_with_the_samples_it_would_take() -> None:
    assert sentences(told(*RISING))[-1] == (
        "The noise (± 1.4 points) is larger than the 1 point asked about; evaluate about 2,100 samples to be sure."
    )
    assert sentences(answer(rows_of(*RISING), Thresholds(tolerance=0.005)))[-1] == (
        "The noise (± 1.4 points) is larger than the 0.5 points asked about; evaluate about 7,400 samples to be sure."
    )


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        ([300] * 9, "accuracy hardly depends on bitwidth (flat, every accuracy is equal, 9 "),
        ([500, 501, 499, 501, 500, 501, 500, 499, 500], "accuracy hardly depends on bitwidth (flat, r = -0.03, 9 "),
        (
            [900, 800, 700, 600, 500, 890, 650, 790, 600],
            "accuracy falls with bitwidth (negative correlation, r = -0.99, 9 ",
        ),
        (
            [500, 525, 630, 570, 600, 457, 634, 577, 620],
            "accuracy tends to rise with bitwidth (positive correlation, r = 0.68, 9 ",
        ),
    ],
)
def test_trends_in_words(accuracies: list[int], words: str) -> None:
    measured = zip([bits for bits, _ in MORE], accuracies, strict=True)
    assert sentences(told(*measured))[0].startswith(f"demo, epoch 1: {words}")


def test_a_sign_that_is_not_known_is_not_told_but_what_it_takes_is() -> None:
    trend = told(*zip([bits for bits, _ in RISING], [500, 560, 700, 510, 640], strict=True)).trend
    assert trend.reading == "cannot tell"
    assert trend.unknown.startswith("r = 0.33, 95% interval -0.")
    assert trend.more > 5
    assert trend.unknown.endswith(f"; evaluate about {trend.more} more")


@pytest.mark.parametrize(
    ("measured", "why"),
    [
        (RISING[:1], "1 configuration measured, at least 5 needed"),
        (RISING[:4], "4 configurations measured, at least 5 needed"),
        ([([2, 4], c) for c in range(500, 505)], "every configuration averages 3.0 bits"),
    ],
)
def test_cannot_tell(measured: list[tuple[list[int], int]], why: str) -> None:
    answers = told(*measured)
    assert (answers.trend.reading, answers.lowest) == ("cannot tell", None)
    lines = sentences(answers)
    assert lines[0] == f"demo, epoch 1: cannot tell whether accuracy follows bitwidth ({why})."
    assert lines[1].startswith("Best accuracy: ")
    assert lines[2:] == list(answers.cautions)
