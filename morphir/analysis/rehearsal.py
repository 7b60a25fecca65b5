"""Trial rewrites: a verdict "exact" is a promise that a rewrite follows, so it is tried before it is given.

The labels say which channels go together. Whether the program around them follows when there are more or
fewer is another question: ``h.view(2, 2 * (h.size(1) // 2))`` does for an even number alone. So, once a model
is traced, some groups of all spaces are split, then pruned, on shapes alone; the graph is put back each time.
A space that does not follow is frozen, with the node at which its trial failed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from morphir.analysis.emptied import emptied
from morphir.analysis.picks import picks
from morphir.analysis.rewritten import rewrite_program
from morphir.errors import MorphirError
from morphir.ir.channels import ChannelSpace, Verdict
from morphir.ir.graph import Graph
from morphir.ir.index_map import IndexMap
from morphir.ir.snapshot import restored
from morphir.ir.source import source_of

_SHARE = 3
"""Every third group is changed in a trial: changed and unchanged ones lie side by side."""
_NARROW = 3
"""Spaces of no more groups are pruned as far as they go: a single channel is what operators trip over."""


def too_narrow(graph: Graph) -> dict[str, int]:
    """Returns how many groups have to stay of each space that does not follow when it is pruned to its least.

    Args:
        graph: A traced and analysed graph; left as it was.
    """
    narrow = [name for name, space in graph.spaces.items() if space.least < space.width <= _NARROW]
    if _fails(graph, _narrowed(graph, narrow)) is None:
        return {}
    return {name: 2 for name in narrow if _fails(graph, _narrowed(graph, [name])) is not None}


def not_following(graph: Graph) -> dict[str, Verdict]:
    """Returns a verdict for each space that does not follow although its verdicts say so.

    Args:
        graph: A traced and analysed graph, whose spaces say how many groups have to stay; left as it was.
    """
    verdicts = _found_by_halves(graph) if _fails(graph, _mixed(graph)) is not None else {}
    return verdicts | _picked_apart(graph)


def _found_by_halves(graph: Graph) -> dict[str, Verdict]:
    frozen: dict[str, Verdict] = {}
    for copies in (2, 0):
        names = _changeable(graph, copies, frozen)
        while (error := _failure(graph, names, copies)) is not None:
            failed = _culprits(graph, names, error, copies)
            frozen.update({name: _verdict(graph, at, graph.spaces[name]) for name, at in failed.items()})
            names = _changeable(graph, copies, frozen)
    return frozen


def _picked_apart(graph: Graph) -> dict[str, Verdict]:
    """Splits every group of the spaces of which a literal picks single positions.

    Whether an index list or a roll follows may hang on the one group at its ends.
    """
    values = graph.channels.values
    sources = {(pick.source, dim) for (_, _, dim), pick in picks(graph.graph, graph.channels).items()}
    names = {
        layout.space
        for source, dim in sources
        for layout in values[source][0].layouts
        if layout.dim == dim and _repeats(layout.groups)
    }
    doubled = {
        name: [2 if verdict.kind == "exact" else 1 for verdict in graph.spaces[name].verdicts]
        for name in sorted(names)
    }
    if _fails(graph, {name: list(counts) for name, counts in doubled.items()}) is None:
        return {}
    alone = {name: _fails(graph, {name: counts}) for name, counts in doubled.items()}
    return {
        name: _verdict(graph, error, graph.spaces[name]) for name, error in alone.items() if error is not None
    }


def _repeats(groups: Sequence[int]) -> bool:
    held = [group for group in groups if group >= 0]
    return len(set(held)) < len(held)


def _mixed(graph: Graph) -> dict[str, list[int]]:
    """Splits some groups of every space, and prunes others, so that the width changes by an odd number.

    By turns more or fewer of them: spaces of one width that have to stay alike do not by chance.
    """
    counts: dict[str, list[int]] = {}
    for position, (name, space) in enumerate(graph.spaces.items()):
        exact, prunable = _of_kinds(space, ("exact",)), _prunable(space)
        chosen = _chosen(space, 2 if exact else 0)
        if position % 2 and exact:
            more = [group for group in exact if group not in chosen][:2]
            chosen = chosen[2:] if len(chosen) > 2 else [*chosen, *more] if len(more) == 2 else chosen
        # An even number beside the split ones, which are an odd number, and always more.
        others = sorted({*prunable} - {*chosen})
        pruned = others[: min(len(chosen) - 1, len(others)) // 2 * 2] if exact else chosen
        split = chosen if exact else ()
        counts[name] = [2 if g in split else 0 if g in pruned else 1 for g in range(space.width)]
    return counts


def _narrowed(graph: Graph, names: Iterable[str]) -> dict[str, list[int]]:
    """Prunes spaces as far as they go; of those that an operator needs one of, others than these."""
    counts: dict[str, list[int]] = {}
    for name in names:
        space = graph.spaces[name]
        pruned = _prunable(space)[: space.width - space.least]
        counts[name] = [0 if group in pruned else 1 for group in range(space.width)]
    for name, group in _keep_some(graph, counts):
        others = [other for other in _prunable(graph.spaces[name]) if counts[name][other] and other != group]
        for other in others[: sum(counts[name]) - graph.spaces[name].least]:
            counts[name][other] = 0
    return counts


def _changeable(graph: Graph, copies: int, frozen: Collection[str]) -> list[str]:
    return [name for name, space in graph.spaces.items() if name not in frozen and _chosen(space, copies)]


def _culprits(
    graph: Graph, names: Sequence[str], error: MorphirError, copies: int
) -> dict[str, MorphirError]:
    """Returns which spaces do not follow by themselves, each with its error; all at the node if none."""
    near = [name for name in names if name in _spaces_at(graph, error.node)] or list(names)
    alone = {name: found for name in near if (found := _failure(graph, [name], copies)) is not None}
    if alone or len(near) == len(names):
        return alone or dict.fromkeys(near, error)
    elsewhere = _halved(graph, [name for name in names if name not in near], copies)
    return elsewhere or dict.fromkeys(near, error)


def _halved(graph: Graph, names: Sequence[str], copies: int) -> dict[str, MorphirError]:
    """Finds the spaces that do not follow among many that do, by halves."""
    error = _failure(graph, names, copies) if names else None
    if error is None:
        return {}
    if len(names) == 1:
        return {names[0]: error}
    middle = len(names) // 2
    return {**_halved(graph, names[:middle], copies), **_halved(graph, names[middle:], copies)}


def _spaces_at(graph: Graph, name: str | None) -> set[str]:
    """Returns the spaces whose channels a node, or one that calls the same, reads or yields."""
    if name is None:
        return set()
    failed = graph.node(name)
    alike = [node for node in graph.graph.nodes if (node.op, node.target) == (failed.op, failed.target)]
    near = {other.name for node in alike for other in (node, *node.all_input_nodes)}
    values = graph.channels.values
    return {layout.space for other in near for value in values.get(other, ()) for layout in value.layouts}


def _failure(graph: Graph, names: Sequence[str], copies: int) -> MorphirError | None:
    """Tries a rewrite of some groups of the named spaces."""
    counts = {name: [1] * graph.spaces[name].width for name in names}
    for name in names:
        for group in _chosen(graph.spaces[name], copies):
            counts[name][group] = copies
    return _fails(graph, counts)


def _fails(graph: Graph, counts: dict[str, list[int]]) -> MorphirError | None:
    """Tries so many copies of each group; returns None where the program follows."""
    _keep_some(graph, counts)
    maps = [IndexMap.of_copies(name, found) for name, found in counts.items() if set(found) != {1}]
    if not maps:
        return None
    with restored(graph):
        try:
            rewrite_program(graph, maps)
        except MorphirError as error:
            return error
    return None


def _keep_some(graph: Graph, counts: dict[str, list[int]]) -> list[tuple[str, int]]:
    """Keeps a group wherever an operator would be left without channels, and returns these."""
    kept: list[tuple[str, int]] = []
    while spared := {min(groups) for _, groups in emptied(graph.channels, counts)}:
        for name, group in spared:
            counts[name][group] = 1
        kept += sorted(spared)
    return kept


def _chosen(space: ChannelSpace, copies: int) -> Sequence[int]:
    """Returns an odd number of groups, about a third: an even number would follow where halves are taken."""
    groups = _of_kinds(space, ("exact",)) if copies == 2 else _prunable(space)
    most = len(groups) if copies == 2 else space.width - space.least
    count = min(max(len(groups) // _SHARE, 1), len(groups), most)
    return groups[:: max(len(groups) // count, 1)][: count - 1 + count % 2] if count > 0 else ()


def _prunable(space: ChannelSpace) -> list[int]:
    return _of_kinds(space, ("exact", "prune-only"))


def _of_kinds(space: ChannelSpace, kinds: Collection[str]) -> list[int]:
    return [index for index, verdict in enumerate(space.verdicts) if verdict.kind in kinds]


def _verdict(graph: Graph, error: MorphirError, space: ChannelSpace) -> Verdict:
    node = error.node or space.producers[0].node
    reason = f"in a trial {error.message.splitlines()[0]}"
    code = "regrouped" if error.code == "regrouped" else "trial-failed"
    return Verdict("frozen", code, reason, node, source_of(graph.node(node)))
