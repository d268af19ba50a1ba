"""Real file systems that fill up or lose their power."""

import contextlib
import random
import re
import time
from itertools import count
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from mounted import disk, grow_tmpfs, tmpfs
from torture_work import (
    acknowledged,
    checkpoint_id_of,
    doubled,
    plan_of,
    rows_in,
    rows_of,
    uninterrupted,
    write_until_told,
)

from qbw_eval.files import Files
from qbw_eval.store import RecordStore, StoreError
from qbw_eval.verify import verify
from schemas import records
from schemas.errors import QBWError
from schemas.parts import decode_part, part_paths


class ForgetfulFiles(Files):
    """The control: everything but waiting for the disk."""

    def sync(self, descriptor: int) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass


# --- a full disk ----------------------------------------------------------------------------------------------------

CHUNK = 16
FULL_PLAN = plan_of(CHUNK * 128, chunk_size=CHUNK, num_samples=8000)  # about 28 KiB a part
CHECKPOINT = checkpoint_id_of(0)


def test_a_full_disk(tmp_path: Path, seed: int, trials, report) -> None:
    wanted, draw = trials(20, 500), random.Random(seed)
    appends = refused = lost = temporaries = not_a_sentence = wrong = disks = 0
    while appends < wanted:
        size = 4096 * draw.randrange(64, 1025)  # 256 KiB to 4 MiB
        with tmpfs(tmp_path / str(disks), size) as folder:
            disks += 1
            store = RecordStore(folder / "records")
            safe, refusals = 0, 0
            for chunk in FULL_PLAN.chunks(set()):
                appends += 1
                try:
                    store.add_layers(FULL_PLAN.table)
                    store.append(CHECKPOINT, FULL_PLAN.plan_id, rows_of(FULL_PLAN, CHECKPOINT, chunk))
                    safe += len(chunk)
                except StoreError as error:
                    refusals += 1
                    sentence = r"/[^\n]*: cannot be written \(No space left on device\); what was committed [^\n]*"
                    not_a_sentence += re.fullmatch(sentence, str(error)) is None
                    temporaries += len(list((folder / ".qbw" / "tmp").iterdir()))
                    if refusals == 3:
                        break
            there = rows_in(folder / "records")
            refused += refusals
            lost += there.num_rows != safe or doubled(there) != 0
            # Room again: the same command continues.
            grow_tmpfs(folder, 64 * 2**20)
            plan = plan_of(safe + 3 * CHUNK, chunk_size=CHUNK, num_samples=8000)
            again = RecordStore(folder / "records")
            again.add_layers(plan.table)
            for chunk in plan.chunks(again.done(CHECKPOINT, plan.plan_id)):
                again.append(CHECKPOINT, plan.plan_id, rows_of(plan, CHECKPOINT, chunk))
            wrong += not rows_in(folder / "records").equals(uninterrupted(plan, [CHECKPOINT]))
            wrong += bool(verify(folder / "records").problems)
    failures = lost + temporaries + not_a_sentence + wrong
    report(
        test="a full disk", trials=appends, failures=failures, unit="appends", disks=disks, refused=refused,
        temporaries_left=temporaries, disks_with_other_rows_than_acknowledged=lost, wrong_after_making_room=wrong,
    )  # fmt: skip
    assert (lost, temporaries, not_a_sentence, wrong) == (0, 0, 0, 0)
    assert refused >= disks


# --- a power cut ----------------------------------------------------------------------------------------------------

WRITERS = 3
CUT_PLAN = plan_of(64, chunk_size=4, num_samples=500)


def cut_once(
    made, folder: Path, logs: list[Path], files: Files, checkpoints: list[str], processes, draw: random.Random
) -> set[str]:
    """Let writers write until the power goes at a random moment, bring the disk back; return what was acknowledged.

    That is, by the moment at which the power went. A process that lives on during the shutdown, as none does without
    power, can be told by xfs that a folder is synced whose journal entry the shutdown has just dropped.
    """
    writers = []
    for log in logs:
        mine = draw.sample(checkpoints, len(checkpoints))
        writers.append(processes.Process(target=write_until_told, args=(folder, CUT_PLAN, mine, log, 0.0, files)))
        writers[-1].start()
    # Mostly in the middle of the work, sometimes before anything was acknowledged.
    early = draw.random() < 0.2
    while not early:
        alive = any(writer.is_alive() for writer in writers)  # asked first: they may say their last word and end
        if acknowledged(logs, CUT_PLAN):
            break
        assert alive, "the writers ended without a word"
        time.sleep(0.005)
    time.sleep(0.25 * draw.random())
    safe = acknowledged(logs, CUT_PLAN)
    made.cut_power()
    for writer in writers:
        writer.join()
    made.unmount()
    made.mount()
    return safe


def ids_in(folder: Path) -> set[str]:
    """Return the record_id of every row in the readable parts of a records folder."""
    ids: set[str] = set()
    for path in part_paths(folder / "records"):
        with contextlib.suppress(QBWError):
            ids |= set(decode_part(path.read_bytes(), records.KIND, path.name)["record_id"].to_pylist())
    return ids


def unreadable(folder: Path) -> int:
    """Return how many files in a records folder, or beside it in layers, are not what they should be."""
    if not (folder / "records").is_dir():
        return 0
    try:
        return len(verify(folder / "records").problems)
    except QBWError:
        return 1


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_power_cuts(tmp_path: Path, processes: ForkServerContext, seed: int, full: bool, trials, report, kind) -> None:
    wanted, draw = trials(0, 200), random.Random(seed)
    if not full:
        pytest.skip("only in make torture")
    names = (tmp_path / f"{number}.log" for number in count())
    cuts = safe_rows = lost = lost_late = bad = wrong = 0
    with disk(kind, tmp_path) as made:
        while cuts < wanted:
            folder = made.folder / str(cuts)
            folder.mkdir()
            checkpoints = [checkpoint_id_of(cuts), checkpoint_id_of(cuts + 1)]
            safe: set[str] = set()
            for _ in range(min(5, wanted - cuts)):
                logs = [next(names) for _ in range(WRITERS)]
                safe |= cut_once(made, folder, logs, Files(), checkpoints, processes, draw)
                cuts += 1
                there, late = ids_in(folder), acknowledged(logs, CUT_PLAN) - safe
                bad += unreadable(folder)
                lost += len(safe - there)
                lost_late += len(late - there)
                safe |= late & there
            safe_rows += len(safe)
            write_until_told(folder, CUT_PLAN, checkpoints, tmp_path / "resumed.log")
            wrong += not rows_in(folder / "records").equals(uninterrupted(CUT_PLAN, checkpoints))
            wrong += unreadable(folder)
    report(
        test=f"power cuts on {kind}",
        trials=cuts,
        failures=lost + bad + wrong,
        unit="cuts",
        acknowledged_rows=safe_rows,
        lost=lost,
        unreadable=bad,
        wrong_after_resuming=wrong,
        acknowledged_during_the_shutdown_and_lost=lost_late,
    )
    assert (lost, bad, wrong) == (0, 0, 0)
    assert safe_rows


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_power_cut_without_sync_loses_rows(
    tmp_path: Path, processes: ForkServerContext, seed: int, full: bool, trials, report, kind
) -> None:
    """The control."""
    wanted, draw = trials(5, 20), random.Random(seed)
    if not full:
        pytest.skip("only in make torture")
    names = (tmp_path / f"{number}.log" for number in count())
    safe_rows = lost = bad = 0
    with disk(kind, tmp_path) as made:
        for cut in range(wanted):
            folder = made.folder / str(cut)
            folder.mkdir()
            checkpoints = [checkpoint_id_of(cut), checkpoint_id_of(cut + 1)]
            logs = [next(names) for _ in range(WRITERS)]
            safe = cut_once(made, folder, logs, ForgetfulFiles(), checkpoints, processes, draw)
            safe_rows, lost, bad = safe_rows + len(safe), lost + len(safe - ids_in(folder)), bad + unreadable(folder)
    report(
        test=f"control: power cuts on {kind} without sync",
        trials=wanted,
        failures=lost + bad,
        unit="cuts",
        control=True,
        acknowledged_rows=safe_rows,
        lost=lost,
        unreadable=bad,
    )
    assert lost > 0
