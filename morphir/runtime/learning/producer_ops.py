"""A mixing operator as a function of its kernel, since ``delta = op(x, theta)`` is the same with another.

Convolutions and linear layers have rules of their own. Any other operator is its own rule: it is traced
again with theta in the kernel's place, ``delta = f(x, theta) - f(x, 0)``, which holds wherever y is linear
in the kernel.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx.node import map_arg
from torch.nn import functional

from morphir.ir.state import named_state
from morphir.runtime.learning.linear_ops import Convolution, module_apply
from morphir.runtime.learning.working_copy import WorkingCopy, only_input


@dataclass(frozen=True)
class LinearOp:
    """One use of a kernel.

    Attributes:
        sources: The nodes whose values it reads besides the kernel.
        apply: ``apply(kernel, *values)`` returns y without its bias.
        known: Whether y is known to be linear in the kernel; else this has to be tried.
        narrows: Whether some rows of the kernel make the same channels of y.
        kernel_gradient: ``kernel_gradient(kernel, gradient, *values)`` returns the derivative by the kernel;
            None where autograd has to find it.
    """

    sources: tuple[fx.Node, ...]
    apply: Callable[..., torch.Tensor]
    known: bool = True
    narrows: bool = True
    kernel_gradient: Callable[..., torch.Tensor] | None = None


def linear_op(work: WorkingCopy, node: fx.Node, kernel: torch.Tensor) -> LinearOp:
    """Returns what a mixing node computes as a function of one of its kernels.

    Args:
        work: The program.
        node: The mixing node.
        kernel: The parameter that it reads.
    """
    module = work.linear_leaf(node)
    if module is None:
        return _traced_function(work, node, kernel)
    source, apply = only_input(node), module_apply(module)
    if source is None or apply is None:
        return _traced_module(node, module, kernel)

    def call(theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return apply(x, theta, None)

    if not isinstance(apply, Convolution):
        return LinearOp((source,), call)
    convolution = apply

    def kernel_gradient(kernel: torch.Tensor, gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return convolution.kernel_gradient(x, kernel, gradient)

    return LinearOp((source,), call, kernel_gradient=kernel_gradient)


_WITH_BIAS: frozenset[Any] = frozenset(
    {
        functional.linear,
        functional.conv1d,
        functional.conv2d,
        functional.conv3d,
        functional.conv_transpose1d,
        functional.conv_transpose2d,
        functional.conv_transpose3d,
        torch.conv1d,
        torch.conv2d,
        torch.conv3d,
        torch.conv_transpose1d,
        torch.conv_transpose2d,
        torch.conv_transpose3d,
    }
)
_PRODUCTS: frozenset[Any] = frozenset(
    {
        torch.matmul,
        torch.mm,
        torch.bmm,
        torch.einsum,
        cast("Any", torch).tensordot,
        cast("Any", operator).matmul,
        "matmul",
        "mm",
        "bmm",
    }
)
_WITH_ADDEND: frozenset[Any] = frozenset(
    {torch.addmm, torch.baddbmm, torch.addbmm, "addmm", "baddbmm", "addbmm"}
)


def _traced_module(node: fx.Node, module: nn.Module, kernel: torch.Tensor) -> LinearOp:
    """A leaf module, called in any way: its own forward with another kernel."""
    name = next(name for name, tensor in named_state(module).items() if tensor is kernel)
    # As they are now: the node will read taps in their place.
    sources, arguments = tuple(node.all_input_nodes), (node.args, node.kwargs)

    def call(theta: torch.Tensor, *values: Any) -> torch.Tensor:
        given = dict(zip(sources, values, strict=True))
        args, kwargs = cast("tuple[Any, dict[str, Any]]", map_arg(cast("Any", arguments), given.__getitem__))
        return torch.func.functional_call(module, {name: theta}, args, kwargs, tie_weights=False)

    return LinearOp(sources, _without_constant(call), module_apply(module) is not None, narrows=False)


def _traced_function(work: WorkingCopy, node: fx.Node, kernel: torch.Tensor) -> LinearOp:
    """A function, with the views of the parameter that lead to its kernel."""
    roots = [n for n in work.module.graph.nodes if n.op == "get_attr" and work.attribute(n) is kernel]
    path = _path(work, roots, node)
    sources = list(dict.fromkeys(m for n in path for m in n.all_input_nodes if m not in {*roots, *path}))
    program, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    copied.update(dict.fromkeys(roots, program.placeholder("kernel")))
    copied.update({source: program.placeholder(source.name) for source in sources})
    for step in path:
        copied[step] = program.node_copy(step, copied.__getitem__)
    no_constant = _drop_bias(copied[node])
    program.output(copied[node])
    call = fx.GraphModule(work.module, program)
    return LinearOp(
        tuple(sources),
        call if no_constant else _without_constant(call),
        known=no_constant or node.target in _WITH_ADDEND,
        narrows=no_constant and len(path) == 1,
    )


def _path(work: WorkingCopy, roots: Sequence[fx.Node], node: fx.Node) -> list[fx.Node]:
    """Returns the nodes between the parameter and the operator, in program order, the operator last."""
    activations, reached = work.activations(), dict[fx.Node, None]()
    for step in work.module.graph.nodes:
        if step not in activations and any(n in roots or n in reached for n in step.all_input_nodes):
            reached[step] = None
    path, waiting = {node}, [node]
    while waiting:
        before = [n for n in waiting.pop().all_input_nodes if n in reached and n not in path]
        path.update(before)
        waiting.extend(before)
    return [step for step in work.module.graph.nodes if step in path]


def _drop_bias(node: fx.Node) -> bool:
    """Takes the bias out of a call, and returns whether nothing but the product with the kernel is left."""
    if node.target in _WITH_BIAS:
        if len(node.args) > 2:
            node.update_arg(2, None)
        elif "bias" in node.kwargs:
            node.update_kwarg("bias", None)
        return True
    return node.target in _PRODUCTS


def _without_constant(call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def apply(theta: torch.Tensor, *values: Any) -> torch.Tensor:
        return call(theta, *values) - call(torch.zeros_like(theta), *values).detach()

    return apply
