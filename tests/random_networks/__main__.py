"""The long run: every property on many random networks, counted, failures kept as source.

PYTHONPATH=tests python -m random_networks --examples 2000 --seed 0
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from torch.onnx._internal._lazy_import import onnxscript_apis

from random_networks.constructs.table import CONSTRUCTS
from random_networks.draft import Network
from random_networks.networks import networks
from random_networks.properties import ALL_TARGETS, findings

HANGS = 300
"""Seconds after which a single network is taken to hang."""


class Tally:
    """What a run saw."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.examples = 0
        self.nodes = 0
        self.outcomes: dict[str, Counter[str]] = {}
        self.seconds: Counter[str] = Counter()
        self.constructs: Counter[str] = Counter(dict.fromkeys(CONSTRUCTS, 0))
        self.verdicts: Counter[str] = Counter()
        self.failed: list[str] = []

    def check(self, network: Network, number: int, targets: tuple[str, ...]) -> None:
        """Checks one network and notes what came of it; a fault fails no other network."""
        self.examples += 1
        self.constructs.update(network.occurrences.keys())
        faults: list[str] = []
        start = time.process_time()
        for finding in findings(network, number, targets):
            outcome = "failed" if finding.fault else "ok" if finding.applies else "n/a"
            self.outcomes.setdefault(finding.property, Counter())[outcome] += 1
            self.seconds[finding.property] += time.process_time() - start
            start = time.process_time()
            if finding.fault:
                faults.append(f"{finding.property}: {finding.fault}")
        if faults:
            self._keep(network, number, faults)

    def _keep(self, network: Network, number: int, faults: list[str]) -> None:
        self.failed.extend(f"{number}: {fault.splitlines()[0]}" for fault in faults)
        self.folder.mkdir(parents=True, exist_ok=True)
        comments = "\n".join(f"# {line}" for fault in faults for line in fault.splitlines())
        (self.folder / f"network_{number}.py").write_text(f"{comments}\n{network.source}")

    def report(self) -> str:
        """Returns the counts as text."""
        lines = [f"{self.examples} networks", ""]
        for name, counts in self.outcomes.items():
            each = self.seconds[name] / max(self.examples, 1)
            outcomes = "".join(f"{counts[outcome]:>7} {outcome}" for outcome in ("ok", "failed", "n/a"))
            lines.append(f"{name:<16}{outcomes}{each:>8.2f} s")
        names = [f"{name} {count}" for name, count in self.constructs.most_common()]
        lines += ["", f"networks with each construct: {', '.join(names)}"]
        lines += ["", f"{len(self.failed)} faults", *self.failed]
        return "\n".join(lines)


def main() -> int:
    """Runs and prints; returns the exit code."""
    parser = argparse.ArgumentParser(prog="random_networks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-onnx", action="store_true", help="leave out the ONNX export")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/random-networks"), help="where failing ones go"
    )
    options = parser.parse_args()
    _build_the_operator_table_once()
    warnings.simplefilter("ignore")
    tally, start = Tally(options.out), time.monotonic()
    targets = tuple(t for t in ALL_TARGETS if t != "onnx" or not options.no_onnx)

    @seed(options.seed)
    @settings(
        max_examples=options.examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(networks())
    def run(network: Network) -> None:
        faulthandler.dump_traceback_later(HANGS, exit=True)
        tally.check(network, tally.examples + 1, targets)
        if tally.examples % 50 == 0:
            minutes = (time.monotonic() - start) / 60
            print(f"{tally.examples} networks, {len(tally.failed)} faults, {minutes:.1f} min", flush=True)

    run()
    faulthandler.cancel_dump_traceback_later()
    print(f"\nseed {options.seed}: {tally.report()}")
    return 1 if tally.failed else 0


def _build_the_operator_table_once() -> None:
    """The ONNX exporter parses its table of operators anew for each export: half of an export's time here."""
    onnxscript_apis.get_torchlib_ops = functools.cache(onnxscript_apis.get_torchlib_ops)


if __name__ == "__main__":
    sys.exit(main())
