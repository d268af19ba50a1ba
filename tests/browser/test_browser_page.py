"""The report's page in a real browser: from a file, as people use it, and with names that want to be programs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from browser_helpers import Looked, looking
from simulated_records import row, simulate, write_records

from qbw_report.build import build
from schemas import layers as layer_table
from schemas.parts import encode_part

DESK = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
A4 = {"viewport": {"width": 718, "height": 1047}}
"""A sheet less margins of a centimetre, at 96 pixels an inch."""

MARGIN = dict.fromkeys(("top", "right", "bottom", "left"), "1cm")
LOOKS = {
    "light": DESK,
    "dark": DESK | {"color_scheme": "dark"},
    "phone": PHONE,
    "phone_dark": PHONE | {"color_scheme": "dark"},
}

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{7*7}}"
LAYERS = ("stem", "<b>body</b>", "</script><img src=x onerror=alert(1)>", "head")
EPOCHS, CONFIGS = 3, 24


def write_layers(folder: Path, names: Sequence[str]) -> str:
    """Write the layer table of a network and return its id."""
    rows: list[dict[str, Any]] = [
        {"layer_index": index, "layer_name": name, "kind": "conv2d", "weights": 100 * (index + 1), "macs": 1000,
         "in_channels": 1, "out_channels": 1, "kernel": "3x3", "stride": "1x1"}
        for index, name in enumerate(names)
    ]  # fmt: skip
    model_id = layer_table.model_id_of(rows)
    table = pa.Table.from_pylist([{"model_id": model_id} | each for each in rows], schema=layer_table.LAYER_SCHEMA)
    folder.mkdir(parents=True)
    (folder / f"{model_id}.parquet").write_bytes(encode_part(table, layer_table.KIND, "layers"))
    return model_id


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two experiments, both names of strangers; the second has no losses."""
    folder = tmp_path_factory.mktemp("page")
    model_id = write_layers(folder / "layers", LAYERS)
    records = write_records(
        folder / "records",
        simulate(experiment="demo", epochs=EPOCHS, configs=CONFIGS, layers=len(LAYERS), model_id=model_id),
        [each | {"loss": float("nan")} for each in simulate(experiment=HOSTILE, epochs=1, configs=8, layers=4, seed=1)],
    )
    build(records, folder / "out", every=1000)
    return folder / "out" / "index.html"


@pytest.fixture
def looked(browser, page: Path) -> Iterator[Looked]:
    """The page on a desk's screen, which has to be quiet to the end."""
    with looking(browser, page.as_uri(), **DESK) as looked:
        yield looked
        assert (looked.said, looked.asked) == ([], [])


class Explorer:
    """The picture of accuracy against cost of the experiment "demo", with what its data say should be seen."""

    def __init__(self, looked: Looked) -> None:
        self.root = looked.page.locator("section", has=looked.page.get_by_role("heading", name="demo", exact=True))
        self.root = self.root.locator(".explorer").first
        self.area = self.root.locator(".area")
        self.slider = self.root.get_by_label("Epoch", exact=False).first
        self.cost = self.root.get_by_label("Cost", exact=False)
        self.tip = self.root.locator(".tip")
        self.ring = self.root.locator(".ring")
        self.data = self.root.evaluate("root => JSON.parse(document.getElementById(root.dataset.cloud).textContent)")

    def painted(self) -> str:
        """Return the canvas as a text."""
        return self.root.locator("canvas").evaluate("canvas => canvas.toDataURL()")

    def text(self, selector: str) -> str:
        return self.root.locator(selector).inner_text()

    def ticks(self, which: str) -> list[str]:
        """Return the words of the ticks of the axis x or y."""
        words: list[str] = self.root.locator(f".ticks.{which} text").all_text_contents()
        return words

    def points(self, epoch: int, cost: str) -> list[tuple[int, float, float]]:
        """Return configuration, cost and accuracy of an epoch's points, by cost and accuracy."""
        costs = self.data["configs"][cost]
        points = [(config, costs[config], accuracy) for config, accuracy in self.data["epochs"][epoch]["points"]]
        return sorted(points, key=lambda point: point[1:])

    def place(self, epoch: int, cost: str, point: tuple[int, float, float]) -> dict[str, float]:
        """Return where a point lies in the picture, in pixels from its upper left corner."""
        box = self.area.bounding_box()
        x, y = self.data["costs"][cost], self.data["epochs"][epoch]["accuracy"]
        return {
            "x": box["width"] * (point[1] - x["low"]) / (x["high"] - x["low"]),
            "y": box["height"] * (y["high"] - point[2]) / (y["high"] - y["low"]),
        }

    def named(self, config: int) -> list[str]:
        """Return what has to be said of a configuration: its name, and each layer with its bits."""
        bits = self.data["configs"]["bits"][config].split()
        return [self.data["configs"]["id"][config], *(f"{name}: {b}" for name, b in zip(LAYERS, bits, strict=True))]


def lonely(points: Sequence[tuple[int, float, float]]) -> tuple[int, float, float]:
    """Return the point that is farthest from all others in cost and accuracy, so that pointing at it is clear."""
    widths = [max(p[i] for p in points) - min(p[i] for p in points) or 1 for i in (1, 2)]
    return max(
        points,
        key=lambda p: min(sum(((p[i + 1] - q[i + 1]) / widths[i]) ** 2 for i in (0, 1)) for q in points if q is not p),
    )


def test_answers_come_first(looked: Looked) -> None:
    headings = looked.page.locator("h1, h2, h3").all_inner_texts()
    assert headings[0] == "How few bits are enough, and where?"
    assert "demo" in headings
    order = looked.page.evaluate("""[...document.querySelectorAll(".headline, .told li, figure, canvas")].slice(0, 9)
        .map(element => element.className || element.tagName)""")
    assert order[0] == "headline"
    assert "LI" in order
    assert looked.page.locator(".headline").first.inner_text().endswith(".")


def test_the_slider_goes_through_the_epochs_by_key_and_by_mouse(looked: Looked) -> None:
    explorer = Explorer(looked)
    seen = {}
    explorer.slider.focus()
    for epoch in reversed(range(1, EPOCHS + 1)):
        assert explorer.text(".epoch-number").split()[0] == str(epoch)
        assert f"epoch {epoch}" in explorer.text("figcaption")
        seen[epoch] = explorer.painted(), tuple(explorer.ticks("y")), explorer.root.locator(".marks").inner_html()
        looked.page.keyboard.press("ArrowLeft")
    for pictures in zip(*seen.values(), strict=True):
        assert len(set(pictures)) == EPOCHS
    looked.page.keyboard.press("End")
    assert explorer.text(".epoch-number").split()[0] == str(EPOCHS)
    box = explorer.slider.bounding_box()
    explorer.slider.click(position={"x": 3, "y": box["height"] / 2})
    assert explorer.text(".epoch-number").split()[0] == "1"
    assert explorer.painted() == seen[1][0]
    looked.shoot("page_epoch_1", full=False)


def test_one_scale_for_all_epochs_stays(looked: Looked) -> None:
    explorer = Explorer(looked)
    explorer.root.get_by_label("Same scale for every epoch").check()
    ticks = explorer.ticks("y")
    explorer.slider.focus()
    looked.page.keyboard.press("Home")
    assert explorer.ticks("y") == ticks


def test_the_cost_switch_changes_axis_and_points(looked: Looked) -> None:
    explorer = Explorer(looked)
    costs = explorer.cost.locator("option").evaluate_all("options => options.map(each => each.value)")
    assert {"avg_bitwidth", "weight_bytes", "bit_ops"} <= set(costs)
    seen = set()
    for cost in costs:
        explorer.cost.select_option(cost)
        assert explorer.text(".x-label") == explorer.data["costs"][cost]["label"]
        assert explorer.ticks("x") == [text for _, text in explorer.data["costs"][cost]["ticks"]]
        seen.add((explorer.text(".x-label"), *explorer.ticks("x")))
    assert len(seen) == len(costs)


@pytest.mark.parametrize("cost", ["avg_bitwidth", "bit_ops"])
def test_pointing_at_a_configuration_names_it_and_its_layers_bits(looked: Looked, cost: str) -> None:
    explorer = Explorer(looked)
    explorer.cost.select_option(cost)
    point = lonely(explorer.points(EPOCHS - 1, cost))
    assert explorer.tip.is_hidden()
    place = explorer.place(EPOCHS - 1, cost, point)
    explorer.area.hover(position={"x": place["x"] + 5, "y": place["y"] - 4})
    told = explorer.tip.inner_text()
    assert [words for words in explorer.named(point[0]) if words not in told] == []
    assert f"{point[2]:.2%}" in told
    ring, area = explorer.ring.bounding_box(), explorer.area.bounding_box()
    assert ring["x"] + ring["width"] / 2 - area["x"] == pytest.approx(place["x"], abs=1.5)
    assert ring["y"] + ring["height"] / 2 - area["y"] == pytest.approx(place["y"], abs=1.5)
    looked.shoot(f"page_hover_{cost}", full=False)
    looked.page.mouse.move(2, 2)
    assert explorer.tip.is_hidden()
    assert explorer.ring.is_hidden()


def test_the_keys_step_through_every_configuration(looked: Looked) -> None:
    explorer = Explorer(looked)
    explorer.area.focus()
    for point in explorer.points(EPOCHS - 1, "avg_bitwidth"):
        looked.page.keyboard.press("ArrowRight")
        # Two points in one place may come in either order.
        told = explorer.tip.inner_text()
        assert f"{point[2]:.2%}" in told
        assert explorer.text(".hovered").count(" ") > len(LAYERS)
    looked.page.keyboard.press("ArrowRight")
    assert explorer.tip.inner_text() == told
    looked.page.keyboard.press("Home")
    assert explorer.named(explorer.points(EPOCHS - 1, "avg_bitwidth")[0][0])[0] in explorer.tip.inner_text()
    looked.page.keyboard.press("Escape")
    assert explorer.tip.is_hidden()


def test_everything_is_reached_by_the_tab_key(looked: Looked) -> None:
    reached = set()
    for _ in range(200):
        looked.page.keyboard.press("Tab")
        focused = looked.page.evaluate("""(() => {
            const element = document.activeElement;
            const look = getComputedStyle(element);
            return [element.className || element.id || element.tagName, look.outlineStyle, element === document.body];
        })()""")
        if focused[2]:
            break
        reached.add(focused[0])
        assert focused[1] != "none", f"{focused[0]}: no sign of the focus"
    assert {"skip", "theme", "cost", "epoch", "hold", "area", "scroll", "SUMMARY", "A"} <= reached


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_grave(browser, page: Path, look: str) -> None:
    with looking(browser, page.as_uri(), **LOOKS[look]) as looked:
        looked.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        explorer = Explorer(looked)
        explorer.area.focus()
        looked.page.keyboard.press("ArrowRight")
        assert looked.grave_violations() == []
        assert looked.page.evaluate("document.documentElement.scrollWidth") == LOOKS[look]["viewport"]["width"]
        looked.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = false; })")
        looked.page.keyboard.press("Escape")
        looked.shoot(f"page_{look}")
        assert (looked.said, looked.asked) == ([], [])


def brightness(looked: Looked, what: str) -> float:
    """Return the mean of red, green and blue of the body's ``color`` or ``backgroundColor``, from 0 to 255."""
    colour = looked.page.evaluate(f"getComputedStyle(document.body).{what}")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


COLOURS = """[...document.querySelectorAll("body, body *")].map(element => {
    const look = getComputedStyle(element);
    return [look.color, look.backgroundColor, look.borderColor, look.fill, look.stroke].join();
})"""
"""Every colour of every element."""


def test_dark_follows_the_system_and_the_button(browser, page: Path) -> None:
    seen: dict[bool, list[tuple[str, str]]] = {False: [], True: []}
    for scheme in ("light", "dark"):
        with looking(browser, page.as_uri(), color_scheme=scheme, **DESK) as looked:
            explorer, button = Explorer(looked), looked.page.locator("#theme")
            for is_dark in (scheme == "dark", scheme == "light"):
                assert (brightness(looked, "backgroundColor") < 64) == is_dark
                assert button.inner_text() == ("Light" if is_dark else "Dark")
                looked.page.mouse.move(2, 2)
                seen[is_dark].append((explorer.painted(), looked.page.evaluate(COLOURS)))
                button.click()
            button.click()
            looked.page.emulate_media(color_scheme="light" if scheme == "dark" else "dark")
            assert (brightness(looked, "backgroundColor") < 64) == (scheme == "light"), "the button's choice stays"
    assert all(by_system == by_button for by_system, by_button in seen.values())
    assert seen[True][0][0] != seen[False][0][0]


def test_on_a_phone_a_tap_names_a_configuration(browser, page: Path) -> None:
    with looking(browser, page.as_uri(), **PHONE) as looked:
        explorer = Explorer(looked)
        point = lonely(explorer.points(EPOCHS - 1, "avg_bitwidth"))
        explorer.area.scroll_into_view_if_needed()
        explorer.area.tap(position=explorer.place(EPOCHS - 1, "avg_bitwidth", point))
        assert [words for words in explorer.named(point[0]) if words not in explorer.tip.inner_text()] == []
        box = explorer.tip.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["viewport"]["width"]
        looked.shoot("page_phone_tap", full=False)


def test_paper_shows_everything_in_dark_on_white_whatever_the_screen(browser, page: Path) -> None:
    paintings = set()
    for scheme in ("light", "dark", "dark by the button"):
        with looking(browser, page.as_uri(), color_scheme=scheme.split()[0], **DESK) as looked:
            if scheme == "dark by the button":
                looked.page.locator("#theme").click(click_count=2)
                assert looked.page.evaluate("document.documentElement.dataset.theme") == "dark"
            looked.page.emulate_media(media="print")
            looked.page.evaluate("dispatchEvent(new Event('beforeprint'))")
            assert looked.page.locator("details:not([open])").count() == 0
            assert looked.page.locator(".controls").first.is_hidden()
            assert brightness(looked, "color") < 64
            assert brightness(looked, "backgroundColor") > 250
            paintings.add(Explorer(looked).painted())
            cut = looked.page.locator(".scroll").evaluate_all(
                "boxes => boxes.filter(box => getComputedStyle(box).overflowX !== 'visible').length"
            )
            assert cut == 0
            looked.shoot(f"page_print_{scheme.replace(' ', '_')}")
            assert (looked.said, looked.asked) == ([], [])
    assert len(paintings) == 1


def test_it_prints(browser, page: Path) -> None:
    with looking(browser, page.as_uri(), **A4) as looked:
        screen = looked.page.locator("canvas").first.element_handle()
        looked.page.emulate_media(media="print")
        looked.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert looked.page.evaluate("document.documentElement.scrollWidth") <= A4["viewport"]["width"]
        # Chromium prints a canvas that was painted over as if it were opaque: the lines behind it would be gone.
        assert not screen.evaluate("canvas => canvas.isConnected")
        looked.page.emulate_media(media="null")
        looked.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = false; })")
        sheets = looked.page.pdf(format="A4", margin=MARGIN)
        assert looked.page.locator("details:not([open])").count() == 0, "what is folded up is printed"
        looked.keep("page.pdf", sheets)
        assert sheets.startswith(b"%PDF-")


def test_without_scripts_answers_and_pictures_are_there(browser, page: Path) -> None:
    with looking(browser, page.as_uri(), java_script_enabled=False, **DESK) as looked:
        assert looked.page.locator(".headline").first.is_visible()
        assert looked.page.locator(".explorer").first.locator("circle").count() >= 8
        for dead in (".controls", "#theme"):
            assert looked.page.locator(dead).first.is_hidden()
        looked.page.locator("summary").first.click()
        assert looked.page.locator("details[open]").count() == 1
        looked.shoot("page_without_scripts")


def test_names_of_strangers_are_text(looked: Looked) -> None:
    assert HOSTILE in looked.page.locator("h2").all_inner_texts()
    assert LAYERS[2] in looked.page.locator(".heat th").all_inner_texts()
    assert looked.page.locator("img, b:text-is('body')").count() == 0
    explorer = Explorer(looked)
    explorer.area.focus()
    looked.page.keyboard.press("ArrowRight")
    assert [name for name in LAYERS if f"{name}: " not in explorer.tip.inner_text()] == []
    assert looked.page.locator("img, b:text-is('body')").count() == 0


ELSEWHERE = "http://127.0.0.1:7777/"
SMUGGLED = f"""<script>window.ran = "a script"</script><img src="x" onerror="window.ran = 'a handler'">
<img src="{ELSEWHERE}x.png"><link rel="stylesheet" href="{ELSEWHERE}x.css">
<iframe src="{ELSEWHERE}frame"></iframe><p id="styled" style="color: rgb(1, 2, 3)">styled</p>
<style>#styled {{ font-size: 77px }}</style><script src="data:text/javascript,window.ran='data'"></script>
<object data="{ELSEWHERE}object"></object><base href="{ELSEWHERE}">"""


def test_what_is_smuggled_into_the_page_neither_runs_nor_leaves(browser, page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count('<main id="main">') == 1
    copy = tmp_path / "index.html"
    copy.write_text(text.replace('<main id="main">', '<main id="main">' + SMUGGLED), encoding="utf-8")
    with looking(browser, copy.as_uri(), **DESK) as looked:
        assert looked.page.evaluate("window.ran") is None
        style = looked.page.evaluate("(({color, fontSize}) => [color, fontSize])(getComputedStyle(styled))")
        assert "rgb(1, 2, 3)" not in style
        assert "77px" not in style
        assert looked.page.evaluate("document.baseURI") == copy.as_uri()
        # What else was smuggled in is refused before it becomes a request; these would have left.
        addresses = {copy.with_name("x").as_uri(), f"{ELSEWHERE}x.png", f"{ELSEWHERE}x.css"}
        assert set(looked.asked) == addresses | {f"{address} failed: csp" for address in addresses}
        assert sum("Content Security Policy" in line for line in looked.said) >= 6
        # Our own script was not hindered.
        assert Explorer(looked).cost.is_visible()


def test_the_table_of_experiments_sorts_by_what_is_clicked(looked: Looked) -> None:
    table = looked.page.locator("table.sortable")
    column = table.locator("thead th").all_inner_texts().index("Best accuracy")
    button = table.locator("thead th").nth(column).get_by_role("button")

    def values() -> list[float]:
        fields = table.locator(f"tbody tr td:nth-child({column + 1}) data")
        return [float(value) for value in fields.evaluate_all("fields => fields.map(field => field.value)")]

    before = values()
    assert len(before) == 2
    button.click()
    assert values() == sorted(before)
    button.press("Enter")
    assert values() == sorted(before, reverse=True)
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"


MANY = {"epochs": 2, "configs": 2000}


def test_thousands_of_configurations_are_pixels_and_not_elements(browser, tmp_path: Path) -> None:
    records = write_records(tmp_path / "records", simulate(layers=6, options=(2, 3, 4, 6, 8), **MANY))
    build(records, tmp_path / "out", every=1000)
    with looking(browser, (tmp_path / "out" / "index.html").as_uri(), **DESK) as looked:
        explorer = Explorer(looked)
        assert len(explorer.points(0, "avg_bitwidth")) == MANY["configs"]
        counts, pictures = set(), set()
        explorer.slider.focus()
        for _ in range(MANY["epochs"]):
            counts.add(looked.page.locator(":root *").count())
            pictures.add(explorer.painted())
            looked.page.keyboard.press("ArrowLeft")
        assert max(counts) < 5000
        assert len(pictures) == MANY["epochs"]
        assert explorer.root.locator("circle").count() < 50  # the legend's, and what is marked
        assert (looked.said, looked.asked) == ([], [])
        looked.shoot("page_thousands", full=False)


LITTLE: Mapping[str, list[dict[str, Any]]] = {
    "one_row": [row([2, 4], 900, loss=None)],
    "one_bitwidth": [row([4, 4], 900 + i, config_index=i, record_id=f"{i:032x}") for i in range(3)],
    "infinite_loss": [row([b, 4], 800 + b, loss=float("inf"), config_index=b) for b in (2, 4, 8)],
}


@pytest.mark.parametrize("little", LITTLE)
def test_records_that_say_little_give_a_quiet_page(browser, tmp_path: Path, little: str) -> None:
    build(write_records(tmp_path / "records", LITTLE[little]), tmp_path / "out", every=1000)
    with looking(browser, (tmp_path / "out" / "index.html").as_uri(), **DESK) as looked:
        assert "Cannot tell yet" in looked.page.locator(".headline").inner_text()
        explorer = Explorer(looked)
        explorer.area.focus()
        looked.page.keyboard.press("ArrowRight")
        assert explorer.tip.is_visible()
        assert not re.search(r"\b(NaN|undefined|null|Infinity)\b", looked.page.locator("body").inner_text())
        assert looked.grave_violations() == []
        assert (looked.said, looked.asked) == ([], [])
