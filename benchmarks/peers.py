"""MorphIR against its peers, in one process and by turns: gromo's statistics, torch-pruning's rewriting.

    python benchmarks/peers.py
    python benchmarks/peers.py --parts gromo --models vgg19-16
    python benchmarks/peers.py --parts torch-pruning --models 'resnet*' --repeats 3

The peers are the optional dependencies of the group ``peers``; what is missing is installed first. What is
compared, and how, stands at the top of ``benchmarks/against/gromo.py`` and
``benchmarks/against/torch_pruning.py``. Times are CPU milliseconds, see ``benchmarks/timing/clock.py``. What
a peer raises stands in its table.

Writes ``PART.json`` and ``PART.md`` to ``--out`` after each network.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from timing.machine import keep_freed_memory, machine
from timing.optional import install_missing

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"gromo": "against.gromo", "torch-pruning": "against.torch_pruning"}
"""A peer's distribution to the module that measures it: ``measure(options)`` and ``tables(rows)``."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    install_missing("peers", options.parts)
    for part in options.parts:
        comparison = import_module(PARTS[part])
        rows: list[Mapping[str, Any]] = []
        for row in comparison.measure(options.models, options.repeats):
            rows.append(row)
            print(f"{part}: {row['model']} done", flush=True)
            write(options, part, rows, comparison.tables(rows))
        if rows:
            print(f"\n{comparison.tables(rows)}", flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--models", nargs="+", help="names or patterns; torch-pruning's: any of torchvision")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "peers")
    return parser.parse_args(arguments)


def write(options: argparse.Namespace, part: str, rows: Sequence[Mapping[str, Any]], tables: str) -> None:
    """Writes what there is so far, so that a stopped run leaves its rows."""
    options.out.mkdir(parents=True, exist_ok=True)
    about = {**machine("cpu"), part: metadata.version(part)}
    result = {"machine": about, "repeats": options.repeats, "rows": rows}
    (options.out / f"{part}.json").write_text(json.dumps(result, indent=1))
    (options.out / f"{part}.md").write_text(tables)


if __name__ == "__main__":
    keep_freed_memory()
    main()
