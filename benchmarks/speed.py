"""What a learning step costs: every split and prune of every channel, against one plain training step.

    python benchmarks/speed.py
    python benchmarks/speed.py --models 'vgg19*' --repeats 31 --threads 2
    python benchmarks/speed.py --quick

For each network, in one process: a training step (forward, backward, SGD) in every mode that the device is
known for; the fastest is *the* mode. In it, or where a compiled one wins, in its memory format, training and
learning steps take turns: with the paper's curvature, compiled and not, and with the default ones. A ratio
is the median over the rounds. Peak memory is measured apart, see ``benchmarks/timing/memory.py``; times, see
``benchmarks/timing/clock.py``. ``--models`` also reaches networks that are not measured unless named.

Writes ``speed.json``, ``speed.md`` and ``speed.svg`` to ``--out`` after each network.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from timing.arms import ARMS, Step, training
from timing.cases import CASES, EXTRA_CASES, Case
from timing.clock import interleaved
from timing.machine import keep_freed_memory, machine
from timing.memory import peak_bytes
from timing.modes import Mode, modes
from timing.picture import plot_ratios
from timing.tables import markdown

ROOT = Path(__file__).resolve().parent.parent
_MIB = 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    rows = []
    for case in chosen(options.models):
        rows.append(measure(case, options))
        write(options, rows)
        print(json.dumps({key: value for key, value in rows[-1].items() if key != "rounds"}), flush=True)
    print(table(rows))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", help="names or patterns")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="three repeats, no memory")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "speed")
    options = parser.parse_args(arguments)
    options.repeats = 3 if options.quick else options.repeats
    return options


def write(options: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes what there is so far, so that a stopped run leaves its rows."""
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(options.device), "repeats": options.repeats, "rows": rows}
    (options.out / "speed.json").write_text(json.dumps(result, indent=1))
    (options.out / "speed.md").write_text(table(rows))
    plot_ratios(options.out / "speed.svg", rows)


def chosen(patterns: Sequence[str] | None) -> list[Case]:
    if not patterns:
        return list(CASES)
    return [case for case in CASES + EXTRA_CASES if any(fnmatch(case.name, pattern) for pattern in patterns)]


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Returns one network's row."""
    mode = fastest(case, options)
    steps = {name: arm(case, mode, options.device) for name, arm in ARMS.items()}
    times = interleaved(steps, options.repeats, options.device)
    steps.clear()
    gc.collect()
    memory = {} if options.quick else memories(case, mode, options.device)
    ratios = {name: own.ratio(times["training"]) for name, own in times.items() if name != "training"}
    return {
        "model": case.name,
        "side": case.side,
        "batch": case.batch,
        "mode": mode.name,
        "goal": case.goal,
        "ms": {name: own.median for name, own in times.items()},
        "ratios": ratios,
        "ratios_of_wall": {name: times[name].wall_ratio(times["training"]) for name in ratios},
        "bytes": memory,
        "memory_ratio": memory["learning"] / memory["training"] if memory else None,
        "rounds": {name: own.milliseconds for name, own in times.items()},
    }


def fastest(case: Case, options: argparse.Namespace) -> Mode:
    """Returns the mode in which a training step takes the least time; one that fails is left out.

    By the round that was disturbed least: a learning step in the wrong mode costs more than modes differ.
    """
    steps: dict[str, Step] = {}
    known = {mode.name: mode for mode in modes(options.device)}
    for name, mode in known.items():
        try:
            steps[name] = training(case, mode, options.device)
            steps[name]()
        except Exception as error:  # a mode that this machine does not have: no compiler, no such kernel
            steps.pop(name, None)
            print(f"{case.name}: no mode {name!r}: {error}")
    times = interleaved(steps, min(5, options.repeats), options.device)
    return known[min(times, key=lambda name: times[name].least)]


def memories(case: Case, mode: Mode, device: str) -> dict[str, int]:
    arms = {name: ARMS[name] for name in ("training", "learning")}
    return {name: peak_bytes(lambda arm=arm: arm(case, mode, device), device) for name, arm in arms.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = {
        "network": "",
        "pixels": "d",
        "batch": "d",
        "mode": "",
        "training, ms": ".1f",
        "learning, ms": ".1f",
        "ratio": ".2f",
        "goal": ".2f",
        "uncompiled": ".2f",
        "sampled Fisher too": ".2f",
        "by default": ".2f",
        "training, MiB": ".1f",
        "learning, MiB": ".1f",
        "ratio ": ".2f",
    }
    cells = (
        [
            *(row["model"], row["side"], row["batch"], row["mode"]),
            *(row["ms"]["training"], row["ms"]["learning"], row["ratios"]["learning"], row["goal"]),
            *(row["ratios"][name] for name in ("uncompiled", "sampled", "default")),
            *(size / _MIB if (size := row["bytes"].get(name)) else None for name in ("training", "learning")),
            row["memory_ratio"],
        ]
        for row in rows
    )
    return markdown(columns, cells)


if __name__ == "__main__":
    keep_freed_memory()
    main()
