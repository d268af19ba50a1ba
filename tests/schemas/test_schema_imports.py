"""`schemas` lies below both stages: importing all of it loads neither, nor torch; and the proof can fail."""

import subprocess
import sys
from pathlib import Path

import schemas

FORBIDDEN = ("torch", "qbw_eval", "qbw_report", "pandas", "numpy.random", "matplotlib", "click", "pydantic")


def forbidden_after(statements: str) -> list[str]:
    """Return which of the forbidden modules a fresh interpreter has loaded after the statements."""
    ask = f"import sys\n{statements}\nprint(*[name for name in {FORBIDDEN} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_schemas_imports_neither_stage_nor_torch() -> None:
    modules = sorted(path.stem for path in Path(schemas.__path__[0]).glob("*.py") if path.stem != "__init__")
    assert {"columns", "records", "layers", "costs", "check", "parts", "errors"} <= set(modules)
    assert forbidden_after("\n".join(f"import schemas.{module}" for module in modules)) == []


def test_the_proof_can_fail() -> None:
    assert forbidden_after("import schemas.parts, qbw_eval") == ["qbw_eval"]
