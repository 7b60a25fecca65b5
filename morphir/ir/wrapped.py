"""Functions of the user's that are one call of the program: ``torch.fx.wrap`` keeps them whole."""

from __future__ import annotations

from torch import fx

_LIBRARIES = frozenset(("torch", "morphir", "math", "operator", "_operator", "builtins"))


def is_users(function: object) -> bool:
    """Whether a function that the program calls is the user's own."""
    if isinstance(function, (str, type)):
        return False
    module: str = getattr(function, "__module__", None) or ""
    return module.split(".", 1)[0] not in _LIBRARIES


def is_wrapped(node: fx.Node) -> bool:
    """Whether a node calls a function of the user's that is kept whole."""
    return node.op == "call_function" and is_users(node.target)
