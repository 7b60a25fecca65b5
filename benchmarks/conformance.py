"""Does it hold for every network? Each model of a collection is traced, analysed, changed and exported.

    python benchmarks/conformance.py
    python benchmarks/conformance.py --models 'resnet*' 'vit_b_16' --jobs 2
    python benchmarks/conformance.py --collection path/to/models.py --report none

A collection is ``torchvision`` (every classifier that it lists) or a Python file of models. Every model is
examined in a process of its own, with a time limit, by what ``morphir verify`` runs (see
``benchmarks/conforming/examination.py``). Results lie as one JSON file per model in the run folder: a stopped
run continues where it was, and results of other sources of MorphIR are made anew unless ``--keep`` is given.
The report is printed, and written to ``docs/conformance.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from conforming.collection import Collection
from conforming.examination import examine
from conforming.report import report
from conforming.result import failures, fingerprint, read, write

from exporters import EXPORTERS

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    collection = Collection.of(options.collection)
    if options.worker:
        name = options.models[0]
        write(options.worker, examine(collection.builder(name), name, options.exports))
        return 0
    names = [name for name in collection.names if any(fnmatch(name, pattern) for pattern in options.models)]
    folder = options.out / collection.label
    todo = [name for name in names if wanted(folder / f"{name}.json", options)]
    with ThreadPoolExecutor(options.jobs) as pool:
        for name, result in zip(todo, pool.map(lambda name: run(name, folder, options), todo), strict=True):
            print(f"{name}: {'; '.join(failures(result)) or 'ok'} ({result['seconds']:.0f} s)", flush=True)
    results = [read(folder / f"{name}.json") for name in names if (folder / f"{name}.json").exists()]
    text = report(collection.label, results, len(names), command(options))
    print(text)
    if options.report != "none":
        Path(options.report).write_text(text, encoding="utf-8")
    return 1 if len(results) < len(names) or any(map(failures, results)) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--collection", default="torchvision", help="torchvision, or path/to/file.py[:factory]"
    )
    parser.add_argument("--models", nargs="+", default=["*"], help="names or patterns")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=3600, help="seconds for one model")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "conformance")
    parser.add_argument("--report", default=str(ROOT / "docs" / "conformance.md"), help="a file, or none")
    parser.add_argument("--exports", nargs="*", default=list(EXPORTERS), choices=list(EXPORTERS))
    parser.add_argument("--keep", action="store_true", help="keep results of other sources of MorphIR")
    parser.add_argument("--only-failed", action="store_true", help="keep all results that passed")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def wanted(place: Path, options: argparse.Namespace) -> bool:
    """Whether a model has to be examined (again)."""
    if not place.exists():
        return True
    result = read(place)
    if options.only_failed:
        return bool(failures(result))
    return not options.keep and result["fingerprint"] != fingerprint()


def run(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Examines one model in a process of its own."""
    place = folder / f"{name}.json"
    place.unlink(missing_ok=True)
    arguments = ["--collection", options.collection, "--models", name, "--worker", str(place)]
    arguments += ["--exports", *options.exports]
    started = time.monotonic()
    error = ""
    try:
        process = subprocess.run(
            [sys.executable, __file__, *arguments], timeout=options.limit, capture_output=True, text=True
        )
        error = "" if process.returncode == 0 else f"ends with {process.returncode}: {process.stderr[-500:]}"
    except subprocess.TimeoutExpired:
        error = f"takes more than {options.limit:.0f} s"
    if not place.exists():
        write(place, {"model": name, "error": error or "says nothing", "checks": []})
    return write(place, {**json.loads(place.read_text()), "seconds": time.monotonic() - started})


def command(options: argparse.Namespace) -> str:
    words = ["python", "benchmarks/conformance.py"]
    if options.collection != "torchvision":
        words += ["--collection", options.collection]
    if options.models != ["*"]:
        words += ["--models", *options.models]
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
