"""The round trip of a recommendation: what is predicted to be best within a budget, evaluated, against uniform bits.

python -m benchmarks.recommendation         a line a figure: the demo's network (examples/digits.yaml), trained anew
"""

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.demo import train_demo
from benchmarks.figures import Figure
from qbw_eval.cli import cli as qbw_eval
from qbw_report.budget import parse_budget
from qbw_report.commands import recommend_from
from qbw_report.recommend import Recommendation, file_text

BUDGETS = ("avg_bitwidth<=3", "avg_bitwidth<=4.5", "relative_bit_ops<=0.25")
CONFIGS = 64


def round_trip(
    checkpoint: Path, records: Path, budgets: Sequence[str] = BUDGETS, configs: int = CONFIGS
) -> list[Recommendation]:
    """Evaluate a checkpoint, recommend a configuration within each budget, evaluate these, and recommend again.

    Every budget stands alone; all recommendations are made before the first of them is evaluated.

    Args:
        checkpoint: one file.
        records: a folder of its own.
        budgets: as `qbw-report recommend --budget` takes them.
        configs: how many configurations are drawn.
    """
    _evaluate(checkpoint, records, "--num-configs", str(configs))
    for number, recommended in enumerate(_recommended(records, budgets)):
        path = records.parent / f"recommended_{number}.json"
        path.write_text(file_text(recommended), encoding="utf-8")
    for number in range(len(budgets)):
        _evaluate(checkpoint, records, "--configurations", str(records.parent / f"recommended_{number}.json"))
    return _recommended(records, budgets)


def _recommended(records: Path, budgets: Sequence[str]) -> list[Recommendation]:
    return [recommend_from(records, [parse_budget(budget)], None) for budget in budgets]


def _evaluate(checkpoint: Path, records: Path, *words: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        qbw_eval(["run", str(checkpoint), "--records", str(records), "--quiet", *words], standalone_mode=False)


def recommendation_figures() -> list[Figure]:
    """How many points the recommendation is better than the best uniform configuration within three budgets.

    The network is the demo's, trained as `make demo` does but for fewer configurations that are validated on the way.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Path(folder) / "checkpoints"
        checkpoints.mkdir()
        found = round_trip(train_demo(checkpoints), Path(folder) / "records")
    return [
        Figure(
            figure=f"recommended less best uniform configuration, {recommended.budgets[0]}, the demo's network",
            values=[100 * points_better(recommended)],
            unit="points",
            at_least=0,
        )
        for recommended in found
    ]


def points_better(found: Recommendation) -> float:
    """Return by how much accuracy the recommended configuration is measured to beat the best uniform one, as a share.

    NaN where one of them is not measured.
    """
    if found.best_uniform is None:
        return float("nan")
    return found.best_predicted.measured - found.best_uniform.measured


if __name__ == "__main__":
    for figure in recommendation_figures():
        print(figure.line(), flush=True)
