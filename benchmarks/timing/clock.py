"""Interleaved timing: arms take turns, so that what else the machine does falls on all of them alike.

A turn is a few steps in a row, as training and learning run them. The first is not timed: it finds caches,
and memory that the machine took back meanwhile, as another arm left them.

On a CPU a step's time is the CPU time that the process used for it, threads summed: on a machine with other
load, wall time measures the load. With one thread and nothing else running the two are the same. On CUDA it
is the time between two events.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from timing.arms import Step


@dataclass(frozen=True)
class Times:
    """Milliseconds of each round of one arm, and the same by the clock on the wall."""

    milliseconds: tuple[float, ...]
    wall: tuple[float, ...]

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
        rounds = zip(self.milliseconds, other.milliseconds, strict=True)
        return median(own / its for own, its in rounds)

    def wall_ratio(self, other: Times) -> float:
        """Returns the same by the clock on the wall."""
        return median(own / its for own, its in zip(self.wall, other.wall, strict=True))


def interleaved(
    steps: Mapping[str, Step], repeats: int, device: str, warm_up: int = 3, in_a_row: int = 3
) -> dict[str, Times]:
    """Times steps by turns: round after round, each step once untimed and then some times in a row.

    Args:
        steps: Name to what is timed.
        repeats: How many rounds.
        device: Where it runs.
        warm_up: How often each is run before the first round.
        in_a_row: Over how many steps a round's time is averaged.
    """

    def ready(step: Step) -> Step:
        step()
        return step

    for step in steps.values():
        for _ in range(warm_up):
            step()
    return in_turns({name: partial(ready, step) for name, step in steps.items()}, repeats, device, in_a_row)


def in_turns(
    makers: Mapping[str, Callable[[], Step]], repeats: int, device: str, in_a_row: int = 1
) -> dict[str, Times]:
    """Times steps that every round makes ready anew, off the clock: they use up what they work on."""
    timed = _on_cuda if device == "cuda" else _on_cpu
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, make in makers.items():
                found[name].append(timed(make(), in_a_row))
    finally:
        gc.enable()
    columns = {name: tuple(zip(*rounds, strict=True)) for name, rounds in found.items()}
    return {name: Times(own, wall) for name, (own, wall) in columns.items()}


def _on_cpu(step: Step, times: int) -> tuple[float, float]:
    own, wall = time.process_time(), time.perf_counter()
    for _ in range(times):
        step()
    return 1e3 * (time.process_time() - own) / times, 1e3 * (time.perf_counter() - wall) / times


def _on_cuda(step: Step, times: int) -> tuple[float, float]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    wall = time.perf_counter()
    start.record()
    for _ in range(times):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / times, 1e3 * (time.perf_counter() - wall) / times
