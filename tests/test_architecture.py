"""Imports point one way: every module imports only from modules that stand above it in the README's tree."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("schemas", "qbw_eval", "qbw_report")


def _modules_in_reading_order() -> list[str]:
    """Return dotted module names in the order of the README's tree; indentation says which folder a line is in."""
    readme = (REPOSITORY / "README.md").read_text()
    folders: list[str] = []
    modules = []
    for line in readme[readme.rindex("```text") :].splitlines()[1:]:
        if not line.strip() or line.startswith("```"):
            break
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        if name.endswith("/"):
            folders[depth:] = [name.rstrip("/")]
        else:
            modules.append(".".join([*folders[:depth], name.removesuffix(".py")]))
    return [module for module in modules if module.startswith(PACKAGES)]


ORDER = _modules_in_reading_order()


def _imports_of(module: str) -> set[str]:
    """Return our modules that `module` imports anywhere in its text, also inside functions."""
    tree = ast.parse((REPOSITORY / (module.replace(".", "/") + ".py")).read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGES):
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(ORDER)
            found |= submodules or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith(PACKAGES)}
    return found


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_modules_above_it(module: str):
    above = set(ORDER[: ORDER.index(module)])
    assert _imports_of(module) - above == set()


def test_the_order_is_not_empty_and_would_notice_an_import_from_below():
    assert {"schemas.parts", "qbw_eval.store", "qbw_report.build"} <= set(ORDER)
    assert "schemas.parts" in _imports_of("qbw_eval.store")
    assert "qbw_eval.store" not in ORDER[: ORDER.index("schemas.parts")]
