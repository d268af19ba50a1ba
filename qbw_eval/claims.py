"""Who is working on what: locks that save double work. Nothing is wrong where they do not hold, only slower.

A claim is an exclusive flock on a file of its own under `.qbw/claims/`. The kernel gives it back when the process ends,
however it ends, so there are no stale claims and no clocks to compare.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _claim(path: Path) -> Iterator[bool]:
    """Try to hold the lock called `path` while the block runs; yields whether it is held.

    Where the file system knows no locks the answer is True: the store's names keep rows single anyway.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    except OSError:
        yield True  # a folder that cannot be written is reported by the store, in a better sentence
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        except OSError:
            held = True
        try:
            yield held
        finally:
            if held:
                with contextlib.suppress(OSError):
                    path.unlink()
    finally:
        os.close(descriptor)


claim = contextmanager(_claim)  # not as a decorator: mutmut leaves decorated functions alone
