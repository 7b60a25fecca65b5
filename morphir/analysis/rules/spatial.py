"""Operators over windows keep the channels; reductions keep what does not vary along what they reduce."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from morphir.analysis.labels import Facts, Layer, Layers, label_dims
from morphir.analysis.rules.operation import Operation, Outcome, along, channel_vector, rule


@rule(
    "max_pool1d",
    "avg_pool1d",
    "adaptive_avg_pool1d",
    "upsample_nearest1d",
    "upsample_linear1d",
    "reflection_pad1d",
)
@rule("replication_pad1d", "_upsample_nearest_exact1d", "max_pool1d_with_indices")
def window_1d(op: Operation, facts: Facts) -> Outcome:
    """One window dimension."""
    return _window(op, facts, 1)


@rule("max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d")
@rule("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d", "upsample_bicubic2d")
@rule("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "reflection_pad2d", "replication_pad2d")
@rule("fractional_max_pool2d", "adaptive_avg_pool2d")
def window_2d(op: Operation, facts: Facts) -> Outcome:
    """Two window dimensions."""
    return _window(op, facts, 2)


@rule(
    "max_pool3d_with_indices",
    "avg_pool3d",
    "_adaptive_avg_pool3d",
    "adaptive_max_pool3d",
    "upsample_nearest3d",
)
@rule("upsample_trilinear3d", "reflection_pad3d", "replication_pad3d", "_upsample_nearest_exact3d")
def window_3d(op: Operation, facts: Facts) -> Outcome:
    """Three window dimensions."""
    return _window(op, facts, 3)


def _window(op: Operation, facts: Facts, windows: int) -> Outcome:
    source = op.args[0]
    channel = source.dim() - windows - 1
    layers = op.layers_of(source)
    vector = channel_vector(layers, channel, facts, op.node)
    for layer in layers:
        if channel not in label_dims(layer):
            facts.restrict(
                (layer,), "frozen", "window-over-channels", "a window slides over these channels", op.node
            )
    return Outcome([(out, along(vector, channel, out.shape)) for out in op.tensor_outputs])


@rule(
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "var",
    "std",
    "var_mean",
    "prod",
    "logsumexp",
    "argmax",
    "argmin",
)
@rule("any", "all", "linalg_vector_norm", "norm", "nansum")
def reduction(op: Operation, facts: Facts) -> Outcome:
    """Reduces some dimensions away; over channels it mixes them, and a split would change what it yields."""
    source = op.args[0]
    if len([t for t in op.tensor_inputs if t.dim()]) > 1:
        return Outcome([(out, ()) for out in op.tensor_outputs])
    reduced = _dims(op.argument("dim"), source.dim())
    keepdim = bool(op.argument("keepdim", False))
    kept: list[Layer] = []
    for layer in op.layers_of(source):
        dims = set(label_dims(layer))
        if reduced & dims and dims - reduced:
            kept.append(_reduce(tied_across(layer, reduced, facts, op.node), reduced, keepdim))
        elif reduced & dims:
            facts.restrict(
                (layer,), "prune-only", "channel-reduction", f"{op.name} runs over the channels", op.node
            )
        else:
            kept.append(_reduce(layer, reduced, keepdim))
    return Outcome([(out, tuple(kept)) for out in op.tensor_outputs])


def _dims(dim: Any, rank: int) -> set[int]:
    if dim is None or dim == []:
        return set(range(rank))
    dims: list[int] = [dim] if isinstance(dim, int) else list(dim)
    return {d % rank for d in dims} if rank else set()


def _reduce(layer: Layer, reduced: set[int], keepdim: bool) -> Layer:
    index = (slice(0, 1) if keepdim else 0, slice(None))
    return layer[tuple(index[dim not in reduced] for dim in range(layer.dim()))]


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def softmax(op: Operation, facts: Facts) -> Outcome:
    """Softmax mixes what lies along its dimension."""
    source = op.args[0]
    dim = op.argument("dim") % source.dim()
    layers: Layers = op.layers_of(source)
    for layer in layers:
        if label_dims(layer) == (dim,):
            facts.restrict(
                (layer,), "prune-only", "channel-softmax", "a softmax runs over the channels", op.node
            )
        elif dim in label_dims(layer):
            tied_across(layer, {dim}, facts, op.node)
    return Outcome([(out, layers) for out in op.tensor_outputs])


def tied_across(layer: Layer, dims: Collection[int], facts: Facts, node: str) -> Layer:
    """Ties the channels along ``dims`` that share a place along the layer's other dimensions.

    They compete for one place (a maxout's candidates, the splits of a split attention): where all of them
    are doubled, each of the two places sees what the one saw.
    """
    first = layer[tuple(slice(0, 1) if d in dims else slice(None) for d in range(layer.dim()))]
    facts.tie(layer, first.expand(layer.shape), "same-place", node)
    return layer


@rule("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")
def scan(op: Operation, facts: Facts) -> Outcome:
    """What a scan yields at a channel depends on all channels before it."""
    source = op.args[0]
    dim = op.argument("dim") % max(source.dim(), 1)
    layers = op.layers_of(source)
    scanned = [layer for layer in layers if dim in label_dims(layer)]
    facts.restrict(scanned, "prune-only", "channel-scan", f"{op.name} runs over the channels", op.node)
    return Outcome([(out, layers) for out in op.tensor_outputs])
