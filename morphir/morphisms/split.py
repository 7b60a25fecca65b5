"""Split (section 3.1): one channel with kernel w becomes two with w + theta and w - theta.

Both keep the region and its parameters, and each keeps the outgoing kernel halved, so that theta = 0 leaves
the function unchanged::

    1/2 sigma(y + delta) + 1/2 sigma(y - delta) = sigma(y)    at delta = 0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch

from morphir.errors import RewriteError
from morphir.ir.channels import ChannelSpace, VerdictKind
from morphir.ir.index_map import Theta
from morphir.morphisms.base import Child, Morphism


@dataclass(frozen=True)
class Split(Morphism):
    """Splits one channel group in two.

    Attributes:
        theta: Producer parameter key to theta, of one output channel's kernel's shape; where a group has m
            rows in a producer (grouped convolutions), ``[m, *kernel shape]`` in row order. None, or a missing
            key, is theta = 0.
    """

    theta: Theta | None = field(default=None, compare=False, repr=False)

    kind: ClassVar[str] = "split"
    done: ClassVar[str] = "split in two"
    children: ClassVar[tuple[Child, ...]] = (Child(0.5, +1), Child(0.5, -1))
    allowed: ClassVar[tuple[VerdictKind, ...]] = ("exact",)

    @property
    def parameters(self) -> Theta | None:
        """The split's theta."""
        return self.theta

    def check(self, space: ChannelSpace) -> None:
        """Checks the verdict, and that theta names producers of the space alone."""
        super().check(space)
        if not _is_theta(self.theta):
            raise RewriteError(
                f"{self}: theta is no dict of tensors",
                hint="theta is {producer parameter: tensor of one output channel's kernel}",
            )
        producers = {producer.parameter for producer in space.producers}
        unknown = set(self.theta or ()) - producers
        if unknown:
            raise RewriteError(
                f"{self}: theta names {', '.join(sorted(unknown))}, no producer of this space",
                hint=f"the space's producers are {', '.join(sorted(producers))}",
            )


def _is_theta(theta: object) -> bool:
    if theta is None:
        return True
    values = cast("Mapping[object, object]", theta).values() if isinstance(theta, Mapping) else (theta,)
    return isinstance(theta, Mapping) and all(isinstance(value, torch.Tensor) for value in values)
