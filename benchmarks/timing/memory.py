"""Peak memory of a step, in bytes of live tensors: weights, gradients, optimizer state, activations, scratch.

On a CPU every allocation and release of torch's allocator is recorded, from before the arm is built to the
end of its third step; the peak is that of the third step. What a library allocates for itself (oneDNN's own
scratch) is not seen, for neither arm. ``ru_maxrss`` would see it, but it also holds Python, torch's code and
whatever the allocator keeps, which for these networks is more than the tensors are.
On CUDA it is the peak of the caching allocator's ``memory_allocated``.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from typing import Any, cast

import torch
from timing.arms import Step
from torch.profiler import ProfilerActivity, profile, record_function

_MARK = "the measured step"


def peak_bytes(build: Callable[[], Step], device: str) -> int:
    """Returns the peak of an arm's third step; ``build`` makes the arm."""
    return _on_cuda(build) if device == "cuda" else _on_cpu(build)


def _on_cpu(build: Callable[[], Step]) -> int:
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step = build()
        for _ in range(2):
            step()
        gc.collect()
        with record_function(_MARK):
            step()
    events = cast("Any", profiler).profiler.kineto_results.events()
    mark = next(event for event in events if event.name() == _MARK)
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    live = itertools.accumulate(change for _, change in changes)
    within = [
        total
        for (moment, _), total in zip(changes, live, strict=True)
        if mark.start_ns() <= moment <= mark.end_ns()
    ]
    return max(within)


def _on_cuda(build: Callable[[], Step]) -> int:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    step = build()
    for _ in range(2):
        step()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
