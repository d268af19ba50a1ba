"""Many workers, many jobs, a cluster: the same rows as of one process, whoever does them and whoever dies."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from shares import ONLY_IN_FULL
from stage_references import Outcome, one_thread, qbw_eval, temporary_files, without_nan

from qbw_eval.commands import executing
from qbw_eval.commands.evaluating import RunOptions, Worker
from qbw_eval.commands.executing import ExecutorOptions, check_workers, executor_of
from qbw_eval.commands.sampler_options import SamplerOptions
from qbw_eval.dispatch import Chunk
from qbw_eval.executors.cluster import Cluster, Facts
from qbw_eval.executors.processes import Processes
from qbw_eval.verify import verify
from schemas.errors import QBWError

COUNT = 130  # three chunks, the last of two configurations
WORDS = ("--limit", 20, "--num-configs", COUNT)


@pytest.fixture(scope="module")
def checkpoints(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints, the last of them once more under another name."""
    folder = tmp_path_factory.mktemp("many") / "checkpoints"
    shutil.copytree(tiny_checkpoints, folder)
    shutil.copy(folder / "epoch_003.pt", folder / "last.pt")
    return folder


def rows_in(records: Path) -> list[dict[str, Any]]:
    """Return the rows without what may differ between two evaluations of the same thing."""
    frame = pd.read_parquet(records).sort_values(["checkpoint", "config_index"])
    assert frame["record_id"].is_unique
    assert verify(records).problems == ()
    rows = without_nan(frame)
    return [{k: v for k, v in row.items() if k not in ("duration_s", "evaluated_at")} for row in rows]


def run(records: Path, *words: object, code: int = 0) -> Outcome:
    outcome = qbw_eval("run", *words, "--records", records)
    assert outcome.code == code, outcome.stderr
    return outcome


@pytest.fixture(scope="module")
def plain(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """The rows of a run in one process, and what it printed."""
    records = tmp_path_factory.mktemp("plain") / "records"
    outcome = run(records, checkpoints, *WORDS)
    rows = rows_in(records)
    assert len(rows) == 3 * COUNT
    return rows, outcome.stdout.replace(str(records), "RECORDS")


SAME = "{0}/last.pt: the same weights and epoch as {0}/epoch_003.pt; evaluated once\n"


def test_two_workers_give_the_same_rows_and_the_same_table(
    checkpoints: Path, plain: tuple[list[dict[str, Any]], str], tmp_path: Path
) -> None:
    records = tmp_path / "records"
    outcome = run(records, checkpoints, *WORDS, "--workers", 2)
    assert rows_in(records) == plain[0]
    assert outcome.stdout.replace(str(records), "RECORDS") == plain[1]
    lines = outcome.stderr.splitlines()
    assert sum(line.startswith("engine: incremental (") for line in lines) == 1
    assert SAME.format(checkpoints).strip() in lines
    assert {f"epoch_00{number}.pt (incremental): {COUNT} configurations" for number in (1, 2, 3)} <= set(lines)
    done = [re.fullmatch(r"worker [12]: (\d+) configurations(, [\d.]+ configurations/s)?", line) for line in lines]
    assert sum(int(one[1]) for one in done if one) == 3 * COUNT
    assert temporary_files(records) == []
    again = run(records, checkpoints, *WORDS, "--quiet")
    assert f"Nothing to do: all {3 * COUNT} rows are in {records}." in again.stdout
    assert again.stderr == SAME.format(checkpoints)


def test_shares_together_give_the_same_rows(
    checkpoints: Path, plain: tuple[list[dict[str, Any]], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, told = tmp_path / "records", []
    for number in (1, 2, 3):
        words = ["--shard", f"{number}/3"]
        if number == 3:
            monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
            words = ["--executor", "shard", "--shard", "auto/3"]
        outcome = run(records, checkpoints, *WORDS, *words, "--json", "--quiet")
        told += json.loads(outcome.stdout)["checkpoints"]
    assert rows_in(records) == plain[0]
    # Of four files the first three go round, and the fourth, which is the third once more, is cut in three.
    assert [(Path(one["checkpoint"]).name, one["evaluated_now"]) for one in told] == [
        ("epoch_001.pt", COUNT),
        ("epoch_002.pt", COUNT),
        ("epoch_003.pt", COUNT),
    ]


def test_a_checkpoint_is_shared_by_its_chunks_where_there_are_fewer_than_shares(
    checkpoints: Path, plain: tuple[list[dict[str, Any]], str], tmp_path: Path
) -> None:
    records, numbers = tmp_path / "records", []
    for number in (2, 1):
        outcome = run(records, checkpoints / "epoch_002.pt", *WORDS, "--shard", f"{number}/2", "--quiet")
        numbers.append(int(re.findall(r"Evaluated now: (\d+)\.", outcome.stdout)[0]))
    assert numbers == [66, 64]
    assert rows_in(records) == [row for row in plain[0] if row["checkpoint"] == "epoch_002.pt"]
    dry = run(records, checkpoints / "epoch_002.pt", *WORDS[:2], "--num-configs", 256, "--shard", "2/2", "--dry-run")
    assert dry.stdout.splitlines()[-1] == f"Dry run: 126 configurations would be evaluated; 2 are in {records}."


def test_dask_gives_the_same_rows_here_and_at_an_address(
    checkpoints: Path, plain: tuple[list[dict[str, Any]], str], tmp_path: Path
) -> None:
    records = tmp_path / "records"
    words = (checkpoints / "epoch_001.pt", checkpoints / "epoch_002.pt", *WORDS)
    first = run(records, *words, "--executor", "dask", "--workers", 2)
    assert len(re.findall(r"^tcp://127\.0\.0\.1:\d+: \d+ configurations", first.stderr, re.MULTILINE)) in (1, 2)
    with Cluster(partial(Worker, OPTIONS), lambda *_: None, environments=[{"OMP_NUM_THREADS": "1"}]) as cluster:
        outcome = run(records, checkpoints, *WORDS, "--scheduler", cluster._address, "--quiet", "--json")
        told = json.loads(outcome.stdout)["checkpoints"]
        assert [(one["done_before"], one["evaluated_now"]) for one in told] == [(COUNT, 0), (COUNT, 0), (0, COUNT)]
        assert rows_in(records) == plain[0]
        of = f"asked for, but of the 1 workers of {cluster._address} 0 have"
        for asked, sentence in (("--gpus=1", f"--gpus: 1 {of} one"), ("--device=cuda", f"--device: 'cuda' {of} a GPU")):
            start = time.monotonic()
            refused = run(records, checkpoints, *WORDS, "--scheduler", cluster._address, asked, code=1)
            assert refused.stderr == f"qbw-eval: error: {sentence}\n"
            assert time.monotonic() - start < 20, "on a busy machine; about half a second on an idle one"


OPTIONS = RunOptions(
    checkpoints=(),
    config=None,
    records=Path("records"),
    sampling=SamplerOptions(
        sampler=None, num_configs=None, seed=None, range=None, cost=None, base=None, configurations=None, of=None
    ),
    bitwidths=None,
    device="auto",
    batch_size=None,
    limit=None,
    split="validation",
    engine="auto",
    skip=None,
    per_class=False,
    memory=None,
    data_root=None,
    max_bytes=None,
    trust_pickle=(),
    tf32=False,
    resume=True,
    dry_run=False,
    as_json=False,
    quiet=True,
    verbose=False,
)


# --- who dies, stops, or cannot ---------------------------------------------------------------------------------------

CONSOLE_SCRIPT = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from qbw_eval.cli import main; main()"
)


def workers_of(process: int) -> list[int]:
    """Return the children of a process, whichever of its threads has started them."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for children in lists for child in children.read_text().split()]


@pytest.mark.parametrize(
    "executor",
    [
        ("--workers", "2"),
        pytest.param(
            ("--executor", "dask", "--workers", "2"),
            marks=ONLY_IN_FULL,
        ),
    ],
    ids=" ".join,
)
def test_ctrl_c_stops_all_workers_and_keeps_what_is_done(
    checkpoints: Path, plain: tuple[list[dict[str, Any]], str], tmp_path: Path, executor: tuple[str, ...]
) -> None:
    records = tmp_path / "records"
    words = ["run", str(checkpoints), *map(str, WORDS), "--records", str(records), "--quiet", *executor]
    process = subprocess.Popen(
        [sys.executable, "-c", CONSOLE_SCRIPT, *words], stdout=-1, stderr=-1, text=True, env=one_thread()
    )
    while process.poll() is None and not list(records.glob("*-0*.parquet")):
        time.sleep(0.005)
    children = workers_of(process.pid)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (130, ""), stderr
    kept = re.fullmatch(
        rf"(?:.*; evaluated once\n)?qbw-eval: error: interrupted; (\d+) new rows are kept in {re.escape(str(records))} "
        r"\(\d of 4 checkpoints are finished\); the same command continues\n",
        stderr,
    )
    assert kept, stderr
    assert children
    end = time.monotonic() + 30  # what is told to end by a closed pipe takes a moment
    while (left := [child for child in children if Path(f"/proc/{child}").exists()]) and time.monotonic() < end:
        time.sleep(0.01)
    assert not left
    assert int(kept[1]) <= len(pd.read_parquet(records)) < 3 * COUNT
    run(records, checkpoints, *WORDS)
    assert rows_in(records) == plain[0]


DEADLY = """
import os
import signal

import torch.nn.functional as F
from torch import nn


class Layer(nn.Conv2d):
    def __init__(self):
        super().__init__(1, 1, 1)
        self.curr_bitwidth = 8

    def forward(self, x):
        return super().forward(x) * (1 + self.curr_bitwidth / 100)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(8))

    def forward(self, x):
        if [layer.curr_bitwidth for layer in self.layers] == [2, 2, 2, 8, 8, 2, 4, 4]:
            os.kill(os.getpid(), signal.SIGKILL)
        for layer in self.layers:
            x = layer(x)
        return x.flatten(1)


def make():
    return Net()
"""


def test_a_chunk_that_kills_its_workers_and_a_bad_checkpoint_are_named_and_the_rest_is_done(tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    np.savez(tmp_path / "val.npz", inputs=np.ones((4, 1, 2, 2), "float32"), labels=np.arange(4))
    config = tmp_path / "mine.yaml"
    config.write_text("model: {factory: 'deadly:make'}\ndata: {source: tensors, validation: val.npz}\n"
                      "quantization: {q: {bitwidth_options: [2, 4, 8]}}\n")  # fmt: skip
    weights = {f"layers.{n}.{name}": torch.ones(1, 1, 1, 1)[: 1] if name == "weight" else torch.zeros(1)
               for n in range(8) for name in ("weight", "bias")}  # fmt: skip
    torch.save({"state_dict": weights, "epoch": 1}, tmp_path / "net.pt")
    draw = np.random.default_rng(0)
    given = [tuple(map(int, row)) for row in draw.choice([2, 4, 8], size=(200, 8))]
    deadly = (2, 2, 2, 8, 8, 2, 4, 4)
    given = list(dict.fromkeys(bits for bits in given if bits != deadly))[:140]
    given[100] = deadly
    (tmp_path / "given.json").write_text(json.dumps([list(bits) for bits in given]))
    words = ("--config", config, "--configurations", tmp_path / "given.json", "--engine", "reference", "--workers", 2)
    (tmp_path / "bad.pt").write_text("no checkpoint")
    outcome = run(tmp_path / "records", tmp_path / "bad.pt", tmp_path / "net.pt", *words, "--quiet", code=1)
    assert outcome.stderr == (
        f"qbw-eval: error: {tmp_path}/bad.pt: expected a file written by torch.save, found text\n"
        f"{tmp_path}/net.pt: configurations 64 to 127 killed their worker 3 times (signal 9, Killed) and are left out; "
        "the others go on\n"
        "qbw-eval: error: 1 of 2 checkpoints could not be evaluated, and 1 chunk of configurations killed every worker "
        "that tried; the sentences above say why\n"
    )
    assert sorted(pd.read_parquet(tmp_path / "records")["config_index"]) == [*range(64), *range(128, 140)]


def test_a_worker_that_would_write_other_rows_refuses(checkpoints: Path, tmp_path: Path) -> None:
    path = checkpoints / "epoch_001.pt"
    worker = Worker(RunOptions(**{**vars(OPTIONS), "records": tmp_path / "records", "limit": 5}), lambda _event: None)
    chunk = Chunk(number=0, path=str(path), checkpoint_id="0" * 64, plan_id="0" * 32, repeat=0, chunk=0)
    with pytest.raises(QBWError, match=rf"^{re.escape(str(path))}: has changed while it was evaluated; run the same"):
        worker(chunk)
    session = worker.open(chunk)  # type: ignore[arg-type]  # it has a path
    sha256 = session.evaluation.checkpoint.sha256
    with pytest.raises(QBWError, match=r"another series than those of the worker that opened it \(here: incremental"):
        worker(Chunk(number=0, path=str(path), checkpoint_id=sha256, plan_id="0" * 32, repeat=0, chunk=0))


# --- what is asked for ------------------------------------------------------------------------------------------------

WITHOUT_DASK = """
import sys
sys.modules["distributed"] = sys.modules["dask"] = None
from qbw_eval.cli import main
common = sys.argv[1:]
for more in (["--executor", "dask"], []):
    sys.argv[1:] = [*common, *more]
    try:
        main()
    except SystemExit as ended:
        print("ended:", ended.code or 0)
"""


def test_without_dask_all_else_works_and_the_error_names_the_extra(checkpoints: Path, tmp_path: Path) -> None:
    common = ["run", str(checkpoints / "epoch_001.pt"), "--limit", "5", "--num-configs", "2", "--quiet"]
    command = [sys.executable, "-c", WITHOUT_DASK, *common, "--records", str(tmp_path / "records")]
    both = subprocess.run(command, capture_output=True, text=True, env=one_thread(), check=True)
    assert both.stderr == (
        "qbw-eval: error: --executor dask: distributed is not installed: pip install 'qbw[dask]'; the executors local "
        "and shard do without\n"
    )
    refused, done = both.stdout.split("ended: 1\n")
    assert refused == ""
    assert "Evaluated now: 2." in done
    assert done.endswith("ended: 0\n")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--gpus", 3), 1, "--gpus: 3 asked for, but with --device auto there is none here"),
        (("--gpus", 1, "--device", "cpu"), 1, "--gpus: 1 asked for, but with --device cpu there is none here"),
        (("--gpus", 1, "--executor", "dask"), 1, "--gpus: 1 asked for, but with --device auto there is none here"),
        (("--shard", "4/3"), 2, "--shard: expected a number from 1 to the number of shares, found 4/3"),
        (("--shard", "1/3", "--executor", "local"), 2, "--shard: goes with --executor shard, not with local"),
        (
            ("--shard", "1/3", "--scheduler", "tcp://a:1"),
            2,
            "--shard and --scheduler: they are two executors; leave one out",
        ),
        (
            ("--scheduler", "tcp://a:1", "--executor", "shard"),
            2,
            "--scheduler: goes with --executor dask, not with shard",
        ),
        (
            ("--scheduler", "tcp://a:1", "--workers", 2),
            2,
            "--workers: goes without --scheduler, whose workers are those that have joined it",
        ),
        (
            ("--shard", "1/3", "--no-resume"),
            2,
            "--no-resume: goes without --shard, since jobs could not agree on which repetition it is",
        ),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_cannot_be_is_one_sentence_at_once(
    checkpoints: Path, tmp_path: Path, words: tuple[object, ...], code: int, sentence: str
) -> None:
    start = time.monotonic()
    outcome = run(tmp_path / "records", checkpoints, *words, code=code)
    assert outcome.stderr == f"qbw-eval: error: {sentence}\n"
    assert time.monotonic() - start < 5
    assert not (tmp_path / "records").exists()


def test_executor_shard_alone_asks_the_environment(checkpoints: Path, tmp_path: Path) -> None:
    outcome = run(tmp_path / "records", checkpoints, "--executor", "shard", code=2)
    assert outcome.stderr.startswith("qbw-eval: error: --shard auto: neither SLURM_ARRAY_TASK_ID nor ")


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What torch would say on a machine with four GPUs; nothing here computes on one."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    return monkeypatch


def pinned(options: RunOptions, **where: Any) -> list[str | None]:
    """Return which GPU each process would see."""
    environments = executing._environments(options, ExecutorOptions(**where))
    return [environment.get("CUDA_VISIBLE_DEVICES") for environment in environments]


def test_each_gpu_gets_a_process_that_sees_no_other(four_gpus: pytest.MonkeyPatch) -> None:
    assert pinned(OPTIONS) == ["0", "1", "2", "3"]
    assert pinned(OPTIONS, gpus=2) == ["0", "1"]
    assert pinned(OPTIONS, workers=6) == ["0", "1", "2", "3", "0", "1"]
    assert pinned(OPTIONS, gpus=1) == [None], "this process"
    four_gpus.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-5,1,0")
    assert pinned(OPTIONS) == ["7", "GPU-5", "1", "0"]
    assert pinned(RunOptions(**{**vars(OPTIONS), "device": "cuda:1"}), workers=2) == ["GPU-5", "GPU-5"]
    assert pinned(RunOptions(**{**vars(OPTIONS), "device": "cpu"}), workers=2) == [None, None]
    executor = executor_of(OPTIONS, ExecutorOptions(workers=6), lambda *_: None)
    assert isinstance(executor, Processes)
    assert executor.capacity() == 6
    start = executor._start
    assert isinstance(start, partial)
    assert (start.args[0].device, start.keywords) == ("cuda", {"sharing": 2})
    with pytest.raises(QBWError, match=r"^--gpus: 5 asked for, but with --device auto there are 4 here$"):
        pinned(OPTIONS, gpus=5)


def test_threads_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    for count, threads in ((2, "4"), (3, "2"), (16, "1")):
        environments = executing._environments(OPTIONS, ExecutorOptions(workers=count))
        assert environments == [{"OMP_NUM_THREADS": threads}] * count


@pytest.mark.parametrize(
    ("gpus", "versions", "device", "wanted", "sentence"),
    [
        ([1, 1], [], "cuda", 2, None),
        ([0, 0], [], "auto", None, None),
        ([1, 1], [], "auto", 3, "--gpus: 3 asked for, but of the 2 workers of S 2 have one"),
        ([1, 0], [], "cuda:0", None, "--device: 'cuda:0' asked for, but of the 2 workers of S 1 have a GPU"),
        (
            [1, 0],
            [],
            "auto",
            None,
            "--device: of the 2 workers of S 1 have a GPU, and rows of both kinds would be two series; say --device "
            "cpu, or let only those with a GPU join",
        ),
        ([], [], "auto", 1, "--gpus: 1 asked for, but of the 0 workers of S 0 have one"),
        ([0], ["9.9"], "cpu", None, "S: its workers have QBW 9.9, here it is {ours}; install one version"),
    ],
)
def test_workers_have_what_is_asked_for_or_nothing_begins(
    gpus: list[int], versions: list[str], device: str, wanted: int | None, sentence: str | None
) -> None:
    ours = executing.version("qbw")
    facts = {str(n): Facts(gpus=count, version=(versions or [ours] * 9)[n]) for n, count in enumerate(gpus)}
    if sentence is None:
        check_workers(facts, device, wanted, "S")
        return
    with pytest.raises(QBWError, match=f"^{re.escape(sentence.format(ours=ours))}$"):
        check_workers(facts, device, wanted, "S")


def test_the_examples_run() -> None:
    import doctest

    assert doctest.testmod(executing).failed == 0
