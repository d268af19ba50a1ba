"""One function in several processes: the items' order, processes that are killed, Ctrl-C while processes are forked."""

import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from simulated_records import simulate, write_records

from qbw_report.workers import each_in_order
from schemas.errors import QBWError

CTRL_C_AT_A_FORK = """
import os, signal, sys, threading, time

def ctrl_c():
    if not forks:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)  # whichever thread takes it, Python has heard of it
    forks.append(1)

forks = []
os.register_at_fork({when}=ctrl_c)
os.sched_getaffinity = lambda _: {{0, 1}}  # two processes, wherever this runs
threading.Thread(target=threading.Event().wait, daemon=True).start()  # one that takes signals, as those of pyarrow do
signal.signal(signal.SIGINT, signal.{handler})
"""
"""The beginning of a program to which a signal comes at the worst moment: Python ignores what its hooks raise."""

CONSOLE_SCRIPT = "from qbw_report.cli import main; main()"


def test_processes_return_things_in_order_and_errors_as_they_are() -> None:
    assert list(each_in_order(math.factorial, range(30))) == [math.factorial(n) for n in range(30)]
    with pytest.raises(ValueError, match="not defined for negative values"):
        list(each_in_order(math.factorial, [*range(20), -1]))
    assert list(each_in_order(math.factorial, [])) == []


def test_a_killed_process_is_one_sentence() -> None:
    with pytest.raises(QBWError) as raised:
        list(each_in_order(_die, [False] * 20 + [True] * 20))
    assert str(raised.value) == "a process of the report was killed; is there too little memory? Run it again"


def _die(dies: bool) -> None:
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)


def test_ctrl_c_while_processes_are_forked_ends_the_build(tmp_path: Path) -> None:
    parts = [simulate(experiment=f"run {number}", epochs=1, configs=2) for number in range(8)]
    records = write_records(tmp_path / "records", *parts)
    program = CTRL_C_AT_A_FORK.format(when="after_in_parent", handler="default_int_handler") + CONSOLE_SCRIPT
    ended = _run(program, "build", str(records), "--out", str(tmp_path / "report"))
    assert (ended.returncode, ended.stdout) == (130, "")
    told = [line for line in ended.stderr.splitlines() if line]
    assert told == [f"qbw-report: reading {records}", "qbw-report: interrupted"]
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("handler", "printed"),
    [
        ("default_int_handler", "interrupted\n"),
        ("SIG_IGN", "45\n"),  # as in the background of a script
    ],
)
@pytest.mark.parametrize("when", ["before", "after_in_parent"])
def test_ctrl_c_while_processes_are_forked_does_what_it_does_elsewhere(when: str, handler: str, printed: str) -> None:
    program = CTRL_C_AT_A_FORK.format(when=when, handler=handler) + (
        f"""
from qbw_report.workers import each_in_order
try:
    print(sum(each_in_order(abs, range(10))))
except KeyboardInterrupt:
    print("interrupted")
assert len(forks) == 2
assert signal.getsignal(signal.SIGINT) is signal.{handler}, "as it was before"
"""
    )
    ended = _run(program)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, printed, "")


def test_in_another_thread_than_the_main_one_ctrl_c_is_left_to_that() -> None:
    answers: list[int] = []
    work = threading.Thread(target=lambda: answers.extend(each_in_order(abs, range(10))))
    work.start()
    work.join()
    assert answers == list(range(10))


def _run(program: str, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60)
