"""From a graph to what the learner runs: one instrumented forward program, and one small program per space.

The instrumented program returns, beside the outputs, every value that some space needs. The gradient at an
edge alone comes from a *tap*: an alias of the tensor a that the consumers read in its place, so that a path
which passes a on inside the region is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx

from morphir.errors import MorphirError
from morphir.ir.channels import ChannelSpace, Producer
from morphir.ir.codes import CODES
from morphir.ir.graph import Graph
from morphir.ir.groups import Groups
from morphir.ir.remarks import Remark
from morphir.ir.source import source_of
from morphir.ir.state import is_plain, named_state
from morphir.runtime.learning.depth import layers_above
from morphir.runtime.learning.faithful import check_copy
from morphir.runtime.learning.folded_norm import FoldedNorm
from morphir.runtime.learning.group_index import GroupIndex
from morphir.runtime.learning.image_layout import prefers_channels_last
from morphir.runtime.learning.linearity import is_linear
from morphir.runtime.learning.narrowed import Narrowed
from morphir.runtime.learning.own_channels import ChannelMap, OwnChannels, parameter_values
from morphir.runtime.learning.paired import PairedProgram
from morphir.runtime.learning.producer_ops import LinearOp, linear_op
from morphir.runtime.learning.region import Region, Regions
from morphir.runtime.learning.sample_axes import SampleAxes
from morphir.runtime.learning.selection import Selection, take
from morphir.runtime.learning.simplify import simplify
from morphir.runtime.learning.working_copy import WorkingCopy, working_copy


def tap(value: torch.Tensor) -> torch.Tensor:
    """Returns an alias with a gradient of its own."""
    return value.view_as(value) if value.requires_grad else value.detach().requires_grad_()


def part_of(tensor: torch.Tensor, part: Sequence[Selection], samples: int) -> torch.Tensor:
    """Returns a part of a tensor whose samples lie along some dimension, samples first."""
    taken = take(part, tensor) if part else tensor
    return taken if samples == 0 else taken.movedim(samples, 0)


@dataclass(frozen=True)
class EdgeProgram:
    """One tensor a, as all consumers of the space read it.

    Attributes:
        taps: Slots of the taps among the captured values; the edge's gradient is the sum of theirs.
        part: The part of the tensor that the region computes.
        samples: The dimension of the samples, which is moved to the front.
        groups: Which group each position of that part belongs to.
    """

    taps: tuple[int, ...]
    part: tuple[Selection, ...]
    samples: int
    groups: GroupIndex

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the part that the region computes, samples first."""
        return part_of(tensor, self.part, self.samples)


@dataclass(frozen=True)
class ProducerProgram:
    """One producer: ``delta = op(theta, *sources)``.

    Attributes:
        parameter: ``state_dict`` key of the kernel.
        op: The operator as a function of the kernel.
        sources: Slots of what it reads.
        y: Slot of its output (of the batch norm's, where that is folded in).
        part: The part of y that the region reads.
        rows: The rows of the kernel that make this part; None where theta has all rows.
        folded: The folded batch norm, whose scale theta takes on.
        samples: The dimension of y's samples; None where they lie along none.
        groups: Which group each channel of that part, samples first, belongs to; None where that cannot be
            told.
    """

    parameter: str
    op: LinearOp
    sources: tuple[int, ...]
    y: int
    part: tuple[Selection, ...]
    rows: Selection | None
    folded: FoldedNorm | None
    samples: int | None
    groups: GroupIndex | None


@dataclass(frozen=True)
class ExternalProgram:
    """What a region reads besides y: a captured slot, and which part of its value."""

    slot: int
    part: tuple[Selection, ...]


@dataclass(frozen=True)
class SplitProgram:
    """What learning a space's splits takes: its producers and its region."""

    producers: tuple[ProducerProgram, ...]
    region: Region
    externals: tuple[ExternalProgram, ...]

    @property
    def is_located(self) -> bool:
        """Whether each producer's channels are known by sample and group."""
        return all(producer.groups is not None for producer in self.producers)


@dataclass(frozen=True)
class SpaceProgram:
    """One space, lowered.

    Attributes:
        name: The space.
        width: Number of groups.
        edges: Where its channels are read.
        split: None where no group can be split.
        layers_above: How many mixing operators lie above what reads its channels.
    """

    name: str
    width: int
    edges: tuple[EdgeProgram, ...]
    split: SplitProgram | None
    layers_above: int

    @property
    def morphisms(self) -> int:
        """How many there are: a prune for each group, then a split for each where there are any."""
        return self.width * (1 + (self.split is not None))

    @cached_property
    def taps(self) -> frozenset[int]:
        """Slots of the taps of all edges."""
        return frozenset(slot for edge in self.edges for slot in edge.taps)

    @cached_property
    def slots(self) -> frozenset[int]:
        """Every captured slot that the space reads."""
        if self.split is None:
            return self.taps
        own = {slot for producer in self.split.producers for slot in (*producer.sources, producer.y)}
        return self.taps | own | {external.slot for external in self.split.externals}


@dataclass(frozen=True)
class Lowered:
    """A graph, lowered.

    Attributes:
        program: ``program(*inputs)`` returns ``(outputs, captured)``.
        taps: The captured slots that are taps.
        spaces: Every space that something can be done to, in program order.
        derived: What is computed from parameters, and to be refreshed before a run.
        refused: Space name to the remark why not all is learned that the analysis allows.
        channels_last: Whether images are to lie channels last.
        samples_apart: Whether no sample's outputs depend on another sample.
    """

    program: fx.GraphModule
    taps: tuple[int, ...]
    spaces: tuple[SpaceProgram, ...]
    derived: tuple[FoldedNorm | Narrowed, ...]
    refused: Mapping[str, Remark]
    channels_last: bool
    samples_apart: bool

    @cached_property
    def paired(self) -> PairedProgram:
        """The same program, run on two sets of values at once."""
        producers = [p for space in self.spaces if space.split is not None for p in space.split.producers]
        sources: dict[int, tuple[int, ...]] = {}
        for producer in producers:
            sources[producer.y] = (*sources.get(producer.y, ()), *producer.sources)
        return PairedProgram.of(self.program, sources, tap)

    @cached_property
    def waiting(self) -> Mapping[int, Sequence[SpaceProgram]]:
        """Tap to the spaces that wait for its gradient."""
        return {slot: [space for space in self.spaces if slot in space.taps] for slot in self.taps}

    @cached_property
    def needed(self) -> Mapping[int, int]:
        """Captured slot to the number of spaces that read it."""
        return Counter(slot for space in self.spaces for slot in space.slots)


def lower(graph: Graph, spaces: Collection[str] | None = None) -> Lowered:
    """Lowers a graph for the learner; the graph is left as it is, and its modules are shared.

    Args:
        graph: An analysed graph.
        spaces: Names of the spaces to lower; all where None.

    Raises:
        MorphirError: if the program writes in place what other values share, or calls a module that was
            given hooks or a forward of its own since it was traced.
    """
    work = working_copy(graph)
    _check_plain(work)
    check_copy(graph, work)
    simplify(work)
    wanted = [space for space in graph.spaces.values() if spaces is None or space.name in spaces]
    live = [s for s in wanted if s.consumers and any(v.kind != "frozen" for v in s.verdicts)]
    return _Lowering(graph, work).run(live)


def _check_plain(work: WorkingCopy) -> None:
    """What one of PyTorch's modules computes is told by its class alone; a trace goes into others."""
    for node in work.module.graph.nodes:
        leaf = work.leaf(node)
        if leaf is not None and type(leaf).__module__.startswith("torch.nn.") and not is_plain(leaf):
            raise MorphirError(
                f"{type(leaf).__name__} at {node.target!r} was given a hook, or a forward of its own, after "
                "it was traced",
                node=node.name,
                source=source_of(node),
                hint="take it away, or give it to the model before morphir.trace, which follows it",
            )


def _refused(space: ChannelSpace, producer: Producer, code: str) -> Remark:
    """Returns why a space is not learned; ``producer`` is the one to blame."""
    return Remark(
        "refused", code, CODES[code].meaning, space.name, node=producer.node, source=producer.source
    )


EdgeKey = tuple[fx.Node, int, Groups]
Reading = tuple[fx.Node, fx.Node]


class _Lowering:
    """Builds the space programs' regions first, on the untapped program, then the taps."""

    def __init__(self, graph: Graph, work: WorkingCopy) -> None:
        self.graph = graph
        self.work = work
        self.state = named_state(graph)
        self.parameters = parameter_values(graph.spaces.values(), self.state)
        self.channel_map = ChannelMap(graph.spaces, graph.device)
        by_id = {id(self.state[key]): value for key, value in self.parameters.items()}
        self.samples = SampleAxes(graph, work)
        self.regions = Regions(work, self.channel_map, by_id, self.samples)
        self.slots: dict[fx.Node, int] = {}
        self.captured: list[fx.Node] = []
        self.refused: dict[str, Remark] = {}
        self.channels_last = prefers_channels_last(graph, work)

    def run(self, spaces: Sequence[ChannelSpace]) -> Lowered:
        edges = {space.name: self._edges(space) for space in spaces}
        known = [space for space in spaces if self._holds_samples(space, edges[space.name])]
        splits = {space.name: self._split_program(space, list(edges[space.name])) for space in known}
        above = layers_above(self.graph.spaces.values(), self.work)
        taps = self._tap({space.name: edges[space.name] for space in known})
        programs = tuple(
            SpaceProgram(
                space.name,
                space.width,
                self._edge_programs(space, edges[space.name], splits[space.name], taps),
                splits[space.name],
                above[space.name],
            )
            for space in known
        )
        self._finish()
        slots = tuple(dict.fromkeys(taps.values()))
        derived = self._derived(programs)
        program = self.work.module
        apart = not any(map(self.samples.mix, program.graph.nodes))
        return Lowered(program, slots, programs, derived, self.refused, self.channels_last, apart)

    def _edges(self, space: ChannelSpace) -> dict[EdgeKey, list[fx.Node]]:
        """Returns each tensor a with its readers."""
        found: dict[EdgeKey, list[fx.Node]] = {}
        for consumer in space.consumers:
            reader = self.work.nodes[consumer.node]
            key = (self.work.read_by(reader, consumer.tensor), consumer.dim, consumer.groups)
            found.setdefault(key, []).append(reader)
        return found

    def _holds_samples(self, space: ChannelSpace, edges: Iterable[EdgeKey]) -> bool:
        ordered = all(self.samples.of(tensor) is not None for tensor, _, _ in edges)
        if not ordered:
            self.refused[space.name] = _refused(space, space.producers[0], "scattered-samples")
        return ordered

    def _split_program(self, space: ChannelSpace, edges: Sequence[EdgeKey]) -> SplitProgram | None:
        """Returns the program; None where no split is legal, or can be learned."""
        if not any(verdict.kind == "exact" for verdict in space.verdicts):
            return None
        uses = {(self.work.nodes[p.node], p.parameter): p for p in space.producers}
        outputs = list(dict.fromkeys(node for node, _ in uses))
        if len(outputs) != len(uses):
            self.refused[space.name] = _refused(space, space.producers[0], "several-kernels")
            return None
        region = self.regions.extract(space.name, outputs, [tensor for tensor, _, _ in edges])
        producers: list[ProducerProgram] = []
        for use in uses.values():
            producer = self._producer(space, use, region.channels)
            if producer is None:
                self.refused[space.name] = _refused(space, use, "no-learning-rule")
                return None
            producers.append(producer)
        externals = [ExternalProgram(self._slot(x.node), x.selections) for x in region.externals]
        return SplitProgram(tuple(producers), region, tuple(externals))

    def _producer(
        self, space: ChannelSpace, producer: Producer, channels: OwnChannels
    ) -> ProducerProgram | None:
        node, kernel = self.work.nodes[producer.node], self.state[producer.parameter]
        op = linear_op(self.work, node, kernel)
        if not op.known and not is_linear(self.graph, self.work, node, op, kernel):
            return None
        rows = channels.selection(self.parameters[producer.parameter], producer.out_axis)
        return ProducerProgram(
            producer.parameter,
            op,
            tuple(map(self._slot, op.sources)),
            self._slot(node),
            channels.selections(self.work.values[node][0]),
            rows if op.narrows else None,
            self.work.folded.get(node),
            self.samples.of(node),
            self._groups_of(space, node, channels),
        )

    def _groups_of(self, space: ChannelSpace, node: fx.Node, channels: OwnChannels) -> GroupIndex | None:
        """Returns the group of each channel of a value that the region reads."""
        value = self.work.values[node][0]
        layouts = [layout for layout in value.layouts if layout.space == space.name]
        samples = self.samples.of(node)
        if len(layouts) != 1 or samples is None:
            return None
        groups, dim = layouts[0].groups, layouts[0].dim
        left = [groups[position] for position in channels.positions(value, dim)]
        return GroupIndex.of(dim + (dim < samples), left, space.width, self.channel_map.device)

    def _edge_programs(
        self,
        space: ChannelSpace,
        edges: Mapping[EdgeKey, Sequence[fx.Node]],
        split: SplitProgram | None,
        taps: Mapping[Reading, int],
    ) -> tuple[EdgeProgram, ...]:
        channels = self._own_channels(space, edges) if split is None else split.region.channels
        programs: list[EdgeProgram] = []
        for (tensor, dim, groups), readers in edges.items():
            slots = tuple(dict.fromkeys(taps[tensor, reader] for reader in readers))
            value = self.work.values[tensor][0]
            left = [groups[position] for position in channels.positions(value, dim)]
            samples = self.samples.of(tensor)
            assert samples is not None
            index = GroupIndex.of(dim + (dim < samples), left, space.width, self.channel_map.device)
            programs.append(EdgeProgram(slots, channels.selections(value), samples, index))
        return tuple(programs)

    def _own_channels(self, space: ChannelSpace, edges: Iterable[EdgeKey]) -> OwnChannels:
        values = [self.work.values[tensor][0] for tensor, _, _ in edges]
        return self.channel_map.own(space.name, values)

    def _derived(self, programs: Sequence[SpaceProgram]) -> tuple[FoldedNorm | Narrowed, ...]:
        """What is narrowed may itself be folded, and comes after."""
        splits = [program.split for program in programs if program.split is not None]
        narrowed = [narrowed for split in splits for narrowed in split.region.narrowed]
        return (*self.work.folded.values(), *narrowed)

    def _slot(self, node: fx.Node) -> int:
        if node not in self.slots:
            self.slots[node] = len(self.captured)
            self.captured.append(node)
        return self.slots[node]

    def _tap(self, edges: Mapping[str, Mapping[EdgeKey, Sequence[fx.Node]]]) -> dict[Reading, int]:
        """Inserts one tap for all readers of a tensor that the same spaces have edges to."""
        owners: dict[Reading, set[tuple[str, EdgeKey]]] = {}
        for space, keys in edges.items():
            for key, readers in keys.items():
                for reader in readers:
                    owners.setdefault((key[0], reader), set()).add((space, key))
        together: dict[tuple[fx.Node, frozenset[tuple[str, EdgeKey]]], list[fx.Node]] = {}
        for (tensor, reader), owning in owners.items():
            together.setdefault((tensor, frozenset(owning)), []).append(reader)
        return {
            (tensor, reader): slot
            for (tensor, _), readers in together.items()
            for slot in [self._insert_tap(tensor, readers)]
            for reader in readers
        }

    def _insert_tap(self, tensor: fx.Node, readers: Sequence[fx.Node]) -> int:
        with self.work.module.graph.inserting_after(tensor):
            node = self.work.module.graph.call_function(tap, (tensor,))
        for reader in readers:
            reader.replace_input_with(tensor, node)
        return self._slot(node)

    def _finish(self) -> None:
        output = next(node for node in reversed(self.work.module.graph.nodes) if node.op == "output")
        output.args = ((output.args[0], tuple(self.captured)),)
        self.work.module.recompile()
