"""click options -> the functions of this package; nothing else. Heavy imports wait until a command runs."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from schemas.errors import exit_code_of

if TYPE_CHECKING:
    from rich.console import Console

    from qbw_report.build import Analysis
    from qbw_report.insight.answers import Answers

PROGRAM = "qbw-report"

DEFAULT_REPORT = Path("results/report")

_records = click.argument("records", type=click.Path(path_type=Path), default=Path("results/records"))


_skip_bad = click.option("--skip-bad", is_flag=True, help="Leave damaged parts out, and say so, instead of refusing.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(package_name="qbw", prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Turn records of evaluated bitwidth configurations into statistics, figures and TensorBoard files."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command("build")
@_records
@click.option(
    "--out", type=click.Path(path_type=Path), default=DEFAULT_REPORT, show_default=True, help="Report folder."
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Draw bitwidth against accuracy every so many epochs, and for the last.",
)
@_skip_bad
def build_command(records: Path, out: Path, every: int, skip_bad: bool) -> None:
    """Build statistics, figures and TensorBoard files from RECORDS (results/records).

    Building again replaces the report; files in the folder that it did not write stay.
    """
    from qbw_report.build import build
    from qbw_report.tables import print_epochs, stdout_console

    analysis, paths = build(records, out, every, _say, skip_bad=skip_bad)
    console = stdout_console()
    _notes(analysis)
    for answers in analysis.answers:
        _heading(console, answers.series)
        print_epochs(console, analysis.epochs[analysis.epochs["series"] == answers.series])
        _answers(answers)
    _paths(out, paths)


@cli.command("summary")
@_records
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@_skip_bad
def summary_command(records: Path, as_json: bool, skip_bad: bool) -> None:
    """Print statistics and answers from RECORDS (results/records); write no file."""
    from qbw_report.build import analyze, json_text
    from qbw_report.tables import print_bins, print_epochs, stdout_console

    analysis = analyze(records, skip_bad=skip_bad)
    _notes(analysis)
    if as_json:
        click.echo(json_text(analysis), nl=False)
        return
    console = stdout_console()
    for answers in analysis.answers:
        _heading(console, answers.series)
        print_epochs(console, analysis.epochs[analysis.epochs["series"] == answers.series])
        click.echo(f"\nEpoch {answers.epoch + 1} by bitwidth:")
        of_series = analysis.bins["series"] == answers.series
        print_bins(console, analysis.bins[of_series & (analysis.bins["epoch"] == answers.epoch)])
        _answers(answers)


def main() -> None:
    """Run the command line; the console script."""
    raise SystemExit(exit_code_of(PROGRAM, lambda: cli(standalone_mode=False)))


def _say(text: str) -> None:
    click.echo(f"{PROGRAM}: {text}", err=True)


def _notes(analysis: "Analysis") -> None:
    for note in analysis.notes:
        _say(f"note: {note}")


def _heading(console: "Console", series: str) -> None:
    console.print(series, style="bold", soft_wrap=True)


def _answers(answers: "Answers") -> None:
    from qbw_report.insight.answers import sentences

    click.echo()
    for sentence in sentences(answers):
        click.echo(sentence)
    click.echo()


def _paths(out: Path, paths: list[str]) -> None:
    """Print the tables' paths and the folders of figures and event files, with what is in them."""
    from qbw_report.build import FIGURES, TENSORBOARD

    figures = sum(path.startswith(FIGURES) and path.endswith(".png") for path in paths)
    written = [(str(out / path), "") for path in paths if "/" not in path]
    written.append((str(out / FIGURES), f"{figures} {'figure' if figures == 1 else 'figures'}, PNG and SVG"))
    report = "" if out == DEFAULT_REPORT else f" REPORT={shlex.quote(str(out))}"
    written.append((str(out / TENSORBOARD), f"event files; serve them: make tensorboard{report}"))
    width = max(len(path) for path, _ in written)
    for path, what in written:
        click.echo(f"{path:{width}}  {what}".rstrip())
