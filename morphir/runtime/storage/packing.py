"""Nested state as a JSON skeleton and named tensors, so that it can be stored without pickle.

A tensor leaf becomes ``{"$tensor": name}``, with the path to it as name; tuples and dicts with keys other
than strings are marked, so that what comes back is what went in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

_PLAIN = (str, int, float, bool, type(None))


def pack(tree: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Splits nested dicts, lists and tuples into plain JSON data and tensors (copies, on the CPU)."""
    tensors: dict[str, torch.Tensor] = {}
    return _pack(tree, "", tensors), tensors


def _pack(node: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, torch.Tensor):
        name = path or "value"
        tensors[name] = node.detach().to("cpu", copy=True).contiguous()
        return {"$tensor": name}
    if isinstance(node, Mapping):
        items = cast("Mapping[Any, Any]", node).items()
        packed = [(key, _pack(value, _join(path, key), tensors)) for key, value in items]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in packed):
            return dict(packed)
        return {"$items": [[_pack(key, path, tensors), value] for key, value in packed]}
    if isinstance(node, tuple | list):
        values = cast("tuple[Any, ...] | list[Any]", node)
        listed = [_pack(value, _join(path, index), tensors) for index, value in enumerate(values)]
        return {"$tuple": listed} if isinstance(values, tuple) else listed
    if isinstance(node, _PLAIN):
        return node
    raise TypeError(f"{path}: a {type(node).__name__} cannot be stored")


def _join(path: str, key: object) -> str:
    return f"{path}/{key}" if path else str(key)


def unpack(skeleton: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Puts together what :func:`pack` took apart."""
    if isinstance(skeleton, list):
        return [unpack(item, tensors) for item in cast("list[Any]", skeleton)]
    if not isinstance(skeleton, dict):
        return skeleton
    node = cast("dict[str, Any]", skeleton)
    if "$tensor" in node:
        return tensors[node["$tensor"]]
    if "$tuple" in node:
        return tuple(unpack(item, tensors) for item in node["$tuple"])
    if "$items" in node:
        return {unpack(key, tensors): unpack(value, tensors) for key, value in node["$items"]}
    return {key: unpack(value, tensors) for key, value in node.items()}
