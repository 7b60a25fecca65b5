"""Literals in the program that hold a channel count: which constrain the channels, and how each is rewritten.

A view's size, a split's sizes, a slice's bounds, a norm's shape: numbers that the user wrote down. Each kind
is one small declaration here. A literal that lies on a labelled dimension and is of no kind known here
freezes the channels.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional

from morphir.analysis.labels import Facts, LabelledValue, label_dims
from morphir.analysis.rules.operation import channel_vector
from morphir.ir.channels import ChannelLayer, Value

Labelled = Mapping[str, Sequence[LabelledValue]]
Copies = Mapping[str, Sequence[int]]
Constrain = Callable[[fx.Node, Labelled, Facts], None]
Rewriter = Callable[[fx.Node, ChannelLayer, Copies], None]


def _nothing(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    del node, labelled, facts


def _unchanged(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    del node, layer, copies


@dataclass(frozen=True)
class LiteralRule:
    """One kind of literal.

    Attributes:
        targets: Functions and method names that take it.
        constrain: Adds the ties and restrictions that the literal demands.
        rewrite: Puts the literals that fit the rewritten channels into the node.
    """

    targets: tuple[Any, ...]
    constrain: Constrain = _nothing
    rewrite: Rewriter = _unchanged

    def matches(self, node: fx.Node) -> bool:
        """Whether the node is of this kind."""
        return node.op in {"call_function", "call_method"} and node.target in self.targets


def constrain_literals(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """Adds what the node's literals demand of the channels that it yields."""
    for literal_rule in LITERALS:
        if literal_rule.matches(node):
            literal_rule.constrain(node, labelled, facts)


def constrain_module(node: fx.Node, module: nn.Module, labelled: Labelled, facts: Facts) -> None:
    """Freezes the channels whose number a module holds among its options, where no parameter tells it."""
    reason = f"{type(module).__name__} holds a number of channels that MorphIR does not rewrite"
    for value in labelled[node.name]:
        held = [layer for layer in value.layers if _holds_number(module, len(value.shape), label_dims(layer))]
        facts.restrict(held, "frozen", "literal", reason, node.name)


def _holds_number(module: nn.Module, rank: int, dims: Sequence[int]) -> bool:
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and not module.elementwise_affine:
        return any(dim >= rank - len(module.normalized_shape) for dim in dims)
    return isinstance(module, (nn.Unflatten, nn.ChannelShuffle))


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
    """Sizes of a view, reshape or expand: each literal that is the output's extent becomes the new extent."""
    (value,) = layer.values[node.name]
    new = _new_shape(value, copies)
    sizes, set_sizes = _size_arguments(node)
    if len(sizes) == len(value.shape):
        set_sizes([n if s == o else s for s, o, n in zip(sizes, value.shape, new, strict=True)])


def _tie_to_computed_size(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """Channels that a view lays along several dimensions grow along the one whose size is no literal."""
    (value,) = labelled[node.name]
    sizes, _ = _size_arguments(node)
    if len(sizes) != len(value.shape):
        return
    computed = {dim for dim, size in enumerate(sizes) if not isinstance(size, int) or size < 0}
    for layer in value.layers:
        free = computed & set(label_dims(layer))
        if len(label_dims(layer)) > 1 and len(free) == 1:
            channel_vector([layer], free.pop(), facts, node.name, code="same-inner-index")


def _size_arguments(node: fx.Node) -> tuple[list[Any], Callable[[list[Any]], None]]:
    """Returns a node's sizes, given one by one or as a sequence, and a way to set them."""
    if len(node.args) > 1 and isinstance(node.args[1], (tuple, list)):
        return list(node.args[1]), lambda sizes: node.update_arg(1, tuple(sizes))
    for key in ("size", "shape"):
        if isinstance(node.kwargs.get(key), (tuple, list)):
            sizes = list(cast("Sequence[Any]", node.kwargs[key]))
            return sizes, lambda new, key=key: node.update_kwarg(key, tuple(new))

    def set_each(sizes: list[Any]) -> None:
        node.args = (node.args[0], *sizes)

    return list(node.args[1:]), set_each


def _rewrite_unflatten(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    (value,) = layer.values[node.name]
    new = _new_shape(value, copies)
    dim = cast(int, _argument(node, 1, "dim"))
    sizes = list(cast("Sequence[Any]", _argument(node, 2, "sizes")))
    first = dim % (len(value.shape) - len(sizes) + 1)
    old_part, new_part = value.shape[first : first + len(sizes)], new[first : first + len(sizes)]
    fitted = tuple(n if s == o else s for s, o, n in zip(sizes, old_part, new_part, strict=True))
    _set_argument(node, 2, "sizes", fitted)


def _rewrite_split(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    """A split's size becomes the list of the pieces' new sizes."""
    pieces = layer.values[node.name]
    dim = cast(int, _argument(node, 2, "dim", 0)) % len(pieces[0].shape)
    old, new = [p.shape[dim] for p in pieces], [_new_shape(p, copies)[dim] for p in pieces]
    if old != new:
        name = "split_size_or_sections" if node.target is torch.split else "split_size"
        _set_argument(node, 1, name, new)


def _tie_chunks(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """Equal chunks stay equal: the same inner index of every chunk goes together."""
    pieces = labelled[node.name]
    dim = cast(int, _argument(node, 2, "dim", 0)) % len(pieces[0].shape)
    vectors = [channel_vector(piece.layers, dim, facts, node.name) for piece in pieces]
    for vector in vectors[1:]:
        if vector is None or vectors[0] is None:
            continue
        if vector.shape == vectors[0].shape:
            facts.tie(vectors[0], vector, "equal-chunks", node.name)
        else:
            layers = [layer for piece in pieces for layer in piece.layers]
            facts.restrict(layers, "frozen", "unequal-chunks", "cut into chunks of unequal size", node.name)


@dataclass(frozen=True)
class _Subscript:
    """One item of a subscript: where it stands in the subscript, and the dimension that it indexes."""

    position: int
    dim: int
    item: Any

    @property
    def bounds(self) -> tuple[object, object, object] | None:
        """Start, stop and step of a slice; None for anything else."""
        item = self.item
        return (item.start, item.stop, item.step) if type(item) is slice else None

    @property
    def is_literal(self) -> bool:
        """Whether this is a slice of step 1 whose bounds are literals."""
        if self.bounds is None:
            return False
        start, stop, step = self.bounds
        return step in (None, 1) and all(isinstance(bound, (int, type(None))) for bound in (start, stop))


def _subscripts(node: fx.Node, rank: int) -> list[_Subscript]:
    """Returns the items of a subscript; none where it is more than slices and integers."""
    index = cast("tuple[object, ...]", node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],))
    if any(item is None or not isinstance(item, (slice, int, fx.Node, type(...))) for item in index):
        return []
    found: list[_Subscript] = []
    after_dots = False
    for position, item in enumerate(index):
        if item is ...:
            after_dots = True
        else:
            dim = rank - len(index) + position if after_dots else position
            found.append(_Subscript(position, dim, item))
    return found


def _subscripted(node: fx.Node) -> str | None:
    """Returns the name of the node whose one tensor is subscripted."""
    return node.args[0].name if isinstance(node.args[0], fx.Node) else None


def _constrain_subscript(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """A slice with bounds that the program computes, or with a step, does not follow a rewrite."""
    values = labelled.get(_subscripted(node) or "", ())
    if len(values) != 1:
        return
    for subscript in _subscripts(node, len(values[0].shape)):
        if not subscript.is_literal:
            layers = [layer for layer in values[0].layers if subscript.dim in label_dims(layer)]
            reason = "sliced in a way that does not follow"
            facts.restrict(layers, "frozen", "computed-slice", reason, node.name)


def _rewrite_subscript(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    values = layer.values.get(_subscripted(node) or "", ())
    if len(values) != 1:
        return
    items = list(node.args[1]) if isinstance(node.args[1], tuple) else [node.args[1]]
    for subscript in _subscripts(node, len(values[0].shape)):
        if subscript.is_literal:
            items[subscript.position] = _moved_slice(subscript, values[0], copies)
    node.update_arg(1, tuple(items) if isinstance(node.args[1], tuple) else items[0])


def _moved_slice(subscript: _Subscript, value: Value, copies: Copies) -> slice:
    """Moves the bounds of a slice with the channels that they separate."""
    weights = value.copies_along(subscript.dim, copies)
    item = cast("slice[int | None, int | None, int | None]", subscript.item)
    if weights == [1] * len(weights):
        return item
    start, stop, _ = item.indices(len(weights))
    moved_start = None if item.start is None else sum(weights[:start])
    moved_stop = None if item.stop is None else sum(weights[:stop])
    return slice(moved_start, moved_stop, item.step)


def _rewrite_normalized_shape(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    value = layer.values[node.name][0]
    shape = cast("Sequence[int]", _argument(node, 1, "normalized_shape"))
    new = _new_shape(value, copies)
    _set_argument(node, 1, "normalized_shape", tuple(new[len(new) - len(shape) :]))


def _rewrite_conv_groups(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    """A depthwise convolution has as many groups as its input has channels."""
    position = _CONV_GROUPS[node.target]
    groups, source = _argument(node, position, "groups", 1), node.args[0]
    if not isinstance(source, fx.Node) or not isinstance(groups, int) or groups == 1:
        return
    (value,), weight = layer.values[source.name], node.args[1]
    kernel = layer.values[weight.name][0].shape if isinstance(weight, fx.Node) else ()
    channel = len(value.shape) - len(kernel) + 1
    if kernel and groups == value.shape[channel]:
        _set_argument(node, position, "groups", _new_shape(value, copies)[channel])


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _set_argument(node: fx.Node, position: int, name: str, value: Any) -> None:
    if len(node.args) > position:
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


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


LITERALS: tuple[LiteralRule, ...] = (
    LiteralRule(
        ("view", "reshape", torch.reshape, "expand", torch.Tensor.view, "broadcast_to"),
        _tie_to_computed_size,
        _rewrite_sizes,
    ),
    LiteralRule(("unflatten", torch.unflatten), rewrite=_rewrite_unflatten),
    LiteralRule(("split", torch.split, "split_with_sizes"), rewrite=_rewrite_split),
    LiteralRule(("chunk", torch.chunk, "tensor_split", torch.tensor_split), _tie_chunks),
    LiteralRule((operator.getitem,), _constrain_subscript, _rewrite_subscript),
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
    LiteralRule(tuple(_CONV_GROUPS), rewrite=_rewrite_conv_groups),
    LiteralRule(
        (
            "narrow",
            torch.narrow,
            torch.channel_shuffle,
            torch.native_channel_shuffle,
            "roll",
            torch.roll,
            "repeat",
            "as_strided",
            torch.as_strided,
            "tile",
            torch.tile,
        ),
        _frozen("literal", "moved by literal positions that MorphIR does not rewrite"),
    ),
)


Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Norm = (
    nn.BatchNorm1d
    | nn.BatchNorm2d
    | nn.BatchNorm3d
    | nn.SyncBatchNorm
    | nn.InstanceNorm1d
    | nn.InstanceNorm2d
    | nn.InstanceNorm3d
)


def module_attributes(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Returns the attributes that a module's new parameter shapes demand.

    Args:
        module: A leaf module.
        shapes: The new shapes by the module's own parameter and buffer names.
    """
    if isinstance(module, Convolution):
        return _conv_attributes(module, shapes["weight"])
    if isinstance(module, nn.Linear):
        return {"out_features": shapes["weight"][0], "in_features": shapes["weight"][1]}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": shapes["weight"][0], "embedding_dim": shapes["weight"][1]}
    if isinstance(module, Norm):
        key = next((k for k in ("weight", "running_mean") if k in shapes), None)
        return {} if key is None else {"num_features": shapes[key][0]}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": shapes["weight"][0]} if "weight" in shapes else {}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return {"normalized_shape": shapes["weight"]} if "weight" in shapes else {}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": shapes["weight"][0]}
    return {}


def _conv_attributes(module: Convolution, shape: tuple[int, ...]) -> dict[str, Any]:
    per_group = module.in_channels // module.groups
    depthwise = module.groups > 1 and per_group == 1
    first, second = shape[0], shape[1]
    if module.transposed:
        groups = first if depthwise else module.groups
        return {"in_channels": first, "out_channels": second * groups, "groups": groups}
    multiplier = module.out_channels // module.in_channels
    groups = first // multiplier if depthwise else module.groups
    return {"in_channels": second * groups, "out_channels": first, "groups": groups}
