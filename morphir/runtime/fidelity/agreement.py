"""How well estimates agree with the truth: error, slope and rank correlation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats


@dataclass(frozen=True)
class Agreement:
    """Estimates against the truth, over the morphisms of one kind in one space.

    Attributes:
        count: Number of morphisms.
        relative_error: Sum of absolute errors over the sum of absolute true changes.
        slope: Of the least-squares line through 0, estimate over truth; 1 is right.
        rank: Spearman's rank correlation; None for fewer than three, or where either side is constant.
    """

    count: int
    relative_error: float
    slope: float
    rank: float | None

    @staticmethod
    def of(estimates: Sequence[float], truth: Sequence[float]) -> Agreement:
        """Compares position by position; nan where the true changes are all 0."""
        found, true = np.asarray(estimates, np.float64), np.asarray(truth, np.float64)
        size, square = float(np.abs(true).sum()), float((true * true).sum())
        error = float(np.abs(found - true).sum())
        return Agreement(
            len(true),
            error / size if size else float("nan"),
            float((found * true).sum()) / square if square else float("nan"),
            _rank(found, true),
        )


def _rank(found: NDArray[np.float64], true: NDArray[np.float64]) -> float | None:
    if len(true) < 3 or np.ptp(found) == 0 or np.ptp(true) == 0:
        return None
    return float(cast("Any", stats).spearmanr(found, true).statistic)
