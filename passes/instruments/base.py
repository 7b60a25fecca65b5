"""What an instrument is told, and which are at work.

Instruments are put to work for a block of code; ``transform``, ``grow`` and a user's own pipeline need
no argument for them::

    with instrumented(PrintIR(after=ALL)):
        morphir.transform(graph, morphisms)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from morphir.ir.channels import ChannelSpace
from morphir.ir.graph import Graph
from morphir.ir.index_map import IndexMap, Rewrite
from morphir.ir.remarks import Remark

if TYPE_CHECKING:
    from passes.base import Pass, PassResult


@dataclass(frozen=True)
class PendingRewrite:
    """A rewrite that is about to be applied; nothing has changed yet.

    Attributes:
        number: The number that it will have in the graph's history.
        name: The pass that asks for it.
        graph: The graph as it is.
        maps: Its index maps.
        morphisms: Its morphisms as text.
    """

    number: int
    name: str
    graph: Graph
    maps: tuple[IndexMap, ...]
    morphisms: tuple[str, ...]

    @property
    def spaces(self) -> tuple[ChannelSpace, ...]:
        """The spaces that it changes."""
        return tuple(self.graph.space(index_map.space) for index_map in self.maps)

    def nodes(self) -> frozenset[str]:
        """Returns the names of the nodes that make, hold or read the spaces' channels."""
        changed = {index_map.space for index_map in self.maps}
        touched = self.graph.channels.touched_spaces()
        return frozenset(node for node, spaces in touched.items() if spaces & changed)


@dataclass(frozen=True)
class Failure:
    """A pipeline that failed; the graph is what it was before its first pass.

    Attributes:
        graph: The graph.
        pipeline: The passes.
        verify_each: Whether the verifier ran after each pass.
        error: What was raised.
    """

    graph: Graph
    pipeline: tuple[Pass, ...]
    verify_each: bool
    error: Exception


class PipelineStopped(BaseException):
    """A pipeline was asked to stop; what its rewrites did stays, and the passes left do not run.

    No error, so that nothing that goes on after errors goes on after it.
    """


class Instrument:
    """Is told of every pass and rewrite; a subclass overrides what it wants to hear."""

    def before_pipeline(self, graph: Graph, pipeline: tuple[Pass, ...]) -> None:
        """Is called before the first pass of a pipeline."""

    def after_failure(self, failure: Failure) -> None:
        """Is called when a pipeline has failed, and graph and optimizer are put back."""

    def before_pass(self, name: str, graph: Graph) -> None:
        """Is called before a pass runs."""

    def after_pass(self, name: str, graph: Graph, result: PassResult, seconds: float) -> None:
        """Is called after a pass has run and was verified.

        Args:
            name: The pass.
            graph: The graph as it left it.
            result: What it did.
            seconds: Wall time, verification included.
        """

    def before_rewrite(self, rewrite: PendingRewrite) -> None:
        """Is called inside the pass, before anything is changed."""

    def after_rewrite(self, graph: Graph, rewrite: Rewrite, seconds: float) -> None:
        """Is called once a rewrite is applied."""

    def on_remarks(self, name: str, remarks: Sequence[Remark]) -> None:
        """Is called with what was said outside of passes, as by a growth run's selection.

        Args:
            name: Who says it.
            remarks: What.
        """

    def close(self) -> None:
        """Is called at the end of the block, also after an error."""


_ACTIVE: ContextVar[tuple[Instrument, ...]] = ContextVar("active instruments", default=())


@contextmanager
def unobserved() -> Generator[None]:
    """Tells no instrument of what a block of code tries on copies."""
    token = _ACTIVE.set(())
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def tell_all(tell: Callable[[Instrument], object], watching: Iterable[Instrument]) -> None:
    """Tells every instrument, also those after one that raises.

    Raises:
        BaseException: the first that one of them raised.
    """
    first: BaseException | None = None
    for instrument in watching:
        try:
            tell(instrument)
        except BaseException as error:  # the first is raised once all have heard
            first = first or error
    if first is not None:
        raise first


def active() -> tuple[Instrument, ...]:
    """Returns the instruments that are at work, outermost first."""
    return _ACTIVE.get()


@contextmanager
def instrumented(*instruments: Instrument) -> Generator[Sequence[Instrument]]:
    """Puts instruments to work for a block of code, beside those that are."""
    token = _ACTIVE.set((*_ACTIVE.get(), *instruments))
    try:
        yield instruments
    finally:
        _ACTIVE.reset(token)
        for instrument in instruments:
            instrument.close()
