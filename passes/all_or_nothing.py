"""All or nothing: what fails half-way is put back, and the instruments are told."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import optim

from morphir.ir.graph import Graph
from passes.instruments import Failure, PipelineStopped, active, tell_all
from passes.snapshot import Snapshot

if TYPE_CHECKING:
    from passes.base import Pass


@contextmanager
def all_or_nothing(
    graph: Graph,
    optimizer: optim.Optimizer | None,
    pipeline: tuple[Pass, ...] = (),
    *,
    verify_each: bool = False,
) -> Generator[None]:
    """Puts graph and optimizer back as they were where the block raises.

    Args:
        graph: The graph.
        optimizer: The optimizer that trains it, if any.
        pipeline: The passes that run in the block; none for a rewrite on its own.
        verify_each: Whether the verifier runs after each.
    """
    watching = active()
    for instrument in watching:
        instrument.before_pipeline(graph, pipeline)
    snapshot = Snapshot.take(graph, optimizer)
    try:
        yield
    except PipelineStopped:
        raise
    except BaseException as error:
        snapshot.restore()
        if isinstance(error, Exception):
            failure = Failure(graph, pipeline, verify_each, error)
            tell_all(lambda instrument: instrument.after_failure(failure), watching)
        raise
