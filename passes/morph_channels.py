"""``SplitChannels`` and ``PruneChannels``: apply morphisms of one kind as one numbered rewrite."""

from __future__ import annotations

from collections.abc import Sequence
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
class SplitChannels(Pass):
    """Splits channel groups; at theta = 0 the function is unchanged in evaluation and in training mode."""

    name: ClassVar[str] = "split-channels"

    splits: tuple[Split, ...] = ()

    def apply(self, rewriter: Rewriter) -> PassResult:
        """Applies every split at once."""
        return _apply_morphisms(self.name, self.splits, rewriter)


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Removes channel groups."""

    name: ClassVar[str] = "prune-channels"

    prunes: tuple[Prune, ...] = ()

    def apply(self, rewriter: Rewriter) -> PassResult:
        """Applies every prune at once."""
        return _apply_morphisms(self.name, self.prunes, rewriter)


def _apply_morphisms(name: str, morphisms: Sequence[Morphism], rewriter: Rewriter) -> PassResult:
    if not morphisms:
        return PassResult()
    graph = rewriter.graph
    maps = index_maps(graph, morphisms)
    nodes = {m.space: graph.node(graph.space(m.space).producers[0].node) for m in maps}
    remarks = tuple(_applied(morphism, nodes[morphism.space]) for morphism in morphisms)
    rewriter.apply(name, maps, [str(morphism) for morphism in morphisms])
    return PassResult(maps, remarks)


def _applied(morphism: Morphism, node: fx.Node) -> Remark:
    done = {"split": "split in two", "prune": "pruned"}[morphism.kind]
    return Remark("applied", morphism.kind, done, morphism.space, morphism.index, node.name, source_of(node))
