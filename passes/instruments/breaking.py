"""Breakpoints: stop inside a pass, before a rewrite, in whatever debugger ``PYTHONBREAKPOINT`` names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from passes.instruments.base import Instrument, PendingRewrite
from passes.instruments.printing import Write

Kind = Literal["pass", "rewrite", "space", "node"]
KINDS: tuple[Kind, ...] = ("pass", "rewrite", "space", "node")


@dataclass
class BreakOn(Instrument):
    """Calls ``breakpoint()`` before what it waits for.

    Attributes:
        kind: What it waits for.
        value: Name of the pass, space or node; number of the rewrite. Empty for each of its kind.
        write: Takes what is said at the end where a name was never met.
    """

    kind: Kind
    value: str = ""
    write: Write = field(default=print, compare=False)
    _met: dict[str, None] = field(default_factory=dict[str, None], repr=False, compare=False)

    @staticmethod
    def parse(text: str) -> BreakOn:
        """Reads ``pass=split-channels``, ``rewrite=3``, ``space=conv1``, ``node=relu``, or a kind alone.

        Raises:
            MorphirError: for anything else.
        """
        kind, _, value = text.partition("=")
        if kind not in KINDS or (kind == "rewrite" and value and not value.isdigit()):
            raise MorphirError(
                f"there is no breakpoint {text!r}",
                hint="pass=NAME, rewrite=NUMBER, space=NAME or node=NAME; the kind alone for each of them",
            )
        return BreakOn(kind, value)

    def before_pass(self, name: str, graph: Graph) -> None:
        """Stops before a pass, with the graph as a local."""
        if self.kind == "pass" and self._is_wanted(name):
            _stop_before_pass(name, graph)

    def before_rewrite(self, rewrite: PendingRewrite) -> None:
        """Stops before a rewrite, with all that it is about as locals."""
        if self.kind == "rewrite" and self._is_wanted(str(rewrite.number)):
            _stop_before_rewrite(rewrite, 0)
        if self.kind == "node":
            wanted = [node for node in sorted(rewrite.nodes()) if self._is_wanted(node)]
            if wanted:
                touched = rewrite.graph.channels.touched_spaces()[wanted[0]]
                names = [index_map.space for index_map in rewrite.maps]
                _stop_before_rewrite(rewrite, next(at for at, name in enumerate(names) if name in touched))
        for position, space in enumerate(rewrite.spaces):
            if self.kind == "space" and self._is_wanted(space.name):
                _stop_before_rewrite(rewrite, position)

    def close(self) -> None:
        """Says so where what it waited for never came."""
        if self.value and self.value not in self._met:
            met = ", ".join(self._met) or "none"
            self.write(f"breakpoint {self.kind}={self.value} was never met; of its kind there were: {met}")

    def _is_wanted(self, name: str) -> bool:
        self._met[name] = None
        return self.value in {"", name}


def _stop_before_pass(name: str, graph: Graph) -> None:
    pass_name = name
    breakpoint()
    del pass_name, graph


def _stop_before_rewrite(rewrite: PendingRewrite, position: int) -> None:
    graph, morphisms, index_maps = rewrite.graph, rewrite.morphisms, rewrite.maps
    index_map, space = index_maps[position], rewrite.spaces[position]
    morphism = next((text for text in morphisms if f" {space.name}[" in text), None)
    breakpoint()
    del graph, space, morphism, morphisms, index_map, index_maps
