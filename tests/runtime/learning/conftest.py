"""The learner's q against d/d eps of the summed loss when eps * u is added at the edges alone.

Nothing here is shared with the learner: an interpreter runs the traced program, u comes from runs with y +-
delta forced at the producers, one group at a time, and the derivative from autograd by eps.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from scipy import stats
from torch import fx, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from morphir.analysis.tracing import trace
from morphir.ir.channels import ChannelSpace
from morphir.ir.graph import Graph
from morphir.ir.state import frozen, held_tensors, modules_within, named_state
from morphir.runtime.learning.curvature import CURVATURES
from morphir.runtime.learning.estimate import estimate_splits
from morphir.runtime.learning.learner import Learner
from morphir.runtime.learning.model_pass import Pass, run_backward, run_forward
from morphir.runtime.learning.programs import SpaceProgram
from morphir.runtime.learning.projection import edge_values, estimate_prunes
from morphir.runtime.learning.theta import group_kernels
from morphir.runtime.oracle.subjects import randomise_norms

Edge = tuple[str, str]
Change = dict[Edge, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor]
CLASSES = 10
BFLOAT16 = 2**-8
"""Relative spacing of its numbers."""


@dataclass(frozen=True)
class Checked:
    """What was compared.

    Attributes:
        spaces: Spaces with at least one split.
        groups: Groups whose split and prune were compared.
        visible: Groups whose split has a q far from rounding.
        literal: Groups of a single edge, whose q was compared with delta z . g_z too.
    """

    spaces: tuple[str, ...]
    groups: int
    visible: int
    literal: int


class Probe(fx.Interpreter):
    """Runs a graph with some nodes' values forced, and something added at some edges and to some values."""

    def __init__(
        self,
        graph: Graph,
        forced: Mapping[str, Any] | None = None,
        edges: Mapping[Edge, torch.Tensor] | None = None,
        values: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.extra_traceback = False
        self.forced = forced or {}
        self.edges = edges or {}
        self.added = values or {}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.forced:
            return self.forced[n.name]
        # On copies, so that what is computed in place leaves the values that are kept as they were; an
        # assignment to an item yields nothing else.
        read = n.all_input_nodes[1:] if n.target is operator.setitem else n.all_input_nodes
        sources = {m: self.env[m] for m in read if isinstance(self.env[m], torch.Tensor)}
        self.env.update({m: self._read(m, n, value) for m, value in sources.items()})
        result = super().run_node(n)
        self.env.update(sources)
        return result + self.added[n.name] if n.name in self.added else result

    def _read(self, source: fx.Node, reader: fx.Node, value: torch.Tensor) -> torch.Tensor:
        change = self.edges.get((source.name, reader.name))
        return value.clone() if change is None else value + change

    def values(self, images: torch.Tensor) -> dict[str, Any]:
        self.run(images)
        return {node.name: value for node, value in self.env.items()}


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def estimates(learner: Learner, batch: Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
    """Each space's q of the prunes, and of the splits."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def work(program: SpaceProgram, run: Pass) -> None:
        edges = edge_values(program, run)
        if program.split is None:
            found[program.name] = (estimate_prunes(edges, run.samples, sampled=False).q, None)
            return
        thetas = {key: theta.value for key, theta in learner._thetas[program.name].items()}
        project = learner._project[program.name]
        splits = estimate_splits(program.split, project, thetas, edges, run, CURVATURES["batch"])
        found[program.name] = (splits.prunes.q, splits.splits.q)

    modules = modules_within(learner.graph)
    with frozen(modules, held_tensors(modules)), torch.no_grad():
        forward = run_forward(learner.lowered, [batch[0]], batch[1], cross_entropy)
        run_backward(forward, learner.lowered, batch[1], torch.Generator(), work)
    return found


class _Truth:
    """The network, run by the interpreter alone."""

    def __init__(self, graph: Graph, batch: Batch) -> None:
        self.graph = graph
        self.images, self.labels = batch
        with torch.no_grad():
            self.clean = Probe(graph).values(self.images)
        self.mixing = {c.node for s in graph.spaces.values() for c in s.consumers}
        self.mixing |= {p.node for s in graph.spaces.values() for p in s.producers}

    @torch.no_grad()
    def split(self, space: ChannelSpace, group: int, theta: Mapping[str, torch.Tensor]) -> Change:
        """u of one group at every edge: y +- delta at its producers, every other mixing node held."""
        moved = {p.node: self._delta(space, p.node, group, theta) for p in space.producers}
        held = self._held(moved)
        runs = [
            Probe(
                self.graph, {**held, **{node: held[node] + sign * delta for node, delta in moved.items()}}
            ).values(self.images)
            for sign in (1, -1)
        ]
        changes = {
            c: (runs[0][c] + runs[1][c]) / 2 - self.clean[c] for c in {c.tensor for c in space.consumers}
        }
        return {(c.tensor, c.node): changes[c.tensor] for c in space.consumers}

    def _held(self, moved: Collection[str]) -> dict[str, Any]:
        """The values of all mixing nodes, and of what no moved one reaches but through them."""
        nodes: list[fx.Node] = list(self.graph.graph.nodes)
        reached: set[str] = set()
        for node in nodes:
            if node.name in moved or any(
                m.name in moved or (m.name in reached and m.name not in self.mixing)
                for m in node.all_input_nodes
            ):
                reached.add(node.name)
        # What is written in place reaches readers of what holds it, too.
        assigned = any(
            node.target is operator.setitem or (node.op == "call_method" and str(node.target).endswith("_"))
            for node in nodes
        )
        return {
            name: value
            for name, value in self.clean.items()
            if name in self.mixing or not (assigned or name in reached)
        }

    def _delta(
        self, space: ChannelSpace, node: str, group: int, theta: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """What one node's output becomes when the group's rows of its kernel are moved by theta."""
        total = torch.zeros_like(self.clean[node])
        for producer in dict.fromkeys((p.parameter, p.out_axis) for p in space.producers if p.node == node):
            key, axis = producer
            kernel = named_state(self.graph)[key]
            binding = space.binding(key, axis)
            assert binding is not None
            rows = [row for row, owner in enumerate(binding.groups) if owner == group]
            own = theta[key] if len(rows) > 1 else theta[key].unsqueeze(0)
            before = kernel.detach().clone()
            kernel.data.index_add_(axis, torch.tensor(rows), own.movedim(0, axis))
            others = {name: value for name, value in self.clean.items() if name != node}
            moved = Probe(self.graph, _without_parameters(self.graph, others)).values(self.images)[node]
            kernel.data.copy_(before)
            total += moved - self.clean[node]
        return total

    def prune(self, space: ChannelSpace, group: int) -> Change:
        """-a of one group at every edge."""
        changes: Change = {}
        for c in space.consumers:
            change = changes.setdefault((c.tensor, c.node), torch.zeros_like(self.clean[c.tensor]))
            at = torch.tensor([p for p, owner in enumerate(c.groups) if owner == group], dtype=torch.int64)
            change.index_copy_(c.dim, at, -self.clean[c.tensor].index_select(c.dim, at))
        return changes

    def derivatives(self, changes: Sequence[Change]) -> torch.Tensor:
        """d/d eps of each sample's loss for eps times each change, ``[S, changes]``."""
        samples = self.images.shape[0]
        eps = torch.zeros(samples, len(changes), dtype=torch.float64, requires_grad=True)
        added: Change = {}
        for number, change in enumerate(changes):
            for edge, u in change.items():
                first = u.movedim(self._batch_dim(u), 0)
                scaled = (eps[:, number] * first.movedim(0, -1)).movedim(-1, self._batch_dim(u))
                added[edge] = added[edge] + scaled if edge in added else scaled
        logits = Probe(self.graph, edges=added).values(self.images)["output"]
        (found,) = torch.autograd.grad(cross_entropy(logits, self.labels).sum(), eps)
        return found

    def literal(self, change: Change) -> torch.Tensor:
        """Delta z . g_z of a change at one edge, ``[S]``."""
        ((edge, u),) = change.items()
        node = edge[1]
        added = torch.zeros_like(self.clean[node]).requires_grad_()
        logits = Probe(self.graph, values={node: added}).values(self.images)["output"]
        (g,) = torch.autograd.grad(cross_entropy(logits, self.labels).sum(), added)
        with torch.no_grad():
            z = Probe(self.graph, _without_parameters(self.graph, self.clean, node), {edge: u})
            product = (z.values(self.images)[node] - self.clean[node]) * g
            return product.movedim(self._batch_dim(g), 0).flatten(1).sum(1)

    def terms(self) -> dict[tuple[str, int], float]:
        """Space and group to the mean over the samples of the sum of ``|a g|`` over all positions and edges.

        A relative error of each value changes a score by about as much of it. A quarter of the space's mean
        is added, since a small value may be computed from large ones, as behind a ReLU.
        """
        edges = {(c.tensor, c.node) for space in self.graph.spaces.values() for c in space.consumers}
        added = {edge: torch.zeros_like(self.clean[edge[0]]).requires_grad_() for edge in edges}
        logits = Probe(self.graph, edges=added).values(self.images)["output"]
        gradients = torch.autograd.grad(cross_entropy(logits, self.labels).sum(), list(added.values()))
        terms = {
            edge: (self.clean[edge[0]] * g).abs() / len(self.images)
            for edge, g in zip(added, gradients, strict=True)
        }
        found: dict[tuple[str, int], float] = {}
        for name, space in self.graph.spaces.items():
            for c in {(c.tensor, c.node, c.dim): c for c in space.consumers}.values():
                sums = terms[c.tensor, c.node].movedim(c.dim, 0).flatten(1).sum(1).tolist()
                for group, total in zip(c.groups, sums, strict=True):
                    found[name, group] = found.get((name, group), 0.0) + total
            own = {group: found.get((name, group), 0.0) for group in range(space.width)}
            mean = sum(own.values()) / space.width
            found |= {(name, group): value + mean / 4 for group, value in own.items()}
        return found

    def _batch_dim(self, value: torch.Tensor) -> int:
        return value.shape.index(self.images.shape[0])


def _without_parameters(graph: Graph, values: Mapping[str, Any], *nodes: str) -> dict[str, Any]:
    """Forces activations alone, so that what is computed from parameters is computed anew."""
    found: set[str] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder" or any(m.name in found for m in node.all_input_nodes):
            found.add(node.name)
    return {name: value for name, value in values.items() if name in found and name not in nodes}


def randomised(model: nn.Module, images: torch.Tensor, bias: float = 0.0) -> Graph:
    """Traces a model in float64 and evaluation mode, with norms that are not the identity."""
    graph = trace(model.double().eval(), images)
    randomise_norms(graph, 0)
    return graph


def spread(names: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` names at even distances, the first and the last among them."""
    if len(names) <= count:
        return list(names)
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]


def check(
    graph: Graph,
    batch: Batch,
    spaces: int = 12,
    groups: int = 3,
    init_scale: float = 2.0,
    *,
    compile: bool = False,
) -> Checked:
    """Compares q of splits and prunes of some groups of some spaces."""
    learnable = [
        n for n, s in graph.spaces.items() if s.consumers and any(v.kind == "exact" for v in s.verdicts)
    ]
    chosen = spread(learnable, spaces)
    learner = Learner(graph, cross_entropy, spaces=chosen, init_scale=init_scale, compile=compile)
    assert not learner.refused
    found, truth = estimates(learner, batch), _Truth(graph, batch)
    splits: list[tuple[str, int, Change]] = []
    prunes: list[tuple[str, int, Change]] = []
    for name in chosen:
        space = graph.space(name)
        for group in spread([g for g, v in enumerate(space.verdicts) if v.kind == "exact"], groups):
            theta = group_kernels(learner._thetas[name], group)
            splits.append((name, group, truth.split(space, group, theta)))
            prunes.append((name, group, truth.prune(space, group)))
    expected = truth.derivatives([change for _, _, change in (*splits, *prunes)])
    q = torch.stack([_split_q(found, name)[:, group] for name, group, _ in splits], 1)
    pruned = torch.stack([found[name][0][:, group] for name, group, _ in prunes], 1)
    # Gradients differ by orders of magnitude from layer to layer: what a prune changes is the measure.
    scale = torch.stack([found[name][0].abs().max() for name, _, _ in splits])
    _assert_close(torch.cat([q, pruned], 1), expected, torch.cat([scale, scale]))
    single = spread([n for n, (_, _, change) in enumerate(splits) if len(change) == 1], 6)
    literal = [truth.literal(splits[number][2]) for number in single]
    if single:
        _assert_close(q[:, single], torch.stack(literal, 1), scale[single])
    visible = int((q.abs().amax(0) > 1e-6 * scale).sum())
    return Checked(tuple(chosen), len(splits), visible, len(single))


def _assert_close(found: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor) -> None:
    error = (found - expected).abs()
    assert (error <= 1e-6 * expected.abs() + 1e-10 * scale).all(), float((error / scale).max())


def _split_q(found: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]], name: str) -> torch.Tensor:
    q = found[name][1]
    assert q is not None
    return q


@pytest.fixture
def check_scores() -> Callable[..., Checked]:
    """``check_scores(model, images, **options)`` compares, and says what was compared."""

    def run(model: nn.Module, images: torch.Tensor, **options: Any) -> Checked:
        graph = randomised(model, images)
        labels = torch.randint(0, graph(images).shape[1], (images.shape[0],))
        return check(graph, (images, labels), **options)

    return run


def _scores(learner: Learner) -> dict[tuple[str, str, int], float]:
    return {(s.morphism.kind, s.morphism.space, s.morphism.index): s.delta_loss for s in learner.scores()}


@dataclass(frozen=True)
class Rounded:
    """Scores of a step in float64, of the same in bfloat16, and what a rounding in each value may do."""

    expected: torch.Tensor
    found: torch.Tensor
    rounding: torch.Tensor

    def assert_close(self, roundings: float, rank: float, large: int) -> None:
        """Asserts that they agree up to so many roundings, and that this says something.

        Args:
            roundings: How many.
            rank: Least rank correlation.
            large: So many scores at least are larger than the tolerance; these thus agree in sign.
        """
        tolerance = roundings * self.rounding
        error = (self.found - self.expected).abs()
        assert (error <= tolerance).all(), (error / self.rounding).tolist()
        assert int((self.expected.abs() > tolerance).sum()) >= large
        assert stats.spearmanr(self.expected, self.found)[0] >= rank


@pytest.fixture
def roundings() -> Callable[..., dict[tuple[str, int], float]]:
    """``roundings(graph, batch, spacing)``: what one rounding in each value may do to a group's scores."""

    def run(graph: Graph, batch: Batch, spacing: float) -> dict[tuple[str, int], float]:
        exact = copy.deepcopy(graph).double().eval()
        terms = _Truth(exact, (batch[0].double(), batch[1])).terms()
        return {site: term * spacing for site, term in terms.items()}

    return run


@pytest.fixture
def round_scores() -> Callable[[Graph, Batch], dict[str, Rounded]]:
    """``round_scores(graph, batch)``: a step under autocast, in channels-last format, against float64."""

    def run(graph: Graph, batch: Batch) -> dict[str, Rounded]:
        exact = copy.deepcopy(graph).double()
        expected = Learner(exact, functional.cross_entropy, init_scale=0.5)
        expected.step(batch[0].double(), batch[1])
        graph.to(memory_format=torch.channels_last)
        learner = Learner(graph, functional.cross_entropy, init_scale=0.5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            learner.step(batch[0].to(memory_format=torch.channels_last), batch[1])
        averages = [
            v
            for k, v in learner.state_dict().items()
            if k.startswith(("theta", "first_order", "second_order"))
        ]
        assert {value.dtype for value in averages if isinstance(value, torch.Tensor)} == {torch.float32}
        terms = _Truth(exact, (batch[0].double(), batch[1])).terms()
        scores = _scores(expected), _scores(learner)
        assert scores[0].keys() == scores[1].keys()
        sites = {kind: [site for site in scores[0] if site[0] == kind] for kind in ("split", "prune")}
        return {
            kind: Rounded(
                *(torch.tensor([found[site] for site in own], dtype=torch.float64) for found in scores),
                torch.tensor([terms[site[1:]] * BFLOAT16 for site in own], dtype=torch.float64),
            )
            for kind, own in sites.items()
        }

    return run


_WAITING = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "multinomial"),
    *("masked_select", "_unique2", "unique_dim", "unique_consecutive"),
}


class _NoHostReads(TorchDispatchMode):
    """Fails on the operators that wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in _WAITING, name
        by_mask = name in {"index", "index_put", "index_put_"} and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        assert not by_mask, f"{name} by a mask"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_host_reads() -> AbstractContextManager[Any]:
    """A context in which whatever waits for the device fails."""
    return _NoHostReads()
