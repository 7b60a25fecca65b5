"""Instruments that verify, time, and print remarks."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from morphir.analysis.verify import verify_channels
from morphir.ir.graph import Graph
from passes.instruments.base import Instrument
from passes.instruments.printing import ALL, Write

if TYPE_CHECKING:
    from passes.base import PassResult


class VerifyEach(Instrument):
    """Runs the whole verifier after each pass: a fresh analysis has to find what the graph says of itself."""

    def after_pass(self, name: str, graph: Graph, result: PassResult, seconds: float) -> None:
        """Verifies.

        Raises:
            VerificationError: on the first difference, with node, textual IR and source line.
        """
        del result, seconds
        try:
            verify_channels(graph)
        except Exception as error:
            error.add_note(f"found by --verify-each after pass {name}")
            raise


@dataclass
class TimePasses(Instrument):
    """Adds up the wall time of each pass, and prints it at the end.

    Attributes:
        write: Takes the table.
        seconds: Pass to its wall time so far.
        runs: Pass to how often it ran.
    """

    write: Write = print
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    runs: dict[str, int] = field(default_factory=dict[str, int])

    def after_pass(self, name: str, graph: Graph, result: PassResult, seconds: float) -> None:
        """Adds the time."""
        del graph, result
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.runs[name] = self.runs.get(name, 0) + 1

    def close(self) -> None:
        """Prints the slowest first."""
        total = sum(self.seconds.values())
        lines = ["// ----- time of passes -----", f"{'pass':<28}{'runs':>6}{'seconds':>10}{'share':>8}"]
        for name in sorted(self.seconds, key=lambda name: -self.seconds[name]):
            share = self.seconds[name] / total if total else 0.0
            lines.append(f"{name:<28}{self.runs[name]:>6}{self.seconds[name]:>10.3f}{share:>8.0%}")
        self.write("\n".join(lines))


@dataclass
class PrintRemarks(Instrument):
    """Prints the remarks of each pass.

    Attributes:
        kinds: Which: ``applied``, ``missed``, ``refused``.
        write: Takes each remark.
    """

    kinds: Container[str] = ALL
    write: Write = print

    def after_pass(self, name: str, graph: Graph, result: PassResult, seconds: float) -> None:
        """Prints."""
        del graph, seconds
        for remark in result.remarks:
            if remark.kind in self.kinds:
                self.write(f"{name}: {remark}")
