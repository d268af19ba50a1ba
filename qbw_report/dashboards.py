"""What TensorBoard's dashboards are told beside the numbers: charts with bands, and a table of the series.

The HParams tab has a line per series (a session of its own, by its name: sessions of equal name would be averaged) with
what was measured and what came out; the Custom Scalars tab has a chart per question with its band. TensorBoard reads
both from summaries, which are made here without TensorFlow.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, Layout, MarginChartContent
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from qbw_report.selection import sampler_names
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
    **{
        f"Answers/{answer}{end}": f"{answer}{end}"
        for answer in ("pearson", "spearman", "knee", "lowest_cost", "spread")
        for end in ("", "_low", "_high")
    },
    "Answers/stability": "stability",
    "Answers/best_accuracy": "best_accuracy",
    "Answers/best_bitwidth": "best_bitwidth",
    "Answers/fewest_bits_within_tolerance": "lowest_bitwidth",
    "Answers/accuracy_at_fewest_bits": "lowest_accuracy",
}
"""Tag -> column of `qbw_report.insight.over_epochs.answers_over_epochs`."""

TAGS = SCALAR_TAGS | FURTHER_TAGS | ANSWER_TAGS
"""Every scalar: tag -> column."""

_BANDS = {
    "Configurations: mean, min to max": {
        "Accuracy": ("Validation/mean_acc", "Validation/min_acc", "Validation/max_acc"),
        "Loss": ("Loss/val", "Loss/val_min", "Loss/val_max"),
        "Average bitwidth": ("Bitwidth/mean_bitwidth", "Bitwidth/min_bitwidth", "Bitwidth/max_bitwidth"),
    },
    "Answers: value, 95% interval": {
        title: (f"Answers/{answer}", f"Answers/{answer}_low", f"Answers/{answer}_high")
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

METRICS = {
    "Answers/best_accuracy": "best accuracy",
    "Answers/best_bitwidth": "its average bitwidth",
    "Answers/fewest_bits_within_tolerance": "fewest bits within the tolerance",
    "Answers/accuracy_at_fewest_bits": "their accuracy",
    "Answers/lowest_cost": "lowest sufficient bitwidth",
    "Answers/knee": "knee",
    "Answers/pearson": "Pearson",
    "Answers/spearman": "Spearman",
    "Answers/stability": "stability",
    "Answers/spread": "spread",
    "Accuracy/val": "mean accuracy",
    "Loss/val": "mean loss",
}
"""What the table of series shows: tag of the scalar, whose last epoch counts -> heading."""

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
                for title, (value, lower, upper) in charts.items()
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

    Args:
        rows: one series; at least one row.
    """
    used = rows["bitwidth_options"].dropna()
    options = {int(bits) for each in (used if len(used) else rows["bitwidths"]) for bits in each}
    return {
        "model": _all_of(rows["model_id"].str[:8]),
        "layers": float(len(rows["bitwidths"].iloc[-1])),
        "options": ", ".join(map(str, sorted(options))),
        "sampler": _all_of(sampler_names(rows)),
        "engine": _all_of(rows["engine"]),
        "dataset": _all_of(rows["dataset"]),
        "split": _all_of(rows["split"]),
        "samples": float(rows["num_samples"].min()),
    }


def session(series: str, settings: Mapping[str, Setting], start: float) -> list[Summary.Value]:
    """Return what makes one run a line in the table of series; `start` in seconds since 1970."""
    return _same_bytes(hparams.hparams_pb(dict(settings), trial_id=series, start_time_secs=start))


def table_of_series(settings: Sequence[Mapping[str, Setting]], start: float) -> list[Summary.Value]:
    """Return the columns of the table of series: the settings with all their values, and the metrics."""
    columns = [hparams.HParam(name, _domain([each[name] for each in settings])) for name in settings[0]]
    metrics = [hparams.Metric(tag, display_name=heading) for tag, heading in METRICS.items()]
    return _same_bytes(hparams.hparams_config_pb(columns, metrics, time_created_secs=start))


def _domain(values: Sequence[Setting]) -> hparams.Domain:
    numbers = [value for value in values if isinstance(value, float)]
    return hparams.RealInterval(min(numbers), max(numbers)) if numbers else hparams.Discrete(sorted(set(values)))


def _all_of(values: pd.Series) -> str:
    """Return the different values, such as ``incremental + reference``."""
    return " + ".join(sorted({printable(str(value)) or "unknown" for value in values.fillna("unknown")}))


def _same_bytes(summary: Summary) -> list[Summary.Value]:
    """Return the values of a summary of the HParams plugin; equal ones have equal bytes, which a map has not."""
    for value in summary.value:
        content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
        value.metadata.plugin_data.content = content.SerializeToString(deterministic=True)
    return list(summary.value)
