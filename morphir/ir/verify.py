"""The verifier: two tables of invariants that every graph keeps, before and after every rewrite.

:func:`verify` checks what can be seen without running the program;
:func:`morphir.analysis.verify.verify_channels` runs the analysis anew and compares.
"""

from __future__ import annotations

from morphir.ir.channel_invariants import CHANNEL_INVARIANTS
from morphir.ir.faults import failure
from morphir.ir.graph import Graph, require_graph
from morphir.ir.program_invariants import PROGRAM_INVARIANTS


def verify(graph: Graph) -> None:
    """Checks every invariant of a graph and of its channel layer.

    Raises:
        VerificationError: on the first broken invariant.
        MorphirError: for anything but a graph.
    """
    require_graph(graph)
    for check in (*PROGRAM_INVARIANTS, *CHANNEL_INVARIANTS):
        for fault in check(graph):
            raise failure(graph, fault)
