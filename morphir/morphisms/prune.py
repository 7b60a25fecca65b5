"""Prune (section 3.1): one channel is removed; what is scored (delta a = -a) is what is applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from morphir.ir.channels import VerdictKind
from morphir.morphisms.base import Child, Morphism


@dataclass(frozen=True)
class Prune(Morphism):
    """Removes one channel group."""

    kind: ClassVar[str] = "prune"
    done: ClassVar[str] = "pruned"
    children: ClassVar[tuple[Child, ...]] = ()
    allowed: ClassVar[tuple[VerdictKind, ...]] = ("exact", "prune-only")
