"""The learner runs programs with guards and with modules that are kept whole, and passes them over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphir.analysis.tracing import trace
from morphir.errors import GuardError, MorphirWarning
from morphir.runtime.learning.learner import Learner


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else x * 0.5


class Plain(nn.Module):
    """Neither asks anything nor holds what cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1)
        self.three = nn.Conv2d(4, 4, 3, padding=1)
        self.gate = Gate()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.one(F.pad(x, (0, 0, 0, 1))).relu(), 2)
        x = self.three(self.two(x).relu())
        return self.head(x.mean((2, 3)))


class Asking(Plain):
    """The same function of inputs with an odd height and a positive gate."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, 1))
        x = self.one(x).relu()
        while x.size(-1) > 4:
            x = F.max_pool2d(x, 2)
        x = self.three(self.two(x).relu())
        return self.head(x.mean((2, 3)) + self.gate(x.abs()).sum() * 0)


def test_scores_are_those_of_the_same_function_without_questions() -> None:
    images, targets = torch.randn(6, 3, 7, 8), torch.randint(0, 3, (6,))
    plain, asking = Plain(), Asking()
    asking.load_state_dict(plain.state_dict())
    with pytest.warns(MorphirWarning, match="Gate at 'gate'"):
        graph = trace(asking, images)
    learners = [Learner(g, F.cross_entropy) for g in (trace(plain, images), graph)]
    for learner in learners:
        torch.manual_seed(3)
        for _ in range(2):
            learner.step(images, targets)
    wanted, found = ({(str(s.morphism)): s.delta_loss for s in learner.scores()} for learner in learners)
    shared = [key for key in found if key.startswith("prune")]
    assert len(shared) >= 8
    for key in shared:
        if "Split" not in key:
            assert found[key] == pytest.approx(wanted[key], rel=1e-4, abs=1e-7)
    with pytest.raises(GuardError):
        learners[1].step(torch.randn(6, 3, 8, 8), targets)
