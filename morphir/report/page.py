"""Puts a run's data, the styles and the scripts into the template: one file that asks for nothing else."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from morphir.report.gather import gather
from morphir.runtime.storage.files import write_atomic

REPORT_FILE = "report.html"
_SCRIPTS = ("data", "dom", "lineage", "strips", "charts", "program", "locality", "changes", "remarks", "main")
_PLACE = re.compile(r"<!-- put (\w+) here -->|/\* put (\w+) here \*/")


def write_report(run: Path, out: Path | None = None) -> Path:
    """Writes the report of a run, whole or not at all.

    Args:
        run: The run directory, finished or not.
        out: The file; ``report.html`` in the run directory where None.

    Returns:
        Where the report is.

    Raises:
        MorphirError: if the directory holds no run, a file of it is damaged, or the report cannot be written.
    """
    place = out or run / REPORT_FILE
    write_atomic(place, render(gather(run)).encode())
    return place


def render(data: Mapping[str, Any]) -> str:
    """Returns the page.

    Args:
        data: What :func:`~morphir.report.gather.gather` returned.
    """
    title = " ".join(part for part in (data["title"]["model"], data["title"]["data"]) if part)
    parts = {
        "title": html.escape(f"{title or data['title']['run']} - MorphIR"),
        "styles": _asset("report.css"),
        "data": _embedded(data),
        "scripts": "\n".join(_asset(f"scripts/{name}.js") for name in _SCRIPTS),
    }
    return _PLACE.sub(lambda place: parts[place[1] or place[2]], _asset("template.html"))


def _asset(name: str) -> str:
    return resources.files("morphir.report").joinpath("assets", name).read_text(encoding="utf-8")


def _embedded(data: Mapping[str, Any]) -> str:
    """Returns JSON that no text in it can end early: in a script element, only ``<`` can."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c")
