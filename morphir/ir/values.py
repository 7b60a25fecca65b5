"""What programs return: tensors in tuples, lists, dicts and dataclasses, one inside the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree


def leaves(value: object) -> list[Any]:
    """Returns all that is in a value and is no collection, in order; dataclasses are looked into."""
    return list(_leaves(value))


def _leaves(value: object) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for item in cast("Mapping[object, object]", value).values():
            yield from _leaves(item)
    elif isinstance(value, (tuple, list)):
        for item in cast("tuple[object, ...]", value):
            yield from _leaves(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _leaves(getattr(value, field.name))
    elif pytree.tree_is_leaf(value):
        yield value
    else:
        yield from pytree.tree_leaves(value)


def tensors(value: object) -> list[torch.Tensor]:
    """Returns every tensor in a value, in order."""
    return [leaf for leaf in _leaves(value) if isinstance(leaf, torch.Tensor)]


def cloned(value: Any) -> Any:
    """Returns the same structure with every tensor copied: a program may write into its inputs."""
    return map_leaves(torch.Tensor.clone, value)


def map_leaves(function: Callable[[Any], Any], value: Any, kind: type = torch.Tensor) -> Any:
    """Returns the same structure with every leaf of one type replaced; dataclasses are looked into."""

    def visit(leaf: Any) -> Any:
        if isinstance(leaf, kind):
            return function(leaf)
        if not is_dataclass(leaf) or isinstance(leaf, type):
            return leaf
        twin = copy.copy(leaf)
        for field in fields(leaf):
            object.__setattr__(twin, field.name, map_leaves(function, getattr(leaf, field.name), kind))
        return twin

    return pytree.tree_map(visit, value, is_leaf=lambda leaf: isinstance(leaf, kind))
