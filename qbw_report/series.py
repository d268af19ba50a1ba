"""Which rows belong together: a series is one experiment on one data set, and what is odd about it is said."""

import hashlib
import re
from collections.abc import Iterable, Sequence

import pandas as pd

_IDENTITY = ["experiment", "split", "data_id", "network_id"]

_SINGLE = {"checkpoint_id": "checkpoints", "model_id": "networks", "engine": "engines"}
"""What one epoch of a series should have one of, and what several are called."""


def add_series(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a column `series`, the name under which they are reported.

    It is the experiment's name; an experiment that was evaluated on several data sets, or as several networks (with
    --config, --tf32 or another engine), is a series for each of them, named like ``demo [validation 1a2b3c4d]`` or
    ``demo [validation 1a2b3c4d, integer]``, because accuracies on different samples or of different arithmetic must not
    be averaged.
    """
    known = frame[_IDENTITY].drop_duplicates(ignore_index=True)
    name = known["experiment"].map(printable)
    several = known["experiment"].duplicated(keep=False)
    data = name + " [" + known["split"].map(printable) + " " + known["data_id"].str[:8]
    computed_twice = known.duplicated(["experiment", "split", "data_id"], keep=False)
    if computed_twice.any():
        data += (", " + _engines_of(frame, known)).where(computed_twice, "")
    name = name.where(~several, data + "]")
    # Two names can still be equal: data ids that begin alike, an experiment called like another one's series.
    exact = [_digest(repr(identity)) for identity in known.itertuples(index=False, name=None)]
    name = name.where(~name.duplicated(keep=False), name + " #" + pd.Series(exact))
    return frame.merge(known.assign(series=name), on=_IDENTITY, how="left", validate="many_to_one")


def _engines_of(frame: pd.DataFrame, known: pd.DataFrame) -> pd.Series:
    """Return the engines of each identity's rows, such as ``incremental + reference``, in the order of `known`."""
    engines = frame[[*_IDENTITY, "engine"]].drop_duplicates()
    engines = engines.assign(engine=engines["engine"].fillna("unknown engine").map(printable))
    said = engines.groupby(_IDENTITY, dropna=False)["engine"].agg(lambda each: " + ".join(sorted(set(each))))
    return known.merge(said.reset_index(), on=_IDENTITY, how="left")["engine"]


def notes_on(cells: pd.DataFrame) -> list[str]:
    """Return a sentence for everything that a reader should know before trusting the statistics of these rows.

    Args:
        cells: `qbw_report.cells.cells_frame`, with `series`.
    """
    notes = []
    for experiment, name in cells.groupby("experiment")["series"]:
        if name.nunique() > 1:
            data = len(cells.loc[name.index, ["split", "data_id"]].drop_duplicates())
            how = f"on {data} data sets" if data == name.nunique() else f"in {name.nunique()} ways"
            why = "" if data == name.nunique() else " (data, network settings or engine)"
            notes.append(f"{printable(str(experiment))} was evaluated {how}{why}; each has a series")
    for series, lines in cells.groupby("series"):
        for column, plural in _SINGLE.items():
            kinds = lines.groupby("epoch")[column].nunique()
            mixed = [int(epoch) + 1 for epoch in kinds.index[kinds > 1]]
            if mixed:
                notes.append(f"{series}: {_epochs(mixed)} from {kinds.max()} {plural}; the statistics cover all rows")
        rows = int(lines["rows"].sum())
        lost = rows - int(lines["losses"].sum())
        if lost:
            notes.append(f"{series}: {lost} of {rows} rows without a finite loss; loss statistics leave them out")
    return notes


def folder_names(series: Iterable[str]) -> dict[str, str]:
    """Return for each series a folder name: portable, at most 89 characters, and another one for every series.

    >>> folder_names(["demo"])
    {'demo': 'demo'}
    """
    names = sorted(set(series))
    lower = [name.casefold() for name in names]
    return {name: _folder_name(name, alone=lower.count(name.casefold()) == 1) for name in names}


def _folder_name(name: str, *, alone: bool) -> str:
    safe = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip(".-")[:80]
    if safe == name and alone:
        return name
    # Some file systems do not tell "Demo" from "demo"; and two names may become the same safe one.
    return f"{safe}-{_digest(name)}".lstrip("-")


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def printable(name: str) -> str:
    """Return `name` with control characters as `?`: names come from files and are printed on terminals."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _epochs(numbers: Sequence[int]) -> str:
    """Return `epoch 3 has rows`, `epochs 3, 4 have rows` or `12 epochs have rows`."""
    if len(numbers) == 1:
        return f"epoch {numbers[0]} has rows"
    if len(numbers) > 5:
        return f"{len(numbers)} epochs have rows"
    return f"epochs {', '.join(map(str, numbers))} have rows"
