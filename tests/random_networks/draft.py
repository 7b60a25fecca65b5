"""A network while it is being drawn: lines of ``__init__`` and ``forward`` as plain PyTorch source.

A drawn network *is* its source: what hypothesis prints is a class that can be pasted into a regression test,
and what is tested is that very class, compiled. Constructs append to a draft; each takes the value that it
works on, and returns the value that it makes.
"""

from __future__ import annotations

import linecache
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

BATCH = 3
Choice = TypeVar("Choice")

_TEMPLATE = """\
import torch
from torch import nn
from torch.nn import functional as F


class Drawn(nn.Module):  # example inputs: {inputs}
    def __init__(self):
        super().__init__()
{init}

    def forward(self, {parameters}):
{forward}
"""


@dataclass(frozen=True)
class Value:
    """A tensor of the network.

    Attributes:
        name: The variable in ``forward`` that holds it.
        shape: Its shape without the batch: channels, then positions (none for a vector).
    """

    name: str
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def space(self) -> tuple[int, ...]:
        return self.shape[1:]

    @property
    def rank(self) -> int:
        """Number of spatial dimensions."""
        return len(self.shape) - 1

    @property
    def positions(self) -> int:
        return torch.Size(self.space).numel()


@dataclass(frozen=True)
class Network:
    """A drawn network; prints as its source."""

    source: str
    inputs: tuple[tuple[int, ...], ...]
    constructs: tuple[str, ...]

    def build(self) -> nn.Module:
        """Compiles the source; weights are drawn from a fixed seed."""
        scope: dict[str, Any] = {}
        # A name that tracebacks and source locations can show; one file for each network that was drawn.
        filename = f"drawn_{abs(hash(self.source))}.py"
        linecache.cache[filename] = (len(self.source), None, self.source.splitlines(True), filename)
        exec(compile(self.source, filename, "exec"), scope)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return scope["Drawn"]()

    def examples(self) -> tuple[Tensor, ...]:
        """Returns example inputs."""
        generator = torch.Generator().manual_seed(0)
        return tuple(torch.randn((BATCH, *shape), generator=generator) for shape in self.inputs)

    @property
    def occurrences(self) -> Counter[str]:
        """How often each construct occurs."""
        return Counter(self.constructs)

    def __repr__(self) -> str:
        return f"\n{self.source}"


@dataclass
class Draft:
    """What was drawn so far.

    Attributes:
        draw: Hypothesis' draw.
        inputs: The network's inputs.
        values: Every value that later constructs may read again, oldest first.
    """

    draw: Callable[[st.SearchStrategy[Any]], Any]
    inputs: list[Value] = field(default_factory=list[Value])
    values: list[Value] = field(default_factory=list[Value])
    init: list[str] = field(default_factory=list[str])
    forward: list[str] = field(default_factory=list[str])
    constructs: list[str] = field(default_factory=list[str])

    def pick(self, choices: Sequence[Choice]) -> Choice:
        """Draws one of several; shrinks towards the first."""
        return self.draw(st.sampled_from(choices))

    def width(self) -> int:
        """Draws a number of channels."""
        return self.pick((4, 2, 6, 3, 8, 5, 1))

    def input(self, *shape: int) -> Value:
        """Adds an input of the network."""
        value = Value(f"x{len(self.inputs)}", shape)
        self.inputs.append(value)
        return value

    def part(self, kind: str, expression: str) -> str:
        """Adds an attribute of the network; returns the expression that reads it."""
        name = f"self.{kind}{sum(' = ' in line for line in self.init)}"
        self.init.append(f"{name} = {expression}")
        return name

    def parameter(self, *shape: int) -> str:
        """Adds a bare parameter."""
        return self.part("weight", f"nn.Parameter(torch.randn({', '.join(map(str, shape))}) * 0.5)")

    def line(self, expression: str, shape: Sequence[int]) -> Value:
        """Adds a line to ``forward``."""
        value = Value(f"v{len(self.forward)}", tuple(shape))
        self.forward.append(f"{value.name} = {expression}")
        return value

    def lines(self, expression: str, *shapes: Sequence[int]) -> list[Value]:
        """Adds a line that unpacks several values."""
        first = len(self.forward)
        made = [Value(f"v{first}_{at}", tuple(shape)) for at, shape in enumerate(shapes)]
        self.forward.append(f"{', '.join(value.name for value in made)} = {expression}")
        return made

    def alike(self, value: Value, *, space: bool = True, channels: bool = True) -> list[Value]:
        """Returns earlier values, inputs included, of the same positions and as many channels."""
        return [
            other
            for other in (*self.values, *self.inputs)
            if other.name != value.name
            and other.rank == value.rank
            and (not space or other.space == value.space)
            and (not channels or other.channels == value.channels)
        ]

    def finish(self, result: str) -> Network:
        """Returns the network that returns ``result``."""
        shapes = ", ".join(str((BATCH, *value.shape)) for value in self.inputs)
        source = _TEMPLATE.format(
            inputs=shapes,
            init="\n".join(f"        {line}" for line in self.init),
            parameters=", ".join(value.name for value in self.inputs),
            forward="\n".join(f"        {line}" for line in (*self.forward, f"return {result}")),
        )
        return Network(source, tuple(value.shape for value in self.inputs), tuple(self.constructs))
