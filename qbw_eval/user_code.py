"""Functions of the user's own, named `package.module:function` in an experiment file.

Importing one runs the user's code. So only ever a name that the user wrote into a file that the user named may come
here, never one from a checkpoint. What goes wrong in that code is the user's to mend: it becomes one sentence with the
place in the user's file.
"""

import importlib
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Final

from schemas.errors import QBWError, UsageError, did_you_mean

_NAME: Final = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")
_EXPECTED: Final = "a function of your own as package.module:function"


class UserCodeError(UsageError):
    """A function of the user's own is not there, or fails."""


def function_name(name: str) -> str:
    """Return `name` if it can name a function; nothing is imported.

    Raises:
        ValueError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected {_EXPECTED}, found {name[:80]!r}")
    return name


def load_function(name: str, where: str, folder: Path | None = None) -> Callable[..., Any]:
    """Import a module of the user's and return a function in it.

    Args:
        name: `package.module:function`.
        where: the setting that names it, in errors.
        folder: where modules are looked for first: that of the experiment file.

    Raises:
        UserCodeError: there is no such module or function, or the module cannot be imported.
    """
    parts = _NAME.fullmatch(name)
    if not parts:
        raise UserCodeError(f"{where}: expected {_EXPECTED}, found {name[:80]!r}")
    module_name, attribute = parts.groups()
    with running_user_code(name, where, folder):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # A module that it imports itself may be missing too: that has its place in the user's file.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            beside = "" if folder is None else f" in {folder} or"
            raise UserCodeError(
                f"{where}: {name}: there is no module {error.name!r}{beside} among what is installed; "
                f"expected {_EXPECTED}"
            ) from None
    function = getattr(module, attribute, None)
    if not callable(function):
        found = "no function" if function is None else f"a {type(function).__name__}, not a function,"
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        file = getattr(module, "__file__", None) or module_name
        raise UserCodeError(f"{where}: {name}: {file} has {found} {attribute!r}{did_you_mean(attribute, names)}")
    return function  # type: ignore[no-any-return]  # callable, which is all that can be known of it


@contextmanager
def running_user_code(name: str, where: str, folder: Path | None = None) -> Iterator[None]:
    """Run code of the user's in the block; `folder` comes first on `sys.path` meanwhile, and prints go to stderr.

    Raises:
        UserCodeError: it raised an exception; the sentence has its type, its message and the line in the user's file.
            Errors of ours pass.
    """
    path = None if folder is None else str(folder.absolute())
    if path is not None:
        sys.path.insert(0, path)
    try:
        with redirect_stdout(sys.stderr):  # stdout carries results
            yield
    except QBWError:
        raise
    except (Exception, SystemExit) as error:  # a module that is a script too may end the interpreter
        said = (str(error).strip().splitlines() or [""])[0][:300]
        what = type(error).__name__ + (f": {said}" if said else "")
        raise UserCodeError(f"{where}: {name}: {what}{_place(error)}") from None
    finally:
        if path is not None and path in sys.path:
            sys.path.remove(path)


def _place(error: BaseException) -> str:
    """Return the line in the user's file that an exception comes from, in words; empty where there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_file() and not Path(frame.filename).is_relative_to(Path(__file__).parent)
    ]
    # The innermost line of the user's own; what libraries do below it is their business. A module that is installed
    # among them has only such lines.
    libraries = [sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    own = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(path) for path in libraries)]
    chosen = (own or frames)[-1:]
    return "".join(f" ({frame.filename}:{frame.lineno})" for frame in chosen)
