"""What holds for every network: one named property after the other, each with what is wrong, if anything."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from morphir.analysis.tracing import trace
from morphir.analysis.verify import verify_channels
from morphir.runtime.oracle.oracle import check_graph
from random_networks.calibrated import wrong_sample
from random_networks.draft import Network
from random_networks.influence import Subject, wrong_claims, wrong_split

ALL_TARGETS = ("pytorch", "onnx")


@dataclass(frozen=True)
class Finding:
    """One property of one network.

    Attributes:
        property: Its name.
        fault: What is wrong, in words; empty where it holds.
        applies: False where the network has nothing that the property speaks of.
    """

    property: str
    fault: str = ""
    applies: bool = True


def findings(network: Network, seed: int, targets: Collection[str] = ALL_TARGETS) -> Iterator[Finding]:
    """Checks every property; an error of the compiler's is a fault of the property that it met.

    Args:
        network: A drawn network.
        seed: Of inputs, batch-norm statistics and the choice of groups.
        targets: Names of the exporters to try.
    """
    at = "trace"
    try:
        graph = trace(network.build(), network.examples())
        yield Finding(at)
        at = "analysis"
        verify_channels(graph)
        yield Finding(at)
        at = "influence"
        subject = Subject(graph, seed)
        yield Finding(at, next(wrong_claims(subject, seed), ""))
        at = "theta"
        yield Finding(at, wrong_split(subject, seed))
        at = "learner"
        fault = wrong_sample(subject, seed)
        yield Finding(at, fault or "", fault is not None)
        at = "oracle"
        for check in check_graph(graph, seed=seed, exports=True if targets is None else targets):
            site = f"{check.space}: " if check.space else ""
            fault = f"{site}{check.detail}" if check.outcome == "failed" else ""
            yield Finding(check.check, fault, check.outcome != "refused")
    except Exception as error:
        yield Finding(at, f"{type(error).__name__}: {error}")
