"""Trial rewrites: a verdict "exact" is a promise that a rewrite follows, so it is tried before it is given.

The labels say which channels go together. Whether the program around them follows when there are more or
fewer is another question: ``h.view(2, 2 * (h.size(1) // 2))`` does for an even number alone. So, once a model
is traced, some groups of all spaces are split, then pruned, on shapes alone; the graph is put back each time.
A space that does not follow is frozen, with the node at which its trial failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from morphir.analysis.emptied import spared
from morphir.analysis.picks import picks
from morphir.analysis.rewritten import rewrite_program
from morphir.errors import MorphirError
from morphir.ir.channels import ChannelSpace, Verdict
from morphir.ir.graph import Graph
from morphir.ir.groups import Groups
from morphir.ir.index_map import Copies, IndexMap
from morphir.ir.snapshot import restored
from morphir.ir.source import source_of

_SHARE = 3
"""Every third group is changed in a trial: changed and unchanged ones lie side by side."""
_SEVERAL = 3
"""How many groups are split where a third of them would be one alone."""
_NARROW = 3
"""Spaces of no more groups are pruned as far as they go: a single channel is what operators trip over."""


def too_narrow(graph: Graph) -> dict[str, int]:
    """Returns how many groups have to stay of each space that does not follow when it is pruned to its least.

    Args:
        graph: A traced and analysed graph; left as it was.
    """
    narrow = [name for name, space in graph.spaces.items() if space.least < space.width <= _NARROW]
    # Each by itself: a lone channel may trip an operator on a value that other lone channels do not reach.
    return {name: 2 for name in narrow if _failure(graph, _narrowed(graph, [name])) is not None}


def not_following(graph: Graph) -> dict[str, Verdict]:
    """Returns a verdict for each space that does not follow although its verdicts say so.

    Args:
        graph: A traced and analysed graph, whose spaces say how many groups have to stay; left as it was.
    """
    failed = _failing(graph, _mixed(graph))
    doubled = {name: copies for name, copies in _doubled(graph).items() if name not in failed}
    failed |= _failing(graph, doubled)
    return {name: _verdict(graph, error, graph.spaces[name]) for name, error in failed.items()}


def _mixed(graph: Graph) -> Copies:
    """Changes every space's width by an odd number: by turns one more, with others pruned, or several more.

    Spaces of one width that have to stay alike do not by chance.
    """
    trial: dict[str, Sequence[int]] = {}
    for position, (name, space) in enumerate(graph.spaces.items()):
        exact, prunable = _of_kinds(space, "exact"), _of_kinds(space, "exact", "prune-only")
        one_more = position % 2 == 0
        split = _third(exact, len(exact))
        if len(split) < _SEVERAL <= len(exact) and not (one_more and len(exact) < 2 * _SEVERAL - 1):
            split = exact[:_SEVERAL]
        changed = set(split)
        others = [group for group in prunable if group not in changed]
        if not exact:
            pruned = _third(prunable, space.width - space.least)
        else:
            pruned = others[: min(len(split) - 1, len(others)) // 2 * 2] if one_more else ()
        gone = set(pruned)
        trial[name] = [2 if g in changed else 0 if g in gone else 1 for g in range(space.width)]
    return trial


def _doubled(graph: Graph) -> Copies:
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
    return {
        name: [2 if verdict.kind == "exact" else 1 for verdict in space.verdicts]
        for name, space in graph.spaces.items()
        if name in names
    }


def _repeats(groups: Groups) -> bool:
    return len(np.unique(groups.held)) < len(groups.held)


def _narrowed(graph: Graph, names: Iterable[str]) -> Copies:
    """Prunes spaces as far as they go; of those that an operator needs one of, others than these."""
    trial: dict[str, list[int]] = {}
    for name in names:
        space = graph.spaces[name]
        pruned = _of_kinds(space, "exact", "prune-only")[: space.width - space.least]
        trial[name] = [0 if group in pruned else 1 for group in range(space.width)]
    for name, group in _keep_some(graph, trial):
        space, copies = graph.spaces[name], trial[name]
        others = [g for g in _of_kinds(space, "exact", "prune-only") if copies[g] and g != group]
        for other in others[: sum(copies) - space.least]:
            copies[other] = 0
    return trial


def _failing(graph: Graph, trial: Copies) -> dict[str, MorphirError]:
    """Takes spaces out of a trial until the program follows; returns these, each with its error."""
    failing: dict[str, MorphirError] = {}
    while (error := _failure(graph, trial)) is not None:
        found = _culprits(graph, trial, error)
        failing |= found
        trial = {name: copies for name, copies in trial.items() if name not in found}
    return failing


def _culprits(graph: Graph, trial: Copies, error: MorphirError) -> dict[str, MorphirError]:
    """Returns which spaces fail by themselves, those of the failed node first; all of these if none does."""
    near = [name for name in trial if name in _spaces_at(graph, error.node)] or list(trial)
    found = {name: failed for name in near if (failed := _failure(graph, {name: trial[name]})) is not None}
    far = {name: copies for name, copies in trial.items() if name not in near}
    return found or _by_halves(graph, far) or dict.fromkeys(near, error)


def _by_halves(graph: Graph, trial: Copies) -> dict[str, MorphirError]:
    """Finds the spaces that do not follow among many that do."""
    error = _failure(graph, trial)
    if error is None or len(trial) == 1:
        return {} if error is None else dict.fromkeys(trial, error)
    names = list(trial)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    first, second = (_by_halves(graph, {name: trial[name] for name in half}) for half in halves)
    return {**first, **second}


def _spaces_at(graph: Graph, name: str | None) -> set[str]:
    """Returns the spaces whose channels a node, or one that calls the same, reads or yields."""
    if name is None:
        return set()
    failed = graph.node(name)
    alike = [node for node in graph.graph.nodes if (node.op, node.target) == (failed.op, failed.target)]
    near = {other.name for node in alike for other in (node, *node.all_input_nodes)}
    values = graph.channels.values
    return {layout.space for other in near for value in values.get(other, ()) for layout in value.layouts}


def _failure(graph: Graph, trial: Copies) -> MorphirError | None:
    """Tries a rewrite; returns None where the program follows."""
    counts = {name: list(copies) for name, copies in trial.items()}
    _keep_some(graph, counts)
    maps = [IndexMap.of_copies(name, copies) for name, copies in counts.items() if set(copies) != {1}]
    if not maps:
        return None
    with restored(graph):
        try:
            rewrite_program(graph, maps)
        except MorphirError as error:
            return error
    return None


def _keep_some(graph: Graph, counts: Mapping[str, list[int]]) -> list[tuple[str, int]]:
    """Keeps a group wherever an operator would be left without channels, and returns these."""
    kept: list[tuple[str, int]] = []
    while needed := spared(graph.channels, counts):
        for name, group in needed:
            counts[name][group] = 1
        kept += sorted(needed)
    return kept


def _third(groups: Sequence[int], most: int) -> Sequence[int]:
    """Returns an odd number of groups, about a third: an even number would follow where halves are taken."""
    count = min(max(len(groups) // _SHARE, 1), len(groups), most)
    return groups[:: max(len(groups) // count, 1)][: count - 1 + count % 2] if count > 0 else ()


def _of_kinds(space: ChannelSpace, *kinds: str) -> list[int]:
    return [index for index, verdict in enumerate(space.verdicts) if verdict.kind in kinds]


def _verdict(graph: Graph, error: MorphirError, space: ChannelSpace) -> Verdict:
    node = error.node or space.producers[0].node
    reason = f"in a trial {error.message.splitlines()[0]}"
    code = "regrouped" if error.code == "regrouped" else "trial-failed"
    return Verdict("frozen", code, reason, node, source_of(graph.node(node)))
