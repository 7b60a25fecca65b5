"""Every random number generator of a run: seeding, saving, restoring."""

from __future__ import annotations

import os
import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]


def random_state(*data: object) -> dict[str, Any]:
    """Returns the state of the global generators, and of those that data loaders own."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": (version, torch.tensor(numbers, dtype=torch.int64), gauss),
        "numpy": (
            str(kind),
            torch.tensor(np.asarray(keys).tolist(), dtype=torch.int64),
            int(position),
            int(has_gauss),
            float(cached),
        ),
        "data": [generator.get_state() for generator in _generators(data)],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any], *data: object) -> None:
    """Puts back what :func:`random_state` returned; generators that are not there any more are left out."""
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    for generator, saved in zip(_generators(data), state["data"], strict=False):
        generator.set_state(saved)
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def _generators(data: tuple[object, ...]) -> list[torch.Generator]:
    """Returns the generators of data loaders and of their samplers, each once."""
    owners = [owner for item in data for owner in (item, getattr(item, "sampler", None))]
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


@contextmanager
def deterministic_algorithms(enabled: bool) -> Generator[None]:
    """Inside, torch uses deterministic algorithms alone, or raises where it has none."""
    before = torch.are_deterministic_algorithms_enabled()
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
