"""Selected morphisms that the program cannot follow are left out with a remark; the run goes on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.ir.remarks import Remark
from morphir.ir.source import source_of
from morphir.morphisms.base import Morphism
from morphir.runtime.growing.selection import Selection
from passes.instruments import unobserved
from passes.transform import transform


def leave_out_refused(graph: Graph, selection: Selection) -> Selection:
    """Returns the selection without the spaces whose morphisms the rewriter refuses.

    The whole selection is tried first, on a copy; only where that fails are the spaces added one by one.
    """
    refusal = _refusal(graph, selection.morphisms)
    if refusal is None:
        return selection
    kept: list[Morphism] = []
    remarks: list[Remark] = []
    for space, members in groupby(selection.morphisms, key=lambda morphism: morphism.space):
        wanted = list(members)
        refusal = _refusal(graph, [*kept, *wanted])
        if refusal is None:
            kept += wanted
        else:
            remarks.append(_remark(graph, space, refusal))
    allowed = set(map(id, kept))
    taken = tuple(score for score in selection.taken if id(score.morphism) in allowed)
    return replace(selection, taken=taken, remarks=(*selection.remarks, *remarks))


def _remark(graph: Graph, space: str, refusal: MorphirError) -> Remark:
    node = refusal.node or graph.space(space).producers[0].node
    code = refusal.code or "does-not-follow"
    return Remark("refused", code, refusal.message, space, node=node, source=source_of(graph.node(node)))


def _refusal(graph: Graph, morphisms: Sequence[Morphism]) -> MorphirError | None:
    try:
        with unobserved():
            transform(copy.deepcopy(graph), morphisms)
    except MorphirError as error:
        return error
    return None
