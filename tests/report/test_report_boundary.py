"""The report knows neither torch nor the evaluator, and its help costs no heavy import."""

import subprocess
import sys
from pathlib import Path

import pytest
from simulated_records import simulate, write_records

# Runs `qbw-report` after importing every module of it, then prints which of the forbidden modules are loaded.
CHECK = """
import importlib, pkgutil, sys
import qbw_report
for module in pkgutil.iter_modules(qbw_report.__path__, "qbw_report."):
    importlib.import_module(module.name)
import qbw_report.cli
sys.argv = ["qbw-report", *{words!r}]
try:
    qbw_report.cli.main()
except SystemExit as ended:
    assert ended.code == 0, ended.code
{after}
print("LOADED", *sorted({{"torch", "qbw_eval"}} & set(sys.modules)))
"""


def loaded(words: list[str], after: str = "", path: str = "") -> list[str]:
    code = CHECK.format(after=after, words=words)
    if path:
        code = f"import sys; sys.path.insert(0, {path!r})\n{code}"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1].split()[1:]


def test_building_a_report_loads_neither_torch_nor_the_evaluator(tmp_path: Path) -> None:
    records = write_records(tmp_path / "records", simulate(epochs=1, configs=5))
    assert loaded(["build", str(records), "--out", str(tmp_path / "out")]) == []


def test_the_check_above_can_fail(tmp_path: Path) -> None:
    # A stand-in, because loading the real torch takes seconds; the check only looks at names.
    (tmp_path / "torch.py").write_text("", encoding="utf-8")
    assert loaded(["--version"], after="import torch, qbw_eval", path=str(tmp_path)) == ["qbw_eval", "torch"]


@pytest.mark.parametrize("words", [["--help"], ["build", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from qbw_report import cli\n"
        f"sys.argv = ['qbw-report', *{words!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'pandas', 'pyarrow', 'matplotlib', 'seaborn', 'tensorboard', 'rich', 'torch'}\n"
        "print('LOADED', *sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "LOADED"
