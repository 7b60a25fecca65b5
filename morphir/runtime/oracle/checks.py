"""What the oracle says: one check for each thing that was proven, refused or found wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from morphir.ir.codes import suggestion_for

TOLERANCE = 1e-9
"""Largest relative difference of outputs, in float64."""

Outcome = Literal["ok", "refused", "failed"]


@dataclass(frozen=True)
class Check:
    """One thing that was proven, refused or found wrong.

    Attributes:
        check: ``"split"``, ``"prune"``, ``"plan"``, ``"export-pytorch"``, ``"retrace"`` or ``"export-onnx"``.
        outcome: ``"ok"``, ``"refused"`` (no group allows it; the detail says why) or ``"failed"``.
        space: The channel space, for splits and prunes.
        groups: How many channel groups were changed.
        difference: Largest relative difference of the outputs over both modes; None where none was taken.
        detail: The reason, in words.
        node: The node responsible for a refusal.
        source: The user's line that made it.
        code: Machine-readable reason of a refusal, one of :data:`morphir.ir.codes.CODES`.
    """

    check: str
    outcome: Outcome
    space: str | None = None
    groups: int = 0
    difference: float | None = None
    detail: str = ""
    node: str | None = None
    source: str | None = None
    code: str = ""

    @property
    def suggestion(self) -> str:
        """What the user could do about a refusal."""
        return suggestion_for(self.code)

    def to_json(self) -> dict[str, Any]:
        """Returns the check as plain data."""
        return {**asdict(self), "suggestion": self.suggestion}


def summary(checks: Iterable[Check]) -> Mapping[Outcome, int]:
    """Returns how many checks had each outcome."""
    counts: dict[Outcome, int] = {"ok": 0, "refused": 0, "failed": 0}
    for check in checks:
        counts[check.outcome] += 1
    return counts


def relative_difference(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Returns the largest absolute difference over the largest absolute value, output by output.

    Args:
        found: Tensors.
        wanted: As many tensors of the same shapes.
    """
    worst = 0.0
    for left, right in zip(found, wanted, strict=True):
        if left.shape != right.shape:
            return float("inf")
        scale = right.abs().max().clamp_min(torch.finfo(torch.float64).tiny) if right.numel() else 1.0
        difference = float(((left - right).abs() / scale).max()) if right.numel() else 0.0
        worst = difference if not difference <= worst else worst
    return worst
