"""What mutmut found, a line per module; fails where a mutant survives that docs/reliability.md does not explain.

A survivor is named by its file, its function, its line and the words that differ, not by mutmut's number, which any
change of the function would shift.
"""

import re
import sys
from collections import Counter
from pathlib import Path

from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

EXPLANATIONS = Path("docs/reliability.md")
COLUMNS = {
    "mutants": "mutants",
    "killed": "killed",
    "timeout": "of them by a time-out",
    "explained": "survived, explained",
    "unexplained": "survived, unexplained",
    "not checked": "not run",
}


def shared_words(one: list[str], other: list[str]) -> int:
    """Return how many words at the beginning are the same."""
    return next(
        (n for n, pair in enumerate(zip(one, other, strict=False)) if len(set(pair)) > 1),
        min(len(one), len(other)),
    )


def difference(old: str, new: str) -> str:
    """Return the words that differ, with a word around them.

    >>> difference('f(a, b, "zstd", c)', 'f(a, b, "ZSTD", c)')
    '`"zstd"` → `"ZSTD"`'
    """
    before, after = re.findall(r"\w+|\W", old), re.findall(r"\w+|\W", new)
    shared = shared_words(before, after)
    shared_end = shared_words(before[shared:][::-1], after[shared:][::-1])
    first, last = max(shared - 1, 0), max(shared_end - 1, 0)
    return " → ".join(f"`{''.join(words[first : len(words) - last]).strip()}`" for words in (before, after))


def name_of(path: Path, mutant: str) -> str:
    """Return file, function, line and difference of a mutant, as docs/reliability.md begins its explanation."""
    function = re.sub(r"__mutmut_\d+$", "", mutant.rpartition(".")[2]).removeprefix("x_").rpartition("ǁ")[2]
    lines = get_diff_for_mutant(mutant, path=path).splitlines()[2:]
    old, new = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
    return f"`{path}`, `{function}`, in `{old}`: {difference(old, new)}"


def main() -> int:
    """Print the table and the survivors without an explanation; return the exit code."""
    explanations = " ".join(EXPLANATIONS.read_text().split())
    rows, unexplained = {}, []
    for path in sorted(filter(config().should_mutate, walk_mutatable_files())):
        data = SourceFileMutationData(path=path)
        data.load()
        counts = Counter(mutants=len(data.exit_code_by_key))
        for mutant, exit_code in data.exit_code_by_key.items():
            status = status_by_exit_code[exit_code]
            counts[status] += 1
            if status == "timeout":  # what loops for ever would stop `make test` too
                counts["killed"] += 1
            elif status not in ("killed", "not checked"):
                name = name_of(path, mutant)
                if status == "survived" and f"- {' '.join(name.split())}" in explanations:
                    counts["explained"] += 1
                else:
                    counts["unexplained"] += 1
                    unexplained.append(f"- {name} ({status}: mutmut show {mutant})")
        rows[f"`{path}`"] = counts
    rows["all"] = sum(rows.values(), Counter())
    print(f"| module | {' | '.join(COLUMNS.values())} |")
    print(f"|---|{'---:|' * len(COLUMNS)}")
    for name, counts in rows.items():
        print(f"| {name} | {' | '.join(f'{counts[column]:,}' for column in COLUMNS)} |")
    for survivor in unexplained:
        print(survivor)
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
