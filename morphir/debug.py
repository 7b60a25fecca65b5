"""Watch passes and rewrites at work, and stop in them.

::

    with morphir.debug.breakpoint_on(space="features.3"):
        morphir.transform(graph, morphisms)  # stops in pdb: graph, space, morphism, index_map are locals

    with morphir.debug.instrumented(morphir.debug.PrintIR(difference=True)):
        morphir.transform(graph, morphisms)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from morphir.errors import MorphirError
from passes.instruments import Instrument, PendingRewrite, instrumented
from passes.instruments.breaking import BreakOn, Kind
from passes.instruments.observing import PrintRemarks, TimePasses, VerifyEach
from passes.instruments.printing import ALL, DumpIR, PrintIR

__all__ = [
    "ALL",
    "BreakOn",
    "DumpIR",
    "Instrument",
    "PendingRewrite",
    "PrintIR",
    "PrintRemarks",
    "TimePasses",
    "VerifyEach",
    "breakpoint_on",
    "instrumented",
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
