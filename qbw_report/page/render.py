"""What the page shows -> the bytes of one HTML file that asks nobody for anything.

The file's own policy forbids every request, and every style and script but the two it carries, named by their hashes:
a name from a stranger's checkpoint can be shown, never run.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from qbw_report.page.section import Section
from qbw_report.page.tables import View

MOST_LINKS = 12
"""Series that the head of the page links to; with more, the table of all experiments is the way."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything on the page.

    Attributes:
        title: of the window.
        notes: sentences about what is odd in the records.
        comparison: all series in one table.
        pairs: series against each other.
        sections: each series.
        rows: how many rows all of it is made from.
        parts: how many Parquet files hold them.
        files: every table, as a path beside the page.
    """

    title: str
    notes: tuple[str, ...]
    comparison: View
    pairs: View
    sections: tuple[Section, ...]
    rows: int
    parts: int
    files: tuple[str, ...]


def html_bytes(page: Page) -> bytes:
    """Return the page as HTML; equal pages give equal bytes."""
    environment = Environment(
        loader=PackageLoader("qbw_report.page"), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    style, script = environment.get_template("page.css").render(), environment.get_template("page.js").render()
    shown: dict[str, Any] = {
        "title": page.title,
        "notes": page.notes,
        "comparison": page.comparison,
        "pairs": page.pairs,
        "sections": page.sections,
        "rows": page.rows,
        "parts": page.parts,
        "files": page.files,
        "most_links": MOST_LINKS,
        "policy": policy([style], [script]),
        "style": style,
        "script": script,
    }
    return environment.get_template("index.html.j2").render(shown).encode()


def policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """Return a Content-Security-Policy that allows these inline styles and scripts, and nothing else."""
    allowed = (
        ("default-src", "'none'"),
        ("style-src", " ".join(_hash(text) for text in styles)),
        ("script-src", " ".join(_hash(text) for text in scripts)),
        ("base-uri", "'none'"),
        ("form-action", "'none'"),
    )
    return "; ".join(f"{name} {sources}" for name, sources in allowed)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
