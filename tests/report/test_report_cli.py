"""The command line: what it prints where, exit codes, and one sentence for every mistake."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_helpers import Outcome, Report, RunCli
from simulated_records import row, simulate, write_records

RECORDS = [
    row([2, 2], 500, num_samples=10_000, config_index=0),
    row([2, 4], 8_000, num_samples=10_000, config_index=1),
    row([4, 4], 9_500, num_samples=10_000, config_index=2),
    row([4, 2], 8_200, num_samples=10_000, config_index=3),
    row([8, 8], 9_550, num_samples=10_000, config_index=4),
]

EPOCHS = """\
demo
epoch  configs  mean acc.     std     min     max  avg. bits  correlation
    1        5     0.7150  0.3386  0.0500  0.9550  2.00-8.00         0.59
"""

ANSWERS = """\

demo, epoch 1: cannot tell whether accuracy follows bitwidth (\
r = 0.59, 95% interval -0.78 to 0.98; evaluate about 23 more).
Best accuracy: 0.9550 ± 0.0041 at 8.00 bits on average (configuration {best}); \
± is the 95% sampling noise of 10,000 samples.
Fewest bits within 1 point of the best: 0.9500 ± 0.0043 at 4.00 bits on average (configuration {lowest}).
Never seen together in one configuration: 2 and 8, 4 and 8 bits; nothing is known of their mixtures.
Whether predictions tell good configurations from bad ones cannot be told: correlation 0.20 (95%: -0.92 to 0.96).
Their 95% intervals hold 5 of 5 measured accuracies.

"""

FINDINGS = """\

Answers:
answer                      value       95% interval
Pearson correlation        0.5913  -0.7831 to 0.9841  cannot tell: evaluate about 23 more
Spearman correlation       0.9747  -0.6756 to 0.9999  cannot tell: evaluate about 10 more
knee                            -                  -  cannot tell: evaluate about 7 more
plateau from                    -                  -  cannot tell: evaluate about 7 more
enough from                     -                  -  cannot tell: evaluate about 7 more
spread within bins         0.0100                  -  1 bin of 2 or more
noise of the samples            -                  -  cannot tell: evaluate about 14 more
spread beyond noise             -                  -  cannot tell: evaluate about 14 more
spread at low bits, ratio       -                  -  cannot tell: evaluate about 7 more
prediction, rank corr.     0.2000  -0.9225 to 0.9648  rank correlation
the same, best fifth            -                  -  cannot tell: evaluate about 20 more
"""


def answers() -> str:
    return ANSWERS.format(best=RECORDS[4]["config_id"][:8], lowest=RECORDS[2]["config_id"][:8])


def test_summary(run_cli: RunCli, tmp_path: Path) -> None:
    records = write_records(tmp_path, RECORDS)
    before = sorted(tmp_path.rglob("*"))
    bins = """
Epoch 1 by bitwidth:
bitwidth bin  configs  mean acc.     std     min     max
         2.0        1     0.0500       -  0.0500  0.0500
         3.0        2     0.8100  0.0100  0.8000  0.8200
         4.0        1     0.9500       -  0.9500  0.9500
         8.0        1     0.9550       -  0.9550  0.9550
"""
    outcome = run_cli("summary", records)
    assert (outcome.code, outcome.stderr) == (0, "")
    # The last column is padded to its width; nobody sees blanks at the end of a line.
    said = "".join(f"{line.rstrip()}\n" for line in outcome.stdout.splitlines())
    assert said == EPOCHS + bins + FINDINGS + answers()
    assert sorted(tmp_path.rglob("*")) == before


def test_build(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_records(Path("results/records"), RECORDS)
    paths = """\
results/report/index.html   the page: open it in a browser
results/report/*.csv        12 tables, statistics.json too
results/report/figures      5 figures, PNG and SVG
results/report/tensorboard  event files; serve them: make tensorboard
"""
    said = "qbw-report: reading results/records\nqbw-report: drawing demo\nqbw-report: writing the page\n"
    assert run_cli("build") == Outcome(0, EPOCHS + answers() + paths, said)


def test_summary_as_json_is_what_build_writes(run_cli: RunCli, report: Report) -> None:
    outcome = run_cli("summary", report.records, "--json")
    assert outcome == Outcome(0, (report.out / "statistics.json").read_text(encoding="utf-8"), "")
    assert len(json.loads(outcome.stdout)["series"]) == 2


def test_build_elsewhere_and_every_other_epoch(run_cli: RunCli, tmp_path: Path) -> None:
    records, out = write_records(tmp_path / "records", simulate(epochs=3, configs=3)), tmp_path / "my report"
    outcome = run_cli("build", records, "--out", out, "--every", 2)
    assert outcome.stdout.endswith(f"serve them: make tensorboard REPORT='{out}'\n")
    figures = sorted(path.name for path in (out / "figures" / "demo").glob("bitwidth_vs_*.png"))
    assert figures == ["bitwidth_vs_accuracy_epoch_002.png", "bitwidth_vs_accuracy_epoch_003.png"]


def test_only_the_last_epochs_are_printed_and_the_rest_is_named(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("summary", write_records(tmp_path, simulate(epochs=13, configs=2)))
    lines = outcome.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:12]] == [str(number) for number in range(4, 14)]
    assert lines[12] == "(3 earlier epochs: statistics.csv, or qbw-report summary --json)"


def test_names_are_printed_as_they_are_but_cannot_drive_the_terminal(run_cli: RunCli, tmp_path: Path) -> None:
    records = write_records(tmp_path, [row([2], 1, experiment="[bold]x[/bold] :smile: \x1b[31m" + "y" * 150)])
    outcome = run_cli("summary", records)
    assert outcome.stdout.splitlines()[0] == "[bold]x[/bold] :smile: ?[31m" + "y" * 150
    assert "\x1b" not in outcome.stdout + outcome.stderr


def test_notes_go_to_stderr(run_cli: RunCli, tmp_path: Path) -> None:
    rows = simulate(epochs=1, configs=3)
    outcome = run_cli("summary", write_records(tmp_path, rows, rows[:1]))
    assert outcome.code == 0
    assert outcome.stderr == "qbw-report: note: 1 row repeats a record that is already there; each counts once\n"


@pytest.mark.parametrize("command", ["summary", "build"])
def test_no_records_folder(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run_cli(command)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr.splitlines()[-1] == (
        "qbw-report: error: results/records: no such folder; run `make eval CKPT=...` first, or name the records folder"
    )
    assert not list(tmp_path.iterdir())


def test_no_rows_yet(run_cli: RunCli, tmp_path: Path) -> None:
    sentence = f"qbw-report: error: {tmp_path}: holds no rows yet; run `make eval CKPT=...` first\n"
    assert run_cli("summary", write_records(tmp_path)) == Outcome(1, "", sentence)


def test_no_parts(run_cli: RunCli, tmp_path: Path) -> None:
    sentence = f"qbw-report: error: {tmp_path}: expected Parquet parts, found none; run `make eval CKPT=...` first\n"
    assert run_cli("summary", tmp_path) == Outcome(1, "", sentence)


def test_a_part_that_is_not_ours(run_cli: RunCli, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    sentence = (
        f"qbw-report: error: {tmp_path / 'x.parquet'}: expected a QBW part of kind 'records', "
        f"found a Parquet file that QBW did not write; move it away; to repair the folder, run: qbw-eval verify "
        f"{tmp_path} --quarantine; to draw without this part, say --skip-bad\n"
    )
    assert run_cli("summary", tmp_path) == Outcome(1, "", sentence)


def test_a_report_folder_that_cannot_be_written(run_cli: RunCli, report: Report, tmp_path: Path) -> None:
    out = tmp_path / "file"
    out.write_bytes(b"")
    sentence = f"{out}: expected a folder, found a file; choose another folder with --out"
    said = f"qbw-report: reading {report.records}\nqbw-report: error: {sentence}\n"
    assert run_cli("build", report.records, "--out", out) == Outcome(1, "", said)


def test_a_report_folder_inside_the_records(run_cli: RunCli, report: Report) -> None:
    out = report.records / "report"
    sentence = (
        f"qbw-report: error: {out}: the report must not lie in the records folder {report.records}; "
        "choose another --out\n"
    )
    assert run_cli("build", report.records, "--out", out) == Outcome(2, "", sentence)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["build", "--every", "0"], "Invalid value for '--every': 0 is not in the range x>=1."),
        (["build", "--every", "x"], "Invalid value for '--every': 'x' is not a valid integer range."),
        (["build", "--evry", "1"], "No such option '--evry'. Did you mean '--every'?"),
        (["summary", "a", "b"], "Got unexpected extra argument (b)"),
        (["sumary"], "No such command 'sumary'. Did you mean 'summary'?"),
    ],
)
def test_usage_errors(run_cli: RunCli, words: list[str], sentence: str) -> None:
    assert run_cli(*words) == Outcome(2, "", f"qbw-report: error: {sentence}\n")


def test_interrupted(run_cli: RunCli, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qbw_report.build.bin_statistics", interrupt)
    outcome = run_cli("build", report.records, "--out", tmp_path / "out")
    assert (outcome.code, outcome.stdout) == (130, "")
    assert outcome.stderr.splitlines()[-1] == "qbw-report: interrupted"


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help(run_cli: RunCli, words: list[str]) -> None:
    outcome = run_cli(*words)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "Turn records of evaluated bitwidth configurations into answers" in outcome.stdout
    assert {"build", "summary", "recommend", "compare"} <= set(outcome.stdout.split())


def test_version(run_cli: RunCli) -> None:
    assert run_cli("--version") == Outcome(0, "qbw-report 0.1.0\n", "")


def test_the_console_script_is_installed() -> None:
    assert shutil.which("qbw-report", path=str(Path(__import__("sys").executable).parent))
