"""Gradients that fx does not see: ``torch.no_grad`` blocks, and users' own ``autograd.Function``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.fx import proxy as fx_proxy

from morphir.ir.guards import guard


def detach_ungraded(
    program: fx.Graph, ungraded: Iterable[fx.Node], is_tensor: Callable[[fx.Node], bool]
) -> None:
    """Detaches what was computed under ``no_grad`` where the rest of the program reads it.

    Args:
        program: The program; changed in place.
        ungraded: The nodes that were traced under ``no_grad``.
        is_tensor: Whether a node yields a tensor.
    """
    for node, readers in _leaving(program, set(ungraded), is_tensor):
        with program.inserting_after(node):
            detached = program.call_method("detach", (node,))
        detached.meta.update(node.meta)
        for reader in readers:
            reader.replace_input_with(node, detached)


def _leaving(
    program: fx.Graph, ungraded: set[fx.Node], is_tensor: Callable[[fx.Node], bool]
) -> list[tuple[fx.Node, list[fx.Node]]]:
    """Returns the tensors computed under ``no_grad`` that others read, with these readers."""
    found: list[tuple[fx.Node, list[fx.Node]]] = []
    for node in program.nodes:
        if node not in ungraded or not _computes(node):
            continue
        readers = [user for user in node.users if user not in ungraded and user.target is not guard]
        if readers and is_tensor(node):
            found.append((node, readers))
        elif readers:
            ungraded.update(user for user in readers if user.target is operator.getitem)
    return found


def _computes(node: fx.Node) -> bool:
    """Whether a node makes a value of its own, and does not write into another's."""
    in_place = node.op == "call_method" and str(node.target).endswith("_")
    return node.op in {"call_function", "call_method", "call_module"} and not in_place


@contextmanager
def refused_custom_gradients() -> Generator[None]:
    """Refuses a user's ``autograd.Function`` on traced values: fx would lose its backward."""
    function: Any = torch.autograd.Function
    original = function.__dict__["apply"]

    def apply(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        if not cls.__module__.startswith("torch.") and any(isinstance(arg, fx.Proxy) for arg in args):
            raise fx_proxy.TraceError(f"{cls.__name__} has a gradient of its own, which a trace cannot hold")
        return original.__get__(None, cls)(*args, **kwargs)

    function.apply = classmethod(apply)
    try:
        yield
    finally:
        function.apply = original
