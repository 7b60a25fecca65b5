"""One numbered change of a graph, and its line in ``actions.jsonl``.

Point 0 is the start; point n is the graph as action n left it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from morphir.ir.index_map import Rewrite
from morphir.ir.remarks import Remark

ActionKind = Literal["start", "rewrite", "program", "weights", "remarks"]


@dataclass(frozen=True)
class Action:
    """What happened between two points.

    Attributes:
        number: Counts from 1; 0 is the start.
        kind: ``"rewrite"`` (index maps), ``"program"`` (nodes were erased), ``"weights"`` (values alone:
            training, batch norm), or ``"remarks"`` (a pass changed nothing, and says why).
        name: The pass; ``training`` for what happened outside of passes.
        program: Digest of the textual IR afterwards.
        state: Digest of all parameters and buffers afterwards.
        rewrite: Of a rewrite: its index maps, without thetas.
        nodes: Names of the nodes that a rewrite touches, or that were erased.
        difference: Of a rewrite: what it changed in the textual IR, the lines of a unified difference.
        tensors: Of ``"weights"``: keys of the tensors that changed.
        kept: Whether the values needed to restore the point are stored.
        remarks: What the pass says about it.
        seconds: Wall time of a rewrite or pass.
        phase: Of the growth run.
    """

    number: int
    kind: ActionKind
    name: str
    program: str
    state: str
    rewrite: Rewrite | None = None
    nodes: tuple[str, ...] = ()
    difference: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    kept: bool = True
    remarks: tuple[Remark, ...] = ()
    seconds: float | None = None
    phase: int | None = None

    def __str__(self) -> str:
        phase = "" if self.phase is None else f" (phase {self.phase})"
        return f"#{self.number} {self.name}{phase}: {self.summary}"

    @property
    def summary(self) -> str:
        """What it changed, in a line."""
        if self.rewrite is not None:
            maps = "; ".join(str(index_map) for index_map in self.rewrite.maps)
            return f"rewrite {self.rewrite.number}, {self.rewrite.delta_parameters:+,} parameters, {maps}"
        if self.kind == "program":
            return f"erased {', '.join(f'%{node}' for node in self.nodes)}"
        if self.kind == "weights":
            kept = "" if self.kept else ", not kept"
            return f"new values of {len(self.tensors)} tensors{kept}"
        return "the start" if self.kind == "start" else "nothing changed"

    def to_json(self) -> dict[str, Any]:
        """Returns the action as plain data."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "rewrite": None if self.rewrite is None else self.rewrite.to_json(),
            "nodes": list(self.nodes),
            "difference": list(self.difference),
            "tensors": list(self.tensors),
            "remarks": [remark.to_json() for remark in self.remarks],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Action:
        """Reads what :meth:`to_json` wrote."""
        return Action(
            **{name: data[name] for name in _PLAIN},
            rewrite=None if data["rewrite"] is None else Rewrite.from_json(data["rewrite"]),
            nodes=tuple(data["nodes"]),
            difference=tuple(data["difference"]),
            tensors=tuple(data["tensors"]),
            remarks=tuple(map(Remark.from_json, data["remarks"])),
        )


_PLAIN = ("number", "kind", "name", "program", "state", "kept", "seconds", "phase")
