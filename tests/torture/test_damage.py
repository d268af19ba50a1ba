"""A part with a byte changed, or cut short, wherever that is: `verify` finds every one."""

import random
from pathlib import Path

import pytest
from torture_work import checkpoint_id_of, plan_of, rows_of

from qbw_eval.store import RecordStore
from qbw_eval.verify import verify
from schemas import layers, records
from schemas.errors import QBWError
from schemas.parts import decode_part, encode_part

PLAN = plan_of(8, chunk_size=8)
MASKS = (0x01, 0x80, 0xFF)
PARTS = {
    "a part": (rows_of(PLAN, checkpoint_id_of(0), PLAN.configurations), records.KIND),
    "the anchor": (records.RECORD_SCHEMA.empty_table(), records.KIND),
    "a layer table": (PLAN.table.to_arrow(), layers.KIND),
}


def damages(data: bytes) -> list[tuple[int, int | None]]:
    """Return every damage: (position, mask), or (length, None) for a truncation."""
    flips = [(position, mask) for position in range(len(data)) for mask in MASKS]
    return flips + [(length, None) for length in range(len(data))]


def damaged(data: bytes, where: int, mask: int | None) -> bytes:
    return data[:where] if mask is None else data[:where] + bytes([data[where] ^ mask]) + data[where + 1 :]


@pytest.mark.parametrize("name", PARTS)
def test_damage(seed: int, trials, report, name: str) -> None:
    table, kind = PARTS[name]
    data = encode_part(table, kind, "here")
    every = damages(data)
    tried = random.Random(seed).sample(every, min(len(every), trials(600, len(every))))
    missed, other_values = [], 0
    for where, mask in tried:
        try:
            back = decode_part(damaged(data, where, mask), kind, "here")
        except QBWError:
            continue
        missed.append((where, mask))
        other_values += not back.equals(table)
    report(
        test=f"damage to {name}", trials=len(tried), failures=len(missed), unit="mutations", bytes=len(data),
        found_percent=100 * (1 - len(missed) / len(tried)), silently_other_values=other_values,
        flipped=sum(mask is not None for _, mask in tried), truncated=sum(mask is None for _, mask in tried),
    )  # fmt: skip
    assert missed == []


def test_verify_names_the_damaged_file(tmp_path: Path, seed: int, trials, report) -> None:
    """The same through the whole command: every file of a folder, damaged one at a time, is the one that is named."""
    store = RecordStore(tmp_path / "records")
    store.add_layers(PLAN.table)
    store.append(checkpoint_id_of(0), PLAN.plan_id, rows_of(PLAN, checkpoint_id_of(0), PLAN.configurations))
    assert verify(store.records).problems == ()
    paths = [*store.records.iterdir(), *store.layers.iterdir()]
    assert len(paths) == 3
    draw, missed, tried = random.Random(seed), 0, 0
    for path in paths:
        data = path.read_bytes()
        every = damages(data)
        for where, mask in draw.sample(every, trials(50, 1000)):
            path.write_bytes(damaged(data, where, mask))
            missed += [problem.path for problem in verify(store.records).problems] != [path]
            tried += 1
        path.write_bytes(data)
    report(test="damage, through verify", trials=tried, failures=missed, unit="mutations")
    assert missed == 0
