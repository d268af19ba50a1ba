"""Tables on a terminal: nothing is cut off at 80 columns."""

import io

import pytest
from rich.console import Console
from simulated_records import row, table_of

from qbw_report.bins import add_bins
from qbw_report.series import add_series
from qbw_report.statistics import per_bin, per_epoch
from qbw_report.tables import print_bins, print_epochs, stdout_console


def test_the_widest_numbers_fit_80_columns() -> None:
    records = [row([32, 30], 10 - i % 7, num_samples=10, epoch=1234, config_index=i) for i in range(5000)]
    records += [row([10, 11], 10, num_samples=10, epoch=1234, config_index=5000)]
    rows = add_bins(add_series(table_of(records).to_pandas()))
    sink = io.StringIO()
    console = Console(file=sink, width=80, force_terminal=True, no_color=True, highlight=False, markup=False)
    print_epochs(console, per_epoch(rows))
    print_bins(console, per_bin(rows))
    assert "…" not in sink.getvalue()
    assert "10.50-31.00" in sink.getvalue()
    assert "correlation" in sink.getvalue()


def test_a_pipe_is_wide_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert stdout_console().width == 120
