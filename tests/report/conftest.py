"""Fixtures of the report's tests: simulated records, a report built once, and the command line."""

import pytest
from report_helpers import Outcome, Report, RunCli
from simulated_records import simulate, write_records

from qbw_report import cli


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCli:
    """Run `qbw-report` with these words, as its console script does."""

    def run(*words: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["qbw-report", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report of two experiments (6 epochs and 1), built once; tests must not change it."""
    from qbw_report.build import build

    folder = tmp_path_factory.mktemp("report")
    records = write_records(
        folder / "records",
        simulate(experiment="demo", epochs=6, configs=8),
        simulate(experiment="other run", epochs=1, configs=6, seed=1),
    )
    _, paths = build(records, folder / "out", every=5)
    return Report(records, folder / "out", paths)
