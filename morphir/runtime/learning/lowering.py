"""From a graph to what the learner runs: one instrumented forward program, and one small program per space.

The instrumented program returns, beside the outputs, every value that some space needs. The gradient at an
edge alone comes
from a *tap*: an alias of the tensor a that the consumers read in its place, so that a path which passes a on
inside the region is not counted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from morphir.ir.channels import ChannelSpace, Producer
from morphir.ir.codes import CODES
from morphir.ir.graph import Graph
from morphir.ir.remarks import Remark
from morphir.runtime.learning.folded_norm import FoldedNorm
from morphir.runtime.learning.group_index import GroupIndex
from morphir.runtime.learning.linear_ops import Apply, linear_op
from morphir.runtime.learning.region import Region, extract_region
from morphir.runtime.learning.simplify import simplify
from morphir.runtime.learning.working_copy import WorkingCopy, working_copy


def tap(value: torch.Tensor) -> torch.Tensor:
    """Returns an alias with a gradient of its own."""
    return value.view_as(value) if value.requires_grad else value.detach().requires_grad_()


@dataclass(frozen=True)
class EdgeProgram:
    """One tensor a, as all consumers of the space read it.

    Attributes:
        taps: Slots of the taps among the captured values; the edge's gradient is the sum of theirs.
        groups: Which group each position belongs to.
    """

    taps: tuple[int, ...]
    groups: GroupIndex


@dataclass(frozen=True)
class ProducerProgram:
    """One producer: ``delta = op(x, theta)``.

    Attributes:
        parameter: ``state_dict`` key of the kernel.
        x: Slot of its input.
        y: Slot of its output (of the batch norm's, where that is folded in).
        apply: The operator as a function of the kernel.
        folded: The folded batch norm, whose scale theta takes on.
    """

    parameter: str
    x: int
    y: int
    apply: Apply
    folded: FoldedNorm | None


@dataclass(frozen=True)
class SplitProgram:
    """What learning a space's splits takes: its producers and its region."""

    producers: tuple[ProducerProgram, ...]
    region: Region
    externals: tuple[int, ...]


@dataclass(frozen=True)
class SpaceProgram:
    """One space, lowered.

    Attributes:
        name: The space.
        width: Number of groups.
        edges: Where its channels are read.
        split: None where no group can be split.
        refusal: Why no split is learned although the analysis allows some; None where it is, or none is
            allowed.
    """

    name: str
    width: int
    edges: tuple[EdgeProgram, ...]
    split: SplitProgram | None
    refusal: Remark | None = None

    @property
    def taps(self) -> frozenset[int]:
        """Slots of the taps of all edges."""
        return frozenset(slot for edge in self.edges for slot in edge.taps)

    @property
    def slots(self) -> frozenset[int]:
        """Every captured slot that the space reads."""
        if self.split is None:
            return self.taps
        own = {slot for producer in self.split.producers for slot in (producer.x, producer.y)}
        return self.taps | own | set(self.split.externals)


@dataclass(frozen=True)
class Lowered:
    """A graph, lowered.

    Attributes:
        program: ``program(*inputs)`` returns ``(outputs, captured)``.
        taps: The captured slots that are taps.
        spaces: Every space that something can be done to, in program order.
        folded: The operators to refresh before a run.
    """

    program: fx.GraphModule
    taps: tuple[int, ...]
    spaces: tuple[SpaceProgram, ...]
    folded: tuple[FoldedNorm, ...]


def lower(graph: Graph, spaces: Collection[str] | None = None) -> Lowered:
    """Lowers a graph for the learner; the graph is left as it is, and its modules are shared.

    Args:
        graph: An analysed graph.
        spaces: Names of the spaces to lower; all where None.
    """
    work = working_copy(graph)
    simplify(work)
    wanted = [space for space in graph.spaces.values() if spaces is None or space.name in spaces]
    live = [s for s in wanted if s.consumers and any(v.kind != "frozen" for v in s.verdicts)]
    return _Lowering(graph, work).run(live)


def _refused(space: ChannelSpace, producer: int, code: str) -> Remark:
    """Returns why a space's splits are not learned; ``producer`` is the position of the one to blame."""
    made = space.producers[producer]
    return Remark("refused", code, CODES[code].meaning, space.name, node=made.node, source=made.source)


EdgeKey = tuple[fx.Node, int, tuple[int, ...]]
Reading = tuple[fx.Node, fx.Node]


class _Lowering:
    """Builds the space programs' regions first, on the untapped program, then the taps."""

    def __init__(self, graph: Graph, work: WorkingCopy) -> None:
        self.graph = graph
        self.work = work
        self.slots: dict[fx.Node, int] = {}
        self.captured: list[fx.Node] = []

    def run(self, spaces: Sequence[ChannelSpace]) -> Lowered:
        edges = {space.name: self._edges(space) for space in spaces}
        splits = {space.name: self._split_program(space, list(edges[space.name])) for space in spaces}
        taps = self._tap(edges)
        programs: list[SpaceProgram] = []
        for space in spaces:
            program = splits[space.name]
            refusal, split = (program, None) if isinstance(program, Remark) else (None, program)
            lowered = tuple(
                self._edge(space, key, readers, taps) for key, readers in edges[space.name].items()
            )
            programs.append(SpaceProgram(space.name, space.width, lowered, split, refusal))
        self._finish()
        slots = tuple(dict.fromkeys(taps.values()))
        return Lowered(self.work.module, slots, tuple(programs), tuple(self.work.folded.values()))

    def _edges(self, space: ChannelSpace) -> dict[EdgeKey, list[fx.Node]]:
        """Returns each tensor a with its readers."""
        found: dict[EdgeKey, list[fx.Node]] = {}
        for consumer in space.consumers:
            key = (self.work.nodes[consumer.tensor], consumer.dim, consumer.groups)
            found.setdefault(key, []).append(self.work.nodes[consumer.node])
        return found

    def _split_program(self, space: ChannelSpace, edges: Sequence[EdgeKey]) -> SplitProgram | Remark | None:
        """Returns the program, None where no split is legal, or why the runtime cannot learn any."""
        if not any(verdict.kind == "exact" for verdict in space.verdicts):
            return None
        producers = [self._producer(producer) for producer in space.producers]
        known = [producer for producer in producers if producer is not None]
        outputs = list(dict.fromkeys(self.work.nodes[producer.node] for producer in space.producers))
        if len(known) != len(producers):
            return _refused(space, producers.index(None), "no-learning-rule")
        if len(outputs) != len(producers):
            return _refused(space, 0, "several-kernels")
        region = extract_region(self.work, space.name, outputs, [tensor for tensor, _, _ in edges])
        return SplitProgram(tuple(known), region, tuple(map(self._slot, region.externals)))

    def _producer(self, producer: Producer) -> ProducerProgram | None:
        node = self.work.nodes[producer.node]
        folded = self.work.folded.get(node)
        op = linear_op(node, folded.parts[0] if folded is not None else self.work.leaf(node))
        if op is None:
            return None
        return ProducerProgram(producer.parameter, self._slot(op.source), self._slot(node), op.apply, folded)

    def _edge(
        self, space: ChannelSpace, key: EdgeKey, readers: Sequence[fx.Node], taps: Mapping[Reading, int]
    ) -> EdgeProgram:
        tensor, dim, groups = key
        slots = tuple(dict.fromkeys(taps[tensor, reader] for reader in readers))
        return EdgeProgram(slots, GroupIndex.of(dim, groups, space.width, self.graph.device))

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
