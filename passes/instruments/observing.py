"""Instruments that verify, time, print remarks, and name passes that never ran."""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from morphir.analysis.verify import verify_channels
from morphir.ir.graph import Graph
from morphir.ir.remarks import Remark
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
    """Prints the remarks of each pass, and of what selects morphisms.

    Attributes:
        kinds: Which: ``applied``, ``missed``, ``refused``.
        write: Takes each remark.
    """

    kinds: Container[str] = ALL
    write: Write = print

    def after_pass(self, name: str, graph: Graph, result: PassResult, seconds: float) -> None:
        """Prints."""
        del graph, seconds
        self.on_remarks(name, result.remarks)

    def on_remarks(self, name: str, remarks: Sequence[Remark]) -> None:
        """Prints."""
        for remark in remarks:
            if remark.kind in self.kinds:
                self.write(f"{name}: {remark}")


@dataclass
class NameUnmet(Instrument):
    """Says at the end which of the passes that were asked for never ran, and which did.

    Attributes:
        names: The passes.
        write: Takes a line for each.
    """

    names: Collection[str]
    write: Write = print
    _ran: dict[str, None] = field(default_factory=dict[str, None], repr=False)

    def before_pass(self, name: str, graph: Graph) -> None:
        """Notes that it ran."""
        del graph
        self._ran[name] = None

    def close(self) -> None:
        """Says it."""
        for name in self.names:
            if name not in self._ran:
                self.write(f"no pass {name!r} ran; passes that did: {', '.join(self._ran) or 'none'}")
