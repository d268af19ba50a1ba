"""C++ of our own, compiled when it is needed and run by torch's own threads.

The compiler writes into a folder that nobody else may enter and that is gone at once: no library lies about that others
might replace.
"""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

COMPILERS = ("c++", "g++", "clang++")
"""Looked for in this order."""

_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-Wno-psabi")
_EXACT_FLAGS = ("-ffp-contract=off", "-fwrapv", "-fno-math-errno")
"""Nothing is contracted, and int32 wraps around; that errno is left alone changes no value."""


class KernelError(Exception):
    """There is no such program here; the text says why and is no whole sentence."""


def compile_to(library: Path, source: Path, flags: Sequence[str]) -> None:
    """Compile a program.

    Args:
        library: the file to be written.
        source: one file of C++.
        flags: besides those that every program has.

    Raises:
        KernelError: there is no compiler, or it fails.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise KernelError("no C++ compiler is found")
    command = [compiler, *_FLAGS, *_EXACT_FLAGS, *flags, "-o", str(library), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"its C++ compiler does not run ({type(error).__name__})") from None
    if done.returncode:
        lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
        raise KernelError(f"its C++ compiler fails ({next((line for line in lines if 'error' in line), lines[0])})")


def compiled(source: Path, flags: Sequence[str], call: type[ctypes.Structure]) -> ctypes.CDLL:
    """Return a program, compiled and loaded.

    Args:
        source: one file of C++, whose qbw_call_bytes returns the size of its own `Call`.
        flags: besides those that every program has.
        call: what it is called with, which has the same fields.

    Raises:
        KernelError: there is no compiler, it fails, it has no folder to write to, or what it makes cannot be loaded.
    """
    try:
        temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # NFS keeps files that are in use
    except OSError as error:
        raise KernelError(f"there is no folder to compile it in ({error.strerror})") from None
    with temporary as folder:
        library = Path(folder) / f"{source.stem}.so"
        compile_to(library, source, flags)
        try:
            program = ctypes.CDLL(str(library))
        except OSError as error:
            raise KernelError(f"what is compiled cannot be loaded ({error})") from None
    program.qbw_call_bytes.restype = ctypes.c_int64
    assert program.qbw_call_bytes() == ctypes.sizeof(call)
    return program


def torch_threads() -> int:
    """Return the address of GOMP_parallel in the library that torch's own threads come from, whichever that is.

    Every OpenMP runtime has it that GCC's or Clang's programs may be linked with. It is looked for where torch's own
    library would find it, so that no second runtime, with threads of its own, is ever started.

    Raises:
        KernelError: torch has no such threads.
    """
    assert torch.__file__ is not None
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        address = ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        raise KernelError("torch's threads are not OpenMP's") from None
    assert address is not None
    return address
