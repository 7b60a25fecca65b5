"""A space's region as a program of its own: from the producers' outputs y to the consumers' inputs a.

It computes the space's own channels alone: a concatenation becomes its own part of it, and a batch norm over
a concatenation one over that part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from morphir.analysis.literals import LITERALS, rewrite_literals
from morphir.ir.channels import ChannelLayer, Value
from morphir.runtime.learning.narrowed import Narrowed, narrow
from morphir.runtime.learning.own_channels import ChannelMap, OwnChannels
from morphir.runtime.learning.sample_axes import SampleAxes
from morphir.runtime.learning.selection import Selection
from morphir.runtime.learning.simplify import is_relu
from morphir.runtime.learning.working_copy import WorkingCopy

RegionKind = Literal["relu", "general"]
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_SIZED = frozenset({"view", "reshape", "expand", "unflatten", "broadcast_to"})
_CONCATENATIONS = frozenset({torch.cat, torch.concat, torch.concatenate})


@dataclass(frozen=True)
class External:
    """A value that a region reads besides y.

    Attributes:
        node: The node of the working copy that computes it.
        selections: The part of it that the region reads.
    """

    node: fx.Node
    selections: tuple[Selection, ...]


@dataclass(frozen=True)
class Region:
    """The channelwise operators between producers and consumers.

    Attributes:
        module: ``module(*ys, *externals)`` returns one tensor for each edge, samples first.
        externals: What it reads besides y.
        channels: The channels that it computes; y is to be given, and a returned, on these alone.
        narrowed: The modules on parts of their channels, to refresh before a run.
        samples_apart: Whether no sample's results depend on another sample.
        stackable: Whether, besides, batches may be stacked along dimension 0 and run as one, or cut.
        kind: ``"relu"`` where the whole region is one ReLU.
    """

    module: fx.GraphModule
    externals: tuple[External, ...]
    channels: OwnChannels
    narrowed: tuple[Narrowed, ...]
    samples_apart: bool
    stackable: bool
    kind: RegionKind


class Regions:
    """Cuts spaces' regions out of one program.

    Args:
        work: The program.
        channel_map: Where the channels lie in its values.
        parameters: The id of every tensor that holds channels, and where they lie in it.
        samples: Where the samples lie in its values.
    """

    def __init__(
        self,
        work: WorkingCopy,
        channel_map: ChannelMap,
        parameters: Mapping[int, Value],
        samples: SampleAxes,
    ) -> None:
        self.work = work
        self.channel_map = channel_map
        self.parameters = parameters
        self.samples = samples

    def extract(self, space: str, outputs: Sequence[fx.Node], edges: Sequence[fx.Node]) -> Region:
        """Cuts out one region.

        Args:
            space: Name of the space.
            outputs: The producers' outputs y.
            edges: The nodes whose values a the consumers read.
        """
        inside, outside = _Walk(self.work, space, outputs).run(edges)
        ordered = [node for node in self.work.module.graph.nodes if node in inside]
        values = [value for node in (*outputs, *ordered) for value in self.work.values.get(node, ())]
        channels = self.channel_map.own(space, values)
        if channels.copies and self._can_restrict(outside, channels):
            region = _Cut(self, channels).run(outputs, ordered, outside, edges)
            if region is not None and self._fits(region, outputs, edges):
                return region
        region = _Cut(self, OwnChannels.of(self.channel_map, ())).run(outputs, ordered, outside, edges)
        assert region is not None
        return region

    def _can_restrict(self, outside: Sequence[fx.Node], channels: OwnChannels) -> bool:
        """A number from outside may count channels, and a part of several tensors has no one selection."""
        values = [self.work.values.get(node, ()) for node in outside]
        return all(len(own) == 1 or (own and not any(map(channels.selections, own))) for own in values)

    def _fits(self, region: Region, outputs: Sequence[fx.Node], edges: Sequence[fx.Node]) -> bool:
        """Whether the restricted program runs, and yields the shapes that the analysis predicts.

        Only numbers in the program can make it yield others, so that most regions need not be tried.
        """
        if not any(rule.matches(node) for rule in LITERALS for node in region.module.graph.nodes):
            return True

        def shapes(nodes: Sequence[fx.Node]) -> list[tuple[int, ...]]:
            return [region.channels.shape(self.work.values[node][0]) for node in nodes]

        device = self.channel_map.device
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            inputs = [
                torch.empty(shape, dtype=self.work.values[node][0].dtype, device=device)
                for nodes in (outputs, [external.node for external in region.externals])
                for node, shape in zip(nodes, shapes(nodes), strict=True)
            ]
            try:
                found = region.module(*inputs)
            except Exception:  # whatever an operator raises on extents that do not fit
                return False
            moves = zip(shapes(edges), map(self.samples.of, edges), strict=True)
            expected = [torch.Size(shape) if not dim else _moved(shape, dim) for shape, dim in moves]
            return [value.shape for value in found] == expected


def _moved(shape: tuple[int, ...], dim: int) -> torch.Size:
    return torch.Size((shape[dim], *shape[:dim], *shape[dim + 1 :]))


class _Cut:
    """Copies one region out of the program, on a region's own channels."""

    def __init__(self, regions: Regions, channels: OwnChannels) -> None:
        self.work = regions.work
        self.parameters = regions.parameters
        self.samples = regions.samples
        self.channels = channels
        # Its literals may be buffers, which are looked for there.
        self.program = fx.Graph(regions.work.module)
        self.copied: dict[fx.Node, fx.Node] = {}
        self.narrowed: list[Narrowed] = []

    def run(
        self,
        outputs: Sequence[fx.Node],
        inside: Sequence[fx.Node],
        outside: Sequence[fx.Node],
        edges: Sequence[fx.Node],
    ) -> Region | None:
        """Returns the region, or None where something of what is left out is still read."""
        own = [node for node in inside if not self._is_part_of_parameter(node)]
        externals = [*outside, *(node for node in inside if node not in own)]
        for node in (*outputs, *externals):
            self.copied[node] = self.program.placeholder(node.name)
        for node in own:
            self._copy(node)
        self.program.output(tuple(map(self._samples_first, edges)))
        self._rewrite_literals()
        self._drop_empty_parts()
        read = [node for node in externals if self._is_read(node)]
        if any(self._is_empty(node) for node in read):
            return None
        first = all(self.samples.of(node) == 0 for node in (*outputs, *edges))
        return self._region(read, first, not any(map(self.samples.mix, (*outputs, *inside))))

    def _samples_first(self, edge: fx.Node) -> fx.Node:
        dim = self.samples.of(edge)
        return self.program.call_method("movedim", (self.copied[edge], dim, 0)) if dim else self.copied[edge]

    def _is_part_of_parameter(self, node: fx.Node) -> bool:
        return node.op == "get_attr" and any(map(self.channels.selections, self._values(node)))

    def _copy(self, node: fx.Node) -> None:
        copied = self.copied[node] = self.program.node_copy(node, self.copied.__getitem__)
        leaf = self.work.leaf(node)
        narrowed = None if leaf is None else narrow(leaf, self.channels, self.parameters)
        if narrowed is not None:
            self.work.replace(copied, narrowed.twin)
            self.narrowed.append(narrowed)

    def _values(self, node: fx.Node) -> tuple[Value, ...]:
        return self.work.values.get(node, ())

    def _is_empty(self, node: fx.Node) -> bool:
        return any(map(self.channels.is_empty, self._values(node)))

    def _rewrite_literals(self) -> None:
        values = {copy.name: self._values(node) for node, copy in self.copied.items()}
        with self.work.separated(self.program):
            rewrite_literals(self.program, ChannelLayer({}, values), self.channels.copies)

    def _drop_empty_parts(self) -> None:
        """A concatenation of what is left, or nothing at all where that is a single part."""
        empty = {copy for node, copy in self.copied.items() if self._is_empty(node)}
        for node in list(self.program.nodes):
            if node.op != "call_function" or node.target not in _CONCATENATIONS or not node.args:
                continue
            given = cast("Sequence[fx.Node]", node.args[0] if isinstance(node.args[0], (tuple, list)) else ())
            left = [part for part in given if part not in empty]
            if len(left) == 1:
                node.replace_all_uses_with(left[0])
                self.program.erase_node(node)
            elif left:
                node.update_arg(0, left)

    def _is_read(self, node: fx.Node) -> bool:
        copied = self.copied[node]
        if not copied.users:
            self.program.erase_node(copied)
            return False
        return True

    def _region(self, externals: Sequence[fx.Node], samples_first: bool, samples_apart: bool) -> Region:
        calls = [n for n in self.program.nodes if n.op.startswith("call_")]
        results = next(node for node in reversed(self.program.nodes) if node.op == "output").args[0]
        is_one_relu = len(calls) == 1 and list(results) == calls and is_relu(self.work, calls[0])
        samples_apart = samples_apart and not any(_uses_batch_statistics(self.work, node) for node in calls)
        sizes_free = not any(map(_fixes_batch_size, calls))
        alone = all(node.op == "get_attr" for node in externals)
        module = fx.GraphModule(self.work.module, self.program)
        module.training = False
        read = tuple(
            External(node, tuple(s for value in self._values(node) for s in self.channels.selections(value)))
            for node in externals
        )
        return Region(
            module,
            read,
            self.channels,
            tuple(self.narrowed),
            samples_apart,
            stackable=samples_apart and samples_first and alone and sizes_free,
            kind="relu" if is_one_relu else "general",
        )


class _Walk:
    """Walks from the edges back to the producers."""

    def __init__(self, work: WorkingCopy, space: str, outputs: Sequence[fx.Node]) -> None:
        self.work = work
        self.space = space
        self.outputs = frozenset(outputs)

    def run(self, edges: Sequence[fx.Node]) -> tuple[set[fx.Node], list[fx.Node]]:
        """Returns the nodes inside, and the nodes outside that these read."""
        inside: set[fx.Node] = set()
        externals: dict[fx.Node, None] = {}
        waiting = list(edges)
        while waiting:
            node = waiting.pop()
            if node in inside or node in externals or node in self.outputs:
                continue
            if self._belongs(node):
                inside.add(node)
                waiting.extend(node.all_input_nodes)
            else:
                externals[node] = None
        return inside, list(externals)

    def _carries(self, node: fx.Node) -> bool:
        return any(
            layout.space == self.space for value in self.work.values.get(node, ()) for layout in value.layouts
        )

    def _belongs(self, node: fx.Node) -> bool:
        """Channels of the space, parameters, and sizes that are read off the space's own tensors."""
        if node.op == "placeholder":
            return False
        if node.op == "get_attr" or node in self.outputs or self._carries(node):
            return True
        return not self.work.values.get(node, ()) and any(map(self._belongs, node.all_input_nodes))


def _uses_batch_statistics(work: WorkingCopy, node: fx.Node) -> bool:
    leaf = work.leaf(node)
    return isinstance(leaf, _NORMS) and leaf.running_mean is None


def _fixes_batch_size(node: fx.Node) -> bool:
    """Whether a call says how many samples there are."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name not in _SIZED:
        return False
    first = node.args[1] if len(node.args) > 1 else next(iter(node.kwargs.values()), None)
    first = first[0] if isinstance(first, (tuple, list)) and first else first
    return isinstance(first, int) and first > 0
