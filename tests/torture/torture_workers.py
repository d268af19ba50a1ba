"""A worker of `qbw-eval run` without its network: `torture_work`'s rows, behind the executors and told by `Dispatch`.

Apart from the test, so that a worker starts without what only the test needs.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from torture_work import plan_of, rows_of

from qbw_eval.dispatch import Open, Opened, Published, Read, Task
from qbw_eval.executors.seam import Event, Work
from qbw_eval.store import RecordStore

PLAN = plan_of(96, chunk_size=8)


def begin(folder: Path, seconds: float, _tell: Callable[[Event], object]) -> Work:
    """Begin a worker that takes so long for a chunk; what it publishes, it notes in a log of its own."""
    store = RecordStore(folder / "records")
    log = os.open(folder / f"{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def work(task: Task) -> object:
        if isinstance(task, Read):
            return task.path
        done = store.done(task.path, PLAN.plan_id)
        if isinstance(task, Open):
            store.add_layers(PLAN.table)
            return Opened(
                checkpoint_id=task.path,
                plan_id=PLAN.plan_id,
                repeat=0,
                experiment="torture",
                epoch=0,
                samples=PLAN.num_samples,
                val_acc=None,
                engine="made up",
                why="torture",
                chunks=tuple((len(c), sum(one.index not in done for one in c)) for c in PLAN.chunks(set())),
            )
        first = task.chunk * PLAN.chunk_size
        accuracies: list[float] = []
        with store.claimed(task.path, PLAN.plan_id, first, PLAN.chunk_size) as mine:
            if not mine and not task.regardless:
                return Published(left=PLAN.chunk_size)
            time.sleep(seconds)
            chunk = PLAN.configurations[first : first + PLAN.chunk_size]
            for piece in PLAN.pieces([one for one in chunk if one.index not in store.done(task.path, PLAN.plan_id)]):
                rows = rows_of(PLAN, task.path, piece)
                new = store.append(task.path, PLAN.plan_id, rows)
                os.write(log, "".join(f"{one}\n" for one in rows["record_id"].to_pylist()).encode())
                accuracies += rows["accuracy"].to_pylist()[-new:] if new else []
        return Published(accuracies=tuple(accuracies))

    return work
