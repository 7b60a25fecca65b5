"""Textual IR before and after passes: whole, where it changed, as a difference, or as files."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from morphir.ir.difference import difference
from morphir.ir.graph import Graph
from morphir.ir.printer import print_graph
from passes.instruments.base import Instrument

if TYPE_CHECKING:
    from passes.base import PassResult

Write = Callable[[str], object]


class EveryPass(Container[str]):
    """Contains the name of each pass."""

    def __contains__(self, item: object) -> bool:
        return isinstance(item, str)


ALL = EveryPass()
NONE: Container[str] = frozenset[str]()


@dataclass
class PrintIR(Instrument):
    """Prints the textual IR around passes.

    Attributes:
        before: Passes before which it is printed.
        after: Passes after which it is printed.
        changed: Print it after each pass that changed it, too.
        difference: Print what each pass changed, as a unified difference.
        write: Takes each piece of text.
    """

    before: Container[str] = NONE
    after: Container[str] = NONE
    changed: bool = False
    difference: bool = False
    write: Write = print
    _old: str = field(default="", repr=False)

    def before_pass(self, name: str, graph: Graph) -> None:
        """Prints, and remembers."""
        self._old = print_graph(graph) if self.changed or self.difference or name in self.before else ""
        if name in self.before:
            self.write(_section(f"IR before {name}", self._old))

    def after_pass(self, name: str, graph: Graph, result: PassResult, seconds: float) -> None:
        """Prints what is wanted."""
        del result, seconds
        if not (self.changed or self.difference or name in self.after):
            return
        new = print_graph(graph)
        if self.difference:
            lines = difference(self._old.splitlines(), new.splitlines(), ("before", "after"))
            self.write(_section(f"difference made by {name}", "\n".join(lines) or "none"))
        if name in self.after or (self.changed and new != self._old):
            self.write(_section(f"IR after {name}", new))


def _section(title: str, text: str) -> str:
    return f"// ----- {title} -----\n{text.rstrip()}\n"


@dataclass
class DumpIR(Instrument):
    """Writes the textual IR before the first and after each pass into files, numbered in order.

    Attributes:
        folder: Is made where it is missing.
    """

    folder: Path
    _number: int = field(default=0, repr=False)

    def before_pass(self, name: str, graph: Graph) -> None:
        """Writes the program that the first pass gets."""
        del name
        if self._number == 0:
            self._dump("start", graph)

    def after_pass(self, name: str, graph: Graph, result: PassResult, seconds: float) -> None:
        """Writes the program that a pass leaves."""
        del result, seconds
        self._dump(name, graph)

    def _dump(self, name: str, graph: Graph) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self._number:04}-{name}.ir").write_text(print_graph(graph), encoding="utf-8")
        self._number += 1
