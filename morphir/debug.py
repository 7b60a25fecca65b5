"""Watch passes and rewrites at work, and stop in them.

::

    with morphir.debug.breakpoint_on(space="features.3"):
        morphir.transform(graph, morphisms)  # stops in pdb: graph, space, morphism, index_map are locals

    with morphir.debug.instrumented(morphir.debug.PrintIR(difference=True)):
        morphir.transform(graph, morphisms)

    with morphir.debug.recorded(graph, "history"):
        morphir.transform(graph, morphisms)
    session = morphir.debug.Session.open("history")
    print(morphir.debug.bisect(session, morphir.debug.verifier))
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path

from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.runtime.history.action import Action
from morphir.runtime.history.bisection import Bisection, bisect, maximum_difference, user_oracle, verifier
from morphir.runtime.history.lineage import Ancestor
from morphir.runtime.history.preserving import VerifyOutputs
from morphir.runtime.history.recorder import RecordHistory
from morphir.runtime.history.session import PointDifference, Session
from morphir.runtime.reproduction.writing import WriteReproducer
from passes.instruments import Instrument, PendingRewrite, PipelineStopped, instrumented
from passes.instruments.breaking import BreakOn, Kind
from passes.instruments.observing import PrintRemarks, TimePasses, VerifyEach
from passes.instruments.printing import ALL, DumpIR, PrintIR
from passes.instruments.stopping import StopAfterRewrite

__all__ = [
    "ALL",
    "Action",
    "Ancestor",
    "Bisection",
    "BreakOn",
    "DumpIR",
    "Instrument",
    "PendingRewrite",
    "PipelineStopped",
    "PointDifference",
    "PrintIR",
    "PrintRemarks",
    "RecordHistory",
    "Session",
    "StopAfterRewrite",
    "TimePasses",
    "VerifyEach",
    "VerifyOutputs",
    "WriteReproducer",
    "bisect",
    "breakpoint_on",
    "instrumented",
    "maximum_difference",
    "recorded",
    "user_oracle",
    "verifier",
]


def breakpoint_on(
    *,
    pass_name: str | None = None,
    rewrite: int | None = None,
    space: str | None = None,
    node: str | None = None,
) -> AbstractContextManager[Sequence[Instrument]]:
    """Stops in a debugger before what is named: pdb, or whatever ``PYTHONBREAKPOINT`` names.

    Args:
        pass_name: Before the pass of this name.
        rewrite: Before the rewrite of this number.
        space: Before each rewrite of this space.
        node: Before each rewrite that changes what this node makes, holds or reads.

    Returns:
        A context manager: breakpoints hold within its block.

    Raises:
        MorphirError: if nothing is named.
    """
    named: dict[Kind, object] = {"pass": pass_name, "rewrite": rewrite, "space": space, "node": node}
    instruments = [BreakOn(kind, str(value)) for kind, value in named.items() if value is not None]
    if not instruments:
        raise MorphirError(
            "a breakpoint needs a place", hint="name a pass, a rewrite's number, a space or a node"
        )
    return instrumented(*instruments)


def recorded(graph: Graph, folder: str | PathLike[str]) -> AbstractContextManager[Sequence[Instrument]]:
    """Records every change of a graph into a new history, within a block of code.

    Args:
        graph: The graph; its PyTorch source is stored with the history, where it has one.
        folder: Where the history goes: new, or empty. ``Session.open`` and ``morphir debug`` open it.

    Raises:
        MorphirError: if the folder holds something.
    """
    return instrumented(RecordHistory.start(graph, Path(folder)))
