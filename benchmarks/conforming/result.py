"""One model's result as JSON, and what failed in it."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@cache
def fingerprint() -> str:
    """Returns a hash of MorphIR's own source files, so that a result says of which program it is."""
    digest = hashlib.sha256()
    for package in ("morphir", "passes", "exporters", "benchmarks/conforming"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def read(place: Path) -> dict[str, Any]:
    return json.loads(place.read_text(encoding="utf-8"))


def write(place: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Writes a result with the sources' fingerprint, and returns it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    result = {"fingerprint": fingerprint(), **result}
    place.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def failures(result: dict[str, Any]) -> list[str]:
    """Says what failed, in words; nothing for a model that passed."""
    found = [result["error"]] if result.get("error") else []
    for check in result["checks"]:
        if check["outcome"] == "failed":
            space = f" {check['space']}" if check["space"] else ""
            source = f" ({check['source']})" if check["source"] else ""
            found.append(f"{check['check']}{space}: {check['detail']}{source}")
    return found
