"""``Session``: a graph that walks over the points of a history, forwards and backwards, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from morphir.ir.difference import difference
from morphir.ir.graph import Graph
from morphir.ir.printer import print_graph
from morphir.ir.snapshot import GraphSnapshot
from morphir.morphisms.base import Morphism
from morphir.runtime.history.action import Action
from morphir.runtime.history.forward import Comparison, Inputs, compare, run_nodes, tolerance_of
from morphir.runtime.history.lineage import Ancestor, lineage
from morphir.runtime.history.origin import Resolve, read_origin
from morphir.runtime.history.recorder import RecordHistory
from morphir.runtime.history.replaying import check_restored, jump, step
from morphir.runtime.history.state import HistoryError, program_digest, replace_values, tensor_digests
from morphir.runtime.history.store import HistoryStore
from passes.instruments import instrumented
from passes.transform import TransformResult, transform

T = TypeVar("T")
_SNAPSHOTS = 64
"""Points whose tensors stay in memory; between two of them a replay is short."""


class Session:
    """One graph at one point of a history.

    Args:
        store: The history.
        graph: A fresh trace of the model that it starts from; it is the session's from now on.

    Attributes:
        graph: The graph as it is at :attr:`position`; the same object at every point.
        position: The current point; 0 is the start.
        same_program: Whether the program is the recorded one to the letter. Source that was exported with
            the history has other lines, and may name nodes otherwise.

    Raises:
        HistoryError: if the graph is of another model.
    """

    def __init__(self, store: HistoryStore, graph: Graph) -> None:
        self.graph, self.position, self._store = graph, 0, store
        replace_values(graph, store.tensors(0))
        self.same_program = program_digest(graph) == store.actions[0].program
        check_restored(graph, store.actions[0], program=False)
        self._snapshots = {0: GraphSnapshot.take(graph)}

    @staticmethod
    def open(folder: str | Path, *, graph: Graph | None = None, resolve: Resolve | None = None) -> Session:
        """Opens a history at its start.

        Args:
            folder: Where it lies; or a run directory, whose history is in ``history``.
            graph: A fresh trace of the model; made of what is stored where None.
            resolve: Makes a graph of a model's name on the command line.

        Raises:
            MorphirError: if there is no history, or its model cannot be made any more.
        """
        place = HistoryStore.of(Path(folder))
        store = HistoryStore.read(place)
        return Session(store, read_origin(place, resolve) if graph is None else graph)

    @staticmethod
    def of_graph(graph: Graph, folder: Path, spec: Mapping[str, Any] | None = None) -> Session:
        """Starts a history of a graph, to apply morphisms to.

        Args:
            graph: The graph; it is the session's from now on.
            folder: A new folder for the history.
            spec: How the command line names the model.
        """
        with instrumented(RecordHistory.start(graph, folder, spec)):
            pass
        return Session(HistoryStore.read(folder), graph)

    @property
    def actions(self) -> tuple[Action, ...]:
        """Every action; the one at ``n`` led to point ``n``, the one at 0 is the start."""
        return tuple(self._store.actions)

    @property
    def action(self) -> Action:
        """The action that led to the current point."""
        return self._store.actions[self.position]

    @property
    def last(self) -> int:
        """The last point."""
        return len(self._store.actions) - 1

    def next(self) -> Action:
        """Goes one point forward, and returns the action that leads there.

        Raises:
            HistoryError: at the last point.
        """
        if self.position == self.last:
            raise HistoryError(f"point {self.position} is the last one")
        return self.goto(self.position + 1)

    def back(self) -> Action:
        """Goes one point back, and returns the action that led there.

        Raises:
            HistoryError: at the start.
        """
        if self.position == 0:
            raise HistoryError("point 0 is the start")
        return self.goto(self.position - 1)

    def goto(self, point: int) -> Action:
        """Goes to a point, and returns the action that led there.

        Raises:
            HistoryError: if there is none of the number, or it cannot be restored bit for bit; the session
                stays where it was.
        """
        self.check_point(point)
        here, place = GraphSnapshot.take(self.graph), self.position
        try:
            self._goto(point)
        except BaseException:
            here.restore()
            self.position = place
            raise
        return self.action

    def check_point(self, point: int) -> None:
        """Raises :class:`HistoryError` if there is no such point."""
        if not 0 <= point <= self.last:
            raise HistoryError(f"there is no point {point}", hint=f"the points are 0 to {self.last}")

    def _goto(self, point: int) -> None:
        if point in self._snapshots:
            self._snapshots[point].restore()
            self.position = point
            return
        near = max(known for known in self._snapshots if known < point)
        frames = [at for at in self._store.keyframes() if near < at <= point]
        if not near <= self.position < point:
            self._snapshots[near].restore()
            self.position = near
        if frames and frames[-1] > self.position + 1:
            self._jump(frames[-1])
        while self.position < point:
            action = self._store.actions[self.position + 1]
            step(self.graph, self._store, action)
            self._arrive(action)

    def _jump(self, point: int) -> None:
        actions = self._store.actions[self.position + 1 : point + 1]
        if any(action.kind == "program" for action in actions):
            return
        rewrites = [action.rewrite for action in actions if action.rewrite]
        jump(self.graph, self._store, actions, [*self.graph.history, *rewrites])
        self._arrive(actions[-1])

    def _arrive(self, action: Action) -> None:
        check_restored(self.graph, action, program=self.same_program)
        self.position = action.number
        if len(self._snapshots) >= _SNAPSHOTS:
            kept = [0, *sorted(self._snapshots)[2::2]]
            self._snapshots = {at: self._snapshots[at] for at in kept}
        self._snapshots[action.number] = GraphSnapshot.take(self.graph)

    def diff(self, before: int, after: int) -> PointDifference:
        """Compares two points; the session stays where it is.

        Raises:
            HistoryError: if there is no such point.
        """
        self.check_point(before)
        self.check_point(after)
        found = self.at(before, _Facts.of), self.at(after, _Facts.of)
        return PointDifference(before, after, *found)

    def compare(
        self, before: int, after: int, inputs: Inputs | None = None, tolerance: float | None = None
    ) -> Comparison:
        """Runs the graph at two points on the same inputs, in evaluation mode.

        Args:
            before: The one point.
            after: The other.
            inputs: Positional and keyword inputs; random ones, always the same, where None.
            tolerance: Relative difference from which on a node differs; what rounding may do where None.

        Raises:
            HistoryError: if there is no such point.
        """
        old, new = (self.at(point, lambda graph: run_nodes(graph, inputs)) for point in (before, after))
        limit = tolerance_of(self.graph) if tolerance is None else tolerance
        return compare(old, new, self.changed_spaces(before, after), limit)

    def changed_spaces(self, before: int, after: int) -> frozenset[str]:
        """Returns the spaces that are rewritten between two points."""
        actions = self._store.actions[min(before, after) + 1 : max(before, after) + 1]
        return frozenset(m.space for action in actions if action.rewrite for m in action.rewrite.maps)

    def at(self, point: int, ask: Callable[[Graph], T]) -> T:
        """Returns what a function says of the graph at another point; the session stays where it is.

        Raises:
            HistoryError: if there is no such point.
        """
        place = self.position
        self.goto(point)
        try:
            return ask(self.graph)
        finally:
            self.goto(place)

    def lineage(self, space: str, index: int) -> tuple[Ancestor, ...]:
        """Returns where a channel group of the current point comes from, latest rewrite first.

        Raises:
            MorphirError: if there is no such space or group.
        """
        self.graph.space(space).verdict(index)
        return lineage(self._store.actions[: self.position + 1], space, index)

    def transform(self, morphisms: Iterable[Morphism]) -> TransformResult:
        """Applies morphisms at the last point, as new actions, and goes to the new last point.

        Raises:
            MorphirError: at another point, or for a morphism that is not legal; nothing is changed then.
        """
        if self.position != self.last:
            raise HistoryError(
                f"point {self.position} is not the last one",
                hint=f"rewrite at the last point: goto {self.last}",
            )
        with instrumented(RecordHistory(self.graph, self._store)):
            result = transform(self.graph, morphisms)
        self.position = self.last
        self._snapshots[self.position] = GraphSnapshot.take(self.graph)
        return result


@dataclass(frozen=True)
class _Facts:
    """What two points are compared by."""

    text: str
    tensors: Mapping[str, str]
    widths: Mapping[str, int]

    @staticmethod
    def of(graph: Graph) -> _Facts:
        widths = {name: space.width for name, space in graph.spaces.items()}
        return _Facts(print_graph(graph), tensor_digests(graph), widths)


@dataclass(frozen=True)
class PointDifference:
    """What differs between two points.

    Attributes:
        before: The one.
        after: The other.
    """

    before: int
    after: int
    _old: _Facts
    _new: _Facts

    @property
    def program(self) -> tuple[str, ...]:
        """The textual IR's unified difference; empty where there is none."""
        names = f"point {self.before}", f"point {self.after}"
        return tuple(difference(self._old.text.splitlines(), self._new.text.splitlines(), names))

    @property
    def tensors(self) -> tuple[str, ...]:
        """Keys of the parameters and buffers whose shape or bits differ."""
        return tuple(key for key, digest in self._new.tensors.items() if self._old.tensors.get(key) != digest)

    @property
    def widths(self) -> Mapping[str, tuple[int, int]]:
        """Space name to both widths, where they differ."""
        old, new = self._old.widths, self._new.widths
        return {name: (old[name], new[name]) for name in new if old.get(name, new[name]) != new[name]}

    def __str__(self) -> str:
        widths = ", ".join(f"{name}: {old} -> {new}" for name, (old, new) in self.widths.items())
        changed = f"{len(self.tensors)} of {len(self._new.tensors)} tensors differ"
        return "\n".join([*self.program, f"widths {widths or 'alike'}; {changed}"])
