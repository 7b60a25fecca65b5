"""From one point of a history to a later one: index maps and thetas again, values where they are stored.

A far point is reached by its keyframe: the maps of all rewrites on the way, composed, make its structure in
one rewrite, and its tensors are read.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from morphir.analysis.spaces import analyse
from morphir.ir.graph import Graph
from morphir.ir.index_map import Rewrite, composed
from morphir.runtime.history.action import Action
from morphir.runtime.history.state import (
    HistoryError,
    joint_digest,
    program_digest,
    replace_values,
    tensor_digests,
)
from morphir.runtime.history.store import HistoryStore
from passes.instruments import unobserved
from passes.rewriter import Rewriter


def step(graph: Graph, store: HistoryStore, action: Action) -> None:
    """Does one action again, on the graph as it was before.

    Args:
        graph: Changed in place; tensors are replaced, never written into.
        store: Holds the action's tensors.
        action: What to do.

    Raises:
        HistoryError: if the values that it needs were not kept, or the program changed in a way that is not
            recorded.
        MorphirError: if the program does not follow.
    """
    if not action.kept:
        raise HistoryError(
            f"point {action.number} cannot be restored: the weights of '{action.name}' were not kept",
            hint="the history was at its limit of bytes; go to a point before",
        )
    if action.rewrite is not None:
        rewrite = Rewrite.from_json(action.rewrite.to_json(), store.tensors(action.number))
        with unobserved():
            Rewriter(graph).apply(rewrite.name, rewrite.maps, rewrite.morphisms)
    elif action.kind == "program":
        _erase(graph, action)
    elif action.kind == "weights":
        _put_values(graph, store, action)


def _put_values(graph: Graph, store: HistoryStore, action: Action) -> None:
    values = store.tensors(action.number)
    if missing := [key for key in action.tensors if key not in values]:
        raise HistoryError(
            f"point {action.number} cannot be restored: the values of {', '.join(missing[:3])} are not in "
            f"{store.folder}"
        )
    replace_values(graph, values)


def _erase(graph: Graph, action: Action) -> None:
    program = copy.deepcopy(graph.graph)
    erased = set(action.nodes)
    for node in reversed(program.nodes):
        if node.name in erased:
            program.erase_node(node)
            erased.discard(node.name)
    if erased or not action.nodes:
        raise HistoryError(
            f"point {action.number} cannot be restored: what '{action.name}' did to the program "
            f"is not recorded",
            hint="a history holds rewrites, erased nodes and values; see docs/debugging.md",
        )
    Rewriter(graph).replace_program(program)
    graph.attach(analyse(graph))


def jump(graph: Graph, store: HistoryStore, actions: Sequence[Action], history: Sequence[Rewrite]) -> None:
    """Does many actions at once, the last of which has a keyframe.

    Args:
        graph: Changed in place.
        store: Holds the keyframe.
        actions: What happens on the way; nothing is erased in it.
        history: The rewrites so far and those on the way, which the graph's history becomes.
    """
    maps = composed(m for action in actions if action.rewrite for m in action.rewrite.maps)
    if maps:
        with unobserved():
            Rewriter(graph).apply("jump", maps)
    graph.history = tuple(history)
    replace_values(graph, store.tensors(actions[-1].number, keyframe=True))


def check_restored(graph: Graph, action: Action, *, program: bool) -> None:
    """Compares a restored point with what was recorded, bit for bit.

    Args:
        graph: The restored graph.
        action: The one that led to its point.
        program: Whether the textual IR is compared, too.

    Raises:
        HistoryError: if they differ.
    """
    if joint_digest(tensor_digests(graph)) != action.state:
        raise HistoryError(
            f"point {action.number} is not restored bit for bit: its weights differ from the recorded ones",
            hint="the history was recorded with other arithmetic, or its files were changed",
        )
    if program and program_digest(graph) != action.program:
        raise HistoryError(
            f"point {action.number} is not restored: its program differs from the recorded one",
            hint="the model's source or MorphIR has changed since",
        )
