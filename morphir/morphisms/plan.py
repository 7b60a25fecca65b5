"""From a set of morphisms to one index map per space; all indices refer to the graph as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from morphir.analysis.emptied import emptied, spared
from morphir.errors import RewriteError
from morphir.ir.channels import ChannelSpace
from morphir.ir.codes import suggestion_for
from morphir.ir.graph import Graph
from morphir.ir.index_map import IndexMap, Theta, copies_of
from morphir.ir.source import source_of
from morphir.morphisms.base import Child, Morphism

_KEPT = (Child(1.0, 0),)


def by_space(graph: Graph, morphisms: Iterable[Morphism]) -> dict[str, dict[int, Morphism]]:
    """Sorts morphisms by space and group, and checks each against its group's verdict.

    Raises:
        MorphirError: for an unknown space or index, a verdict that does not allow the morphism, or a group
            named twice.
    """
    found: dict[str, dict[int, Morphism]] = {}
    for morphism in morphisms:
        morphism.check(graph.space(morphism.space))
        groups = found.setdefault(morphism.space, {})
        if morphism.index in groups:
            raise RewriteError(
                f"{morphism.space}[{morphism.index}] is named twice: {groups[morphism.index]} and {morphism}",
                hint=suggestion_for("named-twice"),
                code="named-twice",
            )
        groups[morphism.index] = morphism
    return {name: found[name] for name in graph.spaces if name in found}


def index_maps(graph: Graph, morphisms: Iterable[Morphism]) -> tuple[IndexMap, ...]:
    """Returns one index map for each space that the morphisms change, in program order.

    Raises:
        MorphirError: as :func:`by_space`, and for pruning a space to nothing.
    """
    planned = by_space(graph, morphisms)
    maps = tuple(_index_map(graph.space(name), groups) for name, groups in planned.items())
    for found in emptied(graph.channels, copies_of(maps)):
        code = "too-few-left" if found.left else "nothing-read"
        raise RewriteError(
            f"pruning would leave {'a single one' if found.left else 'nothing'} of the channels here",
            node=found.node,
            source=source_of(graph.node(found.node)),
            hint=suggestion_for(code),
            code=code,
        )
    return maps


def without_emptying(graph: Graph, morphisms: Sequence[Morphism]) -> list[Morphism]:
    """Returns the morphisms less those prunes that would leave too few groups, or an operator none at all.

    Args:
        graph: The graph.
        morphisms: Each of them legal on its own.
    """
    left = {name: space.width - space.least for name, space in graph.spaces.items()}
    kept: list[Morphism] = []
    for morphism in morphisms:
        removes = not morphism.children
        if not removes or left[morphism.space] > 0:
            left[morphism.space] -= removes
            kept.append(morphism)
    while True:
        copies = {name: [1] * space.width for name, space in graph.spaces.items()}
        for morphism in kept:
            copies[morphism.space][morphism.index] = len(morphism.children)
        needed = spared(graph.channels, copies)
        if not needed:
            return kept
        kept = [morphism for morphism in kept if (morphism.space, morphism.index) not in needed]


def _index_map(space: ChannelSpace, morphisms: Mapping[int, Morphism]) -> IndexMap:
    children = [
        (group, child)
        for group in range(space.width)
        for child in (morphisms[group].children if group in morphisms else _KEPT)
    ]
    if not children:
        raise RewriteError(
            f"pruning all {space.width} channel groups of {space.name!r} would leave nothing",
            hint=suggestion_for("nothing-left"),
            code="nothing-left",
        )
    if len(children) < space.least:
        raise RewriteError(
            f"pruning would leave {len(children)} channel group of {space.name!r}, which needs {space.least}",
            hint=suggestion_for("too-few-left"),
            code="too-few-left",
        )
    thetas: dict[int, Theta] = {
        group: morphism.parameters for group, morphism in morphisms.items() if morphism.parameters
    }
    return IndexMap(
        space.name,
        space.width,
        tuple(group for group, _ in children),
        tuple(child.scale for _, child in children),
        tuple(child.sign for _, child in children),
        thetas,
    )
