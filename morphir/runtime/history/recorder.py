"""``RecordHistory``: the instrument that writes every change of one graph into a history.

Rewrites tell of themselves. What else changes the weights (training, batch norm re-expressed) or the program
(dead code) is found by digests, before each rewrite and after each pass. Values that a replay of the index
maps yields are not stored, but for a keyframe now and then.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from morphir.errors import MorphirWarning
from morphir.ir.difference import difference
from morphir.ir.graph import Graph
from morphir.ir.index_map import Rewrite
from morphir.ir.printer import print_graph
from morphir.ir.remarks import Remark
from morphir.ir.state import named_state
from morphir.runtime.history.action import Action
from morphir.runtime.history.origin import write_origin
from morphir.runtime.history.state import (
    HistoryError,
    RememberedDigests,
    joint_digest,
    program_digest,
    tensor_digests,
    text_digest,
)
from morphir.runtime.history.store import HistoryStore
from passes.instruments import Failure, Instrument, PendingRewrite

if TYPE_CHECKING:
    from passes.base import Pass, PassResult

TRAINING = "training"
LIMIT_BYTES = 1 << 30
"""What a history may take. Values past it are not kept, with a warning, and the points that need them cannot
be restored; index maps and thetas always are.
"""
KEYFRAME_EVERY = 200


class RecordHistory(Instrument):
    """Follows one graph; copies of it, and other graphs, are none of its business.

    Args:
        graph: The graph.
        store: An open history, whose last point is the graph as it is.

    Attributes:
        phase: Of the growth run; goes into every action.
    """

    def __init__(self, graph: Graph, store: HistoryStore) -> None:
        self.phase: int | None = None
        self._graph, self._store = graph, store
        self._pass: str | None = None
        self._pending: list[Action] = []
        self._nodes: tuple[str, ...] = ()
        self._mark = len(store.actions)
        self._remembered = RememberedDigests()
        self._note(look_at_all=True)

    @staticmethod
    def start(graph: Graph, folder: Path, spec: Mapping[str, Any] | None = None) -> RecordHistory:
        """Starts a history; what is in the folder has to be empty or not there.

        Args:
            graph: What to follow.
            folder: Where the history goes.
            spec: How the command line names the model; where None, its PyTorch source is stored.

        Raises:
            HistoryError: if the folder holds something.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise HistoryError(f"{folder} is there and not empty", hint="choose another folder")
        write_origin(folder, graph, spec, required=False)
        store = HistoryStore(folder)
        store.write_tensors(0, named_state(graph))
        state = joint_digest(tensor_digests(graph))
        store.append([Action(0, "start", "start", program_digest(graph), state)])
        return RecordHistory(graph, store)

    @staticmethod
    def resume(graph: Graph, folder: Path, count: int) -> RecordHistory:
        """Goes on with a history, whose first ``count`` actions led to the graph as it is but for training.

        Raises:
            HistoryError: if there is no such history.
        """
        store = HistoryStore.read(folder)
        if len(store.actions) < count:
            raise HistoryError(f"the history in {folder} has {len(store.actions)} actions, not {count}")
        store.truncate(count)
        recorder = RecordHistory(graph, store)
        if joint_digest(recorder._digests) != store.actions[-1].state:
            recorder._digests = {}  # trained since; which tensors is not known, so all count as changed
        return recorder

    @property
    def count(self) -> int:
        """Number of actions so far, the start included."""
        return len(self._store.actions) + len(self._pending)

    def _note(self, *, look_at_all: bool = False) -> None:
        self._digests = self._remembered.of(self._graph, look_at_all=look_at_all)
        self._text = print_graph(self._graph)
        self._program = text_digest(self._text)
        self._names = {node.name for node in self._graph.graph.nodes}

    def before_pipeline(self, graph: Graph, pipeline: tuple[Pass, ...]) -> None:
        """Notes where to go back to, should the pipeline fail."""
        if graph is self._graph:
            self.sync(look_at_all=True)
            self._mark = len(self._store.actions)

    def after_failure(self, failure: Failure) -> None:
        """Forgets what was put back."""
        if failure.graph is self._graph:
            self._pending, self._pass = [], None
            self._store.truncate(self._mark)
            self._note()

    def before_pass(self, name: str, graph: Graph) -> None:
        """Notes the pass; what has changed before it, its pipeline or the pass before has recorded."""
        if graph is self._graph:
            self._pass = name

    def before_rewrite(self, rewrite: PendingRewrite) -> None:
        """Records what changed since the last action, and notes the nodes."""
        if rewrite.graph is self._graph:
            self.sync()
            touched = rewrite.nodes()
            self._nodes = tuple(node.name for node in self._graph.graph.nodes if node.name in touched)

    def after_rewrite(self, graph: Graph, rewrite: Rewrite, seconds: float) -> None:
        """Records the rewrite."""
        if graph is not self._graph:
            return
        before = self._text
        self._note()
        number, changed = self.count, tuple(difference(before.splitlines(), self._text.splitlines()))
        if thetas := rewrite.tensors():
            self._store.write_tensors(number, thetas)
        bare = Rewrite.from_json(rewrite.to_json())
        self._add(
            self._action("rewrite", rewrite=bare, nodes=self._nodes, difference=changed, seconds=seconds)
        )
        self._write_keyframe(number)

    def after_pass(self, name: str, graph: Graph, result: PassResult, seconds: float) -> None:
        """Records what else the pass changed, and its remarks."""
        if graph is not self._graph:
            return
        self.sync()
        if not self._pending and result.remarks:
            self._add(self._action("remarks", seconds=seconds))
        self._pass = None
        actions, self._pending = _with_remarks(self._pending, result.remarks), []
        self._store.append(actions)

    def close(self) -> None:
        """Records what changed since the last action."""
        self.sync(look_at_all=True)
        actions, self._pending = self._pending, []
        self._store.append(actions)

    def sync(self, *, look_at_all: bool = False) -> None:
        """Records what changed since the last action in other ways than by a rewrite.

        Args:
            look_at_all: Read tensors again whose writes torch would have counted: a user's code may write
                to a tensor's ``.data``, which passes do not.
        """
        old_digests, old_program, old_names = self._digests, self._program, self._names
        self._note(look_at_all=look_at_all)
        if self._program != old_program:
            erased = tuple(name for name in sorted(old_names) if name not in self._names)
            self._add(self._action("program", nodes=erased, state=joint_digest(old_digests)))
        changed = [key for key, digest in self._digests.items() if old_digests.get(key) != digest]
        if changed:
            held = named_state(self._graph)
            kept = self._keep({key: held[key] for key in changed})
            self._add(self._action("weights", tensors=tuple(changed), kept=kept))

    def _action(self, kind: Any, *, state: str | None = None, **fields: Any) -> Action:
        state = state or joint_digest(self._digests)
        name = self._pass or (fields["rewrite"].name if "rewrite" in fields else TRAINING)
        return Action(self.count, kind, name, self._program, state, phase=self.phase, **fields)

    def _add(self, action: Action) -> None:
        if self._pass is None:
            self._store.append([action])
        else:
            self._pending.append(action)

    def _keep(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        if not self._fits(tensors):
            warnings.warn(
                f"the history in {self._store.folder} would grow past {LIMIT_BYTES / 2**20:.0f} MiB: "
                f"the weights of action {self.count} are not kept, and its point cannot be restored",
                MorphirWarning,
                stacklevel=2,
            )
            return False
        self._store.write_tensors(self.count, tensors)
        return True

    def _fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        return self._store.size + sum(t.nbytes for t in tensors.values()) <= LIMIT_BYTES

    def _write_keyframe(self, number: int) -> None:
        """Writes all tensors where the nearest point with all of them is far; a help, not a need."""
        last = max(at for at in self._store.keyframes() if at <= number)
        held = named_state(self._graph)
        if number - last >= KEYFRAME_EVERY and self._fits(held):
            self._store.write_tensors(number, held, keyframe=True)


def _with_remarks(actions: list[Action], remarks: tuple[Remark, ...]) -> list[Action]:
    """Gives each remark to the action that changed its space; the last action takes the others."""
    found: dict[int, list[Remark]] = {}
    for remark in remarks:
        owner = next((a.number for a in actions if remark.space in _spaces(a)), None)
        found.setdefault(actions[-1].number if owner is None else owner, []).append(remark)
    return [replace(a, remarks=tuple(found.get(a.number, ()))) for a in actions]


def _spaces(action: Action) -> set[str]:
    return set() if action.rewrite is None else {m.space for m in action.rewrite.maps}
