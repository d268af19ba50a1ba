"""What the commands show: tables on stdout; progress, with its rate and the time left, on stderr."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class _Count(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        of = "" if task.total is None else f"/{task.total:.0f}"
        return Text(f"{task.completed:.0f}{of} {self._unit}")


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} {self._unit}/s" if task.speed else "")


@contextmanager
def progress_on_stderr(what: str, total: float, unit: str, *, quiet: bool) -> Iterator[Callable[[float], None]]:
    """Show a bar while the block runs; yields a function that moves it on.

    Args:
        what: words before the bar.
        total: what the bar ends at, in `unit`s.
        unit: plural noun.
        quiet: show nothing. Where stderr is not a terminal, what begins is said in a line.
    """
    with counting_progress(unit, quiet=quiet) as progress:
        if total and not quiet and not progress.console.is_terminal:
            tell(f"{what}: {total:.0f} {unit}")  # a log file has no use for a bar
        task = progress.add_task(what, total=total)
        yield lambda amount: progress.advance(task, amount)


def counting_progress(unit: str, *, quiet: bool) -> Progress:
    """Return bars on stderr that count `unit`, a plural noun; they show nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), _Count(unit), _Rate(unit), TimeRemainingColumn())
    # rich would send our stdout to stderr too, which is right on a terminal and wrong where stdout is a file.
    both, silent = sys.stdout.isatty(), quiet or not console.is_terminal
    return Progress(*columns, console=console, disable=silent, transient=True, redirect_stdout=both)


def tell(sentence: str) -> None:
    """Say something on stderr, at once."""
    print(sentence, file=sys.stderr, flush=True)


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    last: Sequence[object] | None = None,
    words: Sequence[str] = (),
) -> None:
    """Print a table on stdout; piped, it is never cut.

    Args:
        headers: of the columns.
        rows: in each a value a column.
        last: a row below a line of its own: what the others come to.
        words: headers of the columns that are set to the left, and broken where a terminal is narrow, as the first
            always is; the others, being numbers, are neither.
    """
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.show_footer = last is not None
    for position, header in enumerate(headers):
        is_text = not position or header in words
        footer = "" if last is None else str(last[position])
        table.add_column(header, footer, justify="left" if is_text else "right", no_wrap=not is_text)
    for row in rows:
        table.add_row(*map(str, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 500  # the table takes what it needs
    console.print(table)
