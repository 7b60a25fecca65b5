"""The proof after every rewrite: the analysis, run anew, finds what the channel layer says."""

from __future__ import annotations

from collections.abc import Iterator

from morphir.analysis.spaces import analyse
from morphir.ir.channels import ChannelLayer, ChannelSpace
from morphir.ir.faults import Fault, failure
from morphir.ir.graph import Graph
from morphir.ir.verify import verify


def verify_channels(graph: Graph) -> None:
    """Checks every invariant of :func:`morphir.ir.verify.verify`, and that a fresh analysis agrees.

    Raises:
        VerificationError: on the first difference; the program is left as it was.
    """
    verify(graph)
    for fault in differences(graph.channels, analyse(graph)):
        raise failure(graph, fault)


def differences(attached: ChannelLayer, found: ChannelLayer) -> Iterator[Fault]:
    """Yields where a channel layer differs from another of the same program.

    Args:
        attached: What is claimed.
        found: What the analysis finds.
    """
    for name, values in found.values.items():
        claimed = [value.shape for value in attached.values.get(name, ())]
        if claimed != (shapes := [value.shape for value in values]):
            yield Fault(f"%{name} has the shapes {shapes}, the channel layer says {claimed}", name)
    if (names := list(attached.spaces)) != (found_names := list(found.spaces)):
        unknown = sorted(set(names) ^ set(found_names)) or names
        yield Fault(f"the analysis finds other spaces than the channel layer: {', '.join(unknown)}")
        return
    for name, space in found.spaces.items():
        yield from _space_differences(attached.spaces[name], space)


def _space_differences(attached: ChannelSpace, found: ChannelSpace) -> Iterator[Fault]:
    node = found.producers[0].node
    if attached.width != found.width:
        yield Fault(f"{found.name} has {found.width} groups, the channel layer says {attached.width}", node)
    for part in ("verdicts", "producers", "consumers", "bindings"):
        if getattr(attached, part) != getattr(found, part):
            yield Fault(f"the {part} of {found.name} are other than the channel layer says", node)
