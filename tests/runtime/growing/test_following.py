"""What the program cannot follow is left out with a typed remark, and the rest is applied."""

from __future__ import annotations

import torch
from torch import fx, nn

from morphir.analysis.spaces import analyse
from morphir.ir.graph import Graph
from morphir.ir.trace import trace_program
from morphir.morphisms.split import Split
from morphir.runtime.growing.following import leave_out_refused
from morphir.runtime.growing.selection import Selection
from morphir.runtime.learning.learner import Score
from passes.transform import transform


@fx.wrap
def halves_joined(x: torch.Tensor) -> torch.Tensor:
    """Kept whole by fx, so that nothing in it can be rewritten; follows an even number of channels alone."""
    return x.view(-1, 2 * (x.size(1) // 2))


class TwoConvolutions(nn.Module):
    """One more channel of the second convolution, and the view no longer fits."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, 4, 1)
        self.out = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(halves_joined(self.second(self.first(x).relu()).mean((2, 3))))


def untried() -> Graph:
    """The graph as the labels alone would have it: no trial has frozen the second convolution."""
    graph = trace_program(TwoConvolutions().eval(), torch.randn(2, 3, 5, 5))
    graph.attach(analyse(graph))
    return graph


def test_the_refused_space_is_left_out_and_said() -> None:
    graph = untried()
    scores = tuple(Score(Split(space, 1), -1.0, 1, 1) for space in ("first", "second"))
    selection = leave_out_refused(graph, Selection(scores, ()))
    assert [str(morphism) for morphism in selection.morphisms] == ["split first[1]"]
    (remark,) = selection.remarks
    assert (remark.kind, remark.code, remark.space, remark.node) == (
        *("refused", "does-not-follow"),
        *("second", "halves_joined"),
    )
    assert str(remark.source).startswith("test_following.py:") and remark.suggestion
    transform(graph, selection.morphisms)
    assert graph.spaces["first"].width == 5


def test_what_follows_is_left_as_it_is() -> None:
    graph = untried()
    selection = Selection((Score(Split("first", 0), -1.0, 1, 1),), ())
    assert leave_out_refused(graph, selection) is selection
