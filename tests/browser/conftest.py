"""A real Chromium for the tests of this folder; where there is none, they are skipped and say how to get one."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browser_helpers import FLAGS, find_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser


# One for each file of tests: playwright's event loop must not run while tests of other folders do.
@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A browser without a window."""
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium: install it (Debian: apt-get install chromium) or say where it is (CHROMIUM=path)")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install '.[browser]'")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        browser.close()
