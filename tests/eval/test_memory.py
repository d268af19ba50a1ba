"""Memory: how much there is, what it is spent on; where it runs out, batches become smaller and rows stay the same."""

import dataclasses
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from qbw_eval import evaluate as evaluate_module
from qbw_eval import memory
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.data.batches import Batches, SentBatches, batches_on
from qbw_eval.data.sources import load_split
from qbw_eval.engine.choose import Engine
from qbw_eval.evaluate import (
    Evaluation,
    EvaluationSettings,
    comparison_of,
    data_bytes,
    evaluate,
    is_resident,
    measure,
    prepare,
)
from qbw_eval.memory import MemoryBudget, free_memory, is_out_of_memory, parse_size
from qbw_eval.nested import to_device
from schemas.errors import QBWError

CPU = torch.device("cpu")
SAMPLES = 60

# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("2000000000", 2_000_000_000),
        ("1kB", 1_000),
        ("800MB", 800_000_000),
        ("4GB", 4_000_000_000),
        ("2TB", 2_000_000_000_000),
        ("1KiB", 1_024),
        ("3MiB", 3_145_728),
        ("4GiB", 4_294_967_296),
        ("1TiB", 1_099_511_627_776),
        ("1.5GiB", 1_610_612_736),
        ("0.5 mib", 524_288),
        ("  7 Gb ", 7_000_000_000),
        ("1.9", 1),
    ],
)
def test_a_size_in_words(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "4G", "4 giga", "1e9", "4GiB8", "1,5GB", "nan", "1..2GB", "½GB"])
def test_what_is_no_size_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="size") as error:
        parse_size(text)
    assert str(error.value) == f"expected a size such as 800MB, 4GiB or a number of bytes, found {text!r}"


# --- budgets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [0, 1, 3, 4, 1_000_003, 2**40])
def test_a_budget_is_spent_whole_and_not_twice(total: int) -> None:
    budget = MemoryBudget(total)
    assert budget.data + budget.caches + budget.activations == total
    assert budget.data == budget.caches == total // 4


def settings(**changes: Any) -> EvaluationSettings:
    values: dict[str, Any] = {
        "sampler": "iid",
        "num_configs": 5,
        "seed": 1,
        "bitwidths": None,
        "batch_size": 400,
        "device": CPU,
        "engine": "incremental",
    }
    return EvaluationSettings(**{**values, **changes})


def test_a_quarter_of_what_is_free_is_used_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_module, "free_memory", lambda device: 4_000 if device == CPU else 0)
    assert settings().budget == MemoryBudget(1_000)
    assert settings(memory=77).budget == MemoryBudget(77)
    assert settings(memory=0).budget == MemoryBudget(0)


def test_free_memory_is_the_least_that_any_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < free_memory(CPU) <= memory._available()
    monkeypatch.setattr(memory, "_available", lambda: 1_000)
    monkeypatch.setattr(memory, "_left_in_cgroup", lambda: [])
    assert free_memory(CPU) == 1_000
    monkeypatch.setattr(memory, "_left_in_cgroup", lambda: [400])
    assert free_memory(CPU) == 400
    monkeypatch.setattr(memory, "_left_in_cgroup", lambda: [4_000])
    assert free_memory(CPU) == 1_000


@pytest.mark.parametrize(
    ("limit", "used", "left"),
    [("max\n", "5\n", []), ("1000\n", "400\n", [600]), ("1000", "1400", [0]), ("?", "1", []), (None, "1", [])],
)
def test_what_a_container_may_still_take(tmp_path: Path, limit: str | None, used: str, left: list[int]) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(used)
    assert memory._left_in_cgroup(tmp_path) == left


@pytest.mark.parametrize(("limit", "found"), [("1000\n", [1000]), ("max\n", []), ("", []), (None, [])])
def test_what_a_container_may_take_in_all(tmp_path: Path, limit: str | None, found: list[int]) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    assert memory._limit_of_cgroup(tmp_path) == found


def test_there_is_no_more_memory_than_the_least_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_limit_of_cgroup", lambda: [])
    everything = memory.total_memory()
    assert everything >= free_memory(CPU) > 0
    monkeypatch.setattr(memory, "_limit_of_cgroup", lambda: [400])
    assert memory.total_memory() == 400
    monkeypatch.setattr(memory, "_limit_of_cgroup", lambda: [2 * everything])
    assert memory.total_memory() == everything


def test_page_cache_that_can_be_given_back_is_not_taken(tmp_path: Path) -> None:
    for name, text in (("max", "1000"), ("current", "900"), ("stat", "anon 150\ninactive_file 700\nslab 50\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory._left_in_cgroup(tmp_path) == [800]


# --- running out ----------------------------------------------------------------------------------------------------


def test_torchs_own_words_on_this_machine_are_understood() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**61, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


OUT_OF_MEMORY: list[BaseException] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_the_ways_to_run_out(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("DefaultCPUAllocator: can't allocate memory"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_other_errors_are_other_errors(error: BaseException) -> None:
    assert not is_out_of_memory(error)


class Cramped:
    """An engine with room for so many samples; what it says about its needs is made up."""

    def __init__(
        self, engine: Engine, fails: Callable[[int, int], bool], error: BaseException, needs: int | None = None
    ) -> None:
        self.name, self.numerics = engine.name, engine.numerics
        self._engine, self._fails, self._error, self._needs = engine, fails, error, needs
        self.tried: list[int] = []
        """Batch sizes, in the order in which they were tried."""

    def logits(self, inputs: Any, configurations: Sequence[BitwidthConfiguration]) -> Generator[tuple[int, Tensor]]:
        self.tried.append(len(inputs))
        for number, result in enumerate(self._engine.logits(inputs, configurations)):
            if self._fails(len(inputs), number):
                raise self._error
            yield result

    def peak_bytes(self, _inputs: Any, _configurations: Sequence[BitwidthConfiguration]) -> int | None:
        return self._needs


@pytest.fixture(scope="module")
def evaluation(demo_checkpoint: Path) -> Evaluation:
    checkpoint = read_checkpoint(demo_checkpoint)
    return prepare(checkpoint, load_split(checkpoint.experiment.data, "validation").limited(SAMPLES), settings())


def rows_of(evaluation: Evaluation) -> tuple[list[dict[str, Any]], list[str], list[float]]:
    """Return the rows, in two chunks, what was told, and how far it was told to have come."""
    told: list[str] = []
    advanced: list[float] = []
    configurations = list(evaluation.plan.configurations)
    tables = evaluate(evaluation, [configurations[:3], configurations[3:]], advanced.append, told.append)
    return pa.concat_tables(tables).to_pylist(), told, advanced


def assert_same(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(rows) == 5
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"duration_s", "evaluated_at", "loss", "kl_divergence"}:
            assert row[name] == other[name], name
        for name in ("loss", "kl_divergence"):  # float32's last place may depend on the batch
            assert row[name] == pytest.approx(other[name], rel=1e-5)


def cramped(evaluation: Evaluation, engine: Cramped, **changes: Any) -> Evaluation:
    return dataclasses.replace(evaluation, engine=engine, settings=dataclasses.replace(evaluation.settings, **changes))


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_where_memory_runs_out_batches_are_halved_and_rows_stay_the_same(
    evaluation: Evaluation, error: BaseException
) -> None:
    expected, told, _ = rows_of(evaluation)
    assert told == []
    engine = Cramped(evaluation.engine, lambda size, _: size > 10, error)
    rows, told, advanced = rows_of(cramped(evaluation, engine))
    assert told == [f"out of memory on cpu: going on with batches of {size} samples" for size in (30, 15, 7)]
    assert engine.tried[:4] == [60, 30, 15, 7], "the batch size asked for, 400, is more than there are samples"
    assert max(engine.tried[3:]) == 7
    assert_same(rows, expected)
    assert sum(advanced) == pytest.approx(5)


def test_where_memory_runs_out_half_way_the_chunk_begins_anew(evaluation: Evaluation) -> None:
    """The reference configuration alone fits, and so does the first batch of each chunk."""
    expected, _, _ = rows_of(evaluation)
    batches = 0

    def fails(size: int, number: int) -> bool:
        nonlocal batches
        batches += number == 1
        return size == 20 and number == 1 and batches == 2

    engine = Cramped(evaluation.engine, fails, MemoryError())
    rows, told, advanced = rows_of(cramped(evaluation, engine, batch_size=20))
    assert told == ["out of memory on cpu: going on with batches of 10 samples"]
    assert_same(rows, expected)
    assert sum(advanced) == pytest.approx(5)
    assert min(advanced) == pytest.approx(-1), "one batch of three, of three configurations, is taken back"


def test_batches_may_become_single_samples(evaluation: Evaluation) -> None:
    expected, _, _ = rows_of(evaluation)
    engine = Cramped(evaluation.engine, lambda size, _: size > 1, MemoryError())
    rows, told, _ = rows_of(cramped(evaluation, engine, batch_size=4))
    assert told == [f"out of memory on cpu: going on with batches of {what}" for what in ("2 samples", "1 sample")]
    assert_same(rows, expected)


def test_where_not_one_sample_fits_one_sentence_says_so(evaluation: Evaluation) -> None:
    engine = Cramped(evaluation.engine, lambda _size, _number: True, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(QBWError) as error:
        rows_of(cramped(evaluation, engine, batch_size=2))
    path = evaluation.checkpoint.path
    assert str(error.value) == (f"{path}: cpu has not memory enough for one sample; free some, or use another --device")
    assert error.value.__suppress_context__, "nobody is shown torch's traceback"
    assert engine.tried == [2, 1]


def test_another_error_is_not_taken_for_a_lack_of_memory(evaluation: Evaluation) -> None:
    engine = Cramped(evaluation.engine, lambda _size, _number: True, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        rows_of(cramped(evaluation, engine))
    assert engine.tried == [60]


def test_memory_that_runs_out_below_the_budget_is_told_truly(evaluation: Evaluation) -> None:
    """The budget allows 20 samples; it was too optimistic, and what follows is half of 20, not of 400."""
    expected, _, _ = rows_of(evaluation)
    needs = evaluation.budget.activations // 10  # of two samples
    engine = Cramped(evaluation.engine, lambda size, _: size > 10, MemoryError(), needs)
    rows, told, _ = rows_of(cramped(evaluation, engine))
    assert told == [
        "20 samples a batch instead of 60: more do not fit into the memory allowed (--memory)",
        "out of memory on cpu: going on with batches of 10 samples",
    ]
    assert engine.tried[:2] == [20, 10]
    assert_same(rows, expected)


# --- a small budget --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fitting", [1, 7, 59])
def test_a_small_budget_makes_small_batches_and_the_same_rows(evaluation: Evaluation, fitting: int) -> None:
    expected, _, _ = rows_of(evaluation)
    configurations = list(evaluation.plan.configurations)[:3]
    with torch.inference_mode():
        per_two = evaluation.engine.peak_bytes(evaluation.split.inputs[:2], configurations)
    assert per_two is not None
    total = 2 * -(-per_two * fitting // 2)
    small = dataclasses.replace(evaluation, budget=MemoryBudget(total))
    rows, told, _ = rows_of(small)
    samples = "1 sample" if fitting == 1 else f"{fitting} samples"
    assert told == [f"{samples} a batch instead of 60: more do not fit into the memory allowed (--memory)"]
    assert_same(rows, expected)


def test_a_budget_of_nothing_still_tries_one_sample_at_a_time(evaluation: Evaluation) -> None:
    engine = Cramped(evaluation.engine, lambda _size, _number: False, MemoryError(), needs=10**9)
    rows, told, _ = rows_of(dataclasses.replace(cramped(evaluation, engine), budget=MemoryBudget(0)))
    assert told == ["1 sample a batch instead of 60: more do not fit into the memory allowed (--memory)"]
    assert set(engine.tried) == {1}
    assert len(rows) == 5


def test_an_engine_that_does_not_know_its_needs_is_given_what_was_asked_for(evaluation: Evaluation) -> None:
    engine = Cramped(evaluation.engine, lambda _size, _number: False, MemoryError(), needs=None)
    _, told, _ = rows_of(dataclasses.replace(cramped(evaluation, engine, batch_size=25), budget=MemoryBudget(0)))
    assert told == []
    assert set(engine.tried) == {25, 10}


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("size", [1, 7, 60, 100])
def test_batches_are_the_split_in_order_each_time_they_are_gone_through(
    evaluation: Evaluation, size: int, resident: bool
) -> None:
    batches = batches_on(evaluation.split, size, CPU, resident=resident)
    assert len(batches) == -(-SAMPLES // size)
    for _ in range(2):
        found = list(batches)
        assert [len(batch.labels) for batch in found[:-1]] == [size] * (len(batches) - 1)
        assert torch.equal(torch.cat([batch.inputs for batch in found]), evaluation.split.inputs)
        assert torch.equal(torch.cat([batch.labels for batch in found]), evaluation.split.labels)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("narrow", [True, False])
def test_what_is_measured_does_not_depend_on_how_data_are_kept(
    evaluation: Evaluation, resident: bool, narrow: bool
) -> None:
    configurations = list(evaluation.plan.configurations)
    expected = measure(evaluation.engine, batches_on(evaluation.split, 25, CPU), configurations)
    batches = batches_on(evaluation.split, 25, CPU, resident=resident, narrow=narrow)
    assert measure(evaluation.engine, batches, configurations) == expected


# --- data on a GPU --------------------------------------------------------------------------------------------------


def on_a_gpu(evaluation: Evaluation, budget: int) -> Evaluation:
    """Return an evaluation that would run there; it cannot here, but what it would do with its data can be seen."""
    return dataclasses.replace(
        evaluation,
        settings=dataclasses.replace(evaluation.settings, device=torch.device("cuda")),
        budget=MemoryBudget(budget),
    )


def test_data_stay_on_a_gpu_where_their_narrowest_form_fits(evaluation: Evaluation) -> None:
    """The digits have 17 shades: a byte each, and a table."""
    size = SAMPLES * 64 + 17 * 4 + SAMPLES
    assert data_bytes(evaluation) == SAMPLES * 64 * 4 + SAMPLES * 8
    assert is_resident(dataclasses.replace(evaluation, budget=MemoryBudget(0))), "on the CPU they lie there anyway"
    for budget, resident, left in ((4 * size, True, 0), (4 * size + 40, True, 10), (4 * size - 4, False, size - 1)):
        there = on_a_gpu(evaluation, budget)
        assert data_bytes(there) == size
        assert is_resident(there) == resident
        comparison = comparison_of(there)
        assert comparison is not None
        assert comparison.limit == left, "what the data leave is for the reference's results"


@pytest.mark.parametrize("fits", [True, False])
def test_on_a_gpu_the_same_rows_come_of_narrow_data(
    evaluation: Evaluation, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is called a GPU where its data are decided on, and is the CPU."""
    expected, _, _ = rows_of(evaluation)
    size = evaluation.split.narrow_bytes
    kinds = []

    def here(of: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **more: of(*(CPU if one == torch.device("cuda") else one for one in given), **more)

    def batches(*given: Any, **more: Any) -> Any:
        made = here(batches_on)(*given, **more)
        kinds.append((type(made), made.parts[0][0].values.dtype))
        return made

    monkeypatch.setattr(evaluate_module, "batches_on", batches)
    monkeypatch.setattr(evaluate_module, "to_device", here(to_device))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "cpu")
    engine = Cramped(evaluation.engine, lambda _size, _number: False, MemoryError(), needs=None)
    there = dataclasses.replace(on_a_gpu(evaluation, 4 * size - 4 * (not fits)), engine=engine)
    there = cramped(there, engine, batch_size=60)
    rows, _, _ = rows_of(there)
    assert kinds == [(Batches if fits else SentBatches, torch.uint8)]
    assert_same(rows, expected)


def test_memory_that_ends_before_anything_is_measured_is_one_sentence_too(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cramped_choice(*_arguments: object, **_more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("qbw_eval.evaluate.choose_engine", cramped_choice)
    with pytest.raises(QBWError, match=r"^.*: cpu has not memory enough for one sample; free some, or use another"):
        prepare(evaluation.checkpoint, evaluation.split, evaluation.settings)
