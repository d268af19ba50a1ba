"""What TensorBoard's dashboards are told beside the numbers: charts with bands, and a table of the series.

The HParams tab has a line per series (a session of its own, by its name: sessions of equal name would be averaged) with
how it was measured, and the last value of every scalar; the Custom Scalars tab has a chart per question with its band.
TensorBoard reads both from summaries, which are made here without TensorFlow.

Each run has both, and there is no run beside the series'. Their layouts are equal, so that TensorBoard merges them. An
experiment summary, which would name the table's columns, is missing on purpose: TensorBoard's data server keeps what it
first read of one until it is started again (as it does with how a series was measured), but without one it puts the
columns together anew each time.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, Layout, MarginChartContent
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from qbw_report.insight.over_epochs import WITH_INTERVAL
from qbw_report.selection import sampler_names, typical_rows
from qbw_report.series import printable

SCALAR_TAGS = {
    "Bitwidth/mean_bitwidth": "bitwidth_mean",
    "Bitwidth/std_bitwidth": "bitwidth_std",
    "Bitwidth/min_bitwidth": "bitwidth_min",
    "Bitwidth/max_bitwidth": "bitwidth_max",
    "Validation/mean_acc": "accuracy_mean",
    "Validation/std_acc": "accuracy_std",
    "Validation/min_acc": "accuracy_min",
    "Validation/max_acc": "accuracy_max",
    "Loss/val": "loss_mean",
    "Accuracy/val": "accuracy_mean",
}
"""The seed document's tag -> column of `qbw_report.statistics.per_epoch`."""

FURTHER_TAGS = {
    "Bitwidth/correlation": "correlation",
    "Loss/val_std": "loss_std",
    "Loss/val_min": "loss_min",
    "Loss/val_max": "loss_max",
}
"""More of its columns."""

ANSWER_TAGS = {
    **{f"Answers/{answer}": answer for answer in WITH_INTERVAL},
    **{f"Answers_95/{answer}_{end}": f"{answer}_{end}" for answer in WITH_INTERVAL for end in ("low", "high")},
    "Answers/stability": "stability",
    "Answers/best_accuracy": "best_accuracy",
    "Answers/best_bitwidth": "best_bitwidth",
    "Answers/fewest_bits_within_tolerance": "lowest_bitwidth",
    "Answers/accuracy_at_fewest_bits": "lowest_accuracy",
}
"""Tag -> column of `qbw_report.insight.over_epochs.answers_over_epochs`; intervals in a section of their own."""

TAGS = SCALAR_TAGS | FURTHER_TAGS | ANSWER_TAGS
"""Every scalar: tag -> column."""

_BANDS = {
    "Configurations: mean, min to max": {
        "Accuracy": ("Validation/mean_acc", "Validation/min_acc", "Validation/max_acc"),
        "Loss": ("Loss/val", "Loss/val_min", "Loss/val_max"),
        "Average bitwidth": ("Bitwidth/mean_bitwidth", "Bitwidth/min_bitwidth", "Bitwidth/max_bitwidth"),
    },
    "Answers: value, 95% interval": {
        title: (f"Answers/{answer}", f"Answers_95/{answer}_low", f"Answers_95/{answer}_high")
        for title, answer in (
            ("Does accuracy follow bitwidth: Pearson's r", "pearson"),
            ("Does accuracy follow bitwidth: Spearman's rho", "spearman"),
            ("Knee: from where on more bits pay less (bits)", "knee"),
            ("Lowest sufficient average bitwidth (bits)", "lowest_cost"),
            ("Spread at equal bits, beyond the samples' noise", "spread"),
        )
    },
}
"""Category -> chart -> tags of value, lower and upper end."""

Setting = str | float


def layout() -> Summary.Value:
    """Return the layout of the Custom Scalars tab: a chart with a band for each metric and each answer."""
    categories = [
        Category(
            title=category,
            chart=[
                Chart(
                    title=title,
                    margin=MarginChartContent(
                        series=[MarginChartContent.Series(value=value, lower=lower, upper=upper)]
                    ),
                )
                # TensorBoard shows charts with bands last first.
                for title, (value, lower, upper) in reversed(charts.items())
            ],
        )
        for category, charts in _BANDS.items()
    ]
    return Summary.Value(
        tag=custom_scalar.CONFIG_SUMMARY_TAG,
        metadata=custom_scalar.create_summary_metadata(),
        tensor=TensorProto(
            dtype=DT_STRING,
            tensor_shape=TensorShapeProto(),
            string_val=[Layout(category=categories).SerializeToString(deterministic=True)],
        ),
    )


def settings_of(rows: pd.DataFrame) -> dict[str, Setting]:
    """Return how one series was measured: what the table of series tells it apart by.

    The samplers are those of the rows that were drawn, which the answers are about.

    Args:
        rows: one series; at least one row.
    """
    used = rows["bitwidth_options"].dropna()
    options = np.unique(np.concatenate(list(used if len(used) else rows["bitwidths"])))
    return {
        "model": _all_of(rows["model_id"].str[:8]),
        "layers": float(len(rows["bitwidths"].iloc[-1])),
        "options": ", ".join(map(str, options)),
        "sampler": _all_of(sampler_names(typical_rows(rows)[0])),
        "engine": _all_of(rows["engine"]),
        "dataset": _all_of(rows["dataset"]),
        "split": _all_of(rows["split"]),
        "samples": float(rows["num_samples"].min()),
    }


def session(series: str, settings: Mapping[str, Setting], start: float) -> Summary.Value:
    """Return what makes one run a line in the table of series; `start` in seconds since 1970.

    Equal arguments give equal bytes, which a map has only if told so.
    """
    (value,) = hparams.hparams_pb(dict(settings), trial_id=series, start_time_secs=start).value
    content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    value.metadata.plugin_data.content = content.SerializeToString(deterministic=True)
    return value


def _all_of(values: pd.Series) -> str:
    """Return the different values, such as ``incremental + reference``."""
    return " + ".join(sorted({printable(str(value)) or "unknown" for value in values.fillna("unknown")}))
