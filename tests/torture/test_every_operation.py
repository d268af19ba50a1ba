"""A fault at the k-th file operation, for every k, on a model of a disk that forgets what was not synced."""

import functools
import random
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from itertools import product
from pathlib import Path

import pyarrow as pa
import pytest
from model_files import KINDS, Fault, Folder, ModelFiles, ProcessDiedError, after_power_cut
from shares import ONLY_IN_FULL
from torture_work import checkpoint_id_of, doubled, plan_of, rows_of, uninterrupted

import qbw_eval.store
from qbw_eval.store import RecordStore, StoreError
from schemas import layers, records
from schemas.errors import QBWError
from schemas.parts import decode_part, encode_part

PLAN = plan_of(5, chunk_size=2, num_samples=16)
CHECKPOINT = checkpoint_id_of(0)
RECORDS = Path("/home/results/records")
CUTS = [(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.5, 0.5), (0.9, 0.1)]
"""Chances that unsynced names and unsynced bytes survive: all lost, all kept, names without bytes, and so on."""


@pytest.fixture(autouse=True)
def _remembered_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encode and decode the same table once: both are pure, and thousands of runs write the same five rows."""
    encoded: dict[tuple[str, int], bytes] = {}

    def encode(table: pa.Table, kind: str, where: str) -> bytes:
        key = (where, table.num_rows)  # the rows of a name and length are always the same here
        if key not in encoded:
            encoded[key] = encode_part(table, kind, where)
        return encoded[key]

    monkeypatch.setattr(qbw_eval.store, "encode_part", encode)
    monkeypatch.setattr(qbw_eval.store, "decode_part", remembered_decode)


remembered_decode = functools.cache(decode_part)
rows_of_chunk = functools.cache(lambda indices: rows_of(PLAN, CHECKPOINT, [PLAN.configurations[i] for i in indices]))


def evaluate(files: ModelFiles, safe: set[int], *, look: bool = True) -> None:
    """Evaluate what is missing and add to `safe` what the store says is committed; `look` False: try every chunk."""
    store = RecordStore(RECORDS, files)
    store.sweep()
    done = store.done(CHECKPOINT, PLAN.plan_id) if look else set()
    safe |= done  # a person is told "done before" of these
    store.add_layers(PLAN.table)
    for chunk in PLAN.chunks(done):
        indices = tuple(configuration.index for configuration in chunk)
        store.append(CHECKPOINT, PLAN.plan_id, rows_of_chunk(indices))
        safe |= set(indices)


def what_is_wrong(disk: Folder, safe: set[int], expected: pa.Table, *, complete: bool) -> Iterator[str]:
    """Yield what a person would find on this disk: torn parts, lost or doubled rows, a layer table that is gone."""
    files = ModelFiles(disk)
    tables = [records.RECORD_SCHEMA.empty_table()]
    for name in files.names(RECORDS):
        try:
            tables.append(remembered_decode(files.read(RECORDS / name), records.KIND, name))
        except QBWError:
            yield "torn part"
    rows = pa.concat_tables(tables).sort_by("record_id")
    if safe - set(rows["config_index"].to_pylist()):
        yield "lost rows"
    if doubled(rows):
        yield "doubled rows"
    if safe:
        path = RECORDS.parent / "layers" / f"{PLAN.table.model_id}.parquet"
        try:
            remembered_decode(files.read(path), layers.KIND, path.name)
        except FileNotFoundError:
            yield "lost layer table"
        except QBWError:
            yield "torn layer table"
    if complete and not rows.equals(expected):
        yield "other rows than an uninterrupted run"
    if complete and files.names(RECORDS.parent / ".qbw" / "tmp"):
        yield "temporary file left"


def new_disk() -> Folder:
    home = Folder()
    return Folder({"home": home}, {"home": home})


def half_done_disk() -> Folder:
    """Return a disk on which somebody died having named the second part, before that name was synced."""
    disk, whole = new_disk(), new_disk()
    operations: list[str] = []
    recording = ModelFiles(whole)
    recording.name = lambda temporary, final: (  # type: ignore[method-assign]
        operations.append(f"{recording.count + 1}"),
        ModelFiles.name(recording, temporary, final),
    )
    evaluate(recording, set())
    died_at = int(operations[3])  # anchor, layer table, first part, second part
    with pytest.raises(ProcessDiedError):
        evaluate(ModelFiles(disk, Fault("die after", died_at)), set())
    assert len(ModelFiles(disk).names(RECORDS)) == 3
    return disk


def power_cuts(disk: Folder, seed: int) -> Iterator[Folder]:
    for number, (names, data) in enumerate(CUTS):
        yield after_power_cut(disk, names, data, random.Random(f"{seed} {number}"))


def try_every_operation(
    seed: int, forgotten: tuple[str, ...] = (), every: int = 1
) -> tuple[int, int, Counter[str], Counter[str]]:
    """Let every (or only every so many-th) operation fail in every way.

    Returns:
        How many disks were inspected, how many of them were wrong, in which ways, and which operations were hit.
    """
    expected = uninterrupted(PLAN, [CHECKPOINT])
    inspected, bad, wrong, hit = 0, 0, Counter[str](), Counter[str]()

    def resume(disk: Folder, safe: set[int], *, look: bool) -> Iterator[str]:
        """Finish on this disk, and then lose what was never synced."""
        evaluate(ModelFiles(disk, forgotten=forgotten), safe, look=look)
        yield from what_is_wrong(disk, safe, expected, complete=True)
        lost = after_power_cut(disk, 0.0, 0.0, random.Random(seed))
        yield from (f"after resuming and a cut: {what}" for what in what_is_wrong(lost, safe, expected, complete=False))

    for start, kind in product((new_disk(), half_done_disk()), KINDS):
        whole_run = ModelFiles(deepcopy(start), forgotten=forgotten)
        evaluate(whole_run, set())
        for at in range(1, whole_run.count + 1, every):
            for scenario in ("cut", "resume", "resume without looking"):
                disk, safe = deepcopy(start), set[int]()
                files = ModelFiles(disk, Fault(kind, at), forgotten)
                try:
                    evaluate(files, safe)
                except (StoreError, ProcessDiedError):
                    pass
                except OSError as error:
                    wrong[f"{type(error).__name__} instead of a sentence, at {files.happened}"] += 1
                    bad += 1
                if kind == "short" and not files.happened:
                    break  # not a write
                hit[files.happened] += 1
                found = list(power_cuts(disk, seed * 1000 + at)) if scenario == "cut" else [disk]
                for after in found:
                    inspected += 1
                    try:
                        problems = list(what_is_wrong(after, safe, expected, complete=False))
                        problems += resume(after, set(safe), look=scenario != "resume without looking")
                    except StoreError:
                        problems = ["resuming is refused"]
                    wrong.update(problems)
                    bad += bool(problems)
    return inspected, bad, wrong, hit


def test_every_operation(seed: int, full: bool, report) -> None:
    inspected, bad, wrong, hit = try_every_operation(seed, every=1 if full else 3)
    report(
        test="a fault at every file operation", trials=inspected, failures=bad, unit="disks inspected",
        faults=dict(hit), wrong=dict(wrong),
    )  # fmt: skip
    assert wrong == {}
    assert bad == 0
    assert set(hit) >= {"make_folder", "names", "read", "create", "write", "sync", "close", "name"}
    assert set(hit) >= {"remove", "sync_folder"}


@pytest.mark.parametrize(
    "forgotten",
    [("sync", "sync_folder"), *(pytest.param((one,), marks=ONLY_IN_FULL) for one in ("sync", "sync_folder"))],
)
def test_without_sync_the_same_check_fails(seed: int, full: bool, report, forgotten: tuple[str, ...]) -> None:
    """The control: this is how the suite would look if it could not see what it is looking for."""
    inspected, bad, wrong, _ = try_every_operation(seed, forgotten, every=1 if full else 10)
    report(
        test=f"control: the same without {' and '.join(forgotten)}", trials=inspected, failures=bad,
        unit="disks inspected", control=True, wrong=dict(wrong),
    )  # fmt: skip
    if "sync" in forgotten:
        assert wrong["torn part"] > 0
    if "sync_folder" in forgotten:
        assert wrong["lost rows"] > 0
