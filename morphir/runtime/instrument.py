"""A private copy of a graph's program to learn on: same modules and parameters, other wiring.

The copy runs in evaluation mode with frozen weights, which allows what a training program does not: batch norm is folded into
the operator before it (``W' = s W``), and nothing is computed in place, so that every value can be kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from morphir.ir.channels import Value
from morphir.ir.graph import Graph
from morphir.runtime.linear_ops import Apply, linear_op

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_EXACT_DTYPES = frozenset({torch.float32, torch.float64})


class FoldedNorm(nn.Module):
    """A linear operator followed by evaluation-mode batch norm, as one linear operator.

    Args:
        apply: The operator as a function of its kernel.
        linear: The module that owns the kernel.
        norm: The batch norm.
        out_axis: The kernel's axis of output channels.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    scale: torch.Tensor

    def __init__(self, apply: Apply, linear: nn.Module, norm: nn.Module, out_axis: int) -> None:
        super().__init__()
        # In a tuple, since the modules are the graph's and must not become submodules of this one.
        self.parts = (cast(Any, linear), cast(Any, norm))
        self.apply_kernel = apply
        self.scale_shape = [1] * cast(torch.Tensor, linear.weight).dim()
        self.scale_shape[out_axis] = -1
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Folds again, since the parameters or the running statistics may have been written to."""
        linear, norm = self.parts
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        shift = (
            -norm.running_mean * scale if linear.bias is None else (linear.bias - norm.running_mean) * scale
        )
        self.bias = shift if norm.bias is None else shift + norm.bias
        self.scale = scale.view(self.scale_shape)
        self.weight = linear.weight * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the normalised output."""
        return self.apply_kernel(x, self.weight, self.bias)


@dataclass(frozen=True)
class WorkingCopy:
    """The copied program, open for edits.

    Attributes:
        module: The program; shares modules and parameters with the graph.
        nodes: Node name in the graph to the node that computes its value now.
        values: What the analysis found about each node's value.
        folded: The folded operators.
    """

    module: fx.GraphModule
    nodes: dict[str, fx.Node]
    values: dict[fx.Node, tuple[Value, ...]]
    folded: dict[fx.Node, FoldedNorm]

    def leaf(self, node: fx.Node) -> nn.Module | None:
        """Returns the module that a ``call_module`` node calls."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def replace(self, node: fx.Node, module: nn.Module) -> None:
        """Makes a ``call_module`` node call another module."""
        path = f"_morphir_{node.name}"
        self.module.add_submodule(path, module)
        node.target = path


def working_copy(graph: Graph) -> WorkingCopy:
    """Copies a graph's program, with nothing computed in place and batch norms folded where that is exact."""
    program = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    output = program.graph_copy(graph.graph, copied)
    program.output(output)
    module = fx.GraphModule(graph, program)
    module.training = False
    originals = {new: old for old, new in copied.items()}
    # GraphModule takes over the graph that it is given, nodes included.
    nodes = {originals[node].name: node for node in module.graph.nodes if node in originals}
    values = {node: graph.channels.values.get(name, ()) for name, node in nodes.items()}
    work = WorkingCopy(module, nodes, values, {})
    _undo_in_place(work)
    _fold_norms(work)
    return work


def _undo_in_place(work: WorkingCopy) -> None:
    for node in list(work.module.graph.nodes):
        leaf = work.leaf(node)
        if leaf is not None and getattr(leaf, "inplace", False) is True:
            twin = copy.copy(leaf)
            twin.__dict__["inplace"] = False
            twin.training = False
            work.replace(node, twin)
            _follow_writes(node)
        elif node.kwargs.get("inplace") is True:
            node.update_kwarg("inplace", False)
            _follow_writes(node)
        elif (pure := _pure_form(node)) is not None:
            node.target = pure
            _follow_writes(node)


def _pure_form(node: fx.Node) -> str | Callable[..., Any] | None:
    """Returns the out-of-place form of ``add_`` and the like."""
    if node.op == "call_method":
        name = str(node.target)
        pure = name.removesuffix("_")
        return (
            pure if name.endswith("_") and not name.endswith("__") and hasattr(torch.Tensor, pure) else None
        )
    if node.op == "call_function" and not isinstance(node.target, str):
        name = getattr(node.target, "__name__", "")
        home = torch if getattr(torch, name, None) is node.target else torch.nn.functional
        if name.endswith("_") and getattr(home, name, None) is node.target:
            return getattr(home, name.removesuffix("_"), None)
    return None


def _follow_writes(node: fx.Node) -> None:
    """Whoever read the overwritten value after the write now reads what was written."""
    written = node.args[0] if node.args else node.kwargs.get("input")
    if isinstance(written, fx.Node):
        written.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node and node < user)


def _fold_norms(work: WorkingCopy) -> None:
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
    op, kernel = linear_op(node, linear), linear._parameters.get("weight")
    running, values = norm._buffers.get("running_mean"), work.values.get(node, ())
    if op is None or kernel is None or running is None or len(values) != 1:
        return None
    out_axis = 1 if getattr(linear, "transposed", False) else 0
    channel_dim = len(values[0].shape) - 1 if isinstance(linear, nn.Linear) else 1
    fits = channel_dim == 1 and kernel.shape[out_axis] == running.numel() and kernel.dtype in _EXACT_DTYPES
    return FoldedNorm(op.apply, linear, norm, out_axis) if fits else None


def _merge(work: WorkingCopy, linear_node: fx.Node, norm_node: fx.Node, folded: FoldedNorm) -> None:
    norm_node.args = linear_node.args
    work.replace(norm_node, folded)
    work.folded[norm_node] = folded
    for name, node in list(work.nodes.items()):
        if node is linear_node:
            work.nodes[name] = norm_node
    work.module.graph.erase_node(linear_node)
