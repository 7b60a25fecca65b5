"""``PassManager``: runs a pipeline all-or-nothing, verifies after each pass, and times it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import optim

from morphir.errors import MorphirError, VerificationError
from morphir.ir.graph import Graph
from morphir.ir.index_map import IndexMap
from morphir.ir.remarks import Remark
from morphir.ir.snapshot import GraphSnapshot
from morphir.ir.verify import verify
from passes.all_or_nothing import all_or_nothing
from passes.base import Pass, PassResult
from passes.instruments import active, tell_all
from passes.moments import check_optimizer
from passes.rewriter import Rewriter


@dataclass(frozen=True)
class PassReport:
    """One pass of a pipeline that ran.

    Attributes:
        name: The pass.
        result: What it did.
        seconds: Wall time, verification included.
    """

    name: str
    result: PassResult
    seconds: float


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline did, pass by pass."""

    reports: tuple[PassReport, ...]

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """All passes' remarks."""
        return tuple(remark for report in self.reports for remark in report.result.remarks)

    @property
    def index_maps(self) -> tuple[IndexMap, ...]:
        """All passes' index maps, in the order in which they were applied."""
        return tuple(index_map for report in self.reports for index_map in report.result.index_maps)


@dataclass(frozen=True)
class PassManager:
    """Runs passes in order.

    Attributes:
        pipeline: The passes.
        verify_each: Whether the verifier runs after each pass that changed the graph.
    """

    pipeline: tuple[Pass, ...]
    verify_each: bool = True

    def run(self, graph: Graph, optimizer: optim.Optimizer | None = None) -> PipelineResult:
        """Runs the pipeline; on an error graph and optimizer are left as they were before the first pass.

        Raises:
            MorphirError: what a pass or the verifier raises, with the passes that had run.
            PipelineStopped: if an instrument asked for it; the rewrites so far stay.
        """
        if optimizer is not None:
            check_optimizer(optimizer, graph)
        rewriter = Rewriter(graph, optimizer)
        reports: list[PassReport] = []
        with all_or_nothing(graph, optimizer, self.pipeline, verify_each=self.verify_each):
            try:
                reports.extend(self._run_pass(item, rewriter) for item in self.pipeline)
            except MorphirError as error:
                error.add_note(f"in pass {self.pipeline[len(reports)].name}, after {_names(reports)}")
                raise
        return PipelineResult(tuple(reports))

    def _run_pass(self, item: Pass, rewriter: Rewriter) -> PassReport:
        watching = active()
        for instrument in watching:
            instrument.before_pass(item.name, rewriter.graph)
        start = time.perf_counter()
        before = GraphSnapshot.take(rewriter.graph) if self.verify_each else None
        result = item.apply(rewriter)
        if before is not None and not before.is_current():
            _verify_after(item, rewriter.graph)
        seconds = time.perf_counter() - start
        tell_all(lambda i: i.after_pass(item.name, rewriter.graph, result, seconds), watching)
        return PassReport(item.name, result, seconds)


def _verify_after(item: Pass, graph: Graph) -> None:
    """Verifies the graph; a fault is the pass's own, since the graph was sound before it."""
    try:
        verify(graph)
    except VerificationError as error:
        raise VerificationError(
            f"the pass {item.name} ({type(item).__name__}) left the graph inconsistent: {error.message}",
            node=error.node,
            source=error.source,
            hint="a pass must change the graph through its rewriter alone; what it changed so is put back",
        ) from error


def _names(reports: Sequence[PassReport]) -> str:
    return ", ".join(report.name for report in reports) or "no other pass"
