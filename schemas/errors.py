"""Errors that a user is meant to read: one sentence (place, expected, found, remedy) and the exit code it ends in.

Exit codes: 0 done, 1 could not, 2 usage, 130 interrupted, 143 terminated.
"""

import os
import sys
from collections.abc import Callable
from typing import Protocol, runtime_checkable


class QBWError(Exception):
    """Something could not be done; the message says where, what was expected, what was found and what to do."""

    exit_code = 1

    def format_message(self) -> str:
        """Return the sentence for the user (the same method as `click.ClickException` has)."""
        return str(self)


class UsageError(QBWError):
    """What was asked for makes no sense as asked: a wrong option, argument or experiment file."""

    exit_code = 2


class InterruptedByUserError(QBWError):
    """Ctrl-C; the message says what was kept."""

    exit_code = 130


class TerminatedError(QBWError):
    """SIGTERM; the message says what was kept."""

    exit_code = 143


@runtime_checkable
class _SpeaksForItself(Protocol):
    """What `QBWError` and `click.ClickException` have in common."""

    exit_code: int

    def format_message(self) -> str: ...


def first_line(error: BaseException) -> str:
    """Return the first line of what somebody else's error says, or what it is called where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def exit_code_of(program: str, command: Callable[[], object]) -> int:
    """Run `command`, print an error meant for the user as `program: error: sentence` on stderr, return the exit code.

    Any other exception is a defect of ours and propagates with its traceback.
    """
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output went away (`qbw-report summary | head`). Point stdout at nothing, or the interpreter
        # would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # click turns Ctrl-C into an Abort that carries the KeyboardInterrupt as its cause.
        if isinstance(error.__cause__, KeyboardInterrupt):
            return _interrupted(program)
        if not isinstance(error, _SpeaksForItself):
            raise
        print(f"{program}: error: {error.format_message()}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _interrupted(program)
    return 0


def _interrupted(program: str) -> int:
    print(f"{program}: interrupted", file=sys.stderr)
    return InterruptedByUserError.exit_code


def did_you_mean(word: str, known: "list[str] | tuple[str, ...]") -> str:
    """Return `"; did you mean 'x'?"` for the closest known word, or an empty string.

    >>> did_you_mean("epocs", ["epochs", "seed"])
    "; did you mean 'epochs'?"
    >>> did_you_mean("zzz", ["epochs", "seed"])
    ''
    """
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
