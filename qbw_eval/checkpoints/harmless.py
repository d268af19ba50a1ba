"""Which names a checkpoint may mention, and which make it a file to be refused.

Nothing that a file names is imported or called here, whatever it is: of a name there is a note. So any name at all
could be passed over. But a file that names os.system was made to do harm, and a person should hear of it; and what only
its own code can read (a whole network, a function) is no weights. So:

- of Python itself, of torch and of NumPy only what is listed here; everything else in them is refused by name. That is
  where all known attacks reach into: os, subprocess, builtins.eval, importlib, functools.partial, torch.load...
- of everybody else's packages everything, as classes of configurations and results have any name, except of the few
  whose business is to carry code, fetch it or run it, and through which a name would reach on into the first kind.
"""

import re
import sys
from _compat_pickle import IMPORT_MAPPING
from typing import Final

from qbw_eval.checkpoints.beside_weights import PLAIN
from qbw_eval.checkpoints.tensors import ODD_TENSORS, STORAGES, TENSORS

MAPPINGS: Final = (
    "argparse.Namespace",
    "builtins.dict",
    "collections.Counter",
    "collections.OrderedDict",
    "collections.UserDict",
    "collections.defaultdict",
    "types.SimpleNamespace",
)
LISTS: Final = ("builtins.list", "collections.deque")
SETS: Final = ("builtins.frozenset", "builtins.set")
MAKERS: Final = ("copyreg.__newobj__", "copyreg.__newobj_ex__", "copyreg._reconstructor")
"""What makes an object of the class that is their first argument."""

_TYPES: Final = {f"builtins.{name}" for name in ("bool", "float", "int", "object", "str", "tuple")}
"""Mentioned, as the type of an argument, say."""

LISTED: Final = frozenset({*PLAIN, *STORAGES, *TENSORS, *ODD_TENSORS, *MAPPINGS, *LISTS, *SETS, *MAKERS, *_TYPES})

_FAMILIES: Final = re.compile(
    r"""
      torch\.(b?float|complex|u?int|bits)[0-9]\w* | torch\.bool         # types of numbers
    | torch\.(q(u?int)[0-9]\w* | Q\w+Storage | per_(tensor|channel)_\w+) # quantized ones, which tensors.py refuses
    | torch\.(Tensor|\w+Tensor|strided)
    | torch\.(nn\.parameter|nn)\.(Parameter|Buffer)
    | torch\.serialization\._get_layout
    | torch\.optim(\.[a-z]\w*)*\.[A-Z]\w*                               # optimizers and schedules of learning rates
    | torch\.(cuda\.)?amp\.grad_scaler\.(GradScaler|OptState|_refresh_per_optimizer_state)
    | numpy\.(ndarray|bool_?|number|(float|complex|u?int)[0-9]*_?)
    | numpy\.random\.(_\w+|bit_generator)\.\w+                          # states of random number generators
    | typing\.[A-Z]\w*
    """,
    re.VERBOSE,
)

_GONE: Final = frozenset(
    """
    asynchat asyncore cgi commands crypt distutils imp pipes popen2 smtpd telnetlib
    """.split()  # noqa: SIM905 - a list of it would be a page
)
"""Of the standard library of older Pythons; this one does not know them any more."""

_OURS: Final = frozenset({*sys.stdlib_module_names, *IMPORT_MAPPING, *_GONE, "torch", "numpy"})
"""Where only what is listed may be named."""

_CARRIERS: Final = frozenset(
    """
    IPython aiohttp cffi cloudpickle dill fabric httpx invoke ipykernel joblib numba paramiko pexpect pip
    pkg_resources plumbum psutil pytest requests setuptools sh urllib3 virtualenv
    """.split()  # noqa: SIM905 - a list of it would be a page
)
"""Other people's packages that carry, fetch or run code."""

_REACHING: Final = frozenset(
    """
    builtins code codecs ctypes eval exec importlib marshal nt os pickle posix pty runpy shutil subprocess sys
    """.split()  # noqa: SIM905 - a list of it would be a page
)
"""No name of a class in anybody's package goes through these, which it may have imported."""


def is_harmless(name: str) -> bool:
    """Return whether a checkpoint may mention this.

    >>> is_harmless("collections.OrderedDict"), is_harmless("my_project.settings.Settings"), is_harmless("os.system")
    (True, True, False)
    """
    if name in LISTED or _FAMILIES.fullmatch(name):
        return True
    package, *rest = name.split(".")
    if package in _OURS or package in _CARRIERS:
        return False
    return not any(part in _REACHING or (part.startswith("__") and part.endswith("__")) for part in rest)


def is_of_module(name: str) -> bool:
    """Return whether only a whole network that was pickled, code and all, mentions this."""
    return name.startswith(("torch.nn.modules.", "torch.nn.parallel.", "torch.nn.backends.", "torch.nn.utils."))
