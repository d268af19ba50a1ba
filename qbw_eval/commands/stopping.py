"""Ctrl-C and SIGTERM end a command in one sentence that says what is kept."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from schemas.errors import InterruptedByUserError, TerminatedError


class _TerminatedError(BaseException):
    """SIGTERM; like KeyboardInterrupt, nothing but the end of the command may catch it."""


def _terminate(_signal: int, _frame: object) -> None:
    raise _TerminatedError


@contextmanager
def stopping(sentence: Callable[[str], str]) -> Iterator[None]:
    """Run the block; where it is stopped, raise the error that ends the command.

    Args:
        sentence: makes what is told of the word for what happened, "interrupted" or "terminated".

    Raises:
        InterruptedByUserError: Ctrl-C.
        TerminatedError: SIGTERM.
    """
    earlier = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedByUserError(sentence("interrupted")) from None
    except _TerminatedError:
        raise TerminatedError(sentence("terminated")) from None
    finally:
        signal.signal(signal.SIGTERM, earlier)
