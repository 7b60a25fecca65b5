"""The machine that numbers come from, and how its allocator is to be set."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "20000000000"}


def keep_freed_memory() -> None:
    """Starts the script again with glibc told to keep what is freed, unless it was told something.

    By default every large tensor is fresh memory from the system, page faults and all: on the machine that
    ``docs/performance.md`` was measured on, half the time of a training step on MobileNetV1 with 32 channels.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in _ALLOCATOR):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_ALLOCATOR})


def machine(device: str) -> dict[str, Any]:
    """Returns what a reader of the numbers has to know."""
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": load,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.machine())
