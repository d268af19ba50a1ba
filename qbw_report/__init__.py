"""Reads records, writes what people look at: statistics, figures, TensorBoard event files.

Imports neither torch nor `qbw_eval`. `plot_bitwidth_vs_accuracy` is the seed document's function.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qbw_report.figures import plot_bitwidth_vs_accuracy

__all__ = ["plot_bitwidth_vs_accuracy"]


def __getattr__(name: str) -> object:
    # Imported when asked for: matplotlib takes longer than `qbw-report --help` may.
    if name == "plot_bitwidth_vs_accuracy":
        from qbw_report.figures import plot_bitwidth_vs_accuracy

        return plot_bitwidth_vs_accuracy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
