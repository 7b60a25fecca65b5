"""What channels really do, found by running the program: it shares nothing with the analysis but its claims.

The oracle believes what the analysis says about who reads a group. This file does not. It knows which nodes
mix channels from their types alone, and cuts the program there: a mixing node reads what it read before,
whatever reaches it. Then a group's kernel rows and region parameters are perturbed. Every number that
changes has to lie where the analysis says that the group lies, and the group has to reach the edges that it
is said to have, and no others.

Splits with theta other than 0 are compared with two worlds. One computes with ``w + theta``, the other with
``w - theta``, and a node that mixes channels reads the mean of the two.
"""

from __future__ import annotations

import copy
import operator
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from exporters.inputs import random_inputs
from morphir.ir.channels import AxisBinding, ChannelSpace
from morphir.ir.graph import Graph
from morphir.ir.state import named_state
from morphir.morphisms.split import Split
from morphir.runtime.oracle.checks import TOLERANCE, relative_difference
from morphir.runtime.oracle.subjects import randomise_norms
from passes.transform import transform

Values = dict[str, Any]
"""Node name to what the node yields."""

_PRODUCTS: tuple[Any, ...] = (functional.linear, torch.matmul, torch.bmm, torch.einsum, operator.matmul)
_KERNELS: tuple[Any, ...] = (functional.conv1d, functional.conv2d, functional.conv3d)
_LAYERS = (nn.Linear, nn.MultiheadAttention)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Subject:
    """A graph in float64 and evaluation mode, with inputs, and what it yields on them."""

    def __init__(self, graph: Graph, seed: int) -> None:
        self.graph = copy.deepcopy(graph).to(torch.float64).eval()
        randomise_norms(self.graph, seed)
        self.inputs = random_inputs(self.graph.inputs, self.graph.device, seed=seed)[0]
        self.activations = _activations(self.graph)
        self.mixing = {node.name for node in self.graph.graph.nodes if self._mixes(node)}
        self.values = self.worlds([self.graph])[0]

    def _mixes(self, node: fx.Node) -> bool:
        """Whether each of a node's outputs depends on several input channels, by its kind alone."""
        if node.op == "call_module":
            module = self.graph.get_submodule(str(node.target))
            return isinstance(module, _LAYERS) or (
                isinstance(module, _CONVOLUTIONS)
                and not (module.groups > 1 and module.groups == module.in_channels)
            )
        parameters = [source for source in node.all_input_nodes if source.name not in self.activations]
        if node.target in _KERNELS:
            kernel = operator.attrgetter(str(parameters[0].target))(self.graph)
            return not (node.kwargs.get("groups", 1) > 1 and kernel.shape[1] == 1)
        return node.target in _PRODUCTS and node.name in self.activations and bool(parameters)

    def worlds(self, graphs: Sequence[Graph]) -> list[Values]:
        """Runs copies of the program side by side; mixing nodes read the mean of what all copies yield."""
        runs = [fx.Interpreter(graph, garbage_collect_values=False) for graph in graphs]
        for run in runs:
            run.args_iter = iter(pytree.tree_map(torch.clone, self.inputs))
        with torch.no_grad():
            for nodes in zip(*(graph.graph.nodes for graph in graphs), strict=True):
                self._step(runs, nodes)
        return [{node.name: value for node, value in run.env.items()} for run in runs]

    def _step(self, runs: Sequence[fx.Interpreter], nodes: Sequence[fx.Node]) -> None:
        originals = [dict[fx.Node, Any]() for _ in runs]
        if nodes[0].name in self.mixing:
            for sources in zip(*(node.all_input_nodes for node in nodes), strict=True):
                if sources[0].name in self.activations:
                    met = [run.env[source] for run, source in zip(runs, sources, strict=True)]
                    for run, source, own, value in zip(runs, sources, originals, met, strict=True):
                        own[source], run.env[source] = value, _mean(met)
        for run, node, own in zip(runs, nodes, originals, strict=True):
            run.env[node] = run.run_node(node)
            run.env.update(own)

    def rerun(self, touched: Collection[str]) -> Values:
        """Runs what depends on parameters that were touched, up to where it is mixed; returns its values.

        Args:
            touched: ``state_dict`` keys.
        """
        state = named_state(self.graph)
        memory = {id(state[key]) for key in touched}
        run = fx.Interpreter(self.graph, garbage_collect_values=False)
        changed: Values = {}
        with torch.no_grad():
            for node in self.graph.graph.nodes:
                cut = self.activations if node.name in self.mixing else ()
                passed = [x for x in node.all_input_nodes if x.name in changed and x.name not in cut]
                if passed or self._reads(node, memory):
                    run.env = {source: self.values[source.name] for source in node.all_input_nodes}
                    run.env.update({source: changed[source.name] for source in passed})
                    changed[node.name] = run.run_node(node)
        return changed

    def _reads(self, node: fx.Node, memory: Collection[int]) -> bool:
        if node.op == "call_module":
            module = self.graph.get_submodule(str(node.target))
            return any(id(tensor) in memory for tensor in (*module.parameters(), *module.buffers()))
        return node.op == "get_attr" and id(operator.attrgetter(str(node.target))(self.graph)) in memory


def _activations(graph: Graph) -> set[str]:
    found: set[str] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder" or any(source.name in found for source in node.all_input_nodes):
            found.add(node.name)
    return found


def wrong_claims(subject: Subject, seed: int, *, most: int = 3) -> Iterator[str]:
    """Yields in words where exact groups do not lie as the channel layer says.

    Args:
        subject: What to look at; left as it was.
        seed: Of the perturbations, and of which groups are tried.
        most: Try at most so many groups of each space.
    """
    rng = random.Random(seed)
    for space in subject.graph.spaces.values():
        exact = [index for index, verdict in enumerate(space.verdicts) if verdict.kind == "exact"]
        for group in sorted(rng.sample(exact, min(most, len(exact)))):
            changed = _changed(subject, space, group, seed)
            yield from _outside(subject.graph, space, group, changed)
            yield from _wrong_edges(subject, space, group, changed)


def _changed(subject: Subject, space: ChannelSpace, group: int, seed: int) -> dict[str, list[Tensor]]:
    """Returns, for every node, which numbers change with the group's parameters: a mask for each tensor."""
    bindings = [
        binding for binding in space.bindings if binding.role != "consumer" and group in binding.groups
    ]
    found: dict[str, list[Tensor]] = {}
    # Of both signs, so that a rectifier passes one of them at every position.
    for scale in (1.0, 20.0, -20.0):
        with _perturbed(subject.graph, bindings, group, scale, seed):
            values = subject.rerun({binding.parameter for binding in bindings})
        for name, value in values.items():
            pairs = zip(_tensors(value), _tensors(subject.values[name]), strict=True)
            masks = [_differ(*pair) for pair in pairs]
            found[name] = [a | b for a, b in zip(found.get(name, masks), masks, strict=True)]
    return found


@contextmanager
def _perturbed(
    graph: Graph, bindings: Sequence[AxisBinding], group: int, scale: float, seed: int
) -> Iterator[None]:
    """Adds noise to a group's entries; positive where a variance might be meant."""
    generator = torch.Generator().manual_seed(seed)
    state = named_state(graph)
    saved = {binding.parameter: state[binding.parameter].detach().clone() for binding in bindings}
    with torch.no_grad():
        for binding in bindings:
            tensor = state[binding.parameter]
            rows = torch.tensor(_entries(binding, group))
            noise = torch.randn(tensor.index_select(binding.axis, rows).shape, generator=generator)
            noise = noise * scale if binding.role == "producer" else noise.abs() * abs(scale)
            tensor.index_add_(binding.axis, rows, noise.to(tensor.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for key, tensor in saved.items():
                state[key].copy_(tensor)


def _entries(binding: AxisBinding, group: int) -> list[int]:
    return [entry for entry, owner in enumerate(binding.groups) if owner == group]


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _differ(found: Tensor, wanted: Tensor) -> Tensor:
    if not found.is_floating_point():
        return found != wanted
    scale = wanted.abs().max() + 1 if wanted.numel() else 1.0
    return ~((found - wanted).abs() <= 1e-11 * scale)


def _outside(
    graph: Graph, space: ChannelSpace, group: int, changed: Mapping[str, list[Tensor]]
) -> Iterator[str]:
    for name, masks in changed.items():
        for mask, value in zip(masks, graph.channels.values[name], strict=True):
            claimed = torch.zeros_like(mask)
            for layout in value.layouts:
                if layout.space == space.name:
                    positions = [at for at, owner in enumerate(layout.groups) if owner == group]
                    claimed.index_fill_(layout.dim, torch.tensor(positions, dtype=torch.long), True)
            if (stray := (mask & ~claimed).nonzero()).numel():
                where = f"%{name} at {stray[0].tolist()}"
                yield f"{space.name}[{group}] reaches {where}, where it is not said to lie"


def _wrong_edges(
    subject: Subject, space: ChannelSpace, group: int, changed: Mapping[str, list[Tensor]]
) -> Iterator[str]:
    edges = {(c.node, c.tensor): (c.dim, c.groups) for c in space.consumers if group in c.groups}
    for node in subject.graph.graph.nodes:
        for source in node.all_input_nodes:
            reached = any(mask.any() for mask in changed.get(source.name, ()))
            if node.name in subject.mixing and reached and (node.name, source.name) not in edges:
                yield f"{space.name}[{group}] is read by %{node.name} from %{source.name}, no edge of it"
    for (node, tensor), (dim, groups) in edges.items():
        (value,) = _tensors(subject.values[tensor])
        (mask,) = changed.get(tensor, [torch.zeros_like(value, dtype=torch.bool)])
        for at, owner in enumerate(groups):
            # What is 0 whatever its group does may lie anywhere.
            if owner == group and not mask.select(dim, at).any() and value.select(dim, at).any():
                where = f"%{tensor} at {at}"
                yield f"{space.name}[{group}] does not reach {where}, where %{node} is said to read it"


def wrong_split(subject: Subject, seed: int) -> str:
    """Splits about a third of all exact groups with random thetas; says in words what is wrong, if any."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    spaces = subject.graph.spaces
    exact = [
        (name, index)
        for name, space in spaces.items()
        for index, verdict in enumerate(space.verdicts)
        if verdict.kind == "exact"
    ]
    chosen = rng.sample(exact, -(-len(exact) // 3))
    splits = [
        Split(name, index, _thetas(subject.graph, spaces[name], index, generator)) for name, index in chosen
    ]
    worlds = [_world(subject.graph, splits, sign) for sign in (1, -1)]
    first, second = (_tensors(values["output"]) for values in subject.worlds(worlds))
    wanted = [(left + right) / 2 for left, right in zip(first, second, strict=True)]
    changed = copy.deepcopy(subject.graph)
    transform(changed, splits)
    with torch.no_grad():
        found = _tensors(changed(*pytree.tree_map(torch.clone, subject.inputs)))
    difference = relative_difference(found, wanted)
    return (
        ""
        if difference <= TOLERANCE
        else f"{', '.join(map(str, splits))}: outputs differ by {difference:.3g}"
    )


def _mean(worlds: Sequence[Any]) -> Any:
    return pytree.tree_map(lambda *values: sum(values) / len(values), *worlds)


def _thetas(graph: Graph, space: ChannelSpace, group: int, generator: torch.Generator) -> dict[str, Tensor]:
    thetas: dict[str, Tensor] = {}
    for producer in space.producers:
        kernel = named_state(graph)[producer.parameter]
        binding = space.binding(producer.parameter, producer.out_axis)
        assert binding is not None
        rows = len(_entries(binding, group))
        shape = kernel.select(producer.out_axis, 0).shape
        size = tuple(shape) if rows == 1 else (rows, *shape)
        thetas[producer.parameter] = torch.randn(size, generator=generator, dtype=torch.float64) * 0.3
    return thetas


def _world(graph: Graph, splits: Sequence[Split], sign: int) -> Graph:
    """Returns a copy of the graph whose kernel rows have theta added or subtracted."""
    world = copy.deepcopy(graph)
    state = named_state(world)
    for split in splits:
        space = graph.spaces[split.space]
        for key, axis in {(p.parameter, p.out_axis) for p in space.producers}:
            binding = space.binding(key, axis)
            assert binding is not None and split.theta is not None
            rows = _entries(binding, split.index)
            theta = split.theta[key].reshape(len(rows), *state[key].select(axis, 0).shape)
            with torch.no_grad():
                state[key].index_add_(axis, torch.tensor(rows), sign * theta.movedim(0, axis))
    return world
