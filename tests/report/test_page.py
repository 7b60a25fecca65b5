"""The page asks for nothing outside itself, takes no text as HTML, and is the same for the same run."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from morphir.report import REPORT_FILE, gather, render, write_report

HOSTILE = "</script><script>"


class Elements(HTMLParser):
    """Every element with its attributes, and the text of the scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.elements[-1][0] if self.elements else "", []).append(data)


@pytest.fixture(scope="module")
def page(run_path: Path) -> str:
    return (run_path / REPORT_FILE).read_text()


def parsed(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    return elements


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    for tag, attributes in parsed(page).elements:
        assert "src" not in attributes, tag
        assert attributes.get("href", "#").startswith(("#", "data:")), attributes
    addresses = set(re.findall(r"[a-z]+://[^\s\"'<>)]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a vocabulary, which nothing fetches
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|import\(", page)


def test_the_policy_forbids_requests(page: str) -> None:
    (policy,) = [a["content"] for tag, a in parsed(page).elements if a.get("http-equiv")]
    assert policy is not None and policy.startswith("default-src 'none'")


def test_scripts_read_nothing_as_html(page: str) -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", page)


def test_hostile_text_stays_data(page: str, run_path: Path) -> None:
    data = gather(run_path)
    assert any(HOSTILE in text for text in data["strings"])
    assert HOSTILE not in page
    elements = parsed(page)
    assert [a.get("type") for tag, a in elements.elements if tag == "script"] == [
        "application/json",
        "module",
    ]
    assert page.count("</script>") == 2
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert embedded is not None and json.loads(embedded[1]) == json.loads(json.dumps(data))


def test_hostile_title_is_escaped(run_path: Path) -> None:
    data: dict[str, Any] = gather(run_path)
    data["title"] = {
        "run": "",
        "model": "<!-- put data here --></title><img src=x>",
        "data": "/* put styles here */",
    }
    page = render(data)
    assert "<img" not in page
    assert page.count('id="data"') == 1
    title = re.search("<title>(.*?)</title>", page)
    assert title is not None and title[1].startswith("&lt;!-- put data here --&gt;&lt;/title&gt;")


def test_the_same_run_gives_the_same_bytes(run_path: Path, page: str, tmp_path: Path) -> None:
    out = tmp_path / "folder" / "again.html"
    assert write_report(run_path, out) == out
    assert out.read_text() == page


def test_everything_can_be_named_and_reached(page: str) -> None:
    """Controls have a name, references point to what is there, and no identifier is there twice."""
    elements = parsed(page).elements
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in elements:
        for key in ("for", "aria-labelledby"):
            assert key not in attributes or attributes[key] in ids
    assert dict(elements)["html"]["lang"] == "en"
    scrolling = [a for _, a in elements if "scroll" in (a.get("class") or "").split()]
    assert scrolling and all(a.get("tabindex") == "0" for a in scrolling)
