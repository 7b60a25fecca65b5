"""``StopAfterRewrite``: ends a pipeline once a rewrite is applied, and leaves the graph as it made it."""

from __future__ import annotations

from dataclasses import dataclass

from morphir.ir.graph import Graph
from morphir.ir.index_map import Rewrite
from passes.instruments.base import Instrument, PipelineStopped


@dataclass(frozen=True)
class StopAfterRewrite(Instrument):
    """Raises :class:`PipelineStopped` after a rewrite.

    Attributes:
        number: The rewrite's number in its graph's history.
    """

    number: int

    def after_rewrite(self, graph: Graph, rewrite: Rewrite, seconds: float) -> None:
        """Stops.

        Raises:
            PipelineStopped: after the rewrite of that number.
        """
        del graph, seconds
        if rewrite.number == self.number:
            raise PipelineStopped(f"stopped after rewrite {rewrite}")
