"""``trace``: from a model to a graph whose channel spaces are known, and whose verdicts were tried."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from morphir.analysis.rehearsal import not_following, too_narrow
from morphir.analysis.spaces import Labelling, label
from morphir.analysis.wrapped_functions import not_alike, unlike
from morphir.errors import AnalysisError, MorphirWarning, TraceError
from morphir.ir.channels import Limits, Verdict
from morphir.ir.garbage import collected_later
from morphir.ir.graph import Graph
from morphir.ir.opaque import Failure, innermost_module, values_reason
from morphir.ir.source import source_of
from morphir.ir.trace import ExampleArgument, trace_program
from morphir.ir.wrapped import is_wrapped


def trace(model: object, example_inputs: ExampleArgument) -> Graph:
    """Traces a model and finds its channel spaces.

    Args:
        model: Any ``nn.Module`` that ``torch.fx`` can trace. It is copied, never changed.
        example_inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments, with a
            batch dimension.

    Returns:
        The graph, in the model's own mode (training or evaluation).

    Raises:
        TraceError: if the model cannot be traced or fails on the example inputs; names the user's line.
    """
    whole: dict[str, Failure] = {}
    opened, closed = set[Any](), set[Any]()
    while True:
        graph = trace_program(model, example_inputs, whole, opened, closed)  # pyright: ignore[reportArgumentType]
        try:
            with collected_later():
                labelling = label(graph)
                graph.attach(labelling.layer())
            unlike_calls = not_alike(graph)
            if wanted := _to_open(graph, unlike_calls) - opened - closed:
                opened |= wanted
                continue
            _withdraw(labelling, _boundaries(graph, unlike_calls))
        except AnalysisError as error:
            _keep_whole(graph, error, whole)
        else:
            _warn_of_opaque(graph)
            return graph


def _to_open(graph: Graph, unlike_calls: Iterable[str]) -> set[Any]:
    """Returns the wrapped functions to trace into: that freeze channels, or do not treat them alike."""
    verdicts = {verdict for space in graph.spaces.values() for verdict in space.verdicts}
    names = {verdict.node for verdict in verdicts if verdict.code == "opaque-module" and verdict.node}
    return {node.target for name in (*names, *unlike_calls) if is_wrapped(node := graph.node(name))}


def _withdraw(labelling: Labelling, whole: Mapping[str, Verdict]) -> None:
    """Withdraws what the labels promise and the program does not keep in a trial."""
    if whole:
        _limit(labelling, Limits(whole))
    if least := too_narrow(labelling.graph):
        _limit(labelling, Limits(whole, least))
    if verdicts := not_following(labelling.graph):
        _limit(labelling, Limits({**whole, **verdicts}, least))


def _boundaries(graph: Graph, unlike_calls: Mapping[str, set[str]]) -> dict[str, Verdict]:
    """Returns a verdict for each space that meets a wrapped function which does not treat channels alike."""
    found: dict[str, Verdict] = {}
    for name, spaces in unlike_calls.items():
        node = graph.node(name)
        verdict = Verdict("frozen", "opaque-module", unlike(node), name, source_of(node))
        found |= {space: verdict for space in spaces if space not in found}
    return found


def _limit(labelling: Labelling, limits: Limits) -> None:
    labelling.graph.limits = limits
    labelling.graph.attach(labelling.layer())


def _keep_whole(graph: Graph, error: AnalysisError, whole: dict[str, Failure]) -> None:
    """Notes the innermost module that holds a node which shapes alone do not pass.

    Raises:
        TraceError: if it is the model itself.
    """
    if error.node is None:
        raise error
    node, cause = graph.node(error.node), error.__cause__ or error
    path, reason = innermost_module(node), str(cause).strip().split("\n", 1)[0]
    if isinstance(cause, (DataDependentOutputException, DynamicOutputShapeException)):
        reason = values_reason(cause)
    if not path or path in whole:
        raise TraceError(
            f"the analysis cannot follow the model on shapes alone: {reason}",
            node=node.name,
            source=source_of(node),
            hint="move what depends on tensor values into a module of its own, which is then kept whole",
        ) from error
    whole[path] = Failure(reason, source_of(node))


def _warn_of_opaque(graph: Graph) -> None:
    for path, failure in {call.path: call.failure for call in graph.opaque_calls.values()}.items():
        where = "" if failure.source is None else f" ({failure.source})"
        warnings.warn(
            f"{graph.module_types[path]} at {path!r} cannot be traced and is kept whole, the channels at its "
            f"boundary frozen: {failure.reason}{where}",
            MorphirWarning,
            stacklevel=3,
        )
