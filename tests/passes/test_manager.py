"""The pass manager: a pass that does harm is named, and leaves none behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from morphir.analysis.tracing import trace
from morphir.errors import VerificationError
from morphir.ir.verify import verify
from passes.base import Pass, PassResult
from passes.manager import PassManager
from passes.rewriter import Rewriter


@dataclass(frozen=True)
class LeavesDisorder(Pass):
    """Loses what is known of the values, and says that all is well."""

    name: ClassVar[str] = "leave-disorder"

    def apply(self, rewriter: Rewriter) -> PassResult:
        rewriter.graph.attach(replace(rewriter.graph.channels, values={}))
        return PassResult(modified=True)


def test_a_pass_that_leaves_the_graph_inconsistent_is_named() -> None:
    graph = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(2, 3))
    with pytest.raises(VerificationError) as caught:
        PassManager((LeavesDisorder(),)).run(graph)
    expected = "the pass leave-disorder (LeavesDisorder) left the graph inconsistent: "
    assert caught.value.message.startswith(expected)
    assert "through its rewriter alone" in str(caught.value.hint)
    assert isinstance(caught.value.__cause__, VerificationError)
    verify(graph)
