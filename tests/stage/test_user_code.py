"""Functions of the user's own: found, not found, failing, each in one sentence."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qbw_eval.user_code import UserCodeError, function_name, load_function, running_user_code
from schemas.errors import QBWError, UsageError


@pytest.fixture(autouse=True)
def modules_are_forgotten() -> Iterator[None]:
    before, path = set(sys.modules), list(sys.path)
    yield
    assert sys.path == path, "sys.path is as it was"
    for name in set(sys.modules) - before:
        del sys.modules[name]


def written(folder: Path, text: str, name: str = "mine_of_test.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refusal(name: str, folder: Path | None) -> str:
    with pytest.raises(UserCodeError) as error:
        load_function(name, "data.factory", folder)
    assert isinstance(error.value, UsageError)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_function_beside_the_experiment_file_is_found_with_the_modules_beside_it(tmp_path: Path) -> None:
    written(tmp_path, "import helper_of_test\ndef make(number):\n    return number + helper_of_test.more\n")
    written(tmp_path, "more = 2\n", "helper_of_test.py")
    assert load_function("mine_of_test:make", "here", tmp_path)(40) == 42


def test_modules_in_packages_and_installed_ones_are_found(tmp_path: Path) -> None:
    written(tmp_path, "def make():\n    return 'inner'\n", "package_of_test/inner.py")
    assert load_function("package_of_test.inner:make", "here", tmp_path)() == "inner"
    assert load_function("math:sqrt", "here")(9) == 3


def test_a_relative_folder_is_that_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "def make():\n    return 1\n", "sub/mine_of_test.py")
    monkeypatch.chdir(tmp_path)
    assert load_function("mine_of_test:make", "here", Path("sub"))() == 1


@pytest.mark.parametrize("name", ["math", "math.sqrt", "math:", ":sqrt", "a b:c", "math:sqrt()", "../x:y", "1a:b", ""])
def test_what_names_no_function_is_refused_before_anything_is_imported(name: str, tmp_path: Path) -> None:
    expected = f"expected a function of your own as package.module:function, found {name!r}"
    with pytest.raises(ValueError, match="expected a function") as error:
        function_name(name)
    assert str(error.value) == expected
    assert refusal(name, tmp_path) == f"data.factory: {expected}"


def test_a_name_of_a_function_is_returned_as_it_is() -> None:
    assert function_name("package.module_1:make") == "package.module_1:make"


def test_a_module_that_is_not_there_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    expected = "expected a function of your own as package.module:function"
    assert refusal("nowhere_of_test:make", tmp_path) == (
        f"data.factory: nowhere_of_test:make: there is no module 'nowhere_of_test' in {tmp_path} or among what is "
        f"installed; {expected}"
    )
    assert refusal("nowhere_of_test.inner:make", None) == (
        "data.factory: nowhere_of_test.inner:make: there is no module 'nowhere_of_test' among what is installed; "
        f"{expected}"
    )


def test_a_module_that_imports_one_that_is_not_there_has_its_place_told(tmp_path: Path) -> None:
    path = written(tmp_path, "x = 1\nimport nowhere_of_test\n")
    assert refusal("mine_of_test:make", tmp_path) == (
        f"data.factory: mine_of_test:make: ModuleNotFoundError: No module named 'nowhere_of_test' ({path}:2)"
    )


def test_a_function_that_is_not_there_gets_a_suggestion(tmp_path: Path) -> None:
    path = written(tmp_path, "make_data = 5\ndef make_batches():\n    pass\n")
    assert refusal("mine_of_test:make_batch", tmp_path) == (
        f"data.factory: mine_of_test:make_batch: {path} has no function 'make_batch'; did you mean 'make_batches'?"
    )
    assert refusal("mine_of_test:make_data", tmp_path).startswith(
        f"data.factory: mine_of_test:make_data: {path} has a int, not a function, 'make_data'"
    )


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("x = 1\nx / 0\n", "ZeroDivisionError: division by zero", 2),
        ("\n\nraise SystemExit(3)\n", "SystemExit: 3", 3),
        ("raise ValueError('first\\nsecond')\n", "ValueError: first", 1),
        ("raise ValueError\n", "ValueError", 1),
        ("import json\n\njson.loads('{')\n", "JSONDecodeError: Expecting property name", 3),
    ],
)
def test_what_goes_wrong_while_importing_is_one_sentence(text: str, what: str, line: int, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    found = refusal("mine_of_test:make", tmp_path)
    assert found.startswith(f"data.factory: mine_of_test:make: {what}")
    assert found.endswith(f" ({path}:{line})")


def test_a_syntax_error_has_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "x = 1\ndef make(:\n    pass\n")
    assert refusal("mine_of_test:make", tmp_path).endswith(f" ({path}:2)")


def test_errors_of_a_function_that_runs_name_the_innermost_line_of_the_users(tmp_path: Path) -> None:
    path = written(tmp_path, "def make():\n    return inner()\n\ndef inner():\n    raise KeyError('label')\n")
    function = load_function("mine_of_test:make", "data.factory", tmp_path)
    with pytest.raises(UserCodeError) as error, running_user_code("mine_of_test:make", "data.factory"):
        function()
    assert str(error.value) == f"data.factory: mine_of_test:make: KeyError: 'label' ({path}:5)"


def test_our_own_errors_and_ctrl_c_pass() -> None:
    for kind in (QBWError, KeyboardInterrupt):
        with pytest.raises(kind), running_user_code("a:b", "here"):
            raise kind("ours")


def test_what_the_users_code_prints_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, "print('imported')\ndef make():\n    print('made')\n")
    function = load_function("mine_of_test:make", "here", tmp_path)
    with running_user_code("mine_of_test:make", "here"):
        function()
    print("ours")
    assert capsys.readouterr() == ("ours\n", "imported\nmade\n")
