"""Literals in the program that hold a channel count: which constrain the channels, and how each is rewritten.

A view's size, a split's sizes, a slice's bounds, a norm's shape: numbers that the user wrote down. Each kind
is one small declaration here. A literal that lies on a labelled dimension and is of no kind known here
freezes the channels.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx
from torch.fx.node import map_arg
from torch.nn import functional

from morphir.analysis import cuts
from morphir.analysis.arguments import VIEWS, argument, set_argument, size_arguments, source_name
from morphir.analysis.labels import Facts, Labelled, compact, label_dims
from morphir.analysis.numbers import COUNTS_AS_NUMBERS, counts_channels_alone, evaluate
from morphir.analysis.rules.operation import channel_vector
from morphir.analysis.subscripts import (
    constrain_assignment,
    constrain_subscript,
    rewrite_subscript,
    subscript_taken,
)
from morphir.ir.channels import ChannelLayer, Value
from morphir.ir.index_map import Copies

Constrain = Callable[[fx.Node, Labelled, Facts], None]
Rewriter = Callable[[fx.Node, ChannelLayer, Copies], None]
Picks = Callable[[fx.Node, Value, Sequence[Value]], Iterable[cuts.Taken]]


def _nothing(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    del node, labelled, facts


def _unchanged(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    del node, layer, copies


def _all(node: fx.Node, value: Value, results: Sequence[Value]) -> Iterable[cuts.Taken]:
    del node, value, results
    return ()


@dataclass(frozen=True)
class LiteralRule:
    """One kind of literal.

    Attributes:
        targets: Functions and method names that take it.
        constrain: Adds the ties and restrictions that the literal demands.
        rewrite: Puts the literals that fit the rewritten channels into the node.
        picks: From the node, its input and what it yields to the positions that its literals take; nothing
            where it takes all of them in their order.
    """

    targets: tuple[Any, ...]
    constrain: Constrain = _nothing
    rewrite: Rewriter = _unchanged
    picks: Picks = _all

    def matches(self, node: fx.Node) -> bool:
        """Whether the node is of this kind."""
        return node.op in {"call_function", "call_method"} and node.target in self.targets


def constrain_literals(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """Adds what the node's literals demand of the channels that it yields."""
    for literal_rule in LITERALS:
        if literal_rule.matches(node):
            literal_rule.constrain(node, labelled, facts)


def rewrite_literals(graph: fx.Graph, layer: ChannelLayer, copies: Copies) -> None:
    """Rewrites every literal of a program in place, for the channels that a rewrite leaves.

    Args:
        graph: The program.
        layer: The channel layer before the rewrite.
        copies: Space name to the number of copies of each of its groups.
    """
    for node in graph.nodes:
        for literal_rule in LITERALS:
            if literal_rule.matches(node):
                literal_rule.rewrite(node, layer, copies)


def _new_shape(value: Value, copies: Copies) -> tuple[int, ...]:
    return value.extents(copies)


def _rewrite_sizes(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    """Sizes of a view, reshape or expand: each literal that is the output's extent becomes the new extent.

    So does a size that the program computes from numbers of channels alone and that does not follow them, as
    ``channels // heads`` does not where the heads stay as they are.
    """
    (value,) = layer.values[node.name]
    new = _new_shape(value, copies)
    sizes, set_sizes = size_arguments(node)
    if len(sizes) != len(value.shape):
        return

    numbers = _Numbers(layer, copies)
    fitted = [
        numbers.written_down(s, n) if isinstance(s, fx.Node) else n if s == o else s
        for s, o, n in zip(sizes, value.shape, new, strict=True)
    ]
    if fitted != sizes:
        set_sizes(fitted)


def _rewrite_numbers(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    """A number of channels alone in a tensor's arithmetic, which stays what it was."""
    if not layer.values[node.name]:
        return
    numbers = _Numbers(layer, copies)

    def written_down(source: fx.Node) -> Any:
        # What yields a tensor is no number.
        return source if layer.values[source.name] else numbers.written_down(source, numbers.before(source))

    node.args = map_arg(node.args, written_down)
    node.kwargs = map_arg(node.kwargs, written_down)


@dataclass(frozen=True)
class _Numbers:
    """What the numbers that a program computes from sizes are, before a rewrite and after it."""

    layer: ChannelLayer
    copies: Copies

    def before(self, item: object) -> Any:
        """Returns what a number is now; None where sizes alone do not tell."""
        return evaluate(item, lambda name: self.layer.extents(name, {}))

    def written_down(self, item: Any, wanted: Any) -> Any:
        """Returns a number as it has to be, if it counts channels alone and comes out otherwise."""

        def extents(name: str) -> Sequence[int] | None:
            return self.layer.extents(name, self.copies)

        is_as_wanted = wanted is None or evaluate(item, extents) == wanted
        return (
            item if is_as_wanted or not counts_channels_alone(item, extents, self._channel_dims) else wanted
        )

    def _channel_dims(self, name: str) -> set[int]:
        return {layout.dim for value in self.layer.values.get(name, ()) for layout in value.layouts}


def _tie_to_computed_size(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """Channels that a view lays along several dimensions grow along the one whose size is no literal."""
    (value,) = labelled[node.name]
    sizes, _ = size_arguments(node)
    if len(sizes) != len(value.shape):
        return
    computed = {dim for dim, size in enumerate(sizes) if not isinstance(size, int) or size < 0}
    for layer in value.layers:
        free = computed & set(label_dims(layer))
        if len(label_dims(layer)) > 1 and len(free) == 1:
            channel_vector([layer], free.pop(), facts, node.name, code="same-inner-index")


def _rewrite_unflatten(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    (value,) = layer.values[node.name]
    new = _new_shape(value, copies)
    dim = cast(int, argument(node, 1, "dim"))
    sizes = list(cast("Sequence[Any]", argument(node, 2, "sizes")))
    first = dim % (len(value.shape) - len(sizes) + 1)
    old_part, new_part = value.shape[first : first + len(sizes)], new[first : first + len(sizes)]
    fitted = tuple(n if s == o else s for s, o, n in zip(sizes, old_part, new_part, strict=True))
    set_argument(node, 2, "sizes", fitted)


def _rewrite_normalized_shape(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    shape = argument(node, 1, "normalized_shape")
    if isinstance(shape, (tuple, list)) and all(
        isinstance(size, int) for size in cast("list[object]", shape)
    ):
        new = _new_shape(layer.values[node.name][0], copies)
        set_argument(node, 1, "normalized_shape", new[len(new) - len(cast("list[int]", shape)) :])


def _rewrite_conv_groups(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    """A depthwise convolution has as many groups as its input has channels."""
    position = _CONV_GROUPS[node.target]
    groups, source = argument(node, position, "groups", 1), source_name(node)
    if not source or not isinstance(groups, int) or groups == 1:
        return
    (value,), weight = layer.values[source], argument(node, 1, "weight")
    kernel = layer.values[weight.name][0].shape if isinstance(weight, fx.Node) else ()
    channel = len(value.shape) - len(kernel) + 1
    if kernel and groups == value.shape[channel]:
        set_argument(node, position, "groups", _new_shape(value, copies)[channel])


def _rewrite_norm_groups(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    """A norm of one group for each channel keeps one for each."""
    (value,) = layer.values[node.name]
    if argument(node, 1, "num_groups") == value.shape[1]:
        set_argument(node, 1, "num_groups", _new_shape(value, copies)[1])


_CONV_GROUPS: dict[Any, int] = {
    functional.conv1d: 6,
    functional.conv2d: 6,
    functional.conv3d: 6,
    torch.conv1d: 6,
    torch.conv2d: 6,
    torch.conv3d: 6,
    functional.conv_transpose1d: 6,
    functional.conv_transpose2d: 6,
    functional.conv_transpose3d: 6,
}


def _frozen(code: str, reason: str) -> Constrain:
    def constrain(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
        for value in labelled[node.name]:
            facts.restrict(value.layers, "frozen", code, reason, node.name)

    return constrain


def _freeze_repeated(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """Freezes what lies beside copies of a value without channels: how many there are is not rewritten."""
    read = [compact(x) for value in labelled.get(source_name(node), ()) for x in value.layers]
    for value in labelled[node.name]:
        for layer in map(compact, value.layers):
            new = layer[~torch.isin(layer, torch.cat([x.reshape(-1) for x in read]))] if read else layer
            reason = "beside copies of a value that has no channels"
            facts.restrict((new,), "frozen", "meets-constant", reason, node.name)


def _keep_several(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """Einsum and instance norm lay a dimension of size 1 out in another way than others."""
    for other in (node, *node.all_input_nodes):
        for value in labelled[other.name]:
            for layer in value.layers:
                facts.keep_several(compact(layer), node.name)


LITERALS: tuple[LiteralRule, ...] = (
    LiteralRule(VIEWS, _tie_to_computed_size, _rewrite_sizes),
    LiteralRule(COUNTS_AS_NUMBERS, rewrite=_rewrite_numbers),
    LiteralRule(("unflatten", torch.unflatten), rewrite=_rewrite_unflatten),
    LiteralRule(("split", torch.split, "split_with_sizes"), _nothing, cuts.rewrite_split, cuts.pieces_taken),
    LiteralRule(("chunk", torch.chunk), cuts.tie_chunks, cuts.rewrite_chunk, cuts.pieces_taken),
    LiteralRule(
        ("tensor_split", torch.tensor_split), cuts.tie_chunks, cuts.rewrite_tensor_split, cuts.pieces_taken
    ),
    LiteralRule((operator.getitem,), constrain_subscript, rewrite_subscript, subscript_taken),
    LiteralRule((torch.einsum, functional.instance_norm), _keep_several),
    LiteralRule(("repeat_interleave", torch.repeat_interleave), _freeze_repeated),
    LiteralRule((operator.setitem,), constrain_assignment),
    LiteralRule(("narrow", torch.narrow), cuts.constrain_narrow, cuts.rewrite_narrow, cuts.narrow_taken),
    LiteralRule(("select", torch.select), cuts.constrain_select, cuts.rewrite_select),
    LiteralRule(("roll", torch.roll), cuts.constrain_roll, cuts.rewrite_roll, cuts.roll_taken),
    LiteralRule(
        ("index_select", torch.index_select),
        cuts.constrain_index_select,
        cuts.rewrite_index_select,
        cuts.index_select_taken,
    ),
    LiteralRule((functional.pad,), cuts.constrain_pad, cuts.rewrite_pad),
    LiteralRule(
        (
            functional.layer_norm,
            torch.layer_norm,
            torch.native_layer_norm,
            functional.rms_norm,
            torch.rms_norm,
        ),
        rewrite=_rewrite_normalized_shape,
    ),
    LiteralRule((functional.group_norm, torch.group_norm), rewrite=_rewrite_norm_groups),
    LiteralRule(tuple(_CONV_GROUPS), rewrite=_rewrite_conv_groups),
    LiteralRule(
        ("as_strided", torch.as_strided),
        _frozen("literal", "moved by literal positions that MorphIR does not rewrite"),
    ),
)
