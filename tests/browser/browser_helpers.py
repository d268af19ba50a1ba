"""Chromium as these tests use it: everything that a page says or asks for is noted, and axe-core looks at it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

REPOSITORY = Path(__file__).parent.parent.parent

SCREENSHOTS = Path(os.environ.get("SCREENSHOTS") or REPOSITORY / "results" / "screenshots")
"""What the pages looked like stays here after the tests."""

FLAGS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)
"""A browser that is left alone calls home; this one must not, so that every request is the page's own."""

GRAVE = ("serious", "critical")
"""The impacts of an accessibility violation that no page of ours may have."""

AXE = "axe.run(document, {preload: false, resultTypes: ['violations']})"
"""Every rule; it fetches nothing, and details of what is right are left out."""


def find_chromium() -> str | None:
    """Return the path of $CHROMIUM or of the system's Chromium; None where there is none."""
    named = os.environ.get("CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass(frozen=True)
class Looked:
    """A page in the browser, and what it did.

    Attributes:
        page: playwright's page.
        said: what stands on the console, such as ``error: message``, uncaught exceptions among it.
        asked: every address it asked for that does not begin with its own, and every one that failed.
    """

    page: "Page"
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def keep(self, name: str, content: bytes) -> None:
        """Keep a file beside the screenshots."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        (SCREENSHOTS / name).write_bytes(content)

    def shoot(self, name: str, *, full: bool = True) -> None:
        """Keep what the page looks like as `name`.png in SCREENSHOTS; `full` is all of it, not the window only."""
        self.keep(f"{name}.png", self.page.screenshot(full_page=full, animations="disabled"))

    def grave_violations(self) -> list[str]:
        """Return what axe-core finds that is serious or critical: rule, impact, and the elements."""
        self.page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
        found: list[dict[str, Any]] = self.page.evaluate(AXE)["violations"]
        return [
            f"{violation['id']} ({violation['impact']}): {node['html']} {node['failureSummary']}"
            for violation in found
            if violation["impact"] in GRAVE
            for node in violation["nodes"]
        ]


@contextmanager
def looking(browser: "Browser", address: str, *, own: str | None = None, **settings: Any) -> Iterator[Looked]:
    """Open an address in a fresh browser profile and yield the page, loaded, with everything that it says and asks for.

    Args:
        browser: what the fixture of this name gives.
        address: where the page is, such as ``file:///.../index.html``.
        own: how addresses begin that the page may ask for; only `address` itself unless given.
        settings: what playwright's `Browser.new_context` takes, such as ``color_scheme="dark"``.
    """
    context = browser.new_context(**settings)
    looked = Looked(context.new_page())

    def is_own(url: str) -> bool:
        return url.startswith(own) if own is not None else url.split("#")[0] == address.split("#")[0]

    context.on("request", lambda request: None if is_own(request.url) else looked.asked.append(request.url))
    context.on("requestfailed", lambda request: looked.asked.append(f"{request.url} failed: {request.failure}"))
    context.on("console", lambda message: looked.said.append(f"{message.type}: {message.text}"))
    context.on("weberror", lambda thrown: looked.said.append(f"error: uncaught {thrown.error}"))
    context.on("dialog", lambda dialog: (looked.said.append(f"{dialog.type}: {dialog.message}"), dialog.dismiss()))
    context.on("page", lambda page: looked.asked.append(f"a window for {page.url}"))
    try:
        looked.page.goto(address)
        yield looked
    finally:
        context.close()
