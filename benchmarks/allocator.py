"""glibc's allocator: its defaults against keeping what was freed, each in a process of its own, in turn.

By default glibc hands large freed tensors back to the system at once, and the next one page-faults its way in again.
"""

import multiprocessing
import sys
from multiprocessing.connection import Connection

import torch

from benchmarks.figures import Figure, ratio
from benchmarks.prepared import prepare
from benchmarks.timing import Timed, interleaved
from benchmarks.workloads import Workload
from qbw_eval.memory import keep_freed_memory


def _work(connection: Connection, workload: Workload, keep: bool, threads: int) -> None:
    """Say whether settings took, then measure the workload with `auto` whenever anything arrives, until None does."""
    torch.set_num_threads(threads)
    connection.send(keep_freed_memory() if keep else True)
    prepared = prepare(workload, torch.device("cpu"))
    measuring = prepared.measuring(prepared.auto, workload.random_configurations())
    while connection.recv() is not None:
        measuring()
        connection.send(True)


def allocator_figures(workload: Workload, rounds: int) -> list[Figure]:
    """What `auto` costs with glibc's defaults over what it costs when freed memory is kept."""
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit this process's heap
    processes, connections = [], {}
    timed = {}
    listening = []
    try:
        for name, keep in (("defaults", False), ("keeping", True)):
            connection, theirs = spawn.Pipe()
            process = spawn.Process(
                target=_work, args=(theirs, workload, keep, torch.get_num_threads()), name=name, daemon=False
            )
            process.start()
            theirs.close()
            processes.append(process)
            connections[name] = connection
            listening.append(connection.recv())

            def once(connection: Connection = connection) -> None:
                connection.send("measure")
                connection.recv()

            timed[name] = Timed(action=once, units=workload.count)
        if not all(listening):
            print("bench: no allocator settings here: the C library is not glibc", file=sys.stderr)
            return []
        times = interleaved(timed, rounds)
    finally:
        for connection in connections.values():
            connection.send(None)
            connection.close()
        for process in processes:
            process.join()
    label = f"{workload.label}, {workload.count} random configurations"
    return [ratio(f"auto, glibc's defaults / freed memory kept, {label}", times["defaults"], times["keeping"])]
