"""Scores in programs that write in place: the learner's copy of the program computes nothing in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphir.analysis.tracing import trace
from morphir.errors import MorphirError
from morphir.runtime.learning.learner import Learner

cross_entropy = partial(F.cross_entropy, reduction="none")


class OutOfPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.mid = nn.Conv2d(4, 5, 3, padding=1)
        self.head = nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        k = self.mid(self.stem(x).sigmoid())
        return self.head((k + k.tanh()).tanh().mean((2, 3)))


class Masked(OutOfPlace):
    """A mask by assignment beside the channels, and an assignment to places of the channels in a region."""

    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_zeros((x.size(2), x.size(3)))
        mask[2:, 1:] = 1
        mask[:2] = mask[2:4] * 2
        h = F.silu(self.stem(x)) * mask
        h[:, :, 3:5] = 0.5
        k = self.mid(h)
        k[..., -1] = k[..., 0].tanh()
        return self.head(F.silu(k).mean((2, 3)))


def test_q_is_the_derivative_of_the_summed_loss(check_scores: Callable[..., Any]) -> None:
    checked = check_scores(Masked().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64))
    assert checked.spaces == ("stem", "mid")
    assert checked.visible == checked.groups == 6


class InPlace(OutOfPlace):
    """In-place methods whose result is read under the name of what they overwrite."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h.sigmoid_()
        k = self.mid(h)
        k += k.tanh()
        k.tanh_()
        return self.head(k.mean((2, 3)))


def test_in_place_methods_learn_as_their_out_of_place_forms_do() -> None:
    torch.manual_seed(0)
    models = [OutOfPlace().double(), InPlace().double()]
    models[1].load_state_dict(models[0].state_dict())
    images, labels = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(10, (4,))
    states: list[Any] = []
    for model in models:
        learner = Learner(trace(model.eval(), images), cross_entropy, seed=3)
        for _ in range(3):
            learner.step(images, labels)
        assert not learner.refused
        states.append(
            [(score.morphism.space, score.morphism.index, score.delta_loss) for score in learner.scores()]
        )
    assert len(states[0]) == 18
    for one, other in zip(*states, strict=True):
        assert one[:2] == other[:2]
        assert one[2] == pytest.approx(other[2], rel=1e-9)


def through_a_view(h: Tensor) -> Tensor:
    h[:, :, 0].mul_(2)
    return h


def through_a_chunk(h: Tensor) -> Tensor:
    first, _ = h.chunk(2, 1)
    first.mul_(3)
    return h


def through_an_alias(h: Tensor) -> Tensor:
    h.view(h.shape).mul_(3)
    return h


def into_out(h: Tensor) -> Tensor:
    torch.mul(h, 2, out=h)
    return h


class Written(OutOfPlace):
    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mid(self.write(self.stem(x).tanh())).tanh().mean((2, 3)))


@pytest.mark.parametrize("write", [through_a_view, through_a_chunk, through_an_alias, into_out])
def test_writes_that_other_values_see_are_refused(write: Callable[[Tensor], Tensor]) -> None:
    graph = trace(Written(write).eval(), torch.randn(2, 3, 8, 8))
    with pytest.raises(MorphirError, match="cannot follow") as caught:
        Learner(graph, cross_entropy)
    line = write.__code__.co_firstlineno + (2 if write is through_a_chunk else 1)
    assert caught.value.node is not None
    assert f"test_assignments.py:{line}" in str(caught.value)
