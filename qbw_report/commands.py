"""`qbw-report recommend` and `compare`: from what was asked to what is printed and written."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd

from qbw_report.bins import add_bins
from qbw_report.budget import Budget
from qbw_report.compare import Comparison, choose, compare
from qbw_report.frame import MOST_OF_THE_LAST, choose_epochs, count_epochs, look
from qbw_report.layers import read_layers
from qbw_report.recommend import Recommendation, recommend
from qbw_report.selection import last_epoch
from qbw_report.sensitivity import find_sensitivity, of_one_network
from qbw_report.strict_json import strict_json
from schemas.errors import QBWError, UsageError


def read_rows(records: Path, names: Sequence[str], *, skip_bad: bool) -> pd.DataFrame:
    """Return the rows of a records folder that are looked at, with `series` and `bitwidth_bin`.

    Args:
        records: the records folder.
        names: what somebody calls what they are about, as in `qbw_report.compare.choose`; the last epochs if empty.
        skip_bad: leave damaged parts out instead of refusing.

    Raises:
        UsageError: of many rows, nothing is called so.
        QBWError: as `qbw_report.frame.read_records`.
    """
    _, rows, _ = look(records, skip_bad=skip_bad, choose=partial(_named_epochs, names) if names else None)
    return add_bins(rows)


def _named_epochs(names: Sequence[str], cells: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    chosen, notes = choose_epochs(cells)
    if not notes:  # all rows are looked at
        return chosen, notes
    epochs = pd.concat([choose(cells, name)[1] for name in names])[["series", "epoch"]].drop_duplicates()
    counts = count_epochs(cells).merge(epochs)
    return counts.assign(share=(MOST_OF_THE_LAST / counts["rows"]).clip(upper=1.0)), notes


def recommend_from(
    records: Path, budgets: Sequence[Budget], name: str | None, *, skip_bad: bool = False
) -> Recommendation:
    """Return what to ship of one series.

    Args:
        records: the records folder.
        budgets: at least one.
        name: a series, experiment or checkpoint; may be None where there is one series.
        skip_bad: leave damaged parts out instead of refusing.

    Raises:
        UsageError: there are several series and none is named, or a budget cannot be computed.
        QBWError: there is nothing to recommend.
    """
    rows = read_rows(records, [] if name is None else [name], skip_bad=skip_bad)
    if name is None:
        names = sorted(rows["series"].unique())
        if len(names) > 1:
            raise UsageError(f"{records}: holds {len(names)} series; name one with --series: {', '.join(names)}")
        chosen = last_epoch(rows)
    else:
        _, chosen = choose(rows, name)
    chosen = of_one_network(chosen)
    layers = read_layers(records, str(chosen["model_id"].iloc[0]))
    return recommend(chosen, layers, find_sensitivity(chosen, layers), tuple(budgets))


def compare_in(records: Path, first: str, second: str, *, skip_bad: bool = False) -> Comparison:
    """Return how two series, experiments or checkpoints differ.

    Raises:
        UsageError: nothing is called so, or both are the same.
        QBWError: they have nothing in common.
    """
    rows = read_rows(records, [first, second], skip_bad=skip_bad)
    a, b = choose(rows, first), choose(rows, second)
    if a[0] == b[0]:
        raise UsageError(f"{first!r} and {second!r}: both are {a[0]}; name two, such as {first}@1 and {first}@2")
    return compare(a, b)


def write_file(path: Path, text: str) -> None:
    """Write a text file whole.

    Raises:
        QBWError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise QBWError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None


def comparison_json(found: Comparison) -> str:
    """Return a comparison as strict JSON; null is a number that does not exist."""
    document = asdict(found) | {"table": None}
    document["configurations"] = found.table.to_dict("records")
    del document["table"]
    return strict_json(document)
