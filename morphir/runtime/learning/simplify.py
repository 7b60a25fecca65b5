"""What a program may do in evaluation mode with frozen weights, and a training program may not.

Each simplification keeps the values of all nodes that consumers read.
"""

from __future__ import annotations

from math import prod

import torch
from torch import fx, nn
from torch.nn import functional

from morphir.ir.state import own_state
from morphir.runtime.learning.folded_norm import FoldedNorm
from morphir.runtime.learning.linear_ops import module_apply
from morphir.runtime.learning.working_copy import WorkingCopy, only_input

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_EXACT_DTYPES = frozenset({torch.float32, torch.float64})


def simplify(work: WorkingCopy) -> None:
    """Folds batch norms into the operators before them, and moves ReLUs behind max pooling."""
    _fold_norms(work)
    _pool_first(work)


def is_relu(work: WorkingCopy, node: fx.Node) -> bool:
    """Whether a node is a ReLU, as a module, a function or a method."""
    if node.op == "call_module":
        return type(work.leaf(node)) is nn.ReLU
    return node.target in {functional.relu, torch.relu, "relu"}


def _fold_norms(work: WorkingCopy) -> None:
    """Makes one operator of a linear operator and the batch norm after it."""
    for norm_node in list(work.module.graph.nodes):
        norm = work.leaf(norm_node)
        linear_node = norm_node.args[0] if norm_node.args else None
        if type(norm) not in _NORMS or not isinstance(linear_node, fx.Node) or len(linear_node.users) != 1:
            continue
        linear = work.leaf(linear_node)
        folded = None if linear is None or norm is None else _folded(work, linear_node, linear, norm)
        if folded is not None:
            _merge(work, linear_node, norm_node, folded)


def _folded(work: WorkingCopy, node: fx.Node, linear: nn.Module, norm: nn.Module) -> FoldedNorm | None:
    apply, kernel = module_apply(linear), own_state(linear).get("weight")
    running, values = own_state(norm).get("running_mean"), work.values.get(node, ())
    if apply is None or only_input(node) is None or kernel is None or running is None or len(values) != 1:
        return None
    out_axis = 1 if getattr(linear, "transposed", False) else 0
    channel_dim = len(values[0].shape) - 1 if isinstance(linear, nn.Linear) else 1
    fits = channel_dim == 1 and kernel.shape[out_axis] == running.numel() and kernel.dtype in _EXACT_DTYPES
    if not fits:
        return None
    # Channelwise kernels are small, and regions hold parts of them.
    scales_kernel = getattr(linear, "groups", 1) > 1 or kernel.numel() <= prod(values[0].shape)
    return FoldedNorm(apply, linear, norm, out_axis, scales_kernel=scales_kernel)


def _merge(work: WorkingCopy, linear_node: fx.Node, norm_node: fx.Node, folded: FoldedNorm) -> None:
    norm_node.args = linear_node.args
    work.replace(norm_node, folded)
    work.folded[norm_node] = folded
    for name, node in list(work.nodes.items()):
        if node is linear_node:
            work.nodes[name] = norm_node
    work.module.graph.erase_node(linear_node)


def _pool_first(work: WorkingCopy) -> None:
    """max(relu(x)) = relu(max(x)), with fewer elements to rectify."""
    for pool in list(work.module.graph.nodes):
        relu = pool.args[0] if pool.args else None
        if not isinstance(relu, fx.Node) or not is_relu(work, relu) or len(relu.users) != 1:
            continue
        module = work.leaf(pool)
        if isinstance(module, _MAX_POOLS) and not module.return_indices:
            _swap(work, relu, pool)


def _swap(work: WorkingCopy, relu: fx.Node, pool: fx.Node) -> None:
    pool.replace_all_uses_with(relu)
    pool.replace_input_with(relu, relu.all_input_nodes[0])
    relu.replace_input_with(relu.all_input_nodes[0], pool)
    pool.append(relu)
    pooled = next(name for name, node in work.nodes.items() if node is pool)
    # What the ReLU computed alone is nobody's value any more.
    for name in [name for name, node in work.nodes.items() if node is relu]:
        del work.nodes[name]
    work.nodes[pooled] = relu
    work.values[relu] = work.values[pool]
