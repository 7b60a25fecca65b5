"""What a graph is lowered to: one instrumented forward program, and one small program for each space.

The instrumented program returns, beside the outputs, every value that some space needs. The gradient at an
edge alone comes from a *tap*: an alias of the tensor a that the consumers read in its place, so that a path
which passes a on inside the region is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx

from morphir.ir.remarks import Remark
from morphir.runtime.learning.folded_norm import FoldedNorm
from morphir.runtime.learning.group_index import GroupIndex
from morphir.runtime.learning.narrowed import Narrowed
from morphir.runtime.learning.paired import PairedProgram
from morphir.runtime.learning.producer_ops import LinearOp
from morphir.runtime.learning.region import Region
from morphir.runtime.learning.selection import Selection, take


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
