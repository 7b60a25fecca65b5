"""Opaque calls: modules that cannot be traced, known by what they return on the example inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import fx

from morphir.ir.inputs import TensorSpec
from morphir.ir.source import SourceLocation
from morphir.ir.values import map_leaves


@dataclass(frozen=True)
class Failure:
    """Why a module is kept whole: what went wrong inside it, and where."""

    reason: str
    source: SourceLocation | None


def innermost_module(node: fx.Node) -> str:
    """Returns the path of the innermost module that a node was traced in; empty for the model itself."""
    if node.op == "call_module":
        return str(node.target)
    stack = list(cast("Mapping[str, tuple[str, object]]", node.meta.get("nn_module_stack", {})).values())
    return stack[-1][0] if stack else ""


def values_reason(error: BaseException) -> str:
    """Returns why shapes alone do not pass a node."""
    lines = str(error).strip().splitlines()
    return f"a shape or a number depends on tensor values ({lines[0] if lines else type(error).__name__})"


@dataclass(frozen=True)
class OpaqueCall:
    """One call of a module that is kept whole.

    Attributes:
        path: The module.
        failure: Why it could not be traced.
        result: What it returned on the example inputs, with a :class:`TensorSpec` for each tensor.
    """

    path: str
    failure: Failure
    result: Any

    @staticmethod
    def of(node: fx.Node, failure: Failure, result: Any) -> OpaqueCall:
        """Describes what a node returned."""
        return OpaqueCall(str(node.target), failure, map_leaves(TensorSpec.of, result))

    def in_dtype(self, dtype: torch.dtype) -> OpaqueCall:
        """Returns the same call with floating tensors of another dtype."""
        return replace(self, result=map_leaves(lambda spec: spec.in_dtype(dtype), self.result, TensorSpec))

    def materialise(self, device: torch.device) -> Any:
        """Returns uninitialised tensors in the result's structure (inside a fake mode: fake ones)."""
        return map_leaves(lambda spec: spec.empty(device), self.result, TensorSpec)
