"""The report in a headless Chromium without a network: what moves, what lights up, what the keys do."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from morphir.report import REPORT_FILE, gather
from morphir.report.run_files import read_run_files

ARROW_LEFT, ARROW_RIGHT, HOME, ENTER, TAB = "\ue012", "\ue014", "\ue011", "\ue007", "\ue004"
LAST = 3


class Page:
    """The opened report."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def ask(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(f"return {script}", *arguments)

    def element(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return str(self.ask("document.querySelector(arguments[0]).textContent", selector))

    def press(self, selector: str, *keys: str) -> None:
        self.element(selector).send_keys(*keys)

    def cells(self, space: int) -> list[str]:
        """The classes of a strip's cells."""
        script = "[...document.querySelector(arguments[0]).children].map((cell) => cell.className)"
        return list(self.ask(script, f"[data-cells='{space}']"))

    def parts(self) -> dict[str, list[str]]:
        """Part of the locality to the names of the nodes that wear it."""
        rows = self.ask(
            "[...document.querySelectorAll('[data-node]')]"
            ".map((row) => [row.querySelector('button').textContent, row.dataset.parts])"
        )
        found: dict[str, list[str]] = {}
        for name, parts in rows:
            for part in parts.split():
                found.setdefault(part, []).append(name.removeprefix("%"))
        return found


@pytest.fixture
def page(chromium: Any, run_path: Path) -> Page:
    chromium.get("about:blank")
    chromium.get_log("performance")
    chromium.get((run_path / REPORT_FILE).as_uri())
    opened = Page(chromium)
    _until(lambda: opened.ask("document.documentElement.dataset.ready") == "true")
    return opened


@pytest.fixture(scope="module")
def data(run_path: Path) -> dict[str, Any]:
    return gather(run_path)


def _until(holds: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.02)


def _expected(data: dict[str, Any], position: int, space: int) -> list[str]:
    """The mark of every channel, from the data: what was applied."""
    marks = [""] * data["positions"][position]["widths"][space]
    name = data["program"]["spaces"][space]["name"]
    for kind, columns in data["positions"][position].get("scores", {}).get(name, {}).items():
        for group in columns["applied"]:
            marks[group] = kind
    return marks


def _marks(classes: list[str]) -> list[str]:
    return [next((kind for kind in ("split", "prune") if kind in one.split()), "") for one in classes]


def test_opens_without_network_or_errors(page: Page, run_path: Path) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in page.browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked == [(run_path / REPORT_FILE).as_uri()], "no request leaves the file"
    assert page.ask("performance.getEntriesByType('resource').map((entry) => entry.name)") == []
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert page.ask("document.title") == "run - MorphIR"


def test_the_slider_moves_the_strips(page: Page, data: dict[str, Any]) -> None:
    page.press("#slider", HOME)
    seen: set[str] = set()
    for position in range(LAST + 1):
        for space in range(len(data["program"]["spaces"])):
            marks = _marks(page.cells(space))
            assert marks == _expected(data, position, space)
            seen |= set(marks)
        page.press("#slider", ARROW_RIGHT)
    assert seen == {"", "split", "prune"}
    assert page.text("#phase") == "the result, after 3 phases"


def test_all_that_would_pay(page: Page, data: dict[str, Any]) -> None:
    spaces = range(len(data["program"]["spaces"]))
    before = sum(mark != "" for space in spaces for mark in _marks(page.cells(space)))
    page.ask(
        "(document.querySelector('#shown').value = 'paying',"
        " document.querySelector('#shown').dispatchEvent(new Event('change')))"
    )
    after = sum(mark != "" for space in spaces for mark in _marks(page.cells(space)))
    assert after > before


def test_choosing_a_space_shows_its_locality(page: Page, run_path: Path) -> None:
    program = read_run_files(run_path).program
    for name in ("block.conv1", "stem"):
        number = list(program.spaces).index(name)
        page.element(f".strips button[data-space='{number}']").click()
        space = program.spaces[name]
        wanted = {part: list(getattr(space, part)) for part in ("x", "y", "region", "a", "z")}
        assert page.parts() == {part: names for part, names in wanted.items() if names}
        shown = page.text("#picked")
        for use in (*space.producers, *space.consumers):
            assert f"%{use.node} @{use.parameter}" in shown
        assert "net.py:" in shown
    assert "self.stem(images)" in page.text("#picked")
    page.element(f".strips button[data-space='{number}']").click()
    assert page.parts() == {}


def test_a_folded_block_opens_for_what_is_chosen(page: Page) -> None:
    page.element("#fold").click()
    assert page.ask("document.querySelectorAll('#program details[open]').length") == 0
    page.ask("scrollTo(0, 0)")  # the driver does not know that the phase bar covers what is behind it
    page.element(".strips button[data-space='1']").click()
    assert page.ask("document.querySelectorAll('#program details[open]').length") == 1


def test_a_rewrite_opens_to_what_it_changed(page: Page, data: dict[str, Any]) -> None:
    (first, *_) = data["positions"][0]["rewrites"]
    assert page.ask("document.querySelectorAll('#rewrites details[open]').length") == 0
    page.element("#rewrites summary").click()
    shown = page.ask("[...document.querySelector('#rewrites pre').children].map((line) => line.textContent)")
    assert shown == [data["strings"][at] for at in first["diff"]]
    assert page.ask("document.querySelectorAll('#rewrites pre .added').length") > 0


def test_searching_finds_remarks(page: Page, run_path: Path) -> None:
    page.element("#this-phase").click()
    remarks = [r for phase in (1, 2, 3) for r in read_run_files(run_path).remarks(phase)]
    wanted = [r for r in remarks if r["code"] == "does-not-pay" and r["space"] == "block.conv1"]
    page.press("#search", "does-not-pay block.conv1[")
    assert page.text("#count").startswith(f"{len(wanted)} of {len(remarks)} remarks")
    shown = page.ask("[...document.querySelectorAll('#remarks li')].map((item) => item.textContent)")
    assert shown and all("[does-not-pay]" in text and "block.conv1[" in text for text in shown)
    assert wanted[0]["message"] in shown[0]
    page.press("#search", " nothing-has-this")
    assert page.text("#count").startswith("0 of")


def test_lineage_goes_back_through_the_rewrites(page: Page, data: dict[str, Any]) -> None:
    """Every channel of the result against the composed index maps of the run."""
    for space in data["program"]["spaces"]:
        name = space["name"]
        sources: list[list[tuple[int, int]]] = []
        for at, position in enumerate(data["positions"][:-1]):
            for rewrite in position["rewrites"]:
                if name in rewrite["maps"]:
                    found = rewrite["maps"][name]
                    steps = zip(found["sources"], found["signs"], strict=True)
                    before = sources or [[] for _ in range(data["positions"][0]["widths"][len(sources)])]
                    start = before if sources else [[] for _ in range(max(found["sources"]) + 1)]
                    sources = [[*start[old], *([(old, at + 1)] if sign else [])] for old, sign in steps]
        for index, splits in enumerate(sources):
            text = _note(page, data, name, index)
            if not splits:
                assert "of the seed" in text
            for step, (old, phase) in enumerate(reversed(splits)):
                assert f"{'that a ' if step else ''}split of {old} in phase {phase}" in text


def _note(page: Page, data: dict[str, Any], name: str, index: int) -> str:
    """What is said of a channel of the result when the pointer comes to it."""
    page.ask("document.querySelector('#slider').value = 3")
    page.ask("document.querySelector('#slider').dispatchEvent(new Event('input'))")
    space = [one["name"] for one in data["program"]["spaces"]].index(name)
    page.ask(
        "document.querySelector(arguments[0]).children[arguments[1]]"
        ".dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))",
        f"[data-cells='{space}']",
        index,
    )
    return page.text("#channel")


def test_the_keyboard_reaches_everything(page: Page) -> None:
    body = page.element("body")
    first = page.text("#phase")
    body.send_keys(ARROW_RIGHT)
    second = page.text("#phase")
    assert first.startswith("phase 1 of 3") and second.startswith("phase 2 of 3")
    body.send_keys(ARROW_LEFT)
    assert page.text("#phase") == first
    page.press("[data-cells='0']", ARROW_RIGHT, ARROW_RIGHT)
    assert page.text("#channel").startswith("stem, channel 1:")
    assert page.text("#phase") == first  # the strip's arrows are its own
    page.press(".strips button[data-space='0']", ENTER)
    assert page.parts()["y"] == ["stem", "block_conv2"]  # one residual stream
    body.send_keys("/")
    assert page.ask("document.activeElement.id") == "search"


def test_focus_goes_from_top_to_bottom_and_is_seen(page: Page) -> None:
    page.ask("document.activeElement.blur()")
    reached: list[str] = []
    for _ in range(12):
        page.browser.switch_to.active_element.send_keys(TAB)
        reached.append(page.ask("document.activeElement.id || document.activeElement.className"))
        outline = page.ask("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", reached
    assert reached[:6] == ["skip", "slider", "next", "shown", "cost", "link name"]  # "previous" is disabled


def test_the_diff_and_the_whole_ir(page: Page, data: dict[str, Any]) -> None:
    lines = [data["strings"][at] for at in data["positions"][0]["diff"]]
    script = "[...document.querySelectorAll('#text span')].map((line) => line.textContent)"
    assert page.ask(script) == [line or " " for line in lines]
    for was, is_now in pairwise(lines):
        if is_now.startswith("+") and was.startswith(f"-{is_now[1:].partition(':')[0]}:"):
            break
    words = [re.findall(r"[\w.]+", line) for line in (was, is_now)]
    differing = [(a, b) for a, b in zip(*words, strict=True) if a != b]
    marks = "[...document.querySelectorAll('#text span')][arguments[0]].querySelectorAll('b')"
    for side, line in enumerate((was, is_now)):
        marked = page.ask(f"[...{marks}].map((word) => word.textContent)", lines.index(line))
        assert marked == [pair[side] for pair in differing] != []
    page.element("input[name=text][value=ir]").click()
    assert page.ask(script)[0].startswith("graph @net")


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_the_window_and_can_be_read(page: Page, width: int, scheme: str) -> None:
    browser = page.browser
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    theme = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": theme})
    assert page.ask("document.documentElement.scrollWidth <= innerWidth")
    for selector in ("body", ".quiet", ".chip", "button.link"):
        assert _contrast(page, selector) >= 4.5, selector
    for selector in ("#text .added b", "#text .removed b"):
        assert _contrast(page, selector, selector) >= 4.5, selector


def _contrast(page: Page, selector: str, behind: str = "section") -> float:
    """WCAG's contrast ratio of an element's text to what it stands on."""
    colours = page.ask(
        "[getComputedStyle(document.querySelector(arguments[0])).color,"
        " getComputedStyle(document.querySelector(arguments[1])).backgroundColor]",
        selector,
        behind,
    )
    light, dark = sorted((_luminance(colour) for colour in colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
