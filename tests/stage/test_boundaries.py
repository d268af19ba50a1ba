"""Help is instant because it imports nothing heavy, and the README names only what exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from qbw_eval.cli import cli as eval_cli
from qbw_report.cli import cli as report_cli

REPOSITORY = Path(__file__).parent.parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")

HEAVY = ("torch", "numpy", "pandas", "pyarrow", "matplotlib", "seaborn", "tensorboard", "pydantic", "yaml", "rich")


# --- help -----------------------------------------------------------------------------------------------------------


def loaded_by(program: str, words: list[str], before: str = "") -> list[str]:
    """Return which heavy packages a fresh interpreter has loaded after running a console script with these words."""
    module = program.replace("-", "_")
    code = (
        f"import sys\n{before}\nfrom {module}.cli import main\n"
        f"sys.argv = [{program!r}, *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert ended.code == 0, ended.code\n"
        f"print('LOADED', *[name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *_, last = done.stdout.splitlines()
    assert last.startswith("LOADED")
    return last.split()[1:]


@pytest.mark.parametrize("program", ["qbw-eval", "qbw-report"])
@pytest.mark.parametrize("words", [["--help"], ["--version"]], ids=" ".join)
def test_help_imports_nothing_heavy(program: str, words: list[str]) -> None:
    assert loaded_by(program, words) == []


@pytest.mark.parametrize("word", eval_cli.commands)
def test_the_help_of_a_word_imports_nothing_heavy(word: str) -> None:
    assert loaded_by("qbw-eval", [word, "--help"]) == []


@pytest.mark.parametrize("program", ["qbw-eval", "qbw-report"])
def test_the_check_above_can_fail(program: str) -> None:
    assert loaded_by(program, ["--help"], before="import yaml, rich") == ["yaml", "rich"]


def test_what_help_leaves_out_a_command_does_import() -> None:
    """The control for the names: they are what the packages are called."""
    assert {"pydantic", "yaml"} <= set(loaded_by("qbw-eval", ["schema"]))


def test_modules_that_say_they_need_no_torch_load_none() -> None:
    saying = [path for path in (REPOSITORY / "qbw_eval").rglob("*.py") if "Needs no torch." in path.read_text()]
    modules = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in saying]
    assert {"qbw_eval.cost", "qbw_eval.plan", "qbw_eval.layer_table"} <= set(modules)
    code = f"import sys, {', '.join([*modules, 'qbw_eval.store'])}\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- the README's commands ------------------------------------------------------------------------------------------


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):(?!=)", MAKEFILE, re.MULTILINE))


def code_in_readme() -> str:
    """Return the README's shell blocks and `spans of code`, where commands stand."""
    blocks = re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    without_blocks = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", without_blocks)])


def test_every_make_target_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"\bmake ([a-z-]+)\b", code_in_readme()))
    assert {"demo", "eval", "report", "test"} <= named
    assert named <= make_targets()


def test_make_alone_lists_every_target_with_its_purpose() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory"], cwd=REPOSITORY, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    listed = dict(re.findall(r"^  make ([a-z-]+) +(\S.*)$", done.stdout, re.MULTILINE))
    assert listed.keys() == make_targets()
    assert len(listed) == len(done.stdout.splitlines())
    assert make_targets() <= set(re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)[0].split())


def console_commands() -> list[list[str]]:
    """Return the words of every `qbw-eval ...` and `qbw-report ...` in the README, comments aside."""
    lines = re.findall(r"^(?:\$ )?(qbw-(?:eval|report)\b.*)$", code_in_readme(), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_every_console_command_that_the_readme_shows_exists_with_its_options() -> None:
    commands = console_commands()
    assert {("qbw-eval", "run"), ("qbw-report", "build")} <= {tuple(words[:2]) for words in commands}
    groups: dict[str, click.Group] = {"qbw-eval": eval_cli, "qbw-report": report_cli}
    for program, *words in commands:
        group = groups[program]
        if not words or words[0].startswith("-"):
            continue
        assert words[0] in group.commands, f"{program} {words[0]}"
        parameters = group.commands[words[0]].params
        known = {name for one in parameters for name in (*one.opts, *one.secondary_opts)} | {"--help"}
        options = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert options <= known, f"{program} {' '.join(words)}"
