"""The report's numbers -> the page."""

from collections.abc import Mapping, Sequence

import pandas as pd

from qbw_report.insight.answers import Answers
from qbw_report.page.render import Page, html_bytes
from qbw_report.page.section import Tables, section
from qbw_report.page.tables import headings, view
from qbw_report.sensitivity import Sensitivity


def page_bytes(
    rows: pd.DataFrame,
    answers: Sequence[Answers],
    told: Mapping[str, Sequence[str]],
    sensitivity: Mapping[str, Sensitivity],
    tables: Mapping[str, pd.DataFrame],
    notes: Sequence[str],
    parts: int,
) -> bytes:
    """Return the page.

    Args:
        rows: the records that are looked at, with `series` and `bitwidth_bin`.
        answers: of each series.
        told: of each series, sentences.
        sensitivity: of each series.
        tables: every table of the report by its name, as it is written to CSV.
        notes: sentences about what is odd in the records.
        parts: how many Parquet files hold the rows.
    """
    known = Tables(**{name: tables[name] for name in Tables.__dataclass_fields__})
    sections = tuple(
        section(
            rows[rows["series"] == each.series],
            each,
            told[each.series],
            known,
            f"series-{number}",
            sensitivity[each.series].unknown,
        )
        for number, each in enumerate(answers, start=1)
    )
    names = [each.series for each in answers]
    comparison, pairs = known.comparison, tables["pairs"]
    return html_bytes(
        Page(
            title=names[0] if len(names) == 1 else f"{len(names)} experiments",
            notes=tuple(notes),
            comparison=view(
                comparison,
                "comparison",
                range(len(comparison)),
                "Each as its last epoch says; a click on a heading sorts",
                headings(
                    ("series", "Experiment", "text"),
                    ("epoch", "Epoch", "epoch"),
                    ("configs", "Configurations", "count"),
                    ("lowest_bitwidth", "Bits enough", "decimals"),
                    ("lowest_accuracy", "Accuracy there", "percent"),
                    ("best_accuracy", "Best accuracy", "percent"),
                    ("best_bitwidth", "Bits there", "decimals"),
                    ("mean_accuracy", "Mean accuracy", "percent"),
                    ("knee", "Knee", "decimals"),
                    ("pearson", "Correlation", "decimals"),
                    ("stability", "Stability (std, points)", "size"),
                    ("prediction", "Prediction", "decimals"),
                    ("engine", "Engine", "text"),
                ),
            ),
            pairs=view(
                pairs,
                "pairs",
                range(len(pairs)),
                "Each pair on the same configurations and samples, difference in points",
                headings(
                    ("first", "First", "text"),
                    ("second", "Second", "text"),
                    ("difference", "First less second", "points"),
                    ("low", "95% from", "points"),
                    ("high", "to", "points"),
                    ("p_value", "p", "digits"),
                    ("configs", "Configurations", "count"),
                    ("samples", "Samples", "count"),
                    ("verdict", "In words", "text"),
                ),
            ),
            sections=sections,
            rows=int(known.statistics["configs"].sum()),
            parts=parts,
            files=tuple(f"{name}.csv" for name in sorted(tables)),
        )
    )
