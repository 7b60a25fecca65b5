"""From a graph to the programs that the learner runs (:mod:`morphir.runtime.learning.programs`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

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
from morphir.runtime.learning.producer_ops import linear_op
from morphir.runtime.learning.programs import (
    EdgeProgram,
    ExternalProgram,
    Lowered,
    ProducerProgram,
    SpaceProgram,
    SplitProgram,
    tap,
)
from morphir.runtime.learning.region import Regions
from morphir.runtime.learning.sample_axes import SampleAxes
from morphir.runtime.learning.simplify import simplify
from morphir.runtime.learning.working_copy import WorkingCopy, working_copy


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
