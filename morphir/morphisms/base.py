"""What a morphism declares: how often its group is kept, with which factors, and what it applies to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from morphir.errors import RewriteError
from morphir.ir.channels import ChannelSpace, VerdictKind
from morphir.ir.index_map import Theta


@dataclass(frozen=True)
class Child:
    """One of the groups that a morphism makes of its group.

    Attributes:
        scale: Factor on the consumers' columns.
        sign: Sign of theta on the producers' rows.
    """

    scale: float
    sign: int


@dataclass(frozen=True)
class Morphism:
    """A change of one channel group.

    A kind of morphism is a subclass that declares what follows here, with a pass that applies it
    (``passes.morph_channels``).

    Attributes:
        space: Name of the channel space.
        index: Index of the group in the space.
        kind: Its name, in remarks and messages.
        done: What was done to the group, once it is applied.
        children: The groups that the group becomes.
        allowed: The verdicts under which it is legal.
    """

    space: str
    index: int

    kind: ClassVar[str]
    done: ClassVar[str]
    children: ClassVar[tuple[Child, ...]]
    allowed: ClassVar[tuple[VerdictKind, ...]]

    @property
    def parameters(self) -> Theta | None:
        """The theta of the morphism; None where it has none, or where it is 0."""
        return None

    def check(self, space: ChannelSpace) -> None:
        """Raises :class:`RewriteError` if the group's verdict does not allow the morphism."""
        verdict = space.verdict(self.index)
        if verdict.kind not in self.allowed:
            raise RewriteError(
                f"cannot {self.kind} {self.space}[{self.index}]: it is {verdict.kind} ({verdict.reason})",
                node=verdict.node,
                source=verdict.source,
                hint=verdict.suggestion or "morphir.explain(graph, space, index) says what ties the group",
                code=verdict.code,
            )

    def __str__(self) -> str:
        return f"{self.kind} {self.space}[{self.index}]"
