"""The table of constructs: each is one function from a value to a value, registered with what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from random_networks.draft import Draft, Value

Build = Callable[[Draft, Value], Value]
Fits = Callable[[Draft, Value], bool]


@dataclass(frozen=True)
class Construct:
    """One construct.

    Attributes:
        build: Appends it to a draft; returns what it yields.
        fits: Whether it can work on a value.
    """

    build: Build
    fits: Fits


CONSTRUCTS: dict[str, Construct] = {}


def construct(fits: Fits = lambda draft, value: True) -> Callable[[Build], Build]:
    """Registers a construct under its function's name."""

    def register(build: Build) -> Build:
        CONSTRUCTS[build.__name__] = Construct(build, fits)
        return build

    return register


def maps(draft: Draft, value: Value) -> bool:
    """Fits values that have positions."""
    return value.rank > 0


def images(draft: Draft, value: Value) -> bool:
    """Fits two-dimensional maps."""
    return value.rank == 2


def vectors(draft: Draft, value: Value) -> bool:
    """Fits values that have no positions."""
    return value.rank == 0


def even(draft: Draft, value: Value) -> bool:
    """Fits values of an even number of channels."""
    return value.channels % 2 == 0


def several(draft: Draft, value: Value) -> bool:
    """Fits values of more than one channel."""
    return value.channels > 1


def both(*conditions: Fits) -> Fits:
    """Fits what all conditions fit."""
    return lambda draft, value: all(condition(draft, value) for condition in conditions)


def dims(value: Value) -> str:
    """Returns the positions' extents as they are written in a size, with a leading comma."""
    return "".join(f", {extent}" for extent in value.space)
