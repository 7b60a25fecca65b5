"""The oracle: proves on a model, in float64, that what MorphIR would do to it is right.

It knows nothing of index maps. A split at theta = 0 is compared with the original; a prune with an
original in which the group's channels are zeroed where consumers read them; a plan over a quarter of all
groups with both at once. Then the changed network is exported. All are compared in evaluation and in
train mode, with random batch-norm statistics and affine maps.
"""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from exporters.inputs import random_inputs
from exporters.registry import EXPORTERS
from morphir.errors import MorphirError
from morphir.ir.channels import ChannelSpace, VerdictKind
from morphir.ir.graph import Graph
from morphir.morphisms.base import Morphism
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.runtime.oracle.subjects import randomise_norms
from morphir.runtime.oracle.zeroing import Removed, ZeroedGraph, run_deterministic, zeroed
from passes.transform import transform

TOLERANCE = 1e-9
"""Largest relative difference of outputs, in float64."""

Outcome = Literal["ok", "refused", "failed"]


@dataclass(frozen=True)
class Check:
    """One thing that was proven, refused or found wrong.

    Attributes:
        check: ``"split"``, ``"prune"``, ``"plan"``, or ``"export-pytorch"``, ``"export-onnx"``.
        outcome: ``"ok"``, ``"refused"`` (no group allows it; the detail says why) or ``"failed"``.
        space: The channel space, for splits and prunes.
        groups: How many channel groups were changed.
        difference: Largest relative difference of the outputs over both modes; None where none was taken.
        detail: The reason, in words.
        node: The node responsible for a refusal.
        source: The user's line that made it.
    """

    check: str
    outcome: Outcome
    space: str | None = None
    groups: int = 0
    difference: float | None = None
    detail: str = ""
    node: str | None = None
    source: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the check as plain data."""
        return asdict(self)


def check_graph(
    graph: Graph, *, seed: int = 0, max_spaces: int | None = None, exports: bool = True
) -> Iterator[Check]:
    """Checks every space of a graph, then a random plan, then the exports of the changed graph.

    Args:
        graph: Any traced graph; it is copied, never changed.
        seed: Of inputs, batch-norm statistics, and the choice of groups.
        max_spaces: Check at most so many spaces, spread over the network; all where None.
        exports: Whether the changed graph is exported too.

    Yields:
        Checks, as soon as each is done.
    """
    subject = _Subject.of(graph, seed)
    for name in _spread(list(graph.spaces), max_spaces):
        yield subject.split(name)
        yield subject.prune(name)
    plan, changed = subject.plan()
    yield plan
    if exports and changed is not None:
        yield from _export_checks(changed)


@dataclass(frozen=True)
class _Subject:
    """The float64 copy that is checked, its inputs, and what it computes in each mode."""

    graph: Graph
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    seed: int

    @staticmethod
    def of(graph: Graph, seed: int) -> _Subject:
        subject = copy.deepcopy(graph).to(torch.float64)
        randomise_norms(subject, seed)
        return _Subject(subject, random_inputs(subject.inputs, subject.device, seed=seed), seed)

    def split(self, name: str) -> Check:
        space = self.graph.space(name)
        chosen = self._choose(space, _groups(space, ("exact",)), space.width)
        if not chosen:
            return _refusal("split", space)
        return self._compare("split", name, [Split(name, index) for index in chosen])

    def prune(self, name: str) -> Check:
        """Groups behind a channel-mixing norm are pruned too, but no zeroed original equals the result."""
        space = self.graph.space(name)
        exact = self._choose(space, _groups(space, ("exact",)), space.width - 1)
        if exact:
            return self._compare("prune", name, [Prune(name, index) for index in exact])
        structural = self._choose(space, _groups(space, ("prune-only",)), space.width - 1)
        if structural:
            return self._runs("prune", name, [Prune(name, index) for index in structural])
        return _refusal("prune", space)

    def plan(self) -> tuple[Check, Graph | None]:
        """Changes a random quarter of all groups at once: half of them split, half pruned."""
        groups = [(name, i) for name, space in self.graph.spaces.items() for i in _groups(space, ("exact",))]
        if not groups:
            return Check("plan", "refused", detail="no channel group is exact"), None
        rng = random.Random(self.seed)
        chosen = rng.sample(groups, max(1, len(groups) // 4))
        left = {name: space.width - 1 for name, space in self.graph.spaces.items()}
        morphisms: list[Morphism] = []
        for position, (name, index) in enumerate(chosen):
            prune = position % 2 == 1 and left[name] > 0
            left[name] -= prune
            morphisms.append(Prune(name, index) if prune else Split(name, index))
        changed, failure = _transformed(self.graph, morphisms)
        if changed is None:
            return Check("plan", "failed", groups=len(morphisms), detail=failure), None
        return self._judge("plan", None, morphisms, changed), changed

    def _choose(self, space: ChannelSpace, groups: Sequence[int], most: int) -> list[int]:
        """Picks about a third of the groups, so that changed and unchanged channels lie side by side."""
        rng = random.Random(f"{self.seed}/{space.name}")
        count = min(len(groups), most, max(1, len(groups) // 3))
        return sorted(rng.sample(list(groups), max(count, 0)))

    def _compare(self, check: str, name: str, morphisms: Sequence[Morphism]) -> Check:
        changed, failure = _transformed(self.graph, morphisms)
        if changed is None:
            return Check(check, "failed", name, len(morphisms), detail=failure)
        return self._judge(check, name, morphisms, changed)

    def _judge(self, check: str, name: str | None, morphisms: Sequence[Morphism], changed: Graph) -> Check:
        removed = _removed(self.graph, morphisms)
        worst, where = 0.0, ""
        for training in (False, True):
            wanted, failure = self._outputs(zeroed(self.graph, removed), training)
            found, failure = self._outputs(changed, training) if wanted is not None else (None, failure)
            if wanted is None or found is None:
                return Check(check, "failed", name, len(morphisms), detail=failure)
            difference = relative_difference(found, wanted)
            if not difference <= worst:
                worst, where = difference, "train" if training else "evaluation"
        if worst <= TOLERANCE:
            return Check(check, "ok", name, len(morphisms), worst)
        detail = f"outputs differ by {worst:.3g} relative in {where} mode"
        return Check(check, "failed", name, len(morphisms), worst, detail, *_site(self.graph, name))

    def _runs(self, check: str, name: str, morphisms: Sequence[Morphism]) -> Check:
        changed, failure = _transformed(self.graph, morphisms)
        if changed is not None:
            outputs, failure = self._outputs(changed, training=False)
            if outputs is not None:
                reason = self.graph.space(name).verdict(morphisms[0].index).reason
                return Check(check, "ok", name, len(morphisms), detail=f"runs; not comparable: {reason}")
        return Check(check, "failed", name, len(morphisms), detail=failure)

    def _outputs(self, graph: Graph | ZeroedGraph, training: bool) -> tuple[list[torch.Tensor] | None, str]:
        try:
            return run_deterministic(graph, self.inputs, training=training, seed=self.seed), ""
        except Exception as error:
            return None, f"fails in {'train' if training else 'evaluation'} mode: {error}"


def relative_difference(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Returns the largest absolute difference over the largest absolute value, output by output.

    Args:
        found: Tensors.
        wanted: As many tensors of the same shapes.
    """
    worst = 0.0
    for left, right in zip(found, wanted, strict=True):
        if left.shape != right.shape:
            return float("inf")
        scale = right.abs().max().clamp_min(torch.finfo(torch.float64).tiny) if right.numel() else 1.0
        difference = float(((left - right).abs() / scale).max()) if right.numel() else 0.0
        worst = difference if not difference <= worst else worst
    return worst


def _groups(space: ChannelSpace, kinds: Sequence[VerdictKind]) -> list[int]:
    return [index for index, verdict in enumerate(space.verdicts) if verdict.kind in kinds]


def _removed(graph: Graph, morphisms: Iterable[Morphism]) -> Removed:
    removed: dict[str, set[int]] = {}
    for morphism in morphisms:
        if isinstance(morphism, Prune):
            removed.setdefault(morphism.space, set()).add(morphism.index)
    return {name: frozenset(groups) for name, groups in removed.items()}


def _transformed(graph: Graph, morphisms: Sequence[Morphism]) -> tuple[Graph | None, str]:
    changed = copy.deepcopy(graph)
    try:
        transform(changed, morphisms)
    except MorphirError as error:
        return None, str(error)
    return changed, ""


def _refusal(check: str, space: ChannelSpace) -> Check:
    verdicts = [verdict for verdict in space.verdicts if verdict.kind != "exact"]
    if not verdicts:
        return Check(check, "refused", space.name, detail="its one channel group has to stay")
    first = verdicts[0]
    return Check(check, "refused", space.name, 0, None, first.reason, first.node, _text(first.source))


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


def _export_checks(changed: Graph) -> Iterator[Check]:
    graph = changed.to(torch.float32).eval()
    with tempfile.TemporaryDirectory(prefix="morphir-verify-") as folder:
        for name, exporter in EXPORTERS.items():
            try:
                exporter.export(graph, Path(folder) / f"network{exporter.suffix}")
                yield Check(f"export-{name}", "ok")
            except MorphirError as error:
                yield Check(f"export-{name}", "failed", detail=str(error))


def summary(checks: Iterable[Check]) -> Mapping[Outcome, int]:
    """Returns how many checks had each outcome."""
    counts: dict[Outcome, int] = {"ok": 0, "refused": 0, "failed": 0}
    for check in checks:
        counts[check.outcome] += 1
    return counts
