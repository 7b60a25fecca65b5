"""Functions that a trace keeps whole (``torch.fx.wrap``), written out in exported source.

A function can be written out if all that it reads beside its arguments can be named in a file that imports
torch alone: torch's functions, constants, and functions of which the same is true.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from exporters.source.public_names import expression
from morphir.errors import ExportError

RESERVED = frozenset({"torch", "nn", "F", "math", "operator", "load"})


def inlined(function: Callable[..., Any]) -> dict[str, str]:
    """Returns name and source of a function, after those of the functions that it calls.

    Raises:
        ExportError: if it has no source, or reads something that exported source cannot name.
    """
    found: dict[str, str] = {}
    _inline(function, found, {})
    name = function.__name__
    return {**found, name: f"@torch.fx.wrap  # kept whole when this file is traced\n{found[name]}"}


def _inline(function: Callable[..., Any], found: dict[str, str], seen: dict[str, Callable[..., Any]]) -> None:
    name = function.__name__
    if name in RESERVED or seen.setdefault(name, function) is not function:
        raise refusal(function, f"the file gives the name {name!r} another meaning")
    tree = _parse(function)
    needed: list[Callable[..., Any]] = []
    written = ast.unparse(ast.fix_missing_locations(_Writer(function, tree, needed).visit(tree)))
    for dependency in needed:
        if seen.get(dependency.__name__) is not dependency:
            _inline(dependency, found, seen)
    found[name] = written


def _parse(function: Callable[..., Any]) -> ast.FunctionDef:
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, ValueError, SyntaxError) as error:
        raise refusal(function, "its source is not to be had") from error
    if not isinstance(tree, ast.FunctionDef):
        raise refusal(function, "it is not a plain function")
    return tree


class _Writer(ast.NodeTransformer):
    """Names what a function reads as exported source does, and leaves out annotations and decorators."""

    def __init__(
        self, function: Callable[..., Any], tree: ast.FunctionDef, needed: list[Callable[..., Any]]
    ) -> None:
        self.function = function
        self.outside = dict(_outside(function))
        self.bound = set(_bound(tree))
        self.needed = needed

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list, node.returns = [], None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        return self.generic_visit(ast.Assign([node.target], node.value))

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if not isinstance(node.ctx, ast.Load) or node.id in self.bound:
            return node
        if node.id not in self.outside:
            raise refusal(self.function, f"it reads {node.id}, which is not defined")
        value = self.outside[node.id]
        if (known := expression(value)) is not None:
            return ast.parse(known, mode="eval").body
        if not inspect.isfunction(value):
            raise refusal(self.function, f"it reads {node.id}, which is not torch's")
        self.needed.append(value)
        return ast.Name(value.__name__, ast.Load())


def _outside(function: Callable[..., Any]) -> Iterator[tuple[str, object]]:
    """Yields what a function's free names mean."""
    code = function.__code__
    yield from vars(builtins).items()
    yield from function.__globals__.items()
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        yield name, cell.cell_contents


def _bound(tree: ast.FunctionDef) -> Iterator[str]:
    """Yields every name that the function itself, or a function in it, gives a meaning."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef) and node is not tree:
            yield node.name


def refusal(function: Callable[..., Any], reason: str) -> ExportError:
    """Returns the error that says why a function cannot be written out."""
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}"
    return ExportError(
        f"{name} is not a function of torch, and exported source imports nothing else: {reason}",
        hint="write it with torch's functions; torch.fx.wrap hides what is inside from the trace",
    )
