"""The channel layer of the IR: groups of channels, the spaces that they form, and what may be done to each.

A *channel group* is all the channels that the wiring forces to be split or pruned together; a *channel space*
is the ordered list of groups that the same producers make. Both are found by :mod:`morphir.analysis`; this
file only holds what was found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from morphir.errors import MorphirError
from morphir.ir.codes import suggestion_for
from morphir.ir.groups import Groups
from morphir.ir.index_map import Copies
from morphir.ir.integers import whole_number
from morphir.ir.source import SourceLocation, located

VerdictKind = Literal["exact", "prune-only", "frozen"]
Role = Literal["producer", "consumer", "region"]


@dataclass(frozen=True)
class Verdict:
    """What may be done to one channel group, and why not more.

    Attributes:
        kind: ``"exact"`` (a split preserves the function), ``"prune-only"`` or ``"frozen"``.
        code: Machine-readable reason, one of :data:`morphir.ir.codes.CODES`; empty for exact groups.
        reason: The reason in words; empty for exact groups.
        node: Name of the graph node that is responsible.
        source: The user's line that made this node.
    """

    kind: VerdictKind
    code: str = ""
    reason: str = ""
    node: str | None = None
    source: SourceLocation | None = None

    @property
    def suggestion(self) -> str:
        """What the user could do to be allowed more; empty for exact groups."""
        return suggestion_for(self.code)

    def __str__(self) -> str:
        if not self.code:
            return self.kind
        hint = f"\n  hint: {self.suggestion}" if self.suggestion else ""
        return f"{self.kind}: {self.reason} [{self.code}]{located(self.node, self.source)}{hint}"

    def to_json(self) -> dict[str, Any]:
        """Returns the verdict as plain data."""
        plain = {name: getattr(self, name) for name in ("kind", "code", "reason", "node")}
        source = str(self.source) if self.source else None
        return {**plain, "source": source, "suggestion": self.suggestion}


@dataclass(frozen=True)
class Producer:
    """A mixing operator whose output channels belong to a space.

    Attributes:
        node: Name of the graph node; its output is y.
        parameter: ``state_dict`` key of its kernel, w_in.
        out_axis: The kernel's axis of output channels.
        in_axis: The kernel's axis of input channels.
    """

    node: str
    parameter: str
    out_axis: int
    in_axis: int
    source: SourceLocation | None = None


@dataclass(frozen=True)
class Consumer:
    """An edge: one mixing operator that reads a tensor which holds the space's channels.

    Attributes:
        node: Name of the graph node that reads; its output is z.
        tensor: Name of the graph node whose output is read (a).
        parameter: ``state_dict`` key of the kernel, w_out.
        in_axis: The kernel's axis of input channels.
        out_axis: The kernel's axis of output channels.
        dim: Dimension of ``tensor`` along which the channels lie.
        groups: For every position along ``dim``, the group's index in the space, or -1.
    """

    node: str
    tensor: str
    parameter: str
    in_axis: int
    out_axis: int
    dim: int
    groups: Groups
    source: SourceLocation | None = None


@dataclass(frozen=True)
class AxisBinding:
    """One axis of one parameter or buffer whose entries belong to groups of a space.

    Attributes:
        parameter: ``state_dict`` key.
        axis: Which axis.
        role: ``"producer"`` (rows of w_in), ``"consumer"`` (columns of w_out) or ``"region"`` (biases, norms,
            depthwise).
        groups: For every entry along the axis, the group's index in the space, or -1.
    """

    parameter: str
    axis: int
    role: Role
    groups: Groups


@dataclass(frozen=True, repr=False)
class ChannelSpace:
    """The ordered channel groups that the same producers make; named after the first of these producers.

    Attributes:
        name: Name of the space.
        verdicts: What may be done to each group.
        producers: Who makes the channels.
        consumers: Who reads them: the edges.
        bindings: Every axis of every parameter that has an entry for them.
        least: How many groups have to stay: two where the program did not follow with one in a trial.
    """

    name: str
    verdicts: tuple[Verdict, ...]
    producers: tuple[Producer, ...]
    consumers: tuple[Consumer, ...]
    bindings: tuple[AxisBinding, ...]
    least: int = 1

    def __repr__(self) -> str:
        counts = Counter(str(verdict.code or verdict.kind) for verdict in self.verdicts)
        verdicts = ", ".join(f"{count} {word}" for word, count in counts.items())
        makers = ", ".join(f"%{producer.node}" for producer in self.producers)
        readers = ", ".join(f"%{consumer.node}" for consumer in self.consumers) or "nothing"
        return f"ChannelSpace({self.name!r}: {verdicts}; made by {makers}; read by {readers})"

    @property
    def width(self) -> int:
        """Number of channel groups."""
        return len(self.verdicts)

    def verdict(self, index: int) -> Verdict:
        """Returns what may be done to group ``index``.

        Raises:
            MorphirError: if there is no such group.
        """
        at = whole_number(index)
        if at is None or not 0 <= at < self.width:
            raise MorphirError(
                f"space {self.name!r} has no channel group {index!r}",
                hint=f"its groups are numbered 0 to {self.width - 1}",
            )
        return self.verdicts[at]

    def binding(self, parameter: str, axis: int) -> AxisBinding | None:
        """Returns how the space binds one axis of one parameter, or None."""
        return next((b for b in self.bindings if b.parameter == parameter and b.axis == axis), None)


@dataclass(frozen=True)
class ValueLayout:
    """Where a space's channels lie in one value of the graph.

    Attributes:
        space: Name of the space.
        dim: Dimension of the value.
        groups: For every position along ``dim``, the group's index in the space, or -1.
    """

    space: str
    dim: int
    groups: Groups


@dataclass(frozen=True)
class Value:
    """One tensor that a node yields: its shape and dtype on the example inputs, and the channels in it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layouts: tuple[ValueLayout, ...] = ()

    def extents(self, copies: Copies) -> tuple[int, ...]:
        """Returns the shape after a rewrite.

        Args:
            copies: Space name to the number of copies of each of its groups (0 for a pruned one, 2 for a
                split one).
        """
        extents = list(self.shape)
        for layout in self.layouts:
            if layout.space in copies:
                extents[layout.dim] += layout.groups.added(copies[layout.space])
        return tuple(extents)

    def copies_along(self, dim: int, copies: Copies) -> list[int]:
        """Returns, for every position along ``dim``, how many positions a rewrite makes of it."""
        counts = np.ones(self.shape[dim], np.int64)
        for layout in self.layouts:
            if layout.dim == dim and layout.space in copies:
                counts[layout.groups.at] = np.asarray(copies[layout.space], np.int64)[layout.groups.held]
        return counts.tolist()


@dataclass(frozen=True)
class Product:
    """One convolution or matrix product: one multiply-accumulate at every point of an iteration space.

    Attributes:
        node: Name of the graph node that computes it.
        iteration: The iteration space, with the channels that lie along its dimensions.
    """

    node: str
    iteration: Value


@dataclass(frozen=True)
class Several:
    """Channels of which two have to stay: an operator would take a single one for something else.

    A grouped convolution of one channel for each group is depthwise; a PReLU's lone slope is all channels'.

    Attributes:
        node: Name of the graph node that needs them.
        groups: Space name to the groups; -1 are others'.
        others: How many channels belong to no space, as a model input's.
    """

    node: str
    groups: Mapping[str, Groups]
    others: int = 0

    def left(self, copies: Copies) -> int:
        """Returns how many channels a rewrite leaves, a group counted once for each of its copies."""
        held = sum(len(groups.held) for groups in self.groups.values())
        more = sum(groups.added(copies[name]) for name, groups in self.groups.items() if name in copies)
        return self.others + held + more


@dataclass(frozen=True)
class Limits:
    """What trial rewrites found that the labels do not tell.

    Attributes:
        verdicts: Space name to the verdict on all its groups, where the program did not follow.
        least: Space name to how many groups have to stay, where the program did not follow with fewer.
    """

    verdicts: Mapping[str, Verdict] = field(default_factory=dict[str, Verdict])
    least: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class ChannelLayer:
    """All that the analysis found about a graph.

    Attributes:
        spaces: Every channel space, in program order.
        values: Node name to each tensor that the node yields.
        products: Every convolution and matrix product that the program computes.
        several: What must not be pruned to a single channel.
    """

    spaces: Mapping[str, ChannelSpace]
    values: Mapping[str, tuple[Value, ...]]
    products: tuple[Product, ...] = ()
    several: tuple[Several, ...] = ()

    def extents(self, node: str, copies: Copies) -> tuple[int, ...] | None:
        """Returns the shape after a rewrite of the one tensor that a node yields; None for other nodes."""
        values = self.values.get(node, ())
        return values[0].extents(copies) if len(values) == 1 else None

    def touched_spaces(self) -> Mapping[str, frozenset[str]]:
        """Returns, for each node, the spaces whose channels it makes, holds or reads; no entry for none."""
        found: dict[str, set[str]] = {}
        for node, values in self.values.items():
            if held := {layout.space for value in values for layout in value.layouts}:
                found[node] = held
        for space in self.spaces.values():
            for use in (*space.producers, *space.consumers):
                found.setdefault(use.node, set()).add(space.name)
        return {node: frozenset(spaces) for node, spaces in found.items()}

    def in_dtype(self, dtype: torch.dtype) -> ChannelLayer:
        """Returns the same of a program whose floating-point values have another dtype."""
        values = {
            name: tuple(
                replace(value, dtype=dtype) if value.dtype.is_floating_point else value for value in items
            )
            for name, items in self.values.items()
        }
        return replace(self, values=values)

    def verdict_counts(self) -> Mapping[tuple[VerdictKind, str], int]:
        """Returns how many channel groups there are of each verdict, by kind and code; exact ones first."""
        verdicts = (verdict for space in self.spaces.values() for verdict in space.verdicts)
        counts: Counter[tuple[VerdictKind, str]] = Counter((v.kind, v.code) for v in verdicts)
        kinds = ("exact", "prune-only", "frozen")
        return dict(sorted(counts.items(), key=lambda item: (kinds.index(item[0][0]), item[0][1])))
