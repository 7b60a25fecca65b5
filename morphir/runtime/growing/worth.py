"""What a space's channels are worth for their price, and how much of it is therefore to be split.

A split's estimate is what it gains at once, with the weights as they are. In a network that has been trained
for a short time this says little of what width is worth once all is retrained: layers near the outputs gain
most at once, layers near the inputs are worth most (docs/growth.md). What the channels that are there are
worth is known from the prunes: the loss without them. Where widths are well chosen, a parameter is worth as
much in every space; spaces whose channels are worth less than the average for their price get fewer splits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import mean, median

from morphir.runtime.growing.selection import price
from morphir.runtime.learning.learner import Score


def shares_of_spaces(scores: Iterable[Score], prices: Mapping[str, float]) -> dict[str, float]:
    """Returns which part of its share of splits each space gets, from 0 to 1.

    It is the worth of the space's channels relative to the mean of all spaces: the median over its prunes of
    the loss that one costs for what it frees, priced, or in parameters where nothing has a price. Spaces
    without prunes are not listed.

    Args:
        scores: Scores of all morphisms; those of prunes are read.
        prices: Resource name to lambda.
    """
    worths: dict[str, list[float]] = {}
    for score in scores:
        freed = -price(score, prices) or -score.delta_parameters
        if score.morphism.kind == "prune" and freed > 0 and math.isfinite(score.delta_loss):
            worths.setdefault(score.morphism.space, []).append(score.delta_loss / freed)
    medians = {space: max(median(own), 0.0) for space, own in worths.items()}
    average = mean(medians.values()) if medians else 0.0
    return {space: min(own / average, 1.0) if average else 1.0 for space, own in medians.items()}
