"""The tests of this folder can fail: what a page says, asks for or leaves unreadable is noticed."""

from pathlib import Path

from browser_helpers import looking

BAD = """<!doctype html><html lang="en"><head><title>bad</title></head><body><main><h1>Bad</h1>
<p style="color: #aaa; background: #fff">unreadable</p><img src="http://127.0.0.1:1/picture.png">
<script>console.warn("look"); setTimeout(() => { throw new Error("thrown"); });
try { fetch("file:///etc/hostname").catch(() => {}); } catch {}</script></main></body></html>"""

GOOD = """<!doctype html><html lang="en"><head><title>good</title></head><body><main><h1>Good</h1>
<img alt="a dot" src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAACAkQBADs="></main></body></html>"""


def test_what_a_page_says_and_asks_for_is_noted(browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(BAD, encoding="utf-8")
    with looking(browser, path.as_uri()) as looked:
        looked.page.wait_for_timeout(200)
        assert "http://127.0.0.1:1/picture.png" in looked.asked
        assert any(url.startswith("file:///etc/hostname") for url in looked.asked)
        assert any(url.startswith("http://127.0.0.1:1/picture.png failed: ") for url in looked.asked)
        assert "warning: look" in looked.said
        assert "error: uncaught thrown" in looked.said
        grave = looked.grave_violations()
        assert {"color-contrast", "image-alt"} == {line.split()[0] for line in grave}


def test_a_page_that_does_neither_is_quiet(browser, tmp_path: Path) -> None:
    path = tmp_path / "good.html"
    path.write_text(GOOD, encoding="utf-8")
    with looking(browser, path.as_uri()) as looked:
        assert (looked.said, looked.asked, looked.grave_violations()) == ([], [], [])
