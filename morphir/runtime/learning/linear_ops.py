"""A mixing operator as a function of its kernel, since ``delta = op(x, theta)`` is the same with another.

A table of leaf modules and one of functions; an operator in neither has no theta, and its space no splits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional

Apply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class LinearOp:
    """One use of a kernel.

    Attributes:
        source: The node whose value is x.
        apply: ``apply(x, kernel, bias)``.
    """

    source: fx.Node
    apply: Apply


def linear_op(node: fx.Node, module: nn.Module | None) -> LinearOp | None:
    """Returns what a node computes as a function of its kernel, or None where this is not known.

    Args:
        node: The mixing node.
        module: The leaf module that a ``call_module`` node calls.
    """
    source = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(source, fx.Node):
        return None
    if module is not None:
        apply = _module_apply(module) if len(node.args) + len(node.kwargs) == 1 else None
    else:
        apply = _function_apply(node)
    return None if apply is None else LinearOp(source, apply)


def _module_apply(module: nn.Module) -> Apply | None:
    for kind, make in _MODULES:
        if isinstance(module, kind):
            return make(module)
    return None


def _convolution(module: Any) -> Apply:
    return module._conv_forward


def _transposed(function: Callable[..., torch.Tensor]) -> Callable[[Any], Apply]:
    def make(module: Any) -> Apply:
        def apply(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            return function(
                x,
                kernel,
                bias,
                module.stride,
                module.padding,
                module.output_padding,
                module.groups,
                module.dilation,
            )

        return apply

    return make


def _linear(module: Any) -> Apply:
    del module
    return functional.linear


_MODULES: tuple[tuple[type[nn.Module], Callable[[Any], Apply]], ...] = (
    (nn.ConvTranspose1d, _transposed(functional.conv_transpose1d)),
    (nn.ConvTranspose2d, _transposed(functional.conv_transpose2d)),
    (nn.ConvTranspose3d, _transposed(functional.conv_transpose3d)),
    (nn.Conv1d, _convolution),
    (nn.Conv2d, _convolution),
    (nn.Conv3d, _convolution),
    (nn.Linear, _linear),
)

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
    }
)
_PRODUCTS: frozenset[Any] = frozenset(
    {torch.matmul, torch.mm, torch.bmm, cast("Any", operator).matmul, "matmul", "mm", "bmm"}
)


def _function_apply(node: fx.Node) -> Apply | None:
    """Functional forms, where the kernel is a parameter that the node reads directly."""
    kernel = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight", node.kwargs.get("other"))
    if not (isinstance(kernel, fx.Node) and kernel.op == "get_attr"):
        return None
    if node.target in _PRODUCTS:
        return _matmul
    if node.target not in _WITH_BIAS:
        return None
    settings = node.args[3:], {k: v for k, v in node.kwargs.items() if k not in {"input", "weight", "bias"}}
    if any(isinstance(value, fx.Node) for value in (*settings[0], *settings[1].values())):
        return None
    function = cast("Callable[..., torch.Tensor]", node.target)

    def apply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return function(x, weight, bias, *settings[0], **settings[1])

    return apply


def _matmul(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    assert bias is None
    return torch.matmul(x, kernel)
