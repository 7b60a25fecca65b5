"""Modules that hold a number of channels among their options, and how it follows a rewrite.

Where a parameter or buffer tells the number, its new shape does; where none does (``nn.Unflatten``, norms
without an affine map), the value that the module yields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import fx, nn

from morphir.analysis.arguments import source_name
from morphir.analysis.labels import Facts, Labelled, compact, label_dims
from morphir.analysis.rules.operation import channel_vector
from morphir.ir.channels import ChannelLayer
from morphir.ir.index_map import Copies

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
BatchOrInstanceNorm = (
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
    if isinstance(module, nn.Bilinear):
        out, first, second = shapes["weight"]
        return {"out_features": out, "in1_features": first, "in2_features": second}
    if isinstance(module, BatchOrInstanceNorm):
        key = next((k for k in ("weight", "running_mean") if k in shapes), None)
        return {} if key is None else {"num_features": shapes[key][0]}
    if isinstance(module, nn.GroupNorm):
        return _group_norm_attributes(module, shapes["weight"][0]) if "weight" in shapes else {}
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


def _group_norm_attributes(module: nn.GroupNorm, channels: int) -> dict[str, Any]:
    """A norm of one group for each channel keeps one for each."""
    each = module.num_groups == module.num_channels
    return {"num_channels": channels, "num_groups": channels if each else module.num_groups}


@dataclass(frozen=True)
class _Held:
    """What a module without parameters holds of its output's shape.

    Attributes:
        dims: Module and rank of its output to the dimensions whose extents it holds.
        attributes: Module and new extents of its output to its new options.
    """

    dims: Callable[[Any, int], range]
    attributes: Callable[[Any, Sequence[int]], dict[str, Any]]


def _unflattened(module: nn.Unflatten, rank: int) -> range:
    sizes = len(module.unflattened_size)
    first = int(module.dim) % (rank - sizes + 1)
    return range(first, first + sizes)


def _unflattened_size(module: nn.Unflatten, shape: Sequence[int]) -> dict[str, Any]:
    dims = _unflattened(module, len(shape))
    sizes = cast("Sequence[int]", module.unflattened_size)
    fitted = tuple(-1 if size == -1 else shape[dim] for dim, size in zip(dims, sizes, strict=True))
    return {"unflattened_size": fitted}


def _normalised(module: nn.LayerNorm | nn.RMSNorm, rank: int) -> range:
    return range(rank - len(module.normalized_shape), rank)


def _normalised_shape(module: nn.LayerNorm | nn.RMSNorm, shape: Sequence[int]) -> dict[str, Any]:
    return {"normalized_shape": tuple(shape[-len(module.normalized_shape) :])}


_OF_SHAPE = _Held(_normalised, _normalised_shape)
_OF_CHANNELS = _Held(
    lambda _, __: range(1, 2), lambda module, shape: _group_norm_attributes(module, shape[1])
)
_OF_FEATURES = _Held(lambda _, __: range(1, 2), lambda _, shape: {"num_features": shape[1]})
_HELD: Mapping[type[nn.Module], _Held] = {
    nn.Unflatten: _Held(_unflattened, _unflattened_size),
    nn.LayerNorm: _OF_SHAPE,
    nn.RMSNorm: _OF_SHAPE,
    nn.GroupNorm: _OF_CHANNELS,
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _OF_FEATURES),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _OF_FEATURES),
}


def _held(module: nn.Module) -> _Held | None:
    holds_tensors = next(module.parameters(), next(module.buffers(), None)) is not None
    return None if holds_tensors else _HELD.get(type(module))


def constrain_module(node: fx.Node, module: nn.Module, labelled: Labelled, facts: Facts) -> None:
    """Ties the channels of all calls of a module that holds their number; freezes what cannot follow."""
    held = _held(module)
    if isinstance(module, _INSTANCE_NORMS):
        for layer in labelled[node.name][0].layers:
            facts.keep_several(compact(layer), node.name)
    if held is not None:
        for earlier in _earlier_calls(node):
            _tie_calls(node, earlier, held, module, labelled, facts)
    elif any(isinstance(part, nn.MultiheadAttention) for part in module.modules()):
        _freeze_attention(node, labelled, facts)
    elif isinstance(module, _PADDINGS):
        value = labelled[node.name][0]
        first = len(value.shape) - len(module.padding) // 2
        layers = [layer for layer in value.layers if max(label_dims(layer), default=-1) >= first]
        facts.restrict(layers, "frozen", "channel-pad", "padded by a module with fixed amounts", node.name)


def _freeze_attention(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """An attention module divides the channels that it reads and yields among its heads."""
    reason = "an attention module divides their number among its heads"
    for name in (node.name, *(source.name for source in node.all_input_nodes)):
        for value in labelled[name]:
            facts.restrict(value.layers, "frozen", "attention", reason, node.name)


_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
"""A single channel of theirs lies along the batch just as well."""
_PADDINGS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)


def _earlier_calls(node: fx.Node) -> Iterator[fx.Node]:
    for other in node.graph.nodes:
        if other is node:
            return
        if other.op == "call_module" and other.target == node.target:
            yield other


def _tie_calls(
    node: fx.Node, earlier: fx.Node, held: _Held, module: nn.Module, labelled: Labelled, facts: Facts
) -> None:
    here, there = labelled[node.name][0], labelled[earlier.name][0]
    mine, theirs = held.dims(module, len(here.shape)), held.dims(module, len(there.shape))
    for dim, other in zip(mine, theirs, strict=True):
        left = channel_vector(here.layers, dim, facts, node.name)
        right = channel_vector(there.layers, other, facts, node.name)
        if left is not None and right is not None:
            facts.tie(left, right, "shared-number", node.name)
        else:
            reason = "their number is held by a module that is also called on a value without channels"
            alone = [vector for vector in (left, right) if vector is not None]
            facts.restrict(alone, "frozen", "literal", reason, node.name)


def rewrite_modules(root: nn.Module, program: fx.Graph, layer: ChannelLayer, copies: Copies) -> None:
    """Sets the options of modules without parameters, for the channels that a rewrite leaves.

    Args:
        root: Holds the modules.
        program: The program that calls them.
        layer: The channel layer before the rewrite.
        copies: Space name to the number of copies of each of its groups.
    """
    for node in program.nodes:
        if node.op != "call_module" or not source_name(node):
            continue
        module = root.get_submodule(str(node.target))
        held = _held(module)
        if held is not None:
            (value,) = layer.values[node.name]
            new = value.extents(copies)
            if new != value.shape:
                for name, option in held.attributes(module, new).items():
                    setattr(module, name, option)
