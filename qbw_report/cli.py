"""click options -> the functions of this package; nothing else. Heavy imports wait until a command runs."""

import functools
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qbw_report.insight.thresholds import DEFAULTS, Thresholds
from schemas.errors import exit_code_of

if TYPE_CHECKING:
    from rich.console import Console

    from qbw_report.build import Analysis

PROGRAM = "qbw-report"

DEFAULT_REPORT = Path("results/report")

_records = click.argument("records", type=click.Path(path_type=Path), default=Path("results/records"))


_skip_bad = click.option("--skip-bad", is_flag=True, help="Leave damaged parts out, and say so, instead of refusing.")


def _thresholds(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `qbw_report.insight.thresholds` as one argument, `thresholds`."""

    @functools.wraps(command)
    def with_thresholds(*, tolerance: float, strong: float, flat: float, noisy_ratio: float, **others: Any) -> None:
        made = Thresholds(tolerance=tolerance / 100, strong=strong, flat=flat, noisy_ratio=noisy_ratio)
        command(thresholds=made, **others)

    options = (
        ("--tolerance", 100 * DEFAULTS.tolerance, "Points of accuracy that may be lost against the best."),
        ("--strong", DEFAULTS.strong, "From here on a correlation is called strong."),
        ("--flat", DEFAULTS.flat, "Below this, up or down, a correlation is called flat."),
        ("--noisy-ratio", DEFAULTS.noisy_ratio, "From here on accuracy is called more variable at low bits."),
    )
    for name, default, words in reversed(options):
        option = click.option(name, type=float, default=default, show_default=True, help=words)
        with_thresholds = option(with_thresholds)
    return with_thresholds


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(package_name="qbw", prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Turn records of evaluated bitwidth configurations into answers, a page, figures and TensorBoard files."""
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
@click.option(
    "--executor",
    type=click.Choice(["local", "dask"]),
    default="local",
    show_default=True,
    help="Who reads the records: this machine, or a Dask cluster.",
)
@click.option("--scheduler", metavar="ADDRESS", help="Of a Dask cluster that is there; else one is started here.")
@_thresholds
@_skip_bad
def build_command(
    records: Path,
    out: Path,
    every: int,
    executor: str,
    scheduler: str | None,
    thresholds: Thresholds,
    skip_bad: bool,
) -> None:
    """Build the page, tables, figures and TensorBoard files from RECORDS (results/records).

    Building again replaces the report; files in the folder that it did not write stay.
    """
    from qbw_report.build import build
    from qbw_report.tables import print_epochs, stdout_console

    if scheduler is not None and executor != "dask":
        raise click.UsageError("--scheduler: only --executor dask has one")
    told = partial(build, out=out, every=every, say=_say, skip_bad=skip_bad, thresholds=thresholds)
    if executor == "dask":
        from qbw_report.cluster import on_cluster

        with on_cluster(scheduler) as each:
            # Its workers may stand in other folders.
            analysis, paths = told(records.absolute(), each=each)
    else:
        analysis, paths = told(records)
    console = stdout_console()
    _notes(analysis)
    for answers in analysis.answers:
        _heading(console, answers.series)
        print_epochs(console, analysis.epochs[analysis.epochs["series"] == answers.series])
        _told(analysis.sentences(answers.series))
    _paths(out, paths)


@cli.command("summary")
@_records
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@click.option("--sort", "by", default="series", show_default=True, help="Sort series by a column of comparison.csv.")
@_thresholds
@_skip_bad
def summary_command(records: Path, as_json: bool, by: str, thresholds: Thresholds, skip_bad: bool) -> None:
    """Print statistics and answers from RECORDS (results/records); write no file."""
    from qbw_report.build import analyze, json_text
    from qbw_report.overview import sort_overview
    from qbw_report.tables import print_bins, print_epochs, print_findings, print_overview, stdout_console

    analysis = analyze(records, skip_bad=skip_bad, thresholds=thresholds)
    series = sort_overview(analysis.comparison, by)
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
        click.echo("\nAnswers:")
        print_findings(console, analysis.findings[analysis.findings["series"] == answers.series])
        _told(analysis.sentences(answers.series))
    if len(series) > 1:
        click.echo(f"All series, by {by}:")
        print_overview(console, series)


@cli.command("recommend")
@_records
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    required=True,
    metavar="COST<=VALUE",
    help="Such as avg_bitwidth<=4.5, weight_bytes<=300kB, relative_bit_ops<=0.2; several are all kept.",
)
@click.option("--series", "--experiment", "name", help="Of which series, experiment or checkpoint; NAME@3: of epoch 3.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the recommended configuration to this .json file.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@_skip_bad
def recommend_command(
    records: Path, budgets: tuple[str, ...], name: str | None, out: Path | None, as_json: bool, skip_bad: bool
) -> None:
    """Find the configuration that promises most within a budget, from RECORDS (results/records).

    Evaluate the file that --out writes with: qbw-eval run CHECKPOINT --configurations FILE
    """
    from qbw_report.budget import parse_budget
    from qbw_report.commands import recommend_from, write_file
    from qbw_report.recommend import as_json as plain
    from qbw_report.recommend import file_text
    from qbw_report.strict_json import strict_json
    from qbw_report.tables import print_bits, print_candidates, stdout_console

    bounds = [parse_budget(text) for text in budgets]
    if out is not None and out.suffix != ".json":
        raise click.UsageError(f"--out {out}: expected a name that ends in .json")
    found = recommend_from(records, bounds, name, skip_bad=skip_bad)
    if out is not None:
        write_file(out, file_text(found))
    told = plain(found)
    if as_json:
        click.echo(strict_json(told), nl=False)
        return
    console = stdout_console()
    _heading(console, f"{found.series}, epoch {found.epoch + 1}, {', '.join(found.budgets)}")
    costs = list(dict.fromkeys(["avg_bitwidth", *(bound.cost for bound in bounds)]))
    names = {"best_predicted": "recommended", "best_measured": "best measured", "best_uniform": "best uniform"}
    print_candidates(console, costs, [(words, told[key]) for key, words in names.items() if told[key] is not None])
    click.echo()
    print_bits(console, told["best_predicted"]["bitwidths"])
    click.echo(f"\n{told['verdict']}")
    if out is not None:
        click.echo(f"Written to {out}; evaluate it: qbw-eval run CHECKPOINT --configurations {shlex.quote(str(out))}")


@cli.command("compare")
@click.argument("first")
@click.argument("second")
@click.option(
    "--records",
    type=click.Path(path_type=Path),
    default=Path("results/records"),
    show_default=True,
    help="The records folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@_skip_bad
def compare_command(first: str, second: str, records: Path, as_json: bool, skip_bad: bool) -> None:
    """Compare FIRST with SECOND on the same configurations and samples.

    Each is a series, an experiment (its last epoch; NAME@3: epoch 3) or the file name of a checkpoint.
    """
    from qbw_report.commands import compare_in, comparison_json
    from qbw_report.compare import comparison_in_words
    from qbw_report.tables import print_differences, stdout_console

    found = compare_in(records, first, second, skip_bad=skip_bad)
    if as_json:
        click.echo(comparison_json(found), nl=False)
        return
    console = stdout_console()
    _heading(console, f"{found.first} (first) and {found.second} (second)")
    print_differences(console, found.table)
    click.echo(f"\n{comparison_in_words(found)}")
    told = int((found.table["verdict"] != "not distinguishable").sum())
    click.echo(f"Configurations that differ by more than chance: {told} of {len(found.table)}.")
    click.echo(f"Method: {found.method}.")


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


def _told(sentences: list[str]) -> None:
    click.echo()
    for sentence in sentences:
        click.echo(sentence)
    click.echo()


def _paths(out: Path, paths: list[str]) -> None:
    """Print where the page, the tables, the figures and the event files are."""
    from qbw_report.build import FIGURES, PAGE, TENSORBOARD

    figures = sum(path.startswith(FIGURES) and path.endswith(".png") for path in paths)
    report = "" if out == DEFAULT_REPORT else f" REPORT={shlex.quote(str(out))}"
    written = (
        (PAGE, "the page: open it in a browser"),
        ("*.csv", f"{sum(path.endswith('.csv') for path in paths)} tables, statistics.json too"),
        (FIGURES, f"{figures} {'figure' if figures == 1 else 'figures'}, PNG and SVG"),
        (TENSORBOARD, f"event files; serve them: make tensorboard{report}"),
    )
    width = max(len(str(out / name)) for name, _ in written)
    for name, what in written:
        click.echo(f"{out / name!s:{width}}  {what}")
