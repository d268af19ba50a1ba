"""How long the console scripts take to say what they can do."""

import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.timing import Timed, interleaved

_ROUNDS = 7


def help_times() -> list[Figure]:
    """How long `--help` takes from a cold interpreter, both scripts and a bare interpreter in turn."""
    folder = Path(sys.executable).parent
    commands = {
        "qbw-eval --help": [str(folder / "qbw-eval"), "--help"],
        "qbw-report --help": [str(folder / "qbw-report"), "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)
    times = interleaved({name: Timed(action=partial(run, command)) for name, command in commands.items()}, _ROUNDS)
    limits = {"qbw-eval --help": 0.3, "qbw-report --help": 0.3}
    return [Figure(figure=name, values=times[name], unit="s", at_most=limits.get(name)) for name in commands]
