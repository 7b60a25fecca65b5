"""``SplitChannels`` and ``PruneChannels``: apply morphisms of one kind as one numbered rewrite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from morphir.ir.remarks import Remark
from morphir.ir.source import source_of
from morphir.morphisms.base import Morphism
from morphir.morphisms.plan import index_maps
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from passes.base import Pass, PassResult
from passes.rewriter import Rewriter


@dataclass(frozen=True)
class MorphChannels(Pass):
    """Applies morphisms of one kind, all at once; a subclass says which.

    Attributes:
        morphisms: The morphisms; indices refer to the graph as it is before the pass.
    """

    morphism: ClassVar[type[Morphism]]

    morphisms: tuple[Morphism, ...] = ()

    def apply(self, rewriter: Rewriter) -> PassResult:
        """Applies every morphism at once."""
        if not self.morphisms:
            return PassResult()
        graph = rewriter.graph
        maps = index_maps(graph, self.morphisms)
        nodes = {m.space: graph.node(graph.space(m.space).producers[0].node) for m in maps}
        remarks = tuple(_applied(morphism, nodes[morphism.space]) for morphism in self.morphisms)
        rewriter.apply(self.name, maps, [str(morphism) for morphism in self.morphisms])
        return PassResult(maps, remarks)


def _applied(morphism: Morphism, node: fx.Node) -> Remark:
    return Remark(
        "applied", morphism.kind, morphism.done, morphism.space, morphism.index, node.name, source_of(node)
    )


@dataclass(frozen=True)
class SplitChannels(MorphChannels):
    """Splits channel groups; at theta = 0 the function is unchanged in evaluation and in training mode."""

    name: ClassVar[str] = "split-channels"
    morphism: ClassVar[type[Morphism]] = Split


@dataclass(frozen=True)
class PruneChannels(MorphChannels):
    """Removes channel groups."""

    name: ClassVar[str] = "prune-channels"
    morphism: ClassVar[type[Morphism]] = Prune


# Kind of morphism to the pass that applies it, in the order in which ``transform`` runs them.
PASSES: Mapping[str, type[MorphChannels]] = {
    kind.morphism.kind: kind for kind in (SplitChannels, PruneChannels)
}
