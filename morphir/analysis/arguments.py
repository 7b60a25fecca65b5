"""Nodes as the user wrote them: what they call, and their arguments by position or by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx

VIEWS: tuple[Any, ...] = (
    *("view", "reshape", "expand", "broadcast_to"),
    *(torch.reshape, torch.Tensor.view, torch.broadcast_to),
)
"""Functions and methods that take the sizes of their result."""


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Returns an argument, whichever way it was passed."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def set_argument(node: fx.Node, position: int, name: str, value: Any) -> None:
    """Sets an argument the way it was passed; by name where it was not."""
    if len(node.args) > position:
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def source_name(node: fx.Node) -> str:
    """Returns the name of the node whose value is the first argument; empty where that is no node."""
    source = node.args[0] if node.args else node.kwargs.get("input")
    return source.name if isinstance(source, fx.Node) else ""


def size_arguments(node: fx.Node) -> tuple[list[Any], Callable[[list[Any]], None]]:
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
