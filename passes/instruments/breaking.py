"""Breakpoints: stop inside a pass, before a rewrite, in whatever debugger ``PYTHONBREAKPOINT`` names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from passes.instruments.base import Instrument, PendingRewrite

Kind = Literal["pass", "rewrite", "space", "node"]
KINDS: tuple[Kind, ...] = ("pass", "rewrite", "space", "node")


@dataclass(frozen=True)
class BreakOn(Instrument):
    """Calls ``breakpoint()`` before what it waits for.

    Attributes:
        kind: What it waits for.
        value: Name of the pass, space or node; number of the rewrite. Empty for each of its kind.
    """

    kind: Kind
    value: str = ""

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
        if self.kind == "pass" and self.value in {"", name}:
            _stop_before_pass(name, graph)

    def before_rewrite(self, rewrite: PendingRewrite) -> None:
        """Stops before a rewrite, with all that it is about as locals."""
        if self.kind == "rewrite" and self.value in {"", str(rewrite.number)}:
            _stop_before_rewrite(rewrite, 0)
        for position, space in enumerate(rewrite.spaces):
            if self.kind == "space" and self.value in {"", space.name}:
                _stop_before_rewrite(rewrite, position)
        if self.kind == "node" and (not self.value or self.value in rewrite.nodes()):
            _stop_before_rewrite(rewrite, 0)


def _stop_before_pass(name: str, graph: Graph) -> None:
    pass_name = name
    breakpoint()
    del pass_name, graph


def _stop_before_rewrite(rewrite: PendingRewrite, position: int) -> None:
    graph, morphisms = rewrite.graph, rewrite.morphisms
    index_map, space = rewrite.maps[position], rewrite.spaces[position]
    morphism = next((text for text in morphisms if f" {space.name}[" in text), None)
    breakpoint()
    del graph, space, morphism, morphisms, index_map
