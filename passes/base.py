"""What a pass is: a frozen dataclass whose fields are its options, applied through the one rewriter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from morphir.ir.index_map import IndexMap
from morphir.ir.remarks import Remark
from passes.rewriter import Rewriter


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    Attributes:
        index_maps: The index maps that it applied; empty if it changed no structure.
        remarks: What it has to say about each site.
    """

    index_maps: tuple[IndexMap, ...] = field(default=())
    remarks: tuple[Remark, ...] = field(default=())


class Pass(ABC):
    """A graph rewrite; subclasses are frozen dataclasses."""

    name: ClassVar[str]

    @abstractmethod
    def apply(self, rewriter: Rewriter) -> PassResult:
        """Changes ``rewriter.graph`` through the rewriter alone, and says what changed."""
