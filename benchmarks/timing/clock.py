"""Interleaved timing: arms take turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import torch
from timing.arms import Step


@dataclass(frozen=True)
class Times:
    """Milliseconds of each repeat of one arm."""

    milliseconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return median(self.milliseconds)

    @property
    def least(self) -> float:
        """The one that was disturbed least."""
        return min(self.milliseconds)

    def ratio(self, other: Times) -> float:
        """Returns the median over the rounds of this arm's time by the other's in the same round."""
        return median(
            own / its for own, its in zip(self.milliseconds, other.milliseconds, strict=True)
        )


def interleaved(steps: Mapping[str, Step], repeats: int, device: str, warm_up: int = 3) -> dict[str, Times]:
    """Times steps by turns: round after round, each step once."""
    timed = _on_cuda if device == "cuda" else _on_cpu
    for step in steps.values():
        for _ in range(warm_up):
            step()
    found: dict[str, list[float]] = {name: [] for name in steps}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, step in steps.items():
                found[name].append(timed(step))
    finally:
        gc.enable()
    return {name: Times(tuple(times)) for name, times in found.items()}


def _on_cpu(step: Step) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def _on_cuda(step: Step) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
