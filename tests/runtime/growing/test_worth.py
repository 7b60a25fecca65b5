"""What spaces' channels are worth, reckoned by hand."""

from __future__ import annotations

import math

import pytest

from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.runtime.growing.worth import shares_of_spaces
from morphir.runtime.learning.learner import Score


def prune(space: str, index: int, delta_loss: float, parameters: int = 10, macs: int = 100) -> Score:
    return Score(Prune(space, index), delta_loss, -parameters, -macs)


SCORES = [
    *(prune("a", index, loss) for index, loss in enumerate((0.1, 9.0, 0.4, 0.3, -1.0))),  # median 0.3
    *(prune("b", index, loss, 20) for index, loss in enumerate((0.1, 0.3))),  # 0.2, for twice the parameters
    *(prune("c", index, -0.5) for index in range(3)),
    Score(Split("a", 0), -100.0, 10, 100),
]


def test_the_median_loss_for_a_parameter_relative_to_the_mean() -> None:
    mean = (0.03 + 0.01 + 0.0) / 3
    assert shares_of_spaces(SCORES, {}) == pytest.approx({"a": 1.0, "b": 0.01 / mean, "c": 0.0})


def test_for_the_price_where_there_is_one() -> None:
    """A MAC costs a twentieth of a parameter: 15 for a group of a, 25 for one of b."""
    mean = (0.3 / 15 + 0.2 / 25 + 0.0) / 3
    found = shares_of_spaces(SCORES, {"parameters": 1.0, "macs": 0.05})
    assert found == pytest.approx({"a": 1.0, "b": 0.2 / 25 / mean, "c": 0.0})


def test_what_cannot_be_told() -> None:
    assert shares_of_spaces([Score(Split("a", 0), -1.0, 10, 100)], {}) == {}
    assert shares_of_spaces([prune("a", 0, math.nan), prune("b", 0, 0.0)], {}) == {"b": 1.0}
    assert shares_of_spaces([prune("a", 0, 1.0, 0)], {}) == {}
