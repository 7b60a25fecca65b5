"""Operators that treat blocks of channels as one: shuffles, unfolded windows, gated halves.

Each says what belongs together, and where it goes, by itself: the labels that it would leave when run on
labels say less once a block is alone.
"""

from __future__ import annotations

import torch

from morphir.analysis.labels import Facts, label_dims
from morphir.analysis.rules.operation import Operation, Outcome, along, channel_vector, rule


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(op: Operation, facts: Facts) -> Outcome:
    """``[N, groups * C, ...]``: the same inner index of every group goes together."""
    layers = op.layers_of(op.args[0])
    vector = channel_vector(layers, 1, facts, op.node)
    others = tuple(layer for layer in layers if 1 not in label_dims(layer))
    if vector is not None:
        by_group = vector.reshape(op.argument("groups"), -1)
        facts.tie(by_group, by_group[:1].expand_as(by_group), "same-inner-index", op.node)
        vector = by_group.t().reshape(-1)
    return Outcome([(op.result, (*along(vector, 1, op.result.shape), *others))])


@rule("pixel_shuffle")
def pixel_shuffle(op: Operation, facts: Facts) -> Outcome:
    """``[N, C * r * r, H, W]`` to ``[N, C, H * r, W * r]``: each block of r * r becomes one channel."""
    return _joined(op, op.argument("upscale_factor") ** 2, op.args[0].dim() - 3, op.args[0].dim() - 3, facts)


@rule("pixel_unshuffle")
def pixel_unshuffle(op: Operation, facts: Facts) -> Outcome:
    """``[N, C, H * r, W * r]`` to ``[N, C * r * r, H, W]``: each channel becomes a block."""
    channel = op.args[0].dim() - 3
    return _parted(op, op.argument("downscale_factor") ** 2, channel, channel, facts)


@rule("im2col")
def unfold_windows(op: Operation, facts: Facts) -> Outcome:
    """``[N, C, H, W]`` to ``[N, C * window, positions]``."""
    window = int(torch.tensor(op.argument("kernel_size")).prod())
    return _parted(op, window, op.args[0].dim() - 3, op.result.dim() - 2, facts)


@rule("col2im")
def fold_windows(op: Operation, facts: Facts) -> Outcome:
    """``[N, C * window, positions]`` to ``[N, C, H, W]``."""
    window = int(torch.tensor(op.argument("kernel_size")).prod())
    return _joined(op, window, op.args[0].dim() - 2, op.result.dim() - 3, facts)


@rule("glu")
def gated_halves(op: Operation, facts: Facts) -> Outcome:
    """``a * sigmoid(b)`` of two halves: the same index of both goes together."""
    dim = op.argument("dim", -1) % op.result.dim()
    for layer in op.layers_of(op.args[0]):
        if dim in label_dims(layer):
            first, second = layer.chunk(2, dim)
            facts.tie(first, second, "equal-chunks", op.node)
    extent = op.result.shape[dim]
    return Outcome([(op.result, tuple(x.narrow(dim, 0, extent) for x in op.layers_of(op.args[0])))])


def _joined(op: Operation, block: int, channel: int, out_channel: int, facts: Facts) -> Outcome:
    """Ties each block of channels, which becomes one."""
    vector = _own_channels(op, channel, facts)
    if vector is not None:
        blocks = vector.reshape(-1, block)
        facts.tie(blocks, blocks[:, :1].expand_as(blocks), "same-block", op.node)
        vector = blocks[:, 0]
    return Outcome([(op.result, along(vector, out_channel, op.result.shape))])


def _parted(op: Operation, block: int, channel: int, out_channel: int, facts: Facts) -> Outcome:
    """Repeats each channel, which becomes a block."""
    vector = _own_channels(op, channel, facts)
    repeated = None if vector is None else vector.repeat_interleave(block)
    return Outcome([(op.result, along(repeated, out_channel, op.result.shape))])


def _own_channels(op: Operation, channel: int, facts: Facts) -> torch.Tensor | None:
    """Returns the labels along the channel dimension; freezes those along the windows' dimensions."""
    layers = op.layers_of(op.args[0])
    across = [layer for layer in layers if channel not in label_dims(layer)]
    reason = "a window slides over these channels"
    facts.restrict(across, "frozen", "window-over-channels", reason, op.node)
    return channel_vector(layers, channel, facts, op.node)
