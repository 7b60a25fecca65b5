"""Runs of the user's model that leave no trace: no logged failure, no draw from the user's random numbers."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def failing_quietly() -> Generator[None]:
    """Fake tensors log a traceback for what fails; here the error itself is the answer."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


@contextmanager
def fixed_randomness() -> Generator[None]:
    """The same random draws inside each block, and none outside disturbed."""
    # torch.manual_seed would also queue a seed for a CUDA that is not initialised yet.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):  # pyright: ignore[reportUnknownMemberType]
        torch.default_generator.manual_seed(0)
        if devices:
            torch.cuda.manual_seed_all(0)
        yield
