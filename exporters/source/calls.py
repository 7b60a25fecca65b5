"""The calls of the user's modules, found again in the flat program.

``torch.fx`` notes for every node the stack of modules whose forward was running. A :class:`Scope` is one such
call. Where a call cannot be written as a call again (it reaches outside its module, or two calls of one
module differ), it is dissolved into its caller, which is always correct.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, cast

from torch import fx
from torch.fx.node import map_arg

from morphir.ir.guards import guard

Frame = tuple[str, str]


@dataclass
class Scope:
    """One call of the module at ``path``: its nodes and the calls within it, in program order."""

    path: str
    items: list[fx.Node | Scope] = field(default_factory=list["fx.Node | Scope"])

    def nodes(self) -> Iterator[fx.Node]:
        """Yields every node that runs within the call."""
        for item in self.items:
            if isinstance(item, Scope):
                yield from item.nodes()
            else:
                yield item

    def scopes(self) -> Iterator[Scope]:
        """Yields the calls within, innermost first."""
        for item in self.items:
            if isinstance(item, Scope):
                yield from item.scopes()
                yield item

    def dissolve(self, inner: Scope) -> None:
        """Replaces the direct call ``inner`` by what it does."""
        at = next(i for i, item in enumerate(self.items) if item is inner)
        self.items[at : at + 1] = inner.items

    def results(self) -> list[fx.Node]:
        """Returns the nodes of this call that something outside of it reads, in program order."""
        inside = set(self.nodes())
        return [node for node in self.nodes() if any(user not in inside for user in node.users)]


def under(path: str, parent: str) -> bool:
    """Whether ``path`` lies below the module at ``parent``."""
    return parent == "" or path.startswith(f"{parent}.")


def call_tree(graph: fx.Graph) -> Scope:
    """Returns the whole program as the call of the model, with the calls of its modules inside."""
    nodes = [node for node in graph.nodes if node.op not in {"placeholder", "output", "get_attr"}]
    root = Scope("")
    stack: list[tuple[str, Scope]] = [("", root)]
    for node, frames in zip(nodes, _all_frames(nodes), strict=True):
        keys = ["", *(key for key, _ in frames)]
        shared = sum(1 for _ in takewhile(lambda pair: pair[0][0] == pair[1], zip(stack, keys, strict=False)))
        del stack[shared:]
        for key, path in frames[shared - 1 :]:
            scope = Scope(path)
            stack[-1][1].items.append(scope)
            stack.append((key, scope))
        stack[-1][1].items.append(node)
    return root


def _all_frames(nodes: Sequence[fx.Node]) -> list[list[Frame]]:
    """Returns each node's stack of calls; a node that a rewrite made runs where both its neighbours do."""
    known = [_frames(node) for node in nodes]
    before: list[Frame] = []
    filled: list[list[Frame]] = []
    for at, frames in enumerate(known):
        after = next((later for later in known[at:] if later is not None), list[Frame]())
        before = frames if frames is not None else _common(before, after)
        filled.append(before)
    return filled


def _common(left: list[Frame], right: list[Frame]) -> list[Frame]:
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))]


def _frames(node: fx.Node) -> list[Frame] | None:
    recorded = node.meta.get("nn_module_stack")
    if recorded is None:
        return [] if "source" in node.meta else None
    frames: list[Frame] = []
    for key, (path, _) in cast("dict[str, tuple[str, object]]", recorded).items():
        is_leaf = node.op == "call_module" and path == node.target
        if path and not is_leaf and under(path, frames[-1][1] if frames else ""):
            frames.append((key, path))
    return frames


def settle(root: Scope, is_writable: Callable[[Scope], bool]) -> None:
    """Dissolves every call that cannot be written as a call of its module.

    Args:
        root: The program; changed in place.
        is_writable: What else must hold of a call.
    """
    while (found := _unwritable(root, is_writable)) is not None:
        for parent in (*root.scopes(), root):
            for item in list(parent.items):
                if isinstance(item, Scope) and item.path == found:
                    parent.dissolve(item)


def _unwritable(root: Scope, is_writable: Callable[[Scope], bool]) -> str | None:
    forms: dict[str, object] = {}
    for scope in root.scopes():
        reaches_out = any(
            node.op == "call_module" and not under(str(node.target), scope.path) for node in scope.nodes()
        )
        if (
            reaches_out
            or not is_writable(scope)
            or forms.setdefault(scope.path, form := _form(scope)) != form
        ):
            return scope.path
    return None


def _form(scope: Scope) -> object:
    """Returns what the call does, with its values numbered, so that two calls compare."""
    numbers: dict[fx.Node, int] = {}

    def number(node: fx.Node) -> object:
        if node.op == "get_attr" and (node.target == "training" or under(str(node.target), scope.path)):
            return node.target
        return f"%{numbers.setdefault(node, len(numbers))}"

    form: list[object] = []
    for node in scope.nodes():
        # What a guard says beside its condition differs from call to call: it names the caller's values.
        args = node.args[:3] if node.target is guard else node.args
        arguments = map_arg((args, node.kwargs), cast("Any", number))
        form.append((node.op, node.target, repr(arguments), number(node)))
    return form
