"""``VerifyOutputs``: rewrites that preserve the function are held to it, by numbers.

A rewrite that drops no group and has no theta leaves every output as it was. Others are meant to change the
function; ``morphir verify`` proves those on a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from morphir.ir.faults import Fault, failure
from morphir.ir.graph import Graph
from morphir.ir.index_map import IndexMap, Rewrite
from morphir.runtime.history.forward import NodeValues, compare, run_nodes, tolerance_of
from passes.instruments import Instrument, PendingRewrite


@dataclass
class VerifyOutputs(Instrument):
    """Runs the graph before and after each such rewrite, on random inputs in evaluation mode.

    Attributes:
        tolerance: Largest relative difference; what rounding may do where None.
    """

    tolerance: float | None = None
    _before: NodeValues | None = field(default=None, repr=False)

    def before_rewrite(self, rewrite: PendingRewrite) -> None:
        """Runs the graph as it is."""
        self._before = run_nodes(rewrite.graph) if all(map(_preserves, rewrite.maps)) else None

    def after_rewrite(self, graph: Graph, rewrite: Rewrite, seconds: float) -> None:
        """Runs the graph again, and compares.

        Raises:
            VerificationError: if the outputs differ; names the first node that does, and the user's line.
        """
        del seconds
        if self._before is None:
            return
        before, self._before = self._before, None
        limit = tolerance_of(graph) if self.tolerance is None else self.tolerance
        found = compare(before, run_nodes(graph), {m.space for m in rewrite.maps}, limit)
        if not found.relative <= limit:
            maps = "; ".join(map(str, rewrite.maps))
            message = (
                f"rewrite {rewrite.number} ({rewrite.name}: {maps}) changes what the program computes, by "
                f"{found.relative:.3g} relative"
            )
            raise failure(graph, Fault(message, found.node))


def _preserves(index_map: IndexMap) -> bool:
    return not index_map.thetas and all(index_map.copies())
