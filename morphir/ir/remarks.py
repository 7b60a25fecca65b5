"""Remarks: typed statements that a rewrite was applied, missed or refused, with the reason and the node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from morphir.ir.codes import suggestion_for
from morphir.ir.source import SourceLocation, located

RemarkKind = Literal["applied", "missed", "refused"]


@dataclass(frozen=True)
class Remark:
    """One statement about one site.

    Attributes:
        kind: ``"applied"``, ``"missed"`` (legal, but not done) or ``"refused"`` (not legal).
        code: Machine-readable, one of :data:`morphir.ir.codes.CODES`; tests and tools compare this, not the
            text.
        message: The same in words.
        space: Name of the channel space, if the remark is about one.
        index: Index of the channel group, if the remark is about one.
        node: Name of the node that is responsible.
        source: The user's line that made the node.
    """

    kind: RemarkKind
    code: str
    message: str
    space: str | None = None
    index: int | None = None
    node: str | None = None
    source: SourceLocation | None = None

    @property
    def suggestion(self) -> str:
        """What the user could do about it; empty where there is nothing to do."""
        return suggestion_for(self.code)

    def __str__(self) -> str:
        index = "" if self.index is None else f"[{self.index}]"
        site = "" if self.space is None else f" {self.space}{index}"
        hint = f"\n  hint: {self.suggestion}" if self.suggestion else ""
        return f"{self.kind}{site}: {self.message} [{self.code}]{located(self.node, self.source)}{hint}"

    def to_json(self) -> dict[str, Any]:
        """Returns the remark as plain data."""
        fields = ("kind", "code", "message", "space", "index", "node")
        source = str(self.source) if self.source else None
        plain = {name: getattr(self, name) for name in fields}
        return {**plain, "source": source, "suggestion": self.suggestion}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Remark:
        """Reads what :meth:`to_json` wrote; of the source's path the file's name is left."""
        plain = {name: data[name] for name in ("kind", "code", "message", "space", "index", "node")}
        source = None if data["source"] is None else SourceLocation.parse(data["source"])
        return Remark(**plain, source=source)
