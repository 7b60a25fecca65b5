"""``bisect``: the first action after which an oracle fails, in about log2(n) looks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from morphir.analysis.verify import verify_channels
from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.runtime.history.action import Action
from morphir.runtime.history.forward import Comparison, Inputs, compare, run_nodes, tolerance_of
from morphir.runtime.history.session import Session
from morphir.runtime.history.state import HistoryError

Oracle = Callable[[Graph], str | None]
"""Says in words what is wrong with a graph; None where nothing is."""


def verifier(graph: Graph) -> str | None:
    """The oracle that is the whole verifier: a fresh analysis has to find what the graph says of itself."""
    try:
        verify_channels(graph)
    except MorphirError as error:
        return str(error)
    return None


def maximum_difference(
    session: Session, tolerance: float | None = None, inputs: Inputs | None = None
) -> Oracle:
    """Returns the oracle that compares outputs with the start's.

    Rewrites that are meant to change the function (thetas, prunes) and training fail it too: give it a
    tolerance that tells them from a fault.

    Args:
        session: The session.
        tolerance: Largest relative difference; what rounding may do where None.
        inputs: Random ones, always the same, where None.
    """
    start = session.at(0, lambda graph: run_nodes(graph, inputs))
    limit = tolerance_of(session.graph) if tolerance is None else tolerance

    def oracle(graph: Graph) -> str | None:
        found = compare(start, run_nodes(graph, inputs), session.changed_spaces(0, session.position), limit)
        return None if found.relative <= limit else str(found)

    return oracle


def user_oracle(name: str, function: Callable[[Graph], object]) -> Oracle:
    """Returns the oracle that is a user's function of a copy of the graph.

    Args:
        name: What to call it in messages.
        function: Returns True or None where all is well, and False or a text that says what is wrong; or
            raises AssertionError.

    Raises:
        MorphirError: from the oracle, if the function raises something else, or returns something else.
    """

    def oracle(graph: Graph) -> str | None:
        try:
            found = function(copy.deepcopy(graph))
        except AssertionError as error:
            return f"{name}: {error}" if str(error) else f"{name} fails"
        except Exception as error:
            raise HistoryError(f"{name} raised {type(error).__name__}: {error}") from error
        if found is None or found is True:
            return None
        if found is False or isinstance(found, str):
            return f"{name} fails" if found is False else f"{name}: {found}"
        raise HistoryError(
            f"{name} returned {type(found).__name__}", hint="return True or None, or else False or a text"
        )

    return oracle


@dataclass(frozen=True)
class Bisection:
    """The first action after which an oracle fails.

    Attributes:
        action: The action; the oracle passes at the point before it.
        message: What the oracle says after it.
        looks: At how many points it was asked.
        comparison: What the graph computes after the action and before it.
    """

    action: Action
    message: str
    looks: int
    comparison: Comparison

    def __str__(self) -> str:
        before = self.action.number - 1
        return (
            f"passes at point {before}, fails at point {self.action.number} ({self.looks} looks)\n"
            f"  {self.action}\n  {self.message}\n  against point {before}: {self.comparison}"
        )


def bisect(session: Session, oracle: Oracle) -> Bisection:
    """Finds an action before which an oracle passes and after which it fails; the session stays where it is.

    It is the first such action where the oracle, once it fails, fails at all later points.

    Args:
        session: The session.
        oracle: Asked of the graph at some points.

    Raises:
        HistoryError: if the oracle fails at the start, or passes at the last point.
    """
    passing, failing, looks = 0, session.last, 2
    if (message := session.at(passing, oracle)) is not None:
        raise HistoryError(f"the oracle fails at the start already: {message}")
    message = session.at(failing, oracle)
    if message is None:
        raise HistoryError(f"the oracle passes at the last point, {failing}", hint="there is nothing to find")
    while failing - passing > 1:
        middle, looks = (passing + failing) // 2, looks + 1
        found = session.at(middle, oracle)
        if found is None:
            passing = middle
        else:
            failing, message = middle, found
    comparison = session.compare(passing, failing)
    return Bisection(session.actions[failing], message, looks, comparison)
