"""Configurations that somebody wrote down: JSON, YAML or CSV -> bits per layer, and back.

A configuration is a list of bits in forward order, or bits by layer name; a file holds

    JSON, YAML    one configuration, a list of them, or either under `configurations`; a configuration may stand under
                  `bitwidths`, beside whatever else its author says of it
    CSV           a header of layer names, a line a configuration; columns that are named as columns of the record
                  (config_index, avg_bitwidth, ...) say something about the configuration, and are passed over

`qbw-eval sample --out` writes all three. Nothing in a file is run, and its size is bounded.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbw_eval.yaml_reader import read_yaml
from schemas.errors import UsageError, did_you_mean
from schemas.records import RECORD_SCHEMA

_MOST_BYTES = 64 * 2**20
_KINDS = (".json", ".yaml", ".yml", ".csv")


@dataclass(frozen=True)
class Given:
    """Configurations as they were written, before it is known which network they are for.

    Attributes:
        source: where they stand, for errors.
        entries: bits in forward order, or by layer name.
    """

    source: str
    entries: tuple[tuple[int, ...] | Mapping[str, int], ...]

    def in_order(self, names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the bits of each configuration in forward order; `names` are the network's layers.

        Raises:
            UsageError: a configuration names a layer that there is not, or leaves one out; lists both sides.
        """
        return tuple(
            entry if isinstance(entry, tuple) else _in_order(entry, names, f"{self.source}: configuration {number}")
            for number, entry in enumerate(self.entries, start=1)
        )


def _in_order(bits_of: Mapping[str, int], names: Sequence[str], where: str) -> tuple[int, ...]:
    unknown = [f"unknown layer {name!r}{did_you_mean(name, list(names))}" for name in bits_of if name not in names]
    missing = [f"no bits for layer {name!r}" for name in names if name not in bits_of]
    if unknown or missing:
        raise UsageError(f"{where} does not fit the network: " + "; ".join([*unknown, *missing]))
    return tuple(bits_of[name] for name in names)


def read_given(path: Path) -> Given:
    """Return the configurations in a file.

    Raises:
        UsageError: it cannot be read, is of another kind, or holds something else.
    """
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise UsageError(f"{path}: expected a file of configurations ending in {', '.join(_KINDS)}")
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{path}: expected at most {_MOST_BYTES >> 20} MiB of configurations")
    entries = _csv_entries(data, path) if kind == ".csv" else _entries(_plain(data, kind, path), str(path))
    if not entries:
        raise UsageError(f"{path}: expected configurations, found none")
    return Given(str(path), tuple(entries))


def _plain(data: bytes, kind: str, path: Path) -> Any:
    """Return the plain values of a JSON or YAML file."""
    if kind == ".json":
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise UsageError(f"{path}: not readable as JSON ({what})") from None
    document = read_yaml(data)
    if document.problems:
        problem = document.problems[0]
        raise UsageError(f"{path}:{problem.position.line}:{problem.position.column}: {problem.what}")
    return document.value


def _entries(value: Any, where: str) -> list[tuple[int, ...] | Mapping[str, int]]:
    if isinstance(value, Mapping) and "configurations" in value:
        value = value["configurations"]
    several = isinstance(value, list) and all(isinstance(item, list | Mapping) for item in value)
    return [_entry(item, f"{where}: configuration {n}") for n, item in enumerate(value if several else [value], 1)]


def _entry(item: Any, where: str) -> tuple[int, ...] | Mapping[str, int]:
    if isinstance(item, Mapping) and isinstance(item.get("bitwidths"), list | Mapping):
        item = item["bitwidths"]
    if isinstance(item, Mapping):
        return {str(name): _bits(bits, f"{where}: layer {name!r}") for name, bits in item.items()}
    if isinstance(item, list):
        return tuple(_bits(bits, f"{where}: layer {index}") for index, bits in enumerate(item))
    raise UsageError(f"{where}: expected bits by layer name, or a list of bits in forward order, found {item!r:.50}")


def _bits(value: Any, where: str) -> int:
    if type(value) is not int or not 1 <= value <= 32:
        raise UsageError(f"{where}: expected a whole number of bits from 1 to 32, found {value!r:.50}")
    return value


def _csv_entries(data: bytes, path: Path) -> list[Mapping[str, int]]:
    try:
        header, *lines = (line for line in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")) if line)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: not readable as CSV ({error})") from None
    except ValueError:
        raise UsageError(f"{path}: expected a header of layer names, found an empty file") from None
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        raise UsageError(f"{path}: expected every column once, found {', '.join(sorted(twice))} more than once")
    entries: list[Mapping[str, int]] = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}: configuration {number}"
        if len(line) != len(header):
            raise UsageError(f"{where}: expected {len(header)} values, as the header has, found {len(line)}")
        cells = {name: cell for name, cell in zip(header, line, strict=True) if name not in RECORD_SCHEMA.names}
        entries.append(
            {
                name: _bits(int(cell) if cell.strip().isdecimal() and len(cell) < 10 else cell, f"{where}: {name}")
                for name, cell in cells.items()
            }
        )
    return entries


def given_text(kind: str, rows: Iterable[Mapping[str, Any]], names: Sequence[str] | None) -> str:
    """Return the text of a file of configurations, which `read_given` reads.

    Args:
        kind: ".json", ".yaml", ".yml" or ".csv".
        rows: what is said of each configuration, at least one, by names of the record's columns; `bitwidths` is a list.
        names: the layers' names, where they are known; CSV needs them.
    """
    said = list(rows)
    if kind == ".csv":
        assert names is not None
        columns = [name for name in said[0] if name != "bitwidths"]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*columns, *names])
        writer.writerows([*(row[name] for name in columns), *row["bitwidths"]] for row in said)
        return text.getvalue()
    if names is not None:
        said = [{**row, "bitwidths": dict(zip(names, row["bitwidths"], strict=True))} for row in said]
    if kind == ".json":
        return json.dumps({"configurations": said}, indent=2) + "\n"
    # JSON is YAML's flow style.
    return "configurations:\n" + "".join(f"  - {json.dumps(row)}\n" for row in said)
