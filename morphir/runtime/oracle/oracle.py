"""The oracle: proves on a model, in float64, that what MorphIR would do to it is right.

It knows nothing of index maps. A split at theta = 0 is compared with the original; a prune with an
original in which the group's channels are zeroed where consumers read them, and left out where norms,
softmax and reductions mix them; a plan over a quarter of all groups with both at once. All are compared in
evaluation and in train mode, with random batch-norm statistics and affine maps. Then the changed network is
exported, and its source is traced again.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from exporters.inputs import random_inputs
from exporters.registry import EXPORTERS
from morphir.analysis.execution import execute
from morphir.errors import MorphirError
from morphir.ir.channels import ChannelSpace, VerdictKind
from morphir.ir.graph import Graph
from morphir.ir.snapshot import restored
from morphir.morphisms.base import Morphism
from morphir.morphisms.plan import without_emptying
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.runtime.oracle.checks import TOLERANCE, Check, Outcome, relative_difference, summary
from morphir.runtime.oracle.exporting import export_checks
from morphir.runtime.oracle.remainder import IncomparableError, Removed
from morphir.runtime.oracle.subjects import randomise_norms
from morphir.runtime.oracle.zeroing import ZeroedGraph, run_deterministic, zeroed
from passes.transform import transform

__all__ = ["TOLERANCE", "Check", "Outcome", "check_graph", "relative_difference", "summary"]


_PRUNABLE: tuple[VerdictKind, ...] = ("exact", "prune-only")


def check_graph(
    graph: Graph,
    *,
    seed: int = 0,
    spaces: Collection[str] | None = None,
    max_spaces: int | None = None,
    exports: bool | Collection[str] = True,
    together: bool = False,
    consume: bool = False,
) -> Iterator[Check]:
    """Checks every space of a graph, then a random plan, then the exports of the changed graph.

    Args:
        graph: Any traced graph; it is copied, not changed, unless ``consume`` is set.
        seed: Of inputs, batch-norm statistics, and the choice of groups.
        spaces: Names of spaces to check alone, without plan and exports; all where None.
        max_spaces: Check at most so many spaces, spread over the network; all where None.
        exports: Whether the changed graph is exported too, and its source traced again; or the names of the
            exporters that are wanted.
        together: Split all spaces at once, then prune all at once; where that fails, each half of them, and
            so on, down to single spaces. A space that passed in company is reported with the company's
            difference.
        consume: Work on the graph itself, which is worth nothing afterwards: saves a copy of a large model.

    Yields:
        Checks, as soon as each is done.

    Raises:
        MorphirError: if there is no space of a name in ``spaces``.
    """
    chosen = list(graph.spaces) if spaces is None else [graph.space(name).name for name in spaces]
    subject = _Subject.of(graph if consume else copy.deepcopy(graph), seed)
    names = _spread(chosen, max_spaces)
    if together:
        yield from subject.together("split", names)
        yield from subject.together("prune", names)
    else:
        for name in names:
            yield subject.alone("split", name)
            yield subject.alone("prune", name)
    if spaces is not None:
        return
    plan = subject.plan()
    yield plan
    wanted = EXPORTERS if exports is True else exports or ()
    if plan.groups and subject.graph.history:
        yield from export_checks(subject.graph, wanted)


@dataclass(frozen=True)
class _Subject:
    """The float64 copy that is checked, its inputs, and what it computes in each mode."""

    graph: Graph
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    seed: int

    @staticmethod
    def of(graph: Graph, seed: int) -> _Subject:
        subject = graph.to(torch.float64)
        subject.history = ()
        randomise_norms(subject, seed)
        return _Subject(subject, random_inputs(subject.inputs, subject.device, seed=seed), seed)

    @cached_property
    def mixing(self) -> frozenset[str]:
        """Names of the nodes that mix channels, so that a split of these would change the function."""
        kinds = {verdict.kind for space in self.graph.spaces.values() for verdict in space.verdicts}
        if "prune-only" not in kinds:
            return frozenset()
        restrictions = execute(self.graph).facts.restrictions
        return frozenset(r.node for r in restrictions if r.kind == "prune-only")

    @cached_property
    def plain(self) -> dict[bool, list[torch.Tensor]]:
        """What the original computes in evaluation and in train mode."""
        return {training: self._outputs(self.graph, training) for training in (False, True)}

    def together(self, check: str, names: Sequence[str]) -> Iterator[Check]:
        """Changes a part of every named space at once; where that fails, of each half of them, and so on."""
        chosen = {name: self._morphisms(check, name) for name in names}
        together = [name for name in names if chosen[name]]
        yield from (_refusal(check, self.graph.space(name)) for name in names if not chosen[name])
        if len(together) < 2:
            yield from (self.alone(check, name) for name in together)
            return
        joint = self._compare(check, None, [m for name in together for m in chosen[name]])
        if joint.outcome == "ok" and joint.difference is not None:
            yield from (replace(joint, space=name, groups=len(chosen[name])) for name in together)
            return
        middle = len(together) // 2
        yield from self.together(check, together[:middle])
        yield from self.together(check, together[middle:])

    def alone(self, check: str, name: str) -> Check:
        """Changes a part of one space."""
        morphisms = self._morphisms(check, name)
        return self._compare(check, name, morphisms) if morphisms else _refusal(check, self.graph.space(name))

    def _morphisms(self, check: str, name: str) -> list[Morphism]:
        """Picks groups; those behind an operator that mixes channels are pruned where there are no others."""
        space = self.graph.space(name)
        if check == "split":
            return [Split(name, index) for index in self._choose(space, "exact", space.width)]
        for kind in _PRUNABLE:
            chosen = self._choose(space, kind, space.width - space.least)
            if prunes := without_emptying(self.graph, [Prune(name, index) for index in chosen]):
                return list(prunes)
        return []

    def plan(self) -> Check:
        """Changes a random quarter of all groups at once, for good: half of them split, half pruned."""
        reason = "no channel group may be changed"
        attempts: tuple[tuple[VerdictKind, ...], ...] = (("exact", "prune-only"), ("exact",))
        for kinds in attempts:
            morphisms = self._plan(kinds)
            wanted = self._wanted(_removed(morphisms))
            if not morphisms:
                break
            if not isinstance(wanted, IncomparableError):
                return self._judge("plan", None, morphisms, wanted)
            reason = f"no channel group is exact; without others: {wanted.message}"
        return Check("plan", "refused", detail=reason)

    def _plan(self, kinds: Sequence[VerdictKind]) -> list[Morphism]:
        spaces = self.graph.spaces
        groups = [(name, i) for name, space in spaces.items() for i in _groups(space, kinds)]
        rng = random.Random(self.seed)
        chosen = rng.sample(groups, min(len(groups), max(1, len(groups) // 4)))
        left = {name: space.width - space.least for name, space in spaces.items()}
        morphisms: list[Morphism] = []
        for position, (name, index) in enumerate(chosen):
            exact = spaces[name].verdict(index).kind == "exact"
            if left[name] > 0 and (position % 2 == 1 or not exact):
                left[name] -= 1
                morphisms.append(Prune(name, index))
            elif exact:
                morphisms.append(Split(name, index))
        return without_emptying(self.graph, morphisms)

    def _choose(self, space: ChannelSpace, kind: VerdictKind, most: int) -> list[int]:
        """Picks about a third of the groups, so that changed and unchanged channels lie side by side."""
        groups = _groups(space, (kind,))
        rng = random.Random(f"{self.seed}/{space.name}")
        count = min(len(groups), most, max(1, len(groups) // 3))
        return sorted(rng.sample(groups, max(count, 0)))

    def _compare(self, check: str, name: str | None, morphisms: Sequence[Morphism]) -> Check:
        wanted = self._wanted(_removed(morphisms))
        with restored(self.graph):
            return self._judge(check, name, morphisms, wanted)

    def _judge(self, check: str, name: str | None, morphisms: Sequence[Morphism], wanted: _Wanted) -> Check:
        """Applies the morphisms and compares with what is wanted of the result."""
        try:
            transform(self.graph, morphisms)
            found = {training: self._outputs(self.graph, training) for training in (False, True)}
            if isinstance(wanted, _FailedRunError):
                raise wanted
        except MorphirError as error:
            return Check(check, "failed", name, len(morphisms), detail=str(error))
        if isinstance(wanted, IncomparableError):
            detail = f"runs; not comparable: {wanted.message}"
            return Check(check, "ok", name, len(morphisms), None, detail, wanted.node, wanted.source)
        worst, where = 0.0, ""
        for training, outputs in found.items():
            difference = relative_difference(outputs, wanted[training])
            if not difference <= worst:
                worst, where = difference, "train" if training else "evaluation"
        if worst <= TOLERANCE:
            return Check(check, "ok", name, len(morphisms), worst)
        detail = f"outputs differ by {worst:.3g} relative in {where} mode"
        return Check(check, "failed", name, len(morphisms), worst, detail, *_site(self.graph, name))

    def _wanted(self, removed: Removed) -> _Wanted:
        """Returns what the original computes in both modes without the removed groups, or why it cannot."""
        try:
            if not removed:
                return self.plain
            original = zeroed(self.graph, removed, self.mixing)
            return {training: self._outputs(original, training) for training in (False, True)}
        except (IncomparableError, _FailedRunError) as error:
            return error

    def _outputs(self, graph: Graph | ZeroedGraph, training: bool) -> list[torch.Tensor]:
        try:
            return run_deterministic(graph, self.inputs, training=training, seed=self.seed)
        except IncomparableError:
            raise
        except Exception as error:
            mode = "train" if training else "evaluation"
            raise _FailedRunError(f"fails in {mode} mode: {error}") from error


class _FailedRunError(MorphirError):
    """The original or the changed program does not run."""


_Wanted = dict[bool, list[torch.Tensor]] | IncomparableError | _FailedRunError
"""Output tensors by mode (True is train mode)."""


def _groups(space: ChannelSpace, kinds: Sequence[VerdictKind]) -> list[int]:
    return [index for index, verdict in enumerate(space.verdicts) if verdict.kind in kinds]


def _removed(morphisms: Iterable[Morphism]) -> Removed:
    removed: dict[str, set[int]] = {}
    for morphism in morphisms:
        if isinstance(morphism, Prune):
            removed.setdefault(morphism.space, set()).add(morphism.index)
    return {name: frozenset(groups) for name, groups in removed.items()}


def _refusal(check: str, space: ChannelSpace) -> Check:
    verdicts = [verdict for verdict in space.verdicts if verdict.kind != "exact"]
    if not verdicts:
        detail = "its channel groups have to stay"
        return Check(check, "refused", space.name, detail=detail, code="nothing-left")
    first = verdicts[0]
    reason = (first.reason, first.node, _text(first.source), first.code)
    return Check(check, "refused", space.name, 0, None, *reason)


def _site(graph: Graph, name: str | None) -> tuple[str | None, str | None]:
    if name is None:
        return None, None
    producer = graph.space(name).producers[0]
    return producer.node, _text(producer.source)


def _text(value: object | None) -> str | None:
    return None if value is None else str(value)


def _spread(names: Sequence[str], count: int | None) -> list[str]:
    """Picks ``count`` names at even distances, the first and the last among them."""
    if count is None or count >= len(names):
        return list(names)
    if count == 1:
        return [names[0]]
    return [names[round(at * (len(names) - 1) / (count - 1))] for at in range(count)]
