"""The user's module tree, read from the graph: what stands at each path, and how source reaches it."""

from __future__ import annotations

import keyword
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import torch
from torch import nn

from exporters.source.calls import under
from exporters.source.layers import is_layer
from morphir.ir.graph import Graph

Kind = Literal["layer", "list", "dict", "class"]
_LISTS = {"Sequential", "ModuleList", "ParameterList"}
_DICTS = {"ModuleDict", "ParameterDict"}


@dataclass(frozen=True)
class ModuleTree:
    """The modules of a graph under the user's paths and class names.

    Attributes:
        graph: The graph.
        called: Paths of the modules that the program calls.
    """

    graph: Graph
    called: frozenset[str] = frozenset()

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Every module by path; a module with two paths stands under the first.

        A module of functions alone (no layer, no parameter) is not in the graph, but its calls are.
        """
        return {**dict(self._named()), **self._stateless}

    def _named(self, *, every_path: bool = False) -> Iterator[tuple[str, nn.Module]]:
        return cast(
            "Iterator[tuple[str, nn.Module]]", self.graph.named_modules(remove_duplicate=not every_path)
        )

    @cached_property
    def _stateless(self) -> dict[str, nn.Module]:
        present = dict(self._named())
        return {path: nn.Module() for path in self.called if path and path not in present}

    @cached_property
    def _saved(self) -> frozenset[str]:
        return frozenset(self.graph.state_dict())

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for path in filter(None, self.modules):
            parent, _, name = path.rpartition(".")
            names.setdefault(parent, []).append(name)
        return names

    @cached_property
    def _order(self) -> dict[str, int]:
        return {path: at for at, path in enumerate(self.graph.module_types)}

    def type_name(self, path: str) -> str:
        """Returns the class name of a module in the user's model."""
        return self.graph.module_types.get(path, type(self.modules[path]).__name__)

    def kind(self, path: str) -> Kind:
        """Returns how a module is written: a torch.nn layer, a list or dict of modules, or a class."""
        module = self.modules[path]
        if path and is_layer(module):
            return "layer"
        name = self.type_name(path)
        holds_both = bool(self.tensors(path)) and bool(self.children(path))
        parameters_only = name.startswith("Parameter")
        if (
            path
            and name in _LISTS | _DICTS
            and not holds_both
            and parameters_only == bool(self.tensors(path))
        ):
            return "list" if name in _LISTS else "dict"
        return "class"

    def children(self, path: str) -> dict[str, str]:
        """Returns name to path of the modules right below ``path``, in the user's order."""
        names = list(self._names.get(path, ()))
        last = len(self._order)
        names.sort(key=lambda name: self._order.get(_join(path, name), last))
        if all(name.isdecimal() for name in names):
            names.sort(key=int)
        return {name: _join(path, name) for name in names}

    def tensors(self, path: str) -> dict[str, torch.Tensor]:
        """Returns the parameters and buffers that belong to the module itself."""
        module = self.modules[path]
        return {
            **dict(module.named_parameters(recurse=False, remove_duplicate=False)),
            **dict(module.named_buffers(recurse=False, remove_duplicate=False)),
        }

    def persistent(self, path: str, name: str) -> bool:
        """Whether a buffer is in the ``state_dict``."""
        return _join(path, name) in self._saved

    def indexed(self, path: str) -> bool:
        """Whether the children are reached by position."""
        if self.kind(path) == "list":
            return all(name.isdecimal() for name in (*self.children(path), *self.tensors(path)))
        names = self.children(path)
        return bool(names) and all(name.isdecimal() for name in names) and not self.tensors(path)

    def access(self, base: str, path: str) -> str:
        """Returns how a method of the module at ``base`` reaches ``path``: ``self.features[0]``."""
        text, at = "self", base
        for name in path.removeprefix(f"{base}." if base else "").split("."):
            text = self._step(text, at, name)
            at = _join(at, name)
        return text

    def _step(self, text: str, parent: str, name: str) -> str:
        if name.isdecimal() and self.indexed(parent):
            return f"{text}[{int(name)}]"
        if self.kind(parent) == "dict":
            return f'{text}["{name}"]'
        if is_attribute(name):
            return f"{text}.{name}"
        return f'getattr({text}, "{name}")'

    def classes(self) -> list[list[str]]:
        """Returns the paths of all classes by height: those that hold no other class first."""
        heights: dict[str, int] = {}
        for path in self._bottom_up(""):
            below = [heights[other] for other in heights if under(other, path)]
            if self.kind(path) == "class":
                heights[path] = max(below, default=-1) + 1
        ordered = [path for path in self._top_down("") if path in heights]
        levels = range(max(heights.values()) + 1)
        return [[path for path in ordered if heights[path] == level] for level in levels]

    def _bottom_up(self, path: str) -> Iterator[str]:
        for child in self._inner(path):
            yield from self._bottom_up(child)
        yield path

    def _top_down(self, path: str) -> Iterator[str]:
        yield path
        for child in self._inner(path):
            yield from self._top_down(child)

    def _inner(self, path: str) -> list[str]:
        return [] if self.kind(path) == "layer" else list(self.children(path).values())

    def layers(self) -> list[str]:
        """Returns the paths of all torch.nn layers, in the user's order."""
        return [path for path in self._top_down("") if self.kind(path) == "layer"]

    def aliases(self) -> dict[str, str]:
        """Returns further paths of modules and parameters that have several: later path to first path."""
        first: dict[int, str] = {}
        found: dict[str, str] = {}
        for path, module in self._named(every_path=True):
            if first.setdefault(id(module), path) != path:
                found[path] = first[id(module)]
        for path in self.modules:
            for name, tensor in self.tensors(path).items():
                full = _join(path, name)
                if first.setdefault(id(tensor), full) != full:
                    found[full] = first[id(tensor)]
        return {path: target for path, target in found.items() if not any(under(path, p) for p in found)}


def is_attribute(name: str) -> bool:
    """Whether ``self.<name>`` is valid and means the attribute of that name."""
    private = name.startswith("__") and not name.endswith("__")
    return name.isidentifier() and not keyword.iskeyword(name) and not private


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
