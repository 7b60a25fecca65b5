"""Opaque calls: modules that cannot be traced, known by what they return on the example inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

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
