"""`qbw-eval run --dry-run`: what a run would take, in words and as JSON. Writes nothing."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from qbw_eval.evaluate import Evaluation
from qbw_eval.forecast import Configurations, Forecast, Probe, forecast_of


class DryRun:
    """Forecasts of several checkpoints; those that would run the same plan share a probe."""

    def __init__(self) -> None:
        self._probes: dict[tuple[str, str], Probe] = {}
        self._engines: dict[str, None] = {}
        self._forecasts: list[Forecast] = []

    def add(self, evaluation: Evaluation, chunks: Iterable[Configurations]) -> None:
        """Forecast one checkpoint's missing chunks, which may be none."""
        missing = list(chunks)
        if missing:
            key = evaluation.plan.plan_id, evaluation.engine.name
            forecast = forecast_of(evaluation, missing, self._probes.get(key))
            self._probes.setdefault(key, forecast.probe)
            self._engines[evaluation.engine.name] = None
            self._forecasts.append(forecast)

    def as_dict(self, records: Path) -> dict[str, object]:
        """Return the sums over checkpoints, the most memory that one of them takes, and what the time is based on."""
        return {
            "seconds": sum(forecast.seconds for forecast in self._forecasts),
            "based_on": [
                {"samples": probe.samples, "configurations": probe.configurations, "seconds": probe.seconds}
                for probe in self._probes.values()
            ],
            "disk_bytes": sum(forecast.disk_bytes for forecast in self._forecasts),
            "disk_free_bytes": _free_disk(records),
            "parts": sum(forecast.parts for forecast in self._forecasts),
            "memory": asdict(_largest(self._forecasts).memory) if self._forecasts else None,
        }

    def lines(self, records: Path) -> list[str]:
        """Return the same in words; nothing where nothing would run."""
        if not self._forecasts:
            return []
        seconds, disk = (sum(getattr(one, name) for one in self._forecasts) for name in ("seconds", "disk_bytes"))
        based_on = ", ".join(
            f"{counted(probe.samples, 'sample')} x {counted(probe.configurations, 'configuration')} "
            f"in {probe.seconds:.2g} s"
            for probe in self._probes.values()
        )
        parts = counted(sum(forecast.parts for forecast in self._forecasts), "part")
        memory = _largest(self._forecasts).memory
        activations = "unknown" if memory.activation_bytes is None else in_bytes(memory.activation_bytes)
        return [
            f"Time: {in_time(seconds)}, from a probe on this machine: {based_on} (engine {', '.join(self._engines)}).",
            f"Disk: up to {in_bytes(disk)} in {parts}; {in_bytes(_free_disk(records))} are free.",
            f"Memory: data {in_bytes(memory.data_bytes)}, weights up to {in_bytes(memory.weight_bytes)}, activations "
            f"{activations} at batches of {memory.batch_size}, reference {in_bytes(memory.reference_bytes)}; "
            f"{in_bytes(memory.budget_bytes)} are allowed (--memory).",
        ]


def _largest(forecasts: Sequence[Forecast]) -> Forecast:
    return max(forecasts, key=lambda one: (one.memory.data_bytes, one.memory.activation_bytes or 0))


def _free_disk(path: Path) -> int:
    """Return the bytes that are free where a folder is, or would be made."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def counted(count: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "part"), counted(2, "part")
    ('1 part', '2 parts')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def in_time(seconds: float) -> str:
    """Return a forecast as coarse as it is.

    >>> in_time(0.2), in_time(1.26), in_time(47.1), in_time(200), in_time(9000), in_time(500_000)
    ('under a second', 'about 1.3 s', 'about 47 s', 'about 3 min', 'about 2.5 h', 'about 6 days')
    """
    if seconds < 1:
        return "under a second"
    value, unit = seconds, "s"
    for larger, count, most in (("min", 60, 90), ("h", 60, 90), ("days", 24, 48)):
        if value < most:
            break
        value, unit = value / count, larger
    return f"about {value:.1f} {unit}" if value < 2.95 else f"about {value:.0f} {unit}"


def in_bytes(size: int) -> str:
    """Return bytes in words that `--memory` understands.

    >>> in_bytes(0), in_bytes(999), in_bytes(38_400), in_bytes(1_250_000), in_bytes(212 * 10**9)
    ('0 B', '999 B', '38 kB', '1.2 MB', '212 GB')
    """
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}" if unit != "B" and value < 9.95 else f"{value:.0f} {unit}"
