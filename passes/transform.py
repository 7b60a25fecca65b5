"""``transform``: the one call that applies morphisms to a graph, and to the optimizer that trains it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from torch import optim

from morphir.errors import RewriteError
from morphir.ir.graph import Graph, require_graph
from morphir.ir.index_map import IndexMap, Rewrite
from morphir.ir.integers import whole_number
from morphir.ir.remarks import Remark
from morphir.morphisms.base import Morphism
from morphir.morphisms.plan import index_maps
from passes.all_or_nothing import all_or_nothing
from passes.base import Pass
from passes.manager import PassManager
from passes.moments import check_optimizer
from passes.morph_channels import PASSES
from passes.rewriter import Rewriter


@dataclass(frozen=True)
class TransformResult:
    """What :func:`transform` did.

    Attributes:
        remarks: One for each morphism.
        index_maps: The index maps in the order in which they were applied (splits, then prunes).
        delta_parameters: Exact change of the number of parameters.
        rewrites: The numbered rewrites that were recorded.
    """

    remarks: tuple[Remark, ...]
    index_maps: tuple[IndexMap, ...]
    delta_parameters: int
    rewrites: tuple[Rewrite, ...]


def transform(
    graph: Graph, morphisms: Iterable[Morphism], optimizer: optim.Optimizer | None = None
) -> TransformResult:
    """Applies morphisms in place.

    All indices refer to the graph as it is before the call. The parameters of changed spaces become new
    ``nn.Parameter`` objects; gradients are carried over, and so is ``optimizer``: the same object, its
    ``param_groups`` and ``state`` pointing to the new parameters, its moments scaled by the chain rule.

    Args:
        graph: A traced graph.
        morphisms: Splits and prunes, each channel group named at most once.
        optimizer: The optimizer that was built from ``graph.parameters()``.

    Raises:
        MorphirError: for a morphism that is not legal, or that no pass applies; graph and optimizer are left
            as they were.
    """
    require_graph(graph)
    wanted = _checked(morphisms)
    index_maps(graph, wanted)
    recorded = len(graph.history)
    result = PassManager(_pipeline(graph, wanted)).run(graph, optimizer)
    rewrites = graph.history[recorded:]
    delta = sum(rewrite.delta_parameters for rewrite in rewrites)
    return TransformResult(result.remarks, result.index_maps, delta, rewrites)


def _checked(morphisms: object) -> tuple[Morphism, ...]:
    """Reads the request; a lone morphism is the commonest slip."""
    wanted = cast(
        "tuple[object, ...]",
        tuple(cast("Iterable[object]", morphisms)) if isinstance(morphisms, Iterable) else (None,),
    )
    found = tuple(map(_indexed, wanted))
    if None in found:
        raise RewriteError(
            f"expected morphisms with integer indices, got {morphisms!r}",
            hint='transform takes a list, as [Split("conv1", 3), Prune("conv2", 0)]',
        )
    return cast("tuple[Morphism, ...]", found)


def _indexed(item: object) -> Morphism | None:
    """Returns the morphism with Python's own integer as its index; None for what is no morphism.

    Raises:
        RewriteError: for a kind of morphism that no pass applies.
    """
    if not isinstance(item, Morphism) or (index := whole_number(item.index)) is None:
        return None
    kind = getattr(item, "kind", None)
    if kind not in PASSES:
        raise RewriteError(
            f"no pass applies the morphism {type(item).__name__} of {item.space}[{index}]",
            hint=f"known kinds are {', '.join(PASSES)}; others are added to passes.morph_channels.PASSES",
        )
    return item if type(item.index) is int else replace(item, index=index)


def _pipeline(graph: Graph, morphisms: Sequence[Morphism]) -> tuple[Pass, ...]:
    """Returns a pass for each kind of morphism; its indices are those after the passes before it."""
    pipeline: list[Pass] = []
    before: list[Morphism] = []
    for kind, make in PASSES.items():
        own = [morphism for morphism in morphisms if morphism.kind == kind]
        pipeline.append(make(_moved(own, index_maps(graph, before))))
        before += own
    return tuple(pipeline)


def _moved(morphisms: Sequence[Morphism], maps: Sequence[IndexMap]) -> tuple[Morphism, ...]:
    """Moves the morphisms' indices to where their groups lie once the maps are applied."""
    places = {m.space: {old: new for new, old in enumerate(m.sources)} for m in maps}
    return tuple(
        replace(item, index=places[item.space][item.index]) if item.space in places else item
        for item in morphisms
    )


def replay(graph: Graph, rewrites: Iterable[Rewrite], optimizer: optim.Optimizer | None = None) -> None:
    """Applies recorded rewrites, index maps and thetas, to a freshly traced graph of the same model.

    Args:
        graph: The fresh trace.
        rewrites: What another graph's ``history`` holds.
        optimizer: The optimizer that was built from ``graph.parameters()``.

    Raises:
        MorphirError: if graph, optimizer or rewrites are none, before anything is changed; or if a rewrite
            does not fit: the rewrites before it stay applied.
    """
    require_graph(graph)
    if optimizer is not None:
        check_optimizer(optimizer, graph)
    rewriter = Rewriter(graph, optimizer)
    for rewrite in _recorded(rewrites):
        for index_map in rewrite.maps:
            graph.space(index_map.space)
        with all_or_nothing(graph, optimizer):
            rewriter.apply(rewrite.name, rewrite.maps, rewrite.morphisms)


def _recorded(rewrites: object) -> tuple[Rewrite, ...]:
    items = tuple(cast("Iterable[object]", rewrites)) if isinstance(rewrites, Iterable) else (rewrites,)
    if not all(isinstance(item, Rewrite) for item in items):
        raise RewriteError(
            f"expected recorded rewrites, got {rewrites!r}",
            hint="replay takes another graph's history: replay(fresh, graph.history)",
        )
    return cast("tuple[Rewrite, ...]", items)
